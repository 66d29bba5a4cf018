import copy

import pytest
import torch

from registries.models.context_lm import LARGEST, ContextVector

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


@pytest.mark.parametrize("update", ["gated", "additive", "overwrite"])
def test_steps_of_their_own_are_those_of_the_layers(update):
    """LoRA on a layer is left out of nothing."""
    torch.manual_seed(0)
    model, embeddings = ContextVector(update=update, num_layers=3, **SIZES).double(), torch.randn(2, 7, 6).double()
    expected = model(embeddings)
    for name in ("read", "change", "layers.1"):
        wrapped = copy.deepcopy(model)
        layer = wrapped.get_submodule(name)
        wrapped.set_submodule(name, torch.nn.Sequential(layer))  # which is no linear layer any more
        assert wrapped(embeddings).hidden.allclose(expected.hidden)
        layer.weight.data *= 2
        assert not wrapped(embeddings).hidden.allclose(expected.hidden)
