import math

import pytest
import torch

from lightning_modules.causal_lm import NonFiniteLoss
from lightning_modules.surgery.trained_parameters import attention_parameters
from lightning_modules.training.trainer import evaluate, fit
from registries import ATTENTION, UserError
from tests.rules import disturb_cores, logits

SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.0, "schedule": "constant", "warmup_steps": 0}


@pytest.fixture
def train(trainer_options, loader, blocks, tmp_path):
    """Fit a stage on the blocks, round and round."""

    def train(module, stage, name="next_token"):
        module.begin(name, stage)
        batches = loader(blocks, stage.batch_size, stage.steps)
        return fit(module, batches, loader(blocks), trainer_options, tmp_path / name)

    return train


def weights(module):
    return {name: parameter.detach().clone() for name, parameter in module.model.named_parameters()}


def changed(module, before):
    return {name for name, parameter in module.model.named_parameters() if not parameter.equal(before[name])}


# What trains


@pytest.mark.pairwise
@pytest.mark.parametrize("stage", ["transfer", "next_token"])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"])
@pytest.mark.parametrize("replacement", ATTENTION.names())
def test_exactly_what_should_train_does(replacement, family, stage, make_module, make_stage, train):
    module = make_module(replacement, family, layers=[1], init="random", optimizer={"name": "adamw"})
    disturb_cores(module.model)
    before, expected = weights(module), set(attention_parameters(module.model, [1]))
    train(module, make_stage(module, stage), stage)
    assert set(module.trained_parameters()) == expected
    assert changed(module, before) == expected


def test_everything_can_train(make_module, make_stage, train):
    module = make_module("toroidal")
    before = weights(module)
    train(module, make_stage(module, "next_token", train="model"))
    assert changed(module, before) == set(before)


def test_a_second_stage_freezes_what_the_first_trained(make_module, make_stage):
    module = make_module("toroidal", layers=[1])
    module.begin("next_token", make_stage(module, "next_token", train="model"))
    module.begin("transfer", make_stage(module, "transfer"))
    assert set(module.trained_parameters()) == set(attention_parameters(module.model, [1]))


def test_a_stage_with_nothing_to_train_is_an_error(make_module, make_stage):
    module = make_module()
    with pytest.raises(UserError, match="stage 'next_token' has nothing to train"):
        module.begin("next_token", make_stage(module, "next_token"))


@pytest.mark.parametrize("which", ["replaced", "model"])
def test_the_original_stays_what_it_was(which, make_module, make_stage, train, blocks):
    module = make_module("toroidal", init="random")
    before = logits(make_module().model, blocks)
    assert logits(module.original, blocks).equal(before)
    train(module, make_stage(module, "next_token", train=which))
    assert logits(module.original, blocks).equal(before)
    shared = set(module.model.parameters()) & set(module.original.parameters())
    assert shared.isdisjoint(module.trained_parameters().values())
    assert bool(shared) == (which == "replaced")  # what is frozen takes no memory twice


def test_dropout_acts_in_what_trains_only(make_module, make_stage, train):
    module = make_module("toroidal", "gpt2", layers=[1], options={"dropout": 0.1})
    modes = {}

    def note(*_):
        if not modes:
            modes.update({name: part.training for name, part in module.model.named_modules()})

    module.model.transformer.h[1].register_forward_pre_hook(note)
    train(module, make_stage(module, "next_token"))
    on = {name for name, training in modes.items() if training}
    assert "transformer.h.1.attn" in on
    assert "transformer.h.1.attn.core" in on
    assert all(name.startswith("transformer.h.1.attn") for name in on)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_gives_the_same_weights_with_dropout(seed, make_module, make_stage, train):
    """Whatever state the generator was in before."""
    trained = []
    for disturbance in range(2):
        module = make_module("toroidal", options={"dropout": 0.3}, seed=seed)
        torch.manual_seed(disturbance)
        train(module, make_stage(module, "next_token"))
        trained.append(weights(module))
    assert all(trained[0][name].equal(trained[1][name]) for name in trained[0])
    module = make_module("toroidal", options={"dropout": 0.3}, seed=seed + 10)
    train(module, make_stage(module, "next_token"))
    assert changed(module, trained[0])


# A step


@pytest.mark.parametrize("pass_size", [1, 3, 4, 5])
def test_a_step_in_several_passes_is_one_step(pass_size, make_module, make_stage, train):
    """Also where the last pass is smaller: tokens count, not passes."""
    results = []
    for size in (pass_size, 12):
        module = make_module("toroidal", options={"lambda_distance": 1.0}, optimizer=SGD)
        train(module, make_stage(module, "next_token", pass_size=size, steps=1, batch_size=12))
        results.append(weights(module))
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-4, atol=1e-6)
    assert changed(make_module("toroidal", options={"lambda_distance": 1.0}), results[0])


def test_a_step_follows_the_gradient_of_the_mean_loss(make_module, make_stage, train, blocks):
    module = make_module("toroidal", optimizer=SGD)
    before = weights(module)
    stage = make_stage(module, "next_token", pass_size=2, steps=1)
    module.begin("next_token", stage)
    stage.start(module.model)
    nll, count, _ = stage.loss(module.model, {"input_ids": blocks[:4]})
    names = list(module.trained_parameters())
    gradients = torch.autograd.grad(nll / count, list(module.trained_parameters().values()))
    train(module, stage)
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(
            module.model.get_parameter(name), before[name] - 0.05 * gradient, rtol=1e-4, atol=1e-7
        )


@pytest.mark.parametrize("limit", [0.01, None, 1e6])
def test_gradients_are_clipped_to_their_norm(limit, make_module, make_stage, train):
    module = make_module("toroidal", optimizer=SGD, gradient_clip_val=limit)
    before = weights(module)
    train(module, make_stage(module, "next_token", steps=1))
    moved = torch.stack([(p - before[name]).norm() for name, p in module.model.named_parameters()]).norm().item() / 0.05
    if limit == 0.01:
        assert moved == pytest.approx(0.01, rel=1e-3)
    else:
        assert moved > 0.1


def test_gradients_do_not_add_up_over_steps(make_module, make_stage, train, blocks):
    """With a learning rate of nearly zero every step has the same gradient, and moves by the same amount."""
    moved = []
    for steps in (1, 3):
        module = make_module("toroidal", optimizer=SGD)
        before = weights(module)
        train(module, make_stage(module, "next_token", 12, steps=steps, batch_size=12, lr=1e-3))
        name = "model.layers.1.self_attn.o_proj.weight"
        moved.append((module.model.get_parameter(name) - before[name]).norm().item())
    assert moved[1] / moved[0] == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize(
    ("options", "steps", "expected"),
    [
        ({"schedule": "constant", "warmup_steps": 2}, 4, [0.5, 1, 1, 1]),
        ({"schedule": "linear", "warmup_steps": 0}, 4, [1, 0.75, 0.5, 0.25]),
        ({"schedule": "cosine", "warmup_steps": None}, 3, [1, 1, 0.5]),
        ({"schedule": "constant", "warmup_steps": None}, 40, [0.5, 1] + 38 * [1]),
        ({"schedule": "constant", "warmup_steps": 0, "scale_lr": "sqrt", "base_batch_size": 1}, 2, [2, 2]),
        ({"schedule": "constant", "warmup_steps": 0, "scale_lr": "linear", "base_batch_size": 2}, 2, [2, 2]),
    ],
)
def test_the_learning_rate_of_each_step(options, steps, expected, make_module, make_stage, train):
    module = make_module("standard", optimizer={"name": "sgd", **options})
    seen, log = [], module.log
    module.log = lambda name, value, **kwargs: (
        seen.append(value) if name == "train/lr" else None,
        log(name, value, **kwargs),
    )
    train(module, make_stage(module, "next_token", steps=steps, lr=0.01))
    assert seen == pytest.approx([0.01 * factor for factor in expected])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_no_number_ends_training_before_the_step(value, make_module, make_stage, train):
    module = make_module("toroidal")
    torch.nn.init.constant_(module.model.lm_head.weight, value)
    before = weights(module)
    with pytest.raises(NonFiniteLoss, match="the loss of stage 'next_token' is (nan|inf) at step 0"):
        train(module, make_stage(module, "next_token"))
    assert changed(module, before) <= {"lm_head.weight"}  # NaN is not equal to itself


# Scores


def expected_loss(module, blocks, positions=slice(None)):
    probabilities = logits(module.model, blocks)[:, :-1].double().log_softmax(-1)
    return -probabilities.gather(2, blocks[:, 1:, None])[:, positions].mean().item()


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_the_score_does_not_depend_on_the_batch_size(batch_size, make_module, loader, blocks, trainer_options):
    module = make_module("toroidal")
    scores = evaluate(module, loader(blocks, batch_size), trainer_options)
    assert scores["loss"] == pytest.approx(expected_loss(module, blocks), rel=1e-6)
    assert scores["ppl"] == pytest.approx(math.exp(scores["loss"]), rel=1e-9)
    assert scores["seconds"] > 0
    assert scores["tokens_per_s"] > 0


def test_a_second_score_starts_anew(make_module, loader, blocks, trainer_options):
    module = make_module()
    evaluate(module, loader(blocks[:4]), trainer_options)
    scores = evaluate(module, loader(blocks[4:]), trainer_options)
    assert scores["loss"] == pytest.approx(expected_loss(module, blocks[4:]), rel=1e-6)


def test_bits_per_byte_and_groups_of_positions(make_module, loader, blocks, trainer_options):
    module = make_module()
    sizes = torch.randint(1, 5, (512,))
    module.measure(sizes, {"first": slice(0, 4), "rest": slice(4, None)})
    scores = evaluate(module, loader(blocks, 5), trainer_options)
    nats = scores["loss"] * blocks[:, 1:].numel()
    assert scores["bpb"] == pytest.approx(nats / math.log(2) / sizes[blocks[:, 1:]].sum().item(), rel=1e-6)
    assert scores["loss_first"] == pytest.approx(expected_loss(module, blocks, slice(0, 4)), rel=1e-6)
    assert scores["loss_rest"] == pytest.approx(expected_loss(module, blocks, slice(4, None)), rel=1e-6)


def test_labels_and_padding_of_a_batch(make_module, blocks, trainer_options):
    """Right padding that is masked and not scored: as if the rows were shorter."""
    module = make_module("toroidal")
    labels, mask = blocks.clone(), torch.ones_like(blocks)
    labels[:, 10:], mask[:, 10:] = -100, 0
    batch = [{"input_ids": blocks, "labels": labels, "attention_mask": mask}]
    scores = evaluate(module, torch.utils.data.DataLoader(batch, batch_size=None), trainer_options)
    assert scores["loss"] == pytest.approx(expected_loss(module, blocks[:, :10]), rel=1e-5)


@pytest.mark.parametrize("objective", ["next_token", "kl"])
def test_padding_that_a_mask_alone_tells_is_neither_scored_nor_learned(
    objective, make_module, make_stage, blocks, trainer_options
):
    module, mask = make_module("toroidal"), torch.ones_like(blocks)
    mask[:6, 10:] = mask[6:, 13:] = 0
    batch = {"input_ids": blocks, "attention_mask": mask}
    real = blocks[:6, :10], blocks[6:, :13]
    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    losses = [expected_loss(module, rows) * rows[:, 1:].numel() for rows in real]
    tokens = sum(rows[:, 1:].numel() for rows in real)
    assert evaluate(module, loader, trainer_options)["loss"] == pytest.approx(sum(losses) / tokens, rel=1e-5)
    stage = make_stage(module, objective)
    module.begin(objective, stage)
    stage.start(module.model)
    whole, parts = stage.loss(module.model, batch), [stage.loss(module.model, {"input_ids": rows}) for rows in real]
    assert whole.count == sum(part.count for part in parts) == tokens
    assert whole.total.item() == pytest.approx(sum(part.total.item() for part in parts), rel=1e-4)
    if objective == "next_token":
        assert whole.total.item() == pytest.approx(sum(losses), rel=1e-5)


@pytest.mark.parametrize("replacement", [None, "toroidal"])
def test_what_a_mask_leaves_out_is_not_seen(replacement, make_module, blocks):
    module, mask = make_module(replacement), torch.ones_like(blocks)
    mask[:, :6] = 0
    other = blocks.clone()
    other[:, :6] = 7
    with torch.no_grad():
        found, expected = (module.logits({"input_ids": rows, "attention_mask": mask}) for rows in (other, blocks))
    torch.testing.assert_close(found[:, 6:], expected[:, 6:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_left_padding_is_scored_as_right_padding(family, make_module, blocks, trainer_options):
    module, losses = make_module(family=family), []
    for side in ("left", "right"):
        rows, mask = torch.full_like(blocks, 7), torch.zeros_like(blocks)
        place = slice(6, None) if side == "left" else slice(0, -6)
        rows[:, place], mask[:, place] = blocks[:, 6:], 1
        loader = torch.utils.data.DataLoader([{"input_ids": rows, "attention_mask": mask}], batch_size=None)
        losses.append(evaluate(module, loader, trainer_options)["loss"])
    assert losses == pytest.approx([expected_loss(module, blocks[:, 6:])] * 2, rel=1e-5)


def test_dropout_does_not_act_in_a_score(make_module, loader, blocks, trainer_options):
    module = make_module("toroidal", options={"dropout": 0.5})
    assert evaluate(module, loader(blocks), trainer_options)["loss"] == pytest.approx(expected_loss(module, blocks))
