"""A TARGET by name: the one place that knows which kind of table file it is."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from nora.runs.errors import UserError
from nora.runs.record import Record
from nora.runs.schema import validate
from nora.tables.cells import Cell, SpecBook, cells
from nora.tables.costs import Costs, CostsFile, pick_costs
from nora.tables.deployments import Deployments, DeploymentsFile, deployment_cells, pick_deployments
from nora.tables.panels import Panels, PanelsFile, panel_cells, pick_panels
from nora.tables.subjects import Subjects, SubjectsFile, pick_subjects, subject_cells
from nora.tables.table import Table, load_table, names, read_table

Target = Table | Panels | Deployments | Subjects | Costs


def load_target(checkout: Path, name: str, overrides: Sequence[str] = ()) -> Target:
    """The target ``name`` narrowed by ``key=value`` words; UserError for a name or value that is not there."""
    allowed = names(checkout)
    if name not in allowed:
        near = difflib.get_close_matches(name, allowed, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"TARGET: given {name!r}, allowed {', '.join(allowed)}, all{hint}")
    for override in overrides:
        if "=" not in override:
            raise UserError(f"given {override!r}, required key=value")
    own = [o for o in overrides if not o.startswith("exec")]
    content, _ = read_table(checkout, name)
    if "panels" in content:
        file: PanelsFile = validate(content, PanelsFile, prefix=f"conf/table/{name}.yaml: ")
        return pick_panels(file, name, own)
    if "inits" in content:
        return pick_deployments(validate(content, DeploymentsFile, prefix=f"conf/table/{name}.yaml: "), name, own)
    if "subjects" in content:
        return pick_subjects(checkout, validate(content, SubjectsFile, prefix=f"conf/table/{name}.yaml: "), name, own)
    if "targets" in content:
        return pick_costs(checkout, validate(content, CostsFile, prefix=f"conf/table/{name}.yaml: "), name, own)
    return load_table(checkout, name, own)


def target_cells(
    target: Target, records: Mapping[str, Record], *, checkout: Path, book: SpecBook | None = None
) -> list[Cell]:
    """``cells(target, records)`` for any kind of target."""
    if isinstance(target, Panels):
        return panel_cells(target, checkout=checkout)
    if isinstance(target, Deployments):
        return deployment_cells(target, checkout=checkout)
    if isinstance(target, Subjects):
        return subject_cells(target, checkout=checkout)
    if isinstance(target, Costs):
        return []
    return cells(target, records, checkout=checkout, book=book)
