"""Packed minibatches and the chunked head against one plain forward pass per text; float64 throughout."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from nora.tasks.instruction import Instruction
from nora.training.batches import EncodedText, encode_text, pack
from nora.training.loop import LoopSettings, make_state, train_step
from nora.training.objectives import InstructObjective, mean_loss, token_losses

from twins import with_lora  # isort: skip

ARCHITECTURES = {
    "llama": {"num_key_value_heads": 1, "tie_word_embeddings": False},
    "gemma": {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
}


def _model(family: str) -> Any:
    config = AutoConfig.for_model(
        family, vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2, **ARCHITECTURES[family],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(config).double().requires_grad_(False)
    model = with_lora(base)
    draw = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw, dtype=torch.float64) * 0.1
    return model


def _texts(count: int = 16, seed: int = 0) -> list[EncodedText]:
    draw = torch.Generator().manual_seed(seed)
    texts = []
    for _ in range(count):
        n = int(torch.randint(20, 90, (), generator=draw))
        ids = torch.randint(3, 97, (n,), generator=draw).tolist()
        texts.append(EncodedText(tuple(ids), int(torch.randint(1, n - 3, (), generator=draw)), 0, False))
    return texts


def _naive(model: Any, text: EncodedText) -> Tensor:
    ids = torch.tensor([text.ids])
    logits = model(input_ids=ids).logits[0, :-1]
    losses = F.cross_entropy(logits, ids[0, 1:], reduction="none")
    return losses[text.first_scored - 1 :].sum()


def _gradients(model: Any) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_the_packed_loss_and_its_gradients_are_those_of_one_text_at_a_time(family: str) -> None:
    model, texts = _model(family), _texts()
    objective = InstructObjective(texts, pad_id=0)
    packed = objective.loss(model, range(len(texts)))
    packed.backward()
    ours = _gradients(model)
    plain = torch.stack([_naive(model, text) for text in texts]).sum()
    plain.backward()
    theirs = _gradients(model)
    torch.testing.assert_close(packed, plain, rtol=1e-12, atol=0)
    assert ours.keys() == theirs.keys() and len(ours) == 8
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-12, msg=name)
    assert mean_loss(model, texts, pad_id=0, batch_size=5) == pytest.approx(
        plain.item() / sum(t.num_scored for t in texts), rel=1e-12
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_minibatch_wastes_at_most_two_per_cent(seed: int) -> None:
    texts = _texts(16, seed)
    batch = pack(texts, pad_id=0, target_tokens=200)
    assert batch.num_tokens == sum(len(t.ids) for t in texts)
    assert batch.input_ids.numel() <= 1.02 * batch.num_tokens
    assert len(batch.input_ids) > 1, "several rows: one long row would cost attention"
    assert len(batch.targets) == sum(t.num_scored for t in texts)


def test_micro_batches_give_the_step_of_the_whole_batch() -> None:
    outcomes = []
    for micro in (None, 5):
        model, texts = _model("llama"), _texts()
        settings = LoopSettings(
            lr=1e-2, batch_size=16, epochs=1, schedule="linear", warmup_steps=0, betas=(0.9, 0.999), eps=1e-8,
            weight_decay=0.0, max_grad_norm=1.0, precision="fp32", micro_batch_size=micro,
        )  # fmt: skip
        state = make_state(model, settings, num_examples=16, preconditioner=None)
        loss, norm = train_step(model, InstructObjective(texts, 0), list(range(16)), settings, state)
        outcomes.append((loss, norm, {n: p.detach().clone() for n, p in state.parameters.items()}))
    assert outcomes[0][0] == pytest.approx(outcomes[1][0], rel=1e-12)
    assert outcomes[0][1] == pytest.approx(outcomes[1][1], rel=1e-9)
    for name, value in outcomes[0][2].items():
        torch.testing.assert_close(value, outcomes[1][2][name], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_chunked_head_is_cross_entropy(chunk: int, with_bias: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(53, 16, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(301, 16, generator=draw, dtype=torch.float64)
    bias = torch.randn(301, generator=draw, dtype=torch.float64) if with_bias else None
    targets = torch.randint(0, 301, (53,), generator=draw)
    scale = torch.randn(53, generator=draw, dtype=torch.float64)
    ours = token_losses(hidden, weight, targets, bias=bias, chunk=chunk)
    (slope,) = torch.autograd.grad((ours * scale).sum(), hidden)
    theirs = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none")
    (expected,) = torch.autograd.grad((theirs * scale).sum(), hidden)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-12)


def test_a_trained_head_is_refused() -> None:
    weight = torch.randn(5, 3, requires_grad=True)
    with pytest.raises(ValueError, match="required a frozen one"):
        token_losses(torch.randn(2, 3), weight, torch.tensor([0, 1]))


def test_gemmas_head_never_has_the_logits_of_a_batch() -> None:
    """256,000 words × 2,048 tokens in float32 would be 2 GB: no single tensor comes near it."""
    seen: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                seen.append(out.numel())
            return out

    hidden = torch.randn(256, 8, requires_grad=True)
    weight = torch.randn(256_000, 8)
    with Watch():
        token_losses(hidden, weight, torch.zeros(256, dtype=torch.long)).sum().backward()
    assert max(seen) <= 2**24 < 256 * 256_000


def test_ids_are_cut_on_the_right_and_end_only_where_they_fit(tokenizer: Any) -> None:
    row = Instruction("Question: what is it? Answer: ", "the answer is a river", "", "", "x")
    whole = encode_text(row, tokenizer, cutoff=200, loss_on="text", eos=2)
    assert whole.ids[0] == tokenizer.bos_token_id and whole.ids[-1] == 2 and whole.first_scored == 1 and not whole.cut
    answer = encode_text(row, tokenizer, cutoff=200, loss_on="answer", eos=2)
    prompt = len(tokenizer(row.prompt)["input_ids"])
    assert answer.first_scored == prompt and answer.num_scored == len(answer.ids) - prompt
    length = len(whole.ids) - 1
    exact = encode_text(row, tokenizer, cutoff=length, loss_on="text", eos=2)
    assert exact.ids == whole.ids[:-1] and not exact.answer_cut, "as the scripts: no end where the text fills the limit"
    cut = encode_text(row, tokenizer, cutoff=length - 2, loss_on="text", eos=2)
    assert cut.ids == whole.ids[: length - 2] and cut.cut == 2 and cut.answer_cut
    lost = encode_text(row, tokenizer, cutoff=4, loss_on="answer", eos=2)
    assert lost.ids == whole.ids[:4] and lost.num_scored == 0 and lost.answer_cut


def test_a_text_without_a_scored_token_changes_no_gradient() -> None:
    """The reference: transformers' own loss over labels that are all ignored in that row."""
    model = _model("llama")
    texts = [EncodedText(tuple(range(3, 15)), 8, 0, False), EncodedText(tuple(range(5, 20)), 15, 9, True)]
    assert [text.num_scored > 0 for text in texts] == [True, False]
    width = max(len(text.ids) for text in texts)
    ids, labels = torch.zeros(2, width, dtype=torch.long), torch.full((2, width), -100)
    mask = torch.zeros(2, width, dtype=torch.long)
    for i, text in enumerate(texts):
        n = len(text.ids)
        ids[i, :n], mask[i, :n] = torch.tensor(text.ids), 1
        labels[i, text.first_scored : n] = torch.tensor(text.ids[text.first_scored :])
    theirs = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    objective = InstructObjective(texts, 0)
    ours = objective.loss(model, [0, 1]) / objective.count([0, 1])
    assert abs(float((ours - theirs).detach())) < 1e-6, "theirs is taken in float32"
    alone = objective.loss(model, [1])
    alone.backward()
    assert float(alone.detach()) == 0.0 and all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert math.isnan(mean_loss(model, [texts[1]], pad_id=0))
