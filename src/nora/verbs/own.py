"""model, task: a model and rows of one's own, written down under a name and looked at before anything is trained."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nora import kinds, starts, tasks
from nora.config import own_model
from nora.config.compose import choices
from nora.errors import UserError
from nora.files import Json, write_atomic
from nora.verbs.words import dry_run_flag, json_flag, waiting
from nora.workspace import find_checkout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def as_yaml(plain: Mapping[str, Json], comment: str) -> str:
    """A yaml in which every text is quoted: a hash of digits and one e is no number."""
    lines = [f"# {comment}"]
    for key, value in plain.items():
        if isinstance(value, dict):
            entries = [f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items()]
            lines += [f"{key}:", *entries] if entries else [f"{key}: {{}}"]
        else:
            lines.append(f"{key}: {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


@click.group()
def model() -> None:
    """A model of your own under a name: nora model add NAME PATH."""


@model.command("add")
@click.argument("name", metavar="NAME")
@click.argument("path", metavar="PATH|HUB-NAME")
@dry_run_flag
def model_add(name: str, path: str, dry_run: bool) -> int:
    """Writes model/NAME.yaml into --config-dir, or else conf/, with the SHA-256 of every file that is loaded.

    PATH: a folder with config.json and .safetensors (or a diffusers pipeline), a .gguf file. A name of the Hub is
    downloaded, by its commit.
    """
    checkout = find_checkout()
    conf = Path(os.environ.get(starts.FOLDER) or checkout / "conf")
    if own_model.as_name(name) != name:
        raise UserError(f"NAME: given {name!r}, required letters, digits and ._- (at most 64)")
    if name in choices(checkout / "conf", "model"):
        raise UserError(f"NAME: given {name}, which is there already; `nora list models` has all")
    asked: dict[str, Json] = {"name": name, "repo": path, "weights": "pretrained", "dtype": "float32"}
    if own_model.place(path, checkout) is None and own_model.is_hub_name(path) and not dry_run:
        from nora.execution.prefetch import fetched_model, refused

        try:
            asked["revision"] = fetched_model(path)
        except Exception as error:
            raise refused(error, path) from None
    with waiting(f"{name}: reading its files"):
        spec, said = own_model.found(asked, checkout)
    print(said)
    target = conf / "model" / f"{name}.yaml"
    if dry_run:
        print(as_yaml(spec, "what would be written"), end="")
    else:
        write_atomic(target, as_yaml(spec, "Written by `nora model add` from the model's own config and tokenizer."))
        print(target)
    return 0


_SHOWN = 6
"""Tokens of the prompt that are shown before each further answer."""


@click.group()
def task() -> None:
    """What a task's rows are to the model: nora task show NAME -n 3."""


@task.command("show")
@click.argument("name", metavar="NAME")
@click.argument("words", nargs=-1, metavar="[key=value …]")
@click.option("-n", "count", default=2, show_default=True, help="rows")
@json_flag
def task_show(name: str, words: Sequence[str], count: int, as_json: bool) -> int:
    """The first training rows of a seed as the model reads them: the very strings (quoted, so that blanks and line ends
    are seen), their tokens, and where the loss falls. NAME is a task, or choice or instruct with task.file=… (a file,
    or OWNER/DATASET of the Hub, which is brought here by its commit; task.split, task.test_split, task.subset)"""
    checkout = find_checkout()
    words = [f"task={name}", *words]
    asked = _asked(checkout, words)
    suite = str(asked.get("suite"))
    _bring(asked, checkout)
    if suite not in ("choice", "superglue", "instruct"):
        raise UserError(f"NAME: given {name}, required a task of text; the pictures of a subject are files to look at")
    if suite == "instruct" and not any(word.startswith("protocol=") for word in words):
        words.append("protocol=metamath" if name == "gsm8k" else "protocol=llm_adapters_modern")
    spec, _, _ = kinds.compose_run(checkout, words)
    assert isinstance(spec, kinds.FinetuneSpec)
    kinds.check_inputs(spec, checkout)
    kinds.check_ready(spec)
    with waiting(f"{name}: reading rows and tokenizer"):
        rows, said = _texts(spec, _tokenizer_of(spec, checkout), checkout, count)
    if as_json:
        print(json.dumps({"task": spec.task.name, "model": spec.model.name, **said, "rows": rows}, indent=1))
        return 0
    counts = ", ".join(f"{number} {split}" for split, number in said["counts"].items())
    print(f"{spec.task.name} for {spec.model.name}: {counts} rows; metric {said['metric']}; {said['loss']}")
    for number, row in enumerate(rows, start=1):
        print(f"\ntraining row {number}" + (f", {row['cut']} tokens cut" if row["cut"] else ""))
        if row["glued"]:
            print(
                "  note: a word of the prompt runs into the answer; end the prompt, or begin the answer, with a blank"
            )
        for place, text in enumerate(row["texts"]):
            mark = "right  " if text["right"] else "wrong  "
            print(f"  {mark if len(row['texts']) > 1 else 'text   '}{text['text']!r}")
            read, scored = text["tokens"][: text["first_scored"]], text["tokens"][text["first_scored"] :]
            read = read if not place or len(read) < _SHOWN else ["…", *read[-_SHOWN:]]  # the prompt stands above
            print(f"  {len(text['tokens']):4} tokens  {' '.join(read)} | {' '.join(scored)}")
    return 0


def _asked(checkout: Path, words: Sequence[str]) -> Mapping[str, Json]:
    from nora.config.compose import compose_config

    found = compose_config(checkout / "conf", words).get("task")
    return found if isinstance(found, Mapping) else {}


def _bring(task: Mapping[str, Json], checkout: Path) -> None:
    """Rows of the Hub that are not here yet."""
    from nora.config import own_rows
    from nora.execution.prefetch import fetched_rows

    if task.get("source") != "file" or not own_rows.is_hub_name(str(task.get("file")), checkout):
        return
    revision, paths = own_rows.hub_paths(task, checkout)
    if not revision or not all(path.is_file() for path in paths.values()):
        print(fetched_rows(task, checkout), file=sys.stderr)


def _tokenizer_of(spec: Any, checkout: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    from nora.kinds.parts.bases import model_folder

    borrowed = spec.model.weights == "random"
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        checkout / str(spec.model.tokenizer) if borrowed else model_folder(spec.model, checkout)
    )
    return found


def _glued(prompt: str, answers: Sequence[str]) -> bool:
    """Whether a prompt's last word and an answer's first are one."""
    return prompt[-1:].isalnum() and any(answer[:1].isalnum() for answer in answers)


def _texts(
    spec: kinds.FinetuneSpec, tokenizer: PreTrainedTokenizerBase, checkout: Path, count: int
) -> tuple[list[dict[str, Json]], dict[str, Json]]:
    """The rows as training encodes them, and what holds for all of them."""
    from nora.kinds.parts.rows import few_shot_rows, load_instruct_rows
    from nora.training.batches import encode_example, encode_text

    made, rows = tasks.of(spec.task), []

    def text(shown: str, ids: Sequence[int], first: int, right: bool) -> dict[str, Json]:
        pieces = [repr(tokenizer.decode([i])) for i in ids]
        return {"text": shown, "ids": list(ids), "tokens": pieces, "first_scored": first, "right": right}

    if isinstance(spec, kinds.FewShotSpec):
        splits = few_shot_rows(spec.task, made, checkout, seed=spec.seed)
        for row in splits.train[:count]:
            example = made.build(row)
            encoded = encode_example(example, tokenizer, max_length=spec.model.max_length, bos=spec.model.bos_token_id)
            of = zip(example.candidates, encoded.sequences, encoded.option_lengths, strict=True)
            texts = [
                text((example.prompt + answer).lstrip().strip(" "), ids, len(ids) - scored, n in example.correct)
                for n, (answer, ids, scored) in enumerate(of)
            ]
            rows.append({"texts": texts, "cut": encoded.truncated, "glued": _glued(example.prompt, example.candidates)})
        loss = "the loss compares the answers by the tokens after |" if made.LOSS == "classification" else ""
        counts = {"train": len(splits.train), "dev": len(splits.dev), "test": len(splits.test)}
        return rows, {"counts": counts, "metric": made.METRIC, "loss": loss or "the loss falls on the tokens after |"}
    found = load_instruct_rows(spec.task, made, checkout, seed=spec.seed)
    eos, protocol = int(tokenizer.eos_token_id), spec.protocol
    for one in found.train[:count]:
        glued = _glued(one.prompt, [one.target])
        learnt = encode_text(one, tokenizer, cutoff=protocol.cutoff, loss_on=protocol.loss_on, eos=eos)
        rows.append(
            {
                "texts": [text(one.prompt + one.target, learnt.ids, learnt.first_scored, True)],
                "cut": learnt.cut,
                "glued": glued,
            }
        )
    counts = {"train": len(found.train), "dev": len(found.dev), "test": len(found.test)}
    return rows, {"counts": counts, "metric": made.METRIC, "loss": "the loss falls on the tokens after |"}
