"""The code of a submission: the commit as it is at launch, unpacked once beside the results."""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
import subprocess
import tarfile
from pathlib import Path

from nora.runs import provenance
from nora.runs.errors import UserError
from nora.runs.files import write_atomic
from nora.runs.hub import DOWNLOADS

_LEFT_OUT = (":!results", ":!tests", ":!benchmarks")


def snapshot(checkout: Path, results: Path) -> tuple[Path, str]:
    """The folder with the checkout's commit and the commit; UserError where the checkout differs from any commit."""
    version = provenance.code_version(checkout)
    commit = version["commit"]
    if commit is None:
        raise UserError("exec.code=snapshot: this checkout has no git commit; use exec.code=live")
    if version["dirty"]:
        raise UserError(
            "exec.code=snapshot: a tracked file differs from the last commit; commit it, or use exec.code=live "
            "(jobs then run whatever the checkout holds when they start)"
        )
    folder = results / "snapshots" / commit[:16]
    if (folder / provenance.SNAPSHOT).is_file():
        return folder, commit
    made = folder.parent / f".tmp-{secrets.token_hex(8)}"
    made.mkdir(parents=True)
    try:
        archive = subprocess.run(
            ["git", "-C", str(checkout), "archive", commit, "--", ".", *_LEFT_OUT], capture_output=True, check=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(made, filter="data")
        (made / DOWNLOADS).parent.mkdir(exist_ok=True)
        (made / DOWNLOADS).symlink_to(checkout / DOWNLOADS)  # in no commit; named by theirs, rows counted when read
        write_atomic(made / provenance.SNAPSHOT, json.dumps({"commit": commit}))
        try:
            os.rename(made, folder)
        except OSError:
            if not (folder / provenance.SNAPSHOT).is_file():  # not another launch's, made meanwhile
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder, commit
