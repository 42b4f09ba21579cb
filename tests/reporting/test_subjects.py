"""Table 3, its figures and Table 6 from records that no run made, against numbers computed another way."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from nora.config.spec import spec_dict
from nora.files import sha256_bytes
from nora.reporting.collation import build_artefact
from nora.reporting.document import Document, to_markdown
from nora.reporting.figures import Figure, render
from nora.reporting.latex import to_latex
from nora.reporting.layouts.loss_curves import moving_average
from nora.reporting.statistics import paired_interval
from nora.store.record import Record
from nora.tables.cell import Cell
from nora.tables.subjects import Subjects
from nora.tables.target import load_target
from nora.training.diffusion.pictures import to_jpeg

SHIFT = {"lora": 0.0, "lora_p": 0.001, "nora": -0.01, "nora_plus": -0.012}


def _losses(cell: Cell, count: int = 500) -> np.ndarray:
    """Seeded by the seed alone, so that the methods differ by a constant and a little noise."""
    shared = np.random.default_rng(cell.seed).gamma(2.0, 0.05, count)
    own = np.random.default_rng([cell.seed, sum(map(ord, cell.row))]).normal(0, 0.002, count)
    return np.round(shared + own + SHIFT[cell.row], 6)


def _record(cell: Cell, folder: Path | None = None, **change: Any) -> Record:
    losses = _losses(cell)
    metrics: dict[str, Any] = {
        "steps": 500,
        "pictures": 5,
        "trainable_parameters": 797184,
        "loss": {"mean": losses.mean(), "last_100": losses[-100:].mean(), "steps": losses.tolist()},
        "fidelity": {
            "clip_x": {"subject": 0.5 + SHIFT[cell.row], "ceiling": 0.8, "prompt": 0.25, "prompt_of_real": 0.2},
        },
    }  # fmt: skip
    files = {f"picture_{i:02d}": {"name": f"p{i}.jpg", "sha256": "ab" * 32} for i in range(10)}
    result = {
        "spec": spec_dict(cell.spec), "status": "done", "metrics": metrics, "files": files,
        "proof": {"passed": True, "init": "x", "problems": [], "modules": [], "output_difference": 0.0}, **change,
    }  # fmt: skip
    assert cell.id is not None and cell.spec is not None
    return Record(cell.id, result, {"wall_seconds": 10.0, "dirty": False}, folder)


def _target(name: str, checkout: Path, scale: str = "paper") -> Subjects:
    target = load_target(checkout, name, [f"scale={scale}"])
    assert isinstance(target, Subjects)
    return target


@pytest.fixture
def records(checkout: Path) -> dict[str, Record]:
    return {str(c.id): _record(c) for c in _target("table3", checkout).cells({})}


def test_44_runs_at_the_papers_scale(checkout: Path) -> None:
    ids = {
        c.id for name in ("table3", "fig7", "fig3", "fig5", "fig6", "curves", "table6")
        for c in _target(name, checkout).cells({})
    }  # fmt: skip
    assert len(ids) == 44
    for name, count in (("table3", 40), ("fig7", 4), ("fig3", 4), ("fig5", 0)):
        assert len(_target(name, checkout).cells({})) == count


def test_each_cells_command_makes_exactly_its_run(checkout: Path) -> None:
    from nora.config.spec import run_id
    from nora.kinds import compose_run

    for scale in ("paper", "mini", "smoke"):
        for name in ("table3", "fig7"):
            for cell in _target(name, checkout, scale).cells({})[::7]:
                assert run_id(compose_run(checkout, cell.overrides)[0]) == cell.id


def test_the_intervals_are_scipys() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=10), draw.normal(size=10)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = paired_interval(a.tolist(), b.tolist())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert found.mean == pytest.approx((a - b).mean(), rel=1e-12)
    assert paired_interval([1.0], [0.5]).high == float("inf")
    with pytest.raises(ValueError):
        paired_interval([1.0, 2.0], [1.0])


def _cells_of(document: Document, block: int) -> dict[str, list[str]]:
    return {line.label: [e.plain for e in line.entries] for line in document.blocks[block].lines}


def test_table3_has_the_means_the_differences_and_both_shares(records: dict[str, Record], checkout: Path) -> None:
    document = build_artefact(_target("table3", checkout), records)
    assert isinstance(document, Document)
    values: dict[str, list[float]] = {}
    for record in records.values():
        values.setdefault(record.spec["method"]["name"], []).append(float(np.mean(record.metrics["loss"]["steps"])))
    main, shares = _cells_of(document, 0), _cells_of(document, 1)
    nora, lora, lora_p = (np.array(values[m]) for m in ("nora", "lora", "lora_p"))
    beside = f"(paper 0.084 ± 0.017, Δ {nora.mean() - 0.084:+.4f}, n={len(nora)})"
    assert main["NoRA"][0] == f"{nora.mean():.4f} ± {nora.std(ddof=1):.4f} {beside}"
    interval = stats.ttest_rel(nora, lora).confidence_interval(0.95)
    assert main["NoRA"][2] == f"{(nora - lora).mean():+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
    assert main["LoRA"][2] == "–"
    assert shares["NoRA"][0].startswith(f"{100 * np.mean(nora / lora - 1):+.2f} [")
    assert shares["NoRA"][2].startswith(f"{100 * np.mean(nora / lora_p - 1):+.2f} [")
    assert shares["NoRA"][0].endswith("(paper 8.7 smaller)") and shares["NoRA"][2].endswith("(paper 9.7 smaller)")
    best = [line.label for line in document.blocks[0].lines if line.entries[0].best]
    lowest = min(values, key=lambda m: np.mean(values[m]))
    clear = all(
        stats.ttest_rel(values[lowest], values[m]).confidence_interval(0.95).high < 0 for m in values if m != lowest
    )
    assert (lowest, best) == ("nora_plus", ["NoRA+"] if clear else [])
    text = to_markdown(document)
    assert "797,184" in text and "8.7 % against LoRA and 9.7 % against LoRA-P" in text
    assert to_latex(document).count(r"hbox{\begin{tabular}") == len(document.blocks)
    assert len(document.csv_rows) == 40


def test_fidelity_stands_beside_what_real_pictures_reach(records: dict[str, Record], checkout: Path) -> None:
    document = build_artefact(_target("table3", checkout), records)
    assert isinstance(document, Document)
    found = _cells_of(document, 2)
    assert document.blocks[2].columns == ("clip_x: picture", "clip_x: text")
    assert found["NoRA"] == ["0.4900 ± 0.0000", "0.2500 ± 0.0000"]
    assert found["the real pictures"] == ["0.8000", "0.2000"]
    assert any("facebook/dinov2-base" in note for note in document.notes)


def test_the_drift_of_the_subjects_kind_is_paired_within_a_seed(checkout: Path) -> None:
    target = _target("forgetting_pictures", checkout)
    records = {str(c.id): _record(c) for c in target.cells({})}
    for cell in target.cells({}):
        rise = SHIFT[cell.row] + 0.001 * cell.seed
        records[str(cell.id)].result["metrics"]["drift"] = {
            "clip_x": {
                "kept": 0.9,
                "subject_before": 0.5 + 0.1 * cell.seed,
                "subject_after": 0.5 + 0.1 * cell.seed + rise,
            }
        }
    document = build_artefact(target, records)
    assert isinstance(document, Document) and len(document.blocks) == 2, "Table 3's claim is not told again"
    assert document.blocks[1].columns == ("clip_x: to the base's", "clip_x: to the subject", "clip_x: rise of that")
    found = _cells_of(document, 1)
    assert found["LoRA"][:2] == ["0.9000 ± 0.0000", "0.6010 ± 0.1010"]
    # Three differences 0, 0.001, 0.002: mean 0.001, t(2) at 97.5 % 4.3027, standard error 0.001 / sqrt(3).
    assert found["LoRA"][2] == "+0.0010 [-0.0015, +0.0035]"
    assert found["NoRA"][2].startswith("-0.0090")
    del records[str(target.cells({})[0].id)]
    assert _cells_of(build_artefact(target, records), 1)["LoRA"] == ["missing (2/3)"] * 3


def test_a_missing_and_a_diverged_run_are_shown_and_not_averaged_over(
    records: dict[str, Record], checkout: Path
) -> None:
    cells = _target("table3", checkout).cells({})
    del records[str(next(c.id for c in cells if c.row == "nora"))]
    gone = next(c for c in cells if c.row == "lora_p")
    records[str(gone.id)] = _record(gone, status="diverged", metrics={"steps": 3}, diverged={"step": 3, "tensor": "x"})
    document = build_artefact(_target("table3", checkout), records)
    assert isinstance(document, Document)
    main, shares = _cells_of(document, 0), _cells_of(document, 1)
    assert main["NoRA"][0].startswith("missing (9/10)") and main["LoRA-P"][0].startswith("diverged 1/10")
    assert main["NoRA"][2] == "–" and shares["NoRA"][0] == "missing (paper 8.7 smaller)"
    assert shares["NoRA+"][2] == "missing (paper 9.7 smaller)"
    assert not any(e.best for line in document.blocks[0].lines for e in line.entries[:1])
    assert build_artefact(_target("table3", checkout), {}).title


def test_the_moving_average_is_numpys() -> None:
    values = np.random.default_rng(0).normal(size=120)
    np.testing.assert_allclose(moving_average(values.tolist(), 50), np.convolve(values, np.ones(50) / 50, "valid"))
    assert moving_average([1.0, 3.0], 50) == [2.0]


def test_the_curves_end_at_the_mean_of_the_last_fifty(records: dict[str, Record], checkout: Path) -> None:
    figure = build_artefact(_target("curves", checkout), records)
    assert isinstance(figure, Figure)
    last = [r for r in figure.csv_rows if r[:3] == ("loss", "nora", 500)]
    expected = np.mean([r.metrics["loss"]["steps"][-50:] for r in _of(records, "nora")])
    assert last[0][3] == pytest.approx(expected, rel=1e-9)
    beside = [r for r in figure.csv_rows if r[:3] == ("minus_lora", "nora", 500)]
    base = np.mean([r.metrics["loss"]["steps"][-50:] for r in _of(records, "lora")])
    assert beside[0][3] == pytest.approx(expected - base, rel=1e-6)
    assert set(render(figure)) == {"pdf", "png", "csv", "md"}


def _of(records: Mapping[str, Record], method: str) -> list[Record]:
    return [r for r in records.values() if r.spec["method"]["name"] == method]


def test_the_grid_shows_each_methods_own_pictures_in_the_papers_order(checkout: Path, tmp_path: Path) -> None:
    """Rows are filled with one colour per method; the drawn figure has the colours from top to bottom."""
    target = _target("fig3", checkout)
    colours = {"nora_plus": (250, 0, 0), "nora": (0, 250, 0), "lora_p": (0, 0, 250), "lora": (250, 250, 0)}
    records = {}
    for cell in target.cells({}):
        folder = tmp_path / cell.row
        folder.mkdir()
        data = to_jpeg(Image.new("RGB", (8, 8), colours[cell.row]))
        files = {f"picture_{i:02d}": {"name": f"p{i}.jpg", "sha256": sha256_bytes(data)} for i in range(10)}
        for i in range(10):
            (folder / f"p{i}.jpg").write_bytes(data)
        records[str(cell.id)] = dataclasses.replace(_record(cell, files=files), folder=folder)
    figure = build_artefact(target, records)
    assert isinstance(figure, Figure) and len(figure.csv_rows) == 40
    image = np.asarray(Image.open(io.BytesIO(render(figure)["jpg"])).convert("RGB"), dtype=int)
    for column in (0.3, 0.95):
        strip = image[:, int(column * image.shape[1])]
        places = [np.flatnonzero(np.abs(strip - colour).sum(axis=1) < 30).mean() for colour in colours.values()]
        assert places == sorted(places)
    # A picture that is gone or is not what the record says is not shown, and the caption counts it.
    (tmp_path / "lora" / "p3.jpg").unlink()
    for name in ("p1.jpg", "p2.jpg"):
        (tmp_path / "nora" / name).write_bytes(to_jpeg(Image.new("RGB", (8, 8), (1, 2, 3))))
    spoilt = build_artefact(target, records)
    assert isinstance(spoilt, Figure) and render(spoilt)["jpg"] != render(figure)["jpg"]
    assert [note for note in spoilt.notes if note not in figure.notes] == [
        "2 of the pictures are damaged here.", "1 of the pictures are missing here.",
    ]  # fmt: skip
    records.pop(next(iter(records)))
    assert set(render(build_artefact(target, records)))  # type: ignore[arg-type]


def test_training_pictures_name_licence_and_source(checkout: Path) -> None:
    for name, count, words in (("fig5", 5, "Unsplash License"), ("fig6", 4, "Nataniel Ruiz")):
        figure = build_artefact(_target(name, checkout, "mini"), {})
        assert isinstance(figure, Figure) and len(figure.csv_rows) == count
        assert any(words in note for note in figure.notes)
        render(figure)
    far = build_artefact(_target("fig6", checkout), {})
    assert isinstance(far, Figure) and not far.csv_rows and "cat-toy-example" in far.notes[0]


def test_table6_agrees_with_what_the_paper_prints(checkout: Path) -> None:
    document = build_artefact(_target("table6", checkout), {})
    assert isinstance(document, Document)
    shared = _cells_of(document, 1)
    for key in ("steps", "batch size", "learning rate", "weight decay"):
        assert shared[key][0] == shared[key][1], key
    methods = _cells_of(document, 0)
    assert methods["LoRA"][:3] == ["Gaussian", "4", "4"] and methods["NoRA"][3] == methods["printed in the paper"][3]
