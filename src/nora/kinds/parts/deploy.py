"""An adapter trained a little from one start, saved, and loaded by others: every column of the deployment table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig

from nora import streams
from nora.adapters import Start, factors_at_start, initialize_, inits, prove_init, variants
from nora.adapters.moved import moves_base
from nora.files import Json
from nora.kinds.parts.hosts import Host, Model, TextHost, Trained, difference

if TYPE_CHECKING:
    from nora.kinds.deployment import Spec


_ROWS = 4  # looks at the host's data that a data-driven start takes


def _is_ours(init: str) -> bool:
    """Whether it is made here, layer by layer; PEFT makes the orthogonal one at construction, as it always did."""
    return init in inits.names() and init != "orthogonal"


def started(host: Host, spec: Spec, init: str, variant: str | None = None) -> tuple[Model, Start | None]:
    """A fresh base with an adapter started by ``init``, ours (and then what repeats it) or PEFT's."""
    ours = _is_ours(init)
    config = LoraConfig(
        r=spec.adapter.rank,
        lora_alpha=spec.adapter.alpha,
        init_lora_weights=inits.load(init).PEFT_INIT if ours else init,  # type: ignore[arg-type]
        target_modules=host.targets,
        **variants.peft_settings(variant),
    )
    with streams.seeded(spec.seed, f"peft {init}"):
        model = host.adapted(config)
    variants.freeze_(model, variant)
    if not ours:
        return model, None
    looks = list(range(_ROWS))
    return model, initialize_(
        model, init, seed=spec.seed, batches=looks, loss=lambda m, step: host.loss(m, step), **_options(spec, init)
    )


def _options(spec: Spec, init: str) -> dict[str, Json]:
    return {"xi": spec.adapter.xi} if init.startswith("nystrom") else {}


def train_adapter(host: Host, spec: Spec, init: str, variant: str | None = None) -> Trained:
    """A started adapter after the protocol's steps, with its output, losses and factors at the start."""
    model, _ = started(host, spec, init, variant)
    start_difference = difference(host.output(model), host.output(host.base()))
    start = factors_at_start(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=spec.protocol.lr, weight_decay=0.0)
    losses = []
    for step in range(spec.protocol.steps):
        optimizer.zero_grad()
        loss = host.loss(model, step)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return Trained(model, start, host.output(model), losses, start_difference)


def measure(host: Host, spec: Spec, folder: Path) -> dict[str, Json]:
    """Every column of one host (text or diffusion)."""
    init = spec.adapter.init
    ours, plain = train_adapter(host, spec, init, spec.adapter.variant), train_adapter(host, spec, "kaiming")
    base_output = host.output(host.base())
    ours_saved, plain_saved = folder / "stock", folder / "plain"
    host.save_stock(ours.model, ours_saved)
    host.save_stock(plain.model, plain_saved)
    moved = moves_base(ours.model.peft_config["default"])
    portable = folder / "portable"
    host.save_ours(ours.model, portable, ours.start if moved else None)
    result: dict[str, Json] = {
        "losses": [ours.losses[0], ours.losses[-1]],
        "trained_change": difference(ours.output, base_output),
        "start_difference": ours.start_difference,
        "moves_base": moved,
        "bytes": {"stock": _bytes(ours_saved), "portable": _bytes(portable)},
    }
    with streams.seeded(spec.seed, "loading"):
        for label, saved in (("stock", ours_saved), ("portable", portable)):
            try:
                alone = host.load({"a": saved}, active="a")
            except (
                RuntimeError,
                ValueError,
            ) as error:  # what stock diffusers does with a start it repeats on empty tensors
                result[label] = {"error": str(error).splitlines()[0]}
                continue
            pair = host.load({"a": saved, "b": plain_saved}, active="a")
            result[label] = {
                "alone": difference(host.output(alone), ours.output),
                "beside": max(
                    difference(host.output(host.switch(pair, "a")), ours.output),
                    difference(host.output(host.switch(pair, "b")), plain.output),
                    difference(host.output(host.switch(pair, "a")), ours.output),
                ),
                "off": difference(host.output(host.switch(pair, None)), base_output),
            }
        for dtype in (torch.float32, torch.bfloat16):
            result[f"merge_{str(dtype).removeprefix('torch.')}"] = host.merge_residue(portable, dtype)
    result |= host.extra(ours, folder)
    return result


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def prove_text_start(host: TextHost, spec: Spec) -> dict[str, Json]:
    """The init proof for the starts of ours; for PEFT's other starts only that the output is the base's."""
    init = spec.adapter.init
    (model, start), base_output = started(host, spec, init, spec.adapter.variant), host.output(host.base())
    if start is not None:
        report = prove_init(model, start, inputs=host.inputs, pretrained=host.weights, base_output=base_output)
        return report.to_dict()
    relative = difference(host.output(model), base_output) / float(base_output.abs().max())
    problems = [] if relative <= 1e-5 else [f"the output differs from the base's by {relative:.1e} at the start"]
    return {"init": init, "passed": not problems, "problems": problems, "modules": [], "output_difference": relative}
