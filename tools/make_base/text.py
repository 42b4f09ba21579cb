"""Corpus folder → tokenizer, weights and model card of a small text base."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from make_base.corpus import evaluation_texts, pack, read_corpus, train_tokenizer
from make_base.loop import optimise
from nora import tasks
from nora.errors import UserError
from nora.execution import provenance
from nora.files import sha256_file, write_atomic
from nora.kinds.parts.bases import random_model
from nora.streams import generator
from nora.training.scoring import Assessor, Split

SHIPPED = ("model.safetensors", "config.json", "tokenizer.json")
_ZERO_SHOT_ROWS = 64
THREADS = 1  # one thread: the same seed then gives the same bytes on a machine of the same type


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """One pretraining run; lengths in tokens."""

    architecture: dict[str, Any]
    """``model_type`` and the fields of its transformers config."""
    seed: int
    steps: int
    batch_size: int
    length: int
    lr: float
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    model: PreTrainedModel
    tokens_seen: int
    train_loss: float
    """Mean over the last 50 steps, nats per token."""
    seconds: float


def language_model_loss(model: PreTrainedModel, block: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy (nats) over ``block`` [batch, length]."""
    logits = model(input_ids=block).logits[:, :-1]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), block[:, 1:].reshape(-1))


def pretrain(
    settings: PretrainSettings, blocks: Tensor, *, on_step: Callable[[int, float], None] = lambda step, loss: None
) -> PretrainResult:
    """Trains on ``blocks`` [n, length] in seeded epochs: AdamW, warm-up then cosine to a tenth, fp32."""
    model = random_model(settings.architecture, seed=settings.seed)
    draw = generator(settings.seed, "order")
    count = settings.steps * settings.batch_size
    epochs = [torch.randperm(len(blocks), generator=draw) for _ in range(math.ceil(count / len(blocks)))]
    order = torch.cat(epochs)[:count]

    def loss_of(step: int) -> Tensor:
        model.eval()  # one or two epochs need no dropout; the config keeps the architecture's own for fine-tuning
        return language_model_loss(model, blocks[order[step * settings.batch_size :][: settings.batch_size]].long())

    started = time.monotonic()
    losses = optimise(
        "text", model, loss_of, steps=settings.steps, lr=settings.lr, warmup_steps=settings.warmup_steps, floor=0.1,
        betas=(0.9, 0.95), weight_decay=settings.weight_decay, max_grad_norm=settings.max_grad_norm, on_step=on_step,
    )  # fmt: skip
    model.eval()
    recent = losses[-50:]
    return PretrainResult(
        model=model,
        tokens_seen=count * settings.length,
        train_loss=sum(recent) / len(recent),
        seconds=time.monotonic() - started,
    )


@torch.no_grad()
def perplexity(model: PreTrainedModel, blocks: torch.Tensor, *, batch_size: int = 8) -> float:
    """exp of the mean next-token loss over held-out ``blocks`` [n, length]."""
    total, count = 0.0, 0
    for start in range(0, len(blocks), batch_size):
        batch = blocks[start : start + batch_size].long()
        total += language_model_loss(model, batch).item() * len(batch)
        count += len(batch)
    return math.exp(total / count)


def _files(folder: Path, patterns: list[str], *, what: str) -> list[Path]:
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    if not found:
        raise UserError(f"--corpus {folder}: none of {', '.join(patterns)} is there ({what})")
    return found


def make_text_base(name: str, recipe: dict[str, Any], *, corpus: Path, checkout: Path, out: Path | None) -> int:
    """Pretrains the recipe and writes assets/NAME with its card; returns the exit code."""
    console = Console(stderr=True)
    torch.set_num_threads(THREADS)
    train_files = _files(corpus, recipe["train"], what="training text")
    valid_files = _files(corpus, recipe["valid"], what="held-out text")
    held_out = [path for pattern in recipe["held_out"] for path in sorted(corpus.glob(pattern))]
    held_out += sorted((checkout / "data").glob("*/*.jsonl"))
    text = read_corpus(train_files, held_out=evaluation_texts(held_out))
    tokenizer = train_tokenizer(text.paragraphs, vocab_size=recipe["vocab_size"], whole=recipe.get("whole", ()))
    settings = PretrainSettings(**recipe["settings"])
    blocks = pack(text.paragraphs, tokenizer, length=settings.length)
    valid = pack(read_corpus(valid_files, held_out=()).paragraphs, tokenizer, length=settings.length)
    console.print(f"{name}: {len(text.paragraphs)} paragraphs ({text.num_dropped} dropped), {blocks.numel()} tokens")
    started = time.monotonic()

    def on_step(step: int, loss: float) -> None:
        if (step + 1) % 50 == 0:
            left = (time.monotonic() - started) / (step + 1) * (settings.steps - step - 1)
            console.print(f"step {step + 1}/{settings.steps}  loss {loss:.3f}  {left / 60:.1f} min left")

    result = pretrain(settings, blocks, on_step=on_step)
    folder = out or checkout / "assets" / name
    folder.mkdir(parents=True, exist_ok=True)
    result.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    facts = {
        "parameters": sum(p.numel() for p in result.model.parameters()),
        "steps": settings.steps,
        "seed": settings.seed,
        "threads": THREADS,
        "tokens_seen": result.tokens_seen,
        "training_tokens": blocks.numel(),
        "paragraphs_kept": len(text.paragraphs),
        "paragraphs_dropped": text.num_dropped,
        "training_text_sha256": text.sha256,
        "train_loss": round(result.train_loss, 4),
        "held_out_perplexity": round(perplexity(result.model, valid), 3),
        "held_out_tokens": valid.numel(),
        "seconds": round(result.seconds),
        "files": {file: sha256_file(folder / file) for file in SHIPPED},
        "sources": [
            {"path": str(path.relative_to(corpus)), "sha256": sha256_file(path)}
            for path in [*train_files, *valid_files]
        ],
        "libraries": provenance.library_versions(),
        "zero_shot": zero_shot(folder, checkout),
        "cpu": provenance.machine("cpu", THREADS)["cpu"],
    }
    write_atomic(folder / "pretraining.json", json.dumps(facts, indent=1) + "\n")
    write_atomic(folder / "README.md", card(name, recipe, facts))
    console.print(f"{folder}: held-out perplexity {facts['held_out_perplexity']} per token")
    console.print("put these into conf/model/" + name + ".yaml, files: " + json.dumps(facts["files"]))
    return 0


def zero_shot(folder: Path, checkout: Path) -> dict[str, dict[str, float]]:
    """The untrained base on the shipped validation rows (at most 64) of every few-shot task."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    length = model.config.max_position_embeddings
    found = {}
    for name in tasks.names("superglue"):
        task = tasks.load("superglue", name)
        lines = (
            (checkout / "data" / name / "validation.jsonl").read_text(encoding="utf-8").splitlines()[:_ZERO_SHOT_ROWS]
        )
        split = Split.encode([task.build(json.loads(line)) for line in lines], tokenizer, max_length=length)
        metrics, _ = Assessor(task, tokenizer, tokenizer.pad_token_id, True, length).measure(model, split)
        found[name] = {key: round(metrics[key], 4) for key in (task.METRIC, "gold_nll", "n")}
    return found


def card(name: str, recipe: dict[str, Any], facts: dict[str, Any]) -> str:
    """The model card."""
    scores = "\n".join(
        f"| {task} | {next(iter(s))} {100 * next(iter(s.values())):.1f} | {s['gold_nll']:.3f} | {s['n']:.0f} |"
        for task, s in facts["zero_shot"].items()
    )
    sources = "\n".join(f"- `{s['path']}` (sha256 `{s['sha256']}`)" for s in facts["sources"])
    architecture = ", ".join(f"{k} {v}" for k, v in recipe["settings"]["architecture"].items())
    notes = recipe.get("sources", "")
    return f"""# {name}

A small base model for rehearsing the experiments on a laptop, made by `nora pretrain {name}`. It is of the class the
paper uses and really pretrained, but {facts["parameters"]:,} parameters do not make a language model to rely on.

- **Architecture**: {architecture}.
- **Training**: {facts["steps"]} steps of {recipe["settings"]["batch_size"]} × {recipe["settings"]["length"]} tokens
  ({facts["tokens_seen"]:,} tokens, {facts["training_tokens"]:,} different), AdamW, seed {facts["seed"]},
  {facts["threads"]} thread, {facts["seconds"] // 60} minutes on a {facts["cpu"]}.
- **Final training loss** {facts["train_loss"]} nats per token; **held-out perplexity** {facts["held_out_perplexity"]}
  per token on {facts["held_out_tokens"]:,} tokens of two books not trained on.
- **Left out**: {facts["paragraphs_dropped"]:,} of {facts["paragraphs_dropped"] + facts["paragraphs_kept"]:,}
  paragraphs, each of which shares 13 consecutive words with a row of an evaluation set or of a shipped slice.
- Training text sha256 `{facts["training_text_sha256"]}`; recipe `conf/pretrain/{name}.yaml`; all facts in
  `pretraining.json`.

## Zero-shot

The shipped validation rows (at most 64) of each task, before any fine-tuning.

| task | score, % | loss of the gold answer, nats per token | rows |
|---|---|---|---|
{scores}

## Sources

{sources}

{notes}
"""
