"""How methods, tasks, base models and scales are spelt in print."""

from __future__ import annotations

import re

METHODS = {
    "lora": "LoRA",
    "lora_p": "LoRA-P",
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "nora": "NoRA",
    "nora_plus": "NoRA+",
    "prefix": "Prefix",
}
TASKS = {
    "sst2": "SST-2",
    "wsc": "WSC",
    "boolq": "BoolQ",
    "cb": "CB",
    "rte": "RTE",
    "record": "ReCoRD",
    "multirc": "MultiRC",
    "squad": "SQuAD",
    "piqa": "PIQA",
    "social_i_qa": "SIQA",
    "hellaswag": "HS",
    "winogrande": "WG",
    "arc_easy": "ARC-e",
    "arc_challenge": "ARC-c",
    "openbookqa": "OBQA",
    "gsm8k": "GSM8K",
    "dog": "dog",
    "cat_toy": "cat toy",
    "duck_toy": "rubber duck",
}
MODELS = {
    "opt_1.3b": "OPT-1.3B",
    "llama_7b": "LLaMA-7B",
    "llama2_7b": "LLaMA2-7B",
    "gemma_7b": "Gemma-7B",
    "sd14": "Stable Diffusion v1.4",
}
BANNERS = {
    "paper": "",
    "mini": "Mini scale: a small base model on a slice of the data. Trends only, not the paper's numbers.",
    "smoke": "SMOKE TEST: random weights and a few rows. These numbers mean nothing.",
}


def heading(name: str, title: str) -> str:
    """An artefact's title: the paper's number where it has one."""
    found = re.fullmatch(r"(table|fig)(\d+)", name)
    if found is None:
        return title
    return f"{'Table' if found[1] == 'table' else 'Figure'} {found[2]} – {title}"


def papers_order(name: str) -> tuple[int, int, str]:
    """Tables by number, figures by number, the rest by name."""
    found = re.fullmatch(r"(table|fig)(\d+)", name)
    return (2, 0, name) if found is None else (int(found[1] == "fig"), int(found[2]), name)


def method(name: str) -> str:
    return METHODS.get(name, name)


def task(name: str) -> str:
    return TASKS.get(name, name)


def model(name: str) -> str:
    """A base model; the small ones by their own names."""
    return MODELS.get(name, name)


def column(axis: str, name: str) -> str:
    """A column of a table whose columns are tasks, models or protocols."""
    return {"task": task, "model": model}.get(axis, str)(name)
