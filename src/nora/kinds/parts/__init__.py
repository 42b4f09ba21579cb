"""What the kinds of run are made of: bases with adapters, rows, pipelines, hosts. Here torch is imported."""
