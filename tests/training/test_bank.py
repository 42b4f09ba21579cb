"""A bank against the very same runs one by one, by the project's own loop: the same numbers beside whatever."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, TaskType, get_peft_model
from torch import Tensor, nn

from nora.adapters import Bank, NotBankable, Preconditioner, initialize_, lora_layers
from nora.kinds.parts.recipe import epoch_order, seed_dropout
from nora.tasks.example import Example
from nora.training import objectives as objectives_module
from nora.training.bank import Member, train_bank
from nora.training.batches import EncodedText, collate, encode_example
from nora.training.loop import Diverged, LoopSettings, make_state, train
from nora.training.objectives import (
    ClassificationObjective,
    InstructObjective,
    OptionLMObjective,
    classification_losses,
)
from nora.training.scoring import Assessor, Split
from twins import tiny_opt

METHODS = ["lora", "nora", "nora_plus", "lora_p", "pissa", "olora"]
SETTINGS = LoopSettings(
    lr=0.0, batch_size=4, epochs=17, schedule="linear", warmup_steps=2, betas=(0.9, 0.999), eps=1e-8,
    weight_decay=0.01, max_grad_norm=0.05, precision="fp32",
)  # fmt: skip
ROWS = 10  # three batches an epoch, the last one smaller: 51 steps


class Run:
    """One run over a base: its model, its state, what it went through."""

    def __init__(
        self, base: nn.Module, method: str, number: int, settings: LoopSettings, lora_dropout: float,
        trained: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.settings = replace(settings, lr=1e-3 * (1 + number / 4))
        own = method in ("pissa", "olora")
        shared = {} if own else {id(p): p for p in base.parameters()}
        self.start = None
        if method == "prefix":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(number)
                config = PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
                self.model = get_peft_model(copy.deepcopy(base, shared), config)
                nn.init.normal_(self.model.prompt_encoder["default"].embedding.weight, std=0.5)
            self.model.to(next(base.parameters()).dtype)
        else:
            made = copy.deepcopy(base, shared)
            dtype = next(base.parameters()).dtype
            made = made.float() if own else made  # PEFT starts these two in float32
            init = {"pissa": "pissa", "olora": "olora"}.get(method, True)
            targets = ["q_proj", "v_proj"]
            config = LoraConfig(
                r=4, lora_alpha=8 + number, target_modules=targets, init_lora_weights=init, lora_dropout=lora_dropout
            )
            self.model = get_peft_model(made, config, autocast_adapter_dtype=False)
            self.model.to(dtype)
            for parameter in self.model.parameters():
                if parameter.requires_grad and trained is not None:
                    parameter.data = parameter.data.to(trained)
            name = {"lora": "kaiming", "nora": "nystrom", "nora_plus": "nystrom", "lora_p": "kaiming"}.get(
                method, method
            )
            initialize_(self.model, name, seed=number)
            if own:
                self.start = {x.name: (x.A.detach().clone(), x.B.detach().clone()) for x in lora_layers(self.model)}
                with torch.no_grad():  # the residual in the dtype of the test
                    for x in lora_layers(self.model):
                        x.held_weight.copy_(base.get_submodule(x.name).weight - x.scaling * x.B @ x.A)
        pre = None
        if method in ("nora_plus", "lora_p"):
            pre = Preconditioner(lora_layers(self.model), damping=1e-6, normalize="frobenius")
        self.state = make_state(self.model, self.settings, num_examples=ROWS, preconditioner=pre)
        self.infos: list[Any] = []

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        with torch.no_grad():
            return {"loss": sum(float(p.double().square().sum()) for p in self.state.parameters.values())}

    def member(self) -> Member:
        return Member(self.model, self.state, self.infos.append, lambda state: None)


def alone(runs: list[Run], objective: Any) -> list[Diverged | None]:
    ended: list[Diverged | None] = []
    for run in runs:
        try:
            train(
                run.model, objective, run.settings, run.state, order=partial(epoch_order, 0, ROWS),
                before_step=partial(seed_dropout, 0), evaluate=run.evaluate, on_step=run.infos.append,
                on_boundary=lambda state: None,
            )  # fmt: skip
            ended.append(None)
        except Diverged as error:
            ended.append(error)
    return ended


def banked(base: nn.Module, runs: list[Run], objective: Any) -> list[Diverged | None]:
    bank = Bank(base, [run.model for run in runs], [run.start for run in runs])
    members = [run.member() for run in runs]
    train_bank(
        bank, objective, runs[0].settings, members, order=partial(epoch_order, 0, ROWS),
        before_step=partial(seed_dropout, 0), evaluate=lambda whole, k: [run.evaluate(run.model) for run in runs],
    )  # fmt: skip
    return [member.diverged for member in members]


@pytest.fixture
def objectives(tokenizer: Any, examples: list[Example]) -> dict[str, Any]:
    encoded = [encode_example(e, tokenizer, max_length=100) for e in examples * 2]
    gold = [e.gold for e in examples * 2]
    texts = [EncodedText(tuple(range(5, 12 + i)), 3 + i % 4, 0, False) for i in range(ROWS)]
    return {
        "classification": ClassificationObjective(encoded, gold, 0, True),
        "option": OptionLMObjective(encoded, gold, 0),
        "instruct": InstructObjective(texts, 0),
    }


def furthest(one: Run, other: Run) -> float:
    """Largest relative difference of losses, norms and factors of two runs."""
    pairs: list[tuple[Tensor, Tensor]] = [
        (torch.tensor([x.loss for x in one.infos]), torch.tensor([x.loss for x in other.infos])),
        (torch.tensor([x.grad_norm for x in one.infos]), torch.tensor([x.grad_norm for x in other.infos])),
        *((p.detach(), other.state.parameters[name].detach()) for name, p in one.state.parameters.items()),
        *((value, other.state.best[name]) for name, value in one.state.best.items()),
    ]
    assert len(one.infos) == len(other.infos)
    return max(float(torch.linalg.norm(a - b) / torch.linalg.norm(b)) for a, b in pairs)


CASES = [(0.0, 0.0, None), (0.1, 0.05, None), (0.1, 0.0, 3)]
"""Dropout of the base, of the adapter's input, and the part of a batch at once."""
GRID = [(k, *case) for k in (1, 2, 7, 27) for case in CASES]
SLOW = [(27, *CASES[0]), (27, *CASES[2])]


@pytest.mark.parametrize(
    ("members", "model_dropout", "lora_dropout", "micro"),
    [pytest.param(*one, marks=pytest.mark.slow) if one in SLOW else one for one in GRID],
)
def test_a_bank_gives_the_numbers_of_separate_runs(
    objectives: dict[str, Any], members: int, model_dropout: float, lora_dropout: float, micro: int | None
) -> None:
    settings = replace(SETTINGS, micro_batch_size=micro)
    base = tiny_opt(dtype=torch.float64, vocab=1024, dropout=model_dropout)
    make = [partial(Run, base, METHODS[k % 6], k, settings, lora_dropout) for k in range(members)]
    one_by_one, together = [new() for new in make], [new() for new in make]
    objective = objectives["classification"]
    alone(one_by_one, objective)
    banked(base, together, objective)
    for method, one, other in zip(METHODS * 5, together, one_by_one, strict=False):
        assert len(one.infos) == 51
        assert one.infos[-1].loss != one.infos[0].loss, method
        assert furthest(one, other) < 1e-11, method


@pytest.mark.parametrize("name", ["option", "instruct"])
def test_language_model_losses_too(objectives: dict[str, Any], name: str) -> None:
    base = tiny_opt(dtype=torch.float64, vocab=1024, dropout=0.1)
    settings = replace(SETTINGS, epochs=3, evaluate_every=2, max_grad_norm=None)
    make = [partial(Run, base, method, k, settings, 0.1) for k, method in enumerate(METHODS)]
    one_by_one, together = [new() for new in make], [new() for new in make]
    alone(one_by_one, objectives[name])
    banked(base, together, objectives[name])
    assert max(map(furthest, together, one_by_one)) < 1e-11


def test_in_16_bits_a_bank_is_as_near_to_a_run_alone_as_its_rounding(objectives: dict[str, Any]) -> None:
    """A base in bfloat16 under autocast, adapters in float32: 8 bits of a number, so that 51 steps agree to a few of
    them. What a run alone is in float64 is no nearer to it than the bank is."""
    settings = replace(SETTINGS, precision="bf16", max_grad_norm=None, epochs=6)
    base = tiny_opt(dtype=torch.bfloat16, vocab=1024, dropout=0.0)
    methods = ["lora", "nora", "nora_plus", "lora_p"]
    make = [partial(Run, base, m, k, settings, 0.0, torch.float32) for k, m in enumerate(methods)]
    one_by_one, together = [new() for new in make], [new() for new in make]
    alone(one_by_one, objectives["classification"])
    banked(base, together, objectives["classification"])
    exact = tiny_opt(dtype=torch.float64, vocab=1024, dropout=0.0)
    exact.load_state_dict(base.state_dict())
    reference = [Run(exact, m, k, replace(settings, precision="fp32"), 0.0) for k, m in enumerate(methods)]
    alone(reference, objectives["classification"])

    def gap(runs: list[Run], others: list[Run]) -> float:
        pairs = zip(runs, others, strict=True)
        return max(abs(a.loss - b.loss) / b.loss for x, y in pairs for a, b in zip(x.infos, y.infos, strict=True))

    assert gap(together, one_by_one) < 2e-2
    assert gap(together, reference) < 1.5 * gap(one_by_one, reference) + 1e-3


def test_prefixes_too(objectives: dict[str, Any]) -> None:
    base = tiny_opt(dtype=torch.float64, vocab=1024, dropout=0.1)
    settings = replace(SETTINGS, epochs=3)
    make = [partial(Run, base, "prefix", k, settings, 0.0) for k in range(3)]
    one_by_one, together = [new() for new in make], [new() for new in make]
    alone(one_by_one, objectives["classification"])
    banked(base, together, objectives["classification"])
    assert max(map(furthest, together, one_by_one)) < 1e-11


@pytest.mark.parametrize("methods", [METHODS, ("prefix",) * 3])
@pytest.mark.parametrize("loss", ["classification", "option_lm"])
def test_all_members_are_assessed_in_one_pass(
    tokenizer: Any, examples: list[Example], methods: Sequence[str], loss: str
) -> None:
    """Scores, losses and choices are those of each model by itself, however many rows are taken at once."""
    base = tiny_opt(dtype=torch.float64, vocab=1024, dropout=0.1)
    runs = [Run(base, method, k, SETTINGS, 0.1) for k, method in enumerate(methods)]
    with torch.no_grad():  # away from the start, where all of them give the base's answers
        for run in runs:
            for parameter in run.state.parameters.values():
                parameter.add_(torch.randn_like(parameter) / 10)
    split = Split.encode(examples * 3, tokenizer, max_length=100)
    task = SimpleNamespace(LOSS=loss, METRIC="accuracy")
    assessor = Assessor(task, tokenizer, 0, True, 100)  # type: ignore[arg-type]
    one_by_one = [(assessor.measure(run.model, split), assessor.losses(run.model, split)[0]) for run in runs]
    bank: Any = Bank(base, [run.model for run in runs], [run.start for run in runs])
    passes: list[int] = []
    counted = replace(assessor, between=lambda done, total: passes.append(1))
    together = zip(counted.measures(bank, split, len(runs)), assessor.losses(bank, split, len(runs)), strict=True)
    assert len(passes) < 3 * len(runs)
    assert len({metrics["loss"] for (metrics, _), _ in one_by_one}) == len(runs)
    for (own, measured), (other, loss_alone) in zip(together, one_by_one, strict=True):
        for found, expected in ((own[0], other[0]), (measured, loss_alone)):
            assert found == {key: pytest.approx(value, rel=1e-11) for key, value in expected.items()}
        assert [row["prediction"] for row in own[1]] == [row["prediction"] for row in other[1]]


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
def test_a_poisoned_member_ends_and_its_neighbours_do_not_notice(objectives: dict[str, Any], poison: float) -> None:
    base = tiny_opt(vocab=1024, dropout=0.1)
    settings = replace(SETTINGS, epochs=3)
    healthy, beside = ([Run(base, m, k, settings, 0.1) for k, m in enumerate(METHODS)] for _ in range(2))
    sick = beside[2]  # NoRA+
    with torch.no_grad():
        next(iter(sick.state.parameters.values())).fill_(poison)
    ended = banked(base, beside, objectives["classification"])
    banked(base, healthy, objectives["classification"])
    assert ended[2] is not None and ended[2].step == 0 and not sick.infos
    assert [k for k, why in enumerate(ended) if why] == [2]
    for k, (one, other) in enumerate(zip(beside, healthy, strict=True)):
        if k != 2:
            assert furthest(one, other) == 0.0, METHODS[k]
    before = Run(base, "nora_plus", 2, settings, 0.1)
    names = list(sick.state.parameters)[1:]
    for name in names:  # not a step was taken
        assert torch.equal(sick.state.parameters[name], before.state.parameters[name])


def test_a_member_that_diverges_on_the_way_ends_as_it_does_alone(objectives: dict[str, Any]) -> None:
    base = tiny_opt(vocab=1024)
    settings = replace(SETTINGS, epochs=8, max_grad_norm=None)
    wild = partial(Run, base, "lora", 1, settings, 0.0)
    one_by_one = [Run(base, "nora", 0, settings, 0.0), wild()]
    together = [Run(base, "nora", 0, settings, 0.0), wild()]
    for run in (one_by_one[1], together[1]):
        run.state.optimizer.param_groups[0]["lr"] = 1e18
        run.state.scheduler.base_lrs[:] = [1e18]
    expected = alone(one_by_one, objectives["classification"])
    ended = banked(base, together, objectives["classification"])
    assert expected[0] is None and expected[1] is not None and expected[1].step > 0
    assert ended[0] is None and ended[1] is not None
    assert (ended[1].step, ended[1].tensor) == (expected[1].step, expected[1].tensor)
    assert furthest(together[0], one_by_one[0]) < 2e-4  # float32 over 24 steps


def test_what_cannot_share_a_step_is_refused_before_anything_is_touched() -> None:
    base = tiny_opt(vocab=1024)
    plain = Run(base, "lora", 0, SETTINGS, 0.0)
    dora = get_peft_model(tiny_opt(vocab=1024), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], use_dora=True))
    small = get_peft_model(tiny_opt(vocab=1024), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    before = plain.state.parameters[next(iter(plain.state.parameters))].data_ptr()
    for other, why in ((dora, "names, shapes"), (small, "names, shapes")):
        with pytest.raises(NotBankable, match=why):
            Bank(base, [plain.model, other], [None, None])
    with pytest.raises(NotBankable, match="variant"):
        Bank(base, [dora, dora], [None, None])
    assert plain.state.parameters[next(iter(plain.state.parameters))].data_ptr() == before


@pytest.mark.parametrize("share", [True, False])
def test_rows_side_by_side_have_the_loss_and_the_masks_of_padded_rows(
    tokenizer: Any, examples: list[Example], share: bool
) -> None:
    """Against one text to a row and torch's own dropout, float64."""
    encoded = [encode_example(e, tokenizer, max_length=100) for e in examples]
    gold = torch.tensor([e.gold for e in examples])
    model = Run(tiny_opt(dtype=torch.float64, vocab=1024, dropout=0.1), "nora", 0, SETTINGS, 0.2).model.train()
    padded, packed = (collate(encoded, pad_id=0, share_prompt=share, side_by_side=s) for s in (False, True))
    assert packed.input_ids.numel() < 0.8 * padded.input_ids.numel() and packed.num_tokens == padded.num_tokens
    found = []
    for batch in (padded, packed):
        torch.manual_seed(3)
        plain = batch is padded
        with pytest.MonkeyPatch.context() as patch:
            if plain:
                patch.setattr(objectives_module, "one_draw", lambda *arguments: nullcontext())
            loss = classification_losses(model, batch, gold).sum()
        gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
        found.append([loss.detach()[None], *(g.flatten() for g in gradients)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-13)
    torch.manual_seed(4)
    assert not torch.allclose(classification_losses(model, packed, gold).sum(), found[0][0])
