"""llama2.c's legacy checkpoints as a transformers LLaMA: a converter for small, really trained models.

Layout: seven little-endian int32 (dim, hidden, layers, heads, key-value heads, vocabulary, length; a negative
vocabulary means an output head of its own), then float32 tensors in the order read below. llama2.c rotates neighbouring
pairs of a head, transformers the two halves of it: the rows of W_q and W_k are permuted.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_HEADER = struct.Struct("<7i")


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of interleaved pairs [heads · d, in] → rows whose first halves precede their second ones."""
    out, width = weight.shape
    return weight.view(heads, out // heads // 2, 2, width).transpose(1, 2).reshape(out, width)


def read_llama2c(path: Path) -> LlamaForCausalLM:
    """The model of a legacy checkpoint, float32. ValueError where the file is not as long as its header says."""
    data = path.read_bytes()
    if len(data) < _HEADER.size:
        raise ValueError(f"{path}: given {len(data)} bytes, required a header of {_HEADER.size}")
    dim, hidden, layers, heads, kv_heads, vocab, length = _HEADER.unpack_from(data)
    tied, vocab = vocab > 0, abs(vocab)
    head = dim // heads
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("embedding", (vocab, dim)),
        ("attention_norm", (layers, dim)),
        ("wq", (layers, dim, dim)),
        ("wk", (layers, kv_heads * head, dim)),
        ("wv", (layers, kv_heads * head, dim)),
        ("wo", (layers, dim, dim)),
        ("ffn_norm", (layers, dim)),
        ("w1", (layers, hidden, dim)),
        ("w2", (layers, dim, hidden)),
        ("w3", (layers, hidden, dim)),
        ("norm", (dim,)),
        ("rotary", (2, length, head // 2)),  # tables transformers computes itself
        *([] if tied else [("head", (vocab, dim))]),
    ]
    expected = _HEADER.size + 4 * sum(int(np.prod(shape)) for _, shape in shapes)
    if len(data) != expected:
        raise ValueError(f"{path}: given {len(data)} bytes, its header asks for {expected}")
    tensors: dict[str, Tensor] = {}
    start = _HEADER.size
    for name, shape in shapes:
        count = int(np.prod(shape))
        values = np.frombuffer(data, dtype="<f4", count=count, offset=start)
        tensors[name] = torch.from_numpy(values.astype(np.float32)).view(*shape)
        start += 4 * count
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    state = {"model.embed_tokens.weight": tensors["embedding"], "model.norm.weight": tensors["norm"]}
    state["lm_head.weight"] = tensors["embedding"] if tied else tensors["head"]
    for i in range(layers):
        prefix = f"model.layers.{i}."
        state |= {
            f"{prefix}input_layernorm.weight": tensors["attention_norm"][i],
            f"{prefix}self_attn.q_proj.weight": _halves(tensors["wq"][i], heads),
            f"{prefix}self_attn.k_proj.weight": _halves(tensors["wk"][i], kv_heads),
            f"{prefix}self_attn.v_proj.weight": tensors["wv"][i],
            f"{prefix}self_attn.o_proj.weight": tensors["wo"][i],
            f"{prefix}post_attention_layernorm.weight": tensors["ffn_norm"][i],
            f"{prefix}mlp.gate_proj.weight": tensors["w1"][i],
            f"{prefix}mlp.down_proj.weight": tensors["w2"][i],
            f"{prefix}mlp.up_proj.weight": tensors["w3"][i],
        }
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval()


def read_pieces(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a JSON list of sentencepiece BPE pieces (byte fallback, blank before the text, BOS first)."""
    pieces = json.loads(path.read_text(encoding="utf-8"))["pieces"]
    vocab = {}
    for i, piece in enumerate(pieces):
        vocab[piece if piece not in vocab else f"<unused {i}>"] = i
    rank = {piece: i for piece, i in vocab.items() if i >= 259}
    merges = []
    for piece, i in rank.items():  # a piece is the merge of the two lower-ranked ones that make it, the lowest first
        pairs = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
        merges += [(i, left, right) for left, right in pairs if left in vocab and right in vocab]
    merges.sort(key=lambda merge: merge[0])
    tokenizer = Tokenizer(
        models.BPE(
            vocab, [(left, right) for _, left, right in merges], byte_fallback=True, fuse_unk=True, unk_token="<unk>"
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
