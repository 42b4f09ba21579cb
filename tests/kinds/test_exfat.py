"""A store on a real file system without hard links: exFAT, in an image of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nora.store.runs import Store
from nora.store.verify import verify_record

_NEEDED = ("mkfs.exfat", "mount.exfat-fuse", "losetup")


def _call(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def exfat(tmp_path: Path) -> Iterator[Path]:
    """The mounted folder; skipped where nobody may mount one."""
    if os.geteuid() != 0 or any(shutil.which(name) is None for name in _NEEDED):
        pytest.skip("mounting exFAT takes root, exfatprogs and exfat-fuse")
    image, folder = tmp_path / "image", tmp_path / "exfat"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(64 * 2**20)
    _call("mkfs.exfat", str(image))
    try:
        device = _call("losetup", "-f", "--show", str(image))
    except subprocess.CalledProcessError:
        pytest.skip("no loop device here")
    try:
        try:
            _call("mount.exfat-fuse", device, str(folder))
        except subprocess.CalledProcessError:
            pytest.skip("FUSE is not to be had here")
        yield folder
        _call("umount", str(folder))
    finally:
        _call("losetup", "-d", device)


def test_a_store_on_exfat_has_one_record_whoever_starts_the_run(exfat: Path, checkout: Path) -> None:
    (exfat / "a").touch()
    with pytest.raises(OSError):
        os.link(exfat / "a", exfat / "b")
    words = ["scale=smoke", "task=cb", "method=nora", "exec.progress=false", "exec.device=cpu"]
    command = [sys.executable, "-m", "nora", "run", *words, f"exec.results={exfat / 'results'}"]
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    started = [
        subprocess.Popen(
            command, cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(3)
    ]
    said = [process.communicate(timeout=200)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    store = Store(exfat / "results")
    (path,) = store.root.glob("runs/*/*/record.json")
    record = store.read("finetune", path.parent.name)
    assert record is not None and record.status == "done" and verify_record(store, record) == []
    assert sum("already done" not in line and "init proved" in line for line in said) == 1, said
    again = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    assert "already done, nothing to do" in again.stdout
