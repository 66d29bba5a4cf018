"""The loss of tokens and the divergence of distributions, whole and in chunks of rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, kl_div

import lightning_modules.nll
from lightning_modules.nll import IGNORED, token_divergence, token_nll


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(chunk=st.integers(1, 200), batch=st.integers(1, 3), length=st.integers(2, 9))
def test_chunks_change_no_bit_of_the_loss(dtype, chunk, batch, length):
    logits, labels = drawn(batch, length, 11, dtype=dtype), torch.arange(batch * length).view(batch, length) % 11
    labels[:, length // 2] = IGNORED
    targets = labels[:, 1:].flatten()
    expected = cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets, reduction="none", ignore_index=IGNORED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lightning_modules.nll, "CHUNK_LOGITS", chunk)
        assert torch.equal(token_nll(logits, labels), expected.view(batch, length - 1))


@given(chunk=st.integers(1, 100), tokens=st.integers(1, 9))
def test_chunks_change_no_bit_of_the_divergence(chunk, tokens):
    logits, own = drawn(tokens, 7), drawn(tokens, 7, seed=1)
    expected = kl_div(logits.log_softmax(-1), own.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lightning_modules.nll, "CHUNK_LOGITS", chunk)
        assert torch.equal(token_divergence(logits, own), expected)
    assert token_divergence(own, own).abs().max() == 0
    assert expected.min() >= -1e-6


def test_the_gradient_of_the_loss_is_that_of_all_rows_at_once(monkeypatch):
    monkeypatch.setattr(lightning_modules.nll, "CHUNK_LOGITS", 5)
    logits, labels = drawn(2, 6, 11).requires_grad_(), torch.arange(12).view(2, 6) % 11
    token_nll(logits, labels).sum().backward()
    (expected,) = torch.autograd.grad(
        cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"), logits
    )
    assert torch.equal(logits.grad, expected)
