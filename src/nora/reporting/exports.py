"""``nora export``: records as a flat table, fine-tuning runs in PEFT's comparison format, cards of kept adapters."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import UTC, datetime

from nora.files import Json, readable_json
from nora.reporting import labels
from nora.reporting.document import as_text_cell
from nora.reporting.proofs import proof_line
from nora.reporting.provenance import flat_values
from nora.store.record import Record
from nora.store.runs import Store
from nora.store.states import Snapshot

_PACKAGES = ("transformers", "datasets", "peft", "torch", "bitsandbytes")
_FLOAT_BYTES = 4  # adapters are kept in float32


def export(snapshot: Snapshot, store: Store) -> list[tuple[str, bytes]]:
    """(name below the folder, content) of every file; the same records give the same bytes."""
    records = [snapshot[identity] for identity in sorted(snapshot)]
    files = list(_tables(records).items())
    for record in records:
        if record.spec["kind"] == "finetune":
            files.append((f"peft/{record.id}.json", readable_json(peft_result(record)).encode()))
            kept = record.result["files"].get("adapter")
            if kept and (store.run_dir(record.spec["kind"], record.id) / kept["name"]).is_file():
                files.append((f"cards/{record.id}.md", model_card(record).encode()))
    return files


def flat_record(record: Record) -> dict[str, Json]:
    """Column → value of one record: spec, numbers and run, without lists (curves, per-module proofs)."""
    proof = record.result["proof"]
    row = {"id": record.id, "status": record.status, "proof.init": proof["init"], "proof.passed": proof["passed"]}
    for part in ("spec", "metrics"):
        row |= {f"{part}.{key}": value for key, value in flat_values(record.result[part]).items()}
    row |= {f"run.{key}": value for key, value in flat_values(record.run).items()}
    return {key: value for key, value in row.items() if value is not None and not isinstance(value, list)}


def _tables(records: list[Record]) -> dict[str, bytes]:
    """One row per record, as CSV and Parquet."""
    import pandas as pd

    rows = [flat_record(record) for record in records]
    columns = sorted({key for row in rows for key in row}, key=lambda key: (key != "id", key))
    frame = pd.DataFrame(rows, columns=columns).convert_dtypes()
    for column in frame.select_dtypes(include="object"):  # of several types (a name here, a number there): text
        frame[column] = frame[column].map(str, na_action="ignore").astype("string")
    parquet = io.BytesIO()
    frame.to_parquet(parquet, index=False)
    text = frame.map(as_text_cell).to_csv(index=False, lineterminator="\n")
    return {"records.csv": text.encode(), "records.parquet": parquet.getvalue()}


def _peft_config(spec: Mapping[str, Json]) -> dict[str, Json]:
    method = spec["method"]
    if method["adapter"] == "prefix":
        return {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": method["num_virtual_tokens"]}
    return {
        "peft_type": "LORA",
        "r": method["rank"],
        "lora_alpha": method["alpha"],
        "lora_dropout": method["dropout"],
        "target_modules": spec["model"]["targets"],
        "init_lora_weights": method["init"],
    }


def peft_result(record: Record) -> dict[str, Json]:
    """One run as huggingface/peft, method_comparison, keeps it. null: our records do not have it."""
    spec, run, metrics = record.spec, record.run, record.metrics
    # A run on the CPU reserves nothing of an accelerator.
    memory = 0 if run.get("device") == "cpu" else None
    peak = 0 if memory == 0 else int(run["peak_memory_gib"] * 2**30) if "peak_memory_gib" in run else None
    test, last = metrics.get("test", {}), (metrics.get("epochs") or [{}])[-1]
    parameters = metrics.get("trainable_parameters")
    versions = run.get("libraries", {})
    return {
        "run_info": {
            "created_at": datetime.fromtimestamp(run["started"], UTC).isoformat() if "started" in run else None,
            "total_time": run.get("wall_seconds"),
            "experiment_name": f"{spec['method']['name']}-{spec['model']['name']}-{spec['task']['name']}"
            f"-seed{spec['seed']}-{record.id}",
            "peft_branch": "main",
            "train_config": {"model_id": spec["model"]["name"], "seed": spec["seed"], **spec["protocol"]},
            "peft_config": _peft_config(spec),
            "error_msg": "" if record.status == "done" else f"diverged at step {record.result['diverged']['step']}",
        },
        "train_info": {
            "accelerator_memory_reserved_avg": memory,
            "accelerator_memory_max": peak,
            "accelerator_memory_reserved_99th": memory,
            "train_time": run.get("train_seconds"),
            "file_size": None if parameters is None else parameters * _FLOAT_BYTES,
            "num_trainable_params": parameters,
            "status": "success" if record.status == "done" else "failed",
            "metrics": [
                {
                    "step": metrics.get("steps"),
                    "train loss": last.get("train_loss"),
                    "train samples": metrics.get("rows", {}).get("train"),
                    "train total tokens": None,
                    "test accuracy": test.get("accuracy", test.get("mean_accuracy")),
                    **({"test f1": test["f1"]} if "f1" in test else {}),
                }
            ],
        },
        "meta_info": {
            "model_info": {"sha": spec["model"].get("revision"), "files": spec["model"].get("files")},
            "dataset_info": {"task": spec["task"]["name"], "files": spec["task"].get("files")},
            "package_info": {f"{name}-version": versions.get(name) for name in _PACKAGES}
            | {"nora-commit-hash": run.get("commit"), "nora-dirty": run.get("dirty")},
            "system_info": {key: run.get(key) for key in ("machine", "cpu", "cpus", "device", "python", "threads")},
        },
    }


def model_card(record: Record) -> str:
    """The Hub's card of a kept adapter: what it is, how it scored, how it was proved and how to repeat it."""
    spec, file = record.spec, record.result["files"]["adapter"]
    task, method, model = (spec[group]["name"] for group in ("task", "method", "model"))
    scores = [f"| {k} | {v:.4g} |" for k, v in record.metrics.get("test", {}).items() if isinstance(v, int | float)]
    settings = [
        f"| {key} | {value} |"
        for group in ("method", "protocol")
        for key, value in flat_values(spec[group], group).items()
    ]
    return "\n".join(
        [
            "---",
            "library_name: peft",
            f"base_model: {spec['model'].get('repo', model)}",
            f"tags: [lora, nora, {method}]",
            "---",
            "",
            f"# {labels.method(method)} on {labels.task(task)}, {labels.model(model)}, seed {spec['seed']}",
            "",
            f"Run `{record.id}` of the reproduction of arXiv 2410.18965; `{file['name']}`, SHA-256 `{file['sha256']}`.",
            "",
            "| test | value |",
            "|---|---|",
            *scores,
            "",
            f"Init proof: {proof_line(record.result['proof'])}.",
            "",
            "| setting | value |",
            "|---|---|",
            *settings,
            "",
        ]
    )
