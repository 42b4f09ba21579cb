"""A few events of ``nora bench chaos``'s sweep on the real scheduler: the whole of it is results/bench/chaos.json."""

from __future__ import annotations

from pathlib import Path

import pytest
from testbed import STAGE_1, Testbed

from nora.verbs.machine import load_program

pytestmark = pytest.mark.slurm


def test_a_sweep_under_events_ends_as_the_one_left_alone(slurm: Testbed, checkout: Path) -> None:
    cluster = load_program(checkout / "benchmarks" / "cluster.py")
    kinds = (
        "slurmctld restart",
        "disk full",
        "clock step",
        "node down",
        "preempt",
    )  # the others have tests of their own
    words = ["table2", "scale=smoke", "task=cb", "seed=0,1", *(word for word in STAGE_1[2:] if "epochs" not in word)]
    with cluster.small_disk(32) as disk:
        # Long enough that no run ends before the last event, on a busy machine too, where an event comes late.
        found = cluster.disturbed(slurm.folder, disk, [*words, "protocol.epochs=240"], 5, kinds=kinds, patience=240)
    assert found["runs"] == found["identical"] == 2 and found["lost"] == found["twice"] == 0, found
    assert found["events"] == 5, found
