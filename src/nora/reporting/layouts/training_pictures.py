"""Figures 5 and 6: the pictures a subject is learnt from, with their source and licence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nora.files import read_json
from nora.reporting import labels
from nora.reporting.figures import PAPER_WIDTH, Figure
from nora.store.record import Record
from nora.tables.subjects import Subjects

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


def build(target: Subjects, records: Mapping[str, Record]) -> Figure:
    """The shipped pictures in a row; those of the Hub are named and left out."""
    del records
    subject = target.spec().task
    shipped = sorted(subject.files or {}) if subject.source == "slice" else []
    manifest = read_json(target.checkout / "data" / "MANIFEST.json", {}, follow=True)
    rows = tuple(
        (name, (subject.files or {})[name], manifest[name]["licence"], manifest[name]["source"]) for name in shipped
    )
    places = max(len(shipped), 1)

    def draw(canvas: Canvas) -> None:
        from matplotlib.image import imread

        axes = canvas.subplots(1, places, squeeze=False)[0]
        for ax in axes:
            ax.set_axis_off()
        for ax, name in zip(axes, shipped, strict=False):
            ax.imshow(imread(target.checkout / "data" / name))
            ax.set_title(Path(name).name, fontsize=7)
        if not shipped:
            axes[0].text(0.5, 0.5, f"the pictures of {subject.repo} are on the Hub", ha="center", va="center")

    where = f"data/{Path(shipped[0]).parent}" if shipped else f"the Hub's data set {subject.repo}"
    licences = sorted({row[2] for row in rows})
    return Figure(
        name=f"{target.name}.{target.scale}",
        title=labels.heading(target.name, target.file.title),
        size=(PAPER_WIDTH, PAPER_WIDTH / max(places, 4) + 0.12),
        draw=draw,
        photographs=True,
        csv_header=("file", "sha256", "licence", "source"),
        csv_rows=rows,
        notes=(
            f"{labels.task(target.subject)}: {len(shipped) or subject.num_images or '?'} pictures of {where}, "
            f"called “{subject.subject}” in “{subject.instance_prompt}”.",
            *(f"Licence: {licence}." for licence in licences),
            *(
                ("Source: github.com/google/dreambooth (Ruiz et al. 2023), files and commit in the CSV.",)
                if shipped
                else ()
            ),
            *target.file.caption,
        ),
    )
