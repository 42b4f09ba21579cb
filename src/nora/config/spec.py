"""A run is a value: the resolved spec, its canonical JSON and the id made of it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nora.config.compose import compose_config
from nora.config.pins import load_pictures, picture_hashes
from nora.config.schema import KINDS, DreamboothSpec, ExecSpec, FinetuneSpec, Spec, unknown_key, validate
from nora.errors import UserError
from nora.files import canonical_json

ID_LENGTH = 16  # hex digits: 64 bits
SPEC_KEYS = {
    "finetune": ("kind", "model", "task", "method", "protocol", "seed", "measure"),
    "factorize": ("kind", "problem", "start", "solver", "protocol", "seed", "measure"),
    "deployment": ("kind", "model", "adapter", "protocol", "seed"),
    "dreambooth": ("kind", "model", "task", "method", "protocol", "seed", "measure"),
}


def without_nulls(value: Any) -> Any:
    """The value without the mapping entries that are null: null means "as before this field existed"."""
    if isinstance(value, Mapping):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(v) for v in value]
    return value


def spec_dict(spec: Spec) -> dict[str, Any]:
    """The spec as plain data, nulls left out."""
    plain: dict[str, Any] = without_nulls(asdict(spec))
    return plain


def run_id(spec: Spec | Mapping[str, Any]) -> str:
    """First 16 hex digits of SHA-256 over the canonical JSON of the resolved spec."""
    plain = without_nulls(spec) if isinstance(spec, Mapping) else spec_dict(spec)
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()[:ID_LENGTH]


def versionless_id(spec: Mapping[str, Any]) -> str:
    """The id without the protocol's version: two specs that share it differ by code that changed a number."""
    protocol = {k: v for k, v in spec["protocol"].items() if k != "version"}
    return run_id({**spec, "protocol": protocol})


class Pins:
    """What pins inputs to their bytes: the Hub commits resolved by ``nora prefetch`` and the hashes of shipped rows."""

    def __init__(self, checkout: Path) -> None:
        self.lock: dict[str, Any] = _read_json(checkout / "conf" / "revisions.lock")
        self.slices: dict[str, Any] = _read_json(checkout / "data" / "MANIFEST.json")

    def apply(self, plain: dict[str, Any]) -> dict[str, Any]:
        """The spec with its revisions and row hashes filled in where they are known."""
        if "task" not in plain:
            return plain
        model, task = dict(plain["model"]), dict(plain["task"])
        if model.get("source") == "hub":
            model["revision"] = self.lock.get("models", {}).get(model.get("repo"), {}).get("commit")
        if plain.get("kind") == "dreambooth":
            return {**plain, "model": model, "task": self._subject(task), "protocol": self._encoders(plain["protocol"])}
        if task.get("source") == "hub":
            task["revision"] = self.lock.get("tasks", {}).get(task.get("name"), {}).get("commit")
        elif task.get("source") == "slice":
            own = [name for name in self.slices if name.startswith(f"{task.get('name')}/")]
            task["files"] = {name: self.slices[name]["sha256"] for name in own} or None
        return {**plain, "model": model, "task": task}

    def _subject(self, task: dict[str, Any]) -> dict[str, Any]:
        """The pictures by commit, by the manifest, or by their bytes as they are in the user's folder."""
        if task.get("source") == "hub":
            return {**task, "revision": self.lock.get("pictures", {}).get(task.get("repo"), {}).get("commit")}
        if task.get("source") == "slice":
            prefix = f"dreambooth/{task.get('folder')}/"
            files = {n: entry["sha256"] for n, entry in self.slices.items() if n.startswith(prefix)}
            return {**task, "files": files or None}
        if isinstance(task.get("folder"), str):
            return {**task, "files": picture_hashes(Path(task["folder"]))}
        return task

    def _encoders(self, protocol: Any) -> Any:
        if not isinstance(protocol, dict) or not isinstance(protocol.get("encoders"), list):
            return protocol
        pinned = []
        for encoder in protocol["encoders"]:
            if isinstance(encoder, dict) and encoder.get("source") == "hub":
                commit = self.lock.get("models", {}).get(encoder.get("repo"), {}).get("commit")
                encoder = {**encoder, "revision": commit}
            pinned.append(encoder)
        return {**protocol, "encoders": pinned}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return value
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def build_spec(config: Mapping[str, Any], pins: Pins) -> Spec:
    """The validated spec of a composed config; UserError with every problem at once."""
    kind = config.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"kind: given {kind!r}, allowed {', '.join(KINDS)}")
    absent = [key for key in SPEC_KEYS[kind] if config.get(key) is None]
    if absent:
        raise UserError("; ".join(f"{key}: required for kind={kind}" for key in absent))
    given = {key for key, value in config.items() if value is not None}
    extra = given - set(SPEC_KEYS[kind]) - {"exec", "scale"}
    if extra:
        raise UserError("; ".join(unknown_key(key, [*SPEC_KEYS[kind], "exec", "scale"]) for key in sorted(extra)))
    plain = pins.apply({key: config[key] for key in SPEC_KEYS[kind]})
    spec: Spec = validate(plain, KINDS[kind])
    return spec


def compose_run(checkout: Path, overrides: Sequence[str]) -> tuple[Spec, ExecSpec, str]:
    """Overrides → (spec, exec, scale). Every problem of the spec and of exec is reported in one UserError."""
    config = compose_config(checkout / "conf", overrides)
    problems = []
    spec = settings = None
    try:
        spec = build_spec(config, Pins(checkout))
    except UserError as error:
        problems.append(str(error))
    try:
        settings = validate(config.get("exec"), ExecSpec, prefix="exec.")
    except UserError as error:
        problems.append(str(error))
    if spec is None or settings is None:
        raise UserError("; ".join(problems))
    _check_that_exec_is_neutral(spec, settings)
    return spec, settings, config["scale"]["name"]


def _check_that_exec_is_neutral(spec: Spec, settings: ExecSpec) -> None:
    """UserError where a setting of exec, which is no part of the id, would change a number."""
    each = getattr(spec.protocol, "precondition", "step") == "micro_batch"
    if not each or not isinstance(spec, FinetuneSpec) or spec.method.preconditioner is None:
        return
    for name in ("micro_batch_size", "data_parallel"):
        if getattr(settings, name):
            raise UserError(
                f"exec.{name}: given {getattr(settings, name)}, required null: {spec.protocol.name} preconditions "
                "every part of a batch, so a split would change the result"
            )


def describe(spec: Mapping[str, Any]) -> dict[str, str]:
    """What a run is, for people: ``what`` was run ``on`` what, its ``group`` and ``tags``."""
    if spec["kind"] == "factorize":
        names = [spec[part]["name"] for part in ("solver", "start", "problem")]
        what, on = f"{names[0]} from {names[1]}", names[2]
    elif spec["kind"] == "deployment":
        names = [spec["adapter"]["init"], spec["model"]["name"]]
        what, on = names
    else:
        task = spec["task"]
        own = task.get("source") == "folder" and "subject" in task  # pictures of one's own under another task's name
        names = [spec["method"]["name"], task["subject"] if own else task["name"], spec["model"]["name"]]
        what, on = names[0], f"{names[1]}, {names[2]}"
    return {"what": what, "on": on, "group": f"{spec['protocol']['name']}/{on}", "tags": " ".join(names)}


def check_inputs(spec: Spec, checkout: Path) -> None:
    """UserError where a picture the run trains on cannot be read, or a library it asks for is not installed."""
    backend = getattr(spec.protocol, "eval_backend", None)
    if backend is not None and importlib.util.find_spec(backend) is None:
        raise UserError(
            f"protocol.eval_backend: given {backend}, which is not installed here; install it, or leave the field out "
            "(transformers answers)"
        )
    if isinstance(spec, DreamboothSpec):
        load_pictures(spec.task, checkout)


def check_ready(spec: Spec) -> None:
    """Refuses to start a run whose Hub inputs are not pinned to a commit."""
    if not isinstance(spec, FinetuneSpec | DreamboothSpec):
        return
    unpinned = ["task"] if spec.task.source == "hub" and not spec.task.revision else []
    if spec.model.source == "hub" and spec.model.weights == "pretrained" and not spec.model.revision:
        unpinned.insert(0, "model")
    if isinstance(spec, DreamboothSpec) and "fidelity" in spec.measure:
        encoders = spec.protocol.encoders or []
        unpinned += [f"encoder {e.name}" for e in encoders if e.source == "hub" and not e.revision]
    if unpinned:
        raise UserError(
            f"{', '.join(unpinned)}: no commit in conf/revisions.lock; run `nora prefetch` for its table first, "
            "on a machine with network"
        )
