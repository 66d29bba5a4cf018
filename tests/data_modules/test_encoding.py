import pytest
from tokenizers.processors import TemplateProcessing

from data_modules.data_module import BlockDataModule
from data_modules.dataset_settings import DatasetSettings
from data_modules.datasets.periodic import Periodic
from data_modules.documents import SPLITS, Document
from data_modules.encoding import encode_filled, encode_prompt, encode_prompts, encode_texts, start_token
from data_modules.tokens import token_bytes
from registries.models.random import byte_tokenizer
from registries.registry import UserError

START, END = "<s>", "<|endoftext|>"


def tokenizer_with(template):
    """The byte tokenizer, which puts around a text what the template says."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": START})
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (START, END)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    return tokenizer


STARTING, ENDING, PLAIN = (tokenizer_with(template) for template in (f"{START} $A", f"{START} $A {END}", "$A"))
BOS, EOS = STARTING.bos_token_id, STARTING.eos_token_id


@pytest.mark.parametrize(
    ("tokenizer", "setting", "expected"),
    [
        (STARTING, "auto", BOS),
        (ENDING, "auto", BOS),
        (PLAIN, "auto", None),
        (PLAIN, True, BOS),
        (STARTING, False, None),
        (byte_tokenizer(), "auto", None),
    ],
)
def test_the_start_token(tokenizer, setting, expected):
    assert start_token(tokenizer, setting) == expected


def test_a_start_token_that_is_not_there():
    with pytest.raises(UserError, match=r"start_token=true.*no start token"):
        start_token(byte_tokenizer(), True)


def test_several_tokens_before_a_text_are_told():
    with pytest.raises(UserError, match=r"puts 2 tokens before a text.*start_token=false"):
        start_token(tokenizer_with(f"{START} {END} $A"))


@pytest.mark.parametrize("tokenizer", [STARTING, ENDING, PLAIN])
def test_a_text_is_its_tokens_and_nothing_beside(tokenizer):
    """One token for each byte, those of special tokens that it writes out included."""
    text = f"a{END}b{START}"
    expected = [encode_texts(tokenizer, [character])[0][0] for character in text]
    assert encode_texts(tokenizer, [text, ""]) == [expected, []]


def test_a_prompt_begins_with_the_start_token_and_ends_where_its_text_ends():
    (plain,) = encode_texts(ENDING, ["Once"])
    assert encode_prompts(ENDING, ["Once", f"{START}Once"], BOS) == [[BOS, *plain]] * 2  # one that it writes is enough
    assert encode_prompts(ENDING, ["Once"], None) == [plain]


def test_a_special_token_is_one_in_a_template_and_text_in_a_field():
    """`<s>` of the template twice, and once in what the user said."""
    (ids,) = encode_filled(STARTING, [(f"{START}user: ", f"What is {START}?", f"{START}you: ", "")], None)
    said, asked, answer = encode_texts(STARTING, ["user: ", f"What is {START}?", "you: "])
    assert ids == [BOS, *said, *asked, BOS, *answer]
    (ids,) = encode_filled(STARTING, [("Say ", f"{END}", ".", "")], BOS)
    assert ids == [BOS, *encode_texts(STARTING, [f"Say {END}."])[0]]


def test_an_empty_prompt_is_something_to_begin_with():
    assert encode_prompt(STARTING, "", BOS) == [BOS]
    assert encode_prompt(STARTING, "", None) == [EOS]
    endless = byte_tokenizer()
    endless.eos_token = None
    with pytest.raises(UserError, match="prompt is empty"):
        encode_prompt(endless, "", None)


# Blocks behind a start token

TEXTS = {split: [Document(f"{split} {n}", f"{split} {n}: " + "some words " * 9) for n in range(3)] for split in SPLITS}


def data_module(tmp_path, tokenizer, source=TEXTS, **settings):
    group = {"name": "text", "block_size": 16, "val_size": 2, "test_size": 2, **settings}
    settings = DatasetSettings.read(group)
    return BlockDataModule(lambda: source, settings, tokenizer, seed=0, cache_dir=tmp_path)


@pytest.mark.parametrize("split", [*SPLITS, "all"])
def test_every_block_begins_with_the_start_token_and_no_other_place_has_it(tmp_path, split):
    blocks = data_module(tmp_path, ENDING).blocks(split)
    assert blocks.shape[1] == 16
    assert (blocks[:, 0] == BOS).all() and not (blocks[:, 1:] == BOS).any()


def test_no_token_of_the_text_is_lost_to_the_start_token(tmp_path):
    """All blocks one after the other, without what stands before them, are the documents."""
    (blocks,) = [data_module(tmp_path, STARTING).blocks("all")[:, 1:].flatten()]
    ids = [
        token
        for split in SPLITS
        for document in TEXTS[split]
        for token in (*encode_texts(STARTING, [document.text])[0], EOS)
    ]
    assert blocks.tolist() == ids[: len(blocks)] and len(ids) - len(blocks) < 15


def test_counts_are_of_text(tmp_path):
    data = data_module(tmp_path, STARTING)
    counts, blocks = data.counts("validation"), data.blocks("validation")
    assert counts["tokens"] == blocks[:, 1:].numel() == counts["scored"]
    assert counts["bytes"] == int(token_bytes(STARTING)[blocks[:, 1:]].sum())
    assert data.describe()["start_token"] == START
    assert data_module(tmp_path, STARTING, start_token=False).describe()["start_token"] is None


def test_the_setting_changes_what_the_data_are(tmp_path):
    modules = [data_module(tmp_path, STARTING, start_token=setting) for setting in ("auto", True, False)]
    hashes = [module.sha256("validation") for module in modules]
    assert hashes[0] == hashes[1] != hashes[2]


def test_groups_of_positions_name_the_same_tokens_behind_a_start_token(tmp_path):
    """The first period of a periodic text, which nothing can predict, and the rest."""
    sizes = {"train_size": 2, "block_size": 17}
    with_start, without = (
        data_module(tmp_path, STARTING, Periodic(4, 0.0), **sizes, start_token=setting) for setting in (True, False)
    )
    for data, first in ((with_start, 4), (without, 3)):
        groups, targets = data.position_groups(), list(range(16))
        assert targets[groups["first_period"]] == targets[:first]
        assert targets[groups["later"]] == targets[first:]
