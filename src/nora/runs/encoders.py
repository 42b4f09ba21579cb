"""The encoders a spec names, loaded and applied to a run's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

from nora.runs import build
from nora.runs.schema import DreamboothSpec, EncoderSpec
from nora.training.diffusion.fidelity import ClipEncoder, DinoEncoder, Encoder, fidelity


def load_encoder(spec: EncoderSpec, checkout: Path, device: torch.device) -> Encoder:
    """An encoder of the checkout (hashes checked) or of the Hub by commit."""
    if spec.source == "asset":
        folder = checkout / spec.repo
        build.check_files(folder, spec.files or {})
        small: Any = CLIPModel.from_pretrained(folder)
        return ClipEncoder(small.to(device), AutoTokenizer.from_pretrained(folder))
    where: dict[str, Any] = {"revision": spec.revision, "local_files_only": True}
    processor = AutoImageProcessor.from_pretrained(spec.repo, **where)
    model: Any = AutoModel.from_pretrained(spec.repo, **where).to(device)
    if spec.family == "clip":
        return ClipEncoder(model, AutoTokenizer.from_pretrained(spec.repo, **where), processor)
    return DinoEncoder(model, processor)


def measure_fidelity(
    spec: DreamboothSpec,
    drawn: Sequence[Image.Image],
    real: Sequence[Image.Image],
    checkout: Path,
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """Encoder name → its cosines; texts say what the subject is instead of its name."""
    prompt = spec.task.prompt.replace(spec.task.subject, spec.task.noun)
    return {
        encoder.name: fidelity(load_encoder(encoder, checkout, device), drawn, real, prompt)
        for encoder in spec.protocol.encoders or []
    }
