"""Where downloads lie, and what to say about a Hub repository that stays shut."""

from __future__ import annotations

from pathlib import Path

DOWNLOADS = Path("data") / "hub"  # files that `nora prefetch` brings, below the checkout


def how_to_unlock(repo: str) -> str:
    """Where a gated repository's licence is accepted, and by which variable the Hub knows who accepted it."""
    return f"accept its licence at https://huggingface.co/{repo}, then set HF_TOKEN (or run `hf auth login`) and repeat"


def not_here(repo: str, revision: str, error: Exception) -> str:
    """One line for a repository whose commit cannot be loaded: why, and how it gets here."""
    return (
        f"{repo}: commit {revision} cannot be loaded ({str(error).splitlines()[0]}); `nora prefetch` for its table, on "
        f"a machine with network, brings it here. Where it is gated: {how_to_unlock(repo)}"
    )
