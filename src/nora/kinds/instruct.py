"""``kind=finetune`` by an instruct protocol: train on instructions, generate answers, extract, score."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save

from nora import tasks
from nora.config.schema import FinetuneSpec, InstructProtocol, MethodSpec
from nora.errors import RunFailed
from nora.kinds import bases
from nora.kinds.recipe import (
    Outcome,
    RunContext,
    Update,
    at_boundary,
    diverged,
    epoch_order,
    loop_settings,
    make_preconditioner,
    pack_predictions,
    report_step,
    resume,
    seed_dropout,
    stop_if_asked,
)
from nora.kinds.rows import load_instruct_rows
from nora.kinds.sizing import Sizes, answering_table, explain_out_of_memory, measure, training_table
from nora.tasks.instruction import Instruction
from nora.tasks.metrics import score, set_accuracies
from nora.training.batches import EncodedText, encode_text
from nora.training.generation import MAX_TOKENS, Decoding, answer
from nora.training.loop import Diverged, LoopSettings, LoopState, make_state, num_steps, train
from nora.training.objectives import InstructObjective, mean_loss


def _loop_settings(protocol: InstructProtocol, num_rows: int, context: RunContext) -> LoopSettings:
    settings = loop_settings(
        protocol,
        epochs=protocol.epochs,
        warmup_steps=protocol.warmup_steps or 0,
        max_steps=protocol.max_steps,
        micro_batch_size=context.settings.micro_batch_size,
        evaluate_every=protocol.eval_every,
        keep_best=protocol.keep == "lowest_dev_loss",
        precondition_each=protocol.precondition == "micro_batch",
    )
    if protocol.warmup_ratio is None:
        return settings
    return dataclasses.replace(settings, warmup_steps=math.ceil(protocol.warmup_ratio * num_steps(num_rows, settings)))


def trained_method(method: MethodSpec, sketch: str) -> tuple[MethodSpec, list[str]]:
    """The method as it really starts, and what of the declared one is lost on the way."""
    if sketch == "applied" or method.init != "nystrom":
        return method, []
    started = dataclasses.replace(method, init="kaiming", xi=None, side=None, divide_by_scaling=None)
    return started, ["the declared Nyström start does not reach the weights: the start is Kaiming's"]


def _quirks(protocol: InstructProtocol) -> list[str]:
    quirks = []
    if protocol.precondition == "micro_batch":
        quirks.append("the preconditioner runs after every micro-batch")
    if protocol.precision == "bf16" and protocol.name.startswith("llm_adapters"):
        quirks.append("bf16 where the scripts use fp16 with loss scaling")
    return quirks


def _loss_scaling(state: LoopState) -> dict[str, Any]:
    """fp16 alone: steps that an overflow skipped, and the last scale of the loss."""
    return {} if state.scaler is None else {"skipped_steps": state.skipped, "loss_scale": state.scaler.get_scale()}


def _encode(
    rows: Sequence[Instruction], base: bases.Base, protocol: InstructProtocol
) -> tuple[list[EncodedText], dict[str, int]]:
    """Token ids, and per set how many answers the cut-off takes something of."""
    eos = base.tokenizer.eos_token_id
    texts = [
        encode_text(row, base.tokenizer, cutoff=protocol.cutoff, loss_on=protocol.loss_on, eos=int(eos)) for row in rows
    ]
    cut = Counter(row.set for row, text in zip(rows, texts, strict=True) if text.answer_cut)
    return texts, dict(sorted(cut.items()))


def _tested(
    model: Any,
    *,
    rows: Sequence[Instruction],
    task: ModuleType,
    base: bases.Base,
    decoding: Decoding,
    sizes: Sizes,
    between: Callable[[], None],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Per set: accuracy, rows, answers no pattern matches; and one prediction per row with its raw text."""
    prompts = [row.question for row in rows]
    with explain_out_of_memory("generating answers", answering_table(sizes, tried=decoding.max_tokens)):
        texts = answer(model, prompts, base.tokenizer, decoding, pad_id=base.pad_id, between=between)
    predictions = [
        {
            "set": row.set,
            "prediction": task.extract(row.question + text if task.READS_PROMPT else text, row.set),
            "answer": row.answer,
            "text": text,
        }
        for row, text in zip(rows, texts, strict=True)
    ]
    unanswered = Counter(p["set"] for p in predictions if p["prediction"] == "")
    sets = {
        name: {"accuracy": accuracy, "n": n, "unanswered": unanswered[name]}
        for name, (accuracy, n) in set_accuracies(predictions).items()
    }
    # What the answers cost, in one pass and without generation: a small model may be wrong everywhere.
    gold = [
        encode_text(
            dataclasses.replace(row, prompt=row.question), base.tokenizer, cutoff=decoding.max_length, loss_on="answer",
            eos=int(base.tokenizer.eos_token_id),
        )
        for row in rows
    ]  # fmt: skip
    metrics = {
        task.METRIC: score(task.METRIC, predictions),
        "gold_nll": mean_loss(model, gold, pad_id=base.pad_id),
        "n": len(rows),
        "sets": sets,
    }
    return metrics, predictions


def majority(train: Sequence[Instruction], test: Sequence[Instruction]) -> float | None:
    """Mean over the sets of the accuracy of a set's most frequent training answer; None where sets do not match."""
    counts: dict[str, Counter[str]] = {}
    for row in train:
        counts.setdefault(row.set, Counter())[row.answer] += 1
    right: dict[str, list[bool]] = {}
    for row in test:
        if row.set not in counts:
            return None
        right.setdefault(row.set, []).append(row.answer == counts[row.set].most_common(1)[0][0])
    return sum(sum(hits) / len(hits) for hits in right.values()) / len(right)


def execute(spec: FinetuneSpec, protocol: InstructProtocol, context: RunContext) -> Outcome:
    """Trains and evaluates one run; returns metrics, the init proof, predictions and the adapter."""
    started = time.monotonic()
    task = tasks.load(spec.task.suite, spec.task.name)
    base = bases.load_base(spec.model, context.checkout, context.device, keep=context.keep_base)
    rows = load_instruct_rows(spec.task, task, context.checkout, seed=spec.seed)
    try:
        training, cut = _encode(rows.train, base, protocol)
        dev, _ = _encode(rows.dev, base, protocol)
    except ValueError as error:
        raise RunFailed(str(error)) from None

    method, quirks = trained_method(spec.method, protocol.sketch)
    probe = {"input_ids": torch.tensor([training[0].ids], device=context.device)}
    adapted = bases.add_adapter(base, method, spec.model.targets, seed=spec.seed, probe=probe)
    model = adapted.model
    settings = _loop_settings(protocol, len(training), context)
    preconditioner = make_preconditioner(method, model)
    state = make_state(model, settings, num_examples=len(training), preconditioner=preconditioner)
    tokens = sum(len(text.ids) for text in training)
    common: dict[str, Any] = {
        "trainable_parameters": sum(p.numel() for p in state.parameters.values()),
        "rows": {"train": len(training), "dev": len(dev), "test": len(rows.test)},
        "tokens": {"train": tokens, "scored": sum(text.num_scored for text in training)},
        "cut_answers": cut,
        "quirks": [*quirks, *_quirks(protocol)],
        "majority": majority(rows.train, rows.test),
    }
    sizes = measure(model, longest=max(len(text.ids) for text in training), precision=protocol.precision)
    tested = partial(
        _tested,
        model,
        task=task,
        base=base,
        decoding=Decoding(
            beams=protocol.beams,
            max_new_tokens=protocol.max_new_tokens,
            max_length=spec.model.max_length,
            max_tokens=context.settings.generate_tokens or MAX_TOKENS,
            backend=protocol.eval_backend,
        ),
        sizes=sizes,
        between=partial(stop_if_asked, context, state),
    )
    if "zero_shot" in spec.measure:  # the proof has just shown that the untrained adapter changes nothing
        common["zero_shot"], _ = tested(rows=rows.test)
    timing: dict[str, Any] = {"setup_seconds": time.monotonic() - started, "resumed_at_step": resume(state, context)}
    training_started = time.monotonic()
    try:
        with explain_out_of_memory("training", training_table(sizes, protocol.batch_size, settings.micro_batch_size)):
            train(
                model,
                InstructObjective(training, base.pad_id),
                settings,
                state,
                order=partial(epoch_order, spec.seed, len(training)),
                before_step=lambda step: seed_dropout(spec.seed, step, context.replicas),
                evaluate=lambda trained: {"loss": mean_loss(trained, dev, pad_id=base.pad_id)},
                on_step=partial(report_step, context),
                on_boundary=partial(at_boundary, context, num_steps(len(training), settings)),
                replicas=context.replicas,
            )
    except Diverged as error:
        common |= _loss_scaling(state)
        return diverged(error, {**common, "epochs": state.dev_log}, adapted.proof.to_dict(), timing)
    common |= _loss_scaling(state)
    timing["train_seconds"] = time.monotonic() - training_started
    context.report(Update("test", 0, 1, {}))
    adapter = save({name: p.detach().contiguous().cpu() for name, p in state.parameters.items()})
    best = state.best_evaluation if protocol.keep == "lowest_dev_loss" else len(state.dev_log) - 1
    kept = state.dev_log[best] if best is not None and state.dev_log else {"loss": math.nan}
    if protocol.merge:
        model.merge_adapter()
    test, predictions = tested(rows=rows.test)
    scored_dev: dict[str, Any] = {}
    if task.DEV_IS_SCORED:
        scored_dev, _ = tested(rows=rows.dev_questions)
    metrics = {**common, "steps": state.step, "epochs": state.dev_log, "dev": {**kept, **scored_dev}, "test": test}
    timing["seconds"] = time.monotonic() - started
    return Outcome(
        metrics=metrics,
        proof=adapted.proof.to_dict(),
        run=timing,
        files={
            "predictions": ("predictions", ".jsonl.gz", pack_predictions(predictions), True),
            "adapter": ("adapter", ".safetensors", adapter, context.settings.keep_adapter),
        },
    )
