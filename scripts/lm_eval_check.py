"""A cross-check by the lm-evaluation-harness (optional): a finished run's merged model on the harness's own tasks.

    python scripts/lm_eval_check.py ID boolq,piqa [exec.results=…]

The harness has prompts and a scoring of its own (log-probabilities of the options), so its numbers are beside Table
4's, not in it. The run must have kept its adapter (exec.keep_adapter=true). Exit codes: 0 done, 2 wrong input.
"""

import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from nora.errors import UserError
from nora.store.states import take_snapshot
from nora.workspace import open_workspace


def check(identity: str, tasks: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """One line per task and metric."""
    if find_spec("lm_eval") is None:
        raise UserError("lm_eval is not installed here: pip install 'lm_eval[hf]'")
    workspace = open_workspace(overrides)
    store = workspace.store
    record = take_snapshot(store).get(identity)
    if record is None:
        raise UserError(f"ID: given {identity!r}, no record of it in {store.root}")
    import lm_eval

    from nora.kinds.parts.bases import write_merged

    with tempfile.TemporaryDirectory() as folder:
        write_merged(record, store, workspace.checkout, Path(folder))
        found = lm_eval.simple_evaluate(
            model="hf", model_args={"pretrained": folder, "dtype": record.spec["model"]["dtype"]}, tasks=list(tasks)
        )
    return [
        f"{task} {metric}: {value:.4f}"
        for task, metrics in found["results"].items()
        for metric, value in metrics.items()
        if isinstance(value, float)
    ]


if __name__ == "__main__":
    try:
        if len(sys.argv) < 3:
            raise UserError("usage: lm_eval_check.py ID TASK,TASK [exec.results=…]")
        print("\n".join(check(sys.argv[1], sys.argv[2].split(","), sys.argv[3:])))
    except UserError as error:
        print(f"lm_eval_check: {error}", file=sys.stderr)
        sys.exit(2)
