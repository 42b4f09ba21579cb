"""A checkout beside the checkout: its code and yamls, the paper scale's sizes reduced, its own lock and results."""

from __future__ import annotations

import contextlib
import shutil
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from hub_twins.contents import ROOT, narrow

# Sizes of conf/scale/paper.yaml that a rehearsal reduces, by their path; everything else is as the paper has it.
REDUCED: dict[str, Any] = {
    "epochs": 1,
    "dreambooth.steps": 2,
    "dreambooth.resolution": 64,
    "dreambooth.pictures": 2,
    **{f"task.{name}.{key}": size
       for name in ("sst2", "wsc", "boolq", "cb", "rte", "record", "multirc", "squad")
       for key, size in (("num_train", 16), ("num_dev", 4), ("num_test", 4))},
    "instruct.num_train": 32,
    "instruct.num_dev": 4,
    "instruct.num_test": 1,
    "instruct.epochs": 1,
    "instruct.max_new_tokens": 4,
    "math.num_train": 256,
    "math.num_dev": 2,
    "math.num_test": 2,
    "math.epochs": 1,
    "math.max_new_tokens": 4,
}  # fmt: skip


def make_site(folder: Path) -> Path:
    """Lays the site out in an empty folder; nothing in it is pinned yet."""
    shutil.copytree(ROOT / "conf", folder / "conf")
    (folder / "conf" / "revisions.lock").write_text("{}\n")
    path = folder / "conf" / "scale" / "paper.yaml"
    text = path.read_text(encoding="utf-8")
    scale = yaml.safe_load(text)
    for key, value in REDUCED.items():
        at, *rest = [scale["scale"], *key.split(".")]
        for part in rest[:-1]:
            at = at[part]
        assert rest[-1] in at, key
        at[rest[-1]] = value
    path.write_text("# @package _global_\n" + yaml.safe_dump(scale, sort_keys=False))
    (folder / "data").mkdir()
    for one in (ROOT / "data").iterdir():
        if one.name != "hub":
            (folder / "data" / one.name).symlink_to(one)
    for name in ("src", "assets", "slurm"):
        (folder / name).symlink_to(ROOT / name)
    return folder


class _Raw(urllib.request.HTTPSHandler):
    """raw.githubusercontent.com on the twin's server."""

    def __init__(self, endpoint: str) -> None:
        super().__init__()
        self._endpoint = endpoint

    def https_open(self, request: Any) -> Any:
        path = request.full_url.removeprefix("https://raw.githubusercontent.com/")
        return urllib.request.urlopen(f"{self._endpoint}/raw/{path}", timeout=30)


def drive(endpoint: str, words: Sequence[str]) -> int:
    """`nora WORDS` in this process, with as many rows as the twins have."""
    from nora import cli

    narrow()
    if endpoint:
        urllib.request.install_opener(urllib.request.build_opener(_Raw(endpoint)))
    with contextlib.suppress(SystemExit):
        return int(cli.main(list(words)))
    return 2


if __name__ == "__main__":
    sys.exit(drive(sys.argv[1], sys.argv[2:]))
