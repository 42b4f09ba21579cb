"""Table files → cells, the paper's printed numbers, and the hyper-parameter choice on dev. Never imports torch."""
