"""Models, encoding, losses, the optimisation loop and evaluation."""
