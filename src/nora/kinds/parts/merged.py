"""A finished run's trained model as a plain transformers model in a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load

from nora.config.schema import MethodSpec, ModelSpec, validate
from nora.errors import UserError
from nora.kinds.instruct import trained_method
from nora.kinds.parts import bases
from nora.store.record import Record
from nora.store.runs import Store
from nora.training.generation import save_merged
from nora.training.loop import trainable_parameters


@torch.no_grad()
def write_merged(record: Record, store: Store, checkout: Path, folder: Path) -> None:
    """The base of the record with its kept adapter merged, and the tokenizer. UserError where there is no such thing.

    The start is made again (PiSSA and OLoRA move the base), then the trained factors are put in.
    """
    if record.spec["kind"] != "finetune" or record.spec["method"]["adapter"] != "lora":
        raise UserError(f"{record.id}: given a run that trains no LoRA of a language model, required kind=finetune")
    kept = record.result["files"].get("adapter")
    path = store.run_dir("finetune", record.id) / str(kept and kept["name"])
    if kept is None or not path.is_file():
        raise UserError(f"{record.id}: its adapter was not kept; repeat the run with exec.keep_adapter=true")
    problems = store.verify_files(record)
    if problems:
        raise UserError("; ".join(problems))
    model: ModelSpec = validate(record.spec["model"], ModelSpec)
    declared: MethodSpec = validate(record.spec["method"], MethodSpec)
    method, _ = trained_method(declared, record.spec["protocol"].get("sketch", "applied"))
    base = bases.load_base(model, checkout, torch.device("cpu"))
    probe = {"input_ids": torch.tensor([base.tokenizer("probe")["input_ids"]])}
    adapted = bases.add_adapter(base, method, model.targets, seed=record.spec["seed"], probe=probe)
    trained = load(path.read_bytes())
    for name, parameter in trainable_parameters(adapted.model).items():
        parameter.copy_(trained[name])
    save_merged(adapted.model, folder)
    base.tokenizer.save_pretrained(folder)
