import pytest
import torch
from omegaconf import OmegaConf

from data_modules import DATASETS, build_data_module
from data_modules.documents import SPLITS, Document, Stream
from data_modules.tokens import token_bytes
from registries.registry import UserError


@pytest.fixture
def text(build, text_file):
    def build_text(seed=1, **keys):
        return build("text", seed, path=str(text_file), **{"block_size": 64, **keys})

    return build_text


def ids(loader):
    return [batch["input_ids"] for batch in loader]


def test_blocks_hold_the_text_of_their_own_split(text, text_file, tokenizer):
    module = text()
    assert tokenizer.decode(module.all_blocks.flatten()).replace("<|endoftext|>", "") in text_file.read_text()
    splits = DATASETS.build("text", path=str(text_file))
    for split in SPLITS:
        decoded = tokenizer.decode(module.blocks(split).flatten())
        own = {document.text for document in splits[split]}
        assert all(part in own for part in decoded.split("<|endoftext|>")[1:-1])


def test_the_documents_to_train_on_are_shuffled(text, tokenizer):
    first = tokenizer.decode(text(train_size=300).train_blocks.flatten()).split("Paragraph ")[1:]
    numbers = [int(part.split(".")[0]) for part in first]
    assert numbers != sorted(numbers)


def test_all_seeds_have_the_same_blocks(text):
    keys = {"train_size": 50, "val_size": 4, "test_size": 4}
    assert text(1, **keys).describe() == text(2, **keys).describe()
    assert text(1, train_size=51, val_size=4, test_size=4).describe()["sha256"] != text(1, **keys).describe()["sha256"]


def test_describe_counts_what_is_used(text, tokenizer):
    module = text(train_size=5, val_size=3, test_size=2)
    description = module.describe()
    assert [description[split]["blocks"] for split in SPLITS] == [5, 3, 2]
    assert description["validation"]["tokens"] == 3 * 64
    text_of = tokenizer.decode(module.validation_blocks.flatten(), skip_special_tokens=True)
    assert description["validation"]["bytes"] == len(text_of.encode())
    assert description["validation"]["bytes"] == token_bytes(tokenizer)[module.validation_blocks].sum()
    assert description["warnings"] == []


def test_a_size_beyond_what_is_there_is_one_warning(text, caplog):
    module = text(val_size=10**6)
    assert len(module.validation_blocks) == len(text().validation_blocks)
    assert len(module.describe()["warnings"]) == len(caplog.records) == 1
    assert "not 1000000" in caplog.text


def test_less_than_one_block_is_an_error(text):
    with pytest.raises(
        UserError,
        match=r"has \d+ tokens in split validation \(\d+ in all splits\).*needs 1000000: set dataset.block_size",
    ):
        assert text(block_size=10**6).validation_blocks


def test_unknown_split(text):
    with pytest.raises(UserError, match="'valid' is none of: train, validation, test, all"):
        text().blocks("valid")


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_step_sees_depends_on_the_step_alone(text, workers):
    whole = ids(text(train_size=20).fit_loader(steps=9, start=0, blocks_per_step=7, stream="fit"))
    loader = text(train_size=20, num_workers=workers).fit_loader(steps=9, start=4, blocks_per_step=7, stream="fit")
    assert len(loader) == 9
    rest = ids(loader)
    assert len(rest) == 5
    assert all(one.equal(other) for one, other in zip(whole[4:], rest, strict=True))
    assert torch.cat(whole)[:20].unique(dim=0).shape[0] == 20


def test_training_reads_the_training_blocks_and_scoring_the_others(text):
    """Each block of its split as often as any other, and none of another split."""
    module = text(train_size=20, val_size=5, test_size=4, batch_size=4)
    epochs = torch.cat(ids(module.fit_loader(steps=10, start=0, blocks_per_step=4, stream="fit")))
    rows, counts = epochs.unique(dim=0, return_counts=True)
    assert rows.equal(module.train_blocks.unique(dim=0)) and (counts == 2).all()
    assert torch.cat(ids(module.train_dataloader())).unique(dim=0).equal(rows)
    for split, loader in (("validation", module.val_dataloader()), ("test", module.test_dataloader())):
        assert torch.cat(ids(loader)).equal(module.blocks(split))
        assert torch.cat(ids(module.loader(split))).equal(module.blocks(split))
    assert len(torch.cat([module.blocks(split) for split in SPLITS]).unique(dim=0)) == 20 + 5 + 4


def test_loading_leaves_the_global_generator_alone(text):
    module = text(train_size=4, val_size=4)
    before = torch.random.get_rng_state()
    ids(module.val_dataloader())
    ids(module.train_dataloader())
    assert torch.random.get_rng_state().equal(before)


def test_validation_comes_in_order_with_a_last_partial_batch(text):
    module = text(val_size=5, batch_size=2)
    batches = ids(module.val_dataloader())
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.cat(batches).equal(module.validation_blocks)


@pytest.mark.parametrize("split", [*SPLITS, "all"])
def test_every_token_has_the_number_of_its_document(text, text_file, tokenizer, split):
    """Of blocks chosen here and there as much as of all: the numbers are those of the split's documents, in order."""
    module = text(block_size=1500, val_size=8, test_size=8, batch_size=3)
    splits = DATASETS.build("text", path=str(text_file))
    texts = dict(enumerate(document.text for document in splits[split]))
    batches = list(module.loader(split))
    assert torch.cat([batch["input_ids"] for batch in batches]).equal(module.blocks(split))
    found = {}
    for batch in batches:
        for ids, documents in zip(batch["input_ids"], batch["documents"], strict=True):
            assert documents.shape == ids.shape
            ends = ids == tokenizer.eos_token_id
            assert documents.diff().ne(0).equal(ends[:-1])  # constant within a document, and no longer
            for number in documents.unique().tolist():
                piece = tokenizer.decode(ids[documents == number], skip_special_tokens=True)
                found.setdefault(number, []).append(piece)
    assert len(found) > 1
    if split == "train":  # in an order of its own, and without gaps
        texts = dict(zip(found, ["".join(pieces) for pieces in found.values()], strict=True))
        assert {texts[number] for number in sorted(found)[1:-1]} < {document.text for document in splits[split]}
    assert all(piece in texts[number] for number, pieces in found.items() for piece in pieces)


def test_blocks_of_a_synthetic_dataset_are_documents_of_their_own(build):
    module = build("periodic", period=8, block_size=32, train_size=3, val_size=4, test_size=2)
    documents = torch.cat([batch["documents"] for batch in module.loader("validation")])
    assert documents.equal(torch.arange(4)[:, None].expand(4, 32))


def test_losses_by_position_are_asked_for(text, build):
    assert text(block_size=300).position_groups() == {}
    groups = text(block_size=600, loss_by_position=True).position_groups()
    assert groups == {
        "positions_0_255": slice(0, 255),
        "positions_256_511": slice(255, 511),
        "positions_512_599": slice(511, 599),
    }
    assert text(loss_by_position=True).position_groups(300).keys() == {"positions_0_255", "positions_256_299"}
    sizes = {"block_size": 300, "train_size": 3, "val_size": 4, "test_size": 2}
    own = build("periodic", period=8, **sizes).position_groups()
    both = build("periodic", period=8, loss_by_position=True, **sizes).position_groups()
    assert both == {**own, "positions_0_255": slice(0, 255), "positions_256_299": slice(255, 299)}


def test_the_default_training_loader_is_one_epoch(tokenizer, text_file, tmp_path):
    cfg = OmegaConf.create(
        {
            "dataset": {"name": "text", "path": str(text_file), "block_size": 64, "train_size": 20, "batch_size": 2},
            "seed": 3,
            "cache_dir": str(tmp_path),
            "trainer": {"accumulate_grad_batches": 5},
        }
    )
    batches = ids(build_data_module(cfg, tokenizer).train_dataloader())
    assert [batch.shape for batch in batches] == [(10, 64), (10, 64)]
    assert torch.cat(batches).unique(dim=0).shape[0] == 20


def test_streams_are_read_as_far_as_the_sizes_ask(build, monkeypatch):
    documents = [Document(str(index), f"document {index} " * 20) for index in range(1000)]
    streams = {split: Stream(split, lambda: iter(documents)) for split in SPLITS}
    module = build("wikitext103", block_size=32, train_size=10, val_size=3, test_size=2)
    monkeypatch.setattr(module, "_build_corpus", lambda: streams)
    assert [len(module.blocks(split)) for split in SPLITS] == [10, 3, 2]


def test_lightning_trains_on_it_after_a_resume(text, tmp_path):
    from lightning import LightningModule, Trainer

    seen = []

    class Recorder(LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch, index):
            seen.append(batch["input_ids"])
            return self.weight * 0

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    def fit(module, start, max_steps, checkpoint=None):
        trainer = Trainer(
            max_steps=max_steps, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_checkpointing=False, enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(Recorder(), module.fit_loader(6, start, 2, "fit"), ckpt_path=checkpoint)
        return trainer

    module = text(train_size=5)
    fit(module, 0, 4).save_checkpoint(tmp_path / "step4.ckpt")
    fit(module, 4, 6, tmp_path / "step4.ckpt")
    expected = ids(module.fit_loader(6, 0, 2, "fit"))
    assert len(seen) == 6
    assert all(one.equal(other) for one, other in zip(seen, expected, strict=True))
