"""No training text shares 13 consecutive words with an evaluation row: planted overlaps, checked by plain sets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from make_base.corpus import evaluation_texts, pack, read_corpus, train_tokenizer

ROW = "the quick brown fox jumps over the lazy dog while seven white geese look on in silence"
WORDS = ROW.split()


def _held_out(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    row = {"passage": "Nothing to see.", "answers": [{"text": ROW}], "label": 1}
    path.write_text(json.dumps(row) + "\n\n", encoding="utf-8")
    return path


def _grams(text: str) -> set[tuple[str, ...]]:
    words = re.sub(r"[^\w]+", " ", text.lower()).split()
    return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}


def test_a_planted_overlap_of_13_words_is_dropped_and_of_12_is_kept(tmp_path: Path) -> None:
    thirteen, twelve = " ".join(WORDS[2:15]), " ".join(WORDS[2:14])
    text = tmp_path / "book.txt"
    paragraphs = [
        "A clean paragraph\nover two lines.",
        f"He said: “{thirteen.upper().replace(' ', ', ', 1)}” and left.",
        f"Only {twelve} stands here.",
        f"First half {' '.join(WORDS[:8])}\n{' '.join(WORDS[8:])} over a line break.",
    ]
    text.write_text("\n\n".join(paragraphs) + "\n\n \n", encoding="utf-8")
    corpus = read_corpus([text], held_out=evaluation_texts([_held_out(tmp_path)]))
    assert corpus.paragraphs == ["A clean paragraph over two lines.", f"Only {twelve} stands here."]
    assert corpus.num_dropped == 2


def test_what_is_kept_shares_no_13_words_with_any_shipped_evaluation_row(checkout: Path, tmp_path: Path) -> None:
    """A small corpus made of shipped validation rows between clean paragraphs: only the clean ones remain."""
    files = sorted(checkout.glob("data/*/validation.jsonl"))
    rows = [json.loads(line) for f in files for line in f.read_text(encoding="utf-8").splitlines()[:20]]
    longest = [max((v for v in row.values() if isinstance(v, str)), key=len) for row in rows]
    planted = [re.sub(r"\s+", " ", text) for text in longest if _grams(text)]
    clean = [f"Paragraph number {i} of a story that nobody has told before in just these very words." for i in range(9)]
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(p for pair in zip(planted, clean * 99, strict=False) for p in pair), encoding="utf-8")
    corpus = read_corpus([text], held_out=evaluation_texts(files))
    forbidden = {gram for value in evaluation_texts(files) for gram in _grams(value)}
    assert len(planted) > 50 and corpus.num_dropped == len(planted)
    assert not any(_grams(p) & forbidden for p in corpus.paragraphs)
    assert set(corpus.paragraphs) == set(clean)


def test_the_same_text_has_the_same_hash_and_another_text_another(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo", encoding="utf-8")
    (tmp_path / "b.txt").write_text("one\n \n  two  ", encoding="utf-8")
    (tmp_path / "c.txt").write_text("one\n\ntwo!", encoding="utf-8")
    a, b, c = (read_corpus([tmp_path / f"{n}.txt"], held_out=()) for n in "abc")
    assert a.sha256 == b.sha256 != c.sha256


def test_packing_loses_only_the_last_partial_block() -> None:
    paragraphs = ["the cat sat on the mat", "a dog", "the end of the day was near"] * 20
    tokenizer: Any = train_tokenizer(paragraphs, vocab_size=300)
    ids = [i for p in paragraphs for i in tokenizer(p).input_ids]
    blocks = pack(paragraphs, tokenizer, length=32)
    assert blocks.shape == (len(ids) // 32, 32)
    assert blocks.flatten().tolist() == ids[: blocks.numel()]
    assert torch.equal(blocks[0, :1], torch.tensor([tokenizer.bos_token_id], dtype=torch.int32))
    assert tokenizer.decode(tokenizer("a dog sat").input_ids, skip_special_tokens=True) == "a dog sat"
