"""A search of K runs over one base: in turn in one process, and as a bank, at the lengths of real rows.

opt_mini, the few-shot tasks' real rows and batch sizes, float32, dropout as in the base, LoRA, NoRA and NoRA+ at
learning rates of their own. Both do the same steps; losses and gradient norms are printed. "rows" are the side-by-side
rows of a run alone against one text to a row. Processor time with one thread, wall time on a GPU.
"""

from __future__ import annotations

import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from nora import tasks
from nora.adapters import Bank, Preconditioner, initialize_, lora_layers
from nora.kinds.parts.recipe import epoch_order, seed_dropout
from nora.training import objectives
from nora.training.bank import BankOptimizer, Member, bank_step
from nora.training.batches import collate, encode_example
from nora.training.loop import LoopSettings, batch_at, make_state, train_step
from nora.verbs.machine import load_program

_timing = load_program(Path(__file__).with_name("_timing.py"))
_ROOT = Path(__file__).resolve().parents[1]
_BATCHES = {"sst2": 4, "cb": 4, "rte": 8, "wsc": 8, "boolq": 4, "multirc": 8}
_SIZES = (1, 2, 4, 7, 16, 27)
_METHODS = (("kaiming", None), ("nystrom", None), ("nystrom", 1e-6))
_STEPS = 4


logging.disable_progress_bar()


def _objective(task_name: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(_ROOT / "assets" / "opt_mini")
    task = tasks.load("superglue", task_name)
    lines = (_ROOT / "data" / task_name / "train.jsonl").read_text().splitlines()[:128]
    examples = [task.build(json.loads(line)) for line in lines]
    encoded = [encode_example(e, tokenizer, max_length=1024) for e in examples]
    gold = [e.gold for e in examples]
    if task.LOSS == "classification":
        return objectives.ClassificationObjective(encoded, gold, 0, True)
    return objectives.OptionLMObjective(encoded, gold, 0)


class _Runs:
    """K runs, each on its own or as members of a bank."""

    def __init__(self, count: int, batch_size: int, objective: Any, device: torch.device) -> None:
        base = AutoModelForCausalLM.from_pretrained(_ROOT / "assets" / "opt_mini").to(device).requires_grad_(False)
        self.objective, self.settings, self.members = objective, [], []
        for k in range(count):
            init, damping = _METHODS[k % len(_METHODS)]
            model = get_peft_model(
                AutoModelForCausalLM.from_pretrained(_ROOT / "assets" / "opt_mini").to(device),
                LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]),
            )
            initialize_(model, init, seed=k)
            settings = LoopSettings(
                lr=1e-3 * (1 + k / 4), batch_size=batch_size, epochs=50, schedule="linear", warmup_steps=0,
                betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, max_grad_norm=1.0, precision="fp32",
            )  # fmt: skip
            pre = None if damping is None else Preconditioner(lora_layers(model), damping=damping)
            state = make_state(model.train(), settings, num_examples=objective.num_examples, preconditioner=pre)
            self.settings.append(settings)
            self.members.append(Member(model, state, lambda m: {}, lambda i: None, lambda s: None))
        self.base = base

    def bank(self) -> None:
        self.banked = Bank(self.base, [m.model for m in self.members], [None] * len(self.members))  # type: ignore[misc]
        self.banked.train()
        self.optimizer = BankOptimizer(self.banked, self.members, self.settings[0])

    def steps(self, first: int, banked: bool) -> tuple[float, float]:
        """Some steps of all runs; loss and gradient norm of the last run."""
        last = 0.0, 0.0
        for step in range(first, first + _STEPS):
            order = partial(epoch_order, 0, self.objective.num_examples)
            _, indices = batch_at(step, self.objective.num_examples, self.settings[0], order)
            if banked:
                seed_dropout(0, step)
                last = bank_step(
                    self.banked, self.objective, indices, self.settings[0], self.members, self.optimizer
                )[-1]  # fmt: skip
            else:
                for settings, member in zip(self.settings, self.members, strict=True):
                    seed_dropout(0, step)
                    last = train_step(member.model, self.objective, indices, settings, member.state)
            for member in self.members:
                member.state.step = step + 1
        return last


def _measure(task: str, count: int, rounds: int, device: torch.device) -> dict[str, Any]:
    objective, batch = _objective(task), _BATCHES[task]
    arms = {name: _Runs(count, batch, objective, device) for name in ("in turn, padded", "in turn", "bank")}
    arms["bank"].bank()
    _, now = _timing.clock(device)
    times: dict[str, list[float]] = {name: [] for name in arms}
    last: dict[str, tuple[float, float]] = {}
    for turn in range(rounds + 1):  # the first warms up
        for name, runs in arms.items():
            side_by_side = objectives.collate
            if name == "in turn, padded":
                objectives.collate = lambda *a, **k: collate(*a, **{**k, "side_by_side": False})
            try:
                started = now()
                last[name] = runs.steps(turn * _STEPS, banked=name == "bank")
                if device.type == "cuda":
                    torch.cuda.synchronize()
                took = now() - started
            finally:
                objectives.collate = side_by_side
            if turn:
                times[name].append(1000 * took / _STEPS / count)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = {name: statistics.median(a / b for a, b in zip(times[name], times["bank"], strict=True)) for name in arms}
    return {"task": task, "members": count, "ms_per_run_step": medians, "ratio_to_bank": ratio, "last": last}


def run(*, quick: bool) -> dict[str, Any]:
    """Every task at the sizes a search has; SST-2 from one member to 64."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    asked = [("sst2", k, 1 if quick else 5) for k in ((2,) if quick else _SIZES)]
    asked += [] if quick else [(task, k, 3) for task in _BATCHES if task != "sst2" for k in (2, 7)]
    rows = []
    for task, k, rounds in asked:
        rows.append(_measure(task, k, rounds, device))
        print(_line(rows[-1]), flush=True)
    return {"rows": rows, "clock": _timing.clock(device)[0], "device": device.type, "threads": torch.get_num_threads()}


_ARMS = ("in turn, padded", "in turn", "bank")


def _line(row: dict[str, Any]) -> str:
    times = " ".join(f"{row['ms_per_run_step'][name]:15.2f}" for name in _ARMS)
    ratio = row["ratio_to_bank"]
    said = "  ".join(f"{row['last'][name][0]:.4f}, {row['last'][name][1]:.3f}" for name in _ARMS)
    ratios = f"{ratio['in turn, padded']:11.2f}x {ratio['in turn']:12.2f}x"
    return f"{row['task']:8} {row['members']:3} {times} {ratios}   {said}"


def table(result: dict[str, Any]) -> str:
    """A line per task and number of members."""
    head = " ".join(f"{name:>15}" for name in _ARMS)
    return "\n".join(
        [
            f"ms of {result['clock']} per run and step, {result['device']}, {result['threads']} thread",
            f"{'task':8} {'K':>3} {head} {'padded/bank':>12} {'in turn/bank':>13}   last run: loss, gradient norm",
            *map(_line, result["rows"]),
        ]
    )
