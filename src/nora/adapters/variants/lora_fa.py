"""LoRA-FA (arXiv 2308.03303): A is frozen, B is stepped by PEFT's optimiser for it."""

PEFT: dict[str, object] = {}
FREEZES = "A"
OPTIMIZER = "lora_fa"
