"""NoRA+ (paper, Alg. 2): scaled gradients, each preconditioner at Frobenius norm 1."""

KEYS = {"preconditioner": "scaled_gd", "normalize": "frobenius", "damping": 1e-6}
