"""Tables with a block per base model, a row per method and a column per test set (Table 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from nora import tasks
from nora.reporting import labels
from nora.reporting.document import Block, Document, Entry, Line
from nora.reporting.reported import MISSING, Reported, answer_notes, binomial_error, report
from nora.reporting.statistics import Summary, above_chance, clear_best
from nora.store.record import Record
from nora.tables.methods import Table
from nora.tables.printed import PrintedValue, printed_grid


def _summaries(entry: Reported, sets: tuple[str, ...]) -> dict[str, Summary | None]:
    """set → accuracy over the seeds, and their unweighted mean under "avg"."""
    found = {name: entry.values(lambda r, n=name: r.metrics["test"]["sets"][n]["accuracy"]) for name in sets}  # type: ignore[misc]
    return {**found, "avg": entry.values(lambda r: r.metrics["test"]["mean_accuracy"])}


def _text(summary: Summary) -> str:
    return f"{100 * summary.mean:.1f}" + ("" if summary.std is None else f" ± {100 * summary.std:.1f}")


def _detail(summary: Summary | None, printed: PrintedValue | None) -> str:
    if printed is None:
        return ""
    paper = f"paper {printed.text}"
    return paper if summary is None else f"{paper}, Δ {100 * summary.mean - printed.mean:+.1f}, n={summary.n}"


def build(table: Table, records: Mapping[str, Record]) -> Document:
    """A block per base model; the csv has a line per run and set with its binomial standard error."""
    reported = report(table, records)
    task = table.spec(table.methods[0], table.columns[0]).task
    sets = tuple(tasks.load(task.suite, task.name).SETS)
    blocks, rows = [], []
    for model in table.columns:
        printed = printed_grid(table.name, model) if table.scale == "paper" else {}
        found = {method: _summaries(reported[method, model], sets) for method in table.methods}
        best = {name: clear_best({m: found[m][name] for m in table.methods}) for name in (*sets, "avg")}
        losses = {m: reported[m, model].values(lambda r: r.metrics["test"]["gold_nll"]) for m in table.methods}
        lowest = clear_best(losses, lowest=True)
        chance = at_chance(reported[table.file.search.first, model], [found[m]["avg"] for m in table.methods])
        lines = []
        for method in table.methods:
            entry = reported[method, model]
            entries = []
            for name in (*sets, "avg"):
                summary = found[method][name]
                text = entry.gap() if summary is None else _text(summary)
                bold, detail = method in best[name] and not chance, _detail(summary, printed.get((method, name)))
                entries.append(Entry(text, bold, detail, entry.behind, grey=chance))
            if table.scale != "paper":
                loss = losses[method]
                entries.append(Entry("–" if loss is None else f"{loss.mean:.3f}", method in lowest, runs=entry.ids))
            lines.append(Line(labels.method(method), tuple(entries)))
            rows += _rows(table, method, model, entry, sets)
        lines += _references(reported[table.file.search.first, model], sets, with_loss=table.scale != "paper")
        beyond = () if table.scale == "paper" else ("loss",)
        heading = labels.model(model) + (" (at chance)" if chance else "")
        blocks.append(Block(heading, (*map(labels.task, sets), "avg", *beyond), tuple(lines)))
        blocks += _by_likelihood(table, model, {m: reported[m, model] for m in table.methods}, sets)
    return Document(
        name=f"{table.name}.{table.scale}",
        title=labels.heading(table.name, table.file.title),
        banner=labels.BANNERS[table.scale],
        blocks=tuple(blocks),
        notes=(*_notes(table, reported), *([labels.CHANCE] if any("at chance" in b.heading for b in blocks) else [])),
        csv_header=(
            "table",
            "scale",
            "model",
            "method",
            "set",
            "seed",
            "accuracy",
            "se",
            "n",
            "unanswered",
            "settings",
            "id",
            "state",
        ),  # fmt: skip
        csv_rows=tuple(rows),
    )


def _by_likelihood(table: Table, model: str, entries: Mapping[str, Reported], sets: tuple[str, ...]) -> list[Block]:
    """The same questions by the likelihood of their listed answers; no block unless a method was measured so."""

    def of(key: str, entry: Reported) -> tuple[Entry, ...]:
        read = [lambda r, n=name: r.metrics[key]["likelihood"]["sets"][n] for name in sets]
        found = [entry.values(one) for one in (*read, lambda r: _likelihood(r, key))]
        return tuple(Entry("–" if s is None else _text(s), runs=entry.behind) for s in found)

    measured = {
        method: entry
        for method, entry in entries.items()
        if entry.complete and all(r is not None and "likelihood" in r.metrics["test"] for r in entry.records)
    }
    if not measured:
        return []
    first = measured.get(table.file.search.first)
    chance = first is not None and at_chance(
        first, [e.values(lambda r: _likelihood(r, "test")) for e in measured.values()], zero_shot=_likelihood
    )
    lines = [
        Line(labels.method(m), tuple(replace(e, grey=chance) for e in of("test", own))) for m, own in measured.items()
    ]
    if first is not None and _measured(first, "zero_shot"):
        lines.append(Line("Zero-shot base", of("zero_shot", first), True))
    heading = (
        f"{labels.model(model)}, by likelihood: the listed answer of the highest log-probability per token"
        f"{' (at chance)' if chance else ''}"
    )
    return [Block(heading, (*map(labels.task, sets), "avg"), tuple(lines))]


def _likelihood(record: Record, key: str) -> float:
    return float(record.metrics[key]["likelihood"]["mean_accuracy"])


def _generated(record: Record, key: str) -> float:
    return float(record.metrics[key]["mean_accuracy"])


def _references(first: Reported, sets: tuple[str, ...], *, with_loss: bool) -> list[Line]:
    """What no training reaches, from the records of the search's first method; no lines unless they have it."""
    zero = first.values(lambda r: r.metrics["zero_shot"]["mean_accuracy"]) if _measured(first, "zero_shot") else None
    majority = first.values(lambda r: r.metrics["majority"]) if _measured(first, "majority") else None
    lines = []
    if majority is not None:
        blanks = tuple(Entry("–") for _ in sets)
        lines.append(Line("Majority answer", (*blanks, Entry(_text(majority)), *[Entry("–")] * with_loss), True))
    if zero is not None:
        own = [first.values(lambda r, n=name: r.metrics["zero_shot"]["sets"][n]["accuracy"]) for name in sets]  # type: ignore[misc]
        loss = first.values(lambda r: r.metrics["zero_shot"]["gold_nll"])
        entries = [Entry("–" if s is None else _text(s)) for s in (*own, zero)]
        last = [Entry("–" if loss is None else f"{loss.mean:.3f}")] * with_loss
        lines.append(Line("Zero-shot base", (*entries, *last), not lines))
    return lines


def at_chance(
    first: Reported, averages: Sequence[Summary | None], zero_shot: Callable[[Record, str], float] = _generated
) -> bool:
    """Whether no method's mean over the sets is above that of the most frequent answers or of the untrained base."""
    references = [first.values(lambda r: r.metrics["majority"]) if _measured(first, "majority") else None]
    references += [first.values(lambda r: zero_shot(r, "zero_shot")) if _measured(first, "zero_shot") else None]
    known, means = [s.mean for s in references if s is not None], [s.mean for s in averages if s is not None]
    if not known or not means or first.records[0] is None:
        return False
    rows = sum(s["n"] for s in first.records[0].metrics["test"]["sets"].values())
    return not any(above_chance(mean, known, rows) for mean in means)


def _measured(entry: Reported, key: str) -> bool:
    return all(r is not None and r.metrics.get(key) is not None for r in entry.records)


def _rows(table: Table, method: str, model: str, entry: Reported, sets: tuple[str, ...]) -> list[tuple[object, ...]]:
    settings = ";".join(f"{k}={v}" for k, v in (entry.settings or {}).items())
    rows: list[tuple[object, ...]] = []
    if not entry.ids:
        return [(table.name, table.scale, model, method, "", "", "", "", "", "", settings, "", MISSING)]
    for seed, identity, record, state in zip(table.seeds, entry.ids, entry.records, entry.states, strict=True):
        scores = record.metrics["test"]["sets"] if record is not None and record.status == "done" else {}
        for name in sets:
            s = scores.get(name)
            values = ("", "", "", "") if s is None else (
                s["accuracy"], f"{binomial_error(s['accuracy'], s['n']):.4f}", s["n"], s["unanswered"]
            )  # fmt: skip
            rows.append((table.name, table.scale, model, method, name, seed, *values, settings, identity, state))
    return rows


def _notes(table: Table, reported: Mapping[tuple[str, str], Reported]) -> tuple[str, ...]:
    done = [r for e in reported.values() for r in e.records if r is not None and r.status == "done"]
    notes = [
        f"Accuracy of generated answers, %, {labels.over_seeds(table.seeds)}; avg: unweighted mean of the sets.",
        "SIQA: Social IQa; HS: HellaSwag; WG: WinoGrande; ARC-e, ARC-c: its easy and challenge sets; OBQA: OpenBookQA.",
    ]
    if done:
        notes += answer_notes(done)
        cut = sum(sum(r.metrics["cut_answers"].values()) for r in done)
        notes.append(f"Training answers that the cut-off takes something of: {cut} over {len(done)} runs.")
        lost = sum(sum(r.metrics.get("lost_answers", {}).values()) for r in done)
        if lost:
            notes.append(f"Training rows whose prompt reaches the cut-off, so that nothing is learnt of them: {lost}.")
        passed = sum(r.result["proof"]["passed"] for r in done)
        notes.append(f"Init proof passed in {passed} of {len(done)} runs.")
        quirks = sorted({quirk for r in done for quirk in r.metrics["quirks"]})
        notes += [f"Unlike the released code: {quirk}." for quirk in quirks]
    notes += [labels.BOLD, *table.file.caption]
    if table.scale != "paper":
        notes.append("Loss: of the right answer after the question, nats per token.")
    if table.scale == "mini":
        notes.append(
            "Trained on evaluation-split rows for Social IQa and HellaSwag (their training sets are not shipped); the "
            "rows tested are others."
        )
    if table.scale == "paper":
        notes.append("‡ quoted in the paper from another paper (DoRA); ours is run by us.")
    dirty = sum(entry.dirty() for entry in reported.values())
    if dirty:
        notes.append(f"{dirty} of the runs were made from a checkout with uncommitted changes.")
    return tuple(notes)
