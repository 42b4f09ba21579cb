"""The light notation of the documents' texts: X_t, κ^2, X_{t+1}^T as in TeX, and `code` in backquotes."""

from __future__ import annotations

import re
from collections.abc import Callable

# A subscript stands behind one letter or a bracket, and is short: opt_mini, q_proj and V_dog are names.
_SUB = re.compile(r"(?:(?<=[^\W\d_])(?<![A-Za-z]{2})|(?<=[)\]}‖]))_(?:\{((?:[^{}]|\{[^{}]*\})*)\}|(min|max|\w)(?!\w))")
_SUP = re.compile(r"\^(?:\{((?:[^{}]|\{[^{}]*\})*)\}|\(([^()]*)\)|([\w+]))")
_CODE = re.compile(r"`([^`]*)`")


def rendered(
    text: str, *, plain: Callable[[str], str], sub: Callable[[str], str], sup: Callable[[str], str],
    code: Callable[[str], str],
) -> str:  # fmt: skip
    """The text with each kind of piece spelt by its function; ``sub`` and ``sup`` get what stands raised or lowered."""
    found = min(
        (match for pattern in (_SUB, _SUP, _CODE) if (match := pattern.search(text))),
        key=lambda match: match.start(),
        default=None,
    )
    if found is None:
        return plain(text)
    spell = {_SUB: sub, _SUP: sup, _CODE: code}[found.re]
    inner = next(group for group in found.groups() if group is not None)
    rest = rendered(text[found.end() :], plain=plain, sub=sub, sup=sup, code=code)
    return plain(text[: found.start()]) + spell(inner) + rest
