"""What a run will cost, in device hours: measured where a like run has a record, otherwise an estimate that says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import mean
from typing import Any

from nora.kinds.sizing import KEPT_BYTES_PER_UNIT
from nora.store.record import Record
from nora.tables.search import Cell

# Parameters that every token passes through, from the models' own configs (tied heads counted once).
_PARAMETERS = {"opt_1.3b": 1.316e9, "llama_7b": 6.738e9, "llama2_7b": 6.738e9, "gemma_7b": 8.538e9}
# Instruct tasks: tokens per training text and tokens an answer takes, rough means of the real rows.
_TEXT_TOKENS = {"commonsense": 110, "gsm8k": 250}
_ANSWER_TOKENS = {"commonsense": 8, "gsm8k": 200}
_SETS = {"commonsense": 22_419, "gsm8k": 1_319}  # rows answered at most
_DECODING_SECONDS = 0.03  # per step of a batch
_DECODED_AT_ONCE = 32
# Tokens per row (prompt and one candidate) and candidates per row, OPT's tokenizer; rough means of the real sets.
_TOKENS = {"sst2": 30, "cb": 110, "rte": 90, "wsc": 70, "boolq": 160, "multirc": 380, "record": 300, "squad": 200}
_CANDIDATES = {"sst2": 2, "cb": 3, "rte": 2, "wsc": 2, "boolq": 2, "multirc": 2, "record": 20, "squad": 1}
_FLOPS_PER_SECOND = 0.2 * 989e12  # an H100's bf16 peak at the low utilisation of short sequences
_SETUP_SECONDS = 30.0
# One UNet pass at 64 × 64 latents and 77 tokens, counted by torch's FlopCounterMode; and its weights with the VAE's and
# the text encoder's (0.86 + 0.08 + 0.12 billion parameters).
_UNET_FLOPS = {"sd14": 0.803e12}
_PIPELINE_PARAMETERS = {"sd14": 1.06e9}
_FLOPS_PER_SECOND_FP32 = 0.3 * 67e12  # an H100's fp32 peak, batch 1


# Hidden size and layers, for the activations that a backward pass keeps.
_SHAPE = {"opt_1.3b": (2048, 24), "llama_7b": (4096, 32), "llama2_7b": (4096, 32), "gemma_7b": (3072, 28)}


def memory_gib(cell: Cell) -> tuple[float | None, str]:
    """Peak device memory of one run in GiB and where the figure comes from; the most where the cell waits."""
    spec = cell.spec or cell.like
    if spec is not None and spec["kind"] == "dreambooth":
        parameters = _PIPELINE_PARAMETERS.get(spec["model"]["name"])
        if parameters is None:
            return None, "unknown"
        return 4 * parameters / 2**30 + 6.0, "estimate: fp32 weights + 6 GiB for activations and drawing"
    if spec is None or spec["kind"] != "finetune":
        return None, "unknown"
    model, protocol = spec["model"], spec["protocol"]
    task = spec["task"]["name"]
    if model["name"] not in _PARAMETERS or task not in _TOKENS | _TEXT_TOKENS:
        return None, "unknown"
    hidden, layers = _SHAPE[model["name"]]
    width = 4 if model["dtype"] == "float32" else 2
    per_row = _TEXT_TOKENS[task] if task in _TEXT_TOKENS else _TOKENS[task] * min(_CANDIDATES[task], 4)
    tokens = protocol["batch_size"] * per_row * 1.5
    kept = tokens * hidden * layers * KEPT_BYTES_PER_UNIT * width / 4
    return (_PARAMETERS[model["name"]] * width + kept) / 2**30 + 1.0, "estimate: weights + kept activations + 1 GiB"


def _key(spec: Any) -> tuple[str, str, str]:
    """What runs of like cost share."""
    if spec["kind"] == "deployment":
        return spec["model"]["name"], spec["adapter"]["init"], str(spec["protocol"]["steps"])
    if spec["kind"] == "factorize":
        return spec["problem"]["name"], spec["solver"]["name"], str(spec["protocol"]["iterations"])
    return spec["model"]["name"], spec["task"]["name"], spec["method"]["name"]


Measured = Mapping[tuple[str, str, str], float]


def measured_hours(records: Iterable[Record]) -> Measured:
    """Mean hours of the runs that are done, by what runs of like cost share."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for record in records:
        if record.status == "done" and "wall_seconds" in record.run:
            groups.setdefault(_key(record.spec), []).append(record.run["wall_seconds"])
    return {key: mean(values) / 3600 for key, values in groups.items()}


def estimate(cell: Cell, measured: Measured) -> tuple[float | None, str]:
    """Hours of one run and where the figure comes from ("measured", "estimate: …" or "unknown")."""
    spec = cell.spec or cell.like
    if spec is None:
        return None, "unknown until the choice it waits for"
    known = measured.get(_key(spec))
    if known is not None:
        return known, "measured: mean of the records of like runs"
    if spec["kind"] == "dreambooth" and spec["model"]["name"] in _UNET_FLOPS:
        return _dreambooth_hours(spec), "estimate: 0.8 TFLOP per UNet pass in fp32 at 30 % of an H100"
    if spec["kind"] != "finetune":
        return None, "unknown: no like run has a record yet"
    parameters = _PARAMETERS.get(spec["model"]["name"])
    task, protocol = spec["task"], spec["protocol"]
    if parameters is None or task["name"] not in _TOKENS | _TEXT_TOKENS:
        return None, "unknown: no like run has a record yet"
    if task["name"] in _TEXT_TOKENS:
        return _instruct_hours(parameters, task, protocol), (
            "estimate: 4N FLOP per trained token at 20 % of an H100, 30 ms per decoding step of 32 answers"
        )
    tokens = _TOKENS[task["name"]] * _CANDIDATES[task["name"]]
    trained = task["num_train"] * tokens * protocol["epochs"]
    scored = (task["num_dev"] * protocol["epochs"] + task["num_test"]) * tokens
    flops = 4 * parameters * trained + 2 * parameters * scored
    return (flops / _FLOPS_PER_SECOND + _SETUP_SECONDS) / 3600, "estimate: 4N FLOP per trained token at 20 % of an H100"


def _instruct_hours(parameters: float, task: Mapping[str, Any], protocol: Mapping[str, Any]) -> float:
    name = task["name"]
    steps = protocol["epochs"] * -(-task["num_train"] // protocol["batch_size"])
    evaluations = steps // protocol["eval_every"] if protocol.get("eval_every") else protocol["epochs"]
    trained = task["num_train"] * _TEXT_TOKENS[name] * protocol["epochs"]
    held_out = evaluations * task["num_dev"] * _TEXT_TOKENS[name]
    flops = 4 * parameters * trained + 2 * parameters * held_out
    answers = min(_SETS[name], 8 * task["num_test"]) + (task["num_dev"] if name == "gsm8k" else 0)
    decoding = answers / _DECODED_AT_ONCE * _ANSWER_TOKENS[name] * _DECODING_SECONDS
    return (flops / _FLOPS_PER_SECOND + decoding + _SETUP_SECONDS) / 3600


def _dreambooth_hours(spec: Any) -> float:
    """Training (forward and backward to the adapters: two passes a step) and drawing (two passes a step, guided)."""
    protocol = spec["protocol"]
    passes = 2 * protocol["steps"] * protocol["batch_size"] + 2 * protocol["pictures"] * protocol["picture_steps"]
    return float((passes * _UNET_FLOPS[spec["model"]["name"]] / _FLOPS_PER_SECOND_FP32 + _SETUP_SECONDS) / 3600)
