"""Token ids of prompt + answer by the protocol's rules, re-derived here from the tokenizer alone."""

from __future__ import annotations

from typing import Any

import pytest

from nora.tasks.example import Example
from nora.training.batches import collate, encode_example


def test_equals_the_tokenizer_on_the_joined_string(tokenizer: Any, examples: list[Example]) -> None:
    """BOS first; the option is what prompt + answer has more than the prompt; blanks stripped, newlines kept."""
    for example in examples:
        encoded = encode_example(example, tokenizer, max_length=128)
        prompt = tokenizer(example.prompt.lstrip().strip(" ")).input_ids
        for candidate, ids, option in zip(example.candidates, encoded.sequences, encoded.option_lengths, strict=True):
            joined = tokenizer((example.prompt + candidate).lstrip().strip(" ")).input_ids
            assert list(ids) == joined
            assert ids[0] == tokenizer.bos_token_id
            assert option == len(joined) - len(prompt) >= 1
        assert encoded.truncated == 0


def test_the_newline_before_an_answer_is_kept(tokenizer: Any) -> None:
    encoded = encode_example(Example("Is it?\n", ("Yes",), (0,)), tokenizer, max_length=64)
    assert tokenizer.decode(encoded.sequences[0][1:]) == "Is it?\nYes"


@pytest.mark.parametrize("max_length", [12, 16, 20])
def test_truncation_keeps_bos_and_the_answer_and_is_counted(tokenizer: Any, max_length: int) -> None:
    example = Example("a long sentence about nothing in particular " * 3 + "It was", (" terrible", " great fun"), (0,))
    whole = encode_example(example, tokenizer, max_length=512)
    cut = encode_example(example, tokenizer, max_length=max_length)
    for full, short, option in zip(whole.sequences, cut.sequences, whole.option_lengths, strict=True):
        assert len(short) == max_length
        assert short[0] == tokenizer.bos_token_id
        assert short[1:] == full[-(max_length - 1) :], "the rightmost tokens stay"
        assert option < max_length - 1
    assert cut.option_lengths == whole.option_lengths
    assert cut.truncated == sum(len(s) - max_length for s in whole.sequences)


def test_a_text_of_exactly_the_maximum_is_not_cut(tokenizer: Any) -> None:
    example = Example("the river was wide", (" and deep",), (0,))
    length = len(encode_example(example, tokenizer, max_length=128).sequences[0])
    assert encode_example(example, tokenizer, max_length=length).truncated == 0
    assert encode_example(example, tokenizer, max_length=length - 1).truncated == 1


def test_an_answer_that_does_not_fit_is_an_error(tokenizer: Any) -> None:
    answer = " and then it went on and on and on and on and on and on and on"
    with pytest.raises(ValueError, match="has .* tokens, the model reads 10"):
        encode_example(Example("It was", (" short", answer), (0,)), tokenizer, max_length=10)


def test_an_answer_without_a_token_of_its_own_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="adds no token"):
        encode_example(Example("It was", ("",), (0,)), tokenizer, max_length=64)


def test_batches_are_padded_to_a_multiple_of_eight(tokenizer: Any, examples: list[Example]) -> None:
    encoded = [encode_example(e, tokenizer, max_length=128) for e in examples]
    for share in (True, False):
        batch = collate(encoded, pad_id=0, share_prompt=share)
        longest = max(int(row.sum()) for row in batch.mask[:, 0].diagonal(dim1=1, dim2=2))
        assert batch.input_ids.shape[1] % 8 == 0 and batch.input_ids.shape[1] - longest in range(8)
        assert batch.input_ids.shape[0] == (len(examples) if share else sum(len(e.candidates) for e in examples))
        assert batch.num_options == tuple(len(e.candidates) for e in examples)
    separate = sum(len(s) for e in encoded for s in e.sequences)
    assert collate(encoded, pad_id=0, share_prompt=False).num_tokens == separate
    assert collate(encoded, pad_id=0, share_prompt=True).num_tokens < separate
