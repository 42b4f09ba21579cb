"""Table 3: the average training loss of each method, its spread over seeds, and what the pairing of the seeds shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files

import yaml

from nora.files import Json
from nora.kinds import dreambooth
from nora.reporting import labels
from nora.reporting.document import Block, Document, Entry, Line
from nora.reporting.reported import gap, states_of
from nora.reporting.statistics import Interval, Summary, clear_best, paired_interval, summarize
from nora.store.record import Record
from nora.tables.cell import Cell
from nora.tables.subjects import Subjects

MISSING = "missing"
_MEASURES = (("mean", "all\N{NO-BREAK SPACE}steps"), ("last_100", "last\N{NO-BREAK SPACE}100\N{NO-BREAK SPACE}steps"))
_DRIFT = ("kept", "subject_before", "subject_after")


def finished(cells: Sequence[Cell[dreambooth.Spec]], records: Mapping[str, Record]) -> dict[str, list[Record | None]]:
    """Method → its record per seed, None where there is no finished one."""
    found: dict[str, list[Record | None]] = {}
    for cell in cells:
        record = records.get(cell.id or "")
        usable = record if record is not None and record.status == "done" else None
        found.setdefault(cell.row, []).append(usable)
    return found


def _values(records: Sequence[Record | None], measure: str) -> list[float] | None:
    """One number per seed; None unless every seed has a finished record."""
    present = [r for r in records if r is not None]
    return [float(r.metrics["loss"][measure]) for r in present] if len(present) == len(records) else None


def _gap(method: str, cells: Sequence[Cell[dreambooth.Spec]], records: Mapping[str, Record]) -> str:
    return gap(states_of([cell for cell in cells if cell.row == method], records))


def _with_runs(block: Block, cells: Sequence[Cell[dreambooth.Spec]]) -> Block:
    """The block with each method's runs behind its cells."""
    runs = {labels.method(c.row): tuple(str(o.id) for o in cells if o.row == c.row) for c in cells}
    return replace(
        block,
        lines=tuple(
            replace(line, entries=tuple(replace(e, runs=runs.get(line.label, ())) for e in line.entries))
            for line in block.lines
        ),
    )


def spread(summary: Summary) -> str:
    return f"{summary.mean:.4f}" + ("" if summary.std is None else f" ± {summary.std:.4f}")


def difference(interval: Interval | None, scale: float = 1.0, digits: int = 4) -> str:
    if interval is None:
        return "–"
    numbers = [f"{scale * v:+.{digits}f}" for v in (interval.mean, interval.low, interval.high)]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def printed() -> dict[str, Json]:
    """The paper's own numbers."""
    text = files("nora.tables").joinpath("paper", "table3.yaml").read_text(encoding="utf-8")
    data: dict[str, Json] = yaml.safe_load(text)
    return data


def _main_block(losses: Mapping[str, Mapping[str, list[float] | None]], gaps: Mapping[str, str], paper: bool) -> Block:
    columns = [heading for _, heading in _MEASURES] + [f"minus LoRA, {heading}" for _, heading in _MEASURES]
    best = {
        measure: clear_best(
            {m: summarize(values) if (values := found[measure]) is not None else None for m, found in losses.items()},
            lowest=True,
        )
        for measure, _ in _MEASURES
    }
    lines = []
    for method, found in losses.items():
        entries = []
        for measure, _ in _MEASURES:
            values = found[measure]
            text = gaps[method] if values is None else spread(summarize(values))
            detail = ""
            if paper and measure == "mean":
                theirs = printed()["rows"][method]
                detail = f"paper {theirs['mean']} ± {theirs['std']}"
                if values is not None:
                    detail += f", Δ {summarize(values).mean - theirs['mean']:+.4f}, n={len(values)}"
            entries.append(Entry(text, method in best[measure], detail))
        for measure, _ in _MEASURES:
            values, base = found[measure], losses.get("lora", {}).get(measure)
            both = values is not None and base is not None and method != "lora"
            entries.append(Entry(difference(paired_interval(values, base) if both else None)))  # type: ignore[arg-type]
        lines.append(Line(labels.method(method), tuple(entries)))
    return Block("", tuple(columns), tuple(lines))


def _claim_block(losses: Mapping[str, Mapping[str, list[float] | None]], paper: bool) -> Block:
    """How much larger or smaller, in percent of the other method's loss, seed by seed."""
    lines = []
    for method in ("nora", "nora_plus"):
        entries = []
        for base in ("lora", "lora_p"):
            for measure, _ in _MEASURES:
                ours, theirs = (losses.get(m, {}).get(measure) for m in (method, base))
                detail = f"paper {_printed_share(method, base):.1f} smaller" if paper and measure == "mean" else ""
                if ours is None or theirs is None:
                    entries.append(Entry(MISSING, detail=detail))
                    continue
                shares = [a / b - 1 for a, b in zip(ours, theirs, strict=True)]
                gap = paired_interval(shares, [0.0] * len(shares))
                word = "" if gap is None else " larger" if gap.mean > 0 else " smaller"
                entries.append(Entry(difference(gap, 100, 2) + word, detail=detail))
        lines.append(Line(labels.method(method), tuple(entries)))
    columns = tuple(f"than {labels.method(base)}, {h}" for base in ("lora", "lora_p") for _, h in _MEASURES)
    return Block("Loss against another's, % [95 % interval of the mean over seeds]", columns, tuple(lines))


def _fidelity_block(found: Mapping[str, Sequence[Record | None]], gaps: Mapping[str, str]) -> tuple[Block, ...]:
    """Cosines of the drawn pictures with the subject's own and with the prompt; what real pictures reach, below."""
    there = [r for records in found.values() for r in records if r is not None and "fidelity" in r.metrics]
    if not there:
        return ()
    first = there[0].metrics["fidelity"]
    keys = [(name, key) for name, values in first.items() for key in ("subject", "prompt") if key in values]
    lines = []
    for method, records in found.items():
        present = [r for r in records if r is not None]
        entries = []
        for name, key in keys:
            if len(present) < len(records):
                entries.append(Entry(gaps[method]))
                continue
            entries.append(Entry(spread(summarize([float(r.metrics["fidelity"][name][key]) for r in present]))))
        lines.append(Line(labels.method(method), tuple(entries)))
    real = [first[name].get({"subject": "ceiling", "prompt": "prompt_of_real"}[key]) for name, key in keys]
    lines.append(Line("the real pictures", tuple(Entry("–" if v is None else f"{v:.4f}") for v in real), True))
    columns = tuple(f"{name}: {'picture' if key == 'subject' else 'text'}" for name, key in keys)
    return (Block("Drawn pictures: mean cosine with the real ones and with the prompt", columns, tuple(lines)),)


def _drift_block(found: Mapping[str, Sequence[Record | None]], gaps: Mapping[str, str]) -> tuple[Block, ...]:
    """What became of the pictures of the subject's kind, per encoder."""
    names = next((list(r.metrics["drift"]) for records in found.values() for r in records if r is not None), [])
    lines = []
    for method, records in found.items():
        drifts = [r.metrics["drift"] for r in records if r is not None]
        entries = [Entry(gaps[method])] * 3 * len(names)
        if len(drifts) == len(records):
            entries = []
            for name in names:
                kept, before, after = ([float(d[name][key]) for d in drifts] for key in _DRIFT)
                rise = Entry(difference(paired_interval(after, before)))
                entries += [Entry(spread(summarize(kept))), Entry(spread(summarize(after))), rise]
        lines.append(Line(labels.method(method), tuple(entries)))
    columns = [f"{name}: {what}" for name in names for what in ("to the base's", "to the subject", "rise of that")]
    heading = "Pictures of the subject's kind, by a prompt that does not name it: mean cosines"
    return (Block(heading, tuple(columns), tuple(lines)),) if names else ()


def _drift_notes(cells: Sequence[Cell[dreambooth.Spec]]) -> list[str]:
    spec = next(c.spec for c in cells if c.spec is not None)
    said = spec.task.prompt.replace(spec.task.subject, spec.task.noun)
    return [
        f"Sixteen pictures of “{said}”, drawn before training and after it from the same noise. To the base's: each "
        "with the one before (1: training changed nothing). To the subject: with the pictures trained on, which is "
        "DreamBooth's PRES; where it rises, the subject stands for its kind. Rise: after minus before "
        "within a seed [95 % t interval].",
        *_stand_in(spec),
    ]


def _stand_in(spec: dreambooth.Spec) -> list[str]:
    if not any(e.source == "asset" for e in (spec.protocol.encoders or [])):
        return []
    return ["STAND-IN: a tiny CLIP of this project takes the place of DINO, DINOv2 and CLIP at this scale."]


def _fidelity_notes(cells: Sequence[Cell[dreambooth.Spec]]) -> list[str]:
    spec = next((c.spec for c in cells if c.spec is not None and "fidelity" in c.spec.measure), None)
    if spec is None:
        return []
    words = [f"{e.name} ({e.repo})" for e in (spec.protocol.encoders or [])]
    return [
        f"Cosines over {spec.protocol.pictures} pictures of “{spec.task.prompt}” per run, by "
        f"{', '.join(words)}; the text says {spec.task.noun} for {spec.task.subject}. The real pictures: "
        "pairs of different ones, which is the ceiling, and each with the prompt, which none of them shows.",
        *_stand_in(spec),
    ]


def build(target: Subjects, records: Mapping[str, Record]) -> Document:
    """The table's document from the records there are."""
    cells = target.cells(records)
    found = finished(cells, records)
    losses = {method: {m: _values(rs, m) for m, _ in _MEASURES} for method, rs in found.items()}
    gaps = {method: _gap(method, cells, records) for method in found}
    paper = target.scale == "paper"
    if "drift" in target.file.measure:
        blocks = (_main_block(losses, gaps, False), *_drift_block(found, gaps))
        notes = [*_notes(target, cells, found)[:2], *_drift_notes(cells)]
    else:
        blocks = (_main_block(losses, gaps, paper), _claim_block(losses, paper), *_fidelity_block(found, gaps))
        notes = [*_notes(target, cells, found), *_fidelity_notes(cells)]
    return Document(
        name=f"{target.name}.{target.scale}",
        title=labels.heading(target.name, target.file.title),
        banner=labels.BANNERS[target.scale],
        blocks=tuple(_with_runs(block, cells) for block in blocks),
        notes=(*notes, *target.file.caption),
        csv_header=("table", "scale", "method", "seed", "mean_loss", "last_100", "steps", "id", "state"),
        csv_rows=tuple(_row(cell, records) for cell in cells),
    )


def _row(cell: Cell[dreambooth.Spec], records: Mapping[str, Record]) -> tuple[object, ...]:
    record = records.get(cell.id or "")
    loss: Mapping[str, Json] = record.metrics.get("loss", {}) if record is not None else {}
    return (
        cell.table, cell.scale, cell.row, cell.seed, loss.get("mean", ""), loss.get("last_100", ""),
        record.metrics["steps"] if record is not None else "", cell.id,
        states_of((cell,), records)[0],
    )  # fmt: skip


def _notes(
    target: Subjects, cells: Sequence[Cell[dreambooth.Spec]], found: Mapping[str, Sequence[Record | None]]
) -> list[str]:
    there = [r for records in found.values() for r in records if r is not None]
    spec = next(c.spec for c in cells if c.spec is not None)
    notes = [
        f"The noise-prediction loss of each of the {spec.protocol.steps} steps (one picture a step), "
        f"averaged over a run; then {labels.over_seeds(target.seeds)}. "
        f"The paper does not say what its average is over. {labels.BOLD}",
        "Per seed all methods see the same pictures, crops, VAE samples, noise and timesteps: the spread over seeds is "
        "mostly that of the timesteps and noise drawn. Minus LoRA: mean of the differences within a seed "
        "[95 % t interval].",
        'The paper\'s text says "9.6 % smaller than LoRA and LoRA-P"; its printed means give '
        f"{_printed_share('nora', 'lora'):.1f} % against LoRA and {_printed_share('nora', 'lora_p'):.1f} % against "
        "LoRA-P.",
        f'Base: {labels.model(spec.model.name)}. LoRA and LoRA-P start "gaussian", as in the script.',
    ]
    counts = sorted({r.metrics["trainable_parameters"] for r in there})
    if counts:
        passed = sum(r.result["proof"]["passed"] for r in there)
        notes.append(
            f"Trainable parameters {', '.join(f'{c:,}' for c in counts)}; init proof passed in {passed} of "
            f"{len(there)} runs."
        )
    dirty = sum(bool(r.run.get("dirty")) for r in there)
    if dirty:
        notes.append(f"{dirty} of the runs were made from a checkout with uncommitted changes.")
    return notes


def _printed_share(method: str, base: str) -> float:
    rows = printed()["rows"]
    share = 100 * (1 - rows[method]["mean"] / rows[base]["mean"])
    assert math.isfinite(share)
    return float(share)
