import pytest
import torch

from registries.models.context_lm import ContextVector
from registries.models.context_steps import LARGEST


@pytest.mark.pairwise
@pytest.mark.parametrize("saturated", [False, True])
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("update", ["gated", "additive", "overwrite"])
def test_gradients_are_those_of_finite_differences(update, num_layers, residual, norm, dropout, begun, saturated):
    torch.manual_seed(0)
    options = {"update": update, "num_layers": num_layers, "residual": residual, "norm": norm, "dropout": dropout}
    model = ContextVector(embed_dim=3, context_dim=4, hidden_dim=5, **options).double().train()
    if saturated:
        model.context_norm.weight.data.fill_(9.0)
    starts = torch.tensor([[False, False, True, False], [False, True, False, True]]) if begun else None

    def read(embeddings, context, *parameters):
        torch.manual_seed(1)  # the same is dropped
        output = model(embeddings, (context,), starts)
        assert ((output.state[0].abs() == LARGEST).any() and saturated) or not saturated
        return output.hidden, output.state[0], *([output.auxiliary_loss] if update == "overwrite" else [])

    inputs = [torch.randn(2, 4, 3), torch.randn(2, 4)]
    inputs = [part.double().requires_grad_() for part in inputs]
    assert torch.autograd.gradcheck(read, (*inputs, *model.parameters()), eps=1e-7, atol=1e-5)


def test_the_same_seed_drops_the_same():
    model, embeddings = ContextVector(embed_dim=3, context_dim=4, hidden_dim=5, dropout=0.5), torch.randn(2, 6, 3)
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(model(embeddings).hidden)
    assert outputs[0].equal(outputs[1])
    assert not outputs[0].equal(outputs[2])
    assert model.eval()(embeddings).hidden.equal(model(embeddings).hidden)


def test_two_passes_at_once_do_not_share_a_tape():
    """The second forward pass comes before the first one's backward pass, and a third after all."""
    torch.manual_seed(0)
    model = ContextVector(embed_dim=3, context_dim=4, hidden_dim=5, dropout=0.0)
    texts = [torch.randn(2, 6, 3) for _ in range(3)]

    def gradient(loss):
        return torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)

    alone = [gradient(model(text).hidden.square().sum()) for text in texts]
    first, second = (model(text).hidden.square().sum() for text in texts[:2])
    together = [gradient(first), gradient(second)]
    model(texts[2]).hidden.square().sum()
    again = gradient(first)
    for own, other in zip([*together, again], [*alone[:2], alone[0]], strict=True):
        assert all(one.equal(two) for one, two in zip(own, other, strict=True))
