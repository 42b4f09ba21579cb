"""make study-gpu: which tasks are worth the other methods' time, and that a spent budget starts nothing."""

from __future__ import annotations

import study


def test_what_learns_is_read_from_the_committed_records(capsys):
    assert study.learns("sst2")
    assert not study.learns("record"), "no seed of it has run"
    assert "sst2: LoRA 0." in capsys.readouterr().out


def test_a_spent_budget_starts_nothing_and_says_that_work_is_left(monkeypatch):
    monkeypatch.setenv("BUDGET", "0")
    monkeypatch.setattr(study.subprocess, "Popen", lambda *a, **k: (_ for _ in ()).throw(AssertionError("started")))
    assert study.main() == 1
