"""DreamBooth steps of our loop beside a plain diffusers + PEFT loop as in diffusers' DreamBooth LoRA example.

Both train the same LoRA (rank 4) on the same pictures with the same crops, VAE samples, noise and timesteps, batch 1,
fp32, AdamW, clipping at 1. The plain loop does per step what the example does: opens, resizes and crops the picture,
tokenises at the start but runs the text encoder and the VAE in every step. Ours encodes prompt and crops once. First
loss and gradient norm are printed: they must agree. On the CPU with the shipped pipeline (processor time); where there
is a GPU also at the true shape of Stable Diffusion 1.4 with random weights (wall time).
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

from nora import streams
from nora.kinds import DreamboothSpec, compose_run
from nora.kinds.dreambooth import load_pictures, make_objective, picture_paths, training_settings
from nora.kinds.parts import pipelines
from nora.training.diffusion.objective import Draws, corner, resize, to_tensor
from nora.training.loop import StepInfo, make_state, train
from nora.verbs.machine import load_program

_ROOT = Path(__file__).resolve().parents[1]


_timing = load_program(Path(__file__).with_name("_timing.py"))


def _spec(scale: str, steps: int, *extra: str) -> DreamboothSpec:
    words = ["kind=dreambooth", f"scale={scale}", "method=lora", "method.init=gaussian", "task.source=slice"]
    spec, _, _ = compose_run(_ROOT, [*words, f"protocol.steps={steps}", *extra])
    assert isinstance(spec, DreamboothSpec)
    return spec


def _adapted(spec: DreamboothSpec, device: torch.device) -> tuple[Any, Any]:
    pipeline = pipelines.load_pipeline(spec.model, _ROOT, device)
    objective = make_objective(spec, pipeline, load_pictures(spec.task, _ROOT))
    side = spec.protocol.resolution // pipeline.vae_scale_factor
    probe = {
        "sample": torch.zeros(1, 4, side, side, device=device),
        "timestep": torch.tensor([1], device=device),
        "encoder_hidden_states": objective.text,
    }
    pipelines.add_adapter(pipeline.unet, spec.method, spec.model.targets, seed=0, probe=probe)
    return pipeline, objective


def _ours(spec: DreamboothSpec, device: torch.device) -> dict[str, Any]:
    pipeline, objective = _adapted(spec, device)
    settings = training_settings(spec.protocol, objective.num_examples)
    state = make_state(pipeline.unet, settings, num_examples=objective.num_examples, preconditioner=None)
    _, now = _timing.clock(device)
    times, infos = [now()], []

    def on_step(info: StepInfo) -> None:
        times.append(now())
        infos.append(info)

    train(
        pipeline.unet,
        objective,
        settings,
        state,
        order=lambda epoch: torch.randperm(
            objective.num_examples, generator=streams.generator(spec.seed, "order", f"epoch {epoch}")
        ),
        before_step=objective.begin,
        evaluate=None,
        on_step=on_step,
        on_boundary=lambda s: None,
    )
    return _summary(times, [i.loss for i in infos], [i.grad_norm for i in infos])


def _plain(spec: DreamboothSpec, device: torch.device) -> dict[str, Any]:
    pipeline, _ = _adapted(spec, device)
    unet, vae, text, scheduler = pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.scheduler
    protocol, draws, paths = spec.protocol, Draws(spec.seed), picture_paths(spec.task, _ROOT)
    length = min(spec.model.max_length, pipeline.tokenizer.model_max_length)
    ids = pipeline.tokenizer(
        spec.task.instance_prompt, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids.to(device)
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=protocol.lr, weight_decay=protocol.weight_decay)
    _, now = _timing.clock(device)
    times, losses, norms = [now()], [], []
    unet.train()
    for step in range(protocol.steps):
        epoch, position = divmod(step, len(paths))
        order = torch.randperm(len(paths), generator=streams.generator(spec.seed, "order", f"epoch {epoch}")).tolist()
        picture = order[position]
        image = ImageOps.exif_transpose(Image.open(paths[picture])).convert("RGB")
        image = resize(image, protocol.resolution, protocol.interpolation)
        left, top = corner(image.size, protocol.resolution, protocol.crop, draws.generator("crop", step, picture))
        side = protocol.resolution
        pixels = to_tensor(image)[:, top : top + side, left : left + side][None].to(device)
        with torch.no_grad():
            posterior = vae.encode(pixels).latent_dist
            sample = draws.normal("vae", step, picture, posterior.mean.shape[1:]).to(device)
            latents = (posterior.mean + posterior.std * sample) * vae.config.scaling_factor
            hidden = text(ids, return_dict=False)[0]
        noise = draws.normal("noise", step, picture, latents.shape[1:])[None].to(device)
        times_ = torch.tensor([draws.timestep(step, picture, scheduler.config["num_train_timesteps"])], device=device)
        predicted = unet(scheduler.add_noise(latents, noise, times_), times_, hidden, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), noise.float(), reduction="mean")
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, protocol.max_grad_norm or math.inf)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach().item())
        times.append(now())
    return _summary(times, losses, norms)


def _summary(times: list[float], losses: list[float], norms: list[float]) -> dict[str, Any]:
    steps = [b - a for a, b in zip(times, times[1:], strict=False)]
    return {
        "seconds": times[-1] - times[0],
        "ms": 1000 * statistics.median(steps[1:]),
        "first_loss": losses[0],
        "mean_loss": statistics.fmean(losses),
        "first_grad_norm": norms[0],
        "steps": len(losses),
    }


def _compare(spec: DreamboothSpec, device: torch.device, rounds: int) -> dict[str, Any]:
    """Interleaved; seconds add up over the rounds, the median step is the median of the rounds'."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "plain": []}
    for _ in range(rounds):
        found["ours"].append(_ours(spec, device))
        found["plain"].append(_plain(spec, device))
    result: dict[str, Any] = {
        name: {
            **runs[0],
            "seconds": sum(r["seconds"] for r in runs),
            "ms": statistics.median(r["ms"] for r in runs),
            "steps": sum(r["steps"] for r in runs),
        }
        for name, runs in found.items()
    }
    result["ratio"] = result["plain"]["seconds"] / result["ours"]["seconds"]
    result["timed"] = _timing.clock(device)[0]
    return result


def run(*, quick: bool) -> dict[str, Any]:
    """500 steps of each loop, in five rounds."""
    steps, rounds = (5, 1) if quick else (100, 5)
    scale = "smoke" if quick else "mini"
    result: dict[str, Any] = {f"sd_{scale}, CPU": _compare(_spec(scale, steps), torch.device("cpu"), rounds)}
    if torch.cuda.is_available() and not quick:
        spec = _spec("paper", 500, "model.weights=random")
        result["SD 1.4's shape, " + torch.cuda.get_device_name()] = _compare(spec, torch.device("cuda"), 1)
    return {"compared": result, "threads": torch.get_num_threads()}


def table(result: dict[str, Any]) -> str:
    """The two loops side by side, per pipeline."""
    lines = []
    for name, both in result["compared"].items():
        lines.append(f"{name} ({both['timed']}, {result['threads']} threads, interleaved)")
        head = f"  {'loop':6} {'s':>8} {'ms/step':>9} {'first loss':>11} {'mean loss':>10} {'grad norm':>10}"
        lines.append(f"{head} {'steps':>6}")
        for loop in ("ours", "plain"):
            r = both[loop]
            lines.append(
                f"  {loop:6} {r['seconds']:8.2f} {r['ms']:9.2f} {r['first_loss']:11.5f} {r['mean_loss']:10.5f} "
                f"{r['first_grad_norm']:10.5f} {r['steps']:6}"
            )
        lines.append("  " + _timing.aim("a plain loop's speed", 2.5, both["ratio"]))
    return "\n".join(lines)
