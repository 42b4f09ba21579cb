"""A trained LoRA as a plain transformers model on disk, for programs that know nothing of adapters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer


def save_merged(model: PeftModel, folder: Path) -> None:
    """Writes a copy of the model with its LoRA merged (it may be already); ``model`` stays as it is."""
    copied: Any = copy.deepcopy(model)
    merged = any(layer.merged for layer in copied.modules() if isinstance(layer, LoraLayer))
    (copied.unload() if merged else copied.merge_and_unload()).save_pretrained(folder)
