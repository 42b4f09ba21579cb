"""``nora doctor TARGET…``: everything that a run of the target will read, read now: on a login node, without a GPU."""

from __future__ import annotations

import importlib.util
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nora import tasks
from nora.config.pins import PIPELINE_FILES, check_files, fetched_folder, how_to_unlock
from nora.config.schema import ModelSpec
from nora.errors import RunFailed, UserError
from nora.files import canonical_json
from nora.kinds import AnySpec, DreamboothSpec, FewShotSpec, InstructSpec, dreambooth
from nora.launch.doctor import Finding
from nora.launch.plan import ENDED, PlannedCell
from nora.launch.profile import load_profile
from nora.workspace import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Reading = FewShotSpec | InstructSpec | DreamboothSpec


def check_runs(planned: Sequence[PlannedCell], workspace: Workspace) -> Iterator[Finding]:
    """One finding per thing that the runs that are not done will read or need; ``bad``: a run would stop there."""
    rest = [p for p in planned if p.state not in ENDED]
    specs = [spec for p in rest if (spec := p.cell.spec or p.cell.like) is not None]
    checkout = workspace.checkout
    folders: dict[str, Path] = {}
    for name, reading in _unique([s for s in specs if isinstance(s, _Reading)], lambda s: s.model.name).items():
        yield from _model(name, reading.model, checkout, folders)
    for (model, task, *_), text in _unique(specs, _text_key).items():
        if model in folders:
            yield _guarded(f"rows of {task} for {model}", partial(_rows, text, folders[model], checkout))
    for name, subject in _unique([s for s in specs if isinstance(s, DreamboothSpec)], lambda s: s.task.name).items():
        yield _guarded(f"pictures of {name}", partial(_pictures, subject, checkout))
    yield from _encoders(specs, checkout)
    yield from _needs(rest, workspace)


def _unique(specs: Sequence[Any], key: Callable[[Any], Any]) -> dict[Any, Any]:
    """The first spec of each key that is not None."""
    found: dict[Any, Any] = {}
    for spec in specs:
        if (at := key(spec)) is not None:
            found.setdefault(at, spec)
    return found


def _text_key(spec: AnySpec) -> tuple[str, ...] | None:
    """Runs whose rows become the same tokens."""
    if isinstance(spec, FewShotSpec):
        return spec.model.name, spec.task.name, str(spec.model.max_length)
    if isinstance(spec, InstructSpec):
        return spec.model.name, spec.task.name, str(spec.protocol.cutoff), spec.protocol.loss_on
    return None


def _guarded(what: str, look: Callable[[], Finding]) -> Finding:
    """What ``look`` finds, or the one line that a run would end with."""
    try:
        return look()
    except Exception as error:  # whatever a library raises here it would raise in a run
        said = next((line for line in str(error).splitlines() if line.strip()), "no message")
        kind = "" if isinstance(error, RunFailed | UserError) else f"{type(error).__name__}: "
        return Finding(what, "bad", f"{kind}{said}")


def _model(name: str, model: ModelSpec, checkout: Path, folders: dict[str, Path]) -> Iterator[Finding]:
    """Access, files, tokenizer; the folder of one that is whole goes into ``folders``."""
    of_hub = model.source == "hub" and model.weights == "pretrained"
    if of_hub and model.revision is None:
        yield Finding(name, "bad", _unpinned(str(model.repo)))
        return
    opened = _guarded(f"files of {name}", lambda: _files(name, model, checkout, folders))
    yield opened
    if name in folders:
        yield _guarded(f"tokenizer of {name}", lambda: _tokenizer_finding(name, model, folders[name]))


def _unpinned(repo: str) -> str:
    """Why a repository is not here yet: its licence, its name, or that nobody has asked for it."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError

    asked = "no commit in conf/revisions.lock; run `nora prefetch` for its table"
    if constants.HF_HUB_OFFLINE:
        return f"{repo}: {asked}; where it is gated: {how_to_unlock(repo)}"
    try:
        HfApi().auth_check(repo)
    except GatedRepoError:
        return f"{repo}: gated; {how_to_unlock(repo)}"
    except Exception as error:  # its client raises many kinds, of a network that is not there its HTTP library's own
        return f"{repo}: {asked}; the Hub says {type(error).__name__}"
    return f"{repo}: {asked}; access is granted"


def _files(name: str, model: ModelSpec, checkout: Path, folders: dict[str, Path]) -> Finding:
    """Every file by its hash, and each opened as far as its kind goes."""
    from safetensors import safe_open

    from nora.kinds.parts.bases import model_folder

    if model.family == "stable_diffusion" and model.source == "hub":
        folder = fetched_folder(str(model.repo), str(model.revision), model.files or PIPELINE_FILES)
        check_files(folder, model.files or {})
    elif model.weights == "random":
        folders[name] = checkout / str(model.tokenizer)
        return Finding(f"files of {name}", "good", "random weights; a borrowed tokenizer")
    else:
        folder = model_folder(model, checkout)
    count = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                count += len(file.keys())
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".bin" and not zipfile.is_zipfile(path):
            raise RunFailed(f"{path.name}: no file of torch")
    folders[name] = folder
    said = f"{len(model.files or {})} by their hashes, {count} tensors in safetensors"
    return Finding(f"files of {name}", "good", said)


def _tokenizer(model: ModelSpec, folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    inside = folder / "tokenizer" if model.family == "stable_diffusion" and (folder / "tokenizer").is_dir() else folder
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(inside)
    return loaded


def _tokenizer_finding(name: str, model: ModelSpec, folder: Path) -> Finding:
    alone = (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file()
    if alone and importlib.util.find_spec("sentencepiece") is None:  # transformers would ask for tiktoken
        raise RunFailed("tokenizer.model needs sentencepiece, which is not installed; pip install 'nora-lora[hf]'")
    tokenizer = _tokenizer(model, folder)
    ids = list(tokenizer("A text.")["input_ids"])
    if tokenizer.eos_token_id is None or not ids:
        raise RunFailed(f"{type(tokenizer).__name__} has no end-of-sequence token, or makes nothing of a text")
    first = f"begins with {ids[0]}, " if ids[0] == tokenizer.bos_token_id else "adds no first id, "
    said = f"{type(tokenizer).__name__}, {len(tokenizer)} ids, {first}end {tokenizer.eos_token_id}"
    return Finding(f"tokenizer of {name}", "good", said)


def _rows(spec: FewShotSpec | InstructSpec, folder: Path, checkout: Path) -> Finding:
    tokenizer = _tokenizer(spec.model, folder)
    if isinstance(spec, FewShotSpec):
        return _few_shot_rows(spec, tokenizer, checkout)
    return _instruct_rows(spec, tokenizer, checkout)


def _few_shot_rows(spec: FewShotSpec, tokenizer: PreTrainedTokenizerBase, checkout: Path) -> Finding:
    """All rows of both splits; candidates whose scored tokens are the same cannot be told apart."""
    from nora.kinds.parts.rows import load_rows
    from nora.training.batches import encode_example

    task = tasks.of(spec.task)
    counts: Counter[str] = Counter()
    for row in (row for split in load_rows(spec.task, task, checkout) for row in split):
        example = task.build(row)
        encoded = encode_example(example, tokenizer, max_length=spec.model.max_length, bos=spec.model.bos_token_id)
        scored = [ids[-n:] for ids, n in zip(encoded.sequences, encoded.option_lengths, strict=True)]
        counts["rows"] += 1
        counts["truncated"] += encoded.truncated > 0
        counts["collide"] += len(set(scored)) < len(set(example.candidates))
        counts["share a first token"] += task.LOSS == "classification" and len({ids[0] for ids in scored}) < len(scored)
    what = f"rows of {spec.task.name} for {spec.model.name}"
    said = (
        f"{counts['rows']} encoded, {counts['truncated']} cut on the left at {spec.model.max_length}, label tokens "
        f"collide in {counts['collide']}, share their first in {counts['share a first token']}"
    )
    return Finding(what, "bad" if task.LOSS == "classification" and counts["collide"] else "good", said)


def _instruct_rows(spec: InstructSpec, tokenizer: PreTrainedTokenizerBase, checkout: Path) -> Finding:
    """All rows there are: training texts and dev cut at the cut-off, prompts of the tests at what the model reads."""
    from nora.kinds.parts.rows import load_instruct_rows
    from nora.training.batches import encode_text
    from nora.training.generation import Decoding, encode_prompts

    task, protocol, whole = tasks.of(spec.task), spec.protocol, spec.task
    if whole.source == "hub":
        there = (
            task.SOURCES["train"].num_train_rows if hasattr(task, "SOURCES") else task.NUM_TRAIN_ROWS - whole.num_dev
        )
        if there < whole.num_train:
            raise RunFailed(f"{whole.num_train} rows are asked for to train on, {there} are there")
        whole = replace(whole, num_train=there, num_test=max(whole.num_test, task.NUM_TEST_ROWS))
    rows = load_instruct_rows(whole, task, checkout, seed=spec.seed)
    eos = int(tokenizer.eos_token_id)
    texts = [
        (row.set, encode_text(row, tokenizer, cutoff=protocol.cutoff, loss_on=protocol.loss_on, eos=eos))
        for row in (*rows.train, *rows.dev)
    ]
    cut = Counter(set for set, text in texts if text.answer_cut)
    lost = Counter(set for set, text in texts if not text.num_scored)
    reads = spec.model.max_length - protocol.max_new_tokens
    decoding = Decoding(protocol.beams, protocol.max_new_tokens, 10**9)
    prompts = encode_prompts([row.question for row in rows.test], tokenizer, decoding)
    long = sum(len(ids) > reads for ids in prompts)
    said = (
        f"{len(texts)} to train on, {sum(cut.values())} truncated at {protocol.cutoff}, answers lost{_per_set(lost)}; "
        f"{len(prompts)} to answer, {long} longer than {reads}"
    )
    what = f"rows of {spec.task.name} for {spec.model.name}, cut-off {protocol.cutoff}, loss on the {protocol.loss_on}"
    return Finding(what, "bad" if sum(lost.values()) == len(texts) else "note" if lost else "good", said)


def _per_set(lost: Counter[str]) -> str:
    named = ", ".join(f"{name} {n}" for name, n in sorted(lost.items()))
    return f" {sum(lost.values())} ({named})" if lost else " 0"


def _pictures(spec: DreamboothSpec, checkout: Path) -> Finding:
    from nora.kinds.dreambooth import load_pictures, picture_paths

    names = [path.name for path in picture_paths(spec.task, checkout)]
    sizes = {picture.size for picture in load_pictures(spec.task, checkout)}
    smallest = min(min(size) for size in sizes)
    return Finding(f"pictures of {spec.task.name}", "good", f"{', '.join(names)}; the shortest side {smallest} pixels")


def _encoders(specs: Sequence[AnySpec], checkout: Path) -> Iterator[Finding]:
    """The encoders that pictures are compared by, loaded."""
    measured = [s for s in specs if isinstance(s, DreamboothSpec)]
    for encoder in {e.name: e for spec in measured for e in dreambooth.encoders(spec)}.values():

        def load(encoder: Any = encoder) -> Finding:
            import torch

            from nora.kinds.parts.pipelines import load_encoder

            load_encoder(encoder, checkout, torch.device("cpu"))
            return Finding(f"encoder {encoder.name}", "good", encoder.repo)

        yield _guarded(f"encoder {encoder.name}", load)


def _needs(rest: Sequence[PlannedCell], workspace: Workspace) -> Iterator[Finding]:
    """Disk, memory against the profile, hours, and the longest run against the profile's time limit."""
    if rest:
        yield _disk(rest, workspace)
    for table in dict.fromkeys(p.cell.table for p in rest):
        cells = [p for p in rest if p.cell.table == table]
        fits = [p.fit for p in cells]
        known = [fit.memory_gib for fit in fits if fit.memory_gib is not None]
        if known:
            device, large = cells[0].device_gib, sum(not fit.fits for fit in fits)
            parts = sorted({fit.micro_batch_size for fit in fits if fit.micro_batch_size})
            said = f"up to {max(known):.0f} of {device:g} GiB a run"
            said += f", batches in parts of {', '.join(map(str, parts))}" if parts else ""
            said += f"; {large} runs do not fit" if large else ""
            yield Finding(f"memory of {table}", "bad" if large else "good", said)
        hours = [p.hours for p in cells if p.hours is not None]
        if hours:
            yield Finding(f"hours of {table}", *_time(hours, len(cells), cells, workspace))


_KEPT = {"finetune": 2**17, "dreambooth": 2**20}  # bytes of a record with its predictions or its adapter, generously
_SAVED = 8  # numbers of four bytes per trained one: two checkpoints of parameter, best parameter and two moments


def _disk(rest: Sequence[PlannedCell], workspace: Workspace) -> Finding:
    """What the runs keep, and the checkpoints of those that are under way at once, against what is free."""
    specs = [spec for p in rest if (spec := p.cell.spec or p.cell.like) is not None]
    settings = workspace.settings
    at_once = load_profile(workspace.checkout, settings).parallel if settings.name == "slurm" else settings.processes
    trained = max((_trained(s) for s in _unique(specs, _trained_key).values()), default=0)
    kept = sum(_KEPT.get(spec.kind, 2**14) + (4 * _trained(spec) if settings.keep_adapter else 0) for spec in specs)
    need = (kept + 4 * _SAVED * trained * at_once) / 2**30
    there = next(p for p in (workspace.store.root, *workspace.store.root.parents) if p.exists())
    free = shutil.disk_usage(there).free / 2**30
    said = (
        f"{need:.1f} GiB for {len(specs)} runs and the checkpoints of {at_once} at once; {free:.0f} GiB free at {there}"
    )
    return Finding("disk", "good" if need < free else "bad", said)


def _trained_key(spec: AnySpec) -> tuple[str, str] | None:
    return (spec.model.name, spec.method.name) if isinstance(spec, FewShotSpec | InstructSpec) else None


@cache
def _sides(architecture: str, targets: tuple[str, ...]) -> int:
    """in + out of every matrix that LoRA adapts, summed; the model is built without memory for its weights."""
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = json.loads(architecture)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    return sum(
        module.in_features + module.out_features
        for name, module in made.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in targets
    )


def _trained(spec: AnySpec) -> int:
    """Numbers a run trains, by the architecture that its model's yaml states; 0 where that is not said."""
    if not isinstance(spec, FewShotSpec | InstructSpec) or not spec.model.architecture or not spec.method.rank:
        return 0
    architecture = canonical_json(spec.model.architecture)
    return spec.method.rank * _sides(architecture, tuple(spec.model.targets))


def _time(hours: list[float], cells: int, planned: Sequence[PlannedCell], workspace: Workspace) -> tuple[Any, str]:
    said = f"{sum(hours):.1f} on one device, the longest run {max(hours):.1f} ({len(hours)} of {cells} cells known)"
    spec = next((s for p in planned if (s := p.cell.spec or p.cell.like) is not None), None)
    if workspace.settings.name != "slurm" or spec is None:
        return "good", said
    profile = load_profile(workspace.checkout, workspace.settings)
    model = getattr(spec, "model", None)
    limit = profile.resources_of(spec.kind, model.name if model else None).time_min / 60
    if max(hours) <= limit:
        return "good", said
    goes_on = "goes on by requeue" if profile.requeue else "would be cut off: requeue is false"
    return ("note" if profile.requeue else "bad"), f"{said}; over the limit of {limit:g} h, {goes_on}"
