"""What a run forgot: the losses of a book against one window at a time; a base that a start moves; a step too small."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from nora import cli
from nora.errors import RunFailed
from nora.kinds.parts.rows import held_out_windows
from nora.store.record import read_record
from nora.training.measures import forgetting, text_losses
from twins import tiny_opt


def test_losses_are_those_of_one_window_at_a_time() -> None:
    model = tiny_opt()
    model.train()
    windows = torch.randint(0, model.config.vocab_size, (5, 12), generator=torch.Generator().manual_seed(0))
    found = text_losses(model, windows, batch_size=2)
    assert model.training and found.shape == (5, 11)
    model.eval()
    for row, losses in zip(windows, found, strict=True):
        with torch.no_grad():
            log_p = model(input_ids=row[None]).logits[0].double().log_softmax(-1)
        expected = torch.tensor([-float(log_p[i, row[i + 1]]) for i in range(11)], dtype=torch.float64)
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)


def test_gains_here_do_not_hide_losses_there() -> None:
    before, after = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 2.0]])
    assert forgetting(before, after) == {"before": 2.0, "after": 2.0, "drift": 1.0, "tokens": 2}


def test_windows_are_the_book_end_to_end(checkout: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkout / "assets" / "opt_mini")
    plain, started = (held_out_windows(tokenizer, bos, checkout) for bos in (None, 2))
    assert plain.shape == started.shape == (64, 128)
    assert started[:, 0].tolist() == [2] * 64 and torch.equal(started[:, 1:].flatten(), plain.flatten()[: 64 * 127])
    assert tokenizer.decode(plain[0]).startswith("They were not railway children to begin with.")
    book = tmp_path / "data" / "held_out" / "books.jsonl.gz"
    book.parent.mkdir(parents=True)
    book.write_bytes((checkout / "data/held_out/books.jsonl.gz").read_bytes()[:-1])
    with pytest.raises(RunFailed, match="SHA-256"):
        held_out_windows(tokenizer, None, tmp_path)


@pytest.mark.parametrize("method", ["lora", "pissa", "olora", "nora_plus", "prefix"])
def test_a_run_compares_with_the_untouched_base(method: str, checkout: Path, tmp_path: Path) -> None:
    """A rate at which nothing moves forgets nothing, the moved base of PiSSA and OLoRA included; a large one does. The
    prefix changes what follows it before any step."""
    words = ["scale=smoke", "task=cb", f"method={method}", "exec.progress=false", "measure=[forgetting]"]
    found = {}
    for rate in ("1e-12", "0.05"):
        assert cli.main(["run", *words, f"protocol.lr={rate}", f"exec.results={tmp_path}/{rate}"]) == 0
        (path,) = (tmp_path / rate).glob("runs/finetune/*/record.json")
        found[rate] = read_record(path).metrics["forgetting"]
    still, moved = found["1e-12"], found["0.05"]
    assert still["before"] == moved["before"] and still["before"] == pytest.approx(math.log(1024), abs=0.01)
    assert still["tokens"] == 64 * 127
    if method == "prefix":
        assert still["drift"] > 1e-4
    else:
        assert still["after"] == pytest.approx(still["before"], abs=1e-6) and still["drift"] < 1e-5
    assert moved["drift"] > 10 * still["drift"] or method == "prefix"


def test_what_cannot_be_measured_is_refused_before_an_attempt(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "scale=smoke", "task=cb", "measure=[forgetting]", f"exec.results={tmp_path}"]
    assert cli.main([*words, "model.max_length=100"]) == 2
    assert "given forgetting with model.max_length=100, required 128 or more" in capsys.readouterr().err
    monkeypatch.setattr("nora.kinds.few_shot.HELD_OUT", {"held_out/other.jsonl.gz": "0" * 64})
    assert cli.main(words) == 2
    assert "held_out/other.jsonl.gz: missing" in capsys.readouterr().err and not list(tmp_path.rglob("attempts"))
