"""``nora export``: records as a flat table, fine-tuning runs in PEFT's comparison format, cards of kept adapters; one
adapter as a folder of PEFT's or a file of diffusers', which the Hub takes."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from nora.errors import UserError
from nora.files import Json, readable_json, sha256_bytes
from nora.reporting import labels
from nora.reporting.document import as_text_cell, csv_text
from nora.reporting.proofs import proof_line
from nora.reporting.provenance import flat_values
from nora.store.record import Record
from nora.store.runs import Store

_PACKAGES = ("transformers", "datasets", "peft", "torch", "bitsandbytes")
_FLOAT_BYTES = 4  # adapters are kept in float32


def export(records: Iterable[Record], store: Store) -> Iterator[tuple[str, Iterable[bytes]]]:
    """(name below the folder, content in parts) of every file; the same records give the same bytes. Records are taken
    one by one and none is kept: what it needs of memory does not grow with their number."""
    types: dict[str, set[type]] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as rows:
        for record in records:
            row = flat_record(record)
            for key, value in row.items():
                large = type(value) is int and abs(value) >> 63  # more than a column of numbers holds
                types.setdefault(key, set()).add(str if large else type(value))
            rows.write(json.dumps(row) + "\n")
            if record.spec["kind"] == "finetune":
                yield f"peft/{record.id}.json", [readable_json(peft_result(record)).encode()]
                kept = record.result["files"].get("adapter")
                if kept and (store.run_dir(record.spec["kind"], record.id) / kept["name"]).is_file():
                    yield f"cards/{record.id}.md", [model_card(record).encode()]
        columns = {key: _column_type(types[key]) for key in sorted(types, key=lambda key: (key != "id", key))}
        yield "records.csv", _csv(rows, columns)
        with tempfile.TemporaryFile() as file:
            _write_parquet(file, rows, columns)
            file.seek(0)
            yield "records.parquet", iter(lambda: file.read(1 << 20), b"")


def flat_record(record: Record) -> dict[str, Json]:
    """Column → value of one record: spec, numbers and run, without lists (curves, per-module proofs)."""
    proof = record.result["proof"]
    row = {"id": record.id, "status": record.status, "proof.init": proof["init"], "proof.passed": proof["passed"]}
    for part in ("spec", "metrics"):
        row |= {f"{part}.{key}": value for key, value in flat_values(record.result[part]).items()}
    row |= {f"run.{key}": value for key, value in flat_values(record.run).items()}
    return {key: value for key, value in row.items() if value is not None and not isinstance(value, list)}


_BATCH = 500


def _column_type(found: set[type]) -> type:
    """The one type that holds every value of a column; of several (a name here, a number there) it is text."""
    if found == {int, float}:
        return float
    return next(iter(found)) if len(found) == 1 else str


def _batches(rows: IO[str], columns: Mapping[str, type]) -> Iterator[list[list[Json]]]:
    """The rows, a list of values each, in the columns' order and types; None where a row has none."""
    rows.seek(0)
    while lines := list(itertools.islice(rows, _BATCH)):
        found = map(json.loads, lines)
        yield [[None if key not in row else kind(row[key]) for key, kind in columns.items()] for row in found]


def _csv(rows: IO[str], columns: Mapping[str, type]) -> Iterator[bytes]:
    yield csv_text(list(columns), []).encode()
    for batch in _batches(rows, columns):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([as_text_cell(value) for value in row] for row in batch)
        yield text.getvalue().encode()


def _write_parquet(file: IO[bytes], rows: IO[str], columns: Mapping[str, type]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    known = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    schema = pa.schema([(key, known.get(kind, pa.string())) for key, kind in columns.items()])
    with pq.ParquetWriter(file, schema) as writer:
        for batch in _batches(rows, columns):
            arrays = [
                pa.array(values, field.type) for values, field in zip(zip(*batch, strict=True), schema, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


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


def adapter_folder(record: Record, home: Path) -> dict[str, bytes]:
    """Name → content of what stock PEFT (a run on text) or stock diffusers (on pictures) loads, with its card; ``home``
    is the run's folder. UserError where the run kept no adapter."""
    files: dict[str, bytes] = {}
    if record.spec["kind"] == "finetune" and (home / "adapter").is_dir():
        files = {path.name: path.read_bytes() for path in sorted((home / "adapter").iterdir()) if path.is_file()}
    elif record.spec["kind"] == "dreambooth" and record.status == "done":
        kept = record.result["files"]["adapter"]
        path = home / kept["name"]
        if path.is_file():
            files = {"pytorch_lora_weights.safetensors": path.read_bytes(), "README.md": _picture_head(record).encode()}
            if sha256_bytes(files["pytorch_lora_weights.safetensors"]) != kept["sha256"]:
                raise UserError(f"ID: {path} is not what the record of {record.id} says it is")
    if not any(name.endswith(".safetensors") for name in files):
        raise UserError(
            f"ID: given {record.id}, which kept no adapter: exec.keep_adapter=true, with its command and another "
            "exec.results, makes it once more"
        )
    said = "\n".join(["", *_measured(record)])
    return {**files, "README.md": files["README.md"].rstrip() + b"\n" + said.encode()}


def write_merged_folder(record: Record, store: Store, checkout: Path, folder: Path) -> None:
    """The base with the run's kept adapter merged, its tokenizer and a card, whole or not at all: what stood there goes
    when the new one is whole. UserError where nothing can be merged, OSError where it cannot be written."""
    from safetensors import SafetensorError

    from nora.kinds.parts.bases import write_merged

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder.parent) as place:
        made = Path(place) / folder.name
        try:
            write_merged(record, store, checkout, made)
        except SafetensorError as error:  # how safetensors tells of a full disk
            raise OSError(f"{folder}: {error}") from None
        (made / "README.md").write_text(model_card(record, merged=True), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)


def push(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Puts a folder's files onto the Hub, into a repository that is made where there is none; where they are. UserError
    without a token, with one that is refused and without a network."""
    from huggingface_hub import HfApi, get_token

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UserError(f"--push: given {repo!r}, required OWNER/NAME")
    if get_token() is None:
        raise UserError("--push: no token of the Hub; set HF_TOKEN, or run `hf auth login`, and repeat")
    api = HfApi()
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message).commit_url)
    except Exception as error:  # the Hub's client raises many kinds
        cause = error.__cause__ or error
        status = getattr(getattr(error, "response", getattr(cause, "response", None)), "status_code", None)
        said = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        if status in (401, 403):
            raise UserError(f"--push: {api.endpoint} refuses the token for {repo} ({status}): {said}") from None
        why = f"says {status}" if status is not None else "is out of reach"
        without = "HF_HUB_DISABLE_XET=1 does without xet; " if "xet" in said else ""
        raise UserError(f"--push: {api.endpoint} {why} ({said}); {without}{folder} has the files") from None


def _picture_head(record: Record) -> str:
    task, method, model = (record.spec[group] for group in ("task", "method", "model"))
    return "\n".join(
        [
            "---",
            "library_name: diffusers",
            *([f"base_model: {model['repo']}"] if model["source"] == "hub" else []),
            f"tags: [lora, nora, text-to-image, {method['name']}]",
            "---",
            "",
            f"# {labels.method(method['name'])} on {task['subject']}, {model['name']}, seed {record.spec['seed']}",
            "",
            f"Run `{record.id}` of the reproduction of arXiv 2410.18965 (`nora show {record.id}`). Base: "
            f"`{model.get('repo', model['name'])}`{_revision(model)}.",
            "",
            f"`pipeline.load_lora_weights(folder)` reads it; the words of the subject: `{task['subject']}`, as in "
            f"`{task['instance_prompt']}`.",
        ]
    )


def _revision(model: Mapping[str, Json]) -> str:
    return f", commit `{model['revision']}`" if model.get("revision") else ""


def _measured(record: Record) -> list[str]:
    """A card's lines: the score, the start and its proof, the settings, and how the run is made once more."""
    spec, metrics = record.spec, record.metrics
    found = metrics["test"] if "test" in metrics else {"mean loss": metrics.get("loss", {}).get("mean")}
    scores = [f"| {key} | {value:.4g} |" for key, value in found.items() if isinstance(value, int | float)]
    settings = [
        f"| {key} | {value} |"
        for group in ("method", "protocol")
        for key, value in flat_values(spec[group], group).items()
    ]
    scored = ["| test | value |" if "test" in metrics else "| training | value |", "|---|---|", *scores]
    made = f" at commit `{record.run['commit']}`" if record.run.get("commit") else ""
    return [
        *scored, "",
        f"Start: {spec['method']['init']}. Init proof: {proof_line(record.result['proof'])}.", "",
        "| setting | value |", "|---|---|", *settings, "",
        f"`nora repeat {record.id}` makes the run once more{made}.", "",
    ]  # fmt: skip


def model_card(record: Record, *, merged: bool = False) -> str:
    """The Hub's card of a kept adapter, or of its base with it merged: what it is, how it scored, how it was proved and
    how to repeat it."""
    spec, file = record.spec, record.result["files"]["adapter"]
    what = f"the base with `{file['name']}` merged" if merged else f"`{file['name']}`"
    task, method, model = (spec[group]["name"] for group in ("task", "method", "model"))
    return "\n".join(
        [
            "---",
            f"library_name: {'transformers' if merged else 'peft'}",
            f"base_model: {spec['model'].get('repo', model)}",
            f"tags: [lora, nora, {method}]",
            "---",
            "",
            f"# {labels.method(method)} on {labels.task(task)}, {labels.model(model)}, seed {spec['seed']}",
            "",
            f"Run `{record.id}` of the reproduction of arXiv 2410.18965; {what}, SHA-256 `{file['sha256']}`.",
            "",
            *_measured(record),
        ]
    )
