"""Scenes, tokens, pictures and their comparison: against words, sizes and loops written out."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_twins import noise_picture
from make_base import pictures as parts
from make_base import scenes
from nora import streams
from nora.training.diffusion.pictures import MAX_BYTES, drift, fidelity, square, strip, to_jpeg


def _dice(seed: int) -> scenes.Dice:
    return scenes.Dice(streams.generator(seed, "test"))


@pytest.mark.parametrize("kind", scenes.KINDS)
@pytest.mark.parametrize("thing", scenes.THINGS)
def test_every_scene_is_drawn_and_its_thing_shows(kind: str, thing: str) -> None:
    scene = scenes.Scene(kind, "blue", thing, "grass")
    image = scenes.draw_scene(scene, _dice(1), side=64)
    again = scenes.draw_scene(scene, _dice(1), side=64)
    assert image.size == (64, 64) and image.tobytes() == again.tobytes()
    bare = scenes.draw_scene(scenes.Scene(kind, "blue", "", "grass"), _dice(1), side=64)
    assert (image.tobytes() != bare.tobytes()) == bool(thing)


def test_captions_name_the_kind_and_the_thing() -> None:
    dice = _dice(0)
    texts = []
    for _ in range(300):
        scene = scenes.draw_at_random(dice)
        texts.append(scenes.caption(scene, dice))
        assert scene.kind in texts[-1] and scene.thing in texts[-1]
    assert any("_" in text for text in texts) and any("toy" in text for text in texts)


def test_every_word_of_the_captions_is_one_token_and_a_name_keeps_its_noun() -> None:
    dice = _dice(0)
    texts = [scenes.caption(scenes.draw_at_random(dice), dice) for _ in range(500)]
    tokenizer = parts.train_tokenizer(texts, length=24)
    words = {word for text in texts for word in text.replace("_", " ").split()}
    for word in words:
        assert tokenizer.tokenize(word) == [f"{word}</w>"]
    assert tokenizer.tokenize("a photo of V_dog")[-3:] == ["v</w>", "_</w>", "dog</w>"]
    ids = parts.token_ids(tokenizer, ["a dog", ""])
    assert ids.shape == (2, 24) and int(ids[0, 0]) == tokenizer.bos_token_id
    assert ids[1, 1:].eq(tokenizer.eos_token_id).all(), "padded with the end token, as Stable Diffusion does"


def test_the_schedule_is_stable_diffusions() -> None:
    """α̅ from the published β: scaled linear between 0.00085 and 0.012 over 1000 steps."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    found = parts.make_scheduler().alphas_cumprod.numpy()
    np.testing.assert_allclose(found, np.cumprod(1 - betas), rtol=1e-4)


def test_pretraining_makes_reconstruction_and_noise_prediction_better() -> None:
    """Thirty steps of each phase on one scene: the loss falls; two runs are equal to the last bit."""
    dice = _dice(0)
    drawn = [scenes.draw_at_random(dice) for _ in range(8)]
    rows = [torch.from_numpy(np.array(scenes.draw_scene(s, dice, side=32))).permute(2, 0, 1) for s in drawn]
    pictures = parts.Pictures(torch.stack(rows), [scenes.caption(s, dice) for s in drawn])
    from diffusion_twins import SHAPE

    ends = []
    for _ in range(2):
        seen: list[tuple[str, float]] = []
        vae = parts.make_vae(SHAPE["vae"], seed=0)
        phase = parts.Phase(steps=30, batch_size=4, lr=3e-3, warmup_steps=5)
        parts.train_vae(vae, pictures, phase, seed=0, on_step=lambda n, s, t, loss, seen=seen: seen.append((n, loss)))
        mean, std = parts.encode_all(vae, pictures.pixels)
        unet = parts.make_unet(SHAPE["unet"], seed=0)
        text = parts.make_text_encoder(SHAPE["text_encoder"], seed=0)
        ids = torch.arange(8 * 6).view(8, 6)
        parts.train_denoiser(
            unet, text, (mean, std), ids, ids[:1], phase, seed=0, drop=0.1, ema=0.9,
            on_step=lambda n, s, t, loss, seen=seen: seen.append((n, loss)),
        )  # fmt: skip
        for name in ("vae", "denoiser"):
            losses = [loss for n, loss in seen if n == name]
            assert sum(losses[-5:]) < 0.9 * sum(losses[:5]), name
        ends.append(torch.cat([p.detach().flatten() for p in (*unet.parameters(), *vae.parameters())]))
    assert torch.equal(*ends)


def test_a_picture_fits_into_its_bytes_and_is_nearly_itself() -> None:
    small = scenes.draw_scene(scenes.Scene("dog", "brown", "", "grass"), _dice(0), side=64)
    data = to_jpeg(small)
    back = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=float)
    assert len(data) < MAX_BYTES and np.abs(back - np.asarray(small, dtype=float)).mean() < 3
    assert len(to_jpeg(noise_picture(300, 300))) <= MAX_BYTES
    assert strip([small, small]).size == (128, 64)


class _Colours:
    """Mean colours as features; one axis per letter for texts."""

    def pictures(self, images: Sequence[Image.Image]) -> Tensor:
        rows = torch.stack([torch.from_numpy(np.asarray(i, dtype=np.float32)).mean(dim=(0, 1)) for i in images])
        return torch.nn.functional.normalize(rows, dim=-1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[1.0, 0.0, 0.0]] * len(texts))


def test_fidelity_is_the_mean_of_the_cosines_written_out() -> None:
    drawn = [Image.new("RGB", (4, 4), c) for c in ((250, 20, 0), (10, 200, 40))]
    real = [Image.new("RGB", (6, 4), c) for c in ((200, 100, 0), (250, 50, 30), (5, 5, 250))]
    a, b = (np.array([i.getpixel((0, 0)) for i in images], dtype=float) for images in (drawn, real))

    def cosine(x: np.ndarray, y: np.ndarray) -> float:
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    red = np.array([1.0, 0.0, 0.0])
    expected = {
        "subject": np.mean([cosine(x, y) for x in a for y in b]),
        "ceiling": np.mean([cosine(b[i], b[j]) for i in range(3) for j in range(3) if i != j]),
        "prompt": np.mean([cosine(x, red) for x in a]),
        "prompt_of_real": np.mean([cosine(y, red) for y in b]),
    }
    assert fidelity(_Colours(), drawn, real, "red") == pytest.approx(expected, rel=1e-5)
    assert "ceiling" not in fidelity(_Colours(), drawn, real[:1], "red")


def test_drift_is_the_mean_of_the_cosines_written_out() -> None:
    before, after, real = (
        [Image.new("RGB", (4, 4), c) for c in colours]
        for colours in (((250, 20, 0), (10, 200, 40)), ((250, 20, 0), (90, 90, 90)), ((0, 0, 255), (80, 80, 80)))
    )
    a, b, c = (np.array([i.getpixel((0, 0)) for i in images], dtype=float) for images in (before, after, real))

    def cosine(x: np.ndarray, y: np.ndarray) -> float:
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    expected = {
        "kept": (1.0 + cosine(a[1], b[1])) / 2,
        "subject_before": np.mean([cosine(x, y) for x in a for y in c]),
        "subject_after": np.mean([cosine(x, y) for x in b for y in c]),
    }
    assert drift(_Colours(), before, after, real) == pytest.approx(expected, rel=1e-5)
    assert expected["kept"] < 1 and expected["subject_after"] > expected["subject_before"]


def test_the_middle_square_is_compared() -> None:
    image = Image.new("RGB", (30, 10), (0, 0, 255))
    image.paste((255, 0, 0), (10, 0, 20, 10))
    assert square(image, 5).getcolors() == [(25, (255, 0, 0))]
