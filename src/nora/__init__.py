"""NoRA: Nyström initialisation for LoRA, proved on every run (arXiv 2410.18965)."""

__version__ = "0.1.0"
