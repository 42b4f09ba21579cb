"""A table, a scale and a protocol of one's own folder count as those of the checkout; 1e-3 is a number in each file."""

from __future__ import annotations

from pathlib import Path

import pytest

from nora import cli
from nora.tables.cell import read_yaml
from nora.tables.methods import load_table

TABLE = """title: Mine
layout: methods_by_tasks
columns: [cb]
rows: [lora, nora]
below_rule: []
fixed: [protocol=short]
settings: {method.alpha: 8}
seeds: {tiny: [0]}
measure: {default: []}
search:
  first: lora
  reuse: []
  grid: {lora: {protocol.lr: [1e-3, 2E-03]}, nora: {protocol.lr: [1e-3]}}
"""


@pytest.fixture
def own(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "mine"
    for group in ("table", "scale", "protocol"):
        (folder / group).mkdir(parents=True)
    (folder / "table" / "mine.yaml").write_text(TABLE)
    scale = (checkout / "conf" / "scale" / "smoke.yaml").read_text()
    (folder / "scale" / "tiny.yaml").write_text(scale.replace("name: smoke", "name: tiny"))
    protocol = (checkout / "conf" / "protocol" / "mezo.yaml").read_text()
    (folder / "protocol" / "short.yaml").write_text(f"{protocol}max_steps: 1\n")
    monkeypatch.setenv("NORA_CONFIG_DIR", str(folder))
    return folder


def test_they_are_planned_launched_and_collated(
    own: Path, checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = load_table(checkout, "mine", ["scale=tiny"]).cells({})
    assert [cell.spec.protocol.lr for cell in cells if cell.spec] == [0.001, 0.002, 0.001]
    assert all(cell.spec and cell.spec.protocol.max_steps == 1 and cell.spec.method.alpha == 8 for cell in cells)
    words = ["mine", "scale=tiny", f"exec.results={tmp_path / 'store'}", "exec.processes=1", "exec.device=cpu"]
    assert cli.main(["plan", *words]) == 0
    assert "3 cells: 3 missing" in capsys.readouterr().out
    assert cli.main(["launch", *words]) == 0
    assert cli.main(["collate", *words]) == 0
    text = (tmp_path / "store" / "tables" / "mine.tiny.md").read_text()
    assert "| NoRA" in text and "missing" not in text


def test_a_number_without_a_point_is_one_and_a_name_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1e-3\nb: [5E-05, 1.5e+2]\nc: e5\nd: 1e5x\ne: 12e345\nf: '" + "1" * 40 + "e1'\n")
    assert read_yaml(path) == {
        "a": 1e-3, "b": [5e-5, 150.0], "c": "e5", "d": "1e5x", "e": "12e345", "f": "1" * 40 + "e1",
    }  # fmt: skip
