"""Which runs train in one step each, side by side on one base, and how many of them pay."""

from __future__ import annotations

from collections.abc import Sequence

from nora import kinds
from nora.config.schema import ExecSpec, has_gpu
from nora.kinds import AnySpec, FewShotSpec, InstructSpec
from nora.tables.cell import Cell

BANK_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Tokens of one step beyond which more members cost what they cost one by one (``nora bench sweep``)."""


def in_banks(
    specs: Sequence[AnySpec | None], settings: ExecSpec, *, on_gpu: bool, processes: int = 1
) -> list[list[int]]:
    """The places of the specs in their order, those side by side that can be trained in one step each, as many as pay;
    every process has some."""
    alike: dict[str, list[int]] = {}
    for place, spec in enumerate(specs):
        key = None if spec is None or settings.bank == 1 or settings.compile else kinds.bank_key(spec)
        alike.setdefault(key or f"alone {place}", []).append(place)
    banks = []
    for group in alike.values():
        first, most = specs[group[0]], settings.bank or 1
        if settings.bank is None and len(group) > 1 and isinstance(first, FewShotSpec | InstructSpec):
            most = BANK_TOKENS["cuda" if on_gpu else "cpu"] // kinds.step_tokens(first)
        size = max(1, min(most, -(-len(group) // processes)))
        parts = -(-len(group) // size)
        banks += [group[i::parts] for i in range(parts)]
    return banks


def local_banks(cells: Sequence[Cell[AnySpec]], settings: ExecSpec) -> list[list[Cell[AnySpec]]]:
    """The cells as ``nora launch`` trains them on this machine, a run that serves two of them once."""
    once = list({cell.id: cell for cell in cells}.values())
    specs = [cell.spec for cell in once]
    banks = in_banks(specs, settings, on_gpu=has_gpu(settings), processes=settings.processes)
    return [[once[place] for place in bank] for bank in banks]
