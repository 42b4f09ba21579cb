"""One optimiser step of a commonsense run on twins of true width, two layers deep: LLaMA-7B's and Gemma-7B's.

LoRA r = 32 on the paper's targets, float32, no dropout, one thread, the same four texts: our step on packed rows, our
step a text at a time (what packing replaces), Hugging Face's Trainer with PEFT on padded rows, and, in a full run, ours
with compiled layers (``exec.compile=true``; the step that compiles is not timed). Loss and gradient norm stand beside
each, so that a step that does less cannot pass for a fast one; FLOP, dispatched operations and peak memory above the
weights are counted on the first step, processor time on the second. Below them what AdamW dispatches for these adapters
parameter by parameter ("present": torch's own choice on a CPU), over all at once (foreach, the loop's) and fused, and
how far apart the weights are in float64.
"""

from __future__ import annotations

import copy
import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import SequentialSampler
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from nora.adapters import initialize_
from nora.training.batches import EncodedText
from nora.training.compiled import compiled_layers
from nora.training.loop import LoopSettings, make_state, train_step
from nora.training.objectives import InstructObjective
from nora.verbs.machine import load_program

_timing = load_program(Path(__file__).with_name("_timing.py"))
_LENGTHS = (40, 56, 72, 132)
_LR = 3e-4
_TARGETS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
_SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000},
    "gemma": {
        "hidden_size": 3072, "intermediate_size": 24576, "num_attention_heads": 16, "num_key_value_heads": 16,
        "head_dim": 256, "vocab_size": 256000,
    },
}  # fmt: skip
_TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "vocab_size": 512}
_TINY_GEMMA = {"num_key_value_heads": 2, "head_dim": 32}
Row = dict[str, Any]


class _Operations(TorchDispatchMode):
    """Counts what reaches the backend."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class _Watch:
    """Of two steps: the first one's FLOP, operations and peak memory, the second one's processor time."""

    def __init__(self) -> None:
        self.found: Row = {}
        self._step, self._counts = 0, True

    def skip(self) -> None:
        """Nothing is counted of the first step."""
        self._counts = False

    def begin(self) -> None:
        if self._step == 0 and self._counts:
            self._trace = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._flop, self._operations = FlopCounterMode(display=False), _Operations()
            for counter in (self._trace, self._flop, self._operations):
                counter.__enter__()
        self._began = time.process_time()

    def end(self) -> None:
        took = time.process_time() - self._began
        if self._step == 0 and self._counts:
            for counter in (self._operations, self._flop, self._trace):
                counter.__exit__(None, None, None)
            self.found = {
                "tflop": self._flop.get_total_flops() / 1e12,
                "operations": self._operations.count,
                "peak_mib": _timing.held_peak_mib(self._trace),
            }
        elif self._step > 0:
            self.found["seconds"] = took
        self._step += 1


def _base(family: str, tiny: bool) -> Any:
    shape = {**_SHAPES[family], **(_TINY if tiny else {}), **(_TINY_GEMMA if tiny and family == "gemma" else {})}
    config = AutoConfig.for_model(
        family, num_hidden_layers=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=family == "gemma", **shape,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).requires_grad_(False)


def _adapted(base: Any) -> Any:
    """The base's weights are the adapter's too, its modules are not."""
    own = copy.deepcopy(base, {id(t): t for t in (*base.parameters(), *base.buffers())})
    model = get_peft_model(own, LoraConfig(r=32, lora_alpha=64, target_modules=list(_TARGETS)))
    initialize_(model, "kaiming", seed=0)
    return model.train()


def _texts(words: int) -> list[tuple[int, ...]]:
    draw = torch.Generator().manual_seed(1)
    return [tuple(torch.randint(3, words, (n,), generator=draw).tolist()) for n in _LENGTHS]


def _ours(model: Any, texts: Sequence[tuple[int, ...]], micro: int | None, *, compiled: bool = False) -> Row:
    settings = LoopSettings(
        lr=_LR, batch_size=len(texts), epochs=2, schedule="linear", warmup_steps=0, betas=(0.9, 0.999), eps=1e-8,
        weight_decay=0.0, max_grad_norm=1.0, precision="fp32", micro_batch_size=micro,
    )  # fmt: skip
    objective = InstructObjective([EncodedText(ids, 1, 0, False) for ids in texts], 0)
    state, watch, steps = make_state(model, settings, num_examples=len(texts), preconditioner=None), _Watch(), []
    if compiled:  # what runs is no longer what the counters see
        watch.skip()
    with compiled_layers(model) if compiled else nullcontext():
        for number in range(2):
            watch.begin()
            steps.append(train_step(model, objective, range(len(texts)), settings, state))
            watch.end()
            state.step = number + 1
    return {**watch.found, "loss": [loss for loss, _ in steps], "grad_norm": [norm for _, norm in steps]}


def _trainer(model: Any, texts: Sequence[tuple[int, ...]]) -> Row:
    watch = _Watch()

    class Watched(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **keywords: Any) -> None:
            watch.begin()

        def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
            watch.end()

    class Ordered(Trainer):
        def _get_train_sampler(self, *arguments: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        own = [row["ids"] for row in rows]
        width = -(-max(map(len, own)) // 8) * 8
        return {
            "input_ids": torch.tensor([[*t, *[0] * (width - len(t))] for t in own]),
            "attention_mask": torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in own]),
            "labels": torch.tensor([[-100, *t[1:], *[-100] * (width - len(t))] for t in own]),
        }

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=2, per_device_train_batch_size=len(texts), learning_rate=_LR, logging_steps=1,
            save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, optim="adamw_torch",
            max_grad_norm=1.0, weight_decay=0.0, remove_unused_columns=False,
        )  # fmt: skip
        rows = [{"ids": ids} for ids in texts]
        trainer = Ordered(
            model=model, train_dataset=rows, data_collator=collate, callbacks=[Watched()], args=arguments
        )  # fmt: skip
        trainer.train()
    log = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return {**watch.found, "loss": [float(e["loss"]) for e in log], "grad_norm": [float(e["grad_norm"]) for e in log]}


def _adamw(parameters: Sequence[torch.Tensor]) -> list[Row]:
    """Three steps of each implementation in float64 from the same weights and gradients."""
    rows: list[Row] = []
    present: list[torch.Tensor] = []
    for name, given in (("present", {}), ("foreach", {"foreach": True}), ("fused", {"fused": True})):
        draw = torch.Generator().manual_seed(2)
        own = [p.detach().double().clone().requires_grad_() for p in parameters]
        optimizer = torch.optim.AdamW(own, lr=_LR, weight_decay=0.01, **given)  # type: ignore[arg-type]
        for _ in range(3):
            for p in own:
                p.grad = torch.randn(p.shape, generator=draw, dtype=p.dtype)
            with _Operations() as operations:
                optimizer.step()
        present = present or own
        largest = max(float((a - b).detach().abs().max()) for a, b in zip(own, present, strict=True))
        rows.append({"adamw": name, "operations": operations.count, "largest difference": largest})
    return rows


def run(*, quick: bool) -> dict[str, Any]:
    """Per family and path the figures of a step; with ``quick`` of tiny twins."""
    torch.set_num_threads(1)
    rows, optimizers = [], []
    for family in _SHAPES:
        base = _base(family, quick)
        texts = _texts(base.config.vocab_size)
        paths: dict[str, Callable[[Any, Any], Row]] = {
            "ours, packed": lambda model, texts: _ours(model, texts, None),
            "ours, a text at a time": lambda model, texts: _ours(model, texts, 1),
            "Trainer + PEFT, padded": _trainer,
            "ours, packed, compiled": lambda model, texts: _ours(model, texts, None, compiled=True),
        }
        if quick:
            del paths["ours, packed, compiled"]
        for path, step in paths.items():
            model = _adapted(base)
            rows.append({"family": family, "path": path, "tokens": sum(_LENGTHS), **step(model, texts)})
            print(_line(rows[-1]), flush=True)
            if not optimizers:
                optimizers = _adamw([p for p in model.parameters() if p.requires_grad])
            del model
            gc.collect()
        del base
        gc.collect()
    return {"steps": rows, "adamw": optimizers, "layers": 2, "lengths": list(_LENGTHS)}


def _line(r: Row) -> str:
    counted = f"{r['tflop']:7.3f} {r['operations']:6} {r['peak_mib']:9.0f}" if "tflop" in r else f"{'':24}"
    return (
        f"{r['family']:6} {r['path']:23} {counted} "
        f"{r['seconds']:8.2f} {r['tokens'] / r['seconds']:8.1f} {r['loss'][-1]:9.5f} {r['grad_norm'][-1]:9.5f}"
    )


def table(result: dict[str, Any]) -> str:
    """A line per family and path, then the ratios to the Trainer."""
    head = (
        f"{'':6} {'':23} {'TFLOP':>7} {'ops':>6} {'peak MiB':>9} {'seconds':>8} {'tokens/s':>8} {'loss':>9} {'norm':>9}"
    )
    lines = [head, *map(_line, result["steps"])]
    for family in dict.fromkeys(r["family"] for r in result["steps"]):
        ours, text, plain, *compiled = (r for r in result["steps"] if r["family"] == family)
        for name, other in (("Trainer + PEFT", plain), ("a text at a time", text)):
            ratios = (f"{other[k] / ours[k]:.2f}x {k}" for k in ("seconds", "tflop", "operations", "peak_mib"))
            lines.append(f"{family}: {name} over ours, packed: {', '.join(ratios)}")
        for row in compiled:
            lines.append(
                f"{family}: ours, packed over the same compiled: {ours['seconds'] / row['seconds']:.2f}x seconds"
            )
    for r in result["adamw"]:
        lines.append(f"AdamW, {r['adamw']}: {r['operations']} operations, differs by {r['largest difference']:.1e}")
    return "\n".join([*lines, f"texts of {result['lengths']} tokens, two layers, float32, one thread, processor time"])
