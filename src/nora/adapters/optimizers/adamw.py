"""AdamW on the gradients as they are."""

KEYS: dict[str, object] = {}
