"""Two processes (gloo, CPU) that share every batch train as one does: losses, norms and weights in float64."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nora.training.loop import LoopSettings, make_state, train_step
from nora.training.objectives import InstructObjective
from nora.training.replicas import join_replicas

from test_instruct_batches import _model, _texts  # isort: skip

SETTINGS = LoopSettings(
    lr=1e-2, batch_size=15, epochs=1, schedule="linear", warmup_steps=0, betas=(0.9, 0.999), eps=1e-8,
    weight_decay=0.0, max_grad_norm=1.0, precision="fp32",
)  # fmt: skip


def _train(replicas: object) -> dict[str, object]:
    model, texts = _model("llama"), _texts(15)
    state = make_state(model, SETTINGS, num_examples=15, preconditioner=None)
    steps = [
        train_step(model, InstructObjective(texts, 0), list(range(n)), SETTINGS, state, replicas)  # type: ignore[arg-type]
        for n in (15, 15, 1)  # the last batch leaves the second process without an example
    ]
    return {"steps": steps, "weights": [p.detach().double().norm().item() for p in state.parameters.values()]}


def test_two_processes_train_as_one() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        environment = {
            **os.environ,
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path]),
        }  # fmt: skip
        children.append(
            subprocess.Popen([sys.executable, __file__], env=environment, stdout=subprocess.PIPE, text=True)
        )
    outputs = [json.loads(child.communicate(timeout=240)[0].splitlines()[-1]) for child in children]
    assert outputs[0] == outputs[1] and outputs[0]["size"] == 2, "both processes end with the same weights"
    alone = _train(None)
    for (loss, norm), (expected_loss, expected_norm) in zip(outputs[0]["steps"], alone["steps"], strict=True):  # type: ignore[call-overload]
        assert loss == pytest.approx(expected_loss, rel=1e-12) and norm == pytest.approx(expected_norm, rel=1e-9)
    assert outputs[0]["weights"] == pytest.approx(alone["weights"], rel=1e-9)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({**_train(joined := join_replicas(cpu=True)), "size": joined.size}))
