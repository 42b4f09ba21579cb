"""How far it is from a word typed to the work: what a reader has to walk through."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import CodeType, FrameType

import pytest

from nora import cli
from nora.training import loop

SOURCE = str(Path(cli.__file__).parent)


class _Seen(Exception):
    pass


@pytest.mark.parametrize(
    "words",
    [["task=cb"], ["task=commonsense", "protocol=llm_adapters", "model=llama_smoke"], ["kind=dreambooth"]],
    ids=["few_shot", "instruct", "dreambooth"],
)
def test_six_frames_in_four_files_from_run_to_a_step(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[traceback.FrameSummary] = []
    step = loop.train_step

    def spy(*args: object, **kwargs: object) -> object:
        seen.extend(f for f in traceback.extract_stack() if f.filename.startswith(SOURCE))
        raise _Seen

    monkeypatch.setattr(loop, "train_step", spy)
    cli.main(["run", "scale=smoke", "method=nora", *words, f"exec.results={tmp_path}", "exec.progress=false"])
    frames = [f"{Path(f.filename).name}:{f.name}" for f in seen] + [step.__name__]
    assert frames[0] == "cli.py:main" and len(frames) <= 6, frames
    assert len({frame.split(":")[0] for frame in frames[:-1]}) <= 4, frames


def test_seventy_one_functions_from_plan_to_the_first_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: dict[CodeType, None] = {}
    found: list[int] = []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and not found and frame.f_code.co_filename.startswith(SOURCE):
            if not frame.f_code.co_name.startswith("<"):  # bodies of modules, comprehensions
                called[frame.f_code] = None
            if frame.f_code.co_name == "run_id":
                found.append(len(called))

    words = ["table2", "scale=smoke", "task=cb", "seed=0", "method=lora", f"exec.results={tmp_path}"]
    cli.main(["plan", *words])  # what is imported once is imported
    sys.setprofile(profile)
    try:
        cli.main(["plan", *words])
    finally:
        sys.setprofile(None)
    names = [f"{Path(code.co_filename).stem}.{code.co_qualname}" for code in called]
    assert found and found[0] <= 71, names
