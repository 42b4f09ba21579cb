"""`nora prefetch` against a Hub on 127.0.0.1 that answers well, slowly, wrongly or not at all: the right lock, or one
clear line and no lock."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from hub_twins.server import Hub, Repo, serve
from nora.errors import RunFailed, UserError
from nora.execution.prefetch import prefetch
from nora.files import sha256_bytes
from nora.kinds import compose_run

NAME = "facebook/opt-1.3b"
FILES = {"config.json": b'{"model_type": "opt"}', "pytorch_model.bin": b"w" * 50_000, "merges.txt": b"a b\n"}
OTHERS = {"README.md": b"# a card\n", "tf_model.h5": b"h" * 1000, "flax_model.msgpack": b"f" * 1000}
ROOT = Path(__file__).parents[2]
WEIGHTS = sha256_bytes(FILES["pytorch_model.bin"])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    waited: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", waited.append)
    with serve(Hub({NAME: Repo({**FILES, **OTHERS})})) as served:
        served.waited = waited  # type: ignore[attr-defined]
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        template = served.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        huggingface_hub.utils.close_session()
        yield served
    huggingface_hub.utils.close_session()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "revisions.lock").write_text("{}")
    return tmp_path


def _bring(site: Path) -> Any:
    """The lock after `nora prefetch`."""
    spec, _, _ = compose_run(ROOT, ["scale=smoke", "model=opt_1.3b", "task=cb"])
    prefetch([spec], site, dry_run=False)
    return json.loads((site / "conf" / "revisions.lock").read_text())


def _refused(site: Path, error: type[Exception], line: str) -> None:
    with pytest.raises(error, match=line) as refusal:
        _bring(site)
    assert "\n" not in str(refusal.value) and NAME in str(refusal.value)
    assert (site / "conf" / "revisions.lock").read_text() == "{}", "nothing is pinned"


def test_redirects_and_etags_give_commit_and_hashes(hub: Hub, site: Path) -> None:
    hashes = {name: sha256_bytes(data) for name, data in FILES.items()}
    lock = _bring(site)
    assert lock == {"models": {NAME: {"commit": hub.models[NAME].commit, "files": hashes}}}
    assert ("GET", f"/cdn/{WEIGHTS}") in hub.asked, "the weights are behind a redirect"
    assert not [path for _, path in hub.asked if path.endswith(tuple(OTHERS))]
    hub.asked.clear()
    assert _bring(site) == lock and not [path for method, path in hub.asked if method == "GET" and "/cdn/" in path]


@pytest.mark.parametrize("token", [None, "of somebody else"])
def test_a_gated_repository_names_its_licence(
    token: str | None, hub: Hub, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.models[NAME].gated = True
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    _refused(site, UserError, f"gated; accept its licence at https://huggingface.co/{NAME}")
    monkeypatch.setenv("HF_TOKEN", "accepted")
    assert _bring(site)["models"][NAME]["files"]["pytorch_model.bin"] == WEIGHTS


def test_a_repository_that_is_not_there_is_named(hub: Hub, site: Path) -> None:
    del hub.models[NAME]
    _refused(site, UserError, "no such repository on the Hub")


def test_a_file_that_is_listed_and_not_there_is_one_line(hub: Hub, site: Path) -> None:
    def missing(request: Any, method: str, path: str) -> bool:
        if path.endswith("merges.txt"):
            request.refuse(404, "EntryNotFound", "gone")
            return True
        return False

    hub.faults.append(missing)
    _refused(site, RunFailed, "merges.txt")


def test_too_many_requests_are_waited_for_as_long_as_the_hub_says(hub: Hub, site: Path) -> None:
    told = []

    def busy(request: Any, method: str, path: str) -> bool:
        if len(told) < 2 and path.startswith("/cdn/") and method == "GET":
            told.append(path)
            request.send(429, b"slow down", Retry_After="7")
            return True
        return False

    hub.faults.append(busy)
    assert _bring(site)["models"][NAME]["files"]["pytorch_model.bin"] == WEIGHTS
    asked_of_sleep = hub.waited  # type: ignore[attr-defined]  # what a sleep that does not sleep was given
    assert len(told) == 2 and max(asked_of_sleep) >= 7


def test_a_hub_that_stays_busy_is_one_line(hub: Hub, site: Path) -> None:
    def busy(request: Any, method: str, path: str) -> bool:
        request.send(429, b"slow down", Retry_After="1")
        return True

    hub.faults.append(busy)
    _refused(site, RunFailed, "429")


def _cut(hub: Hub, times: int) -> None:
    """The connection ends in the middle of the weights."""
    left = [times]

    def cut(request: Any, method: str, path: str) -> bool:
        if path != f"/cdn/{WEIGHTS}" or method != "GET" or not left[0]:
            return False
        left[0] -= 1
        data = FILES["pytorch_model.bin"]
        start = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        request.send_response(206 if start else 200)
        request.send_header("ETag", f'"{WEIGHTS}"')
        request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        request.wfile.write(data[start : start + 10_000])
        request.wfile.flush()
        request.close_connection = True
        return True

    hub.faults.append(cut)


def test_a_connection_cut_in_the_middle_goes_on_from_there(hub: Hub, site: Path) -> None:
    _cut(hub, 2)
    assert _bring(site)["models"][NAME]["files"]["pytorch_model.bin"] == WEIGHTS


def test_a_connection_that_is_always_cut_is_one_line_and_the_next_try_is_right(hub: Hub, site: Path) -> None:
    _cut(hub, 10**6)
    _refused(site, RunFailed, NAME)
    hub.faults.clear()
    assert _bring(site)["models"][NAME]["files"]["pytorch_model.bin"] == WEIGHTS


@pytest.mark.parametrize("content", [b"v" * 50_000, b"v" * 40_000], ids=["same size", "other size"])
def test_a_file_that_changes_between_two_requests_is_not_pinned(content: bytes, hub: Hub, site: Path) -> None:
    def other(request: Any, method: str, path: str) -> bool:
        if path == f"/cdn/{WEIGHTS}" and method == "GET":
            request.send(200, content, ETag=f'"{WEIGHTS}"')
            return True
        return False

    hub.faults.append(other)
    _refused(site, RunFailed, NAME)
    hub.faults.clear()
    assert _bring(site)["models"][NAME]["files"]["pytorch_model.bin"] == WEIGHTS


def test_a_small_file_that_changes_between_two_requests_is_not_pinned(hub: Hub, site: Path) -> None:
    def other(request: Any, method: str, path: str) -> bool:
        if path.endswith("merges.txt") and method == "GET":
            request.send(200, b"b a\n", ETag='"x"', X_Repo_Commit=hub.models[NAME].commit)
            return True
        return False

    hub.faults.append(other)
    _refused(site, RunFailed, "merges.txt came as")
    hub.faults.clear()
    assert _bring(site)["models"][NAME]["files"]["merges.txt"] == sha256_bytes(FILES["merges.txt"])
