"""``kind=dreambooth``: a LoRA on a diffusion pipeline's UNet from a handful of pictures of one subject (paper, 5.2)."""

from __future__ import annotations

import itertools
import logging
import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from nora import starts
from nora.config.pins import COMPARED, SUFFIXES, not_here, pictures_in
from nora.config.schema import (
    STRICT,
    Count,
    MethodSpec,
    ModelSpec,
    Name,
    NonNegative,
    Seed,
    Size,
    TrainingProtocol,
)
from nora.errors import RunFailed, UserError
from nora.files import Json, sha256_file
from nora.kinds.parts.cost import SETUP_SECONDS, Cost, Label, Work

if TYPE_CHECKING:
    from PIL.Image import Image

    from nora.kinds.parts.pipelines import Pipeline
    from nora.kinds.parts.recipe import Outcome, RunContext
    from nora.training.diffusion.objective import NoisePrediction
    from nora.training.loop import LoopSettings, LoopState

_LOG = logging.getLogger(__name__)
_LAST = 100
_SAMPLES = 4  # pictures of a sample on the way
_OF_ITS_KIND = 16
"""Pictures of the subject's kind that are drawn before training and after it, for measure=[drift]."""
# One UNet pass at 64 × 64 latents and 77 tokens, counted by torch's FlopCounterMode; and its weights with the VAE's and
# the text encoder's (0.86 + 0.08 + 0.12 billion parameters).
_UNET_FLOPS = {"sd14": 0.803e12}
_PIPELINE_PARAMETERS = {"sd14": 1.06e9}
_MFU_FP32 = 0.3  # at batch 1, of an H100's fp32 peak
_FLOPS_PER_SECOND_FP32 = _MFU_FP32 * 67e12


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SubjectSpec:
    """A handful of pictures of one subject, and what it is called."""

    name: Name
    suite: Literal["dreambooth"]
    source: Literal["slice", "hub", "folder"]
    """Pictures shipped in data/dreambooth, a data set of the Hub by commit, or a folder of one's own."""
    subject: Annotated[str, Field(min_length=1)]
    """The words that stand for the subject in every prompt; of source=folder, V_ and the folder's name where nothing is
    typed, and so are the other words."""
    noun: Annotated[str, Field(min_length=1)]
    """What the subject is, for a text encoder that does not know its name."""
    instance_prompt: str
    prompt: str
    """What is drawn after training."""
    num_images: Count | None = None
    """How many pictures there must be."""
    folder: str | None = None
    """Below data/dreambooth for source=slice, any path for source=folder."""
    repo: str | None = None
    revision: str | None = None
    images: list[str] | None = None
    """File names of the Hub's data set that are used; null: every picture."""
    files: dict[str, str] | None = None

    @model_validator(mode="after")
    def _fields_fit(self) -> SubjectSpec:
        problems = []
        for key in ("instance_prompt", "prompt"):
            if f" {self.subject.lower()} " not in f" {getattr(self, key).lower()} ":
                problems.append(f"{key}: given {getattr(self, key)!r}, required a text with the words {self.subject!r}")
        needed = "repo" if self.source == "hub" else "folder"
        if getattr(self, needed) is None:
            problems.append(f"{needed} is required with source={self.source}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EncoderSpec:
    """An image (and text) encoder that pictures are compared by."""

    name: Name
    family: Literal["clip", "dino"]
    source: Literal["asset", "hub"]
    repo: str
    revision: str | None = None
    files: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DreamboothProtocol(TrainingProtocol):
    """Training and drawing rules of subject-driven generation."""

    name: Literal["dreambooth"]
    steps: Count
    resolution: Annotated[int, Field(ge=8, multiple_of=8)]
    crop: Literal["random", "center"]
    interpolation: Literal["bilinear", "lanczos"]
    warmup_steps: Size
    precision: Literal["fp32", "bf16"]
    tf32: bool | None = None
    """Whether a GPU's matrix products may round their inputs to TF32; null: torch's default (convolutions alone)."""
    pictures: Count
    """Pictures drawn at the end, one per picture seed 0, 1, …"""
    picture_steps: Count
    guidance: NonNegative
    encoders: list[EncoderSpec] | None = None
    """Read with measure=[fidelity] and [drift]."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Spec:
    """One pipeline, one subject, one method."""

    kind: Literal["dreambooth"]
    model: ModelSpec
    task: SubjectSpec
    method: MethodSpec
    protocol: DreamboothProtocol
    seed: Seed
    measure: list[Literal["fidelity", "sharpness", "drift"]]

    @model_validator(mode="after")
    def _parts_fit(self) -> Spec:
        problems = []
        if self.model.family != "stable_diffusion":
            problems.append(f"model={self.model.name}: given family {self.model.family}, required stable_diffusion")
        if self.method.adapter != "lora":
            problems.append(f"method={self.method.name}: given adapter={self.method.adapter}, required lora")
        if self.method.variant == "lora_fa":
            problems.append("method.variant=lora_fa: given kind=dreambooth, required a text model (PEFT's optimiser)")
        if self.method.variant == "dora" and starts.said("inits", self.method.init).get("MOVES_BASE"):
            problems.append(f"method.variant=dora with init={self.method.init}: no file that diffusers loads holds it")
        if starts.said("inits", self.method.init).get("QUANTISES"):
            problems.append(f"method.init={self.method.init}: given kind=dreambooth, required a text model")
        compared = [measure for measure in self.measure if measure in COMPARED]
        if compared and not self.protocol.encoders:
            problems.append(f"measure=[{compared[0]}]: protocol.encoders is required")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def encoders(spec: Spec) -> list[EncoderSpec]:
    """Those that the run loads."""
    return list(spec.protocol.encoders or []) if COMPARED & {*spec.measure} else []


def label(spec: Spec) -> Label:
    """A method on a subject and a pipeline; pictures of one's own go by the subject's words, not by a task's name."""
    subject = spec.task.subject if spec.task.source == "folder" else spec.task.name
    names = (spec.method.name, subject, spec.model.name)
    return Label(names[0], f"{names[1]}, {names[2]}", names)


def headline(metrics: Mapping[str, Json]) -> str:
    """The mean losses."""
    loss = metrics["loss"]
    return f"mean loss {loss['mean']:.4f} of {metrics['steps']} steps, {loss['last_100']:.4f} of the last 100"


def like(spec: Spec) -> tuple[str, str, str]:
    """Runs of one pipeline, subject and method cost about the same."""
    return spec.model.name, spec.task.name, spec.method.name


def check(spec: Spec, checkout: Path) -> None:
    """UserError if a picture the run trains on cannot be read."""
    load_pictures(spec.task, checkout)


def cost(spec: Spec) -> Cost:
    """Training (forward and backward to the adapters: two passes a step) and drawing (two passes a step, guided)."""
    name, protocol = spec.model.name, spec.protocol
    if name not in _UNET_FLOPS:
        return Cost()
    pictures = protocol.pictures + (2 * _OF_ITS_KIND if "drift" in spec.measure else 0)
    passes = 2 * protocol.steps * protocol.batch_size + 2 * pictures * protocol.picture_steps
    return Cost(
        float((passes * _UNET_FLOPS[name] / _FLOPS_PER_SECOND_FP32 + SETUP_SECONDS) / 3600),
        "estimate: 0.8 TFLOP per UNet pass in fp32 at 30 % of an H100",
        4 * _PIPELINE_PARAMETERS[name] / 2**30 + 6.0,
        "estimate: fp32 weights + 6 GiB for activations and drawing",
        Work(flop=passes * _UNET_FLOPS[name]),
        _MFU_FP32,
    )


def _hub_folder(spec: SubjectSpec) -> Path:
    from huggingface_hub import snapshot_download

    repo, revision = str(spec.repo), str(spec.revision)
    try:
        return Path(snapshot_download(repo, repo_type="dataset", revision=revision))
    except OSError as error:
        raise RunFailed(not_here(repo, revision, error)) from error


def picture_paths(spec: SubjectSpec, checkout: Path) -> list[Path]:
    """The files of the subject's pictures, in order. UserError where one is missing or not what its hash says."""
    if spec.source == "slice":
        paths = [checkout / "data" / name for name in sorted(spec.files or {})]
        if not paths:
            raise UserError(
                f"task.folder: given {spec.folder!r}, data/MANIFEST.json has no picture of dreambooth/{spec.folder}"
            )
        hashes = [spec.files[name] for name in sorted(spec.files or {})] if spec.files else []
        for path, expected in zip(paths, hashes, strict=True):
            if not path.is_file() or sha256_file(path) != expected:
                raise UserError(f"{path}: missing, or not what data/MANIFEST.json says; the checkout is damaged")
    else:
        paths, skipped = pictures_in(_hub_folder(spec) if spec.source == "hub" else checkout / str(spec.folder))
        if skipped and spec.source == "folder":
            _LOG.warning("task.folder: %s skipped, no picture (%s)", ", ".join(skipped), ", ".join(SUFFIXES))
        if spec.images is not None:
            named = {path.name: path for path in paths}
            absent = [name for name in spec.images if name not in named]
            if absent:
                raise UserError(
                    f"task.images: {', '.join(absent)} not in {spec.repo or spec.folder}, which has {', '.join(named)}"
                )
            paths = [named[name] for name in spec.images]
    if spec.num_images is not None and len(paths) != spec.num_images:
        raise UserError(f"task {spec.name}: found {len(paths)} pictures, required {spec.num_images} (task.num_images)")
    return paths


def load_pictures(spec: SubjectSpec, checkout: Path) -> list[Image]:
    """Every picture, decoded, RGB, upright. UserError that names the file where one cannot be read."""
    from PIL import Image, ImageOps

    loaded, bombs = [], (Image.DecompressionBombError, Image.DecompressionBombWarning)
    for path in picture_paths(spec, checkout):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)  # over 89 million pixels: not decoded
                with Image.open(path) as image:
                    loaded.append(ImageOps.exif_transpose(image).convert("RGB"))
        except (OSError, ValueError, SyntaxError, *bombs) as error:
            raise UserError(f"{path}: cannot be read as a picture ({' '.join(str(error).split())})") from None
    return loaded


def loss_metrics(losses: list[float]) -> dict[str, Json]:
    """The step losses (eight digits) and their means: over all steps and over the last hundred."""
    rounded = [float(f"{loss:.8g}") for loss in losses]
    last = rounded[-_LAST:]
    return {"mean": sum(rounded) / len(rounded), f"last_{_LAST}": sum(last) / len(last), "steps": rounded}


def training_settings(
    protocol: DreamboothProtocol, num_pictures: int, *, micro_batch_size: int | None = None
) -> LoopSettings:
    """As many epochs over the pictures as the protocol's steps need."""
    from nora.kinds.parts.recipe import loop_settings

    return loop_settings(
        protocol,
        precision=protocol.precision,
        epochs=math.ceil(protocol.steps / math.ceil(num_pictures / protocol.batch_size)),
        warmup_steps=protocol.warmup_steps,
        max_steps=protocol.steps,
        micro_batch_size=micro_batch_size,
    )


def make_objective(spec: Spec, pipeline: Pipeline, pictures: list[Image]) -> NoisePrediction:
    """The loss over the subject's pictures; a crop's latents are encoded once."""
    from nora.kinds.parts.pipelines import embed
    from nora.training.diffusion.objective import Draws, LatentCache, NoisePrediction, resize

    protocol = spec.protocol
    resized = [resize(picture, protocol.resolution, protocol.interpolation) for picture in pictures]
    return NoisePrediction(
        latents=LatentCache(pipeline.vae, resized, protocol.resolution),
        text=embed(pipeline, spec.task.instance_prompt, max_length=spec.model.max_length),
        scheduler=pipeline.scheduler,
        scaling=float(pipeline.vae.config.scaling_factor),
        crop=protocol.crop,
        draws=Draws(spec.seed),
    )


def execute(spec: Spec, context: RunContext) -> Outcome:
    """Trains one run and draws its pictures; returns the losses, the init proof, the pictures and the adapter."""
    from nora.kinds.parts import bases, pipelines
    from nora.kinds.parts.recipe import OutputFile, TrainingRun, float32_products
    from nora.training.diffusion.pictures import draw_pictures, drift, fidelity, strip, to_jpeg
    from nora.training.loop import Diverged, train

    started = time.monotonic()
    protocol, device = spec.protocol, context.device
    pictures = load_pictures(spec.task, context.checkout)
    pipeline = pipelines.load_pipeline(spec.model, context.checkout, device)
    objective = make_objective(spec, pipeline, pictures)
    probe = pipelines.probe_inputs(pipeline, objective.text, objective.latents.resolution)
    try:
        # Each look of the start at a picture has its own crop, noise and timestep: of steps that no training takes.
        looks = itertools.count(protocol.steps)
        rows = bases.rows_of(objective, lambda picture: objective.begin(next(looks)))
        adapted = pipelines.add_adapter(
            pipeline.unet, spec.method, spec.model.targets, seed=spec.seed, probe=probe, rows=rows
        )
    except ValueError as error:
        raise RunFailed(str(error)) from None
    settings = training_settings(protocol, len(pictures), micro_batch_size=context.settings.micro_batch_size)
    run = TrainingRun(
        context, adapted.unet, spec.method, settings, adapted.proof, seed=spec.seed, num_examples=len(pictures)
    )
    common: dict[str, Json] = {"trainable_parameters": run.num_trained, "pictures": len(pictures)}
    if "sharpness" in spec.measure:
        everyone = list(range(len(pictures)))

        def at_fixed_draws(unet: Any) -> Any:
            objective.begin(2 * protocol.steps)  # a step whose noise no training and no start sees
            return objective.loss(unet, everyone) / len(everyone)

        common["sharpness"] = bases.measure_sharpness(adapted.unet, at_fixed_draws, spec.seed, rows=len(everyone))

    def draw(prompt: str, seeds: range, **between: Any) -> list[Image]:
        return draw_pictures(
            pipeline, prompt, seeds=seeds, steps=protocol.picture_steps, guidance=protocol.guidance,
            side=protocol.resolution // pipeline.vae_scale_factor, **between,
        )  # fmt: skip

    kind = spec.task.prompt.replace(spec.task.subject, spec.task.noun)  # says what the subject is, not its name
    # Before a state is read: the start leaves the base's output as it is, which the proof says.
    of_its_kind = draw(kind, range(_OF_ITS_KIND)) if "drift" in spec.measure else []
    run.resume(since=started)
    run.timing |= adapted.cost

    def sample(state: LoopState) -> None:
        every = context.settings.sample_every
        if every is not None and state.step % every == 0:
            drawn = draw(spec.task.prompt, range(min(_SAMPLES, protocol.pictures)))
            context.show_picture("sample", to_jpeg(strip(drawn)), state.step)

    try:
        with float32_products("high" if protocol.tf32 else None):
            train(
                adapted.unet,
                objective,
                before_step=objective.begin,
                evaluate=None,
                **run.hooks(protocol.steps, sample),
            )
    except Diverged as error:
        return run.diverged(error, {**common, "steps": run.state.step})
    run.timing["encoded_crops"] = objective.latents.encoded
    run.trained("pictures")
    run.stop_if_asked()
    drawn = draw(spec.task.prompt, range(protocol.pictures), between=run.between("pictures"))
    metrics: dict[str, Json] = {**common, "steps": run.state.step, "loss": loss_metrics(run.state.losses)}
    loaded = {e.name: pipelines.load_encoder(e, context.checkout, device) for e in encoders(spec)}
    if "fidelity" in spec.measure:
        metrics["fidelity"] = {name: fidelity(encoder, drawn, pictures, kind) for name, encoder in loaded.items()}
    if "drift" in spec.measure:
        after = draw(kind, range(_OF_ITS_KIND), between=run.between("pictures of its kind"))
        metrics["drift"] = {name: drift(encoder, of_its_kind, after, pictures) for name, encoder in loaded.items()}
    files = {f"picture_{i:02d}": OutputFile(f"picture_{i:02d}", ".jpg", to_jpeg(p)) for i, p in enumerate(drawn)}
    adapter = pipelines.adapter_bytes(adapted.unet, adapted.at_start)
    files["adapter"] = OutputFile("pytorch_lora_weights", ".safetensors", adapter, context.settings.keep_adapter)
    return run.outcome(metrics, files, since=started)
