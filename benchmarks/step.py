"""One optimiser step of our loop beside Hugging Face's Trainer on the same model, rows, batch and threads.

Both train LoRA on opt_mini with the language-model loss of the gold answer, fp32, AdamW, batch 8, no dropout, the same
rows in the same order. Printed with loss and gradient norm, so that a run that does nothing cannot pass for a fast one.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

from nora import tasks
from nora.adapters import initialize_
from nora.training.batches import EncodedExample, encode_example
from nora.training.loop import LoopSettings, StepInfo, make_state, train
from nora.training.objectives import OptionLMObjective
from nora.verbs.machine import load_program

_ROOT = Path(__file__).resolve().parents[1]
_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_clock = load_program(Path(__file__).with_name("_timing.py")).clock
_BATCH = 8


def _now() -> float:
    """Seconds: of the processor where one thread does the work, else of the clock on the wall."""
    return float(_clock(_DEVICE)[1]())


def _model() -> Any:
    model = AutoModelForCausalLM.from_pretrained(_ROOT / "assets" / "opt_mini", dropout=0.0)
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    initialize_(adapted, "kaiming", seed=0)
    return adapted


def _examples(count: int) -> tuple[list[EncodedExample], list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(_ROOT / "assets" / "opt_mini")
    task = tasks.load("superglue", "cb")
    rows = [json.loads(line) for line in (_ROOT / "data" / "cb" / "train.jsonl").read_text().splitlines()][:count]
    examples = [task.build(row) for row in rows]
    return [encode_example(e, tokenizer, max_length=1024) for e in examples], [e.gold for e in examples]


def _ours(encoded: list[EncodedExample], gold: list[int]) -> dict[str, Any]:
    settings = LoopSettings(
        lr=1e-3,
        batch_size=_BATCH,
        epochs=1,
        schedule="linear",
        warmup_steps=0,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,
        precision="fp32",
    )
    model = _model()
    state = make_state(model, settings, num_examples=len(encoded), preconditioner=None)
    times, infos = [_now()], []

    def on_step(info: StepInfo) -> None:
        times.append(_now())
        infos.append(info)

    train(
        model,
        OptionLMObjective(encoded, gold, 0),
        settings,
        state,
        order=lambda epoch: torch.arange(len(encoded)),
        before_step=lambda step: None,
        evaluate=lambda m: {"loss": 0.0},
        on_step=on_step,
        on_boundary=lambda s: None,
    )
    return _summary(times, [i.loss for i in infos], [i.grad_norm for i in infos])


def _trainer(encoded: list[EncodedExample], gold: list[int]) -> dict[str, Any]:
    rows = []
    for example, label in zip(encoded, gold, strict=True):
        ids, scored = example.sequences[label], example.option_lengths[label]
        rows.append({"input_ids": list(ids), "labels": [-100] * (len(ids) - scored) + list(ids[-scored:])})

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = -(-max(len(r["input_ids"]) for r in batch) // 8) * 8
        pad = [width - len(r["input_ids"]) for r in batch]
        return {
            "input_ids": torch.tensor([r["input_ids"] + [0] * p for r, p in zip(batch, pad, strict=True)]),
            "attention_mask": torch.tensor([[1] * (width - p) + [0] * p for p in pad]),
            "labels": torch.tensor([r["labels"] + [-100] * p for r, p in zip(batch, pad, strict=True)]),
        }

    class Ordered(Trainer):
        def _get_train_sampler(self, *arguments: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **keywords: Any) -> None:
            if not times:
                times.append(_now())

        def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
            times.append(_now())

    with tempfile.TemporaryDirectory() as folder:
        trainer = Ordered(
            model=_model(),
            train_dataset=rows,
            data_collator=collate,
            callbacks=[Clock()],
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=_BATCH,
                learning_rate=1e-3,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                use_cpu=not torch.cuda.is_available(),
                disable_tqdm=True,
                optim="adamw_torch",
                max_grad_norm=1.0,
                weight_decay=0.0,
                remove_unused_columns=False,
            ),
        )
        trainer.train()
    log = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return _summary(times, [float(e["loss"]) for e in log], [float(e["grad_norm"]) for e in log])


def _summary(times: list[float], losses: list[float], norms: list[float]) -> dict[str, Any]:
    steps = [b - a for a, b in zip(times, times[1:], strict=False)][1:]
    return {
        "ms": 1000 * statistics.median(steps),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "first_grad_norm": norms[0],
        "steps": len(losses),
    }


def run(*, quick: bool) -> dict[str, Any]:
    """Interleaved A/B/A/B, the median over the rounds of each one's median step."""
    encoded, gold = _examples(64 if quick else 248)
    rounds: dict[str, list[dict[str, Any]]] = {"ours": [], "trainer": []}
    for _ in range(1 if quick else 5):
        rounds["ours"].append(_ours(encoded, gold))
        rounds["trainer"].append(_trainer(encoded, gold))
    result = {name: {**values[0], "ms": statistics.median(v["ms"] for v in values)} for name, values in rounds.items()}
    ratio = result["trainer"]["ms"] / result["ours"]["ms"]
    return {**result, "ratio": ratio, "threads": torch.get_num_threads(), "clock": _clock(_DEVICE)[0]}


def _how(result: dict[str, Any]) -> str:
    return f"{result['threads']} threads, {result.get('clock', 'wall time')}, interleaved, medians"


def table(result: dict[str, Any]) -> str:
    """The two loops side by side."""
    lines = [f"{'loop':12} {'ms/step':>9} {'loss first':>11} {'loss last':>10} {'grad norm first':>16} {'steps':>6}"]
    for name in ("ours", "trainer"):
        r = result[name]
        lines.append(
            f"{name:12} {r['ms']:9.2f} {r['first_loss']:11.4f} {r['last_loss']:10.4f} {r['first_grad_norm']:16.4f} "
            f"{r['steps']:6}"
        )
    lines.append(f"trainer / ours = {result['ratio']:.2f} ({_how(result)})")
    return "\n".join(lines)
