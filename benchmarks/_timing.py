"""Interleaved timing: every method once per round, medians over the rounds; peak memory of one call."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch.profiler import ProfilerActivity, profile

_TURN = 5.0  # ms


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(device: torch.device) -> tuple[str, Callable[[], float]]:
    """Processor time where one thread does the work, so that a busy machine does not show; else wall time."""
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return "processor time", time.process_time
    return "wall time", time.perf_counter


def interleaved(methods: Mapping[str, Callable[[], object]], *, rounds: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each method over ``rounds`` rounds A B C A B C …, after one call each to warm up.

    A turn repeats its call for at least 5 ms, as timeit does: one call of 0.1 ms would time the caches that the other
    methods left.
    """
    _, now = clock(device)

    def turn(method: Callable[[], object], calls: int) -> float:
        started = now()
        for _ in range(calls):
            method()
        _wait(device)
        return 1000 * (now() - started) / calls

    for method in methods.values():
        turn(method, 1)
    calls = {name: max(1, math.ceil(_TURN / max(turn(method, 1), 1e-3))) for name, method in methods.items()}
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            times[name].append(turn(method, calls[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def peak_mib(method: Callable[[], object], device: torch.device) -> float:
    """Largest memory that one call holds on top of what was there, MiB."""
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        method()
        _wait(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        kept = method()
    del kept
    return held_peak_mib(trace)


def held_peak_mib(trace: profile) -> float:
    """The largest memory held at once by what a profile of the CPU with ``profile_memory`` saw allocated, MiB."""
    held = peak = 0
    events = trace.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def devices() -> list[torch.device]:
    """The CPU and, where there is one, the GPU."""
    return [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


def aim(what: str, factor: float, found: float) -> str:
    """The line of a table that says whether a ratio aimed at was reached."""
    return f"aim {factor:g}x {what}: {'met' if found >= factor else 'NOT met'}, {found:.2f}x"
