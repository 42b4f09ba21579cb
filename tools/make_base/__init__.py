"""How the shipped bases were made: ``nora pretrain MODEL`` in a checkout comes here. No user of the package runs it."""

from __future__ import annotations

from pathlib import Path

import yaml

from nora.config import limits
from nora.config.pins import assets_manifest
from nora.errors import UserError, one_of
from nora.files import write_atomic


def make_base(name: str, *, corpus: Path | None, checkout: Path, out: Path | None) -> int:
    """Pretrains conf/pretrain/NAME.yaml and writes assets/NAME with its card; returns the exit code."""
    folder = checkout / "conf" / "pretrain"
    one_of("MODEL", name, sorted(path.stem for path in folder.glob("*.yaml")))
    limits.check_file(folder / f"{name}.yaml")
    recipe = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    if recipe.get("kind") == "diffusion":
        if corpus is not None:
            raise UserError(f"--corpus: {name} is made from drawn scenes and data/dreambooth; leave it out")
        from make_base.pictures import make_pipeline

        return _listed(checkout, make_pipeline(name, recipe, checkout=checkout, out=out))
    if corpus is None:
        raise UserError(f"--corpus FOLDER: required for {name}")
    from make_base.text import make_text_base

    return _listed(checkout, make_text_base(name, recipe, corpus=corpus, checkout=checkout, out=out))


def _listed(checkout: Path, code: int) -> int:
    """The exit code, after assets/MANIFEST.json has the hashes of what is there now."""
    write_atomic(checkout / "assets" / "MANIFEST.json", assets_manifest(checkout))
    return code
