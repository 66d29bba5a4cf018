"""Several examples in a block are read as if each stood alone: in forward passes, scores, gradients and caches."""

import pytest
import torch
from torch.utils.data import DataLoader

from data_modules import build_data_module
from data_modules.batches import ModelInput, scored_labels
from data_modules.blocks import BlockDataset
from data_modules.caches.activation_cache import ActivationCache
from data_modules.instruction_blocks import IGNORED, assemble
from lightning_modules.hidden_states.frozen_prefix import FrozenPrefix
from lightning_modules.hidden_states.frozen_states import FrozenStates
from lightning_modules.surgery.replaced_attention import replace_attention
from lightning_modules.surgery.trained_parameters import attention_parameters, thaw
from lightning_modules.training.objectives import EndToEnd, next_token_nll
from lightning_modules.training.teacher import Teacher
from lightning_modules.training.trainer import evaluate, fit
from registries import ATTENTION
from registries.architectures import architecture_of
from registries.models.random import byte_tokenizer
from tests.rules import ALLOWED, MODELS_UNDER_TEST, OPTIONS, difference, disturb_cores, language_model, logits

SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.0, "schedule": "constant", "warmup_steps": 0}

# The first block is full, the second ends with filling, the third holds one example alone and the fourth that is full.
# 40 tokens are more than the sliding windows of `MODELS_UNDER_TEST`, and one token is the shortest example there is.
SIZE = 64
LENGTHS = (40, 13, 1, 10, 21, 30, 1, 1, 5, SIZE)
BINS = ((0, 1, 2, 3), (4, 5, 6, 7), (8,), (9,))

REPLACEMENTS = [
    ("standard", {}),
    *[("toroidal", options) for options in OPTIONS["toroidal"]],
    *[("window", options) for options in OPTIONS["window"]],
]

each_model = pytest.mark.parametrize("name", MODELS_UNDER_TEST)


def examples(lengths=LENGTHS, seed=0):
    """(tokens, labels) of random examples, of which the second half is the response."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(1, 512, (length,), generator=generator).tolist()
        prompt = max(1, length // 2)
        rows.append((ids, [IGNORED] * prompt + ids[prompt:]))
    return rows


def blocks_of(rows, bins, size=SIZE, filler=0):
    """Blocks with these examples in this order, whatever packing would have chosen."""
    parts = [assemble(rows, size, packing=False, filler=filler)]
    tokens = torch.full((len(bins), size), filler)
    documents, labels = torch.full_like(tokens, -1), torch.full_like(tokens, IGNORED)
    for block, members in enumerate(bins):
        start = 0
        for index in members:
            stop = start + len(rows[index][0])
            tokens[block, start:stop] = parts[0].tokens[index, : stop - start]
            labels[block, start:stop] = parts[0].labels[index, : stop - start]
            documents[block, start:stop] = index
            start = stop
    return type(parts[0])(tokens, documents, labels)


def batch_of(blocks, rows=slice(None)):
    """The blocks as one batch."""
    return next(iter(DataLoader(BlockDataset(blocks.select(torch.arange(len(blocks))[rows])), len(blocks))))


def packed_logits(model, blocks):
    return logits(model, **ModelInput.of(batch_of(blocks)).arguments)


def isolation_error(model, rows, blocks):
    """By how much the logits of examples in blocks differ from those of the examples alone."""
    found = packed_logits(model, blocks)
    worst = 0.0
    for index, (ids, _) in enumerate(rows):
        alone = logits(model, torch.tensor([ids]))[0]
        worst = max(worst, difference(found[blocks.documents == index], alone))
    return worst


# Forward passes


@each_model
def test_an_example_in_a_block_has_the_logits_that_it_has_alone(name):
    rows = examples()
    assert isolation_error(language_model(name), rows, blocks_of(rows, BINS)) <= ALLOWED


@pytest.mark.each_value
@each_model
@pytest.mark.parametrize(("replacement", "options"), REPLACEMENTS, ids=lambda value: str(value))
def test_so_it_has_with_replaced_attention(replacement, options, name):
    model, rows = language_model(name), examples()
    replace_attention(model, replacement, [0, 1], options=options)
    assert isolation_error(disturb_cores(model), rows, blocks_of(rows, BINS)) <= ALLOWED


def test_every_replacement_is_among_them():
    assert {name for name, _ in REPLACEMENTS} == set(ATTENTION.names())


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_on_every_backend(backend):
    """In blocks that are longer than what a backend computes at once, with examples across its edges."""
    model, rows = language_model("llama"), examples((100, 90, 60, 7, 43))
    replace_attention(model, "toroidal", [0, 1], options={"depth": 4, "lambda_distance": 2.0, "backend": backend})
    assert isolation_error(disturb_cores(model), rows, blocks_of(rows, [range(5)], size=320)) <= ALLOWED


@each_model
def test_one_layer_replaced_among_others(name):
    model, rows = language_model(name), examples()
    replace_attention(model, "toroidal", [1], options={"depth": 2, "lambda_distance": 1.0})
    assert isolation_error(disturb_cores(model), rows, blocks_of(rows, BINS)) <= ALLOWED


@each_model
def test_what_fills_a_block_up_is_not_seen(name):
    model, rows = language_model(name), examples()
    one, other = (blocks_of(rows, BINS, filler=filler) for filler in (0, 77))
    real = one.documents >= 0
    assert not real.all()
    assert packed_logits(model, one)[real].equal(packed_logits(model, other)[real])


@pytest.mark.parametrize("replacement", [None, "toroidal"])
def test_positions_are_what_keeps_examples_apart(replacement):
    """The measurement would see it otherwise."""
    model, rows = language_model("llama"), examples()
    if replacement:
        replace_attention(model, replacement, [0, 1])
    blocks = blocks_of(rows, BINS)
    through = logits(model, blocks.tokens)
    for index in (1, 3, 5):
        assert difference(through[blocks.documents == index], logits(model, torch.tensor([rows[index][0]]))[0]) > 0.05


# Scores


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3, sliding"])
@pytest.mark.parametrize("replacement", [None, "toroidal"])
def test_packed_blocks_and_single_examples_have_the_same_loss(replacement, family, make_module, trainer_options):
    module, rows = make_module(replacement, family), examples(LENGTHS[:-1])
    module.measure()
    scores, sums = [], []
    for packing, batch_size in ((True, 1), (True, 3), (False, 1), (False, 4)):
        blocks = assemble(rows, SIZE, packing, filler=0)
        scores.append(evaluate(module, DataLoader(BlockDataset(blocks), batch_size), trainer_options))
        sums.append(module.documents.compute())
    alone = [
        next_token_nll(module.model, ModelInput(torch.tensor([ids])), torch.tensor([labels])) for ids, labels in rows
    ]
    counts = [sum(label != IGNORED for label in labels[1:]) for _, labels in rows]
    assert scores[0]["loss"] == pytest.approx((sum(alone) / sum(counts)).item(), rel=1e-5)
    for each in scores[1:]:
        assert each["loss"] == pytest.approx(scores[0]["loss"], rel=1e-5)
        assert each["accuracy"] == scores[0]["accuracy"]
    expected = [(nll.item(), count) for nll, count in zip(alone, counts, strict=True) if count]
    for documents in sums:
        assert [count for _, count in documents] == [count for _, count in expected]
        assert [nll for nll, _ in documents] == pytest.approx([nll for nll, _ in expected], rel=1e-4)


def test_a_validation_step_sums_what_single_examples_sum(make_module):
    module, rows = make_module("toroidal"), examples()
    module.measure()
    sums = []
    for blocks in (blocks_of(rows, BINS), blocks_of(rows, [[index] for index in range(len(rows))])):
        module.on_validation_epoch_start()
        with torch.no_grad():
            module.validation_step(batch_of(blocks), 0)
        sums.append((module.scores["all"].nll.item(), module.scores["all"].tokens.item()))
    assert sums[0][1] == sums[1][1] == sum(label != IGNORED for _, labels in rows for label in labels[1:])
    assert sums[0][0] == pytest.approx(sums[1][0], rel=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 3, 1000])
def test_a_loss_in_chunks_is_the_same(chunk_size):
    model, rows = language_model("llama"), examples()
    batch = batch_of(blocks_of(rows, BINS))
    total = next_token_nll(model, ModelInput.of(batch), scored_labels(batch), chunk_size)
    alone = sum(next_token_nll(model, ModelInput(torch.tensor([ids])), torch.tensor([labels])) for ids, labels in rows)
    assert total.item() == pytest.approx(alone.item(), rel=1e-5)


# Training


def uneven_loader(blocks, batch_size, steps=1):
    rows = [blocks.row(index) for index in range(len(blocks))] * steps
    return DataLoader(rows, batch_size=batch_size)


@pytest.mark.parametrize("stage", ["next_token", "kl"])
@pytest.mark.parametrize("pass_size", [1, 3])
def test_gradients_of_passes_are_weighted_by_scored_tokens(
    pass_size, stage, make_module, make_stage, trainer_options, tmp_path
):
    """Blocks with 20, 7, 1 and no scored tokens in several passes give the step of all of them at once."""
    rows = [(ids, [IGNORED] * (24 - scored) + ids[24 - scored :]) for ids, scored in scored_examples((20, 7, 1, 0))]
    blocks = assemble(rows, 24, packing=False, filler=0)
    moved = []
    for size in (pass_size, 4):
        module = make_module("toroidal", optimizer=SGD, init="random", options={"lambda_distance": 1.0})
        before = {name: parameter.clone() for name, parameter in module.model.named_parameters()}
        module.begin("next_token", make_stage(module, stage, pass_size=size, steps=1, batch_size=4))
        fit(module, uneven_loader(blocks, 4), uneven_loader(blocks, 4), trainer_options, tmp_path / f"{stage}{size}")
        after = dict(module.model.named_parameters())
        moved.append({name: after[name].detach() - before[name] for name in before})
    assert any(step.abs().max() > 1e-5 for step in moved[1].values())
    for name, expected in moved[1].items():
        torch.testing.assert_close(moved[0][name], expected, rtol=1e-3, atol=1e-7)


def scored_examples(counts):
    return [(ids, scored) for (ids, _), scored in zip(examples([24] * len(counts)), counts, strict=True)]


def test_packing_does_not_change_a_step(make_module, make_stage, trainer_options, tmp_path):
    """The gradient of packed blocks is that of the examples one by one, since both are means over scored tokens."""
    rows, weights = examples((20, 9, 3, 30, 12, 2)), []
    for packing in (True, False):
        blocks = assemble(rows, 32, packing, filler=0)
        module = make_module("toroidal", optimizer=SGD, options={"lambda_distance": 1.0})
        stage = make_stage(module, "next_token", pass_size=2, steps=1, batch_size=len(blocks), train="model")
        module.begin("next_token", stage)
        loader = uneven_loader(blocks, len(blocks))
        fit(module, loader, loader, trainer_options, tmp_path / f"{packing}")
        weights.append({name: parameter.detach() for name, parameter in module.model.named_parameters()})
    assert len(assemble(rows, 32, True, 0)) < len(rows)
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("batch_size", "accumulated"), [(1, 4), (2, 2), (4, 1)])
def test_accumulated_batches_are_one_step(batch_size, accumulated, tmp_path):
    """What a step trains on is decided by how many blocks it has, not by how they are cut."""
    records = [f'{{"instruction": "{"x" * (i % 7)}", "output": "{"y" * (1 + i * 5 % 11)}"}}\n' for i in range(120)]
    (tmp_path / "records.jsonl").write_text("".join(records))
    dataset = {"name": "alpaca", "path": str(tmp_path / "records.jsonl"), "block_size": 96, "batch_size": batch_size}
    cfg = {
        "dataset": {**dataset, "prompt": "{instruction}>"},
        "seed": 1,
        "cache_dir": str(tmp_path / "cache"),
        "trainer": {"accumulate_grad_batches": accumulated},
    }
    (batch, *_) = build_data_module(cfg, byte_tokenizer()).train_dataloader()
    assert batch["input_ids"].shape == (4, 96)
    cfg["dataset"]["batch_size"], cfg["trainer"]["accumulate_grad_batches"] = 4, 1
    (expected, *_) = build_data_module(cfg, byte_tokenizer()).train_dataloader()
    assert batch.keys() == expected.keys() == {"input_ids", "labels", "position_ids", "documents"}
    assert all(batch[key].equal(expected[key]) for key in batch)


# What frozen layers compute


@pytest.fixture
def cache(tmp_path):
    return ActivationCache(tmp_path / "cache", 1.0)


def two_readings():
    """The same tokens as one example and as two, with their positions."""
    ids = examples((24,))[0][0]
    tokens = torch.tensor([ids, ids])
    return tokens, torch.stack([torch.arange(24), torch.cat([torch.arange(10), torch.arange(14)])])


def test_rows_hold_tokens_and_positions():
    tokens, positions = two_readings()
    assert ModelInput(tokens, None).tokens is tokens
    assert ModelInput(tokens).arguments.keys() == {"input_ids"}
    inputs = ModelInput(tokens, positions).arguments
    assert inputs["input_ids"].equal(tokens)
    assert inputs["position_ids"].equal(positions)
    assert ModelInput.of({"input_ids": tokens}).arguments["input_ids"] is tokens


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral, sliding"])
def test_the_cache_keeps_readings_of_the_same_tokens_apart(family, cache):
    model = language_model(family)
    tokens, positions = two_readings()
    path = f"{architecture_of(model.config.model_type).blocks}.0"
    states = FrozenStates(model, {"out": (path, "output")}, cache, {"weights": "these"})
    rows = ModelInput(tokens, positions)
    assert states.reserve(list(rows.rows()), 2)
    first = states(rows)["out"]
    assert difference(first[0, 10:], first[1, 10:]) > 1e-3
    assert len(list(cache.folder.rglob("*.safetensors"))) == 2
    again = states(rows[torch.tensor([1, 0])])["out"].flip(0)
    assert again.equal(first)
    torch.testing.assert_close(first[1, :10], states(ModelInput(tokens[:1, :10]))["out"][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first[1, 10:], states(ModelInput(tokens[:1, 10:]))["out"][0], rtol=1e-4, atol=1e-5)


def test_text_and_a_single_example_are_computed_apart_and_agree(cache):
    """Tokens without positions have entries of their own; where there is one example in a block, both say the same."""
    model = language_model("llama")
    tokens, positions = two_readings()
    states = FrozenStates(model, {"out": ("model.layers.1", "output")}, cache, {"weights": "these"})
    plain = states(ModelInput(tokens[:1]))["out"]
    torch.testing.assert_close(states(ModelInput(tokens, positions)[:1])["out"], plain, rtol=1e-5, atol=1e-6)
    assert len(list(cache.folder.rglob("*.safetensors"))) == 2


@pytest.mark.parametrize("cached", [True, False])
def test_a_teacher_reads_each_example_by_itself(cached, make_module, make_stage):
    module = make_module("toroidal")
    tokens, positions = two_readings()
    teacher = Teacher(make_stage(module, "kl", cache=cached).workspace)
    rows = ModelInput(tokens, positions)
    teacher.reserve(list(rows.rows()), 2)
    for _ in range(2):
        states = teacher.final_states(rows)
        whole, parts = states
        torch.testing.assert_close(whole, teacher.final_states(ModelInput(tokens[:1]))[0], rtol=1e-4, atol=1e-5)
        for piece in (slice(0, 10), slice(10, 24)):
            alone = teacher.final_states(ModelInput(tokens[:1, piece]))[0]
            torch.testing.assert_close(parts[piece], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma3, sliding"])
@pytest.mark.parametrize("cached", [True, False])
def test_layers_below_what_trains_are_read_back_by_positions_too(cached, family, make_module, make_stage):
    """The loss with the frozen layers read back is that of the whole model, in every order of the readings."""
    module = make_module("toroidal", family, layers=[1], options={"lambda_distance": 1.0})
    disturb_cores(module.model)
    thaw(module.model, attention_parameters(module.model, [1]))
    tokens, positions = two_readings()
    workspace = make_stage(module, "next_token", cache=cached).workspace
    prefix = FrozenPrefix(module.model, workspace)
    assert prefix.layers == 1
    for order in ([0, 1], [1, 0], [1, 1], [0, 1]):
        rows = ModelInput(tokens, positions)[order]
        with torch.no_grad():
            expected = module.model(**rows.arguments, use_cache=False).logits
            with prefix.read_back(rows):
                found = module.model(**rows.arguments, use_cache=False).logits
        assert difference(found, expected) <= ALLOWED


@pytest.mark.parametrize("objective", ["next_token", "kl"])
def test_an_objective_sums_over_responses_and_keeps_examples_apart(objective, make_module, make_stage):
    module, rows = make_module("toroidal", layers=[1], options={"lambda_distance": 1.0}), examples(LENGTHS[:-1])
    disturb_cores(module.model)
    thaw(module.model, attention_parameters(module.model, [1]))
    losses = []
    for packing in (True, False):
        blocks = assemble(rows, SIZE, packing, filler=0)
        workspace = make_stage(module, "kl").workspace
        batch = batch_of(blocks)
        losses.append(EndToEnd(module.model, workspace, len(blocks), objective)(module.model, batch))
    assert losses[0].count == losses[1].count == sum(label != IGNORED for _, labels in rows for label in labels[1:])
    assert losses[0].total.item() == pytest.approx(losses[1].total.item(), rel=1e-5)
    assert losses[0].total.item() > 0


@pytest.mark.parametrize("stage", ["transfer", "block_wise"])
@pytest.mark.parametrize("attention_weight", [0.0, 0.5])
def test_layers_learn_from_examples_as_they_are_scored(stage, attention_weight, make_module, make_stage):
    """Packed, the summed loss is that of the examples one by one; filling counts nothing."""
    rows = examples((12, 5, 9))
    packed = blocks_of(rows, ((0, 1), (2,)), 20)
    losses = []
    for some in ([packed.row(index) for index in range(2)], [blocks_of([row], ((0,),), 20).row(0) for row in rows]):
        module = make_module("toroidal", options={"depth": 2})
        options = {"attention_weight": attention_weight} if stage == "transfer" else {}
        built = make_stage(module, stage, **options)
        module.begin(stage, built)
        parts = [built.loss(module.model, {key: tensor[None] for key, tensor in row.items()}) for row in some]
        losses.append((sum(part.total.item() for part in parts), sum(part.count for part in parts)))
    assert losses[0][1] == losses[1][1] == 26
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-4)


def test_losses_by_position_go_by_the_places_in_the_examples(make_module, trainer_options):
    """Short examples have no late positions, wherever they lie in their block; an empty group is left out."""
    module = make_module()
    module.measure(None, {"early": slice(0, 15), "late": slice(15, 63), "never": slice(100, 200)})
    loader = DataLoader(BlockDataset(blocks_of(examples((10, 10, 10)), ((0, 1, 2),), 64)))
    scores = evaluate(module, loader, trainer_options)
    assert scores["loss_early"] == pytest.approx(scores["loss"]) and "loss_late" not in scores
