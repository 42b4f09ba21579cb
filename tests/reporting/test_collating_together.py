"""Two collators at once while runs end: every file that is read is whole, and is the table of one moment."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from nora.reporting.collation import artefact_texts, build_artefact
from nora.store.runs import Store
from nora.store.states import Snapshot
from nora.tables.methods import Table

from synthetic import complete  # isort: skip

WORDS = "['collate', 'table2', 'scale=mini', 'task=cb', 'seed=0,1', 'method=lora', 'exec.results={results}']"
COLLATOR = """
import contextlib, io, pathlib, sys
from nora.cli import main
end = pathlib.Path(sys.argv[1])
rounds, last = 0, False
while not last:
    last = end.exists() and rounds >= 2  # looked at before it begins: the last round has seen every record
    with contextlib.redirect_stdout(io.StringIO()):
        assert main({words}) == 0
    rounds += 1
"""


def test_every_file_is_the_table_of_one_snapshot(checkout: Path, tmp_path: Path) -> None:
    from nora.tables.methods import load_table

    table: Table = load_table(checkout, "table2", ["scale=mini", "task=cb", "seed=0,1", "method=lora"])
    records = list(complete(table).values())
    results = tmp_path / "results"
    moments: list[dict[Path, str]] = []
    for count in range(len(records) + 1):
        snapshot = Snapshot({r.id: r for r in records[:count]})
        moments.append(dict(artefact_texts(build_artefact(table, snapshot), results)))
    allowed = {path: {moment[path] for moment in moments} for path in moments[0]}
    assert all(len(texts) > 1 for texts in allowed.values()), "the records do change each file"
    end = tmp_path / "end"
    code = COLLATOR.format(words=WORDS.format(results=results))
    collators = [
        subprocess.Popen([sys.executable, "-c", code, str(end)], cwd=checkout, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    store, seen = Store(results), 0
    try:
        while not all(path.is_file() for path in allowed):
            assert all(c.poll() is None for c in collators)
            time.sleep(0.01)
        for record in records:
            store.publish_record(record)
            for _ in range(20):
                for path, texts in allowed.items():
                    assert path.read_text(encoding="utf-8") in texts
                    seen += 1
                time.sleep(0.002)
    finally:
        end.touch()
        errors = [c.communicate(timeout=60)[1] for c in collators]
    assert [c.returncode for c in collators] == [0, 0], errors
    assert seen > 200
    for path, text in moments[-1].items():
        assert path.read_text(encoding="utf-8") == text, "and at the end the table of all records"
    assert not list(results.rglob(".tmp-*")), "nothing half-written is left"
