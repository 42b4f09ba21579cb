"""AdamW on scaled gradients (arXiv 2402.02347) by our preconditioner: PEFT's Riemannian step before the clipping."""

KEYS = {"preconditioner": "scaled_gd", "normalize": "none", "damping": 1e-6}
