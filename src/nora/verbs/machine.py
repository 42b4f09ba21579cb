"""prefetch, sync-wandb, doctor, pretrain, bench, completion: what stands around a campaign."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nora.config.compose import choices
from nora.errors import UserError
from nora.execution import provenance
from nora.files import write_atomic
from nora.verbs.asked import exec_settings, open_store, read_records, read_targets
from nora.workspace import find_checkout


def load_program(path: Path) -> Any:
    """A Python file outside the package (a benchmark, a script, an example) as a module."""
    source = importlib.util.spec_from_file_location(f"nora_program_{path.stem}", path)
    assert source is not None and source.loader is not None
    module = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)
    return module


def run_benchmark(name: str, *, checkout: Path, quick: bool) -> int:
    """A benchmark is a file with ``run(*, quick) -> dict`` and ``table(result) -> str``; results/bench/NAME.json keeps
    the result of a full one."""
    folder = checkout / "benchmarks"
    names = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    if name not in names:
        raise UserError(f"NAME: given {name!r}, allowed {', '.join(names)}")
    module = load_program(folder / f"{name}.py")
    started = time.time()
    result = module.run(quick=quick)
    print(module.table(result))
    if not quick:
        import torch

        body = {
            "benchmark": name,
            "result": result,
            "seconds": time.time() - started,
            **provenance.machine("cpu", torch.get_num_threads()),
            **provenance.code_version(checkout),
            "libraries": provenance.library_versions(),
        }
        path = checkout / "results" / "bench" / f"{name}.json"
        write_atomic(path, json.dumps(body, indent=1, sort_keys=True) + "\n")
        print(path)
    return 0


_GROUPS = ("scale", "model", "task", "method", "protocol", "exec", "kind")
_KEYS = (
    "seed=",
    "method.rank=",
    "method.alpha=",
    "method.xi=",
    "method.side=",
    "method.damping=",
    "protocol.lr=",
    "protocol.batch_size=",
    "protocol.epochs=",
    "exec.device=",
    "exec.threads=",
    "exec.processes=",
    "exec.results=",
    "exec.wandb=",
    "search=grid",
    "search=chosen",
)

_BASH = """\
_nora() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{verbs}" -- "$current"))
  else
    COMPREPLY=($(compgen -W "{words}" -- "$current"))
    [[ ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace
  fi
}}
COMP_WORDBREAKS=${{COMP_WORDBREAKS//=}}
complete -F _nora nora
"""

_ZSH = """\
#compdef nora
_nora() {{
  if (( CURRENT == 2 )); then compadd {verbs}; else compadd -S '' -- {words}; fi
}}
compdef _nora nora
"""


def script(shell: str, verbs: Sequence[str], checkout: Path) -> str:
    """The script for ``source <(nora completion bash)`` or zsh's."""
    conf = checkout / "conf"
    words = [*choices(conf, "table"), *_KEYS]
    words += [f"{group}={choice}" for group in _GROUPS for choice in choices(conf, group)]
    return (_BASH if shell == "bash" else _ZSH).format(verbs=" ".join(verbs), words=" ".join(words))


def run(arguments: Sequence[str]) -> int:
    """``nora run``: Hydra's grammar, hence not ours to parse."""
    from nora.verbs.run import run as hydra_run

    checkout = find_checkout()
    if not any(word.startswith("hydra/launcher=") for word in arguments):
        return hydra_run(arguments, checkout)
    from nora.launch.profile import place

    rest, launcher = place(arguments, checkout)
    return hydra_run(rest, checkout, launcher)


def prefetch(options: Namespace) -> int:
    from nora.execution.prefetch import prefetch
    from nora.tables.target import target_cells

    words = (
        options.targets if any(w.startswith("scale=") for w in options.targets) else [*options.targets, "scale=paper"]
    )
    tables, _, _ = read_targets(words)
    cells = [cell for t in tables for cell in target_cells(t, {}, checkout=find_checkout())]
    lines = prefetch([c.spec for c in cells if c.spec is not None], find_checkout(), dry_run=options.dry_run)
    print("\n".join(lines) or "nothing to fetch: this target reads no Hub model or data set")
    return 0


def sync_wandb(options: Namespace) -> int:
    from nora.execution.tracker import sync
    from nora.tables.target import target_cells

    tables, settings, _ = read_targets(options.targets)
    store = open_store(settings)
    records = read_records(store)
    cells = [c for table in tables for c in target_cells(table, records, checkout=find_checkout())]
    specs = {c.id: c.spec for c in cells if c.id is not None and c.spec is not None}
    lines = sync(store, specs, project=settings["wandb_project"], dry_run=options.dry_run)
    print("\n".join(lines) or "nothing to upload")
    return 0


def doctor(options: Namespace) -> int:
    from nora.launch.doctor import examine, report

    findings = examine(find_checkout(), open_store(exec_settings(options.overrides)).root)
    print(json.dumps([vars(f) for f in findings], indent=1) if options.json else report(findings))
    return 1 if any(f.verdict == "bad" for f in findings) else 0


def pretrain(options: Namespace) -> int:
    checkout = find_checkout()
    tools = checkout / "tools"
    if not (tools / "make_base").is_dir():
        raise UserError(f"pretrain: {tools}/make_base is not there: the bases are made in a checkout")
    sys.path.insert(0, str(tools))
    from make_base import make_base

    return make_base(options.model, corpus=options.corpus, checkout=checkout, out=options.out)


def bench(options: Namespace) -> int:

    return run_benchmark(options.name, checkout=find_checkout(), quick=options.quick)
