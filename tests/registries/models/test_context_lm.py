import pytest
import torch

from registries.models.context_lm import LARGEST, ContextVector, linear_scan

SIZES = {"embed_dim": 6, "context_dim": 5, "hidden_dim": 7, "dropout": 0.0}


def test_the_gated_update_is_the_one_of_the_documents():
    torch.manual_seed(0)
    model, embeddings = ContextVector(num_layers=2, **SIZES), torch.randn(1, 4, 6)
    parts = list(zip(model.change.weight.chunk(3), model.change.bias.chunk(3), strict=True))
    context, hidden = torch.zeros(1, 5), []
    for step in range(4):
        state = torch.cat([embeddings[:, step], context], -1)
        state = torch.relu(state @ model.read.weight.T + model.read.bias)
        state = torch.relu(state @ model.layers[0].weight.T + model.layers[0].bias)
        hidden.append(state)
        new, keep, add = (state @ weight.T + bias for weight, bias in parts)
        context = model.context_norm(keep.sigmoid() * context + add.sigmoid() * new).clamp(-10, 10)
    output = model(embeddings)
    assert output.hidden.allclose(torch.stack(hidden, 1), atol=1e-6)
    assert output.state[0].allclose(context, atol=1e-6)


def test_a_context_stays_within_bounds():
    model = ContextVector(**SIZES)
    model.context_norm.weight.data.fill_(100.0)
    (context,) = model(torch.randn(2, 3, 6)).state
    assert context.abs().max() == LARGEST


def test_only_overwrite_has_a_loss_of_its_own_and_only_in_training():
    for update in ("gated", "additive", "linear", "overwrite"):
        model = ContextVector(update=update, **SIZES)
        embeddings = torch.randn(2, 3, model.input_dim)
        loss = model.train()(embeddings).auxiliary_loss
        assert (loss is not None) == (update == "overwrite")
        assert model.eval()(embeddings).auxiliary_loss is None
    assert loss.shape == (2, 3)


def test_the_loss_of_overwrite_falls_when_it_is_trained_for():
    torch.manual_seed(0)
    model, embeddings = ContextVector(update="overwrite", **SIZES), torch.randn(2, 5, 6)
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(30):
        loss = model(embeddings).auxiliary_loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("length", [1, 2, 17])
def test_the_scan_has_the_gradients_of_a_loop(length):
    generator = torch.Generator().manual_seed(length)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    keep, add, first = drawn(2, length, 3), drawn(2, length, 3), drawn(2, 3)
    state, states = first, []
    for step in range(length):
        state = keep[:, step] * state + add[:, step]
        states.append(state)
    expected, scanned = torch.stack(states, 1), linear_scan(keep, add, first)
    assert scanned.allclose(expected)
    weights = torch.randn(2, length, 3, generator=generator, dtype=torch.float64)
    for gradient, own in zip(
        torch.autograd.grad(scanned, (keep, add, first), weights),
        torch.autograd.grad(expected, (keep, add, first), weights),
        strict=True,
    ):
        assert gradient.allclose(own)
