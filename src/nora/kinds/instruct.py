"""``kind=finetune`` by an instruct protocol (paper, Tables 4 and 9): train on instructions, generate answers, score."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from nora import tasks
from nora.config.schema import STRICT, Count, MethodSpec, ModelSpec, Seed, Size, TaskSpec, TrainingProtocol
from nora.errors import RunFailed, UserError
from nora.files import Json
from nora.kinds import few_shot
from nora.kinds.parts.cost import Cost, training_cost
from nora.tasks.instruction import Instruction
from nora.tasks.metrics import score, set_accuracies

if TYPE_CHECKING:
    from peft import PeftModel

    from nora.kinds.parts.bases import Base
    from nora.kinds.parts.recipe import Outcome, Prepared, RunContext
    from nora.kinds.parts.sizing import Sizes
    from nora.training.batches import EncodedText
    from nora.training.generation import Decoding
    from nora.training.loop import LoopSettings, LoopState

_DECODED_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InstructProtocol(TrainingProtocol):
    """Training on instructions and scoring generated answers."""

    name: Literal["llm_adapters", "llm_adapters_released", "llm_adapters_modern", "metamath"]
    epochs: Size
    warmup_steps: Size | None = None
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    precision: Literal["fp32", "bf16", "fp16"]
    """fp16: autocast with a scaled loss, as the paper's scripts train (their base is model.dtype=float16)."""
    cutoff: Count
    """Tokens of a training text; a longer one is cut on the right (and has no end-of-sequence token)."""
    loss_on: Literal["text", "answer"]
    eval_every: Count | None = None
    """Steps between dev losses; null: at the end of each epoch."""
    keep: Literal["lowest_dev_loss", "last"]
    beams: Count
    max_new_tokens: Count
    merge: bool
    """Whether the adapter is merged into the weights before answers are generated."""
    sketch: Literal["applied", "lost"]
    """"lost" reproduces the released code: a Nyström init is declared and Kaiming's is what trains."""
    precondition: Literal["step", "micro_batch"]
    max_steps: Count | None = None
    eval_backend: Literal["vllm"] | None = None
    """What generates the answers; null: transformers."""

    @model_validator(mode="after")
    def _fields_fit(self) -> InstructProtocol:
        problems = []
        if (self.warmup_steps is None) == (self.warmup_ratio is None):
            problems.append("give either warmup_steps or warmup_ratio")
        if self.eval_backend == "vllm" and self.beams != 1:
            problems.append(f"beams: given {self.beams}, required 1 with eval_backend=vllm (greedy protocols alone)")
        if problems:
            raise ValueError("; ".join(problems))
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Spec:
    """One base model, one task, one method."""

    kind: Literal["finetune"]
    model: ModelSpec
    task: TaskSpec
    method: MethodSpec
    protocol: InstructProtocol
    seed: Seed
    measure: list[Literal["spectrum", "zero_shot", "likelihood"]]

    @model_validator(mode="after")
    def _parts_fit(self) -> Spec:
        if self.method.adapter != "lora":
            merging = "merge" if self.protocol.merge else "eval_backend" if self.protocol.eval_backend else None
            if merging is not None:
                raise ValueError(
                    f"protocol.{merging}: merges the adapter into the weights, which adapter={self.method.adapter} "
                    "cannot; required adapter=lora"
                )
        return self


label, headline, like = few_shot.label, few_shot.headline, few_shot.like


def check(spec: Spec, checkout: Path) -> None:
    """UserError if a base or a library the run asks for is not installed, or a task lists no answers to compare."""
    few_shot.check_base(spec.model, checkout)
    if "likelihood" in spec.measure and not hasattr(tasks.of(spec.task), "choices"):
        raise UserError(f"measure: given likelihood, which {spec.task.name} has not: its questions list no answers")
    backend = spec.protocol.eval_backend
    if backend is not None and importlib.util.find_spec(backend) is None:
        raise UserError(
            f"protocol.eval_backend: given {backend}, which is not installed here; install it, or leave the field out "
            "(transformers answers)"
        )


def neutral_exec(spec: Spec) -> tuple[str, ...]:
    """Settings of exec that would change a number of this run: they must be null."""
    each = spec.protocol.precondition == "micro_batch" and spec.method.preconditioner is not None
    return ("micro_batch_size", "data_parallel") if each else ()


def cost(spec: Spec, micro_batch_size: int | None = None) -> Cost:
    """From the tokens of the task's texts and the answers that are generated; memory with this part of a batch at once
    (null: all of it)."""
    task, rows, protocol = tasks.of(spec.task), spec.task, spec.protocol
    steps = protocol.epochs * -(-rows.num_train // protocol.batch_size)
    evaluations = steps // protocol.eval_every if protocol.eval_every else protocol.epochs
    answers = min(task.NUM_TEST_ROWS, len(task.SETS) * rows.num_test)
    answers += rows.num_dev if task.DEV_IS_SCORED else 0
    return training_cost(
        spec.model.name,
        spec.model.dtype,
        spec.protocol.precision,
        trained=rows.num_train * task.TEXT_TOKENS * protocol.epochs,
        scored=evaluations * rows.num_dev * task.TEXT_TOKENS,
        kept=(micro_batch_size or protocol.batch_size) * task.TEXT_TOKENS * 1.5,
        decoded=answers / _DECODED_AT_ONCE * task.ANSWER_TOKENS,
        source="estimate: 4N FLOP per trained token at 20 % of an H100, 30 ms per decoding step of 32 answers",
    )


def step_tokens(spec: Spec) -> int:
    """About how many tokens one optimiser step reads."""
    return spec.protocol.batch_size * int(tasks.of(spec.task).TEXT_TOKENS)


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


def _loss_scaling(state: LoopState) -> dict[str, Json]:
    """fp16 alone: steps that an overflow skipped, and the last scale of the loss."""
    return {} if state.scaler is None else {"skipped_steps": state.skipped, "loss_scale": state.scaler.get_scale()}


def _loop_settings(protocol: InstructProtocol, num_rows: int, context: RunContext) -> LoopSettings:
    from nora.kinds.parts.recipe import loop_settings
    from nora.training.loop import num_steps

    settings = loop_settings(
        protocol,
        precision=protocol.precision,
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


def _encode(
    rows: Sequence[Instruction], base: Base, protocol: InstructProtocol
) -> tuple[list[EncodedText], dict[str, int], dict[str, int]]:
    """Token ids; per set how many answers the cut-off takes something of (``cut``), and all of (``lost``)."""
    from nora.training.batches import encode_text

    eos = int(base.tokenizer.eos_token_id)
    texts = [
        encode_text(row, base.tokenizer, cutoff=protocol.cutoff, loss_on=protocol.loss_on, eos=eos) for row in rows
    ]
    cut = Counter(row.set for row, text in zip(rows, texts, strict=True) if text.answer_cut)
    lost = Counter(row.set for row, text in zip(rows, texts, strict=True) if not text.num_scored)
    return texts, dict(sorted(cut.items())), dict(sorted(lost.items()))


def _tested(
    model: PeftModel,
    *,
    rows: Sequence[Instruction],
    task: ModuleType,
    base: Base,
    decoding: Decoding,
    sizes: Sizes,
    typed_tokens: int | None,
    likelihood: bool,
    between: Callable[[int, int], None],
) -> tuple[dict[str, Json], list[dict[str, Json]]]:
    """Per set: accuracy, rows, answers no pattern matches; and one prediction per row with its raw text."""
    from nora.kinds.parts.sizing import answering_table, explain_out_of_memory, tokens_at_once
    from nora.training.batches import encode_text
    from nora.training.generation import answer
    from nora.training.objectives import free_memory, mean_loss
    from nora.training.scoring import by_likelihood

    if typed_tokens is None and model.device.type == "cuda":
        decoding = dataclasses.replace(decoding, max_tokens=tokens_at_once(sizes, free_memory(model.device)))
    prompts = [row.question for row in rows]
    with explain_out_of_memory("generating answers", answering_table(sizes, tried=decoding.max_tokens)):
        texts = answer(model, prompts, base.tokenizer, decoding, pad_id=base.pad_id, between=between)
    predictions = [
        {
            "set": row.set,
            "prediction": task.extract(row.question + text if task.READS_PROMPT else text, row.set),
            "answer": row.answer,
            "text": text,
            **({"references": [row.answer]} if task.METRIC == "f1" else {}),
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
    extra = {}
    if likelihood:
        listed = [(row.set, task.choices(row)) for row in rows]
        extra["likelihood"] = by_likelihood(
            model, listed, base.tokenizer, pad_id=base.pad_id, max_length=decoding.max_length
        )
    metrics = {
        task.METRIC: score(task.METRIC, predictions),
        "gold_nll": mean_loss(model, gold, pad_id=base.pad_id),
        "n": len(rows),
        "sets": sets,
        **extra,
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


def prepare(spec: Spec, context: RunContext) -> Prepared:
    """A run up to its first step: base, rows, adapter with its proof, what an earlier attempt left."""
    import torch

    from nora.adapters import lora_layers
    from nora.kinds.parts import bases
    from nora.kinds.parts.kept import KeptAdapter
    from nora.kinds.parts.recipe import Prepared, TrainingRun, seed_dropout
    from nora.kinds.parts.rows import load_instruct_rows
    from nora.kinds.parts.sizing import measure, training_table
    from nora.training.generation import MAX_TOKENS, Decoding
    from nora.training.loop import Diverged
    from nora.training.objectives import InstructObjective, mean_losses

    started = time.monotonic()
    protocol = spec.protocol
    task = tasks.of(spec.task)
    base = bases.load_base(
        spec.model, context.checkout, context.device, keep=context.keep_base, share=context.share_base
    )
    rows = load_instruct_rows(spec.task, task, context.checkout, seed=spec.seed)
    training, cut, lost = _encode(rows.train, base, protocol)
    dev, _, lost_dev = _encode(rows.dev, base, protocol)
    if sum(lost.values()) == len(training) or sum(lost_dev.values()) == len(dev):
        raise RunFailed(f"protocol.cutoff: given {protocol.cutoff}, no answer token of any training or dev row is left")

    method, quirks = trained_method(spec.method, protocol.sketch)
    probe = {"input_ids": torch.tensor([training[0].ids], device=context.device)}
    objective = InstructObjective(training, base.pad_id)
    rows_seen = bases.rows_of(objective)
    adapted = bases.add_adapter(base, method, spec.model.targets, seed=spec.seed, probe=probe, rows=rows_seen)
    model = adapted.model
    keeper = KeptAdapter(spec, model, method) if context.settings.keep_adapter else None
    settings = _loop_settings(protocol, len(training), context)
    run = TrainingRun(context, model, method, settings, adapted.proof, seed=spec.seed, num_examples=len(training))
    common: dict[str, Json] = {
        "trainable_parameters": run.num_trained,
        "rows": {"train": len(training), "dev": len(dev), "test": len(rows.test)},
        "tokens": {
            "train": sum(len(text.ids) for text in training),
            "scored": sum(text.num_scored for text in training),
        },
        "cut_answers": cut,
        "quirks": [*quirks, *_quirks(protocol)],
        "majority": majority(rows.train, rows.test),
    }
    if lost:
        common["lost_answers"] = lost
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
        typed_tokens=context.settings.generate_tokens,
        likelihood="likelihood" in spec.measure,
    )
    if "zero_shot" in spec.measure:
        with bases.untouched(model, method):
            common["zero_shot"], _ = tested(rows=rows.test, between=run.between("zero shot"))
    run.resume(since=started)
    run.timing |= adapted.cost
    state = run.state

    def ended(error: Diverged) -> Outcome:
        return run.diverged(error, {**common, **_loss_scaling(state), "epochs": state.dev_log})

    def finish() -> Outcome:
        adapter, beside = run.adapter_bytes(), keeper.files() if keeper else {}
        best = state.best_evaluation if protocol.keep == "lowest_dev_loss" else len(state.dev_log) - 1
        kept = state.dev_log[best] if best is not None and state.dev_log else {"loss": math.nan}
        if protocol.merge:
            if base.shared is not None:
                bases.own_weights_(layer.module.get_base_layer() for layer in lora_layers(model))
            model.merge_adapter()  # in the base's own dtype, as the scripts merge in theirs
            run.timing["merged_in"] = spec.model.dtype
        test, predictions = tested(rows=rows.test, between=run.between("test"))
        dev_rows = rows.dev_questions if task.DEV_IS_SCORED else []
        scored_dev = tested(rows=dev_rows, between=run.between("dev"))[0] if dev_rows else {}
        metrics = {
            **common,
            **_loss_scaling(state),
            "steps": state.step,
            "epochs": state.dev_log,
            "dev": {**kept, **scored_dev},
            "test": test,
        }
        return run.outcome(metrics, run.text_files(predictions, adapter), since=started, beside=beside)

    return Prepared(
        run,
        model,
        objective,
        seed_step=lambda step: seed_dropout(spec.seed, step, context.replicas),
        evaluate=lambda trained, members: [
            {"loss": loss} for loss in mean_losses(trained, dev, pad_id=base.pad_id, members=members)
        ],
        memory=training_table(sizes, protocol.batch_size, settings.micro_batch_size),
        ended=ended,
        finish=finish,
        test=None,  # its adapter is merged first
        base=base.shared,
        subtracted=adapted.subtracted,
    )
