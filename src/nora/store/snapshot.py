"""The store as it was at one moment: every record that can be trusted, and why any other is not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from nora.config.spec import versionless_id
from nora.store.record import DamagedRecord, Record, read_record
from nora.store.runs import Store


class Snapshot(Mapping[str, Record]):
    """id → record, read once: what is written afterwards is not in it, so tables made of it agree with each other.

    ``damaged``: id → why its record is not believed. ``unfinished``: id → state of a run without a record.
    """

    def __init__(
        self,
        records: Mapping[str, Record],
        *,
        damaged: Mapping[str, str] | None = None,
        unfinished: Mapping[str, str] | None = None,
    ) -> None:
        self._records = dict(sorted(records.items()))  # by id: what is made of it does not depend on the order read
        self.damaged = dict(damaged or {})
        self.unfinished = dict(unfinished or {})

    def __getitem__(self, identity: str) -> Record:
        return self._records[identity]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def records_alone(self) -> Snapshot:
        """The same without what only this checkout knows of runs that have no record: what a clone of it sees."""
        return Snapshot(self._records, damaged=self.damaged)

    @cached_property
    def _versions(self) -> dict[str, Record]:
        return {record.versionless_id: record for record in self._records.values()}

    def state(self, identity: str | None, spec: Mapping[str, Any] | None) -> str:
        """done, diverged, damaged, stale, or what the store says of a run without a record (missing, failed, …)."""
        if identity is None or spec is None:
            return "missing"
        if identity in self._records:
            return self._records[identity].status
        if identity in self.damaged:
            return "damaged"
        older = self._versions.get(versionless_id(spec))
        return "stale" if older is not None else self.unfinished.get(identity, "missing")


def take_snapshot(store: Store) -> Snapshot:
    """Reads every record once. A record in a folder of another id (a copy) is damaged: a run counts once."""
    records: dict[str, Record] = {}
    damaged: dict[str, str] = {}
    unfinished: dict[str, str] = {}
    for folder in sorted(store.root.glob("runs/*/*/")):  # a stray file is no run
        try:
            record = read_record(folder / "record.json")
        except DamagedRecord as error:
            damaged[folder.name] = str(error)
            continue
        if record is None:
            if (folder / "attempts").is_dir():
                unfinished[folder.name] = store.state(folder.parent.name, folder.name).state
        elif record.id != folder.name or record.spec["kind"] != folder.parent.name:
            name = folder.name if record.id != folder.name else f"{folder.parent.name}/{folder.name}"
            damaged[name] = f"{folder}: holds the record of {record.id}, kind {record.spec['kind']} (a copy?)"
        else:
            records[record.id] = record
    return Snapshot(records, damaged=damaged, unfinished=unfinished)
