"""A causal language model under stock PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from nora.adapters import save_adapter, snapshot_weights
from nora.runs import build
from nora.runs.context import RunContext
from nora.runs.deployment.host import Trained, difference
from nora.runs.schema import DeploymentSpec

_TEXT = "the film was a long and quiet story about two brothers who never agreed on anything . "


class TextHost:
    """The base of the spec, trained on a sentence."""

    def __init__(self, spec: DeploymentSpec, context: RunContext) -> None:
        self._spec = spec.model
        self._context = context
        self.targets = list(spec.model.targets)
        tokenizer = build.load_base(self._spec, context.checkout, context.device).tokenizer
        self.inputs: dict[str, Any] = dict(tokenizer(_TEXT, return_tensors="pt"))
        self.inputs = {"input_ids": self.inputs["input_ids"].to(context.device)}
        self.weights = snapshot_weights(self.base(), set(self.targets))

    def base(self) -> Any:
        return build.load_base(self._spec, self._context.checkout, self._context.device).model

    def adapted(self, config: Any) -> Any:
        return get_peft_model(self.base(), config).eval()

    def loss(self, model: Any, step: int) -> Tensor:
        loss: Tensor = model(**self.inputs, labels=self.inputs["input_ids"]).loss
        return loss

    @torch.no_grad()
    def output(self, model: Any) -> Tensor:
        logits: Tensor = model(**self.inputs).logits
        return logits

    def save_stock(self, model: Any, folder: Path) -> None:
        model.save_pretrained(str(folder))

    def save_ours(self, model: Any, folder: Path, start: dict[str, Tensor] | None) -> None:
        save_adapter(model, folder, at_start=start)

    def load(self, adapters: dict[str, Path], *, active: str) -> Any:
        (first, path), *rest = adapters.items()
        model = PeftModel.from_pretrained(self.base(), str(path), adapter_name=first)
        for name, saved in rest:
            model.load_adapter(str(saved), adapter_name=name)
        return self.switch(model.eval(), active)

    def switch(self, model: Any, active: str | None) -> Any:
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

    def extra(self, trained: Trained, folder: Path) -> dict[str, Any]:
        return {}
