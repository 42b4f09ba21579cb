"""What the source may not do, read from its syntax trees; links in the documents lead somewhere."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "src").rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "os.system", "compile"}


def violations(source: str) -> list[str]:
    """Uses of code-running data formats in a source text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [str(node.module)] if str(node.module).split(".")[0] in FORBIDDEN_MODULES else []
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found += [name] if name in FORBIDDEN_CALLS else []
            found += [k.arg for k in node.keywords if k.arg == "trust_remote_code"]
            found += ["shell=True" for k in node.keywords if k.arg == "shell"]
        elif isinstance(node, ast.Constant) and node.value == "_target_":
            found.append("_target_")
    return found


def test_the_check_sees_what_it_should() -> None:
    bad = (
        "import pickle\nfrom dill import x\ntorch.load(p)\neval('1')\nexec('')\nyaml.load(t)\n"
        "f(trust_remote_code=True)\ng('_target_')\nsubprocess.run('x', shell=True)"
    )
    assert len(violations(bad)) == 9
    assert violations("yaml.safe_load(t)\nmodel.eval()\nsafetensors.torch.load(p)") == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_no_data_runs_code(path: Path) -> None:
    assert violations(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_every_file_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_relative_links_lead_somewhere() -> None:
    done = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    documents = [ROOT / name for name in done.stdout.split()]
    assert ROOT / "README.md" in documents
    broken = []
    for document in documents:
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
            path = target.split("#")[0]
            if path and "://" not in path and not path.startswith("mailto:") and not (document.parent / path).exists():
                broken.append(f"{document.name}: {target}")
    assert broken == []
