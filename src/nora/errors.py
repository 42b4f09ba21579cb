"""Errors with an exit code of their own, and the one way to refuse a name."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """The user's input is wrong: one clear line (given, allowed, where), exit code 2."""


class RunFailed(Exception):
    """The work itself failed: exit code 1."""


class ProcessLost(RunFailed):
    """Another of the processes that share the run does not answer any more."""


class Interrupted(Exception):
    """The run was asked to stop; a later attempt goes on from its saved state, or (``saved=False``) from the start."""

    def __init__(self, step: int, *, saved: bool = True) -> None:
        super().__init__(f"stopped at step {step}, {'its state is saved' if saved else 'it starts afresh'}")
        self.step = step


class BankEnded(Exception):
    """The bank a run was a member of goes no further; the run goes on by itself."""


class AlreadyRunning(Exception):
    """Another live attempt has this run: nothing is to be done here."""


def not_installed(error: ModuleNotFoundError) -> str:
    """What to say of a package that a plain install does not bring. Raises the error again where it is our own."""
    if (error.name or "nora").partition(".")[0] == "nora":
        raise error
    return (
        f"nora: {error.name} is not installed: the pipeline is an extra, pip install 'nora-lora[all]' (in a checkout: "
        "make setup); nora.adapters works without it"
    )


def nearest(given: str, allowed: Sequence[str], prefix: str = "") -> str:
    """ "did you mean X?" with the nearest of the allowed names, "" if none is near."""
    from difflib import get_close_matches

    near = get_close_matches(given, allowed, n=1)
    return f"did you mean {prefix}{near[0]}?" if near else ""


def among(given: str, allowed: Sequence[str], said: str = "allowed", prefix: str = "") -> str:
    """What is allowed, after the question whether the nearest of it was meant: of a long list nobody reads the end."""
    return " ".join(filter(None, (nearest(given, allowed, prefix), said, ", ".join(allowed))))


def one_of(where: str, given: str, allowed: Sequence[str], said: str = "allowed") -> None:
    """UserError that lists what is allowed, the nearest of it first, if ``given`` is none of them."""
    if given not in allowed:
        raise UserError(f"{where}: given {given!r}, {among(given, allowed, said)}")
