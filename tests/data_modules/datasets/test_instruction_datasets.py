import json

import pytest
import torch
from omegaconf import OmegaConf

from data_modules import DATASETS, dataset_errors
from data_modules.datasets import instruction_datasets
from data_modules.documents import SPLITS
from data_modules.instruction_blocks import IGNORED
from registries.registry import UserError
from studies.config.compose import compose

NAMES = ("alpaca", "alpaca_ja", "dolly15k")
NO_INPUT = "dataset 'alpaca': 133 of 200 records of records.jsonl have no input"
COLUMN = {"alpaca": ("input", "output"), "alpaca_ja": ("input", "output"), "dolly15k": ("context", "response")}

each_name = pytest.mark.parametrize("name", NAMES)


def record(index, name="alpaca"):
    """The records of a dataset as the hub has them; every third has an input."""
    given, response = COLUMN[name]
    return {
        "instruction": f"Count to {index}.",
        given: f"from {index % 7}" if index % 3 == 0 else "",
        response: f"Here you are: {index}" + "!" * (index % 11),
    }


def write(file, rows):
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(json.dumps(rows, ensure_ascii=False) if file.suffix == ".json" else lines, encoding="utf-8")
    return str(file)


@pytest.fixture
def records(tmp_path):
    return write(tmp_path / "records.jsonl", [record(index) for index in range(200)])


@pytest.fixture
def alpaca(build, records):
    return lambda **keys: build("alpaca", **{"path": records, "block_size": 128, **keys})


# Reading


@each_name
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_all_formats_read_alike(name, suffix, tmp_path):
    rows = [record(index, name) for index in range(30)]
    file = tmp_path / f"records{suffix}"
    if suffix == ".parquet":
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(str(file))
    else:
        write(file, rows)
    data = DATASETS.build(name, path=str(file))
    assert [each.response for each in data.examples["all"]] == [row[COLUMN[name][1]] for row in rows]
    assert [each.name for each in data.examples["all"]] == [f"{file.name}:{index}" for index in range(30)]
    with_input = data.template(instruction="Count to 3.", input="from 3")
    assert data.examples["all"][3].prompt == with_input
    assert "from 3" in with_input
    assert data.examples["all"][4].prompt == data.template(instruction="Count to 4.")


@each_name
def test_the_hubs_train_split_is_read_and_cut(name, monkeypatch):
    asked = []

    def load(repository):
        asked.append(repository)
        return {"train": [record(index, name) for index in range(200)]}

    monkeypatch.setattr(instruction_datasets, "load_from_hub", load)
    data = DATASETS.build(name)
    repositories = {
        "alpaca": "tatsu-lab/alpaca",
        "alpaca_ja": "fujiki/japanese_alpaca_data",
        "dolly15k": "databricks/databricks-dolly-15k",
    }
    assert asked == [repositories[name]]
    assert len(data.examples["all"]) == sum(len(data.examples[split]) for split in SPLITS) == 200
    assert data.examples["all"][0].name == f"{asked[0]}:0"


def test_templates_are_in_the_language_of_the_dataset():
    prompts = {name: DATASETS.describe(name)["parameters"]["prompt"] for name in NAMES}
    assert prompts["alpaca"] == prompts["dolly15k"] == "### Instruction:\n{instruction}\n\n### Response:\n"
    assert prompts["alpaca_ja"] == "### 指示:\n{instruction}\n\n### 応答:\n"


@each_name
def test_the_config_says_what_the_component_says(name):
    """A template that is in both must not become two."""
    conf = compose([f"dataset={name}"])["dataset"]
    defaults = DATASETS.describe(name)["parameters"]
    assert {key: conf[key] for key in defaults} == defaults
    assert dataset_errors(OmegaConf.to_container(conf)) == []


def test_templates_are_config(build, records):
    module = build("alpaca", path=records, prompt="{instruction}=", prompt_with_input="{input}|{instruction}=")
    assert module._corpus.data.examples["all"][1].prompt == "Count to 1.="
    assert module._corpus.data.examples["all"][3].prompt == "from 3|Count to 3.="
    assert module.as_prompt("Why?") == "Why?="


def test_fields_are_config(tmp_path):
    rows = [{"q": f"ask {i}", "instances": [{"output": f"say {i}"}], "topic": f"t{i}"} for i in range(30)]
    data = DATASETS.build(
        "dolly15k",
        path=write(tmp_path / "rows.jsonl", rows),
        fields={"instruction": "q", "response": "instances.0.output", "category": "topic"},
        prompt="[{category}] {instruction} ",
    )
    assert data.examples["all"][7].prompt + data.examples["all"][7].response == "[t7] ask 7 say 7"


def test_templates_may_be_typed_on_a_command_line(build, records):
    typed = {"prompt": r"Q: {instruction}\nA: ", "prompt_with_input": r"Q: {instruction}\n{input}\nA: "}
    meant = {"prompt": "Q: {instruction}\nA: ", "prompt_with_input": "Q: {instruction}\n{input}\nA: "}
    first, second = (build("alpaca", path=records, block_size=128, **keys) for keys in (typed, meant))
    assert first.describe() == second.describe()
    assert first.as_prompt("Why?") == "Q: Why?\nA: "


def test_what_records_of_a_folder_lack_is_told_once(tmp_path, build):
    for name in "ab":
        (tmp_path / name).mkdir()
        turns = [
            {"role": "system", "content": "x"},
            {"role": "user", "content": name},
            {"role": "assistant", "content": "y"},
        ]
        rows = [{"question": f"{name} {index}", "answer": "c"} for index in range(20)] + [{"messages": turns}]
        write(
            tmp_path / name / "rows.jsonl", [*rows, {"question": "d", "answer": None}, {"question": "", "answer": "e"}]
        )
    module = build("alpaca", path=str(tmp_path), block_size=128)
    assert len(module.blocks("all")) and [warning.split(f"of {tmp_path} ")[1] for warning in module.warnings] == [
        "have no response and were left out",
        "have no instruction; they are kept",
        "have a text of the system that no template names: {system}",
    ]
    assert [warning.split(": ")[1].split(" records")[0] for warning in module.warnings] == ["2", "2 of 44", "2 of 44"]


# Splits


def test_splits_are_disjoint_and_complete(alpaca):
    data = alpaca()._corpus.data
    texts = {split: {each.text for each in data.examples[split]} for split in SPLITS}
    assert all(texts.values())
    assert sum(map(len, texts.values())) == len(set().union(*texts.values())) == 200


def test_equal_examples_go_into_one_split(tmp_path):
    rows = [record(index % 40) for index in range(200)]
    data = DATASETS.build("alpaca", path=write(tmp_path / "rows.json", rows))
    texts = [{each.text for each in data.examples[split]} for split in SPLITS]
    assert sum(map(len, texts)) == len(set().union(*texts)) == 40
    assert sum(len(data.examples[split]) for split in SPLITS) == 200


def test_what_is_left_out_moves_no_other_example(tmp_path):
    """The split goes by the row, so that an empty response does not shuffle what is trained on and scored."""
    rows = [record(index) for index in range(200)]
    before = DATASETS.build("alpaca", path=write(tmp_path / "rows.json", rows)).examples
    rows[3]["output"] = ""
    after = DATASETS.build("alpaca", path=write(tmp_path / "rows.json", rows)).examples
    for split in SPLITS:
        assert [each for each in before[split] if each.name != "rows.json:3"] == after[split]


def test_files_named_for_splits_keep_them(tmp_path):
    for split, some in {"train": range(0, 20), "validation": range(20, 26), "test": range(26, 30)}.items():
        write(tmp_path / f"{split}.jsonl", [record(index) for index in some])
    data = DATASETS.build("alpaca", path=str(tmp_path))
    assert [len(data.examples[split]) for split in SPLITS] == [20, 6, 4]


def test_a_folder_is_read_as_a_whole(tmp_path):
    write(tmp_path / "a.json", [record(index) for index in range(20)])
    write(tmp_path / "b.jsonl", [record(index) for index in range(20, 40)])
    data = DATASETS.build("alpaca", path=str(tmp_path))
    assert [each.response for each in data.examples["all"]] == [record(index)["output"] for index in range(40)]


# Blocks


def examples_in(module, split, tokenizer):
    """(text, scored text) of every example in the blocks, by what its block says of it."""
    found = []
    for batch in module.loader(split):
        for ids, labels, documents, positions in zip(
            *(batch[key] for key in ("input_ids", "labels", "documents", "position_ids")), strict=True
        ):
            for number in documents[documents >= 0].unique_consecutive().tolist():
                own = documents == number
                assert positions[own].tolist() == list(range(int(own.sum())))
                assert ids[own][-1] == tokenizer.eos_token_id
                scored = labels[own][labels[own] != IGNORED]
                found.append((tokenizer.decode(ids[own][:-1]), tokenizer.decode(scored[:-1])))
    return found


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("split", [*SPLITS, "all"])
def test_blocks_hold_the_examples_of_their_split(alpaca, tokenizer, split, packing):
    module = alpaca(packing=packing, batch_size=3)
    expected = sorted((each.prompt + each.response, each.response) for each in module._corpus.data.examples[split])
    assert sorted(examples_in(module, split, tokenizer)) == expected
    assert (len(module.blocks(split)) < len(expected)) == packing


def test_packing_leaves_little_filling(alpaca):
    module = alpaca(block_size=512)
    assert (module._packed("train").documents >= 0).float().mean() > 0.9


@pytest.mark.parametrize("packing", [True, False])
def test_sizes_count_examples(alpaca, packing):
    description = alpaca(packing=packing, train_size=30, val_size=3, test_size=2).describe()
    assert [description[split]["examples"] for split in SPLITS] == [30, 3, 2]
    assert description["warnings"] == [NO_INPUT]


def test_fewer_examples_are_among_more(alpaca, tokenizer):
    some, more = (examples_in(alpaca(train_size=size), "train", tokenizer) for size in (20, 60))
    assert set(some) < set(more)


def test_a_size_beyond_what_is_there_is_told(alpaca):
    module = alpaca(val_size=1000)
    there = len(module._corpus.data.examples["validation"])
    description = module.describe()
    assert description["validation"]["examples"] == there
    assert description["warnings"] == [NO_INPUT, f"dataset 'alpaca' has {there} validation examples, not 1000"]


def test_describe_counts_what_is_real_and_what_is_scored(alpaca, tokenizer):
    for packing in (True, False):
        module = alpaca(packing=packing, val_size=4)
        validation = module.describe()["validation"]
        found = examples_in(module, "validation", tokenizer)
        lengths = [len(tokenizer(text)["input_ids"]) for text, _ in found]
        assert validation["blocks"] == len(module.validation_blocks)
        assert validation["examples"] == len(found) == 4
        assert validation["bytes"] == sum(len(text.encode()) for text, _ in found)
        assert sum(lengths) * 0.8 < validation["tokens"] < sum(lengths) * 1.2 + 4
        packed = module._packed("validation")
        assert validation["tokens"] == int((packed.documents >= 0).sum())
        assert validation["scored"] == int((packed.labels != IGNORED).sum())


def test_more_is_scored_where_prompts_are(alpaca):
    response, everything = (alpaca(loss_on=loss_on).describe() for loss_on in ("response", "all"))
    for split in SPLITS:
        assert everything[split]["tokens"] == response[split]["tokens"]
        assert everything[split]["scored"] == everything[split]["tokens"] - everything[split]["examples"]
        assert response[split]["scored"] < everything[split]["scored"]


def test_the_hash_is_of_labels_and_of_isolation_too(alpaca):
    """What is scored and what sees what makes another study of the same tokens."""
    hashes = {}
    for change in (None, "labels", "documents"):
        module = alpaca()
        packed = module._packed("validation")
        if change:
            examples_end = int((packed.documents[0] >= 0).sum())
            getattr(packed, change)[0, examples_end - 2] = IGNORED if change == "labels" else 10_000
        hashes[change] = module.describe()["sha256"]
    assert len(set(hashes.values())) == 3
    assert alpaca().describe()["sha256"] == hashes[None]
    assert alpaca(loss_on="all").describe()["sha256"] not in hashes.values()
    assert alpaca(packing=False).describe()["sha256"] not in hashes.values()


def test_text_has_the_hash_of_its_tokens_as_before(build, text_file):
    module = build("text", path=str(text_file), block_size=64, train_size=4, val_size=2, test_size=2)
    from data_modules.tensor_files import tensors_sha256

    assert module.describe()["sha256"] == tensors_sha256({split: module.blocks(split) for split in SPLITS})
    assert module.positions("train") is None
    assert module.as_prompt("as it is") == "as it is"


def test_all_seeds_have_the_same_blocks_and_what_a_step_sees_is_its_own(build, records):
    keys = {"path": records, "block_size": 128, "train_size": 40}
    first, second = build("alpaca", 1, **keys), build("alpaca", 2, **keys)
    assert first.describe() == second.describe()
    whole, rest = (list(first.fit_loader(5, start, 3, "fit")) for start in (0, 2))
    assert len(rest) == 3
    for one, other in zip(whole[2:], rest, strict=True):
        assert all(one[key].equal(other[key]) for key in one)
    assert not torch.cat([batch["input_ids"] for batch in whole]).equal(
        torch.cat([batch["input_ids"] for batch in second.fit_loader(5, 0, 3, "fit")])
    )


def test_positions_are_those_of_the_batches(alpaca):
    module = alpaca(batch_size=2)
    found = torch.cat([batch["position_ids"] for batch in module.val_dataloader()])
    assert found.equal(module.positions("validation"))


# What is wrong, and what is left out


def test_records_without_a_response_are_told(build, tmp_path):
    rows = [record(index) | ({"output": ""} if index % 4 == 0 else {}) for index in range(120)]
    module = build("alpaca", path=write(tmp_path / "rows.json", rows), block_size=128)
    description = module.describe()
    assert sum(description[split]["examples"] for split in SPLITS) == 90
    assert any("30 records of rows.json have no response and were left out" in line for line in description["warnings"])


@pytest.mark.parametrize(
    ("too_long", "told"),
    [
        ("drop", "are longer than a block and were left out"),
        ("prompt", "their prompts lost their beginnings"),
        ("response", "their responses lost their ends"),
    ],
)
def test_what_is_too_long_is_told_by_split(alpaca, too_long, told):
    module = alpaca(block_size=66, too_long=too_long)
    description = module.describe()
    warnings = [warning for warning in description["warnings"] if told in warning]
    assert {warning.split(" examples ")[0].rsplit(" ", 1)[-1] for warning in warnings} <= set(SPLITS)
    assert warnings
    for split in SPLITS:
        left_out = sum(
            int(warning.split(": ", 1)[1].split(" ")[0])
            for warning in description["warnings"]
            if f" {split} examples are longer than a block and were left out" in warning
        )
        assert description[split]["examples"] + left_out == len(module._corpus.data.examples[split])


def test_warnings_are_told_once(alpaca):
    module = alpaca(block_size=66)
    assert module.describe()["warnings"] == module.describe()["warnings"]
    assert len(set(module.warnings)) == len(module.warnings)


def test_a_split_in_which_nothing_fits(alpaca):
    with pytest.raises(
        UserError,
        match=r"no train example that fits into 8 tokens \(\d+ do not, with dataset.too_long=drop\): set dataset",
    ):
        assert alpaca(block_size=8).train_blocks


def test_no_record_with_a_response(build, tmp_path):
    path = write(tmp_path / "rows.json", [record(index) | {"output": None} for index in range(5)])
    with pytest.raises(UserError, match=r"no record with a response.*dataset.fields.response=<column>"):
        assert build("alpaca", path=path).train_blocks


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prompt": "{instrution}"}, r"dataset.prompt names \{instrution\}.*did you mean 'instruction'"),
        ({"prompt_with_input": "{instruction"}, "dataset.prompt_with_input is no template"),
        ({"path": "/nowhere/at.all"}, "dataset.path='/nowhere/at.all' does not exist"),
        ({"loss_on": "prompt"}, "loss_on='prompt' is not valid"),
        ({"too_long": "cut"}, "too_long='cut' is not valid"),
        ({"packing": "yes"}, "packing='yes' is not valid"),
        ({"fields": ["output"]}, "fields"),
        ({"loss": "all"}, "has no key 'loss'; did you mean 'loss_on'"),
    ],
)
@each_name
def test_wrong_keys_are_told_before_anything_is_read(build, name, keys, message):
    with pytest.raises(UserError, match=message):
        build(name, **keys)


def test_several_errors_are_told_at_once(build):
    with pytest.raises(UserError) as error:
        build("alpaca", prompt="{a}", prompt_with_input="{b}", path="/nowhere", block_size=1)
    assert len(error.value.messages) == 4


@pytest.mark.parametrize("text", ["{", '{"instruction": "a", "output": "b"}\n{"instruction'])
def test_broken_files(build, tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(UserError, match="rows.jsonl cannot be read as json"):
        assert build("alpaca", path=str(tmp_path / "rows.jsonl")).train_blocks


def test_a_file_that_is_no_table(build, text_file):
    with pytest.raises(UserError, match="text.txt holds no table: .jsonl, .json, .parquet do"):
        assert build("alpaca", path=str(text_file)).train_blocks


def test_a_file_without_the_columns(build, tmp_path):
    path = write(tmp_path / "rows.json", [{"instruction": "a", "reply": "b"}] * 3)
    with pytest.raises(UserError, match="rows.json has no column for the response.*dataset.fields.response=<column>"):
        assert build("alpaca", path=path).train_blocks
    assert build("alpaca", path=path, fields={"response": "reply"})._corpus.data.examples["all"][0].response == "b"


@each_name
def test_without_network_the_error_names_the_way_out(name, build, monkeypatch):
    import datasets
    import huggingface_hub

    def unreachable(*arguments, **keys):
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match="not known.*dataset.path=<folder>"):
        assert build(name).train_blocks


# What files hold beside


def test_a_folder_may_hold_a_readme(tmp_path, build):
    write(tmp_path / "data.jsonl", [record(index) for index in range(40)])
    (tmp_path / "README.md").write_text("# A dataset")
    assert len(DATASETS.build("alpaca", path=str(tmp_path)).examples["all"]) == 40


def test_files_named_for_splits_have_all_of_them(tmp_path, build):
    write(tmp_path / "train.jsonl", [record(index) for index in range(20)])
    write(tmp_path / "test.jsonl", [record(index) for index in range(15, 35)])
    module = build("alpaca", path=str(tmp_path), block_size=128, packing=False)
    assert len(module.blocks("all")) == 40
    prompts = [{each.prompt for each in module._corpus.data.examples[split]} for split in SPLITS]
    assert len(prompts[0]) == 20 and not prompts[0] & (prompts[1] | prompts[2])
    assert any("trained on as well and were left out" in warning for warning in module.warnings)


def test_records_of_one_prompt_are_of_one_split(tmp_path):
    rows = [{"instruction": f"Say {index % 20}", "output": str(index)} for index in range(300)]
    examples = DATASETS.build("alpaca", path=write(tmp_path / "rows.json", rows)).examples
    prompts = [{each.prompt for each in examples[split]} for split in SPLITS]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 20


def test_records_in_folders_have_names_of_their_own(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "data.jsonl", [record(index) for index in range(3)])
    names = [each.name for each in DATASETS.build("alpaca", path=str(tmp_path)).examples["all"]]
    assert names == [f"{folder}/data.jsonl:{index}" for folder in "ab" for index in range(3)]


@pytest.mark.parametrize("split", ["validation", "all"])
def test_records_without_a_response_are_told_whatever_is_read(tmp_path, build, split):
    rows = [record(index) | ({"output": ""} if index % 2 else {}) for index in range(60)]
    module = build("alpaca", path=write(tmp_path / "rows.json", rows), block_size=128)
    module.blocks(split)
    assert any("30 records of rows.json have no response" in warning for warning in module.warnings)


def test_a_template_may_name_a_field_that_a_record_does_not_have(tmp_path, build):
    rows = [{"instruction": f"Add {index}", "output": "x", "kind": "sum"} for index in range(30)]
    path = write(tmp_path / "rows.json", rows)
    keys = {"prompt": "{instruction} {input}{kind}: ", "fields": {"kind": "kind"}, "block_size": 64}
    module = build("alpaca", path=path, **keys)
    assert module._corpus.data.examples["all"][3].prompt == "Add 3 sum: "
    assert module.as_prompt("Count") == "Count : "


def test_whole_prompts_are_left_alone(tmp_path, build):
    rows = [{"text": f"[{index}] go", "output": "x"} for index in range(30)]
    path = write(tmp_path / "rows.json", rows)
    module = build("alpaca", path=path, fields={"prompt": "text"}, prompt="Q {instruction}", block_size=64)
    assert module._corpus.data.examples["all"][3].prompt == "[3] go"
    assert module.as_prompt("Count") == "Count"
    assert any("holds whole prompts" in warning for warning in module.warnings)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prompt": "Hello"}, "names no field: every prompt would be the same"),
        ({"prompt": "{instruction:d}"}, "is no template"),
        ({"prompt": "{response}"}, "which is no field of the records"),
        ({"fields": {"respnse": "output"}}, "fields.respnse is named by no template; did you mean 'response'"),
    ],
)
def test_templates_that_cannot_be_right(keys, message):
    assert any(message in error for error in dataset_errors({"name": "alpaca", **keys}))


def test_the_counts_are_of_what_is_scored(alpaca):
    response, everything = alpaca().counts("test"), alpaca(loss_on="all").counts("test")
    assert response["tokens"] == everything["tokens"]
    assert response["scored"] < everything["scored"] < everything["tokens"]
