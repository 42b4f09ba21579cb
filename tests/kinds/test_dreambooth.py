"""``kind=dreambooth`` end to end at smoke scale: paired, proved, resumable, loadable by stock diffusers."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load, load_file

from diffusion_twins import ROOT, TARGETS, noise_picture, tiny_unet
from nora import cli
from nora.adapters import Start, initialize_, lora_layers, save_diffusers_lora
from nora.config.spec import run_id
from nora.errors import Interrupted, RunFailed, UserError
from nora.execution.execute import execute
from nora.files import canonical_json, sha256_file
from nora.kinds import DreamboothSpec, compose_run, dreambooth, read_spec, title
from nora.kinds.dreambooth import SubjectSpec, load_pictures, picture_paths
from nora.kinds.parts import bases, pipelines
from nora.kinds.parts.recipe import Update
from nora.store.record import Record
from nora.store.runs import Store
from nora.tables.target import load_target
from nora.training.diffusion import objective
from nora.training.diffusion.pictures import draw_pictures, to_jpeg

METHODS = {
    "lora": ["method=lora", "method.init=gaussian"],
    "lora_p": ["method=lora_p", "method.init=gaussian"],
    "nora": ["method=nora"],
    "nora_plus": ["method=nora_plus"],
}
Dream = Callable[..., tuple[Record, bool]]


@pytest.fixture
def dream(checkout: Path, tmp_path: Path) -> Dream:
    """``dream("method=nora", store=…)``: composes and executes on the dog at smoke scale."""

    def run(*overrides: str, store: Path | None = None, **extra: Any) -> tuple[Record, bool]:
        words = ["kind=dreambooth", "scale=smoke", "exec.progress=false", "exec.device=cpu", *overrides]
        spec, settings, _ = compose_run(checkout, words)
        return execute(spec, settings, checkout=checkout, store=Store(store or tmp_path / "results"), **extra)

    return run


def test_a_pipeline_or_pictures_that_are_not_here_say_how_they_get_here(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    spec, _, _ = compose_run(checkout, ["kind=dreambooth", "scale=paper", "task=dog"])
    assert isinstance(spec, DreamboothSpec)
    model, task = (replace(part, revision="0" * 40) for part in (spec.model, spec.task))
    with pytest.raises(RunFailed, match=f"{model.repo}: commit 0{{40}} cannot be loaded .*`nora prefetch`.*HF_TOKEN"):
        pipelines.load_pipeline(model, checkout, torch.device("cpu"))
    with pytest.raises(RunFailed, match=f"{task.repo}: commit 0{{40}} cannot be loaded .*`nora prefetch`.*HF_TOKEN"):
        picture_paths(task, checkout)


def _result(record: Record) -> str:
    return canonical_json(record.result)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_draws_and_proves_its_start(method: str, dream: Dream, tmp_path: Path) -> None:
    record, made = dream(*METHODS[method])
    assert made and record.status == "done"
    metrics, proof = record.metrics, record.result["proof"]
    assert proof["passed"] and proof["output_difference"] == 0.0 and len(proof["modules"]) == 32
    assert proof["init"] == ("gaussian" if method.startswith("lora") else "nystrom")
    assert metrics["steps"] == 4 == len(metrics["loss"]["steps"])
    assert metrics["loss"]["mean"] == pytest.approx(np.mean(metrics["loss"]["steps"]), rel=1e-12)
    folder = Store(tmp_path / "results").run_dir("dreambooth", record.id)
    for i in (0, 1):
        file = record.result["files"][f"picture_{i:02d}"]
        assert sha256_file(folder / file["name"]) == file["sha256"]
        with Image.open(folder / file["name"]) as picture:
            assert picture.size == (32, 32)
    assert record.run["encoded_crops"] <= 5, "square pictures have one crop each"


def test_the_mean_losses_of_table_3_are_over_all_steps_and_over_the_last_hundred() -> None:
    losses = [float(i) for i in range(150)]
    assert dreambooth.loss_metrics(losses) == {"mean": 74.5, "last_100": 99.5, "steps": losses}


def test_all_methods_see_the_same_draws_and_only_the_start_differs(
    dream: Dream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What reaches the UNet in training, and every stream asked for: equal for all methods, not for another seed."""
    from nora import streams

    inputs: dict[str, list[tuple[torch.Tensor, ...]]] = {}
    asked: dict[str, set[tuple[int, str, str]]] = {}
    original = streams.generator

    def generator(seed: int, stream: str, module: str = "") -> torch.Generator:
        asked[current].add((seed, stream, module))
        return original(seed, stream, module)

    monkeypatch.setattr(streams, "generator", generator)
    loss = objective.NoisePrediction.loss

    def spied(self: Any, model: Any, indices: Any) -> torch.Tensor:
        def watch(noisy: torch.Tensor, times: torch.Tensor, text: torch.Tensor) -> Any:
            inputs[current].append((noisy.clone(), times.clone(), text.clone(), torch.tensor(indices)))
            return model(noisy, times, text)

        return loss(self, watch, indices)

    monkeypatch.setattr(objective.NoisePrediction, "loss", spied)
    for current, words in {**METHODS, "seed 1": ["method=nora", "seed=1"]}.items():
        inputs[current], asked[current] = [], set()
        dream(*words)
    others = {name: {key for key in keys if key[1] != "init"} for name, keys in asked.items()}
    for method in ("lora_p", "nora", "nora_plus"):
        assert others[method] == others["lora"]
        for one, other in zip(inputs[method], inputs["lora"], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    streams_used = {key[1] for key in others["lora"]}
    assert {"order", "crop", "vae", "noise", "timestep", "picture"} <= streams_used
    for what in ("noise", "vae", "timestep", "crop"):
        steps = {module.split(" picture")[0] for _, stream, module in others["lora"] if stream == what}
        assert steps == {f"step {i}" for i in range(4)}, what
    assert not torch.equal(inputs["seed 1"][0][0], inputs["nora"][0][0])
    assert {key for key in asked["nora"] if key[1] == "init"} == {key for key in asked["lora"] if key[1] == "init"}


def test_twice_the_same_and_elsewhere_the_same(dream: Dream, tmp_path: Path) -> None:
    """Sample pictures on the way, checkpoints, kept adapters and torch's own generator are not in the result."""
    one, made = dream("method=nora_plus", store=tmp_path / "a")
    assert made and not dream("method=nora_plus", store=tmp_path / "a")[1]
    torch.manual_seed(99)
    other, _ = dream(
        "method=nora_plus", "exec.sample_every=2", "exec.checkpoint_every=1", "exec.keep_adapter=true",
        store=tmp_path / "b",
    )  # fmt: skip
    assert _result(one) == _result(other)
    (attempt,) = Store(tmp_path / "b").attempts("dreambooth", one.id)
    assert sorted(p.name for p in attempt.path.glob("*.jpg")) == ["sample-000002.jpg", "sample-000004.jpg"]


class _Killed(Exception):
    pass


@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_killed_run_resumes_to_the_identical_result(k: int, dream: Dream, tmp_path: Path) -> None:
    whole, _ = dream("method=nora_plus", store=tmp_path / "whole")

    def show(update: Update) -> None:
        if update.phase == "train" and update.step == k:
            raise _Killed

    with pytest.raises(RunFailed, match="_Killed"):
        dream("method=nora_plus", "exec.checkpoint_every=1", store=tmp_path / "killed", show=show)
    record, made = dream("method=nora_plus", "exec.checkpoint_every=1", store=tmp_path / "killed")
    assert made and record.run["resumed_at_step"] == (k - 1 or None)
    assert _result(record) == _result(whole)


def test_a_run_told_to_stop_saves_its_state_and_goes_on(dream: Dream, tmp_path: Path) -> None:
    whole, _ = dream("method=nora", store=tmp_path / "whole")
    calls = iter([False, False, True])
    with pytest.raises(Interrupted):
        dream("method=nora", stop_requested=lambda: next(calls))
    record, _ = dream("method=nora")
    assert record.run["resumed_at_step"] == 3 and _result(record) == _result(whole)


def test_stock_diffusers_loads_the_adapter_and_draws_the_recorded_picture(dream: Dream, tmp_path: Path) -> None:
    record, _ = dream("method=nora", "exec.keep_adapter=true")
    folder = Store(tmp_path / "results").run_dir("dreambooth", record.id)
    spec, _, _ = compose_run(ROOT, ["kind=dreambooth", "scale=smoke", "method=nora"])
    drawn = []
    for loaded in (False, True):
        pipeline = pipelines.load_pipeline(spec.model, ROOT, torch.device("cpu"))
        if loaded:
            pipeline.load_lora_weights(folder, weight_name=record.result["files"]["adapter"]["name"])
            assert [(c.r, c.lora_alpha) for c in pipeline.unet.peft_config.values()] == [(4, 4)]
        drawn += draw_pictures(pipeline, spec.task.prompt, seeds=[0], steps=25, guidance=2.0, side=8)
    recorded = (folder / record.result["files"]["picture_00"]["name"]).read_bytes()
    before, after = (np.asarray(p, dtype=float) for p in drawn)
    assert to_jpeg(drawn[1]) == recorded, "the reloaded adapter draws what was drawn before saving"
    assert np.abs(after - before).max() > 0
    words = ["export", f"exec.results={tmp_path / 'results'}", "--adapter", record.id, "--out", str(tmp_path / "out")]
    assert cli.main(words) == 0
    pipeline = pipelines.load_pipeline(spec.model, ROOT, torch.device("cpu"))
    pipeline.load_lora_weights(tmp_path / "out" / record.id)  # under the name that diffusers looks for
    assert [(c.r, c.lora_alpha) for c in pipeline.unet.peft_config.values()] == [(4, 4)]
    card = (tmp_path / "out" / record.id / "README.md").read_text()
    assert "library_name: diffusers" in card and "a photo of V_dog" in card and "| mean loss | " in card


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_a_start_that_moves_the_base_is_saved_for_the_untouched_one(method: str, dream: Dream, tmp_path: Path) -> None:
    """Killed on the way: the second attempt must find the factors at the start again."""

    def show(update: Update) -> None:
        if update.phase == "train" and update.step == 3:
            raise _Killed

    words = (f"method={method}", "exec.keep_adapter=true", "exec.checkpoint_every=1")
    with pytest.raises(RunFailed, match="_Killed"):
        dream(*words, show=show)
    record, _ = dream(*words)
    assert record.run["resumed_at_step"] == 2
    folder = Store(tmp_path / "results").run_dir("dreambooth", record.id)
    spec, _, _ = compose_run(ROOT, ["kind=dreambooth", "scale=smoke", f"method={method}"])
    pipeline = pipelines.load_pipeline(spec.model, ROOT, torch.device("cpu"))
    pipeline.load_lora_weights(folder, weight_name=record.result["files"]["adapter"]["name"])
    (drawn,) = draw_pictures(pipeline, spec.task.prompt, seeds=[0], steps=25, guidance=2.0, side=8)
    with Image.open(folder / record.result["files"]["picture_00"]["name"]) as recorded:
        kept = np.asarray(recorded, dtype=float)
    with Image.open(io.BytesIO(to_jpeg(drawn))) as again:
        assert np.abs(np.asarray(again, dtype=float) - kept).max() <= 4


def test_an_adapter_has_the_same_bytes_each_time_and_is_a_safetensors_file(tmp_path: Path) -> None:
    """safetensors' own metadata order is drawn anew for each file."""
    unet = tiny_unet()
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS))
    initialize_(unet, "nystrom", seed=0)
    found = {pipelines.adapter_bytes(unet) for _ in range(12)}
    assert len(found) == 1
    plain = load_file(save_diffusers_lora(unet, tmp_path))
    again = load(found.pop())
    assert plain.keys() == again.keys() and all(torch.equal(plain[key], again[key]) for key in plain)


def test_stable_diffusion_1_4_trains_797184_parameters() -> None:
    """The true shape on the meta device; the count of the paper's 0.8 M."""
    from diffusers import UNet2DConditionModel

    model = yaml.safe_load((ROOT / "conf/model/sd14.yaml").read_text())
    spec, _, _ = compose_run(ROOT, ["kind=dreambooth", "scale=paper"])
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**model["architecture"]["unet"])
        unet.requires_grad_(False)
        unet.add_adapter(bases.lora_config(spec.method, spec.model.targets))
    assert sum(p.numel() for p in unet.parameters() if p.requires_grad) == 797_184
    assert len(lora_layers(unet)) == 128
    assert sum(p.numel() for p in unet.parameters() if not p.requires_grad) == 859_520_964


def test_a_loss_that_is_not_finite_ends_the_run_with_a_record(dream: Dream, monkeypatch: pytest.MonkeyPatch) -> None:
    original = objective.NoisePrediction.loss

    def loss(self: Any, model: Any, indices: Any) -> torch.Tensor:
        return original(self, model, indices) * (float("inf") if self.step == 2 else 1.0)

    monkeypatch.setattr(objective.NoisePrediction, "loss", loss)
    record, _ = dream("method=lora", "method.init=gaussian")
    assert record.status == "diverged" and record.result["diverged"] == {"step": 2, "tensor": "the loss"}
    assert record.metrics["steps"] == 2 and not record.result["files"]


def test_a_failed_proof_stops_the_run(dream: Dream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "initialize_", lambda unet, init, **options: Start(init))
    with pytest.raises(RunFailed, match="the init proof failed: .*differ from nystrom"):
        dream("method=nora")


def test_a_target_that_matches_nothing_is_named(dream: Dream) -> None:
    with pytest.raises(RunFailed, match="model.targets: q_proj match no module of UNet2DConditionModel"):
        dream("method=nora", "model.targets=[to_q,q_proj]")


def test_another_prediction_type_is_refused(dream: Dream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pipelines.SCHEDULER, "prediction_type", "v_prediction")
    with pytest.raises(RunFailed, match="sd_smoke: predicts 'v_prediction', required 'epsilon'"):
        dream("method=nora")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures of different shapes and a file that is none."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for i, size in enumerate([(40, 40), (64, 32), (32, 48)]):
        noise_picture(*size, seed=i).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def _own(folder: Path) -> list[str]:
    return ["task.source=folder", f"task.folder={folder}", "task.num_images=null"]


def test_a_folder_of_ones_own_is_trained_on_and_what_is_no_picture_is_named(
    dream: Dream, pictures: Path, caplog: pytest.LogCaptureFixture, checkout: Path
) -> None:
    record, _ = dream("method=nora", *_own(pictures))
    assert record.metrics["pictures"] == 3
    assert set(record.spec["task"]["files"]) == {"0.png", "1.png", "2.png"}
    assert "notes.txt skipped" in caplog.text
    assert (
        title(read_spec(record.spec)) == "nora on V_mine, sd_smoke, seed 0"
        and title(read_spec({**record.spec, "task": {**record.spec["task"], "source": "slice"}}))
        == "nora on mine, sd_smoke, seed 0"
    )
    noise_picture(40, 40, seed=9).save(pictures / "0.png")
    words = ["kind=dreambooth", "scale=smoke", "method=nora", *_own(pictures)]
    assert run_id(compose_run(checkout, words)[0]) != record.id, "other bytes, another run"


def test_pictures_of_ones_own_are_called_what_their_folder_is_called_unless_words_are_typed(
    pictures: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No dog on a mug."""
    folder = pictures.rename(pictures.parent / "blue_mug")

    def task_of(*words: str) -> SubjectSpec:
        spec, _, _ = compose_run(checkout, ["kind=dreambooth", "scale=smoke", "task.source=folder", *words])
        assert isinstance(spec, DreamboothSpec)
        return spec.task

    found = task_of(f"task.folder={folder}")
    assert (found.name, found.subject, found.noun, found.num_images) == ("blue_mug", "V_blue_mug", "blue mug", None)
    assert (found.instance_prompt, found.prompt) == ("a photo of V_blue_mug", "a V_blue_mug on the beach")
    typed = task_of(f"task.folder={folder}", "task.subject='sks mug'", "task.prompt='a sks mug in snow'")
    assert (typed.subject, typed.instance_prompt) == ("sks mug", "a photo of sks mug")
    assert typed.prompt == "a sks mug in snow"
    assert task_of("task=cat_toy", f"task.folder={folder}").subject == "V_blue_mug"
    own = task_of(f"task.folder={folder}", "task.name=rex", "task.subject=V_dog")
    assert (own.name, own.subject, own.prompt) == ("rex", "V_dog", "a V_dog eating nachos"), "of no yaml that is here"
    monkeypatch.chdir(folder.parent)
    assert task_of("task.folder=blue_mug").folder == str(folder), "a job finds it from elsewhere"


def test_a_turned_photograph_stands_upright_and_every_picture_is_rgb(tmp_path: Path, checkout: Path) -> None:
    """Telephones turn pictures by a note in the file; the trained picture is the one that is seen."""
    tags = Image.Exif()
    tags[0x0112] = 6  # turned by 90 degrees
    noise_picture(48, 32).save(tmp_path / "a.jpg", exif=tags)
    noise_picture(32, 32).convert("L").save(tmp_path / "b.png")
    spec, _, _ = compose_run(checkout, ["kind=dreambooth", "scale=smoke", *_own(tmp_path)])
    assert isinstance(spec, DreamboothSpec)
    assert [(p.size, p.mode) for p in load_pictures(spec.task, checkout)] == [((32, 48), "RGB"), ((32, 32), "RGB")]


def test_bad_pictures_are_one_clear_line_before_torch(pictures: Path, tmp_path: Path, capfd: Any) -> None:
    cases: list[tuple[list[str], str]] = []
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.txt").write_text("x")
    cases.append((_own(empty), f"task.folder: {empty} holds no picture (.jpg, .jpeg"))
    cases.append((_own(tmp_path / "nowhere"), "nowhere, which is no folder"))
    broken = tmp_path / "broken"
    shutil.copytree(pictures, broken)
    data = (broken / "1.png").read_bytes()
    (broken / "1.png").write_bytes(data[: len(data) // 2])
    cases.append((_own(broken), f"{broken}/1.png: cannot be read as a picture"))
    (broken / "1.png").write_text("no picture at all")
    cases.append((_own(broken), f"{broken}/1.png: cannot be read as a picture"))
    huge = tmp_path / "huge"
    shutil.copytree(pictures, huge)
    Image.new("1", (13_000, 13_000)).save(huge / "1.png")  # 169 million pixels in a small file
    cases.append((_own(huge), f"{huge}/1.png: cannot be read as a picture (Image size (169000000 pixels)"))
    cases.append(([*_own(pictures), "task.num_images=4"], "found 3 pictures, required 4"))
    cases.append((["task.instance_prompt=a photo of a dog"], "required a text with the words 'V_dog'"))
    cases.append((["task.prompt=a V_dogs picture"], "prompt: given 'a V_dogs picture'"))
    cases.append((["model=opt_smoke"], "given family opt, required stable_diffusion"))
    cases.append((["task=sst2"], "task.subject"))
    cases.append((["protocol.resolution=60"], "protocol.resolution: given 60"))
    cases.append((["protocol.crop=centre"], "did you mean center?"))
    for words, part in cases:
        code = (
            "import sys; from nora.cli import main\n"
            f"code = main({['run', 'kind=dreambooth', 'scale=smoke', f'exec.results={tmp_path}/r', *words]!r})\n"
            "assert 'torch' not in sys.modules; sys.exit(code)"
        )
        if words is cases[0][0]:  # one in a fresh interpreter, to see that torch stays out
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
            assert done.returncode == 2, done.stderr
            err = done.stderr
        else:
            overrides = ["kind=dreambooth", "scale=smoke", f"exec.results={tmp_path}/r", *words]
            assert cli.main(["run", *overrides]) == 2, words
            err = capfd.readouterr().err
        assert part in err and err.count("\n") == 1 + err.count("skipped"), err
    assert not (tmp_path / "r").exists(), "nothing was started"


def test_a_run_on_the_hub_waits_for_prefetch(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "kind=dreambooth", "scale=paper", "measure=[fidelity]"]) == 2
    err = capsys.readouterr().err
    assert "model, task, encoder dino_vits16" in err and "no commit in conf/revisions.lock" in err


def test_a_subject_that_a_target_does_not_have_is_named() -> None:
    with pytest.raises(UserError, match="task: given 'cb', this table has dog"):
        load_target(ROOT, "table3", ["task=cb"])
    assert load_target(ROOT, "table3", ["task=dog"]) == load_target(ROOT, "table3")


def test_what_prefetch_would_fetch() -> None:
    from nora.execution.prefetch import wanted

    targets = [load_target(ROOT, name, ["scale=paper"]) for name in ("table3", "fig7")]
    specs = [c.spec for t in targets for c in t.cells({})]
    found = wanted([s for s in specs if s is not None])
    assert found.pipelines == {"CompVis/stable-diffusion-v1-4"}
    assert found.pictures == {"diffusers/dog-example", "diffusers/cat-toy-example"}
    assert found.models == {"facebook/dino-vits16", "facebook/dinov2-base", "openai/clip-vit-base-patch32"}


def test_the_drift_of_the_subjects_kind_is_measured_against_the_base_and_changes_no_step(
    dream: Dream, tmp_path: Path
) -> None:
    plain, _ = dream("method=nora", store=tmp_path / "plain")
    words = ("method=nora", "measure=[fidelity,drift]")
    whole, _ = dream(*words, store=tmp_path / "whole")
    assert whole.metrics["loss"] == plain.metrics["loss"]
    assert whole.result["files"]["picture_00"] == plain.result["files"]["picture_00"]
    drift = whole.metrics["drift"]["clip_mini"]
    assert 0 < drift["kept"] < 1 and drift["subject_before"] != drift["subject_after"]
    still, _ = dream(*words, "protocol.lr=1e-12", store=tmp_path / "still")
    told = still.metrics["drift"]["clip_mini"]
    assert told["kept"] == pytest.approx(1, abs=1e-5) and told["subject_before"] == drift["subject_before"]
    assert told["subject_after"] == pytest.approx(told["subject_before"], abs=1e-5)
    calls = iter([False, False, True])  # a resumed run has the trained adapter when it begins
    with pytest.raises(Interrupted):
        dream(*words, stop_requested=lambda: next(calls))
    record, _ = dream(*words)
    assert record.run["resumed_at_step"] == 3 and _result(record) == _result(whole)


@pytest.mark.parametrize("measure", ["fidelity", "drift"])
def test_what_compares_pictures_needs_an_encoder(measure: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["kind=dreambooth", "scale=smoke", f"measure=[{measure}]", "protocol.encoders=null"]
    assert cli.main(["run", *words]) == 2
    assert f"measure=[{measure}]: protocol.encoders is required" in capsys.readouterr().err


def test_the_mirror_gets_the_sample_pictures(dream: Dream, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[int, dict[str, Any]]] = []
    fake = SimpleNamespace(
        init=lambda **kw: SimpleNamespace(
            log=lambda values, step: logged.append((step, values)), finish=lambda: None, summary={}
        ),
        Settings=lambda **kw: kw,
        Image=lambda path: Image.open(io.BytesIO(Path(path).read_bytes())).size,
        api=SimpleNamespace(api_key=None),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    dream("method=nora", "exec.wandb=offline", "exec.sample_every=2")
    assert [(step, values["sample"]) for step, values in logged if "sample" in values] == [(2, (64, 32)), (4, (64, 32))]


def test_the_probe_shows_that_the_start_changes_nothing() -> None:
    from nora.config.schema import MethodSpec

    unet = tiny_unet()
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    probe = {"sample": sample, "timestep": torch.tensor([5]), "encoder_hidden_states": torch.ones(1, 3, 32)}
    before = unet(**probe).sample
    method = MethodSpec(
        name="nora", adapter="lora", init="nystrom", rank=4, alpha=4.0, dropout=0.0, xi=0.1, side="A",
        divide_by_scaling=True,
    )  # fmt: skip
    adapted = pipelines.add_adapter(unet, method, TARGETS, seed=0, probe=probe)
    assert torch.equal(adapted.unet(**probe).sample, before) and set(adapted.pretrained) == {
        layer.name for layer in lora_layers(adapted.unet)
    }


def test_wrong_folder_of_the_shipped_pictures(checkout: Path) -> None:
    spec, settings, _ = compose_run(checkout, ["kind=dreambooth", "scale=smoke", "task.folder=nothing"])
    with pytest.raises(UserError, match="no picture of dreambooth/nothing"):
        execute(spec, settings, checkout=checkout, store=Store(Path("unused")))


@pytest.mark.parametrize(("typed", "seen"), [("null", "highest"), ("true", "high")])
def test_tf32_is_for_the_training_of_a_run_that_asks_for_it(
    typed: str, seen: str, dream: Dream, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    whole = objective.NoisePrediction.loss

    def loss(self: objective.NoisePrediction, *given: Any) -> Any:
        found.append(torch.get_float32_matmul_precision())
        return whole(self, *given)

    monkeypatch.setattr(objective.NoisePrediction, "loss", loss)
    record, _ = dream("method=nora", f"protocol.tf32={typed}")
    assert set(found) == {seen} and torch.get_float32_matmul_precision() == "highest"
    assert record.result["spec"]["protocol"].get("tf32") == (True if typed == "true" else None)


def test_rounding_of_iterated_vectors_is_no_failed_proof(checkout: Path, tmp_path: Path) -> None:
    """sd_mini's first to_k: PEFT's iterations and the formula's part by 1.8e-5 there."""
    words = ["kind=dreambooth", "scale=mini", "task=dog", "method=pissa_niter", "protocol.steps=2", "measure=[]"]
    spec, settings, _ = compose_run(checkout, [*words, "protocol.pictures=1", "seed=0", "exec.progress=false"])
    record, _ = execute(spec, settings, checkout=checkout, store=Store(tmp_path))
    assert record.result["proof"]["passed"]
