"""The two hosts an adapter is deployed on: a text model under PEFT, a UNet under diffusers."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor

from nora import streams
from nora.adapters import save_adapter, save_diffusers_lora, snapshot_weights
from nora.files import Json
from nora.kinds.parts import bases
from nora.kinds.parts.recipe import RunContext

if TYPE_CHECKING:
    from nora.kinds.deployment import Spec

Model = Any
"""A causal language model, a UNet or a pipeline, with or without adapters: what PEFT and diffusers pass around."""


@dataclass(frozen=True)
class Trained:
    """An adapter after training: its live model, its factors at the start, what the model puts out."""

    model: Model
    start: dict[str, Tensor]
    output: Tensor
    losses: list[float]
    start_difference: float


def difference(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference."""
    return float((one.float() - other.float()).abs().max())


class Host(Protocol):
    """A base that adapters are trained on, saved from and loaded onto; ``base()`` is a new, untouched one each time."""

    targets: list[str]

    def base(self) -> Model: ...

    def adapted(self, config: LoraConfig) -> Model: ...

    def loss(self, model: Model, step: int) -> Tensor: ...

    def output(self, model: Model) -> Tensor: ...

    def save_stock(self, model: Model, folder: Path) -> None: ...

    def save_ours(self, model: Model, folder: Path, start: dict[str, Tensor] | None) -> None: ...

    def load(self, adapters: dict[str, Path], *, active: str) -> Model: ...

    def switch(self, model: Model, active: str | None) -> Model:
        """Makes one adapter active, or none."""
        ...

    def merge_residue(self, saved: Path, dtype: torch.dtype) -> dict[str, float]:
        """After one merge and unmerge: largest change of a base weight, and output of merged against unmerged."""
        ...

    def extra(self, trained: Trained, folder: Path) -> dict[str, Json]: ...


_TEXT = "the film was a long and quiet story about two brothers who never agreed on anything . "


class TextHost:
    """The base of the spec, trained on a sentence."""

    def __init__(self, spec: Spec, context: RunContext) -> None:
        self._spec = spec.model
        self._context = context
        self.targets = list(spec.model.targets)
        tokenizer = bases.load_base(self._spec, context.checkout, context.device).tokenizer
        self.inputs: dict[str, Json] = dict(tokenizer(_TEXT, return_tensors="pt"))
        self.inputs = {"input_ids": self.inputs["input_ids"].to(context.device)}
        self.weights = snapshot_weights(self.base(), set(self.targets))

    def base(self) -> Model:
        return bases.load_base(self._spec, self._context.checkout, self._context.device).model

    def adapted(self, config: LoraConfig) -> Model:
        return get_peft_model(self.base(), config).eval()

    def loss(self, model: Model, step: int) -> Tensor:
        loss: Tensor = model(**self.inputs, labels=self.inputs["input_ids"]).loss
        return loss

    @torch.no_grad()
    def output(self, model: Model) -> Tensor:
        logits: Tensor = model(**self.inputs).logits
        return logits

    def save_stock(self, model: Model, folder: Path) -> None:
        model.save_pretrained(str(folder))

    def save_ours(self, model: Model, folder: Path, start: dict[str, Tensor] | None) -> None:
        save_adapter(model, folder, at_start=start)

    def load(self, adapters: dict[str, Path], *, active: str) -> Model:
        (first, path), *rest = adapters.items()
        model = PeftModel.from_pretrained(self.base(), str(path), adapter_name=first)
        for name, saved in rest:
            model.load_adapter(str(saved), adapter_name=name)
        return self.switch(model.eval(), active)

    def switch(self, model: Model, active: str | None) -> Model:
        model.base_model.enable_adapter_layers()
        if active is None:
            model.base_model.disable_adapter_layers()
        else:
            model.set_adapter(active)
        return model

    @torch.no_grad()
    def merge_residue(self, saved: Path, dtype: torch.dtype) -> dict[str, float]:
        model = PeftModel.from_pretrained(self.base().to(dtype), str(saved)).eval()
        before = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" not in n}
        unmerged = self.output(model)
        model.merge_adapter()
        merged = self.output(model)
        model.unmerge_adapter()
        weights = max(difference(p, before[n]) for n, p in model.named_parameters() if n in before)
        return {"weight": weights, "output": difference(merged, unmerged)}

    def extra(self, trained: Trained, folder: Path) -> dict[str, Json]:
        return {}


_SHAPE: dict[str, Json] = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """diffusers warns of a missing text encoder and of a second adapter; both are what is tried here."""
    loggers = [logging.getLogger(name) for name in ("diffusers.loaders.lora_base", "diffusers.loaders.peft")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class DiffusionHost:
    """Noise prediction on fixed latents; the pipeline holds the UNet alone."""

    targets = ["to_q", "to_k", "to_v", "to_out.0"]

    def __init__(self, spec: Spec) -> None:
        self._seed = spec.seed
        draw = streams.generator(spec.seed, "noise")
        self._latents = torch.randn(4, 4, 8, 8, generator=draw)
        self._text = torch.randn(4, 5, 32, generator=draw)
        self._noise = torch.randn(4, 4, 8, 8, generator=draw)
        self._time = torch.tensor([10, 200, 500, 900])

    def base(self) -> Model:
        from diffusers import UNet2DConditionModel

        with streams.seeded(0, "base"):
            unet: Model = UNet2DConditionModel(**_SHAPE)
            return unet.eval().requires_grad_(False)

    def adapted(self, config: LoraConfig) -> Model:
        unet = self.base()
        unet.add_adapter(config)
        return unet

    def _forward(self, unet: Model) -> Tensor:
        latents, text = self._latents.to(unet.dtype), self._text.to(unet.dtype)
        sample: Tensor = unet(latents, self._time, text).sample
        return sample

    def loss(self, model: Model, step: int) -> Tensor:
        return (self._forward(model) - self._noise).square().mean()

    @torch.no_grad()
    def output(self, model: Model) -> Tensor:
        return self._forward(getattr(model, "unet", model))

    def _pipeline(self, dtype: torch.dtype = torch.float32) -> Model:
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        with _quiet():
            return StableDiffusionPipeline(
                vae=None, text_encoder=None, tokenizer=None, unet=self.base().to(dtype),
                scheduler=DDIMScheduler(clip_sample=False, steps_offset=1), safety_checker=None,
                feature_extractor=None, requires_safety_checker=False,
            )  # fmt: skip

    def save_stock(self, model: Model, folder: Path, *, metadata: bool = True) -> None:
        from diffusers import StableDiffusionPipeline
        from diffusers.training_utils import _collate_lora_metadata
        from diffusers.utils import convert_state_dict_to_diffusers

        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
        extra = _collate_lora_metadata({"unet": model}) if metadata else {}
        StableDiffusionPipeline.save_lora_weights(str(folder), unet_lora_layers=layers, **extra)

    def save_ours(self, model: Model, folder: Path, start: dict[str, Tensor] | None) -> None:
        save_diffusers_lora(model, folder, at_start=start)

    def load(self, adapters: dict[str, Path], *, active: str) -> Model:
        pipeline = self._pipeline()
        with _quiet():
            for name, path in adapters.items():
                pipeline.load_lora_weights(str(path), adapter_name=name)
        return self.switch(pipeline, active)

    def switch(self, model: Model, active: str | None) -> Model:
        if active is None:
            model.disable_lora()
        else:
            model.enable_lora()
            model.set_adapters(active)
        return model

    @torch.no_grad()
    def merge_residue(self, saved: Path, dtype: torch.dtype) -> dict[str, float]:
        pipeline = self._pipeline(dtype)
        with _quiet():
            pipeline.load_lora_weights(str(saved), adapter_name="a")
        before = {n: p.detach().clone() for n, p in pipeline.unet.named_parameters() if "lora_" not in n}
        unfused = self.output(pipeline)
        pipeline.fuse_lora(components=["unet"])
        fused = self.output(pipeline)
        pipeline.unfuse_lora(components=["unet"])
        weights = max(difference(p, before[n]) for n, p in pipeline.unet.named_parameters() if n in before)
        return {"weight": weights, "output": difference(fused, unfused)}

    def extra(self, trained: Trained, folder: Path) -> dict[str, Json]:
        """What a user gets who follows the documented call, without the metadata: α is dropped."""
        bare = folder / "bare"
        self.save_stock(trained.model, bare, metadata=False)
        return {"without_alpha": difference(self.output(self.load({"a": bare}, active="a")), trained.output)}
