"""One training step of each base at its true width, two layers deep, at a batch of 2: shapes, targets and heads as the
paper's runs have them, one after the other (the widest takes about 6 GB)."""

from __future__ import annotations

from pathlib import Path

import pytest

from nora import cli
from nora.store.runs import Store

TEXT = ["protocol.max_steps=1", "model.architecture.num_hidden_layers=2", "task.source=slice", "task.num_train=2",
        "task.num_dev=1", "task.num_test=1"]  # fmt: skip
INSTRUCT = ["protocol.max_new_tokens=1", "protocol.cutoff=1024", *TEXT]
SHORT = ["[CrossAttnDownBlock2D,DownBlock2D]", "[UpBlock2D,CrossAttnUpBlock2D]"]
STEPS = {
    "opt_1.3b": ["task=cb", *TEXT],
    "llama_7b": ["task=commonsense", "protocol=llm_adapters", *INSTRUCT],
    "llama2_7b": ["task=commonsense", "protocol=llm_adapters", *INSTRUCT],
    "gemma_7b": ["task=gsm8k", "protocol=metamath", *INSTRUCT],
    "sd14": [
        "kind=dreambooth", "task=duck_toy", "protocol.steps=1", "protocol.resolution=64", "protocol.pictures=1",
        "protocol.picture_steps=1", "model.architecture.unet.block_out_channels=[320,640]",
        f"model.architecture.unet.down_block_types={SHORT[0]}", f"model.architecture.unet.up_block_types={SHORT[1]}",
        "model.architecture.unet.layers_per_block=1",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("model", STEPS)
def test_a_step_at_the_true_width(model: str, tmp_path: Path) -> None:
    """Of Stable Diffusion's UNet the first two levels; its VAE and text encoder are whole."""
    words = ["scale=paper", f"model={model}", "model.weights=random", "method=nora", "protocol.batch_size=2"]
    own = ["exec.device=cpu", "exec.progress=false", f"exec.results={tmp_path}"]
    assert cli.main(["run", *words, *STEPS[model], *own]) == 0
    (path,) = tmp_path.glob("runs/*/*/record.json")
    record = Store(tmp_path).read(path.parent.parent.name, path.parent.name)
    assert record is not None and record.status == "done" and record.result["proof"]["passed"]
    assert record.metrics["steps"] == 1 and record.spec["protocol"]["batch_size"] == 2
