"""Errors with an exit code of their own."""


class UserError(Exception):
    """The user's input is wrong: one clear line (given, allowed, where), exit code 2."""


class RunFailed(Exception):
    """The work itself failed: exit code 1."""
