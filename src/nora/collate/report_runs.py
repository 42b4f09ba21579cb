"""What the report knows of runs, small: a text that many runs share stands in it once, cells name runs by ranges."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_SEED = "{seed}"  # stands for the seed in a command, so that the seeds of a setting share it


class RunIndex:
    """Runs numbered in the order they are listed, so that a cell's runs are mostly neighbours."""

    def __init__(self, facts: Mapping[str, Mapping[str, Any]], others: Iterable[str]) -> None:
        """``facts``: id → what is told of a listed run; ``others``: further ids, of records that nothing lists."""
        self._facts = facts
        self._places = {identity: i for i, identity in enumerate(dict.fromkeys([*facts, *others]))}

    def ranges(self, ids: Sequence[str]) -> str:
        """ "3-5 9" for the runs 3, 4, 5 and 9, in the order given."""
        spans: list[list[int]] = []
        for place in (self._places[identity] for identity in ids):
            if spans and place == spans[-1][1] + 1:
                spans[-1][1] = place
            else:
                spans.append([place, place])
        return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)

    def to_json(self) -> str:
        """{texts, runs}: per run its id and, of a listed one, what report.js reads; texts by their place in ``texts``.

        "<" is escaped: a record's text must not end the script element that holds this.
        """
        texts: dict[str, int] = {}

        def text(value: str) -> int:
            return texts.setdefault(value, len(texts))

        runs: list[list[Any]] = []
        for identity in self._places:
            fact = self._facts.get(identity)
            if fact is None:
                runs.append([identity])
                continue
            run = [identity, text(fact["state"]), fact["seed"], text(_shared(fact["command"], fact["seed"])),
                   text(", ".join(fact["difference"]))]  # fmt: skip
            if "commit" in fact:
                run += [text(fact["commit"]), int(fact["dirty"]), fact["seconds"], text(fact["proof"]), fact["outcome"]]
            runs.append(run)
        data = {"texts": list(texts), "runs": runs}
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _shared(command: str, seed: int) -> str:
    """A run's command without its seed."""
    return " ".join(f"seed={_SEED}" if word == f"seed={seed}" else word for word in command.split(" "))
