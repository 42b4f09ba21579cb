"""Table 6: what DreamBooth is run with, from conf, beside what the paper prints."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

import yaml

from nora.reporting import labels
from nora.reporting.document import Block, Document, Entry, Line
from nora.store.record import Record
from nora.tables.subjects import Subjects

_METHOD = (("init", "start"), ("rank", "r"), ("alpha", "α"), ("xi", "ξ"), ("damping", "λ"))
_PROTOCOL = (
    "steps", "batch_size", "lr", "schedule", "optimizer", "betas", "eps", "weight_decay", "max_grad_norm", "resolution",
    "crop", "interpolation", "precision", "pictures", "picture_steps", "guidance",
)  # fmt: skip
_SUBJECT = ("subject", "instance_prompt", "prompt")


def build(target: Subjects, records: Mapping[str, Record]) -> Document:
    """Per method, shared, and the subject's prompts."""
    specs = {c.row: c.spec for c in target.cells(records) if c.seed == target.seeds[0] and c.spec}
    first = next(iter(specs.values()))
    data = yaml.safe_load(files("nora.tables").joinpath("paper", "table6.yaml").read_text(encoding="utf-8"))
    theirs = data["rows"]
    methods = tuple(
        Line(labels.method(name), tuple(Entry(labels.value(getattr(spec.method, key))) for key, _ in _METHOD))
        for name, spec in specs.items()
    )
    printed = Line("printed in the paper", tuple(Entry(labels.value(theirs.get(key))) for key, _ in _METHOD), True)
    shared = [
        Line(labels.setting("modules"), (Entry(", ".join(first.model.targets)), Entry(theirs["modules"]))),
        *(
            Line(
                labels.setting(k), (Entry(labels.value(getattr(first.protocol, k))), Entry(labels.value(theirs.get(k))))
            )
            for k in _PROTOCOL
        ),
    ]
    prompts = tuple(Line(labels.setting(key), (Entry(getattr(first.task, key)),)) for key in _SUBJECT)
    keys = ("modules", *_PROTOCOL)
    rows = [(target.scale, key, *(e.text for e in line.entries)) for key, line in zip(keys, shared, strict=True)]
    base = labels.model(first.model.name)
    return Document(
        name=f"{target.name}.{target.scale}",
        title=labels.heading(target.name, target.file.title),
        banner=labels.BANNERS[target.scale],
        blocks=(
            Block("Per method", tuple(heading for _, heading in _METHOD), (*methods, printed)),
            Block(f"Shared by all methods ({base})", ("value", "printed in the paper"), tuple(shared)),
            Block(f"Prompts ({labels.task(target.subject)})", ("text",), prompts),
        ),
        notes=(
            "What the paper does not print is the default of diffusers' DreamBooth LoRA script of 2024.",
            *(() if target.scale == "paper" else ("Learning rate, resolution and guidance are this scale's own.",)),
        ),
        csv_header=("scale", "setting", "value", "printed"),
        csv_rows=tuple(rows),
    )
