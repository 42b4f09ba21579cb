"""How methods, tasks and scales are spelt in print."""

from __future__ import annotations

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
    "dog": "dog",
    "cat_toy": "cat toy",
    "duck_toy": "rubber duck",
}
BANNERS = {
    "paper": "",
    "mini": "Mini scale: a small base model on a slice of the data. Trends only, not the paper's numbers.",
    "smoke": "SMOKE TEST: random weights and a few rows. These numbers mean nothing.",
}


def method(name: str) -> str:
    return METHODS.get(name, name)


def task(name: str) -> str:
    return TASKS.get(name, name)
