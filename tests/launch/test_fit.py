"""What a run needs of a device: a batch that is too large is computed in parts, and what does not fit is marked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nora import cli, kinds
from nora.errors import UserError
from nora.execution.execute import fitted
from nora.kinds import compose_run
from nora.kinds.parts.cost import Cost, fit
from nora.kinds.parts.sizing import Sizes, tokens_at_once
from nora.training import objectives

Out = pytest.CaptureFixture[str]
GEMMA = ["scale=paper", "task=gsm8k", "protocol=metamath", "model=gemma_7b", "method.rank=32"]


@pytest.mark.parametrize(
    ("device", "part", "fits"), [(1000, None, True), (80, 32, True), (60, 16, True), (14, 2, True), (10, 1, False)]
)
def test_the_largest_half_of_a_half_that_fits(device: float, part: int | None, fits: bool) -> None:
    """8 GiB of weights and 2 GiB an example, 10 % of the device left free."""
    found = fit(lambda micro: Cost(memory_gib=8.0 + 2.0 * (micro or 128)), 128, device)
    assert (found.micro_batch_size, found.fits) == (part, fits)
    assert found.memory_gib == 8.0 + 2.0 * (part or 128)


def test_a_batch_that_may_not_be_divided_is_not(checkout: Path) -> None:
    """The released code preconditions every part of a batch: another part is another run."""
    words = ["scale=paper", "task=commonsense", "model=llama_7b", "method=nora_plus"]
    released, _, _ = compose_run(checkout, [*words, "protocol=llm_adapters_released"])
    plain, _, _ = compose_run(checkout, [*words, "protocol=llm_adapters"])
    assert kinds.fit(released, 20).micro_batch_size is None and not kinds.fit(released, 20).fits
    assert kinds.fit(plain, 20).micro_batch_size == 2 and kinds.fit(plain, 20).fits


def test_the_run_divides_as_the_plan_says_and_what_is_typed_stays(checkout: Path) -> None:
    spec, settings, _ = compose_run(checkout, GEMMA)
    assert fitted(settings, spec, 80).micro_batch_size == kinds.fit(spec, 80).micro_batch_size == 16
    assert fitted(settings, spec, None) is settings, "a CPU's memory is not the run's alone"
    typed = replace(settings, micro_batch_size=4)
    assert fitted(typed, spec, 80) == replace(typed, read_every=10)
    assert fitted(replace(typed, read_every=1), spec, 80).read_every == 1
    small, own, _ = compose_run(checkout, ["scale=mini", "task=cb"])
    assert fitted(own, small, 16).micro_batch_size is None, "nothing changes where a batch fits"


def test_gemma_at_batch_128_is_planned_in_parts_of_80_gib(capsys: Out) -> None:
    assert cli.main(["plan", "table9", "scale=paper"]) == 0
    said = capsys.readouterr().out
    assert "batches in parts of 16, gradients summed: so they fit 80 GiB" in said and "NOT FIT" not in said
    assert cli.main(["plan", "table9", "scale=paper", "--json"]) == 0
    (cells,) = json.loads(capsys.readouterr().out).values()
    for cell in cells:
        assert cell["micro_batch_size"] == 16 and cell["fits"] and cell["memory_gib"] < 72


def test_a_cell_that_does_not_fit_its_profile_is_marked_with_what_would(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out, tmp_path: Path
) -> None:
    profile = yaml.safe_load((checkout / "slurm" / "profiles" / "h100.yaml").read_text())
    profile["gpu"]["memory_gib"] = 16
    site = tmp_path / "site"
    (site / "slurm" / "profiles").mkdir(parents=True)
    (site / "slurm" / "profiles" / "small.yaml").write_text(yaml.safe_dump(profile))
    for name in ("conf", "src", "assets", "data"):
        (site / name).symlink_to(checkout / name)
    monkeypatch.chdir(site)
    words = ["exec=slurm", "exec.profile=small", f"exec.results={tmp_path / 'r'}"]
    assert cli.main(["plan", "table9", "scale=paper", *words]) == 0
    said = capsys.readouterr().out
    assert "DOES NOT FIT 16 GiB: 25 runs, the largest 20 GiB with one example at a time" in said
    assert "a device of 22 GiB would hold it" in said and said.count("does not fit 16 GiB") == 25


def test_a_profile_with_no_memory_is_refused(checkout: Path, tmp_path: Path) -> None:
    from nora.config.schema import validate
    from nora.launch.profile import Gpu

    with pytest.raises(UserError, match="memory_gib"):
        validate({"spelling": "gres", "memory_gib": 0}, Gpu)


def test_answers_are_sized_by_what_is_free() -> None:
    sizes = Sizes(weights=0, trained=0, per_text=0, per_cached_token=512 * 1024)  # LLaMA-7B in 16 bits
    assert tokens_at_once(sizes, 60 * 2**30) == 30 * 1024, "a quarter of it"
    assert tokens_at_once(sizes, 2 * 2**30) == 1024 and tokens_at_once(sizes, 0) == 8


def test_the_heads_chunk_grows_with_a_gpus_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    free: dict[str, Any] = {"bytes": 40 * 2**30}
    monkeypatch.setattr(objectives, "free_memory", lambda device: free["bytes"])
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert objectives._logits_at_once(cpu) == objectives.CHUNK_LOGITS
    assert objectives._logits_at_once(cuda) // 256_000 == 2621, "65 before"
    free["bytes"] = 2**20
    assert objectives._logits_at_once(cuda) == objectives.CHUNK_LOGITS


def test_a_chunk_changes_no_loss_and_no_gradient() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 16, generator=draw, dtype=torch.float64)
    weight, targets = torch.randn(50, 16, generator=draw, dtype=torch.float64), torch.arange(300) % 50

    def both(chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
        own = hidden.clone().requires_grad_()
        losses = objectives.token_losses(own, weight, targets, chunk=chunk)
        losses.sum().backward()
        assert own.grad is not None
        return losses.detach(), own.grad

    for one, other in zip(both(65), both(300), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_the_disk_holds_what_runs_keep_and_the_checkpoints_of_those_under_way(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The LLM-Adapters scripts print 56,098,816 trained parameters, 0.83 %, for LLaMA-7B at rank 32."""
    from types import SimpleNamespace

    from nora.launch import plan, readiness
    from nora.tables.target import load_target
    from nora.workspace import open_workspace

    workspace = open_workspace(["exec.processes=2", f"exec.results={tmp_path}"])
    target = load_target(checkout, "table4", ["scale=paper", "model=llama_7b", "method=nora"])
    planned = plan.current_plan(target, workspace)
    assert planned[0].cell.spec is not None and readiness._trained(planned[0].cell.spec) == 56_098_816
    need = (2 * 8 * 4 * 56_098_816 + len(planned) * 2**17) / 2**30
    for free, verdict in ((need + 0.01, "good"), (need - 0.01, "bad")):
        monkeypatch.setattr(readiness.shutil, "disk_usage", lambda path, f=free: SimpleNamespace(free=int(f * 2**30)))
        found = readiness._disk(planned, workspace)
        assert found.verdict == verdict and found.said.startswith(f"{need:.1f} GiB for {len(planned)} runs")
