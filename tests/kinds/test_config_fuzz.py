"""Whatever is typed, composing gives a valid spec or a UserError of one line: never another exception."""

from __future__ import annotations

from pathlib import Path

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from nora.config.spec import run_id, spec_dict
from nora.errors import UserError
from nora.kinds import compose_run

ROOT = Path(__file__).resolve().parents[2]
KEYS = st.sampled_from(
    ["seed", "method", "task", "scale", "method.rank", "method.xi", "protocol.lr", "protocol.betas", "measure"]
    + [
        "exec.threads",
        "model.files",
        "model.architecture",
        "protocol",
        "kind",
        "nothing",
        "method.a.b",
        "hydra.job",
        "exec",
    ]
)
VALUES = st.one_of(
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(repr),
    st.sampled_from(
        [
            "null",
            "true",
            "[]",
            "{}",
            "[1,2]",
            "{a: 1}",
            "???",
            "${seed}",
            "${x.y}",
            "nora",
            "cb",
            "lora",
            "'",
            '"',
            "1e-3",
        ]
        + [
            "[0.9,0.99]",
            "[[]]",
            "{a:{b:{c:1}}}",
            "${oc.env:HOME}",
            "${oc.decode:1}",
            "a,b",
            "range(1,3)",
            "\\",
            "$",
            "${",
        ]
    ),
)
OVERRIDES = st.one_of(
    st.text(max_size=20),
    st.builds(
        lambda prefix, key, value: f"{prefix}{key}={value}", st.sampled_from(["", "", "+", "++", "~"]), KEYS, VALUES
    ),
)


# No shrinking: the overrides are short, and each composition takes a third of a second.
@settings(max_examples=60, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(st.lists(OVERRIDES, min_size=1, max_size=3))
def test_a_spec_or_a_user_error(overrides: list[str]) -> None:
    try:
        spec, _, scale = compose_run(ROOT, overrides)
    except UserError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert run_id(spec) == run_id(spec_dict(spec))
        assert scale in ("mini", "paper", "smoke")
