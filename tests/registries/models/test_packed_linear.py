import pytest
import torch

from registries.models import packed_linear
from registries.models.packed_linear import PackedLinear


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_is_a_linear_layer(onednn, dtype, with_bias, monkeypatch):
    if not onednn:
        monkeypatch.setattr(packed_linear, "_ONEDNN", None)
    weight, inputs, others = (torch.randn(*shape, dtype=dtype) for shape in ((7, 5), (3, 5), (3, 7)))
    bias = torch.randn(7, dtype=dtype) if with_bias else None
    layer, expected = PackedLinear(weight, 3, bias), torch.nn.functional.linear(inputs, weight, bias)
    assert (layer.packed is not None) == (onednn and dtype == torch.float32)
    assert layer(inputs).allclose(expected, atol=1e-6)
    assert layer(inputs, relu=True).allclose(expected.relu(), atol=1e-6)
    assert layer.plus(inputs, others).allclose(inputs @ weight.T + others, atol=1e-6)
