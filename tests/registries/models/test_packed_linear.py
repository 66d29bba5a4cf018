import pytest
import torch

from registries.models import packed_linear
from registries.models.packed_linear import LEAST_ROWS, PackedLinear, linear_relu


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


@pytest.mark.parametrize("rows", [3, LEAST_ROWS])
def test_a_layer_with_relu_has_its_gradients(rows):
    layer, inputs = torch.nn.Linear(5, 7), torch.randn(2, rows, 5, requires_grad=True)
    gradient = torch.randn(2, rows, 7)
    outputs, expected = linear_relu(layer, inputs), layer(inputs).relu()
    assert outputs.allclose(expected, atol=1e-6)
    parameters = [inputs, *layer.parameters()]
    for own, other in zip(
        torch.autograd.grad(outputs, parameters, gradient),
        torch.autograd.grad(expected, parameters, gradient),
        strict=True,
    ):
        assert own.allclose(other, atol=1e-4)


def test_what_is_no_plain_layer_is_called():
    layer, inputs = torch.nn.Sequential(torch.nn.Linear(5, 7)), torch.randn(LEAST_ROWS, 5)
    assert linear_relu(layer, inputs).equal(layer(inputs).relu())
