"""Examples and instructions → token rows: candidates that share a prompt, texts side by side; one batch format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import Any, Protocol

import torch
from torch import Tensor


class Tokenizer(Protocol):
    """What is used of a tokenizer."""

    eos_token_id: Any

    def __call__(self, text: str) -> Any: ...

    def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> Any: ...


class ExampleLike(Protocol):
    @property
    def prompt(self) -> str: ...
    @property
    def candidates(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class EncodedExample:
    """Token ids of prompt + candidate for each candidate; the last ``option_lengths[c]`` ids of each are scored."""

    sequences: tuple[tuple[int, ...], ...]
    option_lengths: tuple[int, ...]
    truncated: int
    """Tokens cut from the left of the prompt, over all candidates."""


def encode_example(
    example: ExampleLike, tokenizer: Tokenizer, *, max_length: int, bos: int | None = None
) -> EncodedExample:
    """Token ids by the protocol's rules: blanks at the ends stripped (newlines kept), BOS first, the option's length
    is len(tok(prompt + answer)) - len(tok(prompt)). Too long a text keeps BOS and its rightmost tokens; the answer is
    never cut (ValueError where it alone does not fit). ``bos`` replaces the first id.
    """
    prompt = example.prompt.lstrip().strip(" ")
    base = len(tokenizer(prompt)["input_ids"])
    sequences, lengths, cut = [], [], 0
    for candidate in example.candidates:
        ids = list(tokenizer((example.prompt + candidate).lstrip().strip(" "))["input_ids"])
        if bos is not None:
            ids[0] = bos
        option = len(ids) - base
        if option < 1:
            raise ValueError(f"the candidate {candidate!r} adds no token to the prompt …{prompt[-40:]!r}")
        if option > max_length - 2:
            raise ValueError(f"the candidate {candidate[:40]!r}… has {option} tokens, the model reads {max_length}")
        excess = max(0, len(ids) - max_length)
        if excess:
            ids = ids[:1] + ids[1 + excess :]
            cut += excess
        sequences.append(tuple(ids))
        lengths.append(option)
    return EncodedExample(tuple(sequences), tuple(lengths), cut)


@dataclass
class Row:
    """One sequence of the batch: a shared prefix and the segments that continue it, each blind to the others."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    """0 in the prefix, c + 1 in the c-th segment."""
    predict_from: list[int] = field(default_factory=list)
    """For each scored token the index in the row whose output predicts it."""
    targets: list[int] = field(default_factory=list)
    options: list[int] = field(default_factory=list)
    """For each scored token the candidate it belongs to."""


def build_row(encoded: EncodedExample, candidates: Sequence[int]) -> Row:
    """A row that holds the given candidates of one example behind their longest common prefix of unscored tokens."""
    sequences = [encoded.sequences[c] for c in candidates]
    unscored = min(len(s) - encoded.option_lengths[c] for s, c in zip(sequences, candidates, strict=True))
    shared = len(commonprefix([s[:unscored] for s in sequences]))
    row = Row(list(sequences[0][:shared]), list(range(shared)), [0] * shared)
    for segment, (candidate, sequence) in enumerate(zip(candidates, sequences, strict=True), start=1):
        start = len(row.tokens)
        first_scored = len(sequence) - encoded.option_lengths[candidate]
        for position in range(shared, len(sequence)):
            index = start + position - shared
            if position >= first_scored:
                row.predict_from.append(index - 1 if position > shared else shared - 1)
                row.targets.append(sequence[position])
                row.options.append(candidate)
        row.tokens += sequence[shared:]
        row.positions += range(shared, len(sequence))
        row.segments += [segment] * (len(sequence) - shared)
    return row


@dataclass(frozen=True)
class Batch:
    """Padded rows. b rows, n tokens, t scored tokens, c candidates over all examples of the batch."""

    input_ids: Tensor  # [b, n]
    position_ids: Tensor  # [b, n]
    mask: Tensor  # [b, 1, n, n] bool, True where the query (row) may read the key (column)
    row: Tensor  # [t] the row of each scored token
    predict_from: Tensor  # [t]
    targets: Tensor  # [t]
    option: Tensor  # [t] index into the batch's flat list of candidates
    num_options: tuple[int, ...]  # candidates of each example, in order
    num_tokens: int  # real tokens, padding not counted

    def to(self, device: torch.device) -> Batch:
        moved = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return Batch(**moved)  # type: ignore[arg-type]

    def repeated(self, times: int) -> Batch:
        """The same rows ``times`` times over, one after another: every member of a bank reads them all."""
        if times == 1:
            return self
        shift = torch.arange(times, device=self.row.device)[:, None]
        return Batch(
            input_ids=self.input_ids.repeat(times, 1),
            position_ids=self.position_ids.repeat(times, 1),
            mask=self.mask.repeat(times, 1, 1, 1),
            row=(self.row + shift * len(self.input_ids)).flatten(),
            predict_from=self.predict_from.repeat(times),
            targets=self.targets.repeat(times),
            option=(self.option + shift * sum(self.num_options)).flatten(),
            num_options=self.num_options * times,
            num_tokens=self.num_tokens * times,
        )


def collate(
    encoded: Sequence[EncodedExample], *, pad_id: int, share_prompt: bool = True, only: Sequence[int] | None = None
) -> Batch:
    """Rows → one right-padded batch (a multiple of 8 long).

    ``share_prompt`` puts all candidates of an example into one row; otherwise each has its own. ``only`` keeps one
    candidate per example (the training target of a language-model loss).
    """
    rows: list[Row] = []
    offsets: list[int] = []
    num_options: list[int] = []
    total = 0
    for i, example in enumerate(encoded):
        wanted = list(range(len(example.sequences))) if only is None else [only[i]]
        groups = [wanted] if share_prompt else [[c] for c in wanted]
        for group in groups:
            row = build_row(example, group)
            row.options = [wanted.index(c) for c in row.options]
            rows.append(row)
            offsets.append(total)
        num_options.append(len(wanted))
        total += len(wanted)
    length = -(-max(len(row.tokens) for row in rows) // 8) * 8
    input_ids = torch.full((len(rows), length), pad_id)
    position_ids = torch.zeros(len(rows), length, dtype=torch.long)
    segments = torch.full((len(rows), length), -1)
    for i, row in enumerate(rows):
        n = len(row.tokens)
        input_ids[i, :n] = torch.tensor(row.tokens)
        position_ids[i, :n] = torch.tensor(row.positions)
        segments[i, :n] = torch.tensor(row.segments)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    query, key = segments[:, :, None], segments[:, None, :]
    mask = causal & ((key == 0) | (key == query))
    return Batch(
        input_ids=input_ids,
        position_ids=position_ids,
        mask=mask[:, None],
        row=torch.tensor([i for i, row in enumerate(rows) for _ in row.targets]),
        predict_from=torch.tensor([p for row in rows for p in row.predict_from]),
        targets=torch.tensor([t for row in rows for t in row.targets]),
        option=torch.tensor([offset + o for row, offset in zip(rows, offsets, strict=True) for o in row.options]),
        num_options=tuple(num_options),
        num_tokens=sum(len(row.tokens) for row in rows),
    )


WASTE = 0.02  # padding allowed in a packed batch, of its tokens


class InstructionLike(Protocol):
    @property
    def prompt(self) -> str: ...
    @property
    def target(self) -> str: ...


@dataclass(frozen=True)
class EncodedText:
    """Token ids of one training text; the tokens from ``first_scored`` on are learnt."""

    ids: tuple[int, ...]
    first_scored: int
    cut: int
    """Tokens that did not fit; where it is positive the text has no end."""
    answer_cut: bool
    """Whether some of the target is among them."""

    @property
    def num_scored(self) -> int:
        return len(self.ids) - self.first_scored


def encode_text(row: InstructionLike, tokenizer: Tokenizer, *, cutoff: int, loss_on: str, eos: int) -> EncodedText:
    """Ids of prompt + target, cut on the right at ``cutoff``; the end-of-sequence token only where it fits.

    ``loss_on``: "text" learns every token after the first, "answer" those of the target (found by the length of the
    tokenised prompt). Of a prompt that reaches the cut-off nothing is left to learn: it has no scored token, as in the
    scripts, whose labels are then all ignored.
    """
    ids = list(tokenizer(row.prompt + row.target)["input_ids"])
    prompt = len(tokenizer(row.prompt)["input_ids"])
    whole = len(ids)
    ids = ids[:cutoff]
    if whole < cutoff:
        ids.append(eos)
    first = min(1 if loss_on == "text" else prompt, len(ids))
    return EncodedText(tuple(ids), first, max(0, whole - cutoff), whole > cutoff)


def pack(texts: Sequence[EncodedText], *, pad_id: int, target_tokens: int = 512) -> Batch:
    """The texts of one minibatch side by side in rows, each blind to the others: at most 2 % padding.

    As many rows as keep each near ``target_tokens`` (a longer row costs attention); fewer where they would waste more
    than 2 %. The longest text comes first, each next one goes to the shortest row.
    """
    total = sum(len(text.ids) for text in texts)
    rows: list[list[int]] = []
    for count in range(max(1, min(len(texts), round(total / target_tokens))), 0, -1):
        rows, lengths = [[] for _ in range(count)], [0] * count
        for i in sorted(range(len(texts)), key=lambda i: (-len(texts[i].ids), i)):
            shortest = lengths.index(min(lengths))
            rows[shortest].append(i)
            lengths[shortest] += len(texts[i].ids)
        if max(lengths) * count <= total * (1 + WASTE):
            break
    width = max(lengths)
    ids = torch.full((len(rows), width), pad_id)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    segments = torch.full((len(rows), width), -1)
    row_of: list[int] = []
    predict: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    for r, members in enumerate(rows):
        start = 0
        for i in members:
            text = texts[i]
            end = start + len(text.ids)
            ids[r, start:end] = torch.tensor(text.ids)
            positions[r, start:end] = torch.arange(len(text.ids))
            segments[r, start:end] = i
            scored = range(text.first_scored, len(text.ids))
            row_of += [r] * len(scored)
            predict += [start + t - 1 for t in scored]
            targets += [text.ids[t] for t in scored]
            owner += [i] * len(scored)
            start = end
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    mask = causal & (segments[:, :, None] == segments[:, None, :])
    return Batch(
        input_ids=ids,
        position_ids=positions,
        mask=mask[:, None],
        row=torch.tensor(row_of, dtype=torch.long),
        predict_from=torch.tensor(predict, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        option=torch.tensor(owner, dtype=torch.long),
        num_options=(1,) * len(texts),
        num_tokens=total,
    )
