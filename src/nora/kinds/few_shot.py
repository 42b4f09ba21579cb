"""``kind=finetune`` by the few-shot protocol (paper, Table 2): one base, one task, one method."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from pydantic.dataclasses import dataclass

from nora import tasks
from nora.config.pins import HELD_OUT, WINDOW, check_files
from nora.config.schema import STRICT, Count, MethodSpec, ModelSpec, Seed, Size, TaskSpec, TrainingProtocol
from nora.errors import RunFailed, UserError
from nora.files import Json, canonical_json
from nora.kinds.parts.cost import Cost, Label, training_cost
from nora.kinds.parts.known import quantises

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from nora.kinds import FinetuneSpec
    from nora.kinds.parts.recipe import Outcome, Prepared, RunContext
    from nora.tasks.example import Example
    from nora.training.loop import LoopState
    from nora.training.scoring import Assessor, Measured, Split


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FewShotProtocol(TrainingProtocol):
    """Training and evaluation rules of the few-shot tasks."""

    name: Literal["mezo"]
    epochs: Size
    warmup_steps: Size
    precision: Literal["fp32", "bf16"]
    share_prompt: bool
    """Whether the candidates of an example share one row that holds its prompt once (with dropout other masks)."""
    share_when_scoring: bool | None = None
    """The same where nothing is trained, exact in any case; null: as ``share_prompt``."""
    max_steps: Count | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Spec:
    """One base model, one task, one method."""

    kind: Literal["finetune"]
    model: ModelSpec
    task: TaskSpec
    method: MethodSpec
    protocol: FewShotProtocol
    seed: Seed
    measure: list[Literal["spectrum", "zero_shot", "sharpness", "forgetting"]]


def label(spec: FinetuneSpec) -> Label:
    """A method on a task and a base."""
    names = (spec.method.name, spec.task.name, spec.model.name)
    return Label(names[0], f"{names[1]}, {names[2]}", names)


def headline(metrics: Mapping[str, Json]) -> str:
    """The test scores."""
    test = metrics["test"]
    scores = ", ".join(f"{k} {v:.4g}" for k, v in test.items() if k != "n" and not isinstance(v, Mapping))
    return f"{scores} on {test['n']} test rows"


def like(spec: FinetuneSpec) -> tuple[str, str, str]:
    """Runs of one base, task and method cost about the same."""
    return spec.model.name, spec.task.name, spec.method.name


def check(spec: Spec, checkout: Path) -> None:
    """UserError if the base is not installed here, or the untrained one is asked for and the start quantises it."""
    check_base(spec.model, checkout)
    if "zero_shot" in spec.measure and quantises(spec.method.init):
        raise UserError(
            f"measure: given zero_shot with init={spec.method.init}, which leaves no untrained base to measure"
        )
    if "forgetting" in spec.measure:
        if spec.model.max_length < WINDOW:
            raise UserError(
                f"measure: given forgetting with model.max_length={spec.model.max_length}, required {WINDOW} or more"
            )
        try:
            check_files(checkout / "data", HELD_OUT)
        except RunFailed as error:
            raise UserError(f"measure: given forgetting; {error}") from None


def check_base(model: ModelSpec, checkout: Path) -> None:
    """UserError if a base's GGUF file, or what reads it, is not installed here."""
    if model.source in ("gguf", "package"):
        from nora.kinds.parts.gguf import gguf_file

        gguf_file(model, checkout)


def cost(spec: Spec, micro_batch_size: int | None = None) -> Cost:
    """From the tokens of the task's rows; memory with this part of a batch at once (null: all of it)."""
    task, rows, epochs = tasks.of(spec.task), spec.task, spec.protocol.epochs
    tokens = task.TOKENS * task.OPTIONS
    return training_cost(
        spec.model.name,
        spec.model.dtype,
        spec.protocol.precision,
        trained=rows.num_train * tokens * epochs,
        scored=(rows.num_dev * epochs + rows.num_test) * tokens,
        kept=(micro_batch_size or spec.protocol.batch_size) * (task.TOKENS * min(task.OPTIONS, 4)) * 1.5,
        source="estimate: 4N FLOP per trained token at 20 % of an H100",
    )


def step_tokens(spec: Spec) -> int:
    """About how many tokens one optimiser step reads."""
    task = tasks.of(spec.task)
    rows = 1 if spec.protocol.share_prompt or task.LOSS != "classification" else task.OPTIONS
    return spec.protocol.batch_size * int(task.TOKENS) * int(rows)


def majority_accuracy(train: Sequence[Example], test: Sequence[Example]) -> float | None:
    """Test accuracy of always answering the training set's most frequent class; None if classes are not shared."""
    if len({e.candidates for e in train}) != 1:
        return None
    ((most, _),) = Counter(e.gold for e in train).most_common(1)
    return sum(most in e.correct for e in test) / len(test)


def _splits(
    spec: Spec, task: ModuleType, tokenizer: PreTrainedTokenizerBase, context: RunContext
) -> tuple[Split, Split, Split]:
    """Training, dev and test rows with their token ids. RunFailed where an answer does not fit."""
    from nora.kinds.parts.bases import made_once
    from nora.kinds.parts.rows import few_shot_rows
    from nora.training.scoring import Split

    def encode() -> tuple[Split, Split, Split]:
        length, bos = spec.model.max_length, spec.model.bos_token_id
        training, dev, test = (
            Split.encode([task.build(row) for row in rows], tokenizer, max_length=length, bos=bos)
            for rows in few_shot_rows(spec.task, task, context.checkout, seed=spec.seed)
        )
        return training, dev, test

    key = canonical_json([str(context.checkout), asdict(spec.model), asdict(spec.task), spec.seed])
    try:
        return made_once("rows", key, encode, keep=context.keep_base)
    except ValueError as error:
        raise RunFailed(str(error)) from None


def prepare(spec: Spec, context: RunContext) -> Prepared:
    """A run up to its first step: base, rows, adapter with its proof, what an earlier attempt left."""
    import torch

    from nora.adapters import lora_layers
    from nora.kinds.parts import bases
    from nora.kinds.parts.kept import KeptAdapter
    from nora.kinds.parts.recipe import Prepared, TrainingRun, loop_settings, seed_dropout
    from nora.kinds.parts.rows import held_out_windows
    from nora.kinds.parts.sizing import measure, training_table
    from nora.training.loop import BankedObjective, Diverged
    from nora.training.measures import forgetting, moved_singular_values, text_losses
    from nora.training.objectives import ClassificationObjective, OptionLMObjective
    from nora.training.scoring import Assessor

    started = time.monotonic()
    protocol = spec.protocol
    task = tasks.of(spec.task)
    base = bases.load_base(
        spec.model, context.checkout, context.device, keep=context.keep_base, share=context.share_base
    )
    training, dev, test = _splits(spec, task, base.tokenizer, context)
    probe_ids = torch.tensor([training.encoded[0].sequences[0]], device=context.device)
    share = protocol.share_prompt
    windows, unforgotten = None, torch.empty(0)
    if "forgetting" in spec.measure:  # of the base before an adapter is on it: a start may move it
        windows = held_out_windows(base.tokenizer, spec.model.bos_token_id, context.checkout)
        known = canonical_json(asdict(spec.model))
        unforgotten = bases.made_once(
            "held out", known, lambda: text_losses(base.model, windows), keep=context.keep_base
        )
    objective: BankedObjective
    if task.LOSS == "classification":
        objective = ClassificationObjective(training.encoded, training.gold, base.pad_id, share)
    else:
        objective = OptionLMObjective(training.encoded, training.gold, base.pad_id)
    adapted = bases.add_adapter(
        base, spec.method, spec.model.targets, seed=spec.seed, probe={"input_ids": probe_ids},
        rows=bases.rows_of(objective),
    )  # fmt: skip
    model = adapted.model
    kept = KeptAdapter(spec, model, spec.method) if context.settings.keep_adapter else None
    shared = share if protocol.share_when_scoring is None else protocol.share_when_scoring
    half = protocol.precision == "bf16" and spec.model.dtype == "float32"  # a base in 16 bits is scored as it is
    assessor = Assessor(task, base.tokenizer, base.pad_id, shared, spec.model.max_length, bf16=half)
    settings = loop_settings(
        protocol,
        precision=protocol.precision,
        epochs=protocol.epochs,
        warmup_steps=protocol.warmup_steps,
        max_steps=protocol.max_steps,
        micro_batch_size=context.settings.micro_batch_size,
    )
    run = TrainingRun(context, model, spec.method, settings, adapted.proof, seed=spec.seed, num_examples=len(training))
    common: dict[str, Json] = {
        "trainable_parameters": run.num_trained,
        "rows": {"train": len(training), "dev": len(dev), "test": len(test)},
        "truncated_tokens": sum(e.truncated for split in (training, dev, test) for e in split.encoded),
        "majority_accuracy": majority_accuracy(training.examples, test.examples),
    }
    if "zero_shot" in spec.measure:
        key = canonical_json([asdict(spec.model), asdict(spec.task), spec.seed, shared, half])
        moved = bases.moves_base(spec.method)  # such a base gives the same answers to rounding, the others to the bit
        zero = replace(assessor, between=run.between("zero shot"))
        with bases.untouched(model, spec.method):
            common["zero_shot"] = bases.made_once(
                "zero shot", key, lambda: zero.measure(model, test)[0], keep=context.keep_base and not moved
            )
    if "sharpness" in spec.measure:
        rows = bases.rows_of(objective).stream(bases.SHARPNESS_ROWS, spec.seed, "sharpness rows")
        common["sharpness"] = bases.measure_sharpness(
            model, lambda m: objective.loss(m, rows) / objective.count(rows), spec.seed, rows=len(rows)
        )
    run.resume(since=started)
    run.timing |= adapted.cost
    run.timing["base_moved"] = bases.moves_base(spec.method)
    longest = max(sum(len(ids) for ids in example.sequences) for example in training.encoded)
    sizes = measure(model, longest=longest, precision=protocol.precision)

    def ended(error: Diverged) -> Outcome:
        return run.diverged(error, {**common, "epochs": run.state.dev_log})

    stoppable = replace(assessor, between=run.between("test"))

    def finish(tested: Measured | None = None) -> Outcome:
        test_metrics, predictions = tested or stoppable.measure(model, test)
        metrics: dict[str, Json] = {
            **common,
            "steps": run.state.step,
            "epochs": run.state.dev_log,
            "best_epoch": run.state.best_epoch,
            "dev": _dev_metrics(stoppable, model, dev, run.state),
            "test": test_metrics,
        }
        if "spectrum" in spec.measure and spec.method.adapter == "lora":
            metrics["spectrum"] = moved_singular_values(lora_layers(model), adapted.pretrained)
        if windows is not None:
            metrics["forgetting"] = forgetting(unforgotten, text_losses(model, windows))
        files = run.text_files(predictions, run.adapter_bytes())
        return run.outcome(metrics, files, since=started, beside=kept.files() if kept else {})

    return Prepared(
        run,
        model,
        objective,
        seed_step=lambda step: seed_dropout(spec.seed, step),
        evaluate=lambda trained, members: assessor.losses(trained, dev, members),
        memory=training_table(sizes, protocol.batch_size, settings.micro_batch_size),
        ended=ended,
        finish=finish,
        test=None if assessor.generates else lambda bank, members: stoppable.measures(bank, test, members),
        base=base.shared,
        subtracted=adapted.subtracted,
    )


def _dev_metrics(assessor: Assessor, model: nn.Module, dev: Split, state: LoopState) -> dict[str, Json]:
    """Dev metrics of the kept epoch; the task's metric is computed now if the epochs recorded the loss alone."""
    best = next((entry for entry in state.dev_log if entry["epoch"] == state.best_epoch), None)
    if best is not None and assessor.task.METRIC in best:
        return best
    return {**(best or {}), **assessor.measure(model, dev)[0]}
