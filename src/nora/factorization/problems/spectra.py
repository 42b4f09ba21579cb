"""Prescribed spectra, largest value first."""

from __future__ import annotations


def plateau(count: int, *, step: float = 0.01, tail: tuple[float, ...] = ()) -> tuple[float, ...]:
    """1, 1 - step, 1 - 2 step, ... (``count`` values), then ``tail``: the spectra of Appendix E.1.

    plateau(19, tail=(0.01,)) is Figure 1(a, b) and Figure 4; plateau(37, tail=(0.05, 0.025, 0.01)) is Figure 1(c).
    """
    return (*(round(1 - step * i, 12) for i in range(count)), *tail)


def geometric(count: int, kappa: float) -> tuple[float, ...]:
    """From 1 down to 1/kappa in equal ratios."""
    if count < 1 or kappa < 1:
        raise ValueError(f"count, kappa: given {count}, {kappa}, required count >= 1 and kappa >= 1")
    return tuple(kappa ** (-i / max(count - 1, 1)) for i in range(count))
