"""What to say about a Hub repository that stays shut."""

from __future__ import annotations


def how_to_unlock(repo: str) -> str:
    """Where a gated repository's licence is accepted, and by which variable the Hub knows who accepted it."""
    return f"accept its licence at https://huggingface.co/{repo}, then set HF_TOKEN (or run `hf auth login`) and repeat"
