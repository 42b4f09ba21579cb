"""``model=auto``: what a model of one's own (a folder, a GGUF file, a Hub name) says it is: its config, its tokenizer.

Nothing of it is run: a repository that needs code of its own is refused. No weight is read but to hash its file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from nora.config.pins import SUFFIX_GGUF, model_hashes
from nora.errors import UserError
from nora.files import Json, read_json, sha256_file

PIPELINE = "model_index.json"
_WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}  # fmt: skip
_UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # as diffusers' own LoRA script
_NO_LIMIT = 10**9  # transformers' word for "the tokenizer says nothing" is larger


def place(given: str, checkout: Path) -> Path | None:
    """The folder or file that a path means: as seen from the working directory, or else from the checkout; None where
    nothing lies there."""
    try:
        seen = next((p for p in (Path(given).expanduser(), checkout / given) if p.exists()), None)
        return None if seen is None else Path(os.path.abspath(seen))  # a link keeps its own name and suffix
    except (OSError, ValueError, RuntimeError):  # too long a name, no such user
        return None


def as_written(path: Path, checkout: Path) -> str:
    """A path for a spec: below data/ and assets/, which a snapshot of the code has too, as seen from the checkout;
    elsewhere whole, so that a job finds it from wherever it runs."""
    inside = any(path.is_relative_to(checkout / folder) for folder in ("data", "assets"))
    return str(path.relative_to(checkout)) if inside else str(path)


def found(model: Mapping[str, Json], checkout: Path) -> tuple[dict[str, Json], str]:
    """The model of a config with ``source: auto`` as its spec has it (what is typed wins), and a line for people.
    UserError with what is wrong with it."""
    repo = model.get("repo")
    if not isinstance(repo, str) or not repo:
        raise UserError(f"model.repo: given {repo!r}, required a folder, a .gguf file or a name of the Hub")
    if model.get("weights") != "pretrained":
        raise UserError("model.weights: given random, required pretrained with model=auto")
    path = place(repo, checkout)
    if path is None:
        told = _of_hub(repo, model.get("revision"))
    elif path.is_file() and path.suffix == SUFFIX_GGUF:
        told = {
            **_of_files(path.parent, path.name, _changed(path)), "source": "gguf", "name": as_name(path.stem),
            "repo": as_written(path.parent, checkout), "files": {path.name: _sha256(path, *_changed(path)[0])},
        }  # fmt: skip
    else:
        told = {
            **_of_either(path), "source": "asset", "name": as_name(path.name), "repo": as_written(path, checkout),
            "files": model_hashes(checkout, "model.repo", str(path)),
        }  # fmt: skip
    own = {k: v for k, v in model.items() if v is not None and k not in ("source", "repo", "files", "revision")}
    if model.get("files") not in (None, told["files"]):
        raise UserError(f"model.files: given {model['files']}, the files here have {told['files']}")
    tokens = told.pop("tokens", "")
    spec = {**told, **own}
    parts = [f"targets {', '.join(spec['targets'])}", f"at most {spec['max_length']} tokens", spec["dtype"], tokens]
    parts += [f"commit {spec['revision']}"] if spec.get("revision") else []
    parts.append(f"{len(spec['files'])} files hashed")
    return spec, f"model {spec['name']} ({spec['family']}), {spec['repo']}: {'; '.join(filter(None, parts))}"


def is_hub_name(given: str) -> bool:
    """Whether a text may be the name of a repository of the Hub."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", given) is not None


def _of_hub(repo: str, revision: Json) -> dict[str, Json]:
    """A repository whose commit lies in the Hub's cache on this machine."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.file_download import repo_folder_name

    config = None
    if is_hub_name(repo):
        snapshots = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "snapshots"
        here = sorted(path.name for path in snapshots.glob("*"))
        asked = revision or (here[0] if len(here) == 1 else None)  # what came by its commit is no branch's newest
        found = [try_to_load_from_cache(repo, name, revision=asked) for name in (PIPELINE, "config.json")]
        config = next((path for path in found if isinstance(path, str)), None)
        if config is None and asked is None and here:
            raise UserError(
                f"model.repo: {repo}: {len(here)} commits are here; give model.revision={' or '.join(here)}"
            )
    if config is None:
        raise UserError(
            f"model.repo: given {repo}: no such folder or file here, nor is {'it' if revision is None else revision} "
            f"in the Hub's cache; a name of the Hub comes by `nora model add NAME {repo}`"
        )
    folder = Path(config).parent
    files = model_hashes(folder, "model.repo", ".")
    return {
        **_of_either(folder), "source": "hub", "name": as_name(repo.rpartition("/")[2]), "repo": repo,
        "revision": folder.name, "files": files,
    }  # fmt: skip


def _of_either(folder: Path) -> dict[str, Json]:
    """A causal language model's folder, or a pipeline's."""
    return _of_pipeline(folder) if (folder / PIPELINE).is_file() else _of_folder(folder)


def _of_pipeline(folder: Path) -> dict[str, Json]:
    kind = read_json(folder / PIPELINE, {}, follow=True).get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise UserError(f"model.repo: {folder} is a {kind}, required a StableDiffusionPipeline (1.x, 2.x)")
    for part, weights in _WEIGHTS.items():
        if not (folder / part / "config.json").is_file() or not (folder / part / weights).is_file():
            raise UserError(f"model.repo: {folder} lacks {part}/config.json or {part}/{weights}")
    return {
        "family": "stable_diffusion", "targets": list(_UNET_TARGETS),
        "max_length": _tokenizer_length(folder / "tokenizer" / "tokenizer_config.json"),
    }  # fmt: skip


def _of_folder(folder: Path) -> dict[str, Json]:
    if not folder.is_dir() or not (folder / "config.json").is_file():
        raise UserError(
            f"model.repo: given {folder}, required a folder with a config.json and .safetensors (or a "
            f"{PIPELINE}: a pipeline), a .gguf file, or a name of the Hub"
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(
            f"model.repo: {folder} holds no .safetensors; of other formats: "
            "`model.save_pretrained(folder)` in transformers writes it"
        )
    for index in folder.glob("*.safetensors.index.json"):
        shards = set(read_json(index, {"weight_map": (dict,)}, follow=True).get("weight_map", {}).values())
        absent = sorted(shards - {path.name for path in weights})
        if absent:
            raise UserError(f"model.repo: {folder}: {', '.join(absent[:3])} is missing, {index.name} names it")
    return dict(_of_files(folder, None, _changed(*sorted(folder.glob("*.json")))))


def _changed(*paths: Path) -> tuple[tuple[int, int], ...]:
    return tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in paths)


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    del size, changed  # parts of the key
    return sha256_file(path)


def as_name(given: str) -> str:
    """A name of the schema's alphabet."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", given).strip("._")[:64] or "model"


def _tokenizer_length(path: Path) -> int:
    length = read_json(path, {}, follow=True).get("model_max_length") if path.is_file() else None
    return length if isinstance(length, int) and 0 < length < _NO_LIMIT else 77  # CLIP's


@cache
def _of_files(folder: Path, gguf: str | None, changed: tuple[tuple[int, int], ...]) -> Mapping[str, Json]:
    """family, targets, max_length; UserError for what is no causal language model with its tokenizer."""
    del changed  # part of the key
    from transformers import AutoConfig, AutoTokenizer

    named: dict[str, Any] = {} if gguf is None else {"gguf_file": gguf}
    where = folder if gguf is None else folder / gguf
    if gguf is None and "auto_map" in read_json(folder / "config.json", {}, follow=True):
        raise UserError(f"model.repo: {where} needs code of its own (auto_map in its config.json), and none is run")
    try:
        config: Any = AutoConfig.from_pretrained(folder, **named).get_text_config()
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, **named)
    except Exception as error:  # the library's own, of many classes
        raise UserError(f"model.repo: {where} cannot be read ({_line(error)})") from None
    ids, end, pad = list(tokenizer("A text.")["input_ids"]), tokenizer.eos_token_id, tokenizer.pad_token_id
    special = set(tokenizer.all_special_ids)
    added = special | set(tokenizer.added_tokens_decoder)  # one of those may be there for nobody
    largest = max({*tokenizer.get_vocab().values()} - added, default=0)
    largest = max(largest, *(i for i in (end, pad) if i is not None), *ids)
    problems = []
    if set(ids) <= special:  # transformers makes an empty one where there is no file
        problems.append("its tokenizer, if there is one, makes nothing of a text")
    elif end is None:
        problems.append("its tokenizer has no end-of-sequence token")
    elif largest >= config.vocab_size:
        problems.append(f"its tokenizer gives ids up to {largest}, the model's vocabulary has {config.vocab_size}")
    if problems:
        raise UserError(f"model.repo: {where}: {'; '.join(problems)}")
    begins = f"texts begin with BOS {ids[0]}" if ids[0] == tokenizer.bos_token_id else "no BOS is put before a text"
    pads = f"pad {pad}" if pad is not None else "pad 0 (never read)"
    lengths = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    if getattr(config, "sliding_window", None) and set(getattr(config, "layer_types", None) or ["sliding"]) != {
        "full_attention"
    }:
        lengths.append(config.sliding_window)  # our masks know no window: texts stay within it
    if config.model_type == "gpt_neo":
        lengths.append(config.window_size // 2)  # its window counts a row's tokens, which hold several answers
    known = [int(n) for n in lengths if isinstance(n, int | float) and 0 < n < _NO_LIMIT]
    return {
        "family": str(config.model_type), "targets": default_targets(config, str(where)),
        "max_length": min(known, default=2048), "tokens": f"{begins}, EOS {end}, {pads}",
    }  # fmt: skip


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def default_targets(config: Any, where: str) -> list[str]:
    """PEFT's own target modules for the architecture where they are modules of it, else every linear layer but the
    output layer (PEFT's ``all-linear``). The model is built without memory for its weights."""
    import torch
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # no causal language model of this architecture, or a config that makes none
        raise UserError(f"model.repo: {where} is no causal language model of transformers ({_line(error)})") from None
    names = [name for name, _ in model.named_modules()]
    usual = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(config.model_type)
    if isinstance(usual, list) and all(any(f".{name}".endswith(f".{t}") for name in names) for t in usual):
        return list(usual)
    asked: Any = LoraConfig(target_modules="all-linear")
    _maybe_include_all_linear_layers(asked, model)
    every = set(asked.target_modules)
    last = {name.rpartition(".")[2] for name in every}
    reached = {name for name in names if name.rpartition(".")[2] in last}
    return sorted(last if reached == every else every)  # a last part that the output layer shares: whole names
