"""Site profiles, array layout and job scripts: all without SLURM."""

from __future__ import annotations

import json
import pickletools
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from nora import cli, kinds
from nora.errors import RunFailed, UserError
from nora.kinds import compose_run
from nora.launch.canary import canary_cells
from nora.launch.plan import plan
from nora.launch.profile import Profile, load_profile
from nora.launch.submission import create, layout, load
from nora.launch.submit import RunTask, script
from nora.store.index import NAME as INDEX
from nora.store.runs import Store
from nora.store.states import Snapshot, take_snapshot
from nora.tables.cell import Cell
from nora.tables.estimate import memory_gib
from nora.tables.methods import load_table

Out = pytest.CaptureFixture[str]


def _profile(checkout: Path, *more: str) -> Profile:
    return load_profile(checkout, compose_run(checkout, ["exec=slurm", *more])[1])


def _cells(checkout: Path, *more: str) -> list[Cell]:
    table = load_table(checkout, "table2", ["scale=smoke", "method=lora", *more])
    return table.cells({})


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "slurm" / "profiles").glob("*.yaml")))
def test_every_profile_is_valid(path: Path, checkout: Path) -> None:
    profile = _profile(checkout, f"exec.profile={path.stem}")
    assert profile.setup[0] == "set -euo pipefail"
    assert set(profile.resources) == set(kinds.names()), "every target can be launched"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("partitions", "x", "partitions: unknown key, did you mean partition? allowed here: partition, account"),
        ("requeues", True, "did you mean requeue?"),
        ("requeue", "yes", "requeue: given 'yes'"),
        ("gpu", {"spelling": "gpus", "type": None}, "gpu.spelling: given 'gpus'"),
        ("setup", ["module load cuda"], "its first line is 'module load cuda', required 'set -euo pipefail'"),
        ("parallel", 0, "parallel: given 0"),
        ("resources", {"finetune": {"gpus": 1}}, "resources.finetune.cpus: missing"),
        ("models", {"m": {"memory": 3}}, "models.m.memory: unknown key"),
    ],
)
def test_a_wrong_profile_is_one_line(key: str, value: object, said: str, checkout: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((checkout / "slurm" / "profiles" / "h100.yaml").read_text())
    folder = tmp_path / "slurm" / "profiles"
    folder.mkdir(parents=True)
    (folder / "h100.yaml").write_text(yaml.safe_dump({**content, key: value}))
    with pytest.raises(UserError, match="slurm/profiles/h100.yaml") as error:
        load_profile(tmp_path, compose_run(checkout, ["exec=slurm"])[1])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_cluster_words_on_a_laptop_are_refused_and_an_unknown_site_is_named(capsys: Out) -> None:
    assert cli.main(["plan", "table2", "exec.parallel=3"]) == 2
    assert "exec.parallel: no meaning with exec=local" in capsys.readouterr().err
    assert cli.main(["plan", "table2", "scale=smoke", "exec=slurm", "exec.profile=h10"]) == 2
    assert "did you mean h100? slurm/profiles has h100, testbed" in capsys.readouterr().err
    assert cli.main(["run", "scale=smoke", "exec=slurm"]) == 2
    assert "nora launch TARGET exec=slurm" in capsys.readouterr().err


def test_exec_never_changes_an_id(checkout: Path) -> None:
    from nora.config.spec import run_id

    here = run_id(compose_run(checkout, ["scale=smoke"])[0])
    assert here == run_id(compose_run(checkout, ["scale=smoke", "exec=slurm", "exec.code=live"])[0])


def test_arrays_list_every_run_once_in_fixed_tasks(checkout: Path) -> None:
    profile = _profile(checkout, "exec.runs_per_task=3", "exec.max_array_size=2")
    made = _cells(checkout)
    arrays = layout([*made, *made], profile)
    assert [len(a.tasks) for a in arrays] == [2, 2, 2] and [a.num_runs for a in arrays] == [6, 6, 4]
    assert [i for a in arrays for ids in a.tasks for i in ids] == [c.id for c in made]
    assert layout(made, profile) == arrays, "the same cells give the same arrays"
    bigger = replace(profile, models={"opt_smoke": replace_change(time_min=9)})
    assert {a.resources.time_min for a in layout(made, bigger)} == {9}


def replace_change(**values: int) -> object:
    """A base model's departure."""
    from nora.launch.profile import ResourceChange

    return ResourceChange(**values)


@pytest.mark.parametrize(
    ("spelling", "kind", "line"),
    [
        ("gpus_per_node", None, "#SBATCH --gpus-per-node=1"),
        ("gpus_per_node", "h100", "#SBATCH --gpus-per-node=h100:1"),
        ("gres", None, "#SBATCH --gres=gpu:1"),
        ("gres", "h100", "#SBATCH --gres=gpu:h100:1"),
    ],
)
def test_the_script_says_what_the_profile_says(spelling: str, kind: str | None, line: str, checkout: Path) -> None:
    base = _profile(checkout, "exec.partition=p1", "exec.parallel=5")
    profile = replace(base, gpu=replace(base.gpu, spelling=spelling, type=kind), account="a1", extra={"nice": 5})  # type: ignore[arg-type]
    (array,) = layout(_cells(checkout), profile)
    lines = script(array, profile, folder=Path("/s"), name="n1", code=Path("/code with blank")).splitlines()
    for wanted in (
        line, "#SBATCH --partition=p1", "#SBATCH --account=a1", "#SBATCH --array=0-15%5", "#SBATCH --requeue",
        "#SBATCH --signal=USR2@240", "#SBATCH --job-name=n1", "#SBATCH --nice=5", "#SBATCH --time=240",
        "export PYTHONPATH='/code with blank/src'${PYTHONPATH:+:$PYTHONPATH}", "cd '/code with blank'",
    ):  # fmt: skip
        assert wanted in lines, wanted
    once = script(array, replace(profile, requeue=False), folder=Path("/s"), name="n", code=Path("/c")).splitlines()
    assert "#SBATCH --no-requeue" in once and "#SBATCH --requeue" not in once
    assert lines.index("set -euo pipefail") < lines.index("cd '/code with blank'")
    (command,) = [one for one in lines if one.startswith("srun ")]
    assert "--cpus-per-task=8" in command and "submitit.core._submit /s/log" in command


def test_plan_prints_the_script_without_slurm(capsys: Out, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr("shutil.which", lambda *words, **more: None)
    words = ["table2", "scale=smoke", "exec=slurm", f"exec.results={tmp_path}"]
    assert cli.main(["plan", *words, "--sbatch"]) == 0
    assert "#SBATCH --array=0-15%16" in capsys.readouterr().out
    assert cli.main(["plan", *words]) == 0
    assert "array 0: finetune/opt_smoke: 16 runs in 16 tasks" in capsys.readouterr().out
    assert cli.main(["launch", *words]) == 2
    assert "sbatch is not found" in capsys.readouterr().err
    assert cli.main(["plan", "table2", "scale=smoke", "--sbatch"]) == 2
    assert cli.main(["plan", "table3", "scale=smoke", "exec=slurm", f"exec.results={tmp_path}"]) == 0
    assert "array 0: dreambooth/sd_smoke" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] in ([], [INDEX]), "a memory at most"


def test_what_is_submitted_is_frozen_and_checked(checkout: Path, tmp_path: Path) -> None:
    (cell, *_) = _cells(checkout, "task=cb", "seed=0")
    profile = _profile(checkout)
    settings = compose_run(checkout, ["exec=slurm"])[1]
    made = create(
        tmp_path, target="table2", arrays=layout([cell], profile), cells={str(cell.id): cell},
        dead_up_to={str(cell.id): 2}, failures_allowed={str(cell.id): 3}, settings=settings, code=checkout, commit="c",
        requeue=True,
    )  # fmt: skip
    again = load(made.folder)
    assert again.content == made.content and again.settings() == settings
    assert again.spec(str(cell.id)).kind == "finetune"
    path = made.folder / "submission.json"
    body = json.loads(path.read_text())
    body["content"]["runs"][cell.id]["spec"]["seed"] = 5
    path.write_text(json.dumps(body))
    with pytest.raises(RunFailed, match="not what was frozen"):
        load(made.folder)


def test_the_payload_is_small_and_names_only_itself() -> None:
    from submitit.core.utils import DelayedSubmission, cloudpickle

    data = cloudpickle.dumps(DelayedSubmission(RunTask("/a/folder/of/some/length", ["0123456789abcdef"])))
    assert len(data) < 500
    named = {str(argument) for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)}
    assert {"nora.launch.submit", "RunTask", "0123456789abcdef"} <= named
    assert RunTask("f", ["a"]).checkpoint().function.ids == ("a",)


def test_canaries_are_one_short_run_per_class_with_ids_of_their_own(checkout: Path, tmp_path: Path) -> None:
    made = _cells(checkout)
    short = canary_cells(plan(made, Store(tmp_path), Snapshot({})))
    assert len(short) == 1 and short[0].id not in {c.id for c in made}
    assert short[0].spec is not None and short[0].spec.protocol.max_steps == 20


def test_a_canary_is_the_largest_run_of_its_class(checkout: Path, tmp_path: Path) -> None:
    """SST-2 comes first and has short rows; memory is asked for the longest ones."""
    table = load_table(checkout, "table2", ["scale=paper", "method=lora", "seed=0"])
    planned = plan(table.cells({}), Store(tmp_path), Snapshot({}))
    (cell,) = canary_cells(planned)
    assert memory_gib(cell)[0] == max(memory_gib(p.cell)[0] or 0 for p in planned)


def test_a_canary_here_prints_memory_and_step_time(capsys: Out, tmp_path: Path) -> None:
    words = ["table2", "scale=smoke", "task=cb", "seed=0", "method=lora", f"exec.results={tmp_path}"]
    assert cli.main(["launch", *words, "--canary", "--dry-run"]) == 0
    assert "protocol.max_steps=20" in capsys.readouterr().out and list(tmp_path.iterdir()) == []
    assert cli.main(["launch", *words, "--canary"]) == 0
    out = capsys.readouterr().out
    assert "ms a step" in out and "GiB of memory" in out
    assert list(take_snapshot(Store(tmp_path)).values()) == [], "the table's own store is untouched"
