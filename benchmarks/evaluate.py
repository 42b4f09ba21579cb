"""Candidate scoring: one by one, batched, and batched with the shared prompt computed once for all candidates.

Real rows of three tasks on opt_mini, one thread: seconds per pass (interleaved, medians) and, in float64, the largest
difference of any score from the one-by-one path.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nora import tasks
from nora.training.batches import EncodedExample, encode_example
from nora.training.scoring import score_members
from nora.verbs.machine import load_program

_ROOT = Path(__file__).resolve().parents[1]
_timing = load_program(Path(__file__).with_name("_timing.py"))
_ROWS = {"record": 8, "cb": 32, "sst2": 64}


@torch.no_grad()
def _one_by_one(model: Any, encoded: Sequence[EncodedExample]) -> list[tuple[float, ...]]:
    """The plain path: each candidate through the model alone, as the protocol's script does."""
    outcome = []
    for example in encoded:
        scores = []
        for ids, scored in zip(example.sequences, example.option_lengths, strict=True):
            log_probs = torch.log_softmax(model(torch.tensor([ids])).logits[0, -scored - 1 : -1], dim=-1)
            scores.append(log_probs.gather(1, torch.tensor(ids[-scored:])[:, None]).mean().item())
        outcome.append(tuple(scores))
    return outcome


def _batched(model: Any, encoded: Sequence[EncodedExample], share: bool) -> list[tuple[float, ...]]:
    return [s.scores for s in score_members(model, encoded, pad_id=0, share_prompt=share)[0]]


def run(*, quick: bool) -> dict[str, Any]:
    """Rows per task: seconds of each path, ratios to one-by-one, worst difference in float64."""
    tokenizer = AutoTokenizer.from_pretrained(_ROOT / "assets" / "opt_mini")
    model = AutoModelForCausalLM.from_pretrained(_ROOT / "assets" / "opt_mini").eval()
    double = AutoModelForCausalLM.from_pretrained(_ROOT / "assets" / "opt_mini").double().eval()
    clock, now = _timing.clock(torch.device("cpu"))
    rows = []
    for name, count in _ROWS.items():
        task = tasks.load("superglue", name)
        lines = (_ROOT / "data" / name / "validation.jsonl").read_text().splitlines()[: 4 if quick else count]
        encoded = [encode_example(task.build(json.loads(line)), tokenizer, max_length=1024) for line in lines]
        paths: dict[str, Callable[[Any], list[tuple[float, ...]]]] = {
            "one_by_one": lambda m, e=encoded: _one_by_one(m, e),
            "batched": lambda m, e=encoded: _batched(m, e, False),
            "shared": lambda m, e=encoded: _batched(m, e, True),
        }
        seconds: dict[str, list[float]] = {path: [] for path in paths}
        for _ in range(1 if quick else 5):
            for path, score in paths.items():
                started = now()
                score(model)
                seconds[path].append(now() - started)
        exact = {path: score(double) for path, score in paths.items()}
        worst = max(
            abs(a - b)
            for path in ("batched", "shared")
            for reference, given in zip(exact["one_by_one"], exact[path], strict=True)
            for a, b in zip(reference, given, strict=True)
        )
        medians = {path: statistics.median(values) for path, values in seconds.items()}
        rows.append(
            {
                "task": name,
                "examples": len(encoded),
                "candidates": sum(len(e.sequences) for e in encoded),
                **medians,
                "batched_ratio": medians["one_by_one"] / medians["batched"],
                "shared_ratio": medians["one_by_one"] / medians["shared"],
                "worst_difference_float64": worst,
            }
        )
    return {"rows": rows, "threads": torch.get_num_threads(), "clock": clock}


def table(result: dict[str, Any]) -> str:
    """One line per task."""
    head = f"{'task':8} {'examples':>8} {'candidates':>10} {'one by one':>11} {'batched':>17} {'shared prompt':>17}"
    lines = [f"{head}  fp64"]
    for r in result["rows"]:
        lines.append(
            f"{r['task']:8} {r['examples']:8} {r['candidates']:10} {r['one_by_one']:10.3f}s "
            f"{r['batched']:9.3f}s {r['batched_ratio']:5.1f}x {r['shared']:9.3f}s {r['shared_ratio']:5.1f}x  "
            f"{r['worst_difference_float64']:.1e}"
        )
    (record,) = (r["shared_ratio"] for r in result["rows"] if r["task"] == "record")
    lines.append(f"aim 3x for shared prompts on ReCoRD: {'met' if record >= 3 else 'NOT met'}, {record:.2f}x")
    return "\n".join([*lines, f"{result['threads']} threads, {result.get('clock', 'wall time')}, interleaved, medians"])
