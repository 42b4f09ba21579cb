"""PEFT's own tests with our start and our optimiser in place of theirs (ours.py says how), in a process of their own.

Every failure is expected by name, with its reason and its count; one more, one fewer or another one is a failure here.
Tests that want a model of the Hub are skipped. What takes long is marked ``slow``; the default runs the whole matrix of
custom models (every kind of layer that PEFT wraps), Riemannian, mixed adapters and the initialisation tests but for
hot-swapping, CorDA and EVA.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = [pytest.mark.peers, pytest.mark.timeout(900)]  # minutes where the processors are shared


@dataclass(frozen=True)
class Expected:
    """Failures whose ``Class::test[case]`` matches ``pattern`` from its beginning."""

    pattern: str
    count: int
    reason: str

    def agrees(self, found: int) -> bool:
        """Whether as many have failed as expected; what a rounding decides may also hold on another processor."""
        return found <= self.count if self.reason == CLOSE else found == self.count


@dataclass(frozen=True)
class Outcome:
    passed: int
    failed: list[str]
    skipped: int


def run(source: Path, files: list[str], report: Path, *, mode: str, only: str | None = None) -> Outcome:
    """PEFT's test files under the plugin; raises CalledProcessError where pytest itself could not run."""
    (unpacked,) = source.glob("peft-*/")
    paths = [str(source / "beside"), str(HERE), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "NORA_PEERS": mode}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "ours", "-p", "no:cacheprovider", "-c", os.devnull]
    command += ["--rootdir", str(unpacked), "-q", "--tb=no", f"--junitxml={report}", *(["-k", only] if only else [])]
    command += [str(unpacked / "tests" / f"test_{name}.py") for name in files]
    done = subprocess.run(command, cwd=unpacked, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout[-3000:], done.stderr[-3000:])
    outcomes: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').removeprefix('tests.')}::{case.get('name')}"
        kinds = {child.tag for child in case}
        bad = kinds & {"failure", "error"}
        outcomes[name] = "failed" if bad else "skipped" if "skipped" in kinds else "passed"
    counts = Counter(outcomes.values())
    failed = sorted(name for name, outcome in outcomes.items() if outcome == "failed")
    return Outcome(counts["passed"], failed, counts["skipped"])


def check(outcome: Outcome, expected: list[Expected], *, passed: int) -> None:
    found: Counter[str] = Counter()
    surprises = []
    for name in outcome.failed:
        matching = [one.pattern for one in expected if re.match(one.pattern, name)]
        if len(matching) == 1:
            found[matching[0]] += 1
        else:
            surprises.append(name)
    assert surprises == [], "failures that nobody expected"
    wrong = {one.pattern: (found[one.pattern], one.count) for one in expected if not one.agrees(found[one.pattern])}
    assert wrong == {}, "found, expected"
    assert outcome.passed >= passed, f"{outcome.passed} passed, {outcome.skipped} skipped"


KASA = "KaSA has changed the base weight, so that no sketch of the pretrained one can be taken: refused"
KAIMING = "asserts the distribution of PEFT's own start"
SMALL = "asserts that two outputs differ by 1e-3: true of PEFT's A, not of one of a tenth of the weight's size"
CLOSE = "asserts equality to 1e-8 near zero, where float32 rounds"
CORRELATED = "asserts correlations between merged adapters that hold for independent A; two sketches of one W are alike"
LATE = "an embedding starts with B = 0 (PEFT's with A = 0): in three steps its A moves less than the test's 1e-4"
WORDS = "our ValueError says what PEFT's says in other words"

CUSTOM = [
    Expected(r".*::.*\[(.*-)?Vanilla MLP 1 LoRA with KaSA", 17, KASA),
    Expected(
        r"test_custom_models.TestMultipleActiveAdapters::test_merge_layers_multi\[LoRA \+ trainable tokens Same",
        1,
        SMALL,
    ),
    Expected(
        r"test_custom_models.TestMixedAdapterBatches::test_mixed_adapter_batches_mlp\[LoRA mixed adapter-", 1, CLOSE
    ),
    Expected(
        r"test_custom_models.TestPeftCustomModel::test_add_weighted_adapter_with_different_scaling\[", 5, CORRELATED
    ),
    Expected(
        r"test_custom_models.TestPeftCustomModel::test_only_params_are_updated\[Embedding \+ .*Conv1D [23] L",
        2,
        LATE,
    ),
    Expected(
        r"test_custom_models.TestDynamicDispatch::test_target_layer_without_in_features_out_features",
        1,
        "a layer of the test's own that carries no factors: there is nothing to start, refused",
    ),
]
RIEMANNIAN = [Expected(r"test_riemannian_lora.TestRiemannianOptimizer::test_raises_when_", 3, WORDS)]
INITIALISATION = [
    Expected(
        r"test_initialization.TestLoraInitialization::test_lora_(linear_init|embedding|conv2d)_default$", 3, KAIMING
    ),
    Expected(r"test_initialization.TestKasaInitialization::", 2, KASA),
]
# Two tests wait for the Hub for most of a minute before they give up.
WAITING = "not test_nemotron_h_has_defaults and not test_trainable_token_indices_targets_head_and_embedding"
PROPOSAL = [
    Expected(
        r"test_custom_models.TestPeftCustomModel::test_(merge_layers|safe_merge|save_load_.*)\[Embedding .*1 DoRA",
        3,
        SMALL,
    ),
    Expected(
        r"test_custom_models.TestPeftCustomModel::test_(safe_merge|save_load_roundtrip)\[Conv1d LoRA with DoRA",
        2,
        SMALL,
    ),
    Expected(
        r"test_custom_models.TestMultipleActiveAdapters::test_merge_layers_multi\[LoRA \+ trainable tokens ", 2, SMALL
    ),
    Expected(r"test_custom_models.TestMixedAdapterBatches::test_mixed_adapter_batches_partly_overlapping", 1, CLOSE),
    *RIEMANNIAN,
]


def test_every_kind_of_layer_mixed_adapters_and_the_optimiser(peft_source: Path, tmp_path: Path) -> None:
    outcome = run(peft_source, ["custom_models", "mixed", "riemannian_lora"], tmp_path / "report.xml", mode="start")
    check(outcome, [*CUSTOM, *RIEMANNIAN], passed=2734)


def test_initialisation(peft_source: Path, tmp_path: Path) -> None:
    only = f"(TestLoraInitialization or TestKasa or TestWeightTying) and {WAITING}"
    outcome = run(peft_source, ["initialization"], tmp_path / "report.xml", mode="start", only=only)
    check(outcome, INITIALISATION, passed=167)


@pytest.mark.slow
def test_all_of_initialisation(peft_source: Path, tmp_path: Path) -> None:
    outcome = run(peft_source, ["initialization"], tmp_path / "report.xml", mode="start", only=WAITING)
    check(outcome, INITIALISATION, passed=363)


@pytest.mark.slow
def test_the_proposal_in_every_kind_of_layer(peft_source: Path, tmp_path: Path) -> None:
    outcome = run(peft_source, ["custom_models", "mixed", "riemannian_lora"], tmp_path / "report.xml", mode="proposal")
    check(outcome, PROPOSAL, passed=2753)
