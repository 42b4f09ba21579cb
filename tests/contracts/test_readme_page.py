"""The README's page for a model, rows and a start of one's own: its very commands, with a tiny model and few rows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from nora import streams

ROOT = Path(__file__).resolve().parents[2]
HEADING = "## Your model, your rows, your start"
COPIED = ["src", "conf", "data/MANIFEST.json", "assets/MANIFEST.json"]


def commands() -> str:
    """The first block of shell below the heading."""
    page = (ROOT / "README.md").read_text(encoding="utf-8").split(HEADING)[1]
    found = re.search(r"```bash\n(.*?)```", page, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_of_the_page(tmp_path: Path) -> None:
    checkout, model = tmp_path / "nora", tmp_path / "models" / "my_model"
    listed = subprocess.run(["git", "ls-files", "-z", *COPIED], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).write_bytes((ROOT / name).read_bytes())
    config = GPT2Config(
        vocab_size=1024, n_embd=32, n_layer=2, n_head=2, n_positions=128, bos_token_id=1, eos_token_id=2
    )
    with streams.seeded(0, "weights"):
        GPT2LMHeadModel(config).save_pretrained(model, max_shard_size="100KB")
    AutoTokenizer.from_pretrained(ROOT / "assets" / "opt_mini").save_pretrained(model)
    rows = [
        {"text": f"a {w} day {i}", "label": "pos" if w == "fine" else "neg"}
        for i in range(12)
        for w in ("fine", "dull")
    ]
    (checkout / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, words in (("nora", "-m nora"), ("python", "")):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (tools / name).chmod(0o755)
    surroundings = {
        **os.environ, "HOME": str(tmp_path), "PATH": f"{tools}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(checkout / "src"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands()], cwd=checkout, env=surroundings, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    for said in ("model my_model (gpt2)", "targets c_attn", "It was great", "12 cells: 12 missing", "12 done", "| half",
                 "LoraConfig"):  # fmt: skip
        assert said in done.stdout, said
    table = (checkout / "mine" / "results" / "tables" / "mine.mini.md").read_text(encoding="utf-8")
    assert "Rows of one's own" in table and "missing" not in table
    assert re.search(r"Init proof passed in (\d+) of \1 runs", table)
    weights = list((checkout / "mine" / "results" / "runs").glob("*/*/adapter/adapter_model.safetensors"))
    assert len(weights) == 12 and not (checkout / "results").exists()


def test_every_block_can_be_typed_as_it_stands(checkout: Path) -> None:
    """A dot between two commands would be one more word of the first."""
    blocks = re.findall(r"```bash\n(.*?)```", (checkout / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 8
    for block in blocks:
        assert subprocess.run(["bash", "-n"], input=block, text=True, check=False).returncode == 0, block
        assert not [line for line in block.splitlines() if "·" in line.partition("#")[0]], block


def test_the_page_is_one_page() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8").split(HEADING)[1].split("\n## ")[0]
    assert len(page.splitlines()) <= 85 and "nora model add" in commands() and "stock PEFT" in commands()
