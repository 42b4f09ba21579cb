"""rsLoRA (arXiv 2312.03732): s = α/√r instead of α/r. PEFT's."""

PEFT = {"use_rslora": True}
