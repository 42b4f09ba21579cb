"""Where the checkout is: conf/, data/, assets/ and results/ belong to it, not to the installed package."""

from __future__ import annotations

from pathlib import Path

from nora.errors import UserError


def find_checkout(start: Path | None = None) -> Path:
    """The folder with conf/config.yaml: the working directory, one above it, or the one this package was installed
    from in place. UserError elsewhere."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if (folder / "conf" / "config.yaml").is_file() and (folder / "src" / "nora").is_dir():
            return folder
    raise UserError(
        f"{here} is not inside a checkout of nora (no conf/config.yaml): this command needs one; "
        "nora.adapters and nora.factorization work anywhere"
    )
