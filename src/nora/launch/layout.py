"""Which runs go into which array: pure, the same for the plan, the printed script and the submission."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nora.launch.profile import Profile, Resources
from nora.tables.cells import Cell


@dataclass(frozen=True)
class Array:
    """One sbatch: tasks of equal resources, each a fixed list of run ids."""

    label: str
    """The resource class: kind and base model."""
    resources: Resources
    tasks: tuple[tuple[str, ...], ...]

    @property
    def num_runs(self) -> int:
        return sum(len(ids) for ids in self.tasks)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"label": self.label, "resources": vars(self.resources), "tasks": [list(ids) for ids in self.tasks]}


def class_of(cell: Cell) -> tuple[str, str | None]:
    """Kind and base model: runs that share them are given the same resources."""
    assert cell.spec is not None
    model = cell.spec.get("model")
    return cell.spec["kind"], model["name"] if model else None


def layout(cells: Sequence[Cell], profile: Profile) -> list[Array]:
    """Arrays in the order of the cells: one per resource class, cut at ``max_array_size``; a run listed once."""
    classes: dict[tuple[str, str | None], list[str]] = {}
    seen: set[str] = set()
    for cell in cells:
        if cell.id is not None and cell.id not in seen:
            seen.add(cell.id)
            classes.setdefault(class_of(cell), []).append(cell.id)
    arrays = []
    for (kind, model), ids in classes.items():
        resources = profile.resources_of(kind, model)
        size = profile.runs_per_task
        tasks = [tuple(ids[i : i + size]) for i in range(0, len(ids), size)]
        for start in range(0, len(tasks), profile.max_array_size):
            chunk = tuple(tasks[start : start + profile.max_array_size])
            arrays.append(Array(f"{kind}/{model}" if model else kind, resources, chunk))
    return arrays
