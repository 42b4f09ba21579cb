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

    def test_rank_too_large_raises(self):
        with pytest.raises(ValueError, match="r=201 for a layer with weight shape"):
            get_peft_model(self.get_model(), LoraConfig(target_modules=["linear"], init_lora_weights="nystrom", r=201))

    def test_non_finite_weight_raises(self):
        model = self.get_model()
        model.linear.weight.data[0, 0] = float("nan")
        with pytest.raises(ValueError, match="finite base weight"):
            get_peft_model(model, self.config())

    def test_embedding_falls_back_to_the_default(self):
        model = get_peft_model(self.get_model(), LoraConfig(target_modules=["embed"], init_lora_weights="nystrom", r=4))
        assert (model.embed.lora_embedding_A["default"] == 0).all()
