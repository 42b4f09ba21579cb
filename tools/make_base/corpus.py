"""Plain text → a tokenizer and packed token blocks, with everything that stands in an evaluation row left out."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

NGRAM = 13  # words; the overlap length of GPT-3's and OPT's own contamination checks
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Kept paragraphs and what was dropped."""

    paragraphs: list[str]
    num_dropped: int
    sha256: str


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _ngrams(text: str) -> Iterator[tuple[str, ...]]:
    words = _words(text)
    for i in range(len(words) - NGRAM + 1):
        yield tuple(words[i : i + NGRAM])


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def evaluation_texts(files: Iterable[Path]) -> Iterator[str]:
    """Every string of every row of the given JSON-lines files."""
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.strip():
                yield from _strings(json.loads(line))


def read_corpus(files: Iterable[Path], *, held_out: Iterable[str]) -> Corpus:
    """Blank-line separated paragraphs of ``files`` without those that share 13 consecutive words with ``held_out``."""
    forbidden = {gram for text in held_out for gram in _ngrams(text)}
    kept: list[str] = []
    dropped = 0
    for file in files:
        for raw in re.split(r"\n\s*\n", file.read_text(encoding="utf-8")):
            paragraph = re.sub(r"[ \t]*\n[ \t]*", " ", raw).strip()
            if not paragraph:
                continue
            if any(gram in forbidden for gram in _ngrams(paragraph)):
                dropped += 1
            else:
                kept.append(paragraph)
    digest = hashlib.sha256("\n\n".join(kept).encode()).hexdigest()
    return Corpus(paragraphs=kept, num_dropped=dropped, sha256=digest)


def train_tokenizer(
    paragraphs: Iterable[str], *, vocab_size: int, whole: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Byte-level BPE that puts the begin-of-sequence token first, as OPT's and LLaMA's do.

    ``whole``: texts that are one token each wherever they stand, the last ids of the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(whole),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(paragraphs, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in whole])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def pack(paragraphs: list[str], tokenizer: PreTrainedTokenizerFast, *, length: int) -> torch.Tensor:
    """Token blocks [blocks, length]: ``<s>`` before each paragraph, all joined, the last partial block dropped."""
    ids: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(paragraphs):
        ids.extend(encoding.ids)
    blocks = len(ids) // length
    return torch.tensor(ids[: blocks * length], dtype=torch.int32).view(blocks, length)
