"""Continuations of a prompt whose hidden states alone are known, against passes without any cache."""

import pytest
import torch

from data_modules.batches import ModelInput
from lightning_modules.hidden_states.injection import block_entry, injected
from lightning_modules.hidden_states.recorded_calls import record_calls
from lightning_modules.two_models.continuation import Continuation
from tests.rules import ALLOWED, difference, language_model, tokens

FAMILIES = ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3", "gemma3, sliding"]
LAYERS, PROMPT, NEW = 2, 9, 7


@torch.no_grad()
def without_cache(model, layer, states, new, first):
    """Logits after the prompt and after every new token, of one row; `states` (1, prompt, hidden)."""
    length = states.shape[1]
    shown = [] if first is None or layer == 0 else [first]
    text = torch.tensor([[*shown, *new]])
    places = torch.tensor([[*[0] * len(shown), *range(length, length + len(new))]])
    path, side = block_entry(model, layer)
    seen = {}

    def note(module, args, kwargs, output):
        given = args[0] if args else kwargs["hidden_states"]
        seen["states"] = given if side == "input" else output[0] if isinstance(output, tuple) else output

    hook = model.get_submodule(path).register_forward_hook(note, with_kwargs=True)
    # With a mask: without one, transformers takes a leap of the positions for the start of another text.
    model(input_ids=text, position_ids=places, attention_mask=torch.ones_like(text), use_cache=False)
    hook.remove()
    whole = torch.cat([states, seen["states"][:, len(shown) :]], 1)
    with injected(model, layer, whole):
        return model(input_ids=torch.zeros(whole.shape[:2], dtype=torch.long), use_cache=False).logits[0, length - 1 :]


@pytest.mark.each_value
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", range(LAYERS + 1))
@pytest.mark.parametrize("first", [None, 3])
def test_equals_passes_without_cache_with_prompts_of_different_lengths(family, layer, first):
    model = language_model(family, num_layers=LAYERS)
    width = model.config.hidden_size
    states = torch.randn(2, PROMPT, width, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, PROMPT, dtype=torch.long)
    mask[1, :4] = 0
    new = tokens(model, 2, NEW)
    with torch.no_grad():
        writer = Continuation(model, layer)
        found = [writer.begin(states, mask, first), *(writer.step(new[:, site, None]) for site in range(NEW))]
    found = torch.stack(found, 1)
    for row, padding in ((0, 0), (1, 4)):
        expected = without_cache(model, layer, states[row : row + 1, padding:], new[row].tolist(), first)
        assert difference(found[row], expected) <= ALLOWED


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_with_its_own_embeddings_a_model_continues_as_it_does_by_itself(family):
    model = language_model(family, num_layers=LAYERS)
    prompt = tokens(model, 1, PROMPT)
    path, _ = block_entry(model, 0)
    states = record_calls(model, [path], ModelInput(prompt))[path].input
    with torch.no_grad():
        writer, text = Continuation(model, 0), prompt
        token = writer.begin(states, torch.ones_like(prompt)).argmax(-1)
        for _ in range(NEW):
            expected = model(input_ids=text, use_cache=False).logits[:, -1].argmax(-1)
            assert token.equal(expected)
            text = torch.cat([text, token[:, None]], 1)
            token = writer.step(token[:, None]).argmax(-1)


@pytest.mark.each_value
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_many_tokens_at_once_are_read_as_one_by_one(family, layer):
    model = language_model(family, num_layers=LAYERS)
    states = torch.randn(2, PROMPT, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, PROMPT, dtype=torch.long)
    mask[1, :4] = 0
    new = tokens(model, 2, NEW)
    with torch.no_grad():
        single, whole = Continuation(model, layer), Continuation(model, layer)
        for writer in (single, whole):
            writer.begin(states, mask, 3)
        for site in range(NEW):
            last = single.step(new[:, site, None])
        assert difference(whole.step(new), last) <= ALLOWED
