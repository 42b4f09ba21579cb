"""Two people, one store: in a setgid folder everything belongs to the group; elsewhere it is its maker's alone."""

from __future__ import annotations

import os
import pwd
import stat
from contextlib import suppress
from pathlib import Path


def share(root: Path) -> None:
    """Where a store's folder (or the one it will be made in) is setgid and its group may write there, what this process
    writes from here on is writable to the group too, whatever its umask was; so is what its jobs write."""
    there = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    mode = there.stat().st_mode
    if mode & stat.S_ISGID and mode & stat.S_IWGRP:
        os.umask(os.umask(0o077) & ~stat.S_IRWXG)


def refusal(error: PermissionError) -> str:
    """One line on what may not be written, or read: whose it is, and how a store is shared."""
    path = Path(str(error.filename or "a file"))
    whose = ""
    for place in (path, path.parent):
        with suppress(OSError, KeyError):
            found = place.stat()
            owner = pwd.getpwuid(found.st_uid).pw_name
            whose = f" ({place.name} belongs to {owner}, mode {stat.S_IMODE(found.st_mode):04o})"
            break
    return (
        f"{path}: permission denied{whose}; a store of several people is a folder of their group, setgid and "
        "group-writable (chgrp GROUP, chmod 2775), or each has one of their own: exec.results=FOLDER"
    )
