"""``model=auto``: a folder, shards, a GGUF file or a Hub name, taken for what its own config and tokenizer say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from diffusion_twins import noise_picture
from hub_twins.contents import stable_diffusion
from hub_twins.rehearsal import environment
from hub_twins.server import Hub, serve
from hub_twins.site import make_site
from nora import cli, streams
from nora.config import own_model
from nora.errors import RunFailed, UserError
from nora.execution import prefetch
from nora.kinds import FewShotSpec, compose_run
from nora.kinds.parts.bases import load_base
from nora.store.runs import Store
from nora.training.batches import EncodedText
from nora.training.objectives import InstructObjective
from nora.training.scoring import check_rows, rows_differ

COMMIT = "c" * 40
CPU = torch.device("cpu")


def tiny(model_type: str, **fields: Any) -> Any:
    """A random model of an architecture, wide enough in its weights that a wrong mask shows."""
    config = AutoConfig.for_model(model_type, bos_token_id=1, eos_token_id=2, pad_token_id=0, **fields)
    with streams.seeded(0, "weights"):
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return model.eval()


GPT2 = {"vocab_size": 1024, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
SIZES = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2}
ALL = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded GPT-2 with the tokenizer of a shipped base."""
    made = tmp_path_factory.mktemp("models") / "my gpt2"
    tiny("gpt2", **GPT2).save_pretrained(made, max_shard_size="100KB")
    AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "assets" / "opt_mini").save_pretrained(made)
    assert len(list(made.glob("*.safetensors"))) > 1
    return made


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def _spec(checkout: Path, *words: str) -> FewShotSpec:
    spec, _, _ = compose_run(checkout, ["scale=smoke", "task=cb", *words])
    assert isinstance(spec, FewShotSpec)
    return spec


def test_what_a_folder_says_of_itself_is_the_spec(folder: Path, checkout: Path) -> None:
    model = _spec(checkout, "model=auto", f"model.repo='{folder}'").model
    assert (model.name, model.family, model.source, model.targets) == ("my_gpt2", "gpt2", "asset", ["c_attn"])
    assert (model.max_length, model.bos_token_id, model.dtype) == (256, None, "float32")
    assert set(model.files or {}) == {p.name for p in folder.iterdir()}
    typed = _spec(checkout, "model=auto", f"model.repo='{folder}'", "model.targets=[c_proj]", "model.max_length=64",
                  "model.name=mine", "model.dtype=bfloat16").model  # fmt: skip
    assert (typed.targets, typed.max_length, typed.name, typed.dtype) == (["c_proj"], 64, "mine", "bfloat16")


@pytest.mark.parametrize("method", ["nora_plus", "pissa", "prefix"])
def test_a_run_on_it_leaves_an_adapter_that_stock_peft_puts_on_it(
    method: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["scale=smoke", "task=cb", "model=auto", f"model.repo='{folder}'", f"method={method}"]
    words += ["exec.device=cpu", "exec.progress=false"]
    assert cli.main(["run", *words, "exec.keep_adapter=true", f"exec.results={tmp_path}"]) == 0
    out, err = capsys.readouterr()
    assert f"{method} on cb, my_gpt2, seed 0" in out and "init proved" in out
    for part in ("model my_gpt2 (gpt2)", "targets c_attn", "at most 256 tokens", "BOS 1, EOS 2, pad 0", "files hashed"):
        assert part in err
    (path,) = tmp_path.glob("runs/finetune/*/record.json")
    record = Store(tmp_path).read("finetune", path.parent.name)
    assert record is not None and record.spec["model"]["files"]["config.json"]
    loaded = AutoPeftModelForCausalLM.from_pretrained(path.parent / "adapter")
    ids = torch.tensor([[1, 50, 60, 70]])
    with torch.no_grad():
        given, base = loaded(input_ids=ids).logits, AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits
    assert (given - base).abs().max() > 1e-4


def test_a_byte_of_the_weights_makes_another_run_of_auto_and_stops_one_of_a_written_yaml(
    copied: Path, tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nora.config.spec import run_id

    own = tmp_path / "mine"
    own.mkdir()
    monkeypatch.chdir(tmp_path)  # a path is seen from the working directory
    assert cli.main(["model", "add", "mine", "copy", "--config-dir", str(own)]) == 0
    assert str(own / "model" / "mine.yaml") in capsys.readouterr().out
    monkeypatch.setenv("NORA_CONFIG_DIR", str(own))
    written = _spec(checkout, "model=mine")
    before = _spec(checkout, "model=auto", "model.repo=copy", "model.name=mine")
    assert written == before and run_id(written) == run_id(before), "written down it is the same run"
    weights = sorted(copied.glob("*.safetensors"))[0]
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert run_id(_spec(checkout, "model=auto", "model.repo=copy", "model.name=mine")) != run_id(before)
    with pytest.raises(RunFailed, match="has SHA-256 .*its yaml or manifest says"):
        load_base(_spec(checkout, "model=mine").model, checkout, CPU)
    assert cli.main(["model", "add", "mine", "copy", "--config-dir", str(own)]) == 2
    assert "given mine, which is there already" in capsys.readouterr().err
    assert cli.main(["model", "add", "other", "copy", "--dry-run", "--config-dir", str(own)]) == 0
    assert not (own / "model" / "other.yaml").exists()


def _cached(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder as the Hub's cache has a repository me/tiny."""
    repo = cache / "models--me--tiny"
    shutil.copytree(folder, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(cache))


def test_a_name_of_the_hub_is_pinned_to_the_commit_that_is_here(
    folder: Path, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="me/tiny: no such folder or file here.*nora model add NAME me/tiny"):
        _spec(checkout, "model=auto", "model.repo=me/tiny")
    _cached(folder, tmp_path / "hub", monkeypatch)
    model = _spec(checkout, "model=auto", "model.repo=me/tiny").model
    assert (model.name, model.source, model.repo, model.revision) == ("tiny", "hub", "me/tiny", COMMIT)
    assert model.files and all(len(digest) == 64 for digest in model.files.values())
    assert load_base(model, checkout, CPU).model.config.model_type == "gpt2"
    monkeypatch.setattr(prefetch, "fetched_model", lambda repo: COMMIT)
    (tmp_path / "own").mkdir()
    assert cli.main(["model", "add", "hubs", "me/tiny", "--config-dir", str(tmp_path / "own")]) == 0
    assert f"commit {COMMIT}" in capsys.readouterr().out
    monkeypatch.setenv("NORA_CONFIG_DIR", str(tmp_path / "own"))
    assert _spec(checkout, "model=hubs").model.files == model.files


def test_a_gguf_file_is_read_as_the_weights_it_holds(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf

    merges = json.loads((checkout / "assets" / "llama_mini" / "tokenizer.json").read_text())["model"]["merges"]
    tokenizer = AutoTokenizer.from_pretrained(checkout / "assets" / "llama_mini")
    model = tiny("llama", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                 num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128)  # fmt: skip
    path = tmp_path / "Tiny-Q.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {"context_length": 128, "embedding_length": 32, "block_count": 1, "feed_forward_length": 64,
                       "head_count": 2, "head_count_kv": 2, "layer_norm_rms_eps": 1e-6,
                       "vocab_size": len(tokenizer)}.items():  # fmt: skip
        getattr(writer, f"add_{key}")(value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
             "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm", "input_layernorm": "attn_norm",
             "model.layers": "blk"}  # fmt: skip
    for name, tensor in model.state_dict().items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    spec, line = own_model.found({"repo": str(path), "weights": "pretrained", "dtype": "float32"}, tmp_path)
    assert (spec["source"], spec["name"], spec["family"]) == ("gguf", "Tiny-Q", "llama")
    assert spec["targets"] == ["q_proj", "v_proj"] and spec["max_length"] == 128 and "1 files hashed" in line
    composed = _spec(checkout, "model=auto", f"model.repo={path}").model
    base = load_base(composed, tmp_path, CPU)
    wanted = model.state_dict()["model.layers.0.self_attn.v_proj.weight"]
    assert torch.equal(base.model.state_dict()["model.layers.0.self_attn.v_proj.weight"], wanted)
    monkeypatch.setattr("nora.kinds.parts.gguf.DOWNLOADS", tmp_path / "downloads")
    words = ["scale=smoke", "task=cb", "model=auto", f"model.repo={path}", "exec.device=cpu", "exec.progress=false"]
    assert cli.main(["run", *words, "exec.keep_adapter=true", f"exec.results={tmp_path / 'store'}"]) == 0
    (folder,) = (tmp_path / "store").glob("runs/finetune/*/adapter")
    assert "gguf_file='Tiny-Q.gguf'" in (folder / "README.md").read_text()
    own = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    given = PeftModel.from_pretrained(own, str(folder))(torch.tensor([[1, 50, 60]])).logits
    assert (given - base.model(torch.tensor([[1, 50, 60]])).logits).abs().max() > 1e-4


def test_a_link_is_called_what_it_is_called(folder: Path, checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "named").symlink_to(folder)
    assert _spec(checkout, "model=auto", f"model.repo={tmp_path / 'named'}").model.name == "named"


def test_a_path_is_written_so_that_a_job_finds_it(tmp_path: Path) -> None:
    """A snapshot of the checkout has its data/ and assets/, and nothing else that git does not know."""
    for given, written in (
        ("assets/mine", "assets/mine"),
        ("data/x.jsonl", "data/x.jsonl"),
        ("mine", f"{tmp_path}/mine"),
    ):
        assert own_model.as_written(tmp_path / given, tmp_path) == written


def test_a_pipeline_folder_is_one_of_diffusers(checkout: Path, tmp_path: Path) -> None:
    shutil.copytree(checkout / "assets" / "sd_mini", tmp_path / "drawings")
    spec, _, _ = compose_run(checkout, ["kind=dreambooth", "model=auto", f"model.repo={tmp_path / 'drawings'}"])
    shipped, _, _ = compose_run(checkout, ["kind=dreambooth"])
    assert (spec.model.name, spec.model.family) == ("drawings", "stable_diffusion")  # type: ignore[union-attr]
    assert spec.model.targets == shipped.model.targets  # type: ignore[union-attr]
    assert spec.model.max_length == shipped.model.max_length  # type: ignore[union-attr]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two pictures of a mug."""
    (tmp_path / "mug").mkdir()
    for number in range(2):
        noise_picture(64, 64, seed=number).save(tmp_path / "mug" / f"{number}.png")
    return tmp_path / "mug"


DREAM = ["kind=dreambooth", "scale=smoke", "protocol.resolution=64", "task.source=folder", "exec.device=cpu"]


def test_a_pipeline_of_ones_own_is_added_trained_and_read_by_stock_diffusers(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stable Diffusion's classes at other sizes than any that is shipped."""
    for name, data in stable_diffusion().files.items():
        path = tmp_path / "drawings" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "own").mkdir()
    own, place = ["--config-dir", str(tmp_path / "own")], f"exec.results={tmp_path / 'store'}"
    assert cli.main(["model", "add", "my_sd", str(tmp_path / "drawings"), *own]) == 0
    assert "model my_sd (stable_diffusion)" in capsys.readouterr().out
    words = [*DREAM, "model=my_sd", f"task.folder={pictures}", place, "exec.keep_adapter=true"]
    assert cli.main(["run", *words, *own]) == 0
    said = capsys.readouterr()
    assert "nora on V_mug, my_sd, seed 0" in said.out and "subject 'V_mug'" in said.err
    (path,) = (tmp_path / "store").glob("runs/dreambooth/*/record.json")
    assert cli.main(["export", place, "--adapter", path.parent.name, "--out", str(tmp_path / "out")]) == 0
    pipeline = StableDiffusionPipeline.from_pretrained(
        tmp_path / "drawings", safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.load_lora_weights(tmp_path / "out" / path.parent.name)
    assert [(c.r, c.lora_alpha) for c in pipeline.unet.peft_config.values()] == [(4, 4)]

    for name, said_of in (("unet/diffusion_pytorch_model.safetensors", "lacks unet/config.json or unet/"),
                          ("model_index.json", "required a folder with a config.json")):  # fmt: skip
        (tmp_path / "drawings" / name).unlink()
        assert cli.main(["model", "add", "again", str(tmp_path / "drawings"), *own]) == 2
        assert said_of in capsys.readouterr().err
    (tmp_path / "drawings" / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    assert cli.main(["model", "add", "again", str(tmp_path / "drawings"), *own]) == 2
    assert "is a StableDiffusionXLPipeline, required a StableDiffusionPipeline" in capsys.readouterr().err


@pytest.mark.slow
def test_a_pipeline_of_the_hub_is_brought_by_its_commit_and_trained_without_network(
    pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    site, repo = make_site(tmp_path / "site"), stable_diffusion()
    with serve(Hub(models={"somebody/drawings": repo})) as hub:
        for endpoint, words in (
            (hub.endpoint, ["model", "add", "hub_sd", "somebody/drawings"]),
            ("", ["run", *DREAM, "model=hub_sd", f"task.folder={pictures}", "exec.results=own"]),
            ("", ["run", *DREAM, "model=auto", "model.repo=somebody/drawings", f"task.folder={pictures}"]),
        ):
            done = subprocess.run(
                [sys.executable, "-m", "nora", *words], cwd=site, env=environment(tmp_path, endpoint=endpoint),
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
    (path,) = site.glob("own/runs/dreambooth/*/record.json")
    model = json.loads(path.read_text())["result"]["spec"]["model"]
    assert (model["source"], model["repo"], model["revision"]) == ("hub", "somebody/drawings", repo.commit)
    assert "unet/diffusion_pytorch_model.safetensors" in model["files"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: shutil.rmtree(f), "no such folder or file here"),
        (lambda f: (f / "config.json").unlink(), "required a folder with a config.json"),
        (lambda f: [p.unlink() for p in f.glob("*.safetensors")], "holds no .safetensors"),
        (lambda f: sorted(f.glob("*.safetensors"))[1].unlink(), "model-00002-of-00003.safetensors is missing"),
        (lambda f: _edit(f, auto_map={"AutoModel": "mine.Mine"}), "needs code of its own"),
        (lambda f: _edit(f, model_type="unheard_of"), "cannot be read"),
        (lambda f: _edit(f, model_type="bert"), "its tokenizer gives ids up to 1023, the model's vocabulary has 512"),
        (lambda f: _edit(f, model_type="t5", vocab_size=1024), "is no causal language model"),
        (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "makes nothing of a text"),
    ],
    ids=["gone", "no config", "no weights", "no shard", "code", "unknown", "vocabulary", "seq2seq", "no tokenizer"],
)
def test_what_is_no_model_is_one_line_and_exit_2(
    spoil: Any, said: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(copied)
    assert cli.main(["run", "scale=smoke", "task=cb", "model=auto", f"model.repo={copied}"]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in err and len(err) < 600


def _edit(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if fields.get("model_type") == "bert":
        fields["vocab_size"] = 512
    path.write_text(json.dumps({**config, **fields}))


FAMILIES = {
    "gpt2": ({**GPT2, "vocab_size": 128}, ["c_attn"]),
    "gptj": ({"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8}, ["q_proj", "v_proj"]),
    "gpt_neo": ({"vocab_size": 128, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
                 "attention_types": [[["global", "local"], 1]]}, ["q_proj", "v_proj"]),
    "gpt_neox": ({**SIZES, "intermediate_size": 64}, ["query_key_value"]),
    "falcon": (SIZES, ["query_key_value"]),
    "mistral": (GATED, ["q_proj", "v_proj"]),
    "qwen3": ({**GATED, "head_dim": 8}, ["q_proj", "v_proj"]),
    "phi": (GATED, ["q_proj", "v_proj", "fc1", "fc2"]),
    "olmo2": (GATED, ALL),
    "granite": ({**GATED, "logits_scaling": 4.0}, ALL),
    "cohere": ({**GATED, "logit_scale": 0.25}, ALL),
    "gemma2": ({**GATED, "head_dim": 8, "final_logit_softcapping": 2.0}, ["q_proj", "v_proj"]),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_architectures_read_our_rows_as_their_own_forward_reads_each_text(family: str) -> None:
    fields, targets = FAMILIES[family]
    model = tiny(family, **fields)
    assert own_model.default_targets(model.config, family) == targets
    assert rows_differ(model, range(3, 35)) < 1e-4


@pytest.mark.parametrize("family", ["granite", "cohere", "gemma2"])
def test_what_is_done_to_the_logits_has_its_gradient(family: str) -> None:
    """Of instructions, whose loss is computed a few tokens at a time, beside the library's own."""
    model = tiny(family, **FAMILIES[family][0]).double().requires_grad_(False)
    layer = model.get_decoder().layers[0].self_attn.v_proj.weight
    ids = torch.arange(3, 35)
    gradients = []
    for ours in (True, False):
        layer.requires_grad_(True)
        if ours:
            text = EncodedText(tuple(ids.tolist()), 1, 0, False)
            loss = InstructObjective([text], 0).loss(model, [0])
        else:
            logits = model(input_ids=ids[None]).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
        gradients.append((loss.detach(), *torch.autograd.grad(loss, [layer])))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


def test_a_window_bounds_the_texts(folder: Path, copied: Path, checkout: Path) -> None:
    shutil.rmtree(copied)
    tiny("mistral", **{**GATED, "vocab_size": 1024}, sliding_window=48, max_position_embeddings=256).save_pretrained(
        copied
    )
    AutoTokenizer.from_pretrained(folder).save_pretrained(copied)
    assert _spec(checkout, "model=auto", f"model.repo={copied}").model.max_length == 48


@pytest.mark.parametrize(
    ("family", "fields", "said"),
    [
        ("mpt", {"vocab_size": 128, "d_model": 32, "n_layers": 2, "n_heads": 4}, "log-probability is off by"),
        ("bloom", {"vocab_size": 128, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "reads no rows with a mask"),
    ],
)
def test_an_architecture_that_reads_them_otherwise_does_not_train(family: str, fields: Any, said: str) -> None:
    with pytest.raises(RunFailed, match=said):
        check_rows(tiny(family, **fields), list(range(3, 35)))
