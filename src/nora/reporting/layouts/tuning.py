"""The hyper-parameter search as a table, and its outcome as the committed choice (conf/chosen/)."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from nora.reporting import labels
from nora.reporting.document import Block, Document, Entry, Line
from nora.store.record import Record
from nora.tables.cell import Settings
from nora.tables.choice import Trial, choose, chosen_path
from nora.tables.methods import Table


def _spell(settings: Settings) -> str:
    return ", ".join(f"{key.rsplit('.', 1)[-1]} {value:g}" for key, value in settings.items())


def _in_words(settings: Settings) -> str:
    return ", ".join(f"{labels.setting(k.rsplit('.', 1)[-1])} {labels.value(value)}" for k, value in settings.items())


def build(table: Table, records: Mapping[str, Record]) -> Document:
    """Every trial's dev outcome per task and method, the chosen one in bold, and the choice as a file."""
    blocks, rows = [], []
    chosen: dict[str, dict[str, object]] = {}
    for task in table.columns:
        reused = table.reused(task, records)
        lines: list[Line] = []
        for method in table.methods:
            stage_two = method != table.file.search.first
            if stage_two and reused is None:
                first = labels.method(table.file.search.first)
                waiting = (Entry(f"waits for {first}"), *[Entry("–")] * 3)
                lines.append(Line(labels.method(method), waiting, bool(lines)))
                continue
            tried = table.trials(method, task, records, reused if stage_two else None)
            best = choose(tried)
            for i, trial in enumerate(tried):
                lines.append(
                    _line(labels.method(method) if i == 0 else "", trial, trial is best, i == 0 and bool(lines))
                )
                rows.append(
                    (
                        table.scale,
                        task,
                        method,
                        _spell(trial.settings),
                        trial.metric if trial.complete else "",
                        trial.loss if trial.complete else "",
                        len(trial.ids),
                        trial.diverged,
                        trial is best,
                    )
                )
            if best is not None:
                chosen.setdefault(task, {})[method] = {
                    "settings": dict(best.settings),
                    "dev_metric": round(best.metric, 6),
                    "dev_loss": round(best.loss, 6),
                    "trials": len(tried),
                    "records": list(best.ids),
                }
        blocks.append(
            Block(
                f"{labels.task(task)}, dev {labels.metric(table.book.metric(task))}",
                ("settings", "dev, %", "dev loss", "runs"),
                tuple(lines),
            )
        )
    source = table.source
    header = "# Written by `nora collate tuning` from the records it names: best dev metric averaged over seeds.\n"
    body = {"table": source, "scale": table.scale, "seeds": list(table.search_seeds), "chosen": chosen}
    text = header + yaml.safe_dump(body, sort_keys=False, width=120, default_flow_style=None)
    return Document(
        name=f"{table.name}.{table.scale}",
        title=f"{table.file.title} of {labels.heading(source, '').removesuffix(' – ')}",
        banner=labels.BANNERS[table.scale],
        blocks=tuple(blocks),
        notes=(
            f"Averaged over the seeds {', '.join(map(str, table.search_seeds))}; chosen (bold): highest dev "
            "metric, ties by lower dev loss, lower learning rate, smaller ξ. The test set plays no part.",
            "Runs: those that are there; – where not all seeds are. A setting with a diverged seed is not chosen.",
        ),
        csv_header=("scale", "task", "method", "settings", "dev_metric", "dev_loss", "runs", "diverged", "chosen"),
        csv_rows=tuple(rows),
        files=((chosen_path(table.checkout, source, table.scale), text),) if chosen else (),
    )


def _line(label: str, trial: Trial, best: bool, rule_above: bool) -> Line:
    metric = f"{100 * trial.metric:.1f}" if trial.complete and not trial.diverged else "–"
    loss = f"{trial.loss:.3f}" if trial.complete and not trial.diverged else "–"
    runs = f"{len(trial.ids)}" + (f" ({trial.diverged} diverged)" if trial.diverged else "")
    entries = (Entry(_in_words(trial.settings), best), Entry(metric, best, runs=trial.ids), Entry(loss), Entry(runs))
    return Line(label, entries, rule_above)
