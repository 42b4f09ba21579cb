"""NoRA+ on a model that two processes hold: each trains on half of every batch, the weights are those of one process.

The two are started once (gloo, on the CPU) and do every case in turn; the tests read what each of them wrote down.
Float64, but for the mixture of experts, whose kernel has float32 alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, multiprocessing
from transformers import MixtralConfig, MixtralForCausalLM

from nora.adapters import create_nora_plus_optimizer, nystrom_init_, save_adapter
from twins import tiny_llama

IDS = (torch.arange(40).reshape(4, 10) * 7 + 3) % 40
STEPS = 3
TARGETS = ["q_proj", "v_proj", "embed_tokens"]


def _llama() -> Any:
    return tiny_llama(tied=False, dtype=torch.float64)


def _mixtral() -> Any:
    config = MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MixtralForCausalLM(config).eval().requires_grad_(False)


def _started(base: Callable[[], Any] = _llama, **options: Any) -> Any:
    """A rank of 3 falls on two processes unevenly, of a rank of 1 one process has nothing."""
    config: Any = {"r": 4, "rank_pattern": {"v_proj": 3, "q_proj": 1}, "target_modules": TARGETS, **options}
    model = get_peft_model(base(), LoraConfig(**config), autocast_adapter_dtype=False)
    assert nystrom_init_(model, xi=0.1).passed
    return model


def _optimizer(model: Any, optimizer_cls: Any = torch.optim.SGD) -> Any:
    """Every step is clipped: one that is not is a thousand times as long."""
    return create_nora_plus_optimizer(model, optimizer_cls, lr=10.0, max_grad_norm=1e-3)


def _train(model: Any, optimizer: Any, ids: Tensor, between: Callable[[], None] = lambda: None) -> None:
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        between()
        optimizer.step()


def _whole(model: Any) -> dict[str, Tensor]:
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return {n: p.full_tensor() if hasattr(p, "full_tensor") else p.clone() for n, p in trained.items()}


def _shard(model: Any, root: bool = True) -> None:
    from torch.distributed.fsdp import fully_shard

    for layer in model.get_base_model().model.layers:
        fully_shard(layer)
    if root:
        fully_shard(model)


def _by_accelerate(model: Any, optimizer: Any) -> None:
    """What ``accelerator.prepare`` does with an optimiser that was made before it shards the model."""
    from accelerate.utils.fsdp_utils import fsdp2_switch_optimizer_parameters

    names = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for i, parameter in enumerate(group["params"]):
            group["params"][i] = type("Kept", (), {"data_ptr": parameter.data_ptr()})()
    _shard(model)
    fsdp2_switch_optimizer_parameters(optimizer, {names[name]: p for name, p in model.named_parameters()})


def _case(rank: int, folder: Path, make: Callable[[], Any], how: str) -> tuple[Any, Any]:
    """A model sharded over both processes and trained on this one's half of the batch, and its optimiser."""
    model, mine = make(), IDS[rank::2]
    if how == "made before":
        optimizer = _optimizer(model)
        _by_accelerate(model, optimizer)
    else:
        _shard(model, root=how != "in part")
        optimizer = _optimizer(model)
    if how == "accumulated":
        for _ in range(STEPS):
            optimizer.zero_grad()
            for i, part in enumerate(mine.split(1)):
                model.set_requires_gradient_sync(i == 1)
                (model(input_ids=part, labels=part).loss / 2).backward()
            optimizer.step()
        return model, optimizer

    def average() -> None:
        for parameter in model.parameters():
            if how == "in part" and parameter.requires_grad and not hasattr(parameter, "full_tensor"):
                dist.all_reduce(parameter.grad)
                parameter.grad /= 2

    _train(model, optimizer, mine, average)
    return model, optimizer


MAKERS: dict[str, Callable[[], Any]] = {
    "llama": _started,
    "dora": functools.partial(_started, use_dora=True, modules_to_save=["norm"]),
    "experts": functools.partial(
        _started, _mixtral, rank_pattern={}, target_modules=["q_proj"],
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
    ),
}  # fmt: skip
CASES = [
    ("llama", "made after"),
    ("llama", "made before"),
    ("llama", "accumulated"),
    ("llama", "in part"),
    ("dora", "made after"),
    ("experts", "made after"),
]


def _refused(rank: int) -> str:
    """FSDP 1 leaves each process flat pieces under the factors' names."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    messages = []
    for before in (True, False):
        model = _started()
        optimizer = _optimizer(model) if before else None
        sharded = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
        try:
            _train(sharded, optimizer or _optimizer(sharded), IDS[rank::2])
        except ValueError as error:
            messages.append(str(error))
    return "\n".join(messages)


def _resumed(rank: int, folder: Path) -> dict[str, Tensor]:
    """Three steps, a distributed checkpoint, three more from it in a new model and optimiser."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model = _started()
    _shard(model)
    optimizer = _optimizer(model, torch.optim.AdamW)
    _train(model, optimizer, IDS[rank::2])
    held = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    checkpoint.save(held, checkpoint_id=folder / "checkpoint")
    model = _started()
    _shard(model)
    optimizer = _optimizer(model, torch.optim.AdamW)
    held = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    checkpoint.load(held, checkpoint_id=folder / "checkpoint")
    set_state_dict(model, optimizer, model_state_dict=held["model"], optim_state_dict=held["optimizer"])
    _train(model, optimizer, IDS[rank::2])
    return _whole(model)


def _work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    done: dict[Any, Any] = {"refused": _refused(rank), "resumed": _resumed(rank, folder)}
    for make, how in CASES:
        model, _ = _case(rank, folder, MAKERS[make], how)
        done[make, how] = _whole(model)
        save_adapter(model, folder / f"{make} {how}")
    torch.save(done, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where both processes have left what they found."""
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.start_processes(_work, args=(folder,), nprocs=2, start_method="spawn")
    return folder


def _found(folder: Path, key: Any) -> list[Any]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True)[key] for rank in range(2)]


@functools.cache
def _alone(make: str, optimizer_cls: Any = torch.optim.SGD, times: int = 1) -> Any:
    model = MAKERS[make]()
    optimizer = _optimizer(model, optimizer_cls)
    for _ in range(times):
        _train(model, optimizer, IDS)
    return model.eval()


@pytest.mark.parametrize(("make", "how"), CASES)
def test_the_weights_are_those_of_one_process_with_the_whole_batch(make: str, how: str, written: Path) -> None:
    wanted, start = _whole(_alone(make)), _whole(MAKERS[make]())
    tolerance = 1e-4 if make == "experts" else 1e-10
    for found in _found(written, (make, how)):
        assert found.keys() == wanted.keys()
        for name, weight in wanted.items():
            assert torch.linalg.norm(weight - start[name]) > 0
            assert torch.linalg.norm(found[name] - weight) <= tolerance * torch.linalg.norm(weight), name


@pytest.mark.parametrize(("make", "how"), CASES)
def test_what_both_save_is_one_stock_adapter(make: str, how: str, written: Path) -> None:
    base = _mixtral() if make == "experts" else _llama()
    loaded = PeftModel.from_pretrained(base, str(written / f"{make} {how}"), autocast_adapter_dtype=False).eval()
    with torch.no_grad():
        wanted, found = _alone(make)(input_ids=IDS).logits, loaded(input_ids=IDS).logits
    assert torch.linalg.norm(found - wanted) <= (1e-4 if make == "experts" else 1e-10) * torch.linalg.norm(wanted)


def test_a_distributed_checkpoint_keeps_the_count_of_steps(written: Path) -> None:
    wanted = _whole(_alone("llama", torch.optim.AdamW, 2))
    for found in _found(written, "resumed"):
        for name, weight in wanted.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-9, atol=1e-9)


def test_pieces_that_nobody_can_gather_are_refused(written: Path) -> None:
    for found in _found(written, "refused"):
        before, after = found.split("\n")
        for message in (before, after):
            assert "a piece of it (FSDP 1, DeepSpeed's ZeRO 3), required whole factors or FSDP 2's" in message
