"""What training on one task changes elsewhere: per method the loss of a text it has nothing to do with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nora.reporting import labels
from nora.reporting.document import Block, Document, Entry, Line
from nora.reporting.reported import Reported, report
from nora.reporting.statistics import Summary, paired_interval
from nora.store.record import Record
from nora.tables.methods import Table


def _of(key: str) -> Callable[[Record], float]:
    return lambda record: float(record.metrics["forgetting"][key])


def build(table: Table, records: Mapping[str, Record]) -> Document:
    """A block per task; the change is paired with the same base, so its spread is the seeds' alone."""
    reported = report(table, records)
    return Document(
        name=f"{table.name}.{table.scale}",
        title=labels.heading(table.name, table.file.title),
        banner=labels.BANNERS[table.scale],
        blocks=tuple(_block(table, task, reported) for task in table.columns),
        notes=(
            "Loss of the first 64 windows of 128 tokens of a children's book (data/held_out), nats per token; "
            "perplexity is its exponential. Change: after minus the untouched base. Drift: the mean size of a token's "
            f"change. Numbers: {labels.over_seeds(table.seeds)}; beside a change that minus "
            f"{labels.method(_first(table))}'s, within a seed [95 % t interval].",
            "Each method with the settings that its search for the task's own dev score chose: nothing is chosen by "
            "what stands here.",
            *table.file.caption,
        ),
        csv_header=("table", "scale", "method", "task", "seed", "score", "before", "after", "drift", "id", "state"),
        csv_rows=tuple(
            row for task in table.columns for method in table.methods for row in _rows(table, method, task, reported)
        ),
    )


def _first(table: Table) -> str:
    return table.file.search.first


def _spread(summary: Summary | None, reported: Reported, scale: float = 1.0, form: str = ".3f") -> str:
    if summary is None:
        return reported.gap()
    std = "" if summary.std is None else f" ± {format(scale * summary.std, form.lstrip('+'))}"
    return f"{format(scale * summary.mean, form)}{std}"


def _block(table: Table, task: str, reported: Mapping[tuple[str, str], Reported]) -> Block:
    metric = table.book.metric(task)
    change = {m: reported[m, task].values(lambda r: _of("after")(r) - _of("before")(r)) for m in table.methods}
    before = next((s for m in table.methods if (s := reported[m, task].values(_of("before"))) is not None), None)
    base, lines = change.get(_first(table)), []
    for method in table.methods:
        own, gap = reported[method, task], ""
        moved = change[method]
        if moved is not None and base is not None and method != _first(table):
            interval = paired_interval(moved.values, base.values)
            gap = f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
        score = own.values(lambda r: float(r.metrics["test"][metric]))
        lines.append(
            Line(
                labels.method(method),
                (
                    Entry(_spread(score, own, 100, ".1f"), runs=own.behind),
                    Entry(_spread(own.values(_of("after")), own), runs=own.behind),
                    Entry(_spread(moved, own, form="+.3f"), detail=gap, runs=own.behind),
                    Entry(_spread(own.values(_of("drift")), own), runs=own.behind),
                ),
            )
        )
    if before is not None:
        lines.insert(0, Line("Untouched base", (Entry("–"), Entry(f"{before.mean:.3f}"), Entry("–"), Entry("–"))))
    columns = (f"test {labels.metric(metric)}", "held-out loss", "change", "drift")
    return Block(f"After training on {labels.task(task)}", columns, tuple(lines))


def _rows(
    table: Table, method: str, task: str, reported: Mapping[tuple[str, str], Reported]
) -> list[tuple[object, ...]]:
    own, metric = reported[method, task], table.book.metric(task)
    rows: list[tuple[object, ...]] = []
    for seed, identity, record, state in zip(table.seeds, own.ids, own.records, own.states, strict=False):
        found = record.metrics if record is not None and record.status == "done" else {}
        kept = found.get("forgetting", {})
        score = found["test"][metric] if found else ""
        values = (score, *(kept.get(key, "") for key in ("before", "after", "drift")))
        rows.append((table.name, table.scale, method, task, seed, *values, identity, state))
    return rows
