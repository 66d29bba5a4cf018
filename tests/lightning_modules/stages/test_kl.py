import pytest
import torch

from lightning_modules.stages.stage import blocks_per_pass
from lightning_modules.surgery.trained_parameters import attention_parameters
from registries.models.random import byte_tokenizer
from tests.rules import disturb_cores, language_model, logits, tokens

FAMILIES = ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"]
each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def begin(make_module, make_stage):
    """A model with a toroidal layer, and the stage that has begun to train it."""

    def begin(family="llama", layers=(1,), num_layers=2, dtype=torch.float32, chunk=None, options=None, **keys):
        module = make_module("toroidal", family, layers, dtype=dtype, options=options, num_layers=num_layers)
        disturb_cores(module.model)
        stage = make_stage(module, "kl", loss_chunk_size=chunk, **keys)
        module.begin("kl", stage)
        stage.start(module.model)
        return module.model, stage

    return begin


def kl(ours, theirs, temperature=1.0):
    """In float64, from probabilities."""
    p, q = (theirs.double() / temperature).softmax(-1), (ours.double() / temperature).softmax(-1)
    return (p * (p / q).log()).sum(-1)[:, :-1].sum().item() * temperature**2


def learn(model, stage, text, steps=15, lr=1e-2):
    optimizer = torch.optim.AdamW(stage.parameters(model).values(), lr=lr)
    losses = []
    for _ in range(steps):
        loss, count, _ = stage.loss(model, {"input_ids": text})
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.each_value
@each_family
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("chunk", [None, 5])
def test_the_loss_is_the_divergence_from_the_untouched_model(chunk, temperature, family, begin):
    model, stage = begin(family, chunk=chunk, temperature=temperature)
    text = tokens(model, 3, 12)
    expected = kl(logits(model, text), logits(language_model(family), text), temperature)
    for _ in range(2):
        loss, count, parts = stage.loss(model, {"input_ids": text})
        assert loss.item() == pytest.approx(expected, rel=1e-4)
        assert (count, parts) == (33, {})
    assert expected > 0.1


def test_a_model_that_keeps_its_function_has_no_loss(begin):
    model, stage = begin(options={"depth": 1, "lambda_distance": 0.0, "fusion_mode": "identity"})
    assert abs(stage.loss(model, {"input_ids": tokens(model, 3, 12)})[0].item()) < 1e-3


def test_the_temperature_has_an_effect(begin):
    losses = set()
    for temperature in (0.5, 1.0, 4.0):
        model, stage = begin(temperature=temperature)
        losses.add(round(stage.loss(model, {"input_ids": tokens(model, 3, 12)})[0].item(), 3))
    assert len(losses) == 3


@pytest.mark.parametrize("teacher_family", ["llama", "gpt2"])
def test_another_teacher(teacher_family, begin, tmp_path):
    other = language_model(teacher_family, seed=3, hidden_size=32)
    other.save_pretrained(tmp_path / "teacher")
    byte_tokenizer().save_pretrained(tmp_path / "teacher")
    model, stage = begin(teacher=str(tmp_path / "teacher"))
    text = tokens(model, 3, 12)
    assert stage.loss(model, {"input_ids": text})[0].item() == pytest.approx(
        kl(logits(model, text), logits(other, text)), rel=1e-4
    )


# What trains


@each_family
@pytest.mark.parametrize("train", ["replaced", "model"])
def test_exactly_what_should_train_does(train, family, begin):
    model, stage = begin(family, train=train)
    everything = dict(model.named_parameters())
    expected = everything if train == "model" else attention_parameters(model, [1])
    assert stage.parameters(model) == expected
    stage.loss(model, {"input_ids": tokens(model, 2, 12)})[0].backward()
    assert {name for name, parameter in everything.items() if parameter.grad is not None} == set(expected)
    assert all(parameter.grad is None for parameter in stage.workspace.original.parameters())


@pytest.mark.each_value
@each_family
@pytest.mark.parametrize("train", ["replaced", "model"])
def test_it_learns_the_teachers_distributions(train, family, begin):
    model, stage = begin(family, train=train)
    losses = learn(model, stage, tokens(model, 4, 12), lr=1e-2 if train == "replaced" else 3e-3)
    assert losses[-1] < 0.7 * losses[0]


def test_the_teacher_stays_what_it_was_when_the_whole_model_trains(begin):
    model, stage = begin(train="model")
    text = tokens(model, 3, 12)
    learn(model, stage, text, steps=3)
    expected = kl(logits(model, text), logits(language_model("llama"), text))
    assert stage.loss(model, {"input_ids": text})[0].item() == pytest.approx(expected, rel=1e-4)
    new = text.flip(1)  # of which nothing is cached
    expected = kl(logits(model, new), logits(language_model("llama"), new))
    assert stage.loss(model, {"input_ids": new})[0].item() == pytest.approx(expected, rel=1e-4)


def test_it_works_in_a_bf16_model_with_fp32_masters(begin):
    model, stage = begin(dtype=torch.bfloat16)
    loss, *_ = stage.loss(model, {"input_ids": tokens(model, 2, 12)})
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in stage.parameters(model).values())


@pytest.mark.parametrize(("batch_size", "expected"), [(2, 2), (8, 4)])
def test_a_pass_is_no_larger_than_a_step(batch_size, expected, begin):
    _, stage = begin(batch_size=batch_size)
    assert blocks_per_pass(stage) == expected
