"""What the target makes of a continuation after every form of its context, and what it may know of the continuation."""

from typing import get_args

import pytest
import torch
from torch import nn

import train
from lightning_modules import build_module
from lightning_modules.soft_tokens.compression import COMPRESSOR, CompressionTraining, ContinuationModule, Form
from registries import COMPRESSORS
from tests.rules import logits

CONTEXT, TOKENS, LENGTH = 20, 4, 32

each_form = pytest.mark.parametrize("form", ["soft", *get_args(Form)])


@pytest.fixture
def make(small):
    """A target that reads bytes and a source that reads words; in the target all weights matter."""

    def make(compressor="pooling"):
        lines = ["model@source=tiny_phi", f"dataset.block_size={LENGTH}", f"compressor.context={CONTEXT}"]
        cfg = train.compose(small(f"compressor={compressor}", *lines, f"compressor.tokens={TOKENS}"))
        module = build_module(cfg)
        torch.manual_seed(0)
        for name, parameter in module.model.named_parameters():
            if parameter.dim() > 1 and not name.startswith(f"{COMPRESSOR}."):
                nn.init.normal_(parameter, std=0.2)
        return module.eval()

    return make


def in_form(module, form):
    """The module itself for soft tokens, else a module of the same target that gets the context in this form."""
    return module if form == "soft" else ContinuationModule(module, CONTEXT, TOKENS, form)


def text_blocks(module, count=2):
    """(count, LENGTH) tokens of English, each block of other sentences."""
    text = " ".join(f"the file number {index} of the class is read by the function" for index in range(20))
    return torch.tensor(module.tokenizer(text)["input_ids"][: count * LENGTH]).view(count, LENGTH)


@each_form
def test_a_token_of_the_continuation_changes_nothing_before_it(make, form):
    """The source reads the context alone: what it has read reaches every token of the continuation."""
    module = in_form(make(), form)
    blocks = text_blocks(module)
    with torch.no_grad():
        before = module.continuation_logits(blocks)
        assert before.shape[:2] == (2, LENGTH - CONTEXT)
        for place in (0, 5, LENGTH - CONTEXT - 1):
            changed = blocks.clone()
            changed[:, CONTEXT + place] = module.tokenizer("z")["input_ids"][0]
            after = module.continuation_logits(changed)
            assert after[:, :place].equal(before[:, :place])
            assert not after[:, place].allclose(before[:, place])


@pytest.mark.parametrize("compressor", COMPRESSORS.names())
def test_soft_tokens_tell_of_the_context_and_of_nothing_else(make, compressor):
    module = make(compressor)
    blocks, others = text_blocks(module), text_blocks(module).roll(1, 0)
    with torch.no_grad():
        before = module.continuation_logits(blocks)
        again = module.continuation_logits(torch.cat([blocks[:, :CONTEXT], others[:, CONTEXT:]], 1))
        elsewhere = module.continuation_logits(torch.cat([others[:, :CONTEXT], blocks[:, CONTEXT:]], 1))
        own = module.continuation_logits(others)
    torch.testing.assert_close(elsewhere[0], again[1], rtol=1e-5, atol=1e-5)  # the same two halves
    torch.testing.assert_close(own.flip(0), before, rtol=1e-5, atol=1e-5)  # whatever stands in the other row
    assert not elsewhere.allclose(before, atol=1e-4)


def test_each_form_shows_what_it_says(make):
    """The text is the block itself, the truncated text as many of its last tokens as there are soft tokens."""
    module = make()
    blocks = text_blocks(module)
    shown = {"text": blocks, "truncated": blocks[:, CONTEXT - TOKENS :], "nothing": blocks[:, CONTEXT:]}
    for form, read in shown.items():
        with torch.no_grad():
            found = in_form(module, form).continuation_logits(blocks)
        expected = logits(module.model, read)[:, -(LENGTH - CONTEXT) :]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_soft_tokens_stand_where_the_truncated_text_would(make):
    """With the embeddings of the last tokens for soft ones, both forms are the same to the target."""
    module = make()
    blocks, embed = text_blocks(module), module.model.get_input_embeddings()
    last = embed(blocks[:, CONTEXT - TOKENS : CONTEXT]).detach()
    module.model.get_submodule(COMPRESSOR).forward = lambda states, mask: last
    found = {}
    for form in ("soft", "truncated"):
        with torch.no_grad():
            found[form] = in_form(module, form).continuation_logits(blocks)
    torch.testing.assert_close(found["soft"], found["truncated"], rtol=1e-5, atol=1e-5)


@each_form
def test_only_the_continuation_is_scored_without_its_first_token(make, form):
    """Every form on the same tokens."""
    module = in_form(make(), form)
    blocks = text_blocks(module)
    with torch.no_grad():
        probabilities = module.continuation_logits(blocks).double().log_softmax(-1)
    targets = blocks[:, CONTEXT + 1 :]
    expected = -probabilities[:, :-1].gather(2, targets[..., None]).sum().item()
    module.on_validation_epoch_start()
    with torch.no_grad():
        module.validation_step({"input_ids": blocks, "documents": torch.zeros_like(blocks)}, 0)
    assert module.scores["all"].tokens.item() == targets.numel()
    assert module.scores["all"].nll.item() == pytest.approx(expected, rel=1e-6)
    assert module.documents.compute() == [(pytest.approx(expected, rel=1e-6), targets.numel())]


def test_the_encoder_learns_the_loss_that_is_scored(make):
    module = make()
    blocks = text_blocks(module)
    stage = CompressionTraining(workspace=None, steps=1, lr=1e-3, batch_size=2, module=module)
    loss = stage.loss(module.model, {"input_ids": blocks})
    module.on_validation_epoch_start()
    with torch.no_grad():
        module.validation_step({"input_ids": blocks}, 0)
    assert (loss.total / loss.count).item() == pytest.approx(module.scores["all"].compute()["loss"], rel=1e-5)
