"""Generated answers: batches of mixed lengths against transformers' own generate on one prompt at a time.

200 real prompts of nine sets on llama_mini, greedy and by a beam of 4, in float64, float32 and bfloat16: how many
answers differ, which, and what each path costs. In float64 none may. Where an answer differs, rounding alone explains
it only if the two paths stood near a tie. Its *margin* is the gap, by the same weights in float32, between the summed
log-probabilities (nats) of what each path kept and the other did not at the first step where they part; it must lie
below the *tolerance*: the largest error that the dtype makes in such a gap one prompt at a time, nothing batched.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LogitsProcessorList

from nora import tasks
from nora.tasks.instruction import Instruction
from nora.training.generation import Decoding, beam_search, encode_prompts, greedy

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


Ids = tuple[int, ...]


@torch.no_grad()
def _one_by_one(model: Any, prompts: Sequence[Ids], stop: int, decoding: Decoding) -> list[list[int]]:
    """As the scripts answer: each prompt alone, no padding."""
    answers = []
    for ids in prompts:
        generated = model.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            num_beams=decoding.beams, do_sample=False, max_new_tokens=decoding.max_new_tokens,
            eos_token_id=stop, pad_token_id=0,
        )[0, len(ids) :].tolist()  # fmt: skip
        answers.append(generated[: generated.index(stop)] if stop in generated else generated)
    return answers


def _batched(model: Any, prompts: Sequence[Ids], stop: int, decoding: Decoding) -> list[list[int]]:
    if decoding.beams == 1:
        return greedy(model, prompts, stop=[stop], max_new_tokens=decoding.max_new_tokens, pad_id=0)
    return beam_search(model, prompts, decoding, stop=stop, pad_id=0)


class _Trace:
    """Of one call of generate, per prompt and step: the beams that go on, and the 2 × beams best continuations that
    they were chosen from, by their summed log-probability in the model's own dtype."""

    def __init__(self, beams: int, width: int, seen: dict[Ids, list[tuple[set[Ids], dict[Ids, float]]]]) -> None:
        self.beams, self.width, self.seen = beams, width, seen
        self.pools: dict[Ids, dict[Ids, float]] = {}

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """As a logits processor that changes nothing: ids [prompts × beams, width + step], scores [… , vocabulary]."""
        best = scores.log_softmax(dim=-1).topk(2 * self.beams)
        for first in range(0, len(ids), self.beams):
            own = ids[first : first + self.beams]
            padded = own[0, : self.width].tolist()
            prompt = tuple(padded[next(i for i, token in enumerate(padded) if token) :])
            beams = [tuple(row) for row in own[:, self.width :].tolist()]
            pool: dict[Ids, float] = {}
            for row, beam in enumerate(beams):
                so_far = self.pools[prompt].get(beam, 0.0) if beam else 0.0
                for value, token in zip(
                    best.values[first + row].tolist(), best.indices[first + row].tolist(), strict=True
                ):
                    pool[(*beam, token)] = so_far + value
            pool = dict(sorted(pool.items(), key=lambda item: -item[1])[: 2 * self.beams])
            self.pools[prompt] = pool
            self.seen.setdefault(prompt, []).append((set(beams), pool))
        return scores


@contextmanager
def _traced(model: Any, beams: int) -> Iterator[dict[Ids, list[tuple[set[Ids], dict[Ids, float]]]]]:
    """What every call of the model's generate does while it is open."""
    plain, seen = model.generate, {}  # type: ignore[var-annotated]

    def generate(**given: Any) -> Any:
        trace = _Trace(beams, given["input_ids"].shape[1], seen)
        return plain(**given, logits_processor=LogitsProcessorList([trace]))

    model.generate = generate
    try:
        yield seen
    finally:
        del model.generate


@torch.no_grad()
def _scores(wide: Any, prompt: Ids, continuations: Iterable[Ids]) -> dict[Ids, float]:
    """The summed log-probability of each continuation of the prompt, nats; the prompt is read once."""
    tries = sorted({c[:-1] for c in continuations if len(c) > 1})
    longest = [a for a, b in pairwise([*tries, ()]) if b[: len(a)] != a]
    past = DynamicCache(config=wide.config)
    first = wide(input_ids=torch.tensor([prompt]), past_key_values=past, use_cache=True).logits[0, -1]
    steps: dict[Ids, Tensor] = {(): first.log_softmax(dim=-1)}
    if longest:
        past.batch_repeat_interleave(len(longest))
        ids = torch.zeros(len(longest), max(map(len, longest)), dtype=torch.long)
        for row, tokens in enumerate(longest):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        found = wide(input_ids=ids, past_key_values=past, use_cache=True).logits.log_softmax(dim=-1)
        for row, tokens in enumerate(longest):
            steps |= {tokens[: n + 1]: found[row, n] for n in range(len(tokens))}
    return {c: sum(float(steps[c[:n]][c[n]]) for n in range(len(c))) for c in continuations}


def _tolerance(wide: Any, traced: dict[Ids, list[tuple[set[Ids], dict[Ids, float]]]]) -> float:
    """The largest error of the gap between two continuations that one step chose from, nats."""
    largest = 0.0
    for prompt, steps in traced.items():
        exact = _scores(wide, prompt, {c for _, pool in steps for c in pool})
        for _, pool in steps:
            errors = [score - exact[c] for c, score in pool.items()]
            largest = max(largest, max(errors) - min(errors))
    return largest


def _parting(
    alone: Ids, batched: Ids, one: Sequence[set[Ids]], many: Sequence[set[Ids]]
) -> tuple[int, list[tuple[Ids, Ids]]]:
    """The first step after which the two paths hold other beams, and the pairs that only one of them holds; where they
    never do it is the choice among the ended ones: both answers."""
    for step, (ours, theirs) in enumerate(zip(one, many, strict=False)):
        if ours != theirs:
            return step, list(product(ours - theirs, theirs - ours))
    return max(len(alone), len(batched)), [(alone, batched)]


def _margin(wide: Any, prompt: Ids, pairs: Sequence[tuple[Ids, Ids]]) -> float:
    """The largest gap of a pair, nats; of answers of two lengths (by mean log-probability) times the shorter one."""
    exact = _scores(wide, prompt, {c for pair in pairs for c in pair})
    return max(abs(exact[a] / len(a) - exact[b] / len(b)) * min(len(a), len(b)) for a, b in pairs)


def _case(model: Any, tokenizer: Any, rows: Sequence[Instruction], dtype: str, beams: int) -> dict[str, Any]:
    decoding = Decoding(beams=beams, max_new_tokens=_NEW_TOKENS, max_length=1024)
    prompts, stop = encode_prompts([row.question for row in rows], tokenizer, decoding), tokenizer.eos_token_id
    started = time.process_time()
    batched = _batched(model, prompts, stop, decoding)
    middle = time.process_time()
    alone = _one_by_one(model, prompts, stop, decoding)
    ended = time.process_time()
    case = {
        "dtype": dtype, "beams": beams, "prompts": len(rows), "batched": middle - started, "alone": ended - middle,
        "ratio": (ended - middle) / (middle - started), "tolerance": None,
    }  # fmt: skip
    differing = [i for i, (one, many) in enumerate(zip(alone, batched, strict=True)) if one != many]
    listed = []
    if differing:
        wide = copy.deepcopy(model).float()
        with _traced(model, beams) as one:
            _one_by_one(model, prompts, stop, decoding)
        with _traced(model, beams) as many:
            _batched(model, prompts, stop, decoding)
        case["tolerance"] = _tolerance(wide, one)
        for i in differing:
            ends = [tuple(a) if len(a) == _NEW_TOKENS else (*a, stop) for a in (alone[i], batched[i])]
            if beams == 1:
                kept = [[{end[:n]} for n in range(1, len(end) + 1)] for end in ends]
            else:
                kept = [[held for held, _ in trace[prompts[i]][1:]] for trace in (one, many)]
            step, pairs = _parting(ends[0], ends[1], kept[0], kept[1])
            listed.append(
                {"prompt": i, "set": rows[i].set, "step": step, "margin": _margin(wide, prompts[i], pairs)}
                | {"alone": tokenizer.decode(alone[i]), "batched": tokenizer.decode(batched[i])}
            )
    above = sum(d["margin"] > case["tolerance"] for d in listed)
    return {**case, "different": len(listed), "above": above, "differing": listed}


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
    """One line per case, then one per answer that differs, the largest margins first."""
    head = f"{'dtype':9} {'decoding':9} {'prompts':>7} {'different':>9} {'one by one':>11} {'batched':>9} {'ratio':>6}"
    lines, listed = [head + f" {'tolerance':>10} {'above it':>8}"], []
    for c in result["cases"]:
        decoding = "greedy" if c["beams"] == 1 else f"beam {c['beams']}"
        rounding = f"{c['tolerance']:10.4f} {c['above']:8}" if c["differing"] else ""
        lines.append(
            f"{c['dtype']:9} {decoding:9} {c['prompts']:7} {c['different']:9} {c['alone']:10.1f}s {c['batched']:8.1f}s "
            f"{c['ratio']:5.1f}x {rounding}".rstrip()
        )
        for d in sorted(c["differing"], key=lambda d: -float(d["margin"])):
            name = f"{c['dtype']:9} {decoding:9} {d['set']:13} {d['prompt']:4}"
            listed.append(f"{name}  first differs after {d['step']:2} tokens, margin {d['margin']:.4f}")
    lines.append(f"{result['model']}, {result['new_tokens']} new tokens, one thread, processor time; nats")
    return "\n".join([*lines, *listed])
