"""``exec.keep_adapter=true``: the adapter of a run on text as a folder that stock PEFT loads, beside the record."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from torch import Tensor

from nora.adapters import factors_at_start, save_adapter
from nora.config.spec import run_id
from nora.kinds.parts.bases import moves_base

if TYPE_CHECKING:
    from nora.config.schema import MethodSpec
    from nora.kinds import FinetuneSpec

FOLDER = "adapter"
_CONFIG = "adapter_config.json"


class KeptAdapter:
    """Made before the first step, since a start that moves the base (PiSSA, OLoRA) is needed to leave it again."""

    def __init__(self, spec: FinetuneSpec, model: PeftModel, method: MethodSpec) -> None:
        self._spec, self._model = spec, model
        self._at_start: Mapping[str, Tensor] | None = None
        self._repeated = ""
        if moves_base(method):
            try:
                self._at_start = factors_at_start(model)
            except ValueError:  # in half precision no LoRA of the untouched base equals what was trained
                self._repeated = method.init

    def files(self) -> dict[str, bytes]:
        """Name below the run's folder → content: the weights and config of PEFT, and a card; the adapter unmerged."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if self._repeated:
                self._model.save_pretrained(str(folder), save_embedding_layers=False)
            else:
                save_adapter(self._model, folder, at_start=self._at_start)
            weights = (folder / "adapter_model.safetensors").read_bytes()
            config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": self._base, "revision": self._spec.model.revision}
        if config.get("target_modules"):
            config["target_modules"] = sorted(config["target_modules"])  # a set: in another order each time
        return {
            f"{FOLDER}/adapter_model.safetensors": weights,
            f"{FOLDER}/{_CONFIG}": (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
            f"{FOLDER}/README.md": self._card(config).encode(),
        }

    @property
    def _base(self) -> str:
        return self._spec.model.repo or self._spec.model.name

    def _card(self, config: Mapping[str, Any]) -> str:
        """The Hub's card: what the adapter is, of which base, by which run; how it is read where that is not plain."""
        spec = self._spec
        of_hub = spec.model.source == "hub" and spec.model.weights == "pretrained"
        revision = f", commit `{spec.model.revision}`" if spec.model.revision else ""
        lines = [
            "---",
            "library_name: peft",
            *([f"base_model: {self._base}"] if of_hub else []),
            f"tags: [{spec.method.adapter}, nora, {spec.method.name}]",
            "---",
            "",
            f"# {spec.method.name} on {spec.task.name}, {spec.model.name}, seed {spec.seed}",
            "",
            f"Run `{run_id(spec)}` of the reproduction of arXiv 2410.18965 (`nora show {run_id(spec)}`). Base: "
            f"`{self._base}`{revision}, {spec.model.weights} weights, {spec.model.dtype}.",
            "",
            "`PeftModel.from_pretrained(base, folder)` reads it.",
        ]
        if spec.model.source in ("gguf", "package"):
            (file,) = spec.model.files or {}
            lines += [
                "",
                f"The base is a GGUF file: `AutoModelForCausalLM.from_pretrained(place, gguf_file={file!r})`.",
            ]
        if spec.method.adapter == "prefix":
            lines += [
                "",
                f"Trained with the text's positions starting at 0. PEFT's own forward starts them at "
                f"{config['num_virtual_tokens']}, after the prefix: for the numbers of the run hand the base "
                "`past_key_values=model.get_prompt(n)` and `position_ids` from 0.",
            ]
        elif self._at_start is not None:
            lines += ["", f"The start moved the base; this is the plain LoRA of the untouched one, rank {config['r']}."]
        elif self._repeated:
            lines += [
                "",
                f"Its start ({self._repeated}) moved a base in {spec.model.dtype}, which no LoRA gives back: loading "
                "repeats the start, so load the base in that dtype, untouched.",
            ]
        return "\n".join([*lines, ""])
