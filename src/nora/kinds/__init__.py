"""The kinds of run: one module each, with its spec, its execution, how it is named, what it says at its end, its cost.

The folder is the registry: a module here is a kind if it has

- ``Spec``: a pydantic dataclass whose ``kind`` and whose ``protocol.name`` are ``Literal``: what a config may say. Two
  modules may share a kind if their protocols differ (few-shot and instruct are both ``finetune``);
- ``execute(spec, context) -> Outcome``: the run; torch is imported in here, not when the module is. Or ``prepare(spec,
  context) -> Prepared``: a run up to its first step, which may then be trained alone or as a member of a bank;
- ``label(spec) -> Label``: what a run is, for people;
- ``headline(metrics) -> str``: how it ended, on one line;
- ``like(spec)``: a key that runs of like cost share, and ``cost(spec) -> Cost``: an estimate for one that is like none;
- with ``prepare`` also ``step_tokens(spec)``: about how many tokens one of its steps reads;
- if it needs them, ``check(spec, checkout)``: UserError for an input that cannot be read, and ``neutral_exec(spec)``:
  the settings of exec that would change a number of this run.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, get_args, get_type_hints

from nora import starts
from nora.config.compose import compose_config
from nora.config.pins import Pins, unpinned
from nora.config.schema import ExecSpec, MethodSpec, unknown_key, validate
from nora.config.spec import spec_dict
from nora.errors import UserError, among, one_of
from nora.files import canonical_json
from nora.kinds import few_shot, instruct
from nora.kinds.deployment import Spec as DeploymentSpec
from nora.kinds.dreambooth import Spec as DreamboothSpec
from nora.kinds.factorize import Spec as FactorizeSpec
from nora.kinds.few_shot import Spec as FewShotSpec
from nora.kinds.instruct import Spec as InstructSpec
from nora.kinds.parts.cost import DEVICE_GIB, Fit
from nora.kinds.parts.cost import fit as fit_batch
from nora.kinds.parts.known import check_known, moves_base, quantises

if TYPE_CHECKING:
    from nora.files import Json
    from nora.kinds.parts.cost import Cost, Label
    from nora.store.record import Record
    from nora.store.states import Snapshot

__all__ = ["DeploymentSpec", "DreamboothSpec", "FactorizeSpec", "FewShotSpec", "InstructSpec"]
DATA_ROWS = 16
"""Training rows a data-driven start looks at where ``method.init_rows`` is not typed."""
FinetuneSpec = FewShotSpec | InstructSpec
AnySpec = FewShotSpec | InstructSpec | FactorizeSpec | DeploymentSpec | DreamboothSpec
Spec = AnySpec


class Kind(Protocol):
    """What a module of this folder offers."""

    Spec: type[AnySpec]

    def label(self, spec: AnySpec) -> Label: ...

    def headline(self, metrics: Mapping[str, Json]) -> str: ...

    def like(self, spec: AnySpec) -> tuple[str, str, str]: ...

    def cost(self, spec: AnySpec) -> Cost: ...


def _literals(spec: type, field: str) -> tuple[str, ...]:
    return get_args(get_type_hints(spec)[field])


@cache
def _modules() -> dict[str, dict[str, Kind]]:
    """kind → name of the protocol → module."""
    found: dict[str, dict[str, Kind]] = {}
    for info in pkgutil.iter_modules(__path__):
        module = cast(Kind, importlib.import_module(f"{__name__}.{info.name}"))
        if hasattr(module, "Spec"):
            (kind,) = _literals(module.Spec, "kind")
            protocol = get_type_hints(module.Spec)["protocol"]
            found.setdefault(kind, {}).update(dict.fromkeys(_literals(protocol, "name"), module))
    return found


def names() -> list[str]:
    """The kinds there are."""
    return sorted(_modules())


def keys(kind: str) -> list[str]:
    """The parts of a config that make a spec of this kind; UserError for a kind that is not there."""
    one_of("kind", kind, names())
    return [field.name for field in fields(next(iter(_modules()[kind].values())).Spec)]


def of(spec: Spec) -> Kind:
    """The module a spec belongs to."""
    return _modules()[spec.kind][spec.protocol.name]


def read_spec(plain: Mapping[str, Json]) -> Spec:
    """The typed spec of plain data; UserError with every problem at once."""
    kind, protocol = plain["kind"], plain["protocol"]
    if kind not in _modules():
        one_of("kind", kind, names())
    known = _modules()[kind]
    name = protocol.get("name") if isinstance(protocol, Mapping) else None
    if isinstance(name, str) and name in known:
        return validate(plain, known[name].Spec)
    if not isinstance(name, str) or len(known) == 1:
        return validate(plain, next(iter(known.values())).Spec)  # says what is wrong with it
    raise UserError(f"protocol.name: given {name!r}, {among(name, list(known))}")


_typed: dict[str, Spec] = {}


def spec_of(record: Record) -> Spec:
    """The typed spec of a record; read once, since the id says what it is."""
    if record.id not in _typed:
        _typed[record.id] = read_spec(record.spec)
    return _typed[record.id]


def readable(records: Iterable[Record], unread: list[str] | None = None) -> Iterator[tuple[Record, Spec]]:
    """Records with their typed specs. Those of a kind or with a key that this version does not know, which another
    version wrote and no cell can ask for, are left out; ``unread`` gets what each is and why."""
    for record in records:
        try:
            yield record, spec_of(record)
        except UserError as error:
            if unread is not None:
                unread.append(f"{record.id} ({str(error).partition(', ')[0]})")


def troubles(snapshot: Snapshot) -> list[str]:
    """What of a store does not count, a line each; what this version cannot read is one line."""
    unread: list[str] = []
    for _ in readable(snapshot.values(), unread):
        pass
    told = ", ".join([*unread[:3], *(["…"] if len(unread) > 3 else [])])
    line = f"records of another version are left out ({len(unread)}): {told}"
    return [*snapshot.troubles, *([line] if unread else [])]


def build_spec(config: Mapping[str, Json], pins: Pins) -> Spec:
    """The validated spec of a composed config; UserError with every problem at once."""
    kind = config.get("kind")
    if not isinstance(kind, str) or kind not in names():
        raise UserError(f"kind: given {kind!r}, allowed {', '.join(names())}")
    wanted = keys(kind)
    absent = [key for key in wanted if config.get(key) is None]
    if absent:
        raise UserError("; ".join(f"{key}: required for kind={kind}" for key in absent))
    given = {key for key, value in config.items() if value is not None}
    extra = given - set(wanted) - {"exec", "scale"}
    if extra:
        raise UserError("; ".join(unknown_key(key, [*wanted, "exec", "scale"]) for key in sorted(extra)))
    for group, key in itertools.product(("model", "task"), ("name", "repo")):  # by these the pins are looked up
        part = config.get(group)
        value = part.get(key) if isinstance(part, Mapping) else None
        if value is not None and not isinstance(value, str):
            raise UserError(f"{group}.{key}: given {value!r}, input should be a valid string")
    made = {key: config[key] for key in wanted}
    if isinstance(made.get("method"), Mapping):
        made["method"] = whole_method(made["method"])
    return read_spec(pins.apply(made))


def whole_method(given: Mapping[str, Json]) -> dict[str, Json]:
    """The method as its spec has it: the init's options and the optimiser's filled in from their files, an optimiser
    that is a name for other keys replaced by them."""
    method = {key: value for key, value in given.items() if value is not None}
    init, optimizer = method.get("init"), method.get("optimizer")
    said = starts.said("inits", init) if isinstance(init, str) else {}
    if method.get("adapter") != "lora" or "factors" not in said:
        return method
    known = {field.name for field in fields(MethodSpec)}
    typed = method.pop("options", None) or {}
    options = {} if not isinstance(typed, Mapping) else dict(typed)
    for key, default in said["OPTIONS"].items():
        if key in known:
            if key not in given:  # a typed null is no default
                method[key] = default
        else:
            options[key] = method.pop(key, options.get(key, default))
    if "match" in method:
        method.pop("xi", None)
    if options:
        method["options"] = options
    if "DATA" in said:
        method.setdefault("init_rows", DATA_ROWS)
    if "SOURCE" in said:
        method["source"] = said["SOURCE"]
    if isinstance(optimizer, str):
        step = starts.said("optimizers", optimizer)
        if "KEYS" in step:
            method = {**step["KEYS"], **{key: value for key, value in method.items() if key != "optimizer"}}
        method = {**step["OPTIONS"], **method}
    return method


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
    check_exec(spec, settings)
    return spec, settings, config["scale"]["name"]


def bank_key(spec: Spec) -> str | None:
    """What runs have in common that can be members of one bank: base, rows, seed, batches, precision, the adapter's
    shape. They may differ in method, learning rate and ξ. None for a run that can be no member.

    Their order of rows and their dropout depend on the seed alone, so the same batches and masks serve them all.
    """
    if not isinstance(spec, FinetuneSpec):
        return None
    method, protocol = spec.method, spec_dict(spec)["protocol"]
    if protocol["precision"] == "fp16" or protocol.get("precondition") == "micro_batch":
        return None  # the loss's scale, and what a part of a batch does to its gradients, are each run's own
    if method.variant is not None or method.optimizer is not None:
        return None  # no plain W x + s B A x, or no AdamW
    if quantises(method.init):
        return None  # what it leaves of the base is no pair away from the others'
    if moves_base(method.init) and spec.model.dtype != "float32":
        return None  # what is left of the base is rounded to 16 bits: no pair beside it gives that rounding
    shape = {key: getattr(method, key) for key in ("adapter", "rank", "dropout", "num_virtual_tokens")}
    shared = {key: value for key, value in protocol.items() if key != "lr"}
    return canonical_json({**spec_dict(spec), "method": shape, "protocol": shared, "measure": None})


def step_tokens(spec: FinetuneSpec) -> int:
    """About how many tokens one optimiser step reads."""
    return few_shot.step_tokens(spec) if isinstance(spec, FewShotSpec) else instruct.step_tokens(spec)


def check_exec(spec: Spec, settings: ExecSpec) -> None:
    """UserError if a setting of exec, which is no part of the id, would change a number of this run."""
    if settings.keep_adapter and isinstance(spec, FinetuneSpec) and quantises(spec.method.init):
        raise UserError(
            f"exec.keep_adapter: given true, required false with init={spec.method.init}: its adapter belongs to a "
            "quantised base, which no stock loader makes"
        )
    neutral = getattr(of(spec), "neutral_exec", None)
    for name in neutral(spec) if neutral is not None else ():
        if getattr(settings, name):
            raise UserError(
                f"exec.{name}: given {getattr(settings, name)}, required null: {spec.protocol.name} preconditions "
                "every part of a batch, so a split would change the result"
            )


def fit(spec: Spec, device_gib: float = DEVICE_GIB) -> Fit:
    """How a run fits a device of so much memory; a batch is divided where that changes no more than rounding."""
    module: Any = of(spec)
    neutral = getattr(module, "neutral_exec", None)
    whole = neutral is not None and "micro_batch_size" in neutral(spec)
    if whole or not isinstance(spec, FinetuneSpec):
        return fit_batch(lambda part: module.cost(spec), None, device_gib)
    return fit_batch(lambda part: module.cost(spec, part), spec.protocol.batch_size, device_gib)


def check_inputs(spec: Spec, checkout: Path) -> None:
    """UserError if the run cannot be made by what its config says, an input of it cannot be read here, or a library it
    asks for is not installed."""
    check_known(spec, checkout)
    check = getattr(of(spec), "check", None)
    if check is not None:
        check(spec, checkout)


def check_ready(spec: Spec) -> None:
    """Refuses to start a run whose Hub inputs are not pinned to a commit."""
    missing = unpinned(spec_dict(spec))
    if missing:
        raise UserError(
            f"{', '.join(missing)}: no commit in conf/revisions.lock; run `nora prefetch` for its table first, "
            "on a machine with network"
        )


def outcome(record: Record, spec: Spec) -> str:
    """How a run ended, on one line."""
    if record.status == "diverged":
        return f"diverged at step {record.result['diverged']['step']} ({record.result['diverged']['tensor']})"
    try:
        return of(spec).headline(record.metrics)
    except (LookupError, TypeError, ValueError):
        return "its scores are not those this version knows"


def title(spec: Spec) -> str:
    """A run's name for people: what, on what, which seed."""
    label = of(spec).label(spec)
    return f"{label.what} on {label.on}, seed {spec.seed}"
