"""Figures 3 and 7: one row per method, one column per picture seed, all from the same starting noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nora.files import sha256_bytes
from nora.reporting import labels
from nora.reporting.figures import PAPER_WIDTH, Figure
from nora.store.record import Record
from nora.tables.subjects import Subjects

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas
    from PIL import Image


_SMALL = 64  # pixels
_LABEL = 0.55  # inches left of the pictures
_TOP = ("nora_plus", "nora", "lora_p", "lora")  # the paper's order


def picture_files(record: Record | None) -> list[dict[str, str]]:
    """Name and hash of the record's pictures, in the order of their seeds."""
    if record is None or record.status != "done":
        return []
    files = record.result["files"]
    return [files[label] for label in sorted(files) if label.startswith("picture_")]


def picture_bytes(record: Record, file: Mapping[str, str]) -> bytes | str:
    """The picture a record names, or why it is not shown: it is not there, or not what the record's hash says."""
    try:
        data = ((record.folder or Path()) / file["name"]).read_bytes()
    except OSError:
        return "missing"
    return data if sha256_bytes(data) == file["sha256"] else "damaged"


def _shown(jpeg: bytes) -> Image.Image:
    """In 128 colours where a picture is small, which is the same to the eye and a PDF of two thirds."""
    from PIL import Image

    with Image.open(BytesIO(jpeg)) as picture:
        plain = picture.convert("RGB")
    return plain.quantize(128, dither=Image.Dither.NONE).convert("RGB") if max(plain.size) <= _SMALL else plain


def build(target: Subjects, records: Mapping[str, Record]) -> Figure:
    """The grid of the first seed's runs; a run that is missing leaves its row empty and says so."""
    cells = [c for c in target.cells(records) if c.seed == target.seeds[0]]
    cells.sort(key=lambda c: _TOP.index(c.row) if c.row in _TOP else len(_TOP))
    spec = next(c.spec for c in cells if c.spec is not None)
    columns = spec.protocol.pictures
    found = [(c, records.get(c.id or "")) for c in cells]
    side = (PAPER_WIDTH - _LABEL) / columns
    rows = tuple(
        (cell.row, cell.seed, i, spec.task.prompt, cell.id, file["name"], file["sha256"])
        for cell, record in found
        for i, file in enumerate(picture_files(record))
    )

    pictures = [
        [] if record is None else [picture_bytes(record, file) for file in picture_files(record)] for _, record in found
    ]
    absent = Counter(picture for line in pictures for picture in line if isinstance(picture, str))

    def draw(canvas: Canvas) -> None:
        engine: Any = canvas.get_layout_engine()
        engine.set(w_pad=0.01, h_pad=0.02, wspace=0.01, hspace=0.01)
        grid = canvas.subplots(len(cells), columns, squeeze=False)
        for i, ax in enumerate(grid[0]):
            ax.set_title(f"seed {i}", fontsize=7, pad=2)
        for axes, (cell, record), line in zip(grid, found, pictures, strict=True):
            for ax in axes:
                ax.set(xticks=[], yticks=[])
                for spine in ax.spines.values():
                    spine.set_visible(False)
            for ax, picture in zip(axes, line, strict=False):
                if isinstance(picture, str):
                    ax.text(0.5, 0.5, picture, ha="center", va="center", fontsize=6, transform=ax.transAxes)
                else:
                    ax.imshow(_shown(picture), interpolation="nearest")
            axes[0].set_ylabel(labels.method(cell.row), rotation=0, ha="right", va="center", fontsize=8)
            if not line:
                axes[0].set_title("missing" if record is None else record.status, fontsize=7, y=0.3)

    return Figure(
        name=f"{target.name}.{target.scale}",
        title=labels.heading(target.name, target.file.title),
        size=(PAPER_WIDTH, len(cells) * side + 0.42),
        draw=draw,
        photographs=True,
        csv_header=("method", "seed", "picture_seed", "prompt", "id", "file", "sha256"),
        csv_rows=rows,
        banner=labels.BANNERS[target.scale],
        notes=(
            f"Prompt “{spec.task.prompt}” after {spec.protocol.steps} steps on "
            f"“{spec.task.instance_prompt}” ({labels.task(target.subject)}, training seed {target.seeds[0]}, "
            f"{spec.model.name}). Columns are picture seeds: a column starts from the same noise in every row.",
            f"{spec.protocol.picture_steps} DPM-Solver++ steps, guidance {spec.protocol.guidance:g}. "
            "Prompt, seeds, file and hash of every picture are in the CSV; none was chosen by eye.",
            *target.file.caption,
            *(f"{count} of the pictures are {state} here." for state, count in sorted(absent.items())),
        ),
    )
