"""What shows something starts without torch: measured in fresh interpreters."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nora.adapters


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["run", "--help"],
        ["plan", "table2", "scale=smoke", "task=cb", "seed=0"],
        ["status", "table2", "scale=smoke", "task=cb", "seed=0"],
        ["collate", "--dry-run", "cost", "scale=smoke"],
        ["collate", "--dry-run", "table2", "scale=smoke", "task=cb", "seed=0"],
        ["plan", "table3", "fig7", "scale=paper"],
        ["collate", "--dry-run", "table3", "table6", "scale=smoke"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_no_torch(words: list[str], checkout: Path, tmp_path: Path) -> None:
    given = words if "--help" in words else [*words, f"exec.results={tmp_path}"]
    code = (
        "import sys\nfrom nora.cli import main\n"
        f"try:\n    code = main({given!r})\nexcept SystemExit as e:\n    code = e.code or 0\n"
        "heavy = {'torch', 'transformers', 'peft', 'wandb', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=checkout, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_python_m_nora_is_the_command(checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nora", "plan", "--help"], capture_output=True, text=True, cwd=checkout, check=False
    )
    assert done.returncode == 0 and done.stdout.startswith("Usage: nora plan ")


def test_the_librarys_door_opens_at_once_and_each_name_brings_what_it_needs() -> None:
    """``import nora.adapters`` loads neither torch nor PEFT; to people and to a type checker all is there."""
    code = """
import pydoc, sys
import nora.adapters
from nora.adapters import __all__ as names
assert not {'torch', 'peft', 'transformers'} & set(sys.modules), 'at once'
assert set(names) <= set(dir(nora.adapters)), 'dir'
try:
    nora.adapters.nystrom_init
except AttributeError as error:
    assert str(error) == "module 'nora.adapters' has no attribute 'nystrom_init'"
else:
    raise SystemExit('a name that is not there')
from nora.adapters import nystrom_init_
assert 'peft' in sys.modules and nora.adapters.nystrom_init_ is nystrom_init_
from nora.adapters import *
assert start_.__module__ == 'nora.adapters.start'
text = pydoc.plain(pydoc.render_doc('nora.adapters'))
assert not [name for name in names if name not in text] and 'NoRA' in text
print(*names)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    source = (Path(nora.adapters.__file__)).read_text(encoding="utf-8")
    (block,) = (
        one for one in ast.parse(source).body if isinstance(one, ast.If) and ast.unparse(one.test) == "TYPE_CHECKING"
    )
    typed = {a.asname: one.module for one in block.body if isinstance(one, ast.ImportFrom) for a in one.names}
    assert typed == {name: f"nora.adapters.{file}" for name, file in nora.adapters._FILE_OF.items()}
    assert done.stdout.split() == list(typed)
