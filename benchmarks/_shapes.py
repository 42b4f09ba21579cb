"""The adapted layers of the paper's models: (out, in) and how many of them; ranks as the paper trains them."""

from __future__ import annotations

Shapes = dict[tuple[int, int], int]

OPT_1_3B: Shapes = {(2048, 2048): 48}  # q, v of 24 layers; rank 8
LLAMA_7B: Shapes = {(4096, 4096): 96, (11008, 4096): 32, (4096, 11008): 32}  # q, k, v, up, down of 32 layers; rank 32
GEMMA_7B: Shapes = {
    (4096, 3072): 84,
    (3072, 4096): 28,
    (24576, 3072): 56,
    (3072, 24576): 28,
}  # all seven of 28; rank 32
SD_1_4: Shapes = {}  # q, k, v, out of both attentions in the UNet's 16 blocks; rank 4
for _width, _blocks in ((320, 5), (640, 5), (1280, 6)):
    SD_1_4[_width, _width] = 6 * _blocks
    SD_1_4[_width, 768] = 2 * _blocks

MODELS: dict[str, tuple[Shapes, int]] = {
    "OPT-1.3B": (OPT_1_3B, 8),
    "LLaMA-7B": (LLAMA_7B, 32),
    "Gemma-7B": (GEMMA_7B, 32),
    "SD 1.4": (SD_1_4, 4),
}


def trainable(shapes: Shapes, rank: int) -> int:
    """Parameters of the adapter."""
    return sum(count * rank * (out + inn) for (out, inn), count in shapes.items())
