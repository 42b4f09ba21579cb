"""What one GPU does with a search: K runs over OPT-1.3B's true shape, in turn and as a bank (``make bench-gpu``).

Random weights, so that nothing is downloaded; LoRA, NoRA and NoRA+ of rank 8 on q and v, batch 2, 120, 256 and 512
tokens a text, bf16 autocast and TF32. Both do the same steps; loss and gradient norm are printed. Five minutes at most:
the settings that say most come first, and what is not reached is listed as not measured. On a machine without a GPU
``nora bench gpu --quick`` rehearses it on a tiny shape; a full run there is refused.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import OPTConfig, OPTForCausalLM

from nora.adapters import Bank, Preconditioner, initialize_, lora_layers
from nora.errors import UserError
from nora.execution.provenance import library_versions
from nora.kinds.parts.recipe import float32_products, seed_dropout
from nora.training.bank import BankOptimizer, Member, bank_step
from nora.training.batches import EncodedExample
from nora.training.loop import LoopSettings, make_state, train_step
from nora.training.objectives import OptionLMObjective

_PEAK = {"bf16": 989e12, "tf32": 495e12}  # an H100's dense products, FLOP/s
_BATCH, _ROWS = 2, 16
_METHODS = (("kaiming", None), ("nystrom", None), ("nystrom", 1e-6))
_PLAN = [(k, t, p) for p in ("bf16", "tf32") for t in (120, 256, 512) for k in (27, 9, 1)]


def _base(tiny: bool, device: torch.device) -> Any:
    width, layers, heads, inner, words = (64, 2, 2, 128, 512) if tiny else (2048, 24, 32, 8192, 50272)
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=words, hidden_size=width, word_embed_proj_dim=width, num_hidden_layers=layers, ffn_dim=inner,
        num_attention_heads=heads, max_position_embeddings=2048, dropout=0.1, attention_dropout=0.0, pad_token_id=1,
    )  # fmt: skip
    with device:
        return OPTForCausalLM(config).requires_grad_(False).eval()


def _members(base: Any, count: int, precision: str, objective: OptionLMObjective) -> tuple[LoopSettings, list[Member]]:
    """Runs over one base: its weights are theirs, its modules are not."""
    settings = LoopSettings(
        lr=1e-4, batch_size=_BATCH, epochs=1000, schedule="linear", warmup_steps=0, betas=(0.9, 0.999), eps=1e-8,
        weight_decay=0.0, max_grad_norm=1.0, precision="bf16" if precision == "bf16" else "fp32",
    )  # fmt: skip
    members = []
    for k in range(count):
        init, damping = _METHODS[k % len(_METHODS)]
        own = copy.deepcopy(base, {id(t): t for t in (*base.parameters(), *base.buffers())})
        model = get_peft_model(own, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
        initialize_(model, init, seed=k)
        pre = None if damping is None else Preconditioner(lora_layers(model), damping=damping)
        state = make_state(model.train(), settings, num_examples=objective.num_examples, preconditioner=pre)
        members.append(Member(model, state, lambda m: {}, lambda i: None, lambda s: None))
    return settings, members


def _objective(tokens: int, words: int) -> OptionLMObjective:
    draw = torch.Generator().manual_seed(1)
    rows = torch.randint(3, words, (_ROWS, tokens), generator=draw).tolist()
    return OptionLMObjective([EncodedExample((tuple(ids),), (tokens // 2,), 0) for ids in rows], [0] * _ROWS, 1)


def _timed(step: Any, device: torch.device, steps: int) -> tuple[float, float, Any]:
    """Median milliseconds of a step, of its host side alone, and what the last one returned."""
    whole, host, last = [], [], None
    for number in range(steps + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        last = step(number)
        issued = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= 2:
            whole.append(1000 * (time.perf_counter() - began))
            host.append(1000 * (issued - began))
    return statistics.median(whole), statistics.median(host), last


def _measure(base: Any, count: int, tokens: int, precision: str, device: torch.device, steps: int) -> dict[str, Any]:
    objective = _objective(tokens, base.config.vocab_size)
    indices = list(range(_BATCH))
    flop = 4 * sum(p.numel() for p in base.parameters()) * _BATCH * tokens
    row: dict[str, Any] = {"members": count, "tokens": tokens, "precision": precision}

    settings, members = _members(base, count, precision, objective)

    def in_turn(number: int) -> Any:
        last = None
        for member in members:
            seed_dropout(0, number)
            last = train_step(member.model, objective, indices, settings, member.state)
        return last

    row["in turn"] = _figures(*_timed(in_turn, device, steps), count, tokens, flop, precision)
    del members
    settings, members = _members(base, count, precision, objective)
    bank = Bank(base, [m.model for m in members], [None] * count)
    optimizer = BankOptimizer(bank.train(), members, settings)  # type: ignore[arg-type]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def banked(number: int) -> Any:
        seed_dropout(0, number)
        taken = bank_step(bank, objective, indices, settings, members, optimizer)[-1]
        for member in members:
            member.state.step += 1
        return taken

    row["bank"] = _figures(*_timed(banked, device, steps), count, tokens, flop, precision)
    row["ratio"] = row["in turn"]["ms"] / row["bank"]["ms"]
    row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return row


def _figures(ms: float, host: float, last: Any, count: int, tokens: int, flop: float, precision: str) -> dict[str, Any]:
    seconds = ms / 1000
    return {
        "ms": ms / count,
        "host_ms": host / count,
        "tokens_per_second": count * _BATCH * tokens / seconds,
        "mfu": count * flop / seconds / _PEAK[precision],
        "loss": last[0],
        "grad_norm": last[1],
    }


def run(*, quick: bool) -> dict[str, Any]:
    """The settings in their order until the budget (BUDGET seconds, 300 unless said) is spent."""
    on_gpu = torch.cuda.is_available()
    if not (on_gpu or quick):
        raise UserError("bench gpu: no CUDA device is visible here; --quick rehearses it on the CPU")
    device = torch.device("cuda" if on_gpu and not quick else "cpu")
    budget, began = float(os.environ.get("BUDGET", "300")), time.monotonic()
    base = _base(quick, device)
    rows: list[dict[str, Any]] = []
    for count, tokens, precision in [(2, 16, "bf16"), (2, 16, "tf32")] if quick else _PLAN:
        spent = time.monotonic() - began
        if rows and spent > budget * 0.8:
            rows.append({"members": count, "tokens": tokens, "precision": precision, "not measured": "budget spent"})
            continue
        with float32_products("high" if precision == "tf32" else "highest"):
            rows.append(_measure(base, count, tokens, precision, device, 1 if quick else 5))
        if on_gpu:
            torch.cuda.empty_cache()
        print(_line(rows[-1]), flush=True)
    card = torch.cuda.get_device_name() if on_gpu and not quick else "the CPU (rehearsal)"
    return {"card": card, "libraries": library_versions(), "rows": rows, "seconds": time.monotonic() - began}


def _line(row: dict[str, Any]) -> str:
    head = f"{row['precision']:5} {row['tokens']:7} {row['members']:3}"
    if "not measured" in row:
        return f"{head}  not measured: {row['not measured']}"
    both = "  ".join(
        f"{one['ms']:9.2f} {one['host_ms']:8.2f} {one['tokens_per_second']:9.0f} {100 * one['mfu']:5.1f} "
        f"{one['loss']:8.4f} {one['grad_norm']:8.4f}"
        for one in (row["in turn"], row["bank"])
    )
    return f"{head}  {both}  {row['ratio']:6.2f}x"


def table(result: dict[str, Any]) -> str:
    """A line per setting: in turn, then the bank; milliseconds are of one run's step."""
    column = f"{'ms':>9} {'host ms':>8} {'tokens/s':>9} {'MFU %':>5} {'loss':>8} {'norm':>8}"
    head = f"{'':5} {'tokens':>7} {'K':>3}  {column}  {column}  in turn/bank"
    measured = [row for row in result["rows"] if "ratio" in row]
    lines = [f"{result['card']}, OPT-1.3B's shape, in turn | bank", head, *map(_line, result["rows"])]
    short = [row["ratio"] for row in measured if row["tokens"] == 120 and row["members"] == 27]
    if short:
        lines.append(f"aim 16x at 120 tokens, 27 members: {'met' if short[0] >= 16 else 'NOT met'}, {short[0]:.2f}x")
    return "\n".join(lines)
