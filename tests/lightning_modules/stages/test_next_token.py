import pytest
import torch

from lightning_modules.stages.next_token import NextToken
from tests.rules import language_model, logits, tokens


def test_the_loss_is_the_sum_over_all_but_the_first_token():
    model = language_model("llama")
    text = tokens(model, 3, 10)
    stage = NextToken(lambda model: {}, steps=1, blocks_per_step=3, blocks_per_pass=3, lr=1.0)
    loss, count = stage.loss(model, text)
    probabilities = logits(model, text).double().log_softmax(-1)
    expected = -sum(probabilities[row, t, text[row, t + 1]].item() for row in range(3) for t in range(9))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert count == 27


def test_what_trains_is_selected_by_the_caller():
    model = language_model("llama")
    stage = NextToken(lambda model: {"lm_head.weight": model.lm_head.weight}, 1, 1, 1, 1.0)
    assert list(stage.parameters(model)) == ["lm_head.weight"]
    assert torch.is_tensor(stage.parameters(model)["lm_head.weight"])
