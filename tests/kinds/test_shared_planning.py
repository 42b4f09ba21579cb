"""Composing is done once for what is asked twice, and again as soon as a file has changed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from nora import cli
from nora.config import compose
from nora.config.compose import choices, choices_side_by_side, compose_config


def _misses() -> int:
    return compose._composed.cache_info().misses


def test_an_edited_file_is_seen_and_a_copy_is_given(checkout: Path, tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(checkout / "conf", conf)
    before = _misses()
    first = compose_config(conf, ["method=lora"])
    first["method"]["rank"] = -1
    assert compose_config(conf, ["method=lora"])["method"]["rank"] == 8 and _misses() == before + 1
    path = conf / "method" / "lora.yaml"
    path.write_text(path.read_text().replace("rank: 8", "rank: 4"))
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    assert compose_config(conf, ["method=lora"])["method"]["rank"] == 4 and _misses() == before + 2


def test_tables_that_share_their_cells_compose_nothing_more(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["scale=smoke", f"exec.results={tmp_path}"]
    assert cli.main(["plan", "table2", *words]) == 0
    before = _misses()
    assert cli.main(["plan", "table2", "tuning", "table5", "fig2", *words]) == 0
    assert _misses() == before
    capsys.readouterr()


def test_one_composition_serves_a_choice_of_every_group(checkout: Path) -> None:
    """Each choice is met. That the parts are independent: tests/tables (random cells against ``nora run``)."""
    conf = checkout / "conf"
    for names in (("task", "method"), ("problem", "start", "solver")):
        groups = {name: choices(conf, name) for name in names}
        for group, listed in groups.items():
            for choice in listed:
                words = choices_side_by_side(groups, group, choice)
                assert f"{group}={choice}" in words and len(words) == len(groups)
    assert choices_side_by_side({"task": ["cb"], "method": ["lora"]}, "task", "sst2") == ["task=sst2"]


def test_tables_of_other_tasks_do_not_share_their_specs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Tables 4 and 9 have the same scale and columns of the same kind; planned together or alone, the same ids."""
    words = ["scale=paper", f"exec.results={tmp_path}", "--json"]
    alone = {}
    for name in ("table4", "table9"):
        assert cli.main(["plan", name, *words]) == 0
        alone |= json.loads(capsys.readouterr().out)
    assert cli.main(["plan", "table4", "table9", *words]) == 0
    together = json.loads(capsys.readouterr().out)
    assert {t: [c["id"] for c in cells] for t, cells in together.items()} == {
        t: [c["id"] for c in cells] for t, cells in alone.items()
    }
