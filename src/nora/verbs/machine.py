"""prefetch, sync-wandb, doctor, pretrain, bench: what stands around a campaign."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import ModuleType

import click

from nora import kinds
from nora.errors import UserError, one_of
from nora.execution import provenance
from nora.files import write_atomic
from nora.store.states import take_snapshot
from nora.verbs.words import complete, dry_run_flag, json_flag, on_targets, read_targets, waiting
from nora.workspace import find_checkout, open_workspace, with_wandb


@click.command()
@on_targets
@dry_run_flag
def prefetch(words: Sequence[str], dry_run: bool) -> int:
    """Resolve a target's Hub names to commits, download, write conf/revisions.lock (default: scale=paper)."""
    from nora.execution.prefetch import prefetch as bring

    scaled = words if any(w.startswith("scale=") for w in words) else [*words, "scale=paper"]
    targets, workspace = read_targets(scaled)
    specs = [c.spec for target in targets for c in target.cells({}) if c.spec is not None]
    with waiting("asking the Hub"):
        lines = bring(specs, workspace.checkout, dry_run=dry_run)
    print("\n".join(lines) or "nothing to fetch: this target reads no Hub model or data set")
    return 0


@click.command("sync-wandb")
@on_targets
@dry_run_flag
def sync_wandb(words: Sequence[str], dry_run: bool) -> int:
    """Upload a target's journals and records to W&B; twice changes nothing."""
    from nora.execution.tracker import sync

    targets, workspace = read_targets(words)
    if told := with_wandb([*words, "exec.wandb=online"])[1]:
        print(told, file=sys.stderr)
    snapshot = take_snapshot(workspace.store)
    for line in kinds.troubles(snapshot):
        print(f"nora: {line}", file=sys.stderr)
    cells = [c for target in targets for c in target.cells(snapshot)]
    specs = {c.id: c.spec for c in cells if c.id is not None and c.spec is not None}
    with waiting("uploading"):
        lines = sync(workspace.store, specs, project=workspace.settings.wandb_project, dry_run=dry_run)
    print("\n".join(lines) or "nothing to upload")
    return 0


@click.command()
@click.argument("words", nargs=-1, metavar="[TARGET…] [key=value …]", shell_complete=complete)
@json_flag
def doctor(words: Sequence[str], as_json: bool) -> int:
    """What this machine has: libraries, disk, Hub, SLURM, W&B; of a TARGET, everything its runs will read: files,
    tokenizers, all rows, pictures; memory and hours against the profile. Exit code 1 if anything would stop a run."""
    from nora.launch.doctor import examine, report

    targeted = any(not word.startswith("exec") for word in words)
    workspace = None
    with nullcontext() if words else suppress(UserError):  # of the machine alone it works anywhere
        workspace = open_workspace(words)
    findings = examine(*((workspace.checkout, workspace.store.root) if workspace else (None, Path.cwd())))
    if targeted and workspace:
        targets, _ = read_targets(words, workspace)
        from nora.launch.plan import device_memory, plan
        from nora.launch.readiness import check_runs

        snapshot = take_snapshot(workspace.store)
        device = device_memory(workspace)
        planned = [
            p
            for target in targets
            for p in plan(target.cells(snapshot), workspace.store, snapshot, None, device, settings=workspace.settings)
        ]
        with waiting("reading what the runs will read"):
            findings += check_runs(planned, workspace)
    print(json.dumps([vars(f) for f in findings], indent=1) if as_json else report(findings))
    return 1 if any(f.verdict == "bad" for f in findings) else 0


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("--corpus", type=click.Path(path_type=Path), help="for text: the folder the yaml's paths are in")
@click.option("--out", type=click.Path(path_type=Path), help="default: assets/MODEL")
def pretrain(model: str, corpus: Path | None, out: Path | None) -> int:
    """Make a small base model again (of text: from a folder), by tools/make_base of the checkout."""
    checkout = find_checkout()
    tools = checkout / "tools"
    if not (tools / "make_base").is_dir():
        raise UserError(f"pretrain: {tools}/make_base is not there: the bases are made in a checkout")
    sys.path.insert(0, str(tools))
    from make_base import make_base

    return int(make_base(model, corpus=corpus, checkout=checkout, out=out))


def load_program(path: Path) -> ModuleType:
    """A Python file outside the package (a benchmark, a script, an example) as a module."""
    source = importlib.util.spec_from_file_location(f"nora_program_{path.stem}", path)
    assert source is not None and source.loader is not None
    module = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)
    return module


@click.command()
@click.argument("name", metavar="NAME")
@click.option("--quick", is_flag=True, help="small sizes")
def bench(name: str, quick: bool) -> int:
    """Run benchmarks/NAME.py (``run(*, quick) -> dict``, shown by ``table(result) -> str``); the result of a full
    one is kept in results/bench/NAME.json."""
    checkout = find_checkout()
    folder = checkout / "benchmarks"
    names = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    one_of("NAME", name, names)
    module = load_program(folder / f"{name}.py")
    started = time.time()
    result = module.run(quick=quick)
    text = module.table(result)
    print(text)
    if not quick:
        import torch

        body = {
            "benchmark": name,
            "result": result,
            "table": text,
            "seconds": time.time() - started,
            **provenance.machine("cpu", torch.get_num_threads()),
            **provenance.code_version(checkout),
            "libraries": provenance.library_versions(),
        }
        path = checkout / "results" / "bench" / f"{name}.json"
        write_atomic(path, json.dumps(body, indent=1, sort_keys=True) + "\n")
        print(path)
    return 0
