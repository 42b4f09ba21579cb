"""Generated answers: batches of mixed lengths against transformers' own generate on one prompt at a time.

200 real prompts of nine sets on llama_mini, greedy and by a beam of 4, in float64, float32 and bfloat16: how many
answers differ, which, and what each path costs. In float64 none may: whatever differs in the others is rounding.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nora import tasks
from nora.tasks.instruction import Instruction
from nora.training.generation import Decoding, answer, encode_prompts

_ROOT = Path(__file__).resolve().parents[1]
_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
_NEW_TOKENS = 32  # the paper's scripts, PROTOCOLS 8.5


def _prompts(per_set: int, math: int) -> list[Instruction]:
    """The first rows of each commonsense set, then of GSM8K."""
    found = []
    for suite, file, count in (("commonsense", "{}.test.jsonl", per_set), ("gsm8k", "test.jsonl", math)):
        task = tasks.load("instruct", suite)
        for name in task.SETS:
            lines = (_ROOT / "data" / suite / file.format(name)).read_text(encoding="utf-8").splitlines()[:count]
            found += [task.testing(json.loads(line), name) for line in lines]
    return found


@torch.no_grad()
def _one_by_one(model: Any, prompts: Sequence[str], tokenizer: Any, decoding: Decoding) -> list[str]:
    """As the scripts answer: each prompt alone, no padding."""
    stop = tokenizer.eos_token_id
    texts = []
    for ids in encode_prompts(prompts, tokenizer, decoding):
        generated = model.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            num_beams=decoding.beams, do_sample=False, max_new_tokens=decoding.max_new_tokens,
            eos_token_id=stop, pad_token_id=0,
        )[0, len(ids) :].tolist()  # fmt: skip
        generated = generated[: generated.index(stop)] if stop in generated else generated
        texts.append(tokenizer.decode(generated, skip_special_tokens=True))
    return texts


def _case(model: Any, tokenizer: Any, rows: Sequence[Instruction], dtype: str, beams: int) -> dict[str, Any]:
    decoding = Decoding(beams=beams, max_new_tokens=_NEW_TOKENS, max_length=1024)
    prompts = [row.question for row in rows]
    started = time.process_time()
    batched = answer(model, prompts, tokenizer, decoding, pad_id=0)
    middle = time.process_time()
    alone = _one_by_one(model, prompts, tokenizer, decoding)
    ended = time.process_time()
    differing = [
        {"prompt": i, "set": row.set, "alone": one, "batched": many}
        for i, (row, one, many) in enumerate(zip(rows, alone, batched, strict=True))
        if one != many
    ]
    return {
        "dtype": dtype, "beams": beams, "prompts": len(rows), "different": len(differing), "batched": middle - started,
        "alone": ended - middle, "ratio": (ended - middle) / (middle - started), "differing": differing,
    }  # fmt: skip


def run(*, quick: bool) -> dict[str, Any]:
    """Per dtype and number of beams: the answers that differ, and the seconds of processor time of both paths."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(_ROOT / "assets" / "llama_mini")
    rows = _prompts(1, 2) if quick else _prompts(20, 40)
    cases = []
    for dtype, kind in _DTYPES.items():
        model = AutoModelForCausalLM.from_pretrained(_ROOT / "assets" / "llama_mini", dtype=kind).eval()
        cases += [_case(model, tokenizer, rows, dtype, beams) for beams in (1, 4)]
    return {"cases": cases, "new_tokens": _NEW_TOKENS, "model": "llama_mini"}


def table(result: dict[str, Any]) -> str:
    """One line per case."""
    head = f"{'dtype':9} {'decoding':9} {'prompts':>7} {'different':>9} {'one by one':>11} {'batched':>9} {'ratio':>6}"
    lines = [head]
    for c in result["cases"]:
        decoding = "greedy" if c["beams"] == 1 else f"beam {c['beams']}"
        lines.append(
            f"{c['dtype']:9} {decoding:9} {c['prompts']:7} {c['different']:9} {c['alone']:10.1f}s {c['batched']:8.1f}s "
            f"{c['ratio']:5.1f}x"
        )
    return "\n".join([*lines, f"{result['model']}, {result['new_tokens']} new tokens, one thread, processor time"])
