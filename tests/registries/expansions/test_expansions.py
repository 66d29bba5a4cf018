"""Every expansion computes at first what the model computed before, keeps its numbers, and has something to learn."""

import pytest
import torch
from torch import nn

from lightning_modules.surgery.expanded_model import expand
from lightning_modules.surgery.frozen_numbers import FrozenNumbers
from registries import EXPANSIONS, UserError
from registries.models.recurrent_loader import RecurrentLoader
from registries.settings import ExpansionSettings
from tests.rules import MODELS_UNDER_TEST, language_model

UPDATES = ("gated", "additive", "overwrite", "linear")
CONTEXT = {"num_layers": 2, "context_dim": 6, "hidden_dim": 20, "embed_dim": 8, "dropout": 0.0}
KINDS_OF_BLOCKS = ("gpt2", "phi", "llama", "gemma3")  # the other families are built as one of these
TOKENS = torch.randint(64, (4, 24), generator=torch.Generator().manual_seed(1))


def trained(model):
    """The model with weights as training leaves them: no two alike, none 0."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def context_model(update, **options):
    return trained(RecurrentLoader("context_lm", {**CONTEXT, "update": update, **options}, 64).model(torch.float32))


def settings(name, mode="freeze", **arguments):
    return ExpansionSettings(name=name, run=None, mode=mode, arguments=arguments)


def cases():
    for update in UPDATES:
        for times in (2, 4):
            yield pytest.param(
                lambda update=update: context_model(update, residual=True, norm=True),
                settings("context", context_dim=times * CONTEXT["context_dim"]),
                id=f"context {update} {times}",
            )
    for family in MODELS_UNDER_TEST:
        for arguments in ({}, {"layers": [1], "copies": 2}):
            yield pytest.param(
                lambda family=family: trained(language_model(family)),
                settings("blocks", **arguments),
                id=f"blocks {family} {arguments}",
                marks=() if family in KINDS_OF_BLOCKS else pytest.mark.full_product,
            )


every_case = pytest.mark.parametrize(("make", "chosen"), list(cases()))


def training_step(model, optimizer):
    optimizer.zero_grad()
    output = model(input_ids=TOKENS)
    loss = nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    if getattr(output, "auxiliary_loss", None) is not None:
        loss = loss + output.auxiliary_loss.mean()
    loss.backward()
    return loss.item()


@every_case
def test_the_larger_model_gives_the_same_logits(make, chosen):
    short = TOKENS[:, :4]  # the steps of a random model with few numbers blow up rounding
    for dtype, tokens, allowed in ((torch.float32, short, 1e-5), (torch.float64, TOKENS, 1e-9)):
        model = make().to(dtype)
        larger, expanded = expand(model, chosen)
        assert expanded.keeps_function
        assert sum(map(torch.numel, larger.parameters())) > sum(map(torch.numel, model.parameters()))
        with torch.no_grad():
            assert (larger(tokens).logits - model(tokens).logits).abs().max() <= allowed


@every_case
def test_the_frozen_numbers_are_those_of_the_model_and_stay(make, chosen):
    model = make()
    larger, expanded = expand(model, chosen)
    counts = {name: int(mask.sum()) for name, mask in expanded.frozen.items()}
    assert sum(counts.values()) == sum(map(torch.numel, model.parameters()))
    before = {name: parameter.detach().clone() for name, parameter in larger.named_parameters()}
    parameters = {name: parameter.requires_grad_() for name, parameter in expanded.trained(larger).items()}
    frozen = FrozenNumbers({parameters[name]: expanded.frozen[name] for name in parameters})
    optimizer = torch.optim.AdamW(parameters.values(), 1e-2, weight_decay=0.5)
    larger.train()
    for _ in range(3):
        training_step(larger, optimizer)
        frozen.clear_gradients()
        optimizer.step()
        frozen.put_back()
    for name, parameter in larger.named_parameters():
        mask = expanded.frozen[name]
        assert parameter[mask].equal(before[name][mask]), name
        assert bool((parameter[~mask] != before[name][~mask]).any()) == bool((~mask).any()), name


@pytest.mark.parametrize("times", [2, 4])
@pytest.mark.parametrize("update", UPDATES)
def test_the_new_numbers_of_a_context_become_different(update, times):
    """After one step, what computes them has a gradient of full rank."""
    model = context_model(update, hidden_dim=80)
    larger, _ = expand(model, settings("context", "finetune", context_dim=times * CONTEXT["context_dim"]))
    larger.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(larger.parameters(), 1e-2)
    training_step(larger, optimizer)
    optimizer.step()
    training_step(larger, optimizer)
    old, new = CONTEXT["context_dim"], (times - 1) * CONTEXT["context_dim"]
    if update == "linear":
        gradient = larger.model.embed_tokens.weight.grad[:, CONTEXT["embed_dim"] + old :][:, :new]
    else:
        gradient = larger.model.recurrence.change.weight.grad[old : old + new]
    assert torch.linalg.matrix_rank(gradient.double()) == new


@pytest.mark.parametrize("context_dim", [3, 6, 9])
def test_a_context_grows_by_whole_copies(context_dim):
    with pytest.raises(UserError, match="no multiple of the 6"):
        expand(context_model("gated"), settings("context", context_dim=context_dim))


def test_what_has_no_context_or_no_blocks_is_refused():
    with pytest.raises(UserError, match="expansion=blocks"):
        expand(language_model("llama"), settings("context"))
    with pytest.raises(UserError, match="no attention"):
        expand(context_model("gated"), settings("blocks"))
    with pytest.raises(UserError, match="layer"):
        expand(language_model("llama"), settings("blocks", layers=[7]))


def test_original_is_the_model_and_scratch_the_larger_one_from_random_weights():
    model = context_model("gated")
    same, _ = expand(model, settings("context", "original", context_dim=12))
    assert same is model
    scratch, expanded = expand(model, settings("context", "scratch", context_dim=12))
    assert scratch.config.arguments["context_dim"] == 12
    assert not expanded.keeps_function and not expanded.frozen
    assert not scratch.lm_head.weight.equal(model.lm_head.weight)


def test_every_registered_expansion_is_among_the_cases():
    assert {case.values[1].name for case in cases()} == set(EXPANSIONS)
