"""A figure as data and a drawing, and its files: vector PDF, PNG (JPEG of photographs), the plotted numbers as CSV."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from nora.files import Json, write_atomic
from nora.reporting.document import csv_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


# Okabe and Ito's palette: told apart by colour-blind readers; ordered so that greys differ too.
BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000",
)  # fmt: skip
_BANNER = 120  # letters of a banner's line
PAPER_WIDTH = 6.75  # inches, the text width of a conference page
_PHOTOGRAPHS = {"pdf": 80, "png": 150}
"""Dots per inch of a figure of photographs (in a PDF they are lossless): the files are kept with the code."""
_STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "nora",
    "figure.dpi": 200,
}


@dataclass(frozen=True)
class Figure:
    """``draw`` fills an empty matplotlib figure; ``rows`` are the numbers it plots; ``notes`` the caption."""

    name: str
    title: str
    size: tuple[float, float]
    """Inches."""
    draw: Callable[[Canvas], None]
    csv_header: tuple[str, ...]
    csv_rows: tuple[tuple[object, ...], ...]
    banner: str = ""
    notes: tuple[str, ...] = field(default=())
    photographs: bool = False
    """Whether it shows pictures, whose colours a palette would spoil, and not lines."""

    @property
    def raster(self) -> str:
        """The suffix of its file of dots: photographs are a quarter of the size as JPEG."""
        return "jpg" if self.photographs else "png"


def figure_texts(figure: Figure) -> dict[str, str]:
    """The plotted numbers (csv) and the caption (md)."""
    banner = f"**{figure.banner}**\n\n" if figure.banner else ""
    notes = "".join(f"- {note}\n" for note in figure.notes)
    caption = f"# {figure.title}\n\n{banner}![{figure.title}]({figure.name}.{figure.raster})\n\n{notes}"
    return {"csv": csv_text(figure.csv_header, figure.csv_rows), "md": caption}


def render(figure: Figure) -> dict[str, bytes]:
    """Suffix → file content; the same figure gives the same bytes (no dates, fixed salt)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure as Canvas

    outputs: dict[str, bytes] = {}
    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=figure.size, layout="constrained")
        figure.draw(canvas)
        if figure.banner:
            canvas.suptitle(fill(figure.banner, _BANNER), fontsize=7, color=VERMILION)
        metadata: dict[str, dict[str, Json]] = {
            "pdf": {"CreationDate": None, "Producer": None, "Creator": None}, "png": {"Software": None},
        }  # fmt: skip
        for suffix, fields in metadata.items():
            buffer = io.BytesIO()
            dots = _PHOTOGRAPHS[suffix] if figure.photographs else "figure"
            canvas.savefig(buffer, format=suffix, metadata=fields, dpi=dots)
            outputs[suffix] = buffer.getvalue()
    smaller = to_jpeg if figure.photographs else _with_palette
    outputs[figure.raster] = smaller(outputs.pop("png"))
    return outputs | {suffix: text.encode() for suffix, text in figure_texts(figure).items()}


def _with_palette(png: bytes) -> bytes:
    """A picture of lines in 64 colours, its own to two parts in 255: to the eye the same, a quarter of the size."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        palette = picture.convert("RGB").quantize(64, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
        palette.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def to_jpeg(png: bytes) -> bytes:
    """The same picture as a JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").save(buffer, format="JPEG", quality=70)
    return buffer.getvalue()


def write_figure(figure: Figure, folder: Path) -> list[Path]:
    """Writes pdf, png or jpg, csv and the caption; unchanged files are left alone. Returns their paths."""
    paths = []
    for suffix, data in render(figure).items():
        path = folder / f"{figure.name}.{suffix}"
        if not path.is_file() or path.read_bytes() != data:
            write_atomic(path, data)
        paths.append(path)
    return paths
