"""Greedy answers by vLLM instead of transformers (optional), from merged weights on disk.

Written against vLLM's documented interface (LLM, SamplingParams, prompts as token ids) and tested with a stand-in for
it: vLLM itself has not been run here.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Sequence
from pathlib import Path

from peft import PeftModel

from nora.training.merge import save_merged

_MEMORY = 0.5  # of the device's memory: the trained model and its optimiser's state stay there


def vllm_greedy(
    model: PeftModel, prompts: Sequence[Sequence[int]], *, stop: int, max_new_tokens: int, max_length: int
) -> list[list[int]]:
    """The most likely continuation of each prompt's ids up to ``stop`` (not included), in the order given."""
    from vllm import LLM, SamplingParams

    dtype = str(next(p for p in model.parameters() if not p.requires_grad).dtype).removeprefix("torch.")
    greedy = SamplingParams(temperature=0.0, max_tokens=max_new_tokens, stop_token_ids=[stop], detokenize=False)
    with tempfile.TemporaryDirectory() as folder:
        save_merged(model, Path(folder))
        engine = LLM(
            model=folder, dtype=dtype, max_model_len=max_length, skip_tokenizer_init=True, seed=0,
            gpu_memory_utilization=_MEMORY,
        )  # fmt: skip
        answers = engine.generate([{"prompt_token_ids": list(ids)} for ids in prompts], greedy, use_tqdm=False)
        del engine
        gc.collect()
    found = [list(answer.outputs[0].token_ids) for answer in answers]
    return [tokens[: tokens.index(stop)] if stop in tokens else tokens for tokens in found]
