"""A target that reads a text through a source: identity, causality, and what is scored."""

import pytest
import torch
from torch import nn

from data_modules.batches import ModelInput
from data_modules.caches.activation_cache import ActivationCache
from data_modules.pairing import Pairing
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.hidden_states.frozen_states import model_identity
from lightning_modules.hidden_states.injection import block_entry, injected
from lightning_modules.hidden_states.recorded_calls import record_calls
from lightning_modules.stages.stage import Workspace
from lightning_modules.two_models.adapter_training import AdapterTraining
from lightning_modules.two_models.bridge import Bridge, Measured, measure, together
from lightning_modules.two_models.bridge_assembly import require_translation
from lightning_modules.two_models.cross_model import CrossModelModule
from lightning_modules.two_models.paired_states import PairedStates, ShuffledStates
from lightning_modules.two_models.sites import Site
from registries import ADAPTERS, UserError
from registries.model_shape import LengthLimit
from registries.models.random import byte_tokenizer
from registries.models.tiny_phi import tiny_phi
from tests.rules import language_model, logits

FAMILIES = ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"]
LAYERS, LENGTH = 2, 24
WORDS = tiny_phi().tokenizer()


@pytest.fixture
def cache(tmp_path):
    return ActivationCache(tmp_path / "cache", 1.0)


def text_blocks(tokenizer, count=6, length=LENGTH):
    """(count, length) tokens of English, without end tokens."""
    text = " ".join(f"the file number {index} of the class is read by the function" for index in range(60))
    return torch.tensor(tokenizer(text)["input_ids"][: count * length]).view(count, length)


def crossing(cache, sites, adapter, target="llama", source="gpt2", source_tokenizer=None, first="constant", **keys):
    """A module of two random models with fitted bridges. The target reads words, the source bytes if not told else."""
    target_model = language_model(target, num_layers=LAYERS, vocab_size=2048)
    same = source is None
    source_model = target_model if same else language_model(source, seed=1, num_layers=LAYERS, vocab_size=2048)
    source_tokenizer = source_tokenizer or (WORDS if same else byte_tokenizer())
    identities = [model_identity(model) for model in (source_model, target_model)]
    states = PairedStates(
        Pairing(WORDS, source_tokenizer), source_model, target_model, sites, cache, *identities, first_token=first
    )
    width = target_model.config.hidden_size
    torch.manual_seed(0)
    bridges = {
        each: Bridge(ADAPTERS.build(adapter, source_width=width, target_width=width, **keys), width, first)
        for each in sites
    }
    for each, measured in measure(states, text_blocks(WORDS)).items():
        bridges[each].take(measured)
        bridges[each].adapter.fit(measured.statistics)
    module = CausalLMModule(target_model, WORDS)
    return CrossModelModule(module, source_model, source_tokenizer, states, bridges)


def crossed_logits(module, blocks):
    """Logits of the target at each site, as scoring computes them."""
    found = {}
    for site, states in module.read(blocks).items():
        with torch.no_grad(), module.stitched(site, module.translate(site, states)):
            found[site] = module.logits({"input_ids": blocks})
    return found


def validated(module, blocks):
    """What scoring logs."""
    values = {}
    module.log_dict = lambda found, **_: values.update(found)
    module.on_validation_epoch_start()
    with torch.no_grad():
        for row in blocks:
            module.validation_step({"input_ids": row[None], "documents": torch.zeros_like(row[None])}, 0)
    module.on_validation_epoch_end()
    return {name: value.item() for name, value in values.items()}


@pytest.mark.each_value
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_a_model_reads_itself_bit_for_bit_also_from_the_cache(cache, family, layer):
    module = crossing(cache, [Site(layer, layer)], "identity", family, None, first="translate")
    block = text_blocks(WORDS)[:1]
    expected = logits(module.model, block)
    for _ in range(2):  # computed, then read back
        (found,) = crossed_logits(module, block).values()
        assert found.equal(expected)
    assert validated(module, block)["val/kl"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("adapter", ["ridge", "linear", "mean"])
@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_a_token_does_not_change_what_is_predicted_before_it(cache, adapter, layer):
    module = crossing(cache, [Site(1, layer)], adapter)
    block = text_blocks(WORDS)[:1]
    (before,) = crossed_logits(module, block).values()
    for site in (5, 13):
        changed = block.clone()
        changed[0, site] = WORDS(" of")["input_ids"][0]
        (after,) = crossed_logits(module, changed).values()
        assert after[0, :site].equal(before[0, :site])
        if adapter != "mean":
            assert not after[0, site + 1 :].allclose(before[0, site + 1 :])


def test_the_first_token_gets_a_constant_and_unpaired_ones_the_mean(cache):
    module = crossing(cache, [Site(1, 1)], "linear")
    site, blocks = Site(1, 1), text_blocks(WORDS)
    bridge = module.bridges[site]
    translated = module.translate(site, module.read(blocks)[site])
    assert (translated[:, 0] == bridge.first).all()
    alone = record_calls(
        module.model, [block_entry(module.model, 1)[0]], ModelInput(torch.tensor([[WORDS.eos_token_id]]))
    )
    torch.testing.assert_close(bridge.first, alone[block_entry(module.model, 1)[0]].output[0, 0])
    states = module.read(blocks)[site]
    hidden = states._replace(paired=torch.zeros_like(states.paired))
    assert (module.translate(site, hidden)[:, 1:] == bridge.mean).all()
    assert bridge(states.source, hidden.paired)[:, 1:].unique(dim=1).shape[1] == 1


def test_what_is_measured_of_a_site(cache):
    module = crossing(cache, [Site(1, 1)], "ridge")
    blocks, site = text_blocks(WORDS), Site(1, 1)
    rows = [module.states(block)[site] for block in blocks]
    target = torch.cat([each.target[each.paired] for each in rows]).double()
    measured = measure(module.states, blocks)[site]
    assert measured.statistics.everything.rows == len(target) <= blocks[:, 1:].numel()
    torch.testing.assert_close(measured.statistics.everything.means()[1], target.mean(0))
    variance = (target - target.mean(0)).square().sum(1).mean().float()
    torch.testing.assert_close(module.bridges[site].variance, variance)


def test_several_sites_are_scored_apart_and_the_loss_is_their_mean(cache):
    sites = [Site(0, 1), Site(2, 2)]
    module, blocks = crossing(cache, sites, "ridge"), text_blocks(WORDS)[:2]
    values = validated(module, blocks)
    apart = [validated(crossing(cache, [each], "ridge"), blocks)["val/loss"] for each in sites]
    assert [values["val/layer_1/loss"], values["val/layer_2/loss"]] == pytest.approx(apart, rel=1e-5)
    assert values["val/loss"] == pytest.approx(sum(apart) / 2, rel=1e-5)


def test_in_a_module_of_its_own_the_target_is_scored_by_itself(cache):
    module, blocks = crossing(cache, [Site(1, 1)], "mean"), text_blocks(WORDS)[:2]
    crossed = validated(module, blocks)
    alone = validated(CausalLMModule(**module.construction()), blocks)
    assert alone["val/loss"] != crossed["val/loss"] and "val/kl" not in alone


def test_divergence_is_from_what_the_target_predicts_by_itself(cache):
    module, block = crossing(cache, [Site(1, 1)], "ridge"), text_blocks(WORDS)[:1]
    own = logits(module.model, block)[0, :-1].log_softmax(-1)
    (found,) = crossed_logits(module, block).values()
    crossed = found[0, :-1].log_softmax(-1)
    expected = (own.exp() * (own - crossed)).sum(-1).mean().item()
    assert validated(module, block)["val/kl"] == pytest.approx(expected, rel=1e-4)


def test_shuffled_states_are_those_of_the_next_block(cache):
    module, blocks = crossing(cache, [Site(1, 1)], "ridge"), text_blocks(WORDS)
    shuffled, site = ShuffledStates(module.states, blocks), Site(1, 1)
    for index in range(len(blocks)):
        found, other = shuffled(blocks[index])[site], module.states(blocks[(index + 1) % len(blocks)])[site]
        assert found.source.equal(other.source) and found.paired.equal(other.paired)
        assert found.target.equal(module.states(blocks[index])[site].target)


def test_each_model_reads_each_block_once(cache):
    module, blocks = crossing(cache, [Site(1, 1)], "ridge"), text_blocks(WORDS)
    ran = []
    for model in (module.source_model, module.model):
        model.base_model.register_forward_pre_hook(lambda *_: ran.append(1))
    measure(module.states, blocks)
    module.read(blocks)
    assert not ran
    validated(module, blocks[:2])  # from the site on, and once more for what it predicts by itself
    assert len(ran) == 2 * 3
    ran.clear()
    validated(module, blocks[:2])
    assert len(ran) == 2 * 2  # the head on what is known of itself, and the translated states


def test_the_source_moves_with_the_module_and_is_neither_trained_nor_saved(cache):
    module = crossing(cache, [Site(1, 1)], "linear")
    assert module.adapter is module.bridges[Site(1, 1)].adapter
    module.begin("adapter", TestTraining().stage(module))
    checkpoint = {}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["state_dict"]
    assert not any(name.startswith("source_model") for name in checkpoint["state_dict"])
    assert not any(each.requires_grad for each in module.source_model.parameters())
    module.to(torch.device("meta"))
    assert {each.device.type for each in module.source_model.parameters()} == {"meta"}


class TestTraining:
    def stage(self, module, **keys):
        workspace = Workspace(module.original, WORDS, None, module.states.source.cache, batch_size=2)
        return AdapterTraining(workspace, steps=1, lr=1e-3, batch_size=2, module=module, **keys)

    def test_alignment_is_the_unexplained_share_of_the_variance(self, cache):
        module, blocks = crossing(cache, [Site(1, 1)], "ridge"), text_blocks(WORDS)
        loss = self.stage(module).loss(module.model, {"input_ids": blocks})
        states = module.read(blocks)[Site(1, 1)]
        translated = module.translate(Site(1, 1), states)[states.paired]
        target = states.target[states.paired]
        expected = (translated - target).square().sum() / (target - target.mean(0)).square().sum()
        assert (loss.total / loss.count).item() == pytest.approx(expected.item(), rel=1e-4)
        assert loss.count == len(blocks) * (LENGTH - 1)

    def test_each_scored_token_counts_the_same_however_blocks_are_shared(self, cache):
        """Where the source has no state nothing is to be learned, but the token is scored, and counts."""
        module, blocks = crossing(cache, [Site(1, 1)], "ridge"), text_blocks(WORDS)
        (states,) = module.read(blocks).values()
        paired = states.paired.clone()
        paired[0, 5:] = paired[2, ::2] = False
        states = states._replace(paired=paired)

        def alignment(rows):
            module.read = lambda tokens: {Site(1, 1): type(states)(*(part[rows] for part in states))}
            return self.stage(module).loss(module.model, {"input_ids": blocks[rows]})

        whole, parts = alignment(slice(None)), [alignment(slice(0, 1)), alignment(slice(1, None))]
        assert whole.count == sum(part.count for part in parts) == len(blocks) * (LENGTH - 1)
        assert whole.total.item() == pytest.approx(sum(part.total.item() for part in parts), rel=1e-5)
        translated = module.translate(Site(1, 1), states)
        error = (translated - states.target).square().sum(-1)[paired].sum() / module.bridges[Site(1, 1)].variance
        assert whole.total.item() == pytest.approx(error.item(), rel=1e-5)

    def test_generation_is_the_next_token_loss(self, cache):
        module, blocks = crossing(cache, [Site(1, 1)], "linear"), text_blocks(WORDS)[:2]
        stage = self.stage(module, alignment_weight=0.0, generation_weight=2.0)
        loss = stage.loss(module.model, {"input_ids": blocks})
        assert (loss.total / loss.count).item() == pytest.approx(2 * validated(module, blocks)["val/loss"], rel=1e-5)
        loss.total.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in module.adapter.parameters())
        assert set(loss.parts) == {"generation"}

    @pytest.mark.parametrize(("contrast", "candidates"), [("tokens", 8), ("sequences", 6)])
    def test_the_contrastive_loss_of_equal_states_is_chance(self, cache, contrast, candidates):
        module, blocks = crossing(cache, [Site(1, 1)], "linear"), text_blocks(WORDS)
        stage = self.stage(module, alignment_weight=0.0, contrastive_weight=1.0, negatives=7, contrast=contrast)
        module.bridges[Site(1, 1)].adapter = torch.nn.Linear(64, 64)  # the same for all without weights
        torch.nn.init.zeros_(module.adapter.weight)
        torch.nn.init.ones_(module.adapter.bias)
        states = module.read(blocks)[Site(1, 1)]
        flat = states._replace(target=torch.ones_like(states.target))
        module.read = lambda tokens: {Site(1, 1): flat}
        loss = stage.loss(module.model, {"input_ids": blocks})
        assert (loss.total / loss.count).item() == pytest.approx(torch.tensor(candidates).log().item(), rel=1e-4)
        assert loss.parts["contrastive_over_chance"].item() == pytest.approx(0, abs=1e-2)

    def test_the_right_states_are_told_apart_at_low_temperature(self, cache):
        module, blocks = crossing(cache, [Site(1, 1)], "identity", source=None, first="translate"), text_blocks(WORDS)
        losses = []
        for temperature in (0.01, 1.0):
            keys = {"alignment_weight": 0.0, "contrastive_weight": 1.0, "temperature": temperature, "negatives": 15}
            torch.manual_seed(0)
            loss = self.stage(module, **keys).loss(module.model, {"input_ids": blocks})
            losses.append((loss.total / loss.count).item())
        assert losses[0] < 0.1 < losses[1]

    def test_weights_add_up_over_sites(self, cache):
        module, blocks = crossing(cache, [Site(0, 1), Site(1, 2)], "linear"), text_blocks(WORDS)[:2]
        both = self.stage(module).loss(module.model, {"input_ids": blocks}).total
        apart = [crossing(cache, [each], "linear") for each in (Site(0, 1), Site(1, 2))]
        for one, site in zip(apart, (Site(0, 1), Site(1, 2)), strict=True):
            one.bridges[site].load_state_dict(module.bridges[site].state_dict())
        singles = [self.stage(one).loss(one.model, {"input_ids": blocks}).total for one in apart]
        assert both.item() == pytest.approx(sum(each.item() for each in singles) / 2, rel=1e-5)


def test_statistics_of_shared_sites_add_up(cache):
    module = crossing(cache, [Site(0, 1), Site(2, 2)], "ridge")
    measured = list(measure(module.states, text_blocks(WORDS)).values())
    total = together(measured).everything
    assert total.rows == sum(each.statistics.everything.rows for each in measured)
    assert isinstance(measured[0], Measured)


def test_states_that_are_not_finite_are_told(cache):
    with pytest.raises(UserError, match="NaN"):
        module = crossing(cache, [Site(1, 1)], "ridge")
        block = text_blocks(WORDS)[0]
        states = module.states(block)
        broken = {key: each._replace(source=each.source * torch.nan) for key, each in states.items()}
        wrong = type("Broken", (), {"sites": module.states.sites, "__call__": lambda self, tokens: broken})()
        measure(wrong, block[None])


def test_a_block_that_is_too_long_for_the_source_is_told(cache):
    module = crossing(cache, [Site(1, 1)], "ridge")
    module.states.limit = LengthLimit(10, "the 10 positions that this model learned")
    with pytest.raises(UserError, match="more than the 10 positions that this model learned: set dataset.block_size"):
        module.read(text_blocks(WORDS)[:1].flip(1))


def test_injecting_needs_as_many_states_as_tokens(cache):
    module = crossing(cache, [Site(1, 1)], "ridge")
    block = text_blocks(WORDS)[:1]
    with pytest.raises(RuntimeError), torch.no_grad(), injected(module.model, 1, torch.zeros(1, 5, 64)):
        module.logits({"input_ids": block})


class Doubled(nn.Module):
    def forward(self, states):
        return states.repeat(1, 2)


class Fitted(Doubled):
    def fit(self, pairs):
        """Nothing."""


def test_a_component_that_is_no_adapter_is_told():
    with pytest.raises(UserError, match=r"adapter 'mine' has no method fit\(pairs\)"):
        require_translation("mine", Doubled(), 3, 6)
    with pytest.raises(UserError, match=r"adapter 'mine' makes \(2, 6\) of 2 states of width 3, not \(2, 5\)"):
        require_translation("mine", Fitted(), 3, 5)
    require_translation("mine", Fitted(), 3, 6)
