"""The README's "To add …": each row really done in a copy of the checkout, by the files it names and no other."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Copy = Callable[[dict[str, str]], Callable[..., str]]

INIT = '''"""A constant start."""

import torch
from torch import Tensor

from nora.adapters.inits import Factors

PEFT_INIT = True
MOVES_BASE = False
OPTIONS: dict[str, object] = {}


def factors(weight: Tensor, rank: int, *, scaling: float, generator: torch.Generator) -> Factors:
    """A = 1/in, B = 0."""
    out_features, in_features = weight.shape
    A = torch.full((rank, in_features), 1 / in_features, device=weight.device)
    return Factors(A, torch.zeros(out_features, rank, device=weight.device))
'''
METHOD = "name: mine\nadapter: lora\ninit: constant\nrank: 8\nalpha: 16\ndropout: 0.0\n"
TASK = '''"""Odd or even?"""

from nora.tasks.example import Example, HubSource, Row, labelled, require_fields

LABEL = "Parity"
SOURCE = HubSource("me/parity", "", "train", "validation", 16, 8)
FIELDS = ("number", "label")
LOSS = "classification"
TOKENS, OPTIONS = 8, 2
METRIC = "accuracy"


def build(row: Row) -> Example:
    require_fields(row, FIELDS, task="parity")
    return labelled(f"Is {row['number']} odd or even?\\n", ("even", "odd"), row["label"], task="parity")
'''
TASK_YAML = "name: parity\nsuite: superglue\nsource: slice\n" + "".join(
    f"{key}: ${{scale.task.parity.{key}}}\n" for key in ("num_train", "num_dev", "num_test")
)
KIND = '''"""``kind=spectrum``: the singular values of a random matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic.dataclasses import dataclass

from nora.config.schema import STRICT, Count, Seed
from nora.files import Json
from nora.kinds.parts.cost import Cost, Label

if TYPE_CHECKING:
    from nora.kinds.parts.recipe import Outcome, RunContext


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SpectrumProtocol:
    name: Literal["spectrum"]
    version: Count
    size: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Spec:
    kind: Literal["spectrum"]
    protocol: SpectrumProtocol
    seed: Seed


def label(spec: Spec) -> Label:
    return Label("spectrum", f"size {spec.protocol.size}", ("spectrum",))


def headline(metrics: Mapping[str, Json]) -> str:
    return f"largest {metrics['largest']:.3f}"


def like(spec: Spec) -> tuple[str, str, str]:
    return "spectrum", str(spec.protocol.size), ""


def cost(spec: Spec) -> Cost:
    return Cost()


def execute(spec: Spec, context: RunContext) -> Outcome:
    import torch

    from nora import streams
    from nora.kinds.parts.recipe import Outcome

    size = spec.protocol.size
    values = torch.linalg.svdvals(torch.randn(size, size, generator=streams.generator(spec.seed, "weights")))
    return Outcome(metrics={"largest": float(values[0])}, proof={"init": "none", "passed": True, "problems": []})
'''


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """``copy({file: text})`` makes a checkout with these files added; what it returns runs ``nora`` there."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "src", "conf", "slurm/profiles", "data/cb", "data/MANIFEST.json", "assets/opt_mini",
         "assets/MANIFEST.json"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())

    def make(files: dict[str, str]) -> Callable[..., str]:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

        def nora(*words: str) -> str:
            done = subprocess.run(
                [sys.executable, "-m", "nora", *words], cwd=tmp_path, capture_output=True, text=True, check=False,
                env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            return done.stdout

        return nora

    return make


def test_an_init(copy: Copy) -> None:
    nora = copy({"src/nora/adapters/inits/constant.py": INIT, "conf/method/mine.yaml": METHOD})
    out = nora("run", "scale=smoke", "task=cb", "method=mine", "exec.progress=false")
    assert "mine on cb" in out and "init proved" in out


def test_a_task(copy: Copy) -> None:
    rows = "".join(json.dumps({"number": i, "label": i % 2}) + "\n" for i in range(24))
    manifest = json.loads((ROOT / "data" / "MANIFEST.json").read_text())
    entry = {"rows": 24, "sha256": hashlib.sha256(rows.encode()).hexdigest()}
    sizes = (ROOT / "conf" / "scale" / "smoke.yaml").read_text()
    sizes = sizes.replace("\n  task:\n", "\n  task:\n    parity: {num_train: 8, num_dev: 8, num_test: 8}\n")
    nora = copy({
        "src/nora/tasks/superglue/parity.py": TASK,
        "conf/task/parity.yaml": TASK_YAML,
        "conf/scale/smoke.yaml": sizes,
        "data/parity/train.jsonl": rows,
        "data/parity/validation.jsonl": rows,
        "data/MANIFEST.json": json.dumps(
            {**manifest, "parity/train.jsonl": entry, "parity/validation.jsonl": entry}
        ),
    })  # fmt: skip
    assert "on parity" in nora("run", "scale=smoke", "task=parity", "exec.progress=false")


def test_a_table(copy: Copy) -> None:
    table = "cells_of: table2\ntitle: Two methods\nlayout: methods_by_tasks\nrows: [lora, nora]\nbelow_rule: []\n"
    nora = copy({"conf/table/two.yaml": table})
    words = ("two", "scale=smoke", "task=cb", "seed=0")
    nora("launch", *words, "exec.processes=1")
    written = nora("collate", *words).split()
    text = next(Path(name) for name in written if name.endswith("two.smoke.md")).read_text(encoding="utf-8")
    assert "| NoRA" in text and "| LoRA" in text and "missing" not in text


def test_a_kind_of_run(copy: Copy) -> None:
    nora = copy({
        "src/nora/kinds/spectrum.py": KIND,
        "conf/kind/spectrum.yaml": "# @package _global_\ndefaults:\n  - override /model: null\n"
        "  - override /task: null\n  - override /method: null\n  - override /protocol: spectrum\nkind: spectrum\n",
        "conf/protocol/spectrum.yaml": "name: spectrum\nversion: 1\nsize: 16\n",
    })  # fmt: skip
    out = nora("run", "kind=spectrum", "seed=3", "exec.progress=false")
    assert "spectrum on size 16, seed 3: largest" in out
    identity = out.split()[0]
    assert "largest" in nora("show", identity)


def test_a_cluster(copy: Copy) -> None:
    profile = (ROOT / "slurm" / "profiles" / "h100.yaml").read_text().replace("partition: null", "partition: mine")
    nora = copy({"slurm/profiles/site.yaml": profile})
    script = nora("plan", "table2", "scale=smoke", "task=cb", "seed=0", "exec=slurm", "exec.profile=site", "--sbatch")
    assert "#SBATCH --partition=mine" in script
