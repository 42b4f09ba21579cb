"""Every artefact asked for from one snapshot of the store; with all of them the report. Nothing to do is seen early."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from nora import kinds
from nora.errors import UserError, one_of
from nora.files import DamagedFile, read_json, sha256_bytes, write_atomic
from nora.kinds import AnySpec
from nora.reporting import labels, layouts, ledger
from nora.reporting.document import Document, explained, to_csv, to_markdown
from nora.reporting.figures import Figure, figure_texts, write_figure
from nora.reporting.latex import to_latex
from nora.reporting.proofs import proofs
from nora.reporting.report import Measurement, Picture, Section, render_report
from nora.store.record import Record
from nora.store.runs import Store
from nora.store.states import Snapshot, take_snapshot
from nora.tables.cell import Cell
from nora.tables.methods import SpecBook
from nora.tables.target import AnyTarget, has_scale, load_target


def build_artefact(target: AnyTarget, records: Mapping[str, Record]) -> Document | Figure:
    """The artefact of a target by its layout, a file of layouts/ that is imported when it is needed."""
    layout = target.file.layout
    one_of(f"conf/table/{target.name}.yaml: layout", layout, [info.name for info in iter_modules(layouts.__path__)])
    module = import_module(f"{layouts.__name__}.{layout}")
    try:
        artefact: Document | Figure = module.build(target, records)
    except KeyError as error:  # a record of this spec and version that holds less than the layout reads
        raise UserError(f"{target.name}: a record behind it has no {error}, which layout {layout} reads") from error
    return explained(artefact) if isinstance(artefact, Document) else artefact


def artefact_texts(artefact: Document | Figure, results: Path) -> list[tuple[Path, str]]:
    """The artefact's text files below ``results`` and what is in them; of a figure its numbers and its caption."""
    if isinstance(artefact, Figure):
        return [(results / "figures" / f"{artefact.name}.{suffix}", t) for suffix, t in figure_texts(artefact).items()]
    texts = (("md", to_markdown(artefact)), ("tex", to_latex(artefact)), ("csv", to_csv(artefact)))
    return [*((results / artefact.folder / f"{artefact.name}.{suffix}", t) for suffix, t in texts), *artefact.files]


def write_artefact(artefact: Document | Figure, results: Path) -> list[Path]:
    """Writes the artefact's files below ``results``; unchanged files are left alone. Returns their paths."""
    if isinstance(artefact, Figure):
        return write_figure(artefact, results / "figures")
    outputs = artefact_texts(artefact, results)
    for path, text in outputs:
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_atomic(path, text)
    return [path for path, _ in outputs]


def summary(artefact: Document | Figure) -> str:
    """What is printed for a person after collation."""
    if isinstance(artefact, Figure):
        return "\n".join([artefact.title, *filter(None, [artefact.banner]), *artefact.notes])
    return to_markdown(artefact)


_LARGER = ("small", "paper")  # scales beside mini, which is what a target has where none is named
STAMP = ".collated.json"
LEDGER = "theory.json"
REPORT = "report.html"
_INPUTS = (
    "conf/**/*.yaml", "conf/revisions.lock", "src/nora/**/*.py", "src/nora/**/*.yaml", "src/nora/reporting/html/*",
    "assets/*/*", "data/MANIFEST.json",
)  # fmt: skip


def _stat(paths: Iterable[Path], root: Path) -> list[tuple[str, int, int]]:
    found = []
    for path in sorted(paths):
        status = path.stat()
        found.append((os.path.relpath(path, root), status.st_size, status.st_mtime_ns))
    return found


def fingerprint(store: Store, checkout: Path) -> str:
    """What the artefacts depend on: sizes and times of records, confs and sources (contents are not read)."""
    inputs = [path for pattern in _INPUTS for path in checkout.glob(pattern)]
    records = [*store.root.glob("runs/*/*/record.json"), *store.root.glob(LEDGER), *store.root.glob("bench/*.json")]
    return sha256_bytes(json.dumps([_stat(inputs, checkout), _stat(records, store.root)]).encode())


def up_to_date(store: Store, checkout: Path) -> int | None:
    """How many files the last complete collation left, where neither its inputs nor they have changed since."""
    try:
        stamp = read_json(store.root / STAMP, {"inputs": (str,), "outputs": (list,)})
        same = stamp["inputs"] == fingerprint(store, checkout)
        outputs = [tuple(entry) for entry in stamp["outputs"]]
        same = same and _stat([checkout / name for name, _, _ in outputs], checkout) == outputs
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return len(outputs) if same else None


def with_all_scales(targets: Sequence[AnyTarget]) -> list[AnyTarget]:
    """The targets, and after each the larger scales it has, in the paper's order."""
    books: dict[str, SpecBook] = {}
    larger = [
        load_target(t.checkout, t.name, [f"scale={scale}"], books)
        for scale in _LARGER
        for t in targets
        if t.scale and has_scale(t.checkout, t.name, scale)
    ]
    return sorted([*targets, *larger], key=lambda t: labels.papers_order(t.name))


def collate(
    targets: Sequence[AnyTarget], snapshot: Snapshot, results: Path, *, show: Callable[[str], None]
) -> list[Path]:
    """Writes the artefacts of some targets from the records alone; returns the files. ``show`` is also told what this
    checkout knows of runs without a record (failed, running)."""
    paths: list[Path] = []
    alone = snapshot.records_alone()
    for target in targets:
        artefact = build_artefact(target, alone)
        show(summary(build_artefact(target, snapshot) if snapshot.unfinished else artefact))
        paths += write_artefact(artefact, results)
    return paths


def report_text(
    targets: Sequence[AnyTarget],
    snapshot: Snapshot,
    results: Path,
    *,
    place: Callable[[Document | Figure], bytes],
) -> str:
    """The report of some targets, the ledger kept in ``results`` and the init proofs.

    ``place`` is handed every artefact, to write it or to compare it, and returns the PNG of a figure.
    """
    sections: list[Section] = []
    cells: list[Cell[AnySpec]] = []
    for target in targets:
        own = target.cells(snapshot)
        artefact = build_artefact(target, snapshot)
        if isinstance(artefact, Figure) and target.scale == "paper" and not any(c.id in snapshot for c in own):
            continue  # a figure without runs shows nothing
        cells += own
        dots = place(artefact)
        content = artefact if isinstance(artefact, Document) else _picture(artefact, dots)
        sections.append(Section(content, tuple(dict.fromkeys(c.id for c in own if c.id is not None))))
    theory = results / LEDGER
    if theory.is_file():
        document = ledger.ledger_document(ledger.read_rows(theory))
        place(document)
        sections.append(Section(document, ()))
    sections = [*_claims(targets, snapshot, results, sections, place), *sections]
    # Of a run that is in no table nothing may show: what one tries out must not change what is committed.
    listed = {cell.id for cell in cells}
    sections.append(Section(proofs({i: record for i, record in snapshot.items() if i in listed}), ()))
    return render_report(sections, cells, snapshot, measurements(results / "bench"))


def measurements(folder: Path) -> list[Measurement]:
    """What `nora bench` has kept in a folder, by name; a file without a table is none."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            body = read_json(path, {"cpu": (str,), "cpus": (int,), "commit": (str,), "dirty": (bool,), "table": (str,)})
            where = f"{body['cpu']}, {body['cpus']} CPUs, commit {body['commit'][:12]}{' and changes' * body['dirty']}"
            found.append(Measurement(path.stem, where, body["table"]))
        except (DamagedFile, KeyError):
            continue
    return found


def _claims(
    targets: Sequence[AnyTarget],
    snapshot: Snapshot,
    results: Path,
    sections: Sequence[Section],
    place: Callable[[Document | Figure], bytes],
) -> list[Section]:
    """The claims, FINDINGS.md and the numbers that may be quoted; [] unless every target a claim reads is there."""
    from nora.reporting.claims import judged, quoted

    known = {target.name for target in targets}
    if not targets or not {*judged.targets_of(judged.read_claims(targets[0].checkout))} <= known:
        return []
    found, ranks = judged.evidence_of(targets[0].checkout, snapshot, results, targets)
    documents = [section.content for section in sections if isinstance(section.content, Document)]
    document = judged.claims_document(found, ranks, quoted.quoted_files(found, documents, results))
    place(document)
    return [Section(document, ())]


def _picture(figure: Figure, dots: bytes) -> Picture:
    return Picture(figure.name, figure.title, figure.banner, figure.notes, dots, figure.photographs)


def collate_all(
    targets: Sequence[AnyTarget],
    store: Store,
    *,
    checkout: Path,
    show: Callable[[str], None],
    warn: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Writes every artefact, the theory ledger's tables and results/report.html, all from one snapshot's records;
    ``warn`` hears of each record that is not believed, ``show`` of runs that have none yet."""
    before = fingerprint(store, checkout)
    taken = take_snapshot(store)
    snapshot = taken.records_alone()
    for line in kinds.troubles(snapshot):
        warn(line)
    if taken.unfinished:
        counted = ", ".join(
            f"{n} {state}" for state, n in sorted(Counter(str(run.state) for run in taken.unfinished.values()).items())
        )
        show(f"runs without a record here, missing in what is written: {counted} (nora status all)")
    paths: list[Path] = []

    def place(artefact: Document | Figure) -> bytes:
        written = write_artefact(artefact, store.root)
        paths.extend(written)
        show(f"{artefact.name:18} {artefact.title}")
        dots = [path for path in written if isinstance(artefact, Figure) and path.suffix == f".{artefact.raster}"]
        return dots[0].read_bytes() if dots else b""

    text = report_text(targets, snapshot, store.root, place=place)
    report = store.root / REPORT
    if not report.is_file() or report.read_text(encoding="utf-8") != text:
        write_atomic(report, text)
    paths.append(report)
    stamp = {"inputs": before, "outputs": _stat(paths, checkout)}
    if fingerprint(store, checkout) == before:  # else a choice was written or a run ended meanwhile: collate again
        write_atomic(store.root / STAMP, json.dumps(stamp))
    return paths


def _differing(texts: Sequence[tuple[Path, str]], results: Path, again: str) -> list[str]:
    return [
        f"{path}: not what the records give; `nora collate {again}` writes it again"
        for path, text in texts
        # Of the checkout's own store the choices too: of another's records conf/chosen was not made.
        if path.is_relative_to(results.parent) and path.is_file() and path.read_text(encoding="utf-8") != text
    ]


def audit(target: AnyTarget, snapshot: Snapshot, results: Path) -> list[str]:
    """One line per file of the target that is not what the records give; a file that was not made is no problem."""
    artefact = build_artefact(target, snapshot.records_alone())
    return _differing(artefact_texts(artefact, results), results, target.name)


def audit_all(targets: Sequence[AnyTarget], snapshot: Snapshot, results: Path) -> list[str]:
    """The same for every artefact and the report."""
    problems: list[str] = []

    def place(artefact: Document | Figure) -> bytes:
        problems.extend(_differing(artefact_texts(artefact, results), results, "all"))
        if not isinstance(artefact, Figure):
            return b""
        dots = results / "figures" / f"{artefact.name}.{artefact.raster}"
        return dots.read_bytes() if dots.is_file() else b""

    text = report_text(targets, snapshot.records_alone(), results, place=place)
    return problems + _differing([(results / REPORT, text)], results, "all")
