"""A search of K runs over one base: in turn in one process, and as a bank, at the lengths of real rows.

opt_mini, the few-shot tasks' real rows and batch sizes, float32, dropout as in the base, LoRA, NoRA and NoRA+ at
learning rates of their own. Both do the same steps; losses and gradient norms are printed. "padded" is a run with one
text to a row, as every run was trained before rows were put side by side. Processor time with one thread, wall time on
a GPU. And the makespan of a search from the start of a process to its end: Hugging Face's Trainer with PEFT and our own
loop, one process for each run; ours in turn in one process; a bank.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
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
from nora.launch import banks
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

    def __init__(self, count: int, batch_size: int, objective: Any, device: torch.device, *, first: int = 0) -> None:
        base = AutoModelForCausalLM.from_pretrained(_ROOT / "assets" / "opt_mini").to(device).requires_grad_(False)
        self.objective, self.settings, self.members = objective, [], []
        for k in range(first, first + count):
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
            self.members.append(Member(model, state, lambda i: None, lambda s: None))
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


_SEARCH, _SEARCH_STEPS = 7, 96
_WAYS = ("Trainer + PEFT, a process a run", "ours, a process a run", "ours in turn, one process", "bank")


def _trainer(k: int, steps: int) -> tuple[float, float]:
    """One LoRA run by the Trainer on the same rows, lengths and batch; loss and gradient norm of its last step."""
    import tempfile

    from transformers import Trainer, TrainingArguments

    runs = _Runs(1, _BATCHES["sst2"], _objective("sst2"), torch.device("cpu"))
    objective = runs.objective

    class Scored(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
            indices = inputs["index"].tolist()
            return objective.loss(model, indices) / len(indices)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=_BATCHES["sst2"], seed=0, use_cpu=True,
            learning_rate=1e-3 * (1 + k / 4), logging_steps=1, save_strategy="no", report_to="none", weight_decay=0.0,
            disable_tqdm=True, remove_unused_columns=False, label_names=[],
        )  # fmt: skip
        rows = [{"index": i} for i in range(objective.num_examples)]
        trainer = Scored(model=runs.members[0].model, train_dataset=rows, args=arguments)
        trainer.train()
    last = [entry for entry in trainer.state.log_history if "grad_norm" in entry][-1]
    return float(last["loss"]), float(last["grad_norm"])


def _search(way: str, k: int, steps: int) -> None:
    """What one process of a way does; prints loss and gradient norm of its last run."""
    torch.set_num_threads(1)
    if way == _WAYS[0]:
        print(json.dumps(_trainer(k, steps)))
        return
    count = 1 if way == _WAYS[1] else _SEARCH
    runs = _Runs(count, _BATCHES["sst2"], _objective("sst2"), torch.device("cpu"), first=k)
    banked = way == "bank"
    if banked:
        runs.bank()
    last = 0.0, 0.0
    for step in range(0, steps, _STEPS):
        last = runs.steps(step, banked=banked)
    print(json.dumps(last))


def _makespan(steps: int) -> dict[str, Any]:
    """Processor seconds of a whole search by each way, imports and loading included."""
    found: dict[str, Any] = {}
    for way in _WAYS:
        before, last = resource.getrusage(resource.RUSAGE_CHILDREN), ""
        for k in range(_SEARCH) if "a process a run" in way else (0,):
            words = [sys.executable, str(Path(__file__)), way, str(k), str(steps)]
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(words, capture_output=True, text=True, check=True, env=env, cwd=_ROOT)
            last = done.stdout.strip().splitlines()[-1]
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found[way] = {"seconds": seconds, "last": json.loads(last)}
    return {"runs": _SEARCH, "steps": steps, "ways": found}


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
    search = _makespan(_STEPS if quick else _SEARCH_STEPS) if device.type == "cpu" else None
    return {
        "rows": rows,
        "search": search,
        "clock": _timing.clock(device)[0],
        "device": device.type,
        "threads": torch.get_num_threads(),
    }


_ARMS = ("in turn, padded", "in turn", "bank")


def _line(row: dict[str, Any]) -> str:
    times = " ".join(f"{row['ms_per_run_step'][name]:15.2f}" for name in _ARMS)
    ratio = row["ratio_to_bank"]
    said = "  ".join(f"{row['last'][name][0]:.4f}, {row['last'][name][1]:.3f}" for name in _ARMS)
    ratios = f"{ratio['in turn, padded']:11.2f}x {ratio['in turn']:12.2f}x"
    return f"{row['task']:8} {row['members']:3} {times} {ratios}   {said}"


def _paying(task: str) -> range:
    """The numbers of members that `nora launch` would take on a CPU."""
    tokens = tasks.load("superglue", task).TOKENS * _BATCHES[task]
    return range(2, banks.BANK_TOKENS["cpu"] // tokens + 1)


def table(result: dict[str, Any]) -> str:
    """A line per task and number of members."""
    head = " ".join(f"{name:>15}" for name in _ARMS)
    search, lines = result["search"], []
    if search is not None:
        lines.append(
            f"a search of {search['runs']} runs of {search['steps']} steps on SST-2, processor time, all of it:"
        )
        bank = search["ways"]["bank"]["seconds"]
        for way, one in search["ways"].items():
            said = ", ".join(f"{value:.4f}" for value in one["last"])
            lines.append(f"  {way:32} {one['seconds']:7.1f} s {one['seconds'] / bank:6.2f}x   last run: {said}")
        alone = search["ways"][_WAYS[1]]["seconds"] / bank
        lines.append(_timing.aim("over a process for each run on SST-2", 3, alone))
    best = max(row["ratio_to_bank"]["in turn, padded"] for row in result["rows"] if row["task"] == "sst2")
    lines.append(_timing.aim("over padded runs in turn on SST-2, at the best K", 2.3, best))
    paying = [row["ratio_to_bank"]["in turn"] for row in result["rows"] if row["members"] in _paying(row["task"])]
    lines += [_timing.aim("over runs in turn wherever the planner banks", 0.98, min(paying))] if paying else []
    return "\n".join(
        [
            f"ms of {result['clock']} per run and step, {result['device']}, {result['threads']} thread",
            f"{'task':8} {'K':>3} {head} {'padded/bank':>12} {'in turn/bank':>13}   last run: loss, gradient norm",
            *map(_line, result["rows"]),
            *lines,
        ]
    )


if __name__ == "__main__":
    _search(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
