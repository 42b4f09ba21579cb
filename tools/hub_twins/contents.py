"""What the twins hold. True in each: repository name, file names as the Hub lists them, the model's class, layer kinds
and special ids, data sets' configurations, splits, columns and types, rows of the real sets (the shipped slices) with
one of each odd kind. Not true: widths, depths and weights, how many rows there are, and the tokenizers, except where a
package of the machine has a true one (``tokenizers``)."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

from hub_twins.server import Hub, Repo
from nora import tasks
from nora.tasks.example import HubSource

ROOT = Path(__file__).resolve().parents[2]
_LONG = "How many apples are left ? " * 400  # far beyond every cut-off: its answer is lost


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def sentencepiece_of_mistral() -> bytes | None:
    """A true sentencepiece model of LLaMA's kind (32,000 pieces; Apache-2.0), where mistral-common is."""
    path = ROOT / ".venv" / "tokenizers" / "mistral_common" / "data" / "tokenizer.model.v1"  # as `make setup` puts it
    return path.read_bytes() if path.is_file() else None


def small_sentencepiece() -> bytes:
    """Trained here on shipped rows with LLaMA's options: byte fallback, split digits, no normalisation, ids 0 1 2."""
    import sentencepiece

    paths = [ROOT / "data" / "gsm8k" / "standin.jsonl", *sorted((ROOT / "data" / "commonsense").glob("*.train.jsonl"))]
    rows = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [f"{row['instruction']} {row['output']}".replace("\n", " ") for row in rows]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=4000, model_type="bpe", byte_fallback=True,
        split_digits=True, normalization_rule_name="identity", allow_whitespace_only_pieces=True, num_threads=1,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def _bpe(asset: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "assets" / asset / "tokenizer.json").read_text(encoding="utf-8"))
    return content


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def _made(shape: dict[str, Any], dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in shape.items() if key != "model_type"}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape["model_type"], **fields)).to(dtype)
    for name, parameter in model.named_parameters():  # larger than the usual start: attention is not uniform
        if name.endswith("_proj.weight"):
            nn.init.normal_(parameter, std=0.1)
    return model


def _saved(model: Any) -> dict[str, bytes]:
    """config.json, generation_config.json and one file of weights."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _sharded(model: Any) -> dict[str, bytes]:
    """Two files and their index, as the 7B models have them."""
    state = _weights(model)
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    names = sorted(state)
    half = len(names) // 2
    parts = {f"model-0000{i + 1}-of-00002.safetensors": part for i, part in enumerate((names[:half], names[half:]))}
    where = {name: file for file, part in parts.items() for name in part}
    files = {file: save({n: state[n] for n in part}, {"format": "pt"}) for file, part in parts.items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    return {**files, "model.safetensors.index.json": _json({"metadata": {"total_size": size}, "weight_map": where})}


def _pytorch(model: Any) -> bytes:
    """pytorch_model.bin, which OPT's repository has and no safetensors."""
    buffer = io.BytesIO()
    torch.save(_weights(model), buffer)
    return buffer.getvalue()


def opt() -> Repo:
    """facebook/opt-1.3b: weights as .bin alone, GPT-2's kind of tokenizer in two files, no tokenizer.json."""
    bpe = _bpe("opt_mini")
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    for piece in bpe["model"]["vocab"]:
        vocab.setdefault(piece, len(vocab))
    merges = "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in bpe["model"]["merges"]) + "\n"
    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    shape = {
        "model_type": "opt", "vocab_size": len(vocab) + 8, "hidden_size": 64, "word_embed_proj_dim": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 128, "max_position_embeddings": 2048,
        "do_layer_norm_before": True, "dropout": 0.1, "attention_dropout": 0.0, "pad_token_id": 1,
        "bos_token_id": 2, "eos_token_id": 2,
    }  # fmt: skip
    model = _made(shape, torch.float32)
    files = _saved(model)
    del files["model.safetensors"]
    return Repo(
        {
            **files,
            "pytorch_model.bin": _pytorch(model),
            "vocab.json": _json(vocab),
            "merges.txt": merges.encode(),
            "special_tokens_map.json": _json(special),
            "tokenizer_config.json": _json({**special, "tokenizer_class": "GPT2Tokenizer", "add_bos_token": True}),
            "README.md": b"---\nlicense: other\n---\n",
        }
    )


def _llama(vocab: int, positions: int, eps: float, pad: int | None) -> Any:
    shape: dict[str, Any] = {
        "model_type": "llama", "vocab_size": vocab, "hidden_size": 128, "intermediate_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "rms_norm_eps": eps,
        "max_position_embeddings": positions, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": pad,
    }  # fmt: skip
    return _made(shape, torch.bfloat16)


def _llama_tokenizer(model: bytes) -> dict[str, bytes]:
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {**special, "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    return {
        "tokenizer.model": model,
        "tokenizer_config.json": _json({**settings, "model_max_length": 2048}),
        "special_tokens_map.json": _json(special),
    }


def llama(pieces: bytes) -> Repo:
    """yahma/llama-7b-hf: tokenizer.model and no tokenizer.json, so that sentencepiece is needed."""
    model = _llama(_count(pieces), 2048, 1e-6, 0)
    files = {name: data for name, data in _saved(model).items() if not name.endswith(".safetensors")}
    return Repo({**files, **_sharded(model), **_llama_tokenizer(pieces), "README.md": b"---\nlicense: other\n---\n"})


def llama2(pieces: bytes) -> Repo:
    """meta-llama/Llama-2-7b-hf: gated; the weights twice, as safetensors and as .bin; no pad token."""
    model = _llama(_count(pieces), 4096, 1e-5, None)
    files = {name: data for name, data in _saved(model).items() if not name.endswith(".safetensors")}
    repo = Repo({**files, **_sharded(model), **_llama_tokenizer(pieces), "LICENSE.txt": b"the licence\n"}, gated=True)
    repo.files["pytorch_model-00001-of-00001.bin"] = _pytorch(model)
    return repo


def gemma() -> Repo:
    """google/gemma-7b: gated, a fast tokenizer, tied head, <pad> 0, <eos> 1, <bos> 2."""
    bpe = _bpe("gemma_mini")
    order = {"<pad>": 0, "</s>": 1, "<s>": 2, "<unk>": 3}
    vocab = {**order}
    for piece in bpe["model"]["vocab"]:
        vocab.setdefault(piece, len(vocab))
    bpe["model"]["vocab"] = vocab
    for added in bpe["added_tokens"]:
        added["id"] = vocab.setdefault(added["content"], len(vocab))
    bpe["added_tokens"].sort(key=lambda added: added["id"])
    processor = json.dumps(bpe.get("post_processor") or {}).replace('"ids": [1]', '"ids": [2]')
    bpe["post_processor"] = json.loads(processor) or None
    shape = {
        "model_type": "gemma", "vocab_size": len(vocab) + 8, "hidden_size": 128, "intermediate_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64,
        "hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    }  # fmt: skip
    model = _made(shape, torch.bfloat16)
    files = {name: data for name, data in _saved(model).items() if not name.endswith(".safetensors")}
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    repo = Repo({**files, **_sharded(model), "tokenizer.json": _json(bpe)}, gated=True)
    repo.files["tokenizer_config.json"] = _json({**special, "tokenizer_class": "TokenizersBackend"})
    repo.files["special_tokens_map.json"] = _json(special)
    repo.files["README.md"] = b"---\nlicense: gemma\n---\n"
    return repo


def _count(pieces: bytes) -> int:
    import sentencepiece

    return int(sentencepiece.SentencePieceProcessor(model_proto=pieces).get_piece_size())


def stable_diffusion() -> Repo:
    """CompVis/stable-diffusion-v1-4: four levels each, PNDM's schedule, safety checker and feature extractor named in
    the index; CLIP's kind of tokenizer in two files."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    bpe = _bpe("sd_mini/tokenizer")
    vocab = dict(bpe["model"]["vocab"])
    for added in bpe["added_tokens"]:
        vocab.setdefault(added["content"], added["id"])
    torch.manual_seed(0)
    cross = {"down": "CrossAttnDownBlock2D", "up": "CrossAttnUpBlock2D"}
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(
            sample_size=8, block_out_channels=(16, 32, 32, 32), layers_per_block=1, cross_attention_dim=32,
            attention_head_dim=2, norm_num_groups=8, down_block_types=(*[cross["down"]] * 3, "DownBlock2D"),
            up_block_types=("UpBlock2D", *[cross["up"]] * 3),
        ),
        "vae": AutoencoderKL(
            sample_size=64, block_out_channels=(8, 8, 16, 16), layers_per_block=1, latent_channels=4,
            norm_num_groups=8, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                vocab_size=max(vocab.values()) + 1, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                num_attention_heads=2, hidden_act="quick_gelu", max_position_embeddings=77, bos_token_id=0,
                eos_token_id=2,
            )
        ),
    }  # fmt: skip
    files: dict[str, bytes] = {}
    for part, model in parts.items():
        files |= {f"{part}/{name}": data for name, data in _saved(model).items()}
    tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
              "pad_token": "<|endoftext|>"}  # fmt: skip
    merges = "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in bpe["model"]["merges"]) + "\n"
    scheduler = {
        "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
        "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
        "trained_betas": None, "clip_sample": False,
    }  # fmt: skip
    index = {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.2.2",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    return Repo(
        {
            **files,
            "model_index.json": _json(index),
            "scheduler/scheduler_config.json": _json(scheduler),
            "tokenizer/vocab.json": _json(vocab),
            "tokenizer/merges.txt": merges.encode(),
            "tokenizer/special_tokens_map.json": _json(tokens),
            "tokenizer/tokenizer_config.json": _json(
                {**tokens, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
            ),
            "safety_checker/config.json": _json({"model_type": "clip"}),
            "feature_extractor/preprocessor_config.json": _json({"crop_size": 224}),
        }
    )


def encoders() -> dict[str, Repo]:
    """The three that Table 3's pictures are compared by."""
    from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 224}
    vit = ViTModel(ViTConfig(**small, intermediate_size=64, patch_size=16))
    dino = Dinov2Model(Dinov2Config(**small, mlp_ratio=2, patch_size=14))
    part = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    bpe = _bpe("sd_mini/tokenizer")
    vocab = max(bpe["model"]["vocab"].values()) + 8
    text = {**part, "vocab_size": vocab, "eos_token_id": vocab - 1, "bos_token_id": vocab - 2}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config={**part, "image_size": 224, "patch_size": 32}))
    sizes = {"height": 224, "width": 224}
    usual = {"do_resize": True, "size": sizes, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True}
    folder = ROOT / "assets" / "sd_mini" / "tokenizer"
    tokenizer = {name: (folder / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}

    def repo(model: Any, processor: str, **more: bytes) -> Repo:
        settings = _json({**usual, "image_processor_type": processor})
        return Repo({**_saved(model), "preprocessor_config.json": settings, "README.md": b"---\n---\n", **more})

    return {
        "facebook/dino-vits16": repo(vit, "ViTImageProcessor"),
        "facebook/dinov2-base": repo(dino, "ViTImageProcessor"),
        "openai/clip-vit-base-patch32": repo(clip, "CLIPImageProcessor", **tokenizer),
    }


def models(pieces: bytes) -> dict[str, Repo]:
    """Every model repository that the paper scale reads."""
    return {
        "facebook/opt-1.3b": opt(),
        "yahma/llama-7b-hf": llama(pieces),
        "meta-llama/Llama-2-7b-hf": llama2(pieces),
        "google/gemma-7b": gemma(),
        "CompVis/stable-diffusion-v1-4": stable_diffusion(),
        **encoders(),
    }


def _slice(name: str) -> list[dict[str, Any]]:
    lines = (ROOT / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def _card(configs: dict[str, dict[str, str]], default: str | None) -> bytes:
    lines = ["---", "configs:"]
    for name, splits in configs.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, path in splits.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
        lines += ["  default: true"] if name == default else []
    return "\n".join([*lines, "---", ""]).encode()


def _glue(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "idx": row.get("idx", 0) if not isinstance(row.get("idx"), dict) else 0}


_ROWS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "boolq": lambda row: {"question": row["question"], "answer": bool(row["label"]), "passage": row["passage"]},
    "record": lambda row: {
        **{k: row[k] for k in ("passage", "query", "entities", "answers")}, "idx": {"passage": 0, "query": 0}
    },
    "squad": lambda row: {k: row[k] for k in ("id", "title", "context", "question", "answers")},
}  # fmt: skip
_TAKEN = 40  # rows of each split
_SETS = {
    "sst2": "nyu-mll/glue", "boolq": "google/boolq", "squad": "rajpurkar/squad",
    **dict.fromkeys(("cb", "rte", "wsc", "record", "multirc"), "aps/super_glue"),
}  # fmt: skip


def datasets() -> dict[str, Repo]:
    """Every data set that the paper scale reads, as Parquet with a card that names configurations and splits."""
    found: dict[str, Repo] = {}
    cards: dict[str, dict[str, dict[str, str]]] = {}
    for name, path in _SETS.items():
        source = tasks.load("superglue", name).SOURCE
        folder = source.name or "data"
        repo = found.setdefault(path, Repo({}))
        splits = cards.setdefault(path, {}).setdefault(source.name or "default", {})
        for split in (source.train, source.test):
            rows = [_ROWS.get(name, _glue)(row) for row in _slice(f"{name}/{split}")[:_TAKEN]]
            repo.files[f"{folder}/{split}-00000-of-00001.parquet"] = _parquet(rows)
            splits[split] = f"{folder}/{split}-*"
    for path, card in cards.items():
        found[path].files["README.md"] = _card(card, "default" if "default" in card else None)
    found["openai/gsm8k"] = Repo(
        {
            "main/train-00000-of-00001.parquet": _parquet(_slice("gsm8k/train")[:_TAKEN]),
            "main/test-00000-of-00001.parquet": _parquet(_slice("gsm8k/test")[:_TAKEN]),
            "README.md": _card({"main": {"train": "main/train-*", "test": "main/test-*"}}, None),
        }
    )
    gsm8k = tasks.load("instruct", "gsm8k")
    made = [gsm8k.from_llm_adapters(row) for row in _slice("gsm8k/standin")[:320]]
    meta = [{"type": "GSM_Rephrased", "original_question": row["query"], **row} for row in made]
    meta[3] = {**meta[3], "query": _LONG}
    found["meta-math/MetaMathQA"] = Repo({"MetaMathQA-395K.json": _json(meta), "README.md": b"---\n---\n"})
    for name, taken in (("cat-toy-example", ("1", "2", "3", "6")), ("dog-example", ("a", "b", "c", "d", "e"))):
        found[f"diffusers/{name}"] = Repo({f"{stem}.jpeg": _picture(i) for i, stem in enumerate(taken)})
        found[f"diffusers/{name}"].files["README.md"] = b"---\n---\n"
    return found


def _picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 64), (40 * seed, 120, 200 - 30 * seed)).save(buffer, "JPEG")
    return buffer.getvalue()


def raw() -> dict[str, bytes]:
    """LLM-Adapters' files by their path after raw.githubusercontent.com; one row is longer than every cut-off."""
    task = tasks.load("instruct", "commonsense")
    prefix = f"{task.REPOSITORY}/{task.COMMIT}/"
    mixture = [row for name in task.SETS for row in _slice(f"commonsense/{name}.train")[:8]]
    mixture.append({**mixture[0], "instruction": _LONG})
    files = {prefix + task.TRAIN_FILE: mixture}
    for name, one in task.SETS.items():
        files[prefix + task.TEST_FILE.format(folder=one.folder)] = _slice(f"commonsense/{name}.test")[:4]
    return {path: _json(rows) for path, rows in files.items()}


def make_hub(pieces: bytes | None = None) -> Hub:
    """Every twin; ``pieces``: the sentencepiece model of both LLaMAs."""
    return Hub(models(pieces or small_sentencepiece()), datasets(), raw())


def narrow(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """The task modules expect as many rows as the twins have; ``put`` may be a test's monkeypatch."""
    for name in _SETS:
        task = tasks.load("superglue", name)
        source = task.SOURCE
        count = {split: min(_TAKEN, len(_slice(f"{name}/{split}"))) for split in (source.train, source.test)}
        here = HubSource(source.path, source.name, source.train, source.test, count[source.train], count[source.test])
        put(task, "SOURCE", here)
    gsm8k, commonsense = tasks.load("instruct", "gsm8k"), tasks.load("instruct", "commonsense")
    train, test = gsm8k.SOURCES["train"], gsm8k.SOURCES["test"]
    sources = {
        "train": HubSource(train.path, train.name, train.train, train.test, 320, 320),
        "test": HubSource(test.path, test.name, test.train, test.test, _TAKEN, _TAKEN),
    }
    put(gsm8k, "SOURCES", sources)
    sets = {name: type(one)(**{**vars(one), "num_test_rows": 4}) for name, one in commonsense.SETS.items()}
    put(commonsense, "SETS", sets)
    put(commonsense, "NUM_TRAIN_ROWS", 8 * len(sets) + 1)
