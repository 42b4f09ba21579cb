"""NoRA+ handed to ``deepspeed.initialize``: stage 0 in float32 steps the model's own factors; every other engine keeps
flat copies of them (ZeRO 1 to 3, bf16, fp16) and is refused at the first step, nothing moved."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing

from nora.adapters import create_nora_plus_optimizer, nystrom_init_, save_adapter
from twins import tiny_llama, with_lora

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed (pip install deepspeed)"
)
IDS = (torch.arange(40).reshape(4, 10) * 7 + 3) % 40
ENGINES = ["stage 0", "stage 1", "stage 2", "stage 3", "stage 0 bf16"]


def _made() -> tuple[Any, Any]:
    model = with_lora(tiny_llama(tied=False))
    assert nystrom_init_(model, xi=0.1).passed
    return model, create_nora_plus_optimizer(model, torch.optim.SGD, lr=10.0, max_grad_norm=1e-3)


def _trained(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().float().clone() for name, p in model.named_parameters() if p.requires_grad}


def _engine(engine: str, folder: Path) -> tuple[str, Any]:
    """What the first steps said, and the factors afterwards."""
    import deepspeed

    model, optimizer = _made()
    config = {
        "train_micro_batch_size_per_gpu": len(IDS),
        "zero_optimization": {"stage": int(engine.split()[1])},
        "bf16": {"enabled": "bf16" in engine},
        "zero_allow_untested_optimizer": True,
    }
    said = "stepped"
    try:  # the engine of half precision steps once when it is made
        wrapped, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
        for _ in range(3):
            wrapped.backward(wrapped(input_ids=IDS, labels=IDS).loss)
            wrapped.step()
    except ValueError as error:
        said = str(error)
    if engine == "stage 3":  # the model holds empty tensors: it can be neither started nor saved as it is
        for attempt in (lambda: nystrom_init_(model, xi=0.1), lambda: save_adapter(model, folder / "saved")):
            try:
                attempt()
            except ValueError as error:
                said += f"\n{error}"
        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            return said, _trained(model)
    return said, _trained(model)


def _work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
    import deepspeed

    # A faster all-reduce for many processes of one machine, which it would compile first.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    deepspeed.init_distributed(
        "gloo", auto_mpi_discovery=False, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=1
    )
    torch.save({engine: _engine(engine, folder) for engine in ENGINES}, folder / "found.pt")
    os._exit(0)  # its engines leave threads behind


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Any]]:
    folder = tmp_path_factory.mktemp("deepspeed")
    multiprocessing.start_processes(_work, args=(folder,), nprocs=1, start_method="spawn")
    kept: dict[str, tuple[str, Any]] = torch.load(folder / "found.pt", weights_only=True)
    return kept


def test_stage_0_takes_the_steps_of_the_bare_model(found: dict[str, tuple[str, Any]]) -> None:
    model, optimizer = _made()
    start = _trained(model)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    said, factors = found["stage 0"]
    assert said == "stepped"
    for name, factor in _trained(model).items():
        assert not torch.equal(factor, start[name])
        torch.testing.assert_close(factors[name], factor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_engines_that_step_copies_are_refused(engine: str, found: dict[str, tuple[str, Any]]) -> None:
    said, factors = found[engine]
    assert "no longer the model's LoRA factors" in said and "stage 0" in said
    for name, factor in _trained(_made()[0]).items():
        torch.testing.assert_close(factors[name], factor.bfloat16().float() if "bf16" in engine else factor)


def test_empty_tensors_of_stage_3_are_neither_started_nor_saved(found: dict[str, tuple[str, Any]]) -> None:
    _, started, saved = found["stage 3"][0].split("\n")
    assert "given a sharded weight" in started and "which are shards; gather the model first" in saved
