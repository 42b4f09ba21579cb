"""Tests in the style of PEFT's ``TestLoraInitialization`` (tests/test_initialization.py). Run: pytest contrib/peft."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from scipy import stats
from torch import nn


@pytest.fixture(scope="module", autouse=True)
def _patched_peft():
    source = importlib.util.spec_from_file_location("nystrom_init", Path(__file__).with_name("nystrom_init.py"))
    module = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)
    restore = module.apply()
    yield
    restore()


class TestNystromInitialization:
    def get_model(self, bias=True):
        class MyModule(nn.Module):
            def __init__(self):
                super().__init__()
                # choose a large weight so that averages are close to expected values
                self.linear = nn.Linear(300, 200, bias=bias)
                self.embed = nn.Embedding(100, 100)

            def forward(self, x):
                return self.linear(x)

        torch.manual_seed(0)
        return MyModule().eval()

    @pytest.fixture
    def data(self):
        return torch.rand(8, 300)

    def config(self, **kwargs):
        return LoraConfig(target_modules=["linear"], init_lora_weights="nystrom", r=16, **kwargs)

    def test_output_and_base_weight_unchanged(self, data):
        model = self.get_model()
        output, weight = model(data), model.linear.weight.clone()
        model = get_peft_model(model, self.config())
        assert torch.equal(model(data), output)
        assert torch.equal(model.linear.get_base_layer().weight, weight)
        assert (model.linear.lora_B["default"].weight == 0).all()

    def test_A_is_a_sketch_of_the_weight(self):
        """A has the distribution N(0, (xi/scaling)² ‖W_:j‖²) and lies in the row space of W (out < in)."""
        model = get_peft_model(self.get_model(), self.config(lora_alpha=32))
        weight, A = model.linear.get_base_layer().weight, model.linear.lora_A["default"].weight
        residual = A - A @ torch.linalg.pinv(weight) @ weight
        assert residual.norm() < 1e-3 * A.norm()
        projected = (A @ torch.linalg.pinv(weight)).flatten().detach().numpy() / (0.1 / 2)
        assert stats.kstest(projected, "norm").pvalue > 0.01

    @pytest.mark.parametrize("kwargs", [{"use_rslora": True}, {"use_dora": True}, {"lora_alpha": 7}])
    def test_variants_start_at_the_base_output(self, data, kwargs):
        model = self.get_model()
        output = model(data)
        torch.testing.assert_close(get_peft_model(model, self.config(**kwargs))(data), output)

    @pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
    def test_save_load_on_the_untouched_base(self, data, tmp_path, low_cpu_mem_usage):
        model = get_peft_model(self.get_model(), self.config())
        model.linear.lora_B["default"].weight.data.normal_()
        output = model(data)
        model.save_pretrained(tmp_path)
        torch.manual_seed(123)  # loading draws again, but the checkpoint decides
        loaded = PeftModel.from_pretrained(self.get_model(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(loaded(data), output)

    def test_bfloat16_base(self, data):
        model = get_peft_model(self.get_model().to(torch.bfloat16), self.config())
        assert model.linear.lora_A["default"].weight.dtype == torch.float32
        assert torch.isfinite(model(data.to(torch.bfloat16))).all()

    def test_rank_above_the_smaller_side(self, data):
        model = self.get_model()
        output = model(data)
        model = get_peft_model(model, LoraConfig(target_modules=["linear"], init_lora_weights="nystrom", r=350))
        assert model.linear.lora_A["default"].weight.shape == (350, 300)
        assert torch.equal(model(data), output)

    def test_multihead_attention(self):
        torch.manual_seed(0)
        attention = nn.MultiheadAttention(16, 2)
        config = LoraConfig(target_modules=["0"], init_lora_weights="nystrom", r=4)
        layer = get_peft_model(nn.Sequential(attention), config).base_model.model[0]
        for adapted, weight in (
            (layer, attention.in_proj_weight),
            (layer.base_layer.out_proj, attention.out_proj.weight),
        ):
            A = adapted.lora_A["default"].weight
            residual = A - A @ torch.linalg.pinv(weight) @ weight
            assert A.any() and residual.norm() < 1e-3 * A.norm()

    @pytest.mark.parametrize("transposed", [False, True])
    def test_each_expert_is_sketched_from_its_own_weight(self, transposed):
        class Experts(nn.Module):
            def __init__(self):
                super().__init__()
                self.is_transposed = transposed
                self.weight = nn.Parameter(torch.randn(3, *((20, 6) if transposed else (6, 20))))

            def forward(self, x):
                weight = self.weight if transposed else self.weight.mT
                return torch.einsum("bi,eio->beo", x, weight)

        torch.manual_seed(0)
        model = nn.Sequential(Experts())
        x = torch.randn(5, 20)
        output = model(x)
        config = LoraConfig(target_modules=[], target_parameters=["0.weight"], init_lora_weights="nystrom", r=4)
        model = get_peft_model(model, config)
        assert torch.equal(model(x), output)
        layer = model.base_model.model[0]
        for A, stored in zip(layer.lora_A["default"].weight.view(3, 4, 20), layer.get_param(), strict=True):
            W = stored.T if transposed else stored
            residual = A - A @ torch.linalg.pinv(W) @ W  # [out, in] with out < in: the row space is a proper subspace
            assert residual.norm() < 1e-3 * A.norm()

    def test_convolution(self):
        torch.manual_seed(0)
        conv = nn.Conv2d(8, 4, 3)
        config = LoraConfig(target_modules=["0"], init_lora_weights="nystrom", r=4)
        A = get_peft_model(nn.Sequential(conv), config).base_model.model[0].lora_A["default"].weight.flatten(1)
        W = conv.weight.flatten(1)
        assert (A - A @ torch.linalg.pinv(W) @ W).norm() < 1e-3 * A.norm()

    def test_zero_weight_raises(self):
        model = self.get_model()
        nn.init.zeros_(model.linear.weight)
        with pytest.raises(ValueError, match="would never train"):
            get_peft_model(model, self.config())

    def test_non_finite_weight_raises(self):
        model = self.get_model()
        model.linear.weight.data[0, 0] = float("nan")
        with pytest.raises(ValueError, match="finite base weight"):
            get_peft_model(model, self.config())

    def test_embedding_falls_back_to_the_default(self):
        model = get_peft_model(self.get_model(), LoraConfig(target_modules=["embed"], init_lora_weights="nystrom", r=4))
        assert (model.embed.lora_embedding_A["default"] == 0).all()
