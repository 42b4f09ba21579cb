"""Errors with an exit code of their own."""


class UserError(Exception):
    """The user's input is wrong: one clear line (given, allowed, where), exit code 2."""


class RunFailed(Exception):
    """The work itself failed: exit code 1."""


class Interrupted(Exception):
    """The run was asked to stop; a later attempt goes on from its saved state, or (``saved=False``) from the start."""

    def __init__(self, step: int, *, saved: bool = True) -> None:
        super().__init__(f"stopped at step {step}, {'its state is saved' if saved else 'it starts afresh'}")
        self.step = step


class AlreadyRunning(Exception):
    """Another live attempt has this run: nothing is to be done here."""
