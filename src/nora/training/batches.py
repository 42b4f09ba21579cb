"""Examples and instructions → token rows: candidates that share a prompt, texts side by side; one batch format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
    """Rows of equal length. b rows, n tokens, t scored tokens, c candidates over all examples of the batch."""

    input_ids: Tensor  # [b, n]
    position_ids: Tensor  # [b, n]
    mask: Tensor  # [b, 1, n, n] bool, True where the query (row) may read the key (column)
    row: Tensor  # [t] the row of each scored token
    predict_from: Tensor  # [t]
    targets: Tensor  # [t]
    option: Tensor  # [t] index into the batch's flat list of candidates
    num_options: tuple[int, ...]  # candidates of each example, in order
    num_tokens: int  # real tokens, padding not counted
    members: int = 1  # of a bank: how many times the same rows are here
    padded: tuple[int, int] | None = None
    """Rows and length of the same texts one to a row, where they lie side by side here: dropout is drawn for those."""
    source: Tensor | None = None  # [b · n] for each token its place among those rows' tokens

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
            members=times,
            padded=self.padded,
            source=self.source,
        )


def _assemble(
    rows: Sequence[Row], bins: Sequence[Sequence[int]], width: int, *, pad_id: int, num_options: tuple[int, ...]
) -> Batch:
    """The batch whose b-th row holds the texts ``bins[b]`` side by side, each blind to the others."""
    input_ids = torch.full((len(bins), width), pad_id)
    position_ids = torch.zeros(len(bins), width, dtype=torch.long)
    segments = torch.full((len(bins), width), -1)
    owners = torch.full((len(bins), width), -1)
    padded = len(rows), _up_to_eight(max(len(row.tokens) for row in rows))
    source = torch.zeros(len(bins), width, dtype=torch.long)
    scored: list[tuple[int, int, int, int]] = []
    for b, members in enumerate(bins):
        start = 0
        for i in members:
            row = rows[i]
            own = slice(start, start + len(row.tokens))
            input_ids[b, own] = torch.tensor(row.tokens)
            position_ids[b, own] = torch.tensor(row.positions)
            segments[b, own] = torch.tensor(row.segments)
            owners[b, own] = i
            source[b, own] = i * padded[1] + torch.arange(len(row.tokens))
            wanted = zip(row.predict_from, row.targets, row.options, strict=True)
            scored += [(b, start + p, target, option) for p, target, option in wanted]
            start += len(row.tokens)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    query, key = segments[:, :, None], segments[:, None, :]
    mask = causal & (owners[:, :, None] == owners[:, None, :]) & ((key == 0) | (key == query))
    row_of, predict_from, targets, option = torch.tensor(scored, dtype=torch.long).reshape(-1, 4).unbind(1)
    alone = len(bins) == len(rows)
    return Batch(
        input_ids=input_ids,
        position_ids=position_ids,
        mask=mask[:, None],
        row=row_of,
        predict_from=predict_from,
        targets=targets,
        option=option,
        num_options=num_options,
        num_tokens=sum(len(row.tokens) for row in rows),
        padded=None if alone else padded,
        source=None if alone else source.flatten(),
    )


def _up_to_eight(length: int) -> int:
    return -(-length // 8) * 8


def _fill(lengths: Sequence[int], count: int) -> tuple[list[list[int]], int]:
    """``count`` bins and the length of the fullest: the longest text first, each next one to the shortest bin."""
    bins: list[list[int]] = [[] for _ in range(count)]
    filled = [0] * count
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        shortest = filled.index(min(filled))
        bins[shortest].append(i)
        filled[shortest] += lengths[i]
    return bins, max(filled)


_ATTENTION = 768
"""Keys at which the scores of a row cost what its products with the weights do: longer rows, fewer gains."""


def _side_by_side(lengths: Sequence[int]) -> tuple[list[list[int]], int]:
    """The bins that cost least: as many rows as keep each near the longest text, and no padding that can be avoided."""
    best, least = _fill(lengths, len(lengths)), float("inf")
    for count in range(len(lengths), 0, -1):
        bins, longest = _fill(lengths, count)
        width = _up_to_eight(longest)
        cost = count * width * (1 + width / _ATTENTION)
        if cost < least:
            best, least = (bins, width), cost
    return best


def collate(
    encoded: Sequence[EncodedExample],
    *,
    pad_id: int,
    share_prompt: bool = True,
    only: Sequence[int] | None = None,
    side_by_side: bool = False,
) -> Batch:
    """Rows → one right-padded batch (a multiple of 8 long).

    ``share_prompt`` puts all candidates of an example into one row; otherwise each has its own. ``only`` keeps one
    candidate per example (the training target of a language-model loss). ``side_by_side`` puts short rows into one, so
    that less is padding.
    """
    rows: list[Row] = []
    num_options: list[int] = []
    total = 0
    for i, example in enumerate(encoded):
        wanted = list(range(len(example.sequences))) if only is None else [only[i]]
        for group in [wanted] if share_prompt else [[c] for c in wanted]:
            row = build_row(example, group)
            row.options = [total + wanted.index(c) for c in row.options]
            rows.append(row)
        num_options.append(len(wanted))
        total += len(wanted)
    lengths = [len(row.tokens) for row in rows]
    bins, width = [[i] for i in range(len(rows))], _up_to_eight(max(lengths))
    if side_by_side:
        fewer, longer = _side_by_side(lengths)
        if len(fewer) < len(bins):
            bins, width = fewer, longer
    return _assemble(rows, bins, width, pad_id=pad_id, num_options=tuple(num_options))


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
    lengths = [len(text.ids) for text in texts]
    total = sum(lengths)
    for count in range(max(1, min(len(texts), round(total / target_tokens))), 0, -1):
        bins, width = _fill(lengths, count)
        if width * count <= total * (1 + WASTE):
            break
    rows = []
    for i, text in enumerate(texts):
        scored = range(text.first_scored, len(text.ids))
        rows.append(
            Row(
                list(text.ids),
                list(range(len(text.ids))),
                [0] * len(text.ids),
                predict_from=[t - 1 for t in scored],
                targets=[text.ids[t] for t in scored],
                options=[i] * len(scored),
            )
        )
    return replace(_assemble(rows, bins, width, pad_id=pad_id, num_options=(1,) * len(texts)), padded=None, source=None)
