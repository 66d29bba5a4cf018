import pytest
import torch

from registries import ATTENTION
from registries.architectures import AttentionShape

SHAPE = AttentionShape(num_heads=4, num_kv_heads=2, head_width=16, rotary_width=16)


@pytest.fixture
def shape():
    return SHAPE


@pytest.fixture
def make_core():
    """A core by name, in evaluation mode, always the same for the same options."""

    def make(name, shape=SHAPE, **options):
        torch.manual_seed(0)
        return ATTENTION.build(name, shape=shape, **options).eval()

    return make


@pytest.fixture
def states():
    """Queries, keys and values of some positions, always the same."""

    def make(length, shape=SHAPE, batch=2):
        torch.manual_seed(1)
        query = torch.randn(batch, shape.num_heads, length, shape.head_width)
        key, value = (torch.randn(batch, shape.num_kv_heads, length, shape.head_width) for _ in range(2))
        return query, key, value

    return make
