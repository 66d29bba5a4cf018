import torch
from hypothesis import given
from hypothesis import strategies as st

from data_modules.blocks import EndlessBlocks, StepSampler, choose_spread, doubling_groups, one_document_each, pack


@given(st.integers(0, 500), st.integers(1, 60))
def test_packing_keeps_the_order_and_drops_the_remainder(tokens, block_size):
    ids = torch.arange(tokens, dtype=torch.int32)
    blocks = pack(ids, ids // 7, block_size)
    assert blocks.tokens.shape == (tokens // block_size, block_size) == (len(blocks), block_size)
    assert blocks.tokens.flatten().equal(torch.arange(tokens // block_size * block_size))
    assert blocks.documents.equal(blocks.tokens // 7)


@given(st.data())
def test_chosen_blocks_are_different_and_spread(data):
    count = data.draw(st.integers(1, 500))
    size = data.draw(st.integers(1, count))
    chosen = choose_spread(count, size)
    assert chosen.equal(chosen.unique())
    stretches = (chosen + 0.5) * size / count
    assert (stretches - torch.arange(size) - 0.5).abs().max() <= 1.5
    assert chosen.equal(choose_spread(count, size))


@given(st.integers(2, 5000))
def test_groups_of_positions_hold_every_target_once(block_size):
    groups = doubling_groups(block_size)
    targets = torch.arange(1, block_size)  # target i is token i + 1
    assert torch.cat([targets[where] for where in groups.values()]).equal(targets)
    for name, where in groups.items():
        start, end = map(int, name.split("_")[1:])
        assert targets[where][[0, -1]].tolist() == [max(start, 1), end]
        assert start in (0, 256, 512, 1024, 2048, 4096)


@given(st.integers(1, 40), st.integers(0, 5), st.sampled_from(["fit", "transfer"]))
def test_every_epoch_holds_every_block_once(count, seed, stream):
    blocks = EndlessBlocks(one_document_each(torch.arange(count)[:, None]), seed, stream)
    for epoch in range(3):
        seen = [int(blocks[epoch * count + place]["input_ids"]) for place in range(count)]
        assert sorted(seen) == list(range(count))


def test_order_depends_on_seed_stream_and_epoch():
    def order(seed, stream, epoch):
        blocks = EndlessBlocks(one_document_each(torch.arange(50)[:, None]), seed, stream)
        return [int(blocks[epoch * 50 + place]["input_ids"]) for place in range(50)]

    orders = [order(0, "fit", 0), order(1, "fit", 0), order(0, "transfer", 0), order(0, "fit", 1)]
    assert len({tuple(some) for some in orders}) == 4
    assert order(0, "fit", 0) == orders[0]


def test_the_sampler_counts_the_steps_before_its_start():
    sampler = StepSampler(steps=5, start=3, blocks_per_step=2)
    assert len(sampler) == 5
    assert list(sampler) == [[6, 7], [8, 9]]
