"""`make rehearsal`: every kind of paper-scale run once, a step or two long, through the twins, and a table of it.

prefetch asks a Hub on 127.0.0.1; what follows (doctor, plan, the runs) is a process of its own that is offline and ends
at the first connection it tries.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import slurm_testbed
from hub_twins.contents import ROOT, make_hub, narrow, sentencepiece_of_mistral
from hub_twins.server import Hub, serve
from hub_twins.site import REDUCED, make_site
from nora.kinds import AnySpec

TABLE = ROOT / "results" / "rehearsal.md"


class Fetched(NamedTuple):
    """A folder with a site and a Hub cache; what `nora prefetch all` said."""

    folder: Path
    said: str

    @property
    def site(self) -> Path:
        return self.folder / "site"

    @property
    def lock(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.site / "conf" / "revisions.lock").read_text())
        return content


def environment(folder: Path, *, endpoint: str = "") -> dict[str, str]:
    """Of a process whose Hub is the twins' (``endpoint``), or that has none."""
    online = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "accepted"} if endpoint else {}
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "PYTHONPATH": str(ROOT / "tools"), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", **online,
    }  # fmt: skip


def fetch(hub: Hub, folder: Path, words: Sequence[str] = ("all",)) -> subprocess.CompletedProcess[str]:
    """A site in ``folder``, and `nora prefetch` in it from the twins' Hub."""
    site = folder / "site"
    if not site.is_dir():
        site.mkdir()
        make_site(site)
    with serve(hub):
        return subprocess.run(
            [sys.executable, "-m", "hub_twins.site", hub.endpoint, "prefetch", *words], cwd=site,
            env=environment(folder, endpoint=hub.endpoint), capture_output=True, text=True, check=False,
        )  # fmt: skip


def offline(folder: Path, *words: str, more: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """``python -m hub_twins.rehearsal --offline WORDS`` in the site: a line of JSON per thing done."""
    return subprocess.run(
        [sys.executable, "-m", "hub_twins.rehearsal", "--offline", *words], cwd=folder / "site",
        env={**environment(folder), **(more or {})}, capture_output=True, text=True, check=False,
    )  # fmt: skip


# What goes through the scheduler: one target of each protocol that has few runs.
ON_SLURM = (
    ("table2", "task=cb", "method=lora", "seed=0"),
    ("table3", "method=nora", "seed=0"),
    ("table4", "model=llama_7b", "method=nora"),
)
_PATIENCE_SECONDS = 300


def on_slurm(folder: Path) -> list[str]:
    """Per target of ``ON_SLURM``, launched and run as jobs of a real SLURM of two nodes: what its status says then.

    The jobs' processes are the twins' too: Python imports their sitecustomize before anything else. A node refuses
    code from elsewhere, so the site has a copy of its own by then.
    """
    source = folder / "site" / "src"
    source.unlink()
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "node").mkdir()
    (folder / "node" / "sitecustomize.py").write_text("from hub_twins.contents import narrow\n\nnarrow()\n")
    said = []
    with slurm_testbed.cluster() as client:
        more = {**client, "PYTHONPATH": os.pathsep.join([str(folder / "node"), str(source), str(ROOT / "tools")])}
        where = ["scale=paper", "exec=slurm", "exec.profile=testbed", "exec.code=live", "exec.results=jobs"]
        for words in ON_SLURM:
            launched = offline(folder, "launch", *words, *where, more=more)
            if launched.returncode:
                return [*said, f"launch {words[0]}: {(launched.stdout + launched.stderr)[-1000:]}"]
        end = time.monotonic() + _PATIENCE_SECONDS
        while (
            time.monotonic() < end
            and subprocess.run(["squeue", "-h"], env={**os.environ, **client}, capture_output=True, check=True).stdout
        ):
            time.sleep(1)
        for words in ON_SLURM:
            status = offline(folder, "status", *words, *where, more=more)
            said.append(next(iter(status.stdout.splitlines()), status.stderr[-1000:]))
    return said


def all_done(said: Sequence[str]) -> bool:
    """Whether every cell of every target has its record, by the first line of its status."""
    return len(said) == len(ON_SLURM) and all(re.search(r": (\d+) cells: \1 done$", line) for line in said)


def kinds_of_run(checkout: Path, *, every: bool) -> dict[tuple[str, str, str, str], AnySpec]:
    """(protocol, model, task, method) → the first spec of it in the paper's plan; ``every`` or one of each protocol,
    model and, of DreamBooth, subject."""
    from nora.verbs.words import read_targets

    targets, _ = read_targets(["all", "scale=paper"])
    found: dict[tuple[str, str, str, str], AnySpec] = {}
    seen = set()
    for target in targets:
        for cell in target.cells({}):
            spec: Any = cell.spec or cell.like
            if spec is None or spec.kind not in ("finetune", "dreambooth"):
                continue
            key = (spec.protocol.name, spec.model.name, spec.task.name, spec.method.name)
            short = key[:3] if spec.kind == "dreambooth" else key[:2]
            if key not in found and (every or short not in seen):
                found[key] = spec
                seen.add(short)
    return found


def _refuse_connections() -> None:
    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(arguments[1], tuple)):
            os.write(2, f"NETWORK {event} {arguments}".encode())
            os._exit(99)

    sys.addaudithook(refuse)


def _offline(words: Sequence[str]) -> int:
    """`every` or `one`: the runs; anything else: `nora` itself with those words."""
    _refuse_connections()
    narrow()
    from nora import cli

    if words[0] not in ("every", "one"):
        return int(cli.main(list(words)))
    from nora.errors import RunFailed, UserError
    from nora.execution.execute import execute
    from nora.kinds import compose_run
    from nora.store.runs import Store

    checkout = Path.cwd()
    _, settings, _ = compose_run(checkout, ["exec.progress=false", "exec.device=cpu"])
    for key, spec in kinds_of_run(checkout, every=words[0] == "every").items():
        line: dict[str, Any] = {"key": key}
        try:
            record, _ = execute(spec, settings, checkout=checkout, store=Store(checkout / "results"), keep_base=True)
            metrics = record.metrics
            line |= {"state": record.status, "steps": metrics.get("steps"), "proved": record.result["proof"]["passed"]}
            line["lost"] = sum((metrics.get("lost_answers") or {}).values())
        except (RunFailed, UserError) as error:
            line |= {"state": "failed", "why": str(error)}
        print(json.dumps(line), flush=True)
    return 0


def table(lines: Sequence[dict[str, Any]], doctor: int, plan: int, jobs: Sequence[str]) -> str:
    """What was exercised, reduced and not exercised; nothing of the machine or the time in it."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for line in lines:
        protocol, model, task, method = line["key"]
        steps = f"{method} ({line['steps']} steps)" if line["state"] == "done" else f"{method} **{line['state']}**"
        rows.setdefault((protocol, model, task), []).append(steps)
    done = sum(line["state"] == "done" and line["proved"] for line in lines)
    reduced = [f"`{key}` = {value}" for key, value in REDUCED.items() if not key.startswith("task.")]
    return _TABLE.format(
        done=done,
        of=len(lines),
        doctor=doctor,
        plan=plan,
        rows="\n".join(f"| {' | '.join(key)} | {', '.join(said)} |" for key, said in rows.items()),
        reduced=", ".join(reduced),
        jobs="\n".join(f"- {line}" for line in jobs),
    )


_TABLE = """# Rehearsal of the paper scale

Written by `make rehearsal`: prefetch from a Hub on 127.0.0.1, then doctor, plan and runs without a network.

{done} of {of} kinds of run done, their start proved. `nora doctor all scale=paper`: exit {doctor};
`nora plan all scale=paper`: exit {plan}.

## Exercised

| protocol | base | task | methods |
|---|---|---|---|
{rows}

True there: repository and file names, which files a repository has (weights as .bin, as shards, as both; a tokenizer in
one file or another), the cache as huggingface_hub lays it out, gated access, classes and layer kinds, target modules,
ranks, ξ, learning rates, batch sizes and cut-offs, precision, configurations, splits and columns of the data sets, and
the commands themselves.

## Reduced

- widths and depths of the bases, and their weights, which are random
- rows: 16 to train on, 4 of dev and 4 of test of each few-shot task, few of the others; among MetaMathQA's and the
  mixture's is one that is longer than every cut-off
- {reduced}
- tokenizers: the shipped bases' byte-level BPE in the files and classes of the real ones; for both LLaMAs a true
  sentencepiece model of their kind where the package mistral-common is, otherwise one of 4,000 pieces trained on
  shipped rows

## As jobs of a real SLURM

{jobs}

## Not exercised

- a GPU: memory, TF32, bf16 on its kernels, hours
- on SLURM: the other targets, and disturbances (tests/slurm has those, at smoke scale)
- every seed and every point of a search: one of each kind
- the Hub's own servers, the real weights, and every row of the real data
- factorisations and deployment, which have no scale
"""


def main() -> int:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fetched = fetch(make_hub(sentencepiece_of_mistral()), folder)
        if fetched.returncode:
            print(fetched.stderr[-2000:], file=sys.stderr)
            return 1
        doctor, plan = offline(folder, "doctor", "all", "scale=paper"), offline(folder, "plan", "all", "scale=paper")
        print(doctor.stdout, doctor.stderr[-2000:], plan.stderr[-2000:])
        ran = offline(folder, "every")
        print(ran.stderr[-2000:], file=sys.stderr)
        lacking = slurm_testbed.why_not()
        jobs = [f"not on this machine: {lacking}"] if lacking else on_slurm(folder)
    lines = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    for line in lines:
        print(*line["key"], line["state"], line.get("why", ""))
    TABLE.write_text(table(lines, doctor.returncode, plan.returncode, jobs), encoding="utf-8")
    good = [line["state"] == "done" and line["proved"] for line in lines]
    print(f"{sum(good)} of {len(good)} kinds of run in {time.monotonic() - started:.0f} s; {TABLE.relative_to(ROOT)}")
    print(*jobs, sep="\n")
    scheduled = bool(lacking) or all_done(jobs)
    return 0 if good and all(good) and scheduled and not ran.returncode + doctor.returncode + plan.returncode else 1


if __name__ == "__main__":
    sys.exit(_offline(sys.argv[2:]) if sys.argv[1:2] == ["--offline"] else main())
