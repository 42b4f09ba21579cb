"""The converted 260K-parameter LLaMA writes the reference's own story (llama2.c, greedy, 200 tokens), to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nora.training.llama2c import read_llama2c, read_pieces

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "stories260k"


def test_its_greedy_story_is_the_references() -> None:
    model, tokenizer = read_llama2c(FOLDER / "stories260K.bin"), read_pieces(FOLDER / "tok512.vocab.json")
    assert sum(p.numel() for p in model.parameters()) == 260_032
    generated = model.generate(
        torch.tensor([[1]]), attention_mask=torch.ones(1, 1), max_new_tokens=200, do_sample=False, pad_token_id=0
    )
    story = tokenizer.decode(generated[0], skip_special_tokens=True)
    expected = (FOLDER / "expected_greedy_200.txt").read_text(encoding="utf-8")
    assert story.strip()[: len(expected.strip())] == expected.strip()
    ids = tokenizer('Once upon a time, Lily said "hi" to 7 zebras.')["input_ids"]
    assert (
        ids[0] == 1
        and tokenizer.decode(ids, skip_special_tokens=True) == 'Once upon a time, Lily said "hi" to 7 zebras.'
    )
    assert len(ids) < 30, "words are merged, not spelt letter by letter"


def test_a_file_of_another_length_is_refused(tmp_path: Path) -> None:
    whole = (FOLDER / "stories260K.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(whole[:-4])
    with pytest.raises(ValueError, match="its header asks for 1056540"):
        read_llama2c(tmp_path / "cut.bin")
