"""What one GPU does with the project's work (``make bench-gpu``): a search, a 7B step, answers by a beam.

Random weights of true shapes, so that nothing is downloaded: a search over OPT-1.3B in turn and as a bank (LoRA, NoRA
and NoRA+ of rank 8, batch 2); a commonsense step of LLaMA-7B on packed rows beside the padded step of a plain PEFT
script; answers by a beam of 4, batched beside one by one. Five minutes at most (BUDGET seconds): what says most comes
first, and what is not reached is listed as not measured. Without a GPU ``nora bench gpu --quick`` rehearses it on a
tiny shape; a full run there is refused.
"""

from __future__ import annotations

import copy
import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from nora.adapters import Bank, Preconditioner, initialize_, lora_layers
from nora.errors import UserError
from nora.execution.provenance import library_versions
from nora.kinds.parts.recipe import float32_products, seed_dropout
from nora.training.bank import BankOptimizer, Member, bank_step
from nora.training.batches import EncodedExample, EncodedText
from nora.training.generation import Decoding, beam_search
from nora.training.loop import LoopSettings, make_state, train_step
from nora.training.objectives import InstructObjective, OptionLMObjective, free_memory

_PEAK = {"bf16": 989e12, "tf32": 495e12}  # an H100's and an H200's dense products, FLOP/s
_SEARCH_BATCH, _ROWS, _STEPS = 2, 16, 5
_METHODS = (("kaiming", None), ("nystrom", None), ("nystrom", 1e-6))
_TRAIN_BATCH, _NEW_TOKENS, _BEAMS = 16, 32, 4
Row = dict[str, Any]


def _opt(tiny: bool) -> OPTConfig:
    width, layers, heads, inner, words = (64, 2, 2, 128, 512) if tiny else (2048, 24, 32, 8192, 50272)
    return OPTConfig(
        vocab_size=words, hidden_size=width, word_embed_proj_dim=width, num_hidden_layers=layers, ffn_dim=inner,
        num_attention_heads=heads, max_position_embeddings=2048, dropout=0.1, attention_dropout=0.0, pad_token_id=1,
    )  # fmt: skip


def _llama(tiny: bool) -> LlamaConfig:
    width, layers, heads, inner, words = (64, 2, 2, 128, 512) if tiny else (4096, 32, 32, 11008, 32000)
    return LlamaConfig(
        vocab_size=words, hidden_size=width, num_hidden_layers=layers, intermediate_size=inner,
        num_attention_heads=heads, max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def _base(config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False).eval()


def _adapted(base: Any, rank: int, targets: Sequence[str], init: str, seed: int) -> Any:
    """The base's weights are the adapter's too, its modules are not."""
    own = copy.deepcopy(base, {id(t): t for t in (*base.parameters(), *base.buffers())})
    model = get_peft_model(own, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets)))
    initialize_(model, init, seed=seed)
    return model.train()


def _settings(precision: str, batch: int) -> LoopSettings:
    return LoopSettings(
        lr=1e-4, batch_size=batch, epochs=1000, schedule="linear", warmup_steps=0, betas=(0.9, 0.999), eps=1e-8,
        weight_decay=0.0, max_grad_norm=1.0, precision="bf16" if precision == "bf16" else "fp32",
    )  # fmt: skip


def _timed(step: Callable[[int], Any], device: torch.device, steps: int) -> tuple[float, float, Any]:
    """Median milliseconds of a step, of its host side alone, and what the last one returned."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    whole, host, last = [], [], None
    for number in range(steps + 2):
        wait()
        began = time.perf_counter()
        last = step(number)
        issued = time.perf_counter()
        wait()
        if number >= 2:
            whole.append(1000 * (time.perf_counter() - began))
            host.append(1000 * (issued - began))
    return statistics.median(whole), statistics.median(host), last


def _peak_gib(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def _search(
    precision: str, plan: Sequence[tuple[int, int]], device: torch.device, tiny: bool, left: Callable[[], float]
) -> list[Row]:
    """K runs in turn and as a bank, from the same start: per (K, tokens of a text) of the plan."""
    base = _base(_opt(tiny), torch.bfloat16 if precision == "bf16" else torch.float32, device)
    most = max(count for count, _ in plan)
    models = [_adapted(base, 8, ("q_proj", "v_proj"), _METHODS[k % len(_METHODS)][0], k) for k in range(most)]
    start = [{n: p.detach().clone() for n, p in m.named_parameters() if p.requires_grad} for m in models]
    weights, settings, rows = sum(p.numel() for p in base.parameters()), _settings(precision, _SEARCH_BATCH), []

    def fresh(count: int, objective: OptionLMObjective) -> list[Member]:
        members = []
        for k, model in enumerate(models[:count]):
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.data, parameter.grad = start[k][name].clone(), None
            damping = _METHODS[k % len(_METHODS)][1]
            pre = None if damping is None else Preconditioner(lora_layers(model), damping=damping)
            state = make_state(model, settings, num_examples=objective.num_examples, preconditioner=pre)
            members.append(Member(model, state, lambda i: None, lambda s: None))
        return members

    for count, tokens in plan:
        row: Row = {"members": count, "tokens": tokens, "precision": precision}
        rows.append(row)
        if left() < 0:
            row["not measured"] = "budget spent"
            continue
        draw = torch.Generator().manual_seed(1)
        texts = torch.randint(3, base.config.vocab_size, (_ROWS, tokens), generator=draw).tolist()
        examples = [EncodedExample((tuple(ids),), (tokens // 2,), 0) for ids in texts]
        objective = OptionLMObjective(examples, [0] * _ROWS, 1)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        flop = 4 * weights * _SEARCH_BATCH * tokens
        try:
            for name, make in (("in turn", _in_turn), ("bank", partial(_banked, base))):
                step = make(fresh(count, objective), objective, settings)
                row[name] = _figures(*_timed(step, device, _STEPS), count, _SEARCH_BATCH * tokens, flop, precision)
                del step
        except torch.OutOfMemoryError:
            row["not measured"] = "out of memory"
            continue
        row |= {"ratio": row["in turn"]["ms"] / row["bank"]["ms"], "peak_gib": _peak_gib(device)}
        print(_search_line(row), flush=True)
    return rows


def _in_turn(members: list[Member], objective: OptionLMObjective, settings: LoopSettings) -> Callable[[int], Any]:
    def step(number: int) -> Any:
        last = None
        for member in members:
            seed_dropout(0, number)
            last = train_step(member.model, objective, range(_SEARCH_BATCH), settings, member.state)
        return last

    return step


def _banked(
    base: Any, members: list[Member], objective: OptionLMObjective, settings: LoopSettings
) -> Callable[[int], Any]:
    bank: Any = Bank(base, [m.model for m in members], [None] * len(members))  # type: ignore[misc]
    optimizer = BankOptimizer(bank.train(), members, settings)

    def step(number: int) -> Any:
        seed_dropout(0, number)
        taken = bank_step(bank, objective, range(_SEARCH_BATCH), settings, members, optimizer)[-1]
        for member in members:
            member.state.step += 1
        return taken

    return step


def _figures(ms: float, host: float, last: Any, count: int, tokens: int, flop: float, precision: str) -> Row:
    """Of one run's step; ``flop``: 4 per weight and real token of a frozen base, attention not counted."""
    seconds = ms / 1000 / count
    return {
        "ms": ms / count,
        "host_ms": host / count,
        "tokens_per_second": tokens / seconds,
        "mfu": flop / seconds / _PEAK[precision],
        "loss": float(last[0]),
        "grad_norm": float(last[1]),
    }


def _lengths(count: int, shortest: int, longest: int) -> list[int]:
    """Lengths of texts like those of the commonsense rows: skewed, mean about 144 of 60 to 256 tokens."""
    draw = torch.Generator().manual_seed(2)
    skewed = torch.rand(count, generator=draw).square() * 1.26
    return [int(shortest + (longest - shortest) * float(min(share, 1.0))) for share in skewed]


def _train(base: Any, device: torch.device, tiny: bool) -> list[Row]:
    """A step of LoRA r = 32 on q, k, v, up and down, batch 16: packed (ours), and padded as a plain PEFT script."""
    draw = torch.Generator().manual_seed(3)
    words = base.config.vocab_size
    lengths = _lengths(4 * _TRAIN_BATCH, 6, 20) if tiny else _lengths(4 * _TRAIN_BATCH, 60, 256)
    texts = [tuple(torch.randint(3, words, (n,), generator=draw).tolist()) for n in lengths]
    objective = InstructObjective([EncodedText(ids, 1, 0, False) for ids in texts], 0)
    settings, rows = _settings("bf16", _TRAIN_BATCH), []
    weights = sum(p.numel() for p in base.parameters())
    targets = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")

    def batch(number: int) -> list[int]:
        return list(range(number % 4 * _TRAIN_BATCH, (number % 4 + 1) * _TRAIN_BATCH))

    def packed(model: Any) -> Callable[[int], Any]:
        state = make_state(model, settings, num_examples=len(texts), preconditioner=None)
        return lambda number: train_step(model, objective, batch(number), settings, state)

    def padded(model: Any) -> Callable[[int], Any]:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)

        def step(number: int) -> Any:
            own = [texts[i] for i in batch(number)]
            width = -(-max(map(len, own)) // 8) * 8
            ids = torch.tensor([[0] * (width - len(t)) + list(t) for t in own], device=device)
            mask = torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in own], device=device)
            learnt = torch.tensor([[0] * (width - len(t) + 1) + [1] * (len(t) - 1) for t in own], device=device)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(learnt == 0, -100)).loss
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return float(loss.detach()), float(norm)

        return step

    tokens = sum(lengths) / 4
    for name, make in (("ours, packed", packed), ("PEFT, padded", padded)):
        model = _adapted(base, 32, targets, "kaiming", 0)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        figures = _figures(*_timed(make(model), device, 8), 1, int(tokens), 4 * weights * tokens, "bf16")
        row = {"path": name, "batch": _TRAIN_BATCH, "real tokens": tokens, **figures}
        rows.append({**row, "peak_gib": _peak_gib(device)})
        del model
        gc.collect()
        print(_train_line(rows[-1]), flush=True)
    return rows


def _generate(base: Any, device: torch.device, tiny: bool) -> Row:
    """Answers by a beam of 4: all prompts in batches by free memory; the first few one by one."""
    draw = torch.Generator().manual_seed(4)
    count, few, new = (6, 2, 4) if tiny else (128, 4, _NEW_TOKENS)
    lengths = _lengths(count, 6, 20) if tiny else _lengths(count, 60, 224)
    prompts = [tuple(torch.randint(3, base.config.vocab_size, (n,), generator=draw).tolist()) for n in lengths]
    per_token = 4 * base.config.num_hidden_layers * base.config.hidden_size
    at_once = int(0.4 * free_memory(device)) // per_token if device.type == "cuda" else 8192
    took, answers = {}, {}
    for name, own, size in (("warm", prompts[:1], 1), ("batched", prompts, at_once), ("alone", prompts[:few], 1)):
        began = time.perf_counter()
        decoding = Decoding(beams=_BEAMS, max_new_tokens=new, max_length=512, max_tokens=size)
        answers[name] = beam_search(base, own, decoding, stop=base.config.vocab_size - 1, pad_id=0)
        if device.type == "cuda":
            torch.cuda.synchronize()
        took[name] = (time.perf_counter() - began) / len(own)
    same = sum(a == b for a, b in zip(answers["alone"], answers["batched"], strict=False))
    row = {"beams": _BEAMS, "new_tokens": new, "prompts": count, "batched_s": took["batched"], "alone_s": took["alone"]}
    return {**row, "ratio": took["alone"] / took["batched"], "compared": few, "same": same}


def run(*, quick: bool) -> dict[str, Any]:
    """The settings in their order until the budget (BUDGET seconds, 300 unless said) is spent."""
    on_gpu = torch.cuda.is_available()
    if not (on_gpu or quick):
        raise UserError("bench gpu: no CUDA device is visible here; --quick rehearses it on the CPU")
    device = torch.device("cuda" if on_gpu and not quick else "cpu")
    budget, began = float(os.environ.get("BUDGET", "300")), time.monotonic()

    def left() -> float:
        return 0.9 * budget - (time.monotonic() - began)

    search = partial(_search, device=device, tiny=quick, left=left)
    few = [(2, 16)]
    result: dict[str, Any] = {
        "card": torch.cuda.get_device_name() if device.type == "cuda" else "the CPU (rehearsal)",
        "libraries": library_versions(),
        "search": search("bf16", few if quick else [(k, t) for t in (120, 256, 512) for k in (27, 9, 1)]),
    }
    _free()
    result["train"], result["generate"] = [], None
    if left() > 60 or quick:
        llama = _base(_llama(quick), torch.bfloat16, device)
        result["train"] = _train(llama, device, quick)
        _free()
        result["generate"] = _generate(llama, device, quick) if left() > 40 or quick else None
        del llama
        _free()
    with float32_products("high"):
        result["search"] += search("tf32", few if quick else [(27, 120), (9, 120), (1, 120), (27, 256)])
    return {**result, "seconds": time.monotonic() - began}


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _search_line(row: Row) -> str:
    head = f"{row['precision']:5} {row['tokens']:7} {row['members']:3}"
    if "not measured" in row:
        return f"{head}  not measured: {row['not measured']}"
    return f"{head}  {_cells(row['in turn'])}  {_cells(row['bank'])}  {row['ratio']:6.2f}x"


def _cells(one: Row) -> str:
    return (
        f"{one['ms']:9.2f} {one['host_ms']:8.2f} {one['tokens_per_second']:9.0f} {100 * one['mfu']:5.1f} "
        f"{one['loss']:8.4f} {one['grad_norm']:8.4f}"
    )


def _train_line(row: Row) -> str:
    memory = "" if row["peak_gib"] is None else f"  {row['peak_gib']:.1f} GiB"
    return f"{row['path']:17}  {_cells(row)}{memory}"


def table(result: dict[str, Any]) -> str:
    """A line per setting: in turn, then the bank; milliseconds are of one run's step."""
    column = f"{'ms':>9} {'host ms':>8} {'tokens/s':>9} {'MFU %':>5} {'loss':>8} {'norm':>8}"
    head = f"{'':5} {'tokens':>7} {'K':>3}  {column}  {column}  in turn/bank"
    lines = [f"{result['card']}, OPT-1.3B's shape, in turn | bank", head, *map(_search_line, result["search"])]
    short = [r["ratio"] for r in result["search"] if "ratio" in r and (r["tokens"], r["members"]) == (120, 27)]
    if short:
        lines.append(f"aim 16x at 120 tokens, 27 members: {'met' if short[0] >= 16 else 'NOT met'}, {short[0]:.2f}x")
    lines += ["", f"LLaMA-7B's shape, LoRA r = 32, batch {_TRAIN_BATCH}, bf16", f"{'':17}  {column}"]
    lines += map(_train_line, result["train"]) if result["train"] else ["not measured: budget spent"]
    one = result["generate"]
    lines += ["", f"Answers by a beam of {_BEAMS}, the same shape"]
    lines.append(
        "not measured: budget spent" if one is None else
        f"{one['prompts']} prompts, {one['new_tokens']} new tokens: {one['batched_s']:.3f} s a prompt batched, "
        f"{one['alone_s']:.3f} s one by one ({one['ratio']:.1f}x); {one['same']} of {one['compared']} the same"
    )  # fmt: skip
    return "\n".join(lines)
