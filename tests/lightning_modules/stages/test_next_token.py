import pytest

from tests.rules import logits, tokens


@pytest.mark.parametrize("chunk", [None, 4, 27, 1000])
def test_the_loss_is_the_sum_over_all_but_the_first_token(chunk, make_module, make_stage):
    module = make_module("toroidal")
    stage = make_stage(module, "next_token", loss_chunk_size=chunk)
    module.begin("next_token", stage)
    stage.start(module.model)
    text = tokens(module.model, 3, 10)
    loss, count, _ = stage.loss(module.model, {"input_ids": text})
    probabilities = logits(module.model, text).double().log_softmax(-1)
    expected = -sum(probabilities[row, t, text[row, t + 1]].item() for row in range(3) for t in range(9))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert count == 27


def test_what_it_trains(make_module, make_stage):
    module = make_module("toroidal", layers=[1])
    replaced = make_stage(module, "next_token").parameters(module.model)
    assert replaced and all(name.startswith("model.layers.1.self_attn.") for name in replaced)
    assert make_stage(module, "next_token", train="model").parameters(module.model) == dict(
        module.model.named_parameters()
    )
