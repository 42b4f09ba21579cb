"""prefetch → plan → run of the paper scale through twins of the Hub's repositories, as a person would type it."""

from __future__ import annotations

import json
from typing import Any

from hub_twins.rehearsal import Fetched, offline

PROTOCOLS = {
    ("mezo", "opt_1.3b"),
    ("llm_adapters", "llama_7b"),
    ("llm_adapters", "llama2_7b"),
    ("llm_adapters_released", "llama_7b"),
    ("llm_adapters_modern", "llama_7b"),
    ("metamath", "gemma_7b"),
    ("dreambooth", "sd14"),
}


def test_every_name_is_pinned_and_only_what_is_loaded_is_brought(fetched: Fetched) -> None:
    lock = fetched.lock
    assert len(lock["models"]) == 8 and len(lock["tasks"]) == 10 and len(lock["pictures"]) == 2
    assert fetched.said.count("pinned to") == 20
    llama2 = lock["models"]["meta-llama/Llama-2-7b-hf"]["files"]
    assert not [name for name in llama2 if name.endswith(".bin")], "the same weights a second time"
    assert "pytorch_model.bin" in lock["models"]["facebook/opt-1.3b"]["files"]
    pipeline = lock["models"]["CompVis/stable-diffusion-v1-4"]["files"]
    assert "unet/diffusion_pytorch_model.safetensors" in pipeline
    assert not [name for name in pipeline if name.startswith(("safety_checker", "feature_extractor"))]


def test_a_run_of_each_protocol_ends_without_a_connection(ran: list[dict[str, Any]]) -> None:
    assert {tuple(line["key"][:2]) for line in ran} == PROTOCOLS
    assert {line["key"][2] for line in ran if line["key"][0] == "dreambooth"} == {"dog", "cat_toy"}
    assert [line for line in ran if line["state"] != "done" or not line["proved"]] == []


def test_a_row_longer_than_every_cut_off_is_trained_on_and_counted(ran: list[dict[str, Any]]) -> None:
    (metamath,) = (line for line in ran if line["key"][0] == "metamath")
    assert metamath["lost"] >= 1 and metamath["steps"] == 2


def test_the_plan_knows_what_was_fetched(fetched: Fetched, ran: list[dict[str, Any]]) -> None:
    done = offline(fetched.folder, "plan", "table9", "scale=paper", "--json")
    assert done.returncode == 0, done.stderr
    cells = [cell for cells in json.loads(done.stdout).values() for cell in cells]
    assert len(cells) == 25 and sum(cell["state"] == "done" for cell in cells) == 1
