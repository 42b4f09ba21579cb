"""Tables with a row per method and a column per task (Table 2): dev-chosen settings, test metric over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nora.kinds import FinetuneSpec
from nora.kinds.few_shot import FewShotProtocol
from nora.reporting import labels
from nora.reporting.document import Block, Document, Entry, Line
from nora.reporting.reported import MISSING, Reported, answer_notes, report
from nora.reporting.statistics import Summary, above_chance, clear_best
from nora.store.record import Record
from nora.tables.methods import Table
from nora.tables.printed import PrintedValue, printed_grid


def _percent(summary: Summary) -> str:
    spread = "" if summary.std is None else f" ± {100 * summary.std:.1f}"
    return f"{100 * summary.mean:.1f}{spread}"


def _detail(entry: Reported, summary: Summary | None, printed: PrintedValue | None) -> str:
    """The paper's value, the difference and n; how many of the runs are dirty."""
    parts = []
    if printed is not None:
        parts.append(f"paper {printed.text}")
        if summary is not None:
            parts += [f"Δ {100 * summary.mean - printed.mean:+.1f}", f"n={summary.n}"]
    if entry.dirty():
        parts.append(f"dirty {entry.dirty()}/{len(entry.records)}")
    return ", ".join(parts)


def _test_metric(name: str) -> Callable[[Record], float]:
    return lambda record: float(record.metrics["test"][name])


_WORSE = " ‡"
_WORSE_NOTE = (
    "‡ The answer's loss is above that of the untrained base (sure of some wrong answers; the score may be higher)."
)


def build(table: Table, records: Mapping[str, Record]) -> Document:
    """The table's document from the records there are."""
    reported = report(table, records)
    printed = printed_grid(table.name) if table.scale == "paper" else {}
    rows = tuple(m for m in table.file.rows if m in table.methods)
    below = tuple(m for m in table.file.below_rule if m in table.methods)
    metric = {task: table.book.metric(task) for task in table.columns}
    scores = {
        task: {m: reported[m, task].values(_test_metric(metric[task])) for m in (*rows, *below)}
        for task in table.columns
    }
    best = {task: clear_best({m: scores[task][m] for m in rows}) for task in table.columns}
    chance = {task for task in table.columns if at_chance(table, reported, task, scores[task])}
    averaged = _averaged(table)
    names = (labels.column(table.file.axis, t) + (" (at chance)" if t in chance else "") for t in table.columns)
    columns = (*names, *(("avg",) if averaged else ()))
    lines = []
    for method in (*rows, *below):
        entries = []
        for task in table.columns:
            summary = scores[task][method]
            entry = reported[method, task]
            text = _percent(summary) if summary is not None else entry.gap()
            entries.append(
                Entry(
                    text,
                    method in best[task] and task not in chance,
                    _detail(entry, summary, printed.get((method, task))),
                    entry.behind,
                    grey=task in chance,
                )
            )
        means = [s.mean for task in table.columns if (s := scores[task][method]) is not None]
        average = f"{100 * sum(means) / len(means):.1f}" if len(means) == len(table.columns) else MISSING
        whole = (method, "avg") in printed and len(table.columns) == len(table.file.columns)
        if averaged:
            entries.append(Entry(average, detail=f"paper {printed[method, 'avg'].text}" if whole else ""))
        mark = " (not in the paper)" if method in below else ""
        lines.append(Line(labels.method(method) + mark, tuple(entries), method == next(iter(below), None)))
    blocks = [Block("Test score, %", columns, tuple(lines + _references(table, reported)))]
    if table.scale != "paper":
        blocks.append(_loss_block(table, reported, (*rows, *below)))
    worse = any(_WORSE in entry.text for line in blocks[-1].lines for entry in line.entries)
    return Document(
        name=f"{table.name}.{table.scale}",
        title=f"{labels.heading(table.name, table.file.title)} of {_model(table)}",
        banner=labels.OWN_ROWS.format(scale=table.scale) if _of_ones_own(table) else labels.BANNERS[table.scale],
        blocks=tuple(blocks),
        notes=(
            *_notes(table, reported, metric),
            *([labels.CHANCE] if chance else []),
            *([_WORSE_NOTE] if worse else []),
        ),
        csv_header=(
            "table",
            "scale",
            "method",
            "task",
            "metric",
            "seed",
            "value",
            "gold_nll",
            "settings",
            "id",
            "state",
        ),  # fmt: skip
        csv_rows=_csv_rows(table, reported, metric),
    )


def at_chance(
    table: Table, reported: Mapping[tuple[str, str], Reported], task: str, scores: Mapping[str, Summary | None]
) -> bool:
    """Whether a column's methods all stay at what no training reaches; unknown, so no, while a reference is missing."""
    references = [values for read in (_majority, _zero_shot) if (values := _from_first(reported, table, task, read))]
    found = [s for s in scores.values() if s is not None]
    first = reported.get((table.file.search.first, task))
    if not references or not found or first is None or first.records[0] is None:
        return False
    rows, means = first.records[0].metrics["test"]["n"], [sum(values) / len(values) for values in references]
    return not any(above_chance(s.mean, means, rows) for s in found)


def _of_ones_own(table: Table) -> bool:
    return all(table.spec(table.methods[0], column).task.source == "file" for column in table.columns)


def _majority(record: Record) -> float | None:
    found = record.metrics.get("majority_accuracy", record.metrics.get("majority"))
    return None if found is None else float(found)


def _zero_shot(record: Record) -> float | None:
    scores = record.metrics.get("zero_shot", {})
    found = [scores[name] for name in ("accuracy", "mean_accuracy", "macro_f1", "f1") if name in scores]
    return float(found[0]) if found else None


def _model(table: Table) -> str:
    """The base models of the table's columns."""
    names = [table.spec(table.methods[0], column).model.name for column in table.columns]
    return ", ".join(dict.fromkeys(map(labels.model, names)))


def _averaged(table: Table) -> bool:
    """A mean over base models or protocols, or of one column, says nothing."""
    return table.file.axis == "task" and len(table.file.columns) > 1


def _references(table: Table, reported: Mapping[tuple[str, str], Reported]) -> list[Line]:
    """What no training reaches: the most frequent class and the untrained base, where the records have them."""
    outcome: list[Line] = []
    for label, read in (
        ("Majority class", _majority),
        ("Zero-shot base", _zero_shot),
    ):
        entries, found = [], []
        for task in table.columns:
            values = _from_first(reported, table, task, read)
            found += [sum(values) / len(values)] if values else []
            entries.append(Entry(f"{100 * found[-1]:.1f}" if values else "–"))
        if not found:
            continue
        average = f"{100 * sum(found) / len(found):.1f}" if len(found) == len(table.columns) else "–"
        if _averaged(table):
            entries.append(Entry(average))
        outcome.append(Line(label, tuple(entries), not outcome))
    return outcome


def _from_first(
    reported: Mapping[tuple[str, str], Reported], table: Table, task: str, read: Callable[[Record], float | None]
) -> list[float]:
    """One value per seed from the search's first method, whose records carry the references; [] unless complete."""
    entry = reported.get((table.file.search.first, task))
    if entry is None or not entry.complete:
        return []
    values = [read(r) for r in entry.records if r is not None]
    return [v for v in values if v is not None] if all(v is not None for v in values) else []


def _loss_block(table: Table, reported: Mapping[tuple[str, str], Reported], methods: tuple[str, ...]) -> Block:
    losses = {
        task: {m: reported[m, task].values(lambda r: r.metrics["test"]["gold_nll"]) for m in methods}
        for task in table.columns
    }
    rows = tuple(m for m in methods if m in table.file.rows)
    best = {task: clear_best({m: losses[task][m] for m in rows}, lowest=True) for task in table.columns}
    base = {
        task: _from_first(reported, table, task, lambda r: r.metrics.get("zero_shot", {}).get("gold_nll"))
        for task in table.columns
    }
    lines = []
    for method in methods:
        entries = []
        for task in table.columns:
            summary, untrained = losses[task][method], base[task]
            text = reported[method, task].gap()
            if summary is not None:
                text = f"{summary.mean:.3f}" + ("" if summary.std is None else f" ± {summary.std:.3f}")
                text += _WORSE if untrained and summary.mean > sum(untrained) / len(untrained) else ""
            entries.append(Entry(text, method in best[task], runs=reported[method, task].behind))
        lines.append(Line(labels.method(method), tuple(entries), method in table.file.below_rule[:1]))
    zero = []
    for values in base.values():
        zero.append(Entry(f"{sum(values) / len(values):.3f}" if values else "–"))
    lines.append(Line("Zero-shot base", tuple(zero), True))
    return Block(
        "Test loss of the gold answer, nats per token",
        tuple(labels.column(table.file.axis, t) for t in table.columns),
        tuple(lines),
    )


def _selection(spec: FinetuneSpec, seeds: int) -> str:
    """What the seeds draw and what dev is for, by the protocol."""
    protocol = spec.protocol
    if isinstance(protocol, FewShotProtocol):
        drawn = (
            "train and dev rows, all on the same test rows"
            if spec.task.source == "file"
            else "train, dev and test rows"
        )
        each = f", each with its own {drawn}" if seeds > 1 else ""
        return f"{each}; epoch and hyper-parameters chosen on dev, scored on test"
    each = ", all on the same test rows" if seeds > 1 else ""
    kept = "the checkpoint of lowest dev loss" if protocol.keep == "lowest_dev_loss" else "the last checkpoint"
    return f"{each}; hyper-parameters chosen on dev, {kept} scored on test"


def _notes(table: Table, reported: Mapping[tuple[str, str], Reported], metric: Mapping[str, str]) -> tuple[str, ...]:
    over = labels.over_seeds(table.seeds)
    specs = [table.spec(table.methods[0], c) for c in table.columns]
    selections = dict.fromkeys(_selection(spec, len(table.seeds)) for spec in specs)
    notes = [
        f"{over[0].upper()}{over[1:]}{' or '.join(selections)}.",
        f"Metric: {_metrics(table, metric)}.",
        labels.BOLD,
    ]
    if len(table.columns) < len(table.file.columns):
        notes.append(f"Narrowed: {len(table.columns)} of the table's {len(table.file.columns)} tasks are shown.")
    notes += answer_notes([r for e in reported.values() for r in e.records if r is not None and r.status == "done"])
    notes += table.file.caption
    if table.search == "grid":
        trials = ", ".join(f"{labels.method(m)} {_trials(table, m)}" for m in table.methods)
        reused = "; every method but LoRA takes over LoRA's batch size" if table.file.search.reuse else ""
        notes.append(f"Settings tried per task and seed: {trials}{reused}.")
    else:
        notes.append(f"Settings from conf/chosen/{table.name}.{table.scale}.yaml.")
    proofs = [r.result["proof"]["passed"] for e in reported.values() for r in e.records if r is not None]
    if proofs:
        notes.append(f"Init proof passed in {sum(proofs)} of {len(proofs)} runs.")
    dirty = sum(entry.dirty() for entry in reported.values())
    if dirty:
        notes.append(f"{dirty} of the runs were made from a checkout with uncommitted changes.")
    if table.scale == "paper" and any(v.doubtful for v in printed_grid(table.name).values()):
        notes.append("† the scan of the paper leaves this printed number or its spread open.")
    if table.scale == "paper" and any(v.quoted for v in printed_grid(table.name).values()):
        notes.append("‡ quoted in the paper from another paper; ours is run by us.")
    return tuple(notes)


def _metrics(table: Table, metric: Mapping[str, str]) -> str:
    """The columns' metrics: "accuracy; F1 of SQuAD"."""
    names = list(metric.values())
    usual = max(dict.fromkeys(names), key=names.count)
    others = [f"{labels.metric(name)} of {labels.column(table.file.axis, c)}" for c, name in metric.items()
              if name != usual]  # fmt: skip
    return "; ".join([labels.metric(usual), *others])


def _trials(table: Table, method: str) -> int:
    count = 1
    for values in table.file.grid(method, table.columns[0]).values():
        count *= len(values)
    return count


def _csv_rows(
    table: Table, reported: Mapping[tuple[str, str], Reported], metric: Mapping[str, str]
) -> tuple[tuple[object, ...], ...]:
    rows: list[tuple[object, ...]] = []
    for (method, task), entry in reported.items():
        settings = ";".join(f"{k}={v}" for k, v in (entry.settings or {}).items())
        if not entry.records:
            rows.append((table.name, table.scale, method, task, metric[task], "", "", "", "", "", MISSING))
        for seed, identity, record, state in zip(table.seeds, entry.ids, entry.records, entry.states, strict=False):
            test = record.metrics.get("test", {}) if record is not None else {}
            rows.append(
                (
                    table.name,
                    table.scale,
                    method,
                    task,
                    metric[task],
                    seed,
                    test.get(metric[task], ""),
                    test.get("gold_nll", ""),
                    settings,
                    identity,
                    state,
                )
            )
    return tuple(rows)
