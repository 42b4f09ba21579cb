"""What the config and the model's own config file say before anything is loaded: what no run of it could do.

It reads no weights and imports no torch, so that the plan of a table can ask it of every cell.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nora import starts, tasks
from nora.config.schema import MethodSpec, ModelSpec, TaskSpec
from nora.errors import UserError, among
from nora.files import DamagedFile, Json, read_bounded_lines, read_json

if TYPE_CHECKING:
    from nora.kinds import AnySpec

_HUGE = 1e30  # far beyond any use, and still a float32 after a few products
_FEW_SHOT = "mezo"
"""The one protocol that scores candidates; the others read generated answers."""


def check_known(spec: AnySpec, checkout: Path) -> None:
    """UserError with everything that is wrong with a run and can be known before it starts."""
    model, task = getattr(spec, "model", None), getattr(spec, "task", None)
    method = getattr(spec, "method", getattr(spec, "adapter", None))
    problems: list[str] = []
    if isinstance(model, ModelSpec):
        problems += _of_model(model, checkout)
        shape = {} if problems else _shape(model, checkout)
        problems += [*_of_vocabulary(model, shape), *_of_architecture(model)]
        problems += _of_targets(model, getattr(method, "rank", None), shape, _times(method))
        if isinstance(method, MethodSpec):
            problems += _of_method(method, shape)
    if isinstance(model, ModelSpec) and isinstance(task, TaskSpec):
        problems += _of_length(model, task, getattr(spec.protocol, "max_new_tokens", None))
        cutoff = getattr(spec.protocol, "cutoff", None)
        if cutoff is not None and cutoff > model.max_length:
            problems.append(f"protocol.cutoff: given {cutoff}, required at most {model.max_length} with {model.name}")
    if isinstance(task, TaskSpec):
        problems += _of_task(task, "superglue" if spec.protocol.name == _FEW_SHOT else "instruct", checkout)
    if problems:
        raise UserError("; ".join(problems))


def _of_model(model: ModelSpec, checkout: Path) -> Iterator[str]:
    """Files that are not where the config says."""
    if model.weights == "random" and model.family != "stable_diffusion":
        folder = checkout / str(model.tokenizer)
        if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
            yield f"model.tokenizer: given {model.tokenizer}, no tokenizer lies there"
    elif model.source == "asset":
        folder = checkout / str(model.repo)
        absent = sorted(name for name in model.files or {} if not (folder / name).is_file())
        if not folder.is_dir():
            yield f"model.repo: given {model.repo}, no folder lies there"
        elif absent:
            yield f"model.files: {', '.join(absent[:3])}: not in {model.repo}"


def _of_vocabulary(model: ModelSpec, shape: Mapping[str, Json]) -> Iterator[str]:
    size = shape.get("vocab_size")
    if model.bos_token_id is not None and isinstance(size, int) and model.bos_token_id >= size:
        yield f"model.bos_token_id: given {model.bos_token_id}, the model's vocabulary has {size} entries"


_TEXT_KEYS = frozenset(
    "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "head_dim hidden_act max_position_embeddings initializer_range rms_norm_eps rope_parameters rope_theta "
    "attention_bias attention_dropout mlp_bias tie_word_embeddings pad_token_id bos_token_id eos_token_id ffn_dim "
    "word_embed_proj_dim do_layer_norm_before dropout activation_function layerdrop init_std enable_bias "
    "layer_norm_elementwise_affine".split()
)
"""Of OPT, LLaMA and Gemma: sizes and shapes. What else a configuration object takes may change which code runs."""
_PICTURE_KEYS = frozenset(
    "sample_size in_channels out_channels block_out_channels down_block_types up_block_types layers_per_block "
    "cross_attention_dim attention_head_dim norm_num_groups latent_channels scaling_factor act_fn vocab_size "
    "hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings hidden_act "
    "projection_dim pad_token_id bos_token_id eos_token_id".split()
)


def _of_architecture(model: ModelSpec) -> Iterator[str]:
    """Keys that are no size or shape of a model."""
    given = model.architecture or {}
    if model.family == "stable_diffusion":
        for part, keys in given.items():
            if part not in ("unet", "vae", "text_encoder") or not isinstance(keys, dict):
                yield f"model.architecture.{part}: given {keys!r:.60}, allowed unet, vae, text_encoder with keys each"
            else:
                yield from _unknown(f"model.architecture.{part}", keys, _PICTURE_KEYS)
        return
    kind, allowed = given.get("model_type"), _TEXT_KEYS
    if given and kind not in ("opt", "llama", "gemma"):
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
            yield f"model.architecture: given model_type {kind!r}, which transformers does not know"
            return
        own = getattr(CONFIG_MAPPING[kind], "__annotations__", {})
        allowed = frozenset({"model_type", *(key for key in own if not key.startswith("_"))})
    yield from _unknown("model.architecture", given, allowed)


def _unknown(where: str, given: Mapping[str, Json], allowed: Collection[str]) -> Iterator[str]:
    names = sorted(allowed)
    for key in given:
        if key not in allowed:
            yield f"{where}.{key}: given {given[key]!r:.60}, no size or shape of a model, {among(str(key), names)}"


def _shape(model: ModelSpec, checkout: Path) -> Mapping[str, Json]:
    """The sizes the model's config gives; {} where it is not here."""
    if model.source != "asset" or model.weights == "random":
        given = model.architecture or {}
        unet = given.get("unet", given)
        return unet if isinstance(unet, dict) else given
    name = "unet/config.json" if model.family == "stable_diffusion" else "config.json"
    path = checkout / str(model.repo) / name
    return _read(path, path.stat().st_mtime_ns) if path.is_file() else {}


@cache
def _read(path: Path, changed: int) -> Mapping[str, Json]:
    del changed  # part of the key
    try:
        return read_json(path, {}, follow=True)
    except DamagedFile as error:
        raise UserError(str(error)) from None


def _modules(shape: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Layer → the sizes of its weight (the smallest, where blocks differ), of the architectures that are known here."""
    try:
        hidden: int = shape.get("hidden_size", 0)
        if shape.get("model_type") == "opt":
            square = dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), (hidden, hidden))
            return {**square, **dict.fromkeys(("fc1", "fc2"), (hidden, shape["ffn_dim"]))}
        if shape.get("model_type") in ("llama", "gemma"):
            heads: int = shape["num_attention_heads"]
            head: int = shape.get("head_dim") or hidden // heads
            keys = (shape.get("num_key_value_heads") or heads) * head
            return {
                **dict.fromkeys(("q_proj", "o_proj"), (hidden, heads * head)),
                **dict.fromkeys(("k_proj", "v_proj"), (hidden, keys)),
                **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), (hidden, shape["intermediate_size"])),
            }
        if "cross_attention_dim" in shape:  # a UNet; its last block's width is its middle's
            channels, blocks = shape["block_out_channels"], shape["down_block_types"]
            attends = ["Cross" in block for block in blocks[:-1]] + [True]
            least: int = min(width for width, here in zip(channels, attends, strict=True) if here)
            square = dict.fromkeys(("to_q", "to_out.0"), (least, least))
            return {**square, **dict.fromkeys(("to_k", "to_v"), (least, shape["cross_attention_dim"]))}
    except (KeyError, TypeError, ValueError, ZeroDivisionError):  # a partial config: the library knows its defaults
        pass
    return {}


def _of_length(model: ModelSpec, task: TaskSpec, new_tokens: int | None) -> Iterator[str]:
    """Room for a first token, one of the prompt and the answer."""
    if new_tokens is None and task.suite in tasks.suites() and task.name in tasks.names(task.suite):
        new_tokens = getattr(tasks.load(task.suite, task.name), "MAX_NEW_TOKENS", None)
    least = 2 + (new_tokens or 1)
    if model.max_length < least:
        yield f"model.max_length: given {model.max_length}, required at least {least} ({new_tokens or 1} of the answer)"


def _of_targets(model: ModelSpec, rank: int | None, shape: Mapping[str, Json], times: int = 1) -> Iterator[str]:
    if not model.targets:
        yield "model.targets: given [], required the names of the layers to adapt"
    known = _modules(shape)
    least: dict[str, int] = {}
    for target in model.targets if known else ():
        name = target if target in known else target.rpartition(".")[2]
        if name in known:
            least[target] = min(known[name])
        elif "model_type" in shape and name not in ("lm_head", "embed_tokens", "project_in", "project_out"):
            yield f"model.targets: given {target}, {among(name, list(known), f'{model.name} has')}"
    smallest = min(least, key=lambda target: least[target], default="")
    if rank is not None and times * rank > least.get(smallest, times * rank):
        side = "the smaller side" if times == 1 else f"1/{times} of the smaller side"
        yield f"rank: given {rank}, required at most {least[smallest] // times}, {side} of {smallest} in {model.name}"


def _times(method: object) -> int:
    """How many directions of a weight the method's start takes, over its rank."""
    times = starts.said("inits", getattr(method, "init", "")).get("TIMES_RANK", 1)
    return times if isinstance(times, int) else 1


def moves_base(init: str) -> bool:
    """Whether an init takes its pair out of the frozen weight, as its file says; False if there is no such file."""
    return bool(starts.said("inits", init).get("MOVES_BASE", False))


def quantises(init: str) -> bool:
    """Whether an init leaves a quantised base, as its file says."""
    return bool(starts.said("inits", init).get("QUANTISES", False))


def _of_method(method: MethodSpec, shape: Mapping[str, Json]) -> Iterator[str]:
    inits = starts.names("inits")
    if method.adapter == "lora" and method.init not in inits:
        yield f"method.init: given {method.init}, {among(method.init, inits)}"
    if needed := starts.missing("inits", method.init):
        yield f"method.init: given {method.init}, which takes {needed}, not installed here (pip install {needed})"
    if starts.said("inits", method.init).get("EVEN_RANK") and (method.rank or 0) % 2:
        yield f"method.rank: given {method.rank}, required an even one with init={method.init}"
    for key in ("alpha", "xi"):
        value = getattr(method, key)
        if value is not None and value > _HUGE:
            yield f"method.{key}: given {value:g}, required at most {_HUGE:g}"
    tokens, positions = method.num_virtual_tokens, shape.get("max_position_embeddings")
    if tokens is not None and isinstance(positions, int) and tokens >= positions:
        yield f"method.num_virtual_tokens: given {tokens}, required fewer than the model's {positions} positions"


_OF_OWN_ROWS = (
    "file", "test_file", "subset", "split", "test_split", "prompt", "label", "labels", "candidates", "response",
    "answer", "answer_after", "metric", "id",
)  # fmt: skip


def _of_task(task: TaskSpec, suite: str, checkout: Path) -> Iterator[str]:
    if task.source == "file":  # its rows were looked at when they were hashed
        fits = "choice" if suite == "superglue" else "instruct"
        if task.suite != fits:
            other = "protocol=mezo" if task.suite == "choice" else "protocol=llm_adapters_modern"
            yield f"task: given {task.name} (suite {task.suite}), the protocol is for the suite {fits}; give {other}"
        return
    foreign = [key for key in _OF_OWN_ROWS if getattr(task, key) is not None]
    if foreign:
        yield f"task.{foreign[0]}: no meaning with source={task.source}; rows of your own: task=choice or task=instruct"
    if task.suite not in tasks.suites():
        yield f"task.suite: given {task.suite}, allowed {', '.join(tasks.suites())}"
        return
    if task.suite != suite:
        yield f"task: given {task.name} (suite {task.suite}), the protocol is for the suite {suite}"
        return
    names = tasks.names(task.suite)
    if task.name not in names:
        yield f"task.name: given {task.name}, {among(task.name, names)}"
        return
    if task.source == "hub":
        return
    small = task.source == "small"
    folder, suffix = (f"data/small/{task.name}", "jsonl.gz") if small else (f"data/{task.name}", "jsonl")
    for what, files, wanted in _rows_wanted(task):
        paths = [checkout / folder / f"{file}.{suffix}" for file in files]
        absent = [path.name for path in paths if not path.is_file()]
        if absent:
            yield f"task: {task.name} has no rows here: {folder}/{absent[0]} is missing"
            return
        try:
            there = sum(_lines(path, path.stat().st_mtime_ns) for path in paths)
        except DamagedFile as error:
            yield f"task: {error}"
            return
        if there < wanted:
            yield f"task.{what}: {wanted} rows are needed, {folder} has {there}"


def _rows_wanted(task: TaskSpec) -> list[tuple[str, list[str], int]]:
    """(the setting, the files, the rows they must have at least)."""
    if task.name == "commonsense":
        sets = list(tasks.load(task.suite, task.name).SETS)
        train = [f"{name}.train" for name in sets]
        return [("num_train", train, task.num_train + task.num_dev), ("num_test", [f"{name}.test" for name in sets], 1)]
    if task.name == "gsm8k":
        return [
            ("num_train", ["standin"], task.num_train),
            ("num_dev", ["train"], task.num_dev),
            ("num_test", ["test"], 1),
        ]
    return [("num_dev", ["train"], task.num_dev + 1), ("num_test", ["validation"], 1)]


@cache
def _lines(path: Path, changed: int) -> int:
    del changed  # part of the key
    return sum(1 for line in read_bounded_lines(path) if line.strip())
