"""From what was typed to a spec: composing, schema, pins, ids. The only door to Hydra and OmegaConf, with tables."""
