"""How methods, tasks, base models, settings and scales are spelt in print, and the light notation of texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from nora import tasks

METHODS = {
    "lora": "LoRA",
    "lora_p": "LoRA-P",
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "nora": "NoRA",
    "nora_plus": "NoRA+",
    "prefix": "Prefix",
    "gaussian": "Gaussian",
    "orthogonal": "Orthogonal",
    "init_b": "Init[B]",
    "pissa_niter": "PiSSA, power iterations",
    "milora": "MiLoRA",
    "nystrom_gradient": "NoRA of the gradient",
    "eva": "EVA",
    "corda": "CorDA",
    "lora_ga": "LoRA-GA",
    "lora_one": "LoRA-One",
    "dora": "DoRA",
    "rslora": "rsLoRA",
    "lora_fa": "LoRA-FA",
    "lora_plus": "LoRA+",
    "riemannian": "Riemannian",
    "nora_matched": "NoRA, ‖A‖ matched",
    "nora_plus_matched": "NoRA+, ‖A‖ matched",
}
SUBJECTS = {"cat_toy": "cat toy", "duck_toy": "rubber duck"}
MODELS = {
    "opt_1.3b": "OPT-1.3B",
    "llama_7b": "LLaMA-7B",
    "llama2_7b": "LLaMA2-7B",
    "gemma_7b": "Gemma-7B",
    "sd14": "Stable Diffusion v1.4",
}
PROTOCOLS = {
    "llm_adapters": "as described",
    "llm_adapters_released": "as released",
    "llm_adapters_modern": "modern",
}
INITS = {
    "kaiming": "Kaiming",
    "gaussian": "Gaussian",
    "nystrom": "Nyström",
    "nystrom_perturbed": "Nyström, perturbed",
    "pissa": "PiSSA",
    "pissa_niter_4": "PiSSA, 4 power iterations",
    "olora": "OLoRA",
    "orthogonal": "Orthogonal",
    "init_b": "Init[B]",
    "nystrom_gradient": "Nyström of the gradient",
    "eva": "EVA",
    "lora_one": "LoRA-One",
    "milora": "MiLoRA",
    "corda": "CorDA",
    "lora_ga": "LoRA-GA",
    "altgd": "special",
    "real_activations": "real activations",
}
KINDS = {"factorize": "factorisation", "finetune": "fine-tuning", "dreambooth": "DreamBooth"}
SETTINGS = {
    "lr": "learning rate",
    "xi": "ξ",
    "alpha": "α",
    "rank": "rank r",
    "damping": "damping λ",
    "num_virtual_tokens": "prefix vectors",
    "warmup_steps": "warm-up steps",
    "warmup_ratio": "warm-up, share of the steps",
    "optimizer": "optimiser",
    "betas": "β₁, β₂",
    "eps": "ε of the optimiser",
    "max_grad_norm": "gradient norm clipped at",
    "cutoff": "cut-off, tokens",
    "loss_on": "loss on",
    "eval_every": "dev loss every, steps",
    "keep": "weights kept",
    "max_new_tokens": "new tokens at most",
    "num_train": "train",
    "num_dev": "dev",
    "num_test": "test",
    "resolution": "resolution, pixels",
    "pictures": "pictures drawn per run",
    "picture_steps": "denoising steps",
    "targets": "adapted modules",
    "modules": "adapted modules",
    "prompt": "prompt of the pictures",
    "instance_prompt": "prompt in training",
}
_WORDS = {**INITS, "adamw": "AdamW", "lowest_dev_loss": "of the lowest dev loss", "last": "the last"}
_METRICS = {"f1": "F1", "mean_accuracy": "mean accuracy"}


class _Banners(dict[str, str]):
    def __missing__(self, scale: str) -> str:
        return f"Scale {scale}, of one's own: not the paper's numbers."


BANNERS = _Banners(
    paper="",
    small="Small scale: a public base of 135 M parameters, a quarter of the paper's rows. Not the paper's numbers.",
    mini="Mini scale: a small base model on a slice of the data. Trends only, not the paper's numbers.",
    smoke="SMOKE TEST: random weights and a few rows. These numbers mean nothing.",
)
OWN_ROWS = "Rows of one's own, with the settings of the {scale} scale: not the paper's numbers."


BOLD = (
    "Bold: better than every other method by more than noise (95 % interval of the paired difference over the seeds); "
    "nothing is bold where the best is within it, or for one seed."
)
CHANCE = (
    "At chance (grey): no method is above the most frequent class and the untrained base by two binomial standard "
    "errors, so the column says nothing about the methods."
)


def heading(name: str, title: str) -> str:
    """An artefact's title: the paper's number where it has one."""
    found = re.fullmatch(r"(table|fig)(\d+)", name)
    if found is None:
        return title
    return f"{'Table' if found[1] == 'table' else 'Figure'} {found[2]} – {title}"


def papers_order(name: str) -> tuple[int, int, str]:
    """Tables by number, figures by number, the rest by name."""
    found = re.fullmatch(r"(table|fig)(\d+)", name)
    return (2, 0, name) if found is None else (int(found[1] == "fig"), int(found[2]), name)


def method(name: str) -> str:
    return METHODS.get(name, name)


def task(name: str) -> str:
    """A task or a set by its own file's label; a subject of pictures by its name here."""
    return tasks.labels().get(name) or SUBJECTS.get(name, name)


def model(name: str) -> str:
    """A base model; the small ones by their own names."""
    return MODELS.get(name, name)


def column(axis: str, name: str) -> str:
    """A column of a table whose columns are tasks, models or protocols."""
    return task(name) if axis == "task" else {"model": MODELS, "protocol": PROTOCOLS}[axis].get(name, name)


def init(name: str) -> str:
    """A start, or the variant of LoRA that stands in its place."""
    return INITS.get(name, method(name))


def kind(name: str) -> str:
    return KINDS.get(name, name)


def metric(name: str) -> str:
    return _METRICS.get(name, name.replace("_", " "))


def setting(key: str) -> str:
    """A key of a protocol, method or task, in words."""
    return SETTINGS.get(key, key.replace("_", " "))


def value(given: object) -> str:
    """A setting's value: small numbers as 1e-5, others as they are; lists with commas, nothing as a dash."""
    if given is None:
        return "–"
    if isinstance(given, list | tuple):
        return ", ".join(map(value, given))
    if isinstance(given, float):
        text = f"{given:g}" if abs(given) >= 1e-3 or given == 0 else f"{given:e}"
        return re.sub(r"(\.\d*?)0+e", r"\1e", text).replace(".e", "e").replace("e-0", "e-")
    return _WORDS.get(str(given), str(given))


def over_seeds(seeds: Sequence[int]) -> str:
    """What a cell's number is: a mean with its spread, or a single run's."""
    listed = ", ".join(map(str, seeds))
    if len(seeds) == 1:
        return f"a single seed ({listed})"
    return f"mean ± sample standard deviation over n = {len(seeds)} seeds ({listed})"


# A subscript stands behind one letter or a bracket, and is short: opt_mini, q_proj and V_dog are names.
_SUB = re.compile(r"(?:(?<=[^\W\d_])(?<![A-Za-z]{2})|(?<=[)\]}‖]))_(?:\{((?:[^{}]|\{[^{}]*\})*)\}|(min|max|\w)(?!\w))")
_SUP = re.compile(r"\^(?:\{((?:[^{}]|\{[^{}]*\})*)\}|\(([^()]*)\)|([\w+]))")
_CODE = re.compile(r"`([^`]*)`")


def rendered(
    text: str, *, plain: Callable[[str], str], sub: Callable[[str], str], sup: Callable[[str], str],
    code: Callable[[str], str],
) -> str:  # fmt: skip
    """The text with each kind of piece spelt by its function; ``sub`` and ``sup`` get what stands raised or lowered."""
    found = min(
        (match for pattern in (_SUB, _SUP, _CODE) if (match := pattern.search(text))),
        key=lambda match: match.start(),
        default=None,
    )
    if found is None:
        return plain(text)
    spell = {_SUB: sub, _SUP: sup, _CODE: code}[found.re]
    inner = next(group for group in found.groups() if group is not None)
    rest = rendered(text[found.end() :], plain=plain, sub=sub, sup=sup, code=code)
    return plain(text[: found.start()]) + spell(inner) + rest
