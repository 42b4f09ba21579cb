"""Errors with an exit code of their own."""


class UserError(Exception):
    """The user's input is wrong: one clear line (given, allowed, where), exit code 2."""


class RunFailed(Exception):
    """The work itself failed: exit code 1."""


class Interrupted(Exception):
    """The run was asked to stop, saved its state and can be continued by a later attempt."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}, its state is saved")
        self.step = step


class AlreadyRunning(Exception):
    """Another live attempt has this run: nothing is to be done here."""
