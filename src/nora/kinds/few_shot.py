"""``kind=finetune`` by the few-shot protocol: one base, one task, one method."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from nora import tasks
from nora.adapters import inits, lora_layers
from nora.adapters.spectrum import moved_singular_values
from nora.config.schema import FinetuneSpec, InstructProtocol
from nora.errors import RunFailed
from nora.kinds import bases, instruct
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
from nora.kinds.sizing import explain_out_of_memory, measure, training_table
from nora.tasks.example import Example
from nora.tasks.sampling import draw_subsets
from nora.training.loop import Diverged, LoopState, make_state, num_steps, train
from nora.training.objectives import ClassificationObjective, OptionLMObjective
from nora.training.scoring import Assessor, Split


def majority_accuracy(train: Sequence[Example], test: Sequence[Example]) -> float | None:
    """Test accuracy of always answering the training set's most frequent class; None where classes are not shared."""
    if len({e.candidates for e in train}) != 1:
        return None
    ((label, _),) = Counter(e.gold for e in train).most_common(1)
    return sum(label in e.correct for e in test) / len(test)


def execute(spec: FinetuneSpec, context: RunContext) -> Outcome:
    """Trains and evaluates one run; returns metrics, the init proof, predictions and the adapter."""
    if isinstance(spec.protocol, InstructProtocol):
        return instruct.execute(spec, spec.protocol, context)
    started = time.monotonic()
    protocol = spec.protocol
    task = tasks.load(spec.task.suite, spec.task.name)
    base = bases.load_base(spec.model, context.checkout, context.device, keep=context.keep_base)
    rows = bases.load_rows(spec.task, task, context.checkout)
    subsets = draw_subsets(
        *rows,
        seed=spec.seed,
        num_train=spec.task.num_train,
        num_dev=spec.task.num_dev,
        num_test=spec.task.num_test,
    )
    try:
        training, dev, test = (
            Split.encode(
                [task.build(row) for row in rows],
                base.tokenizer,
                max_length=spec.model.max_length,
                bos=spec.model.bos_token_id,
            )
            for rows in subsets
        )
    except ValueError as error:
        raise RunFailed(str(error)) from None

    probe_ids = torch.tensor([training.encoded[0].sequences[0]], device=context.device)
    adapted = bases.add_adapter(base, spec.method, spec.model.targets, seed=spec.seed, probe={"input_ids": probe_ids})
    model = adapted.model
    share = protocol.share_prompt
    if task.LOSS == "classification":
        objective: Any = ClassificationObjective(training.encoded, training.gold, base.pad_id, share)
    else:
        objective = OptionLMObjective(training.encoded, training.gold, base.pad_id)

    assessor = Assessor(task, base.tokenizer, base.pad_id, share, spec.model.max_length)
    settings = loop_settings(
        protocol,
        epochs=protocol.epochs,
        warmup_steps=protocol.warmup_steps,
        max_steps=protocol.max_steps,
        micro_batch_size=context.settings.micro_batch_size,
    )
    preconditioner = make_preconditioner(spec.method, model)
    state = make_state(model, settings, num_examples=len(training), preconditioner=preconditioner)
    common: dict[str, Any] = {
        "trainable_parameters": sum(p.numel() for p in state.parameters.values()),
        "rows": {"train": len(training), "dev": len(dev), "test": len(test)},
        "truncated_tokens": sum(e.truncated for split in (training, dev, test) for e in split.encoded),
        "majority_accuracy": majority_accuracy(training.examples, test.examples),
    }
    if "zero_shot" in spec.measure:  # the proof has just shown that the untrained adapter changes nothing
        common["zero_shot"] = assessor.measure(model, test)[0]
    resumed = resume(state, context)
    timing = {"setup_seconds": time.monotonic() - started, "resumed_at_step": resumed, "base_moved": _moves_base(spec)}
    training_started = time.monotonic()
    total_steps = num_steps(len(training), settings)

    longest = max(sum(len(ids) for ids in example.sequences) for example in training.encoded)
    sizes = measure(model, longest=longest, precision=protocol.precision)

    try:
        with explain_out_of_memory("training", training_table(sizes, protocol.batch_size, settings.micro_batch_size)):
            train(
                model,
                objective,
                settings,
                state,
                order=partial(epoch_order, spec.seed, len(training)),
                before_step=lambda step: seed_dropout(spec.seed, step),
                evaluate=lambda trained: assessor.loss(trained, dev),
                on_step=partial(report_step, context),
                on_boundary=partial(at_boundary, context, total_steps),
            )
    except Diverged as error:
        return diverged(error, {**common, "epochs": state.dev_log}, adapted.proof.to_dict(), timing)
    timing["train_seconds"] = time.monotonic() - training_started
    context.report(Update("test", 0, 1, {}))
    assessor = replace(assessor, between=partial(stop_if_asked, context, state))
    test_metrics, predictions = assessor.measure(model, test)
    metrics = {
        **common,
        "steps": state.step,
        "epochs": state.dev_log,
        "best_epoch": state.best_epoch,
        "dev": _dev_metrics(assessor, model, dev, state),
        "test": test_metrics,
    }
    if "spectrum" in spec.measure and spec.method.adapter == "lora":
        metrics["spectrum"] = moved_singular_values(lora_layers(model), adapted.pretrained)
    adapter = save({name: p.detach().contiguous().cpu() for name, p in state.parameters.items()})
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


def _moves_base(spec: FinetuneSpec) -> bool:
    """Whether the init changes the frozen weights (PiSSA, OLoRA)."""
    return spec.method.adapter == "lora" and bool(inits.load(spec.method.init).MOVES_BASE)


def _dev_metrics(assessor: Assessor, model: nn.Module, dev: Split, state: LoopState) -> dict[str, Any]:
    """Dev metrics of the kept epoch; the task's metric is computed now where the epochs recorded the loss alone."""
    best = next((entry for entry in state.dev_log if entry["epoch"] == state.best_epoch), None)
    if best is not None and assessor.task.METRIC in best:
        return best
    return {**(best or {}), **assessor.measure(model, dev)[0]}
