import copy
import json

import pytest
import torch
from peft import PeftModel

import score
import train
from data_modules.batches import ModelInput
from lightning_modules import load_module
from lightning_modules.surgery.lora import lora_parameters, merge, place_lora, plain_weights
from lightning_modules.surgery.peft_folder import load_lora_folder, save_lora_folder
from lightning_modules.surgery.trained_parameters import attention_parameters, select_parameters, thaw
from lightning_modules.surgery.twins import separate, twin
from lightning_modules.training.objectives import next_token_nll
from lightning_modules.training.trainer import fit
from lightning_modules.weights import LORA_FOLDER
from registries import PLACEMENTS, UserError
from registries.placements.placement import CHANGES_WEIGHTS
from studies.config.compose import compose
from tests.rules import difference, disturb_cores, language_model, logits, tokens

FAMILIES = ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"]
VARIANTS = ["lora", "rslora", "dora"]
INITS = ["kaiming", "gaussian", "orthogonal", "pissa", "olora", "eva", "lora_ga"]
PARTS = [
    {"roles": ["attention", "mlp"], "layers": "all", "rank": 4},
    {"roles": ["mlp"], "layers": [1], "rank": 6},
]
OPTIONS = {"hybrid": {"parts": PARTS}, "suffix": {"suffixes": ["mlp.c_proj"]}}
PLACED = ["all_linear", "attention", "feed_forward", "attention_output", "query_value", "hybrid"]

each_family = pytest.mark.parametrize("family", FAMILIES)
each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_init = pytest.mark.parametrize("init", INITS)

# PEFT's OLoRA does not turn the weights of a Conv1D.
STARTS = [(family, init) for family in FAMILIES for init in INITS if (family, init) != ("gpt2", "olora")]
BOTH = [(family, init) for family, init in STARTS if family in ("gpt2", "llama")]


def batches():
    generator = torch.Generator().manual_seed(7)
    return [{"input_ids": torch.randint(512, (2, 16), generator=generator)} for _ in range(2)]


def mean_loss(model, batch):
    ids = batch["input_ids"]
    return next_token_nll(model, ModelInput(ids), ids) / ids[:, 1:].numel()


def put(model, name="hybrid", variant="lora", init="kaiming", **options):
    """LoRA as a run places it: the same start every time, alpha small enough for random weights."""
    default = OPTIONS.get(name, {"rank": 4})
    rows = PLACEMENTS.build(name, model=model, variant=variant, **default)
    torch.manual_seed(0)
    return place_lora(model, rows, 8.0, variant=variant, init=init, batches=batches, loss=mean_loss, **options)


def learn(model, steps=2):
    parameters = lora_parameters(model)
    thaw(model, parameters)
    optimizer = torch.optim.AdamW(parameters.values(), lr=2e-2)
    for _ in range(steps):
        for batch in batches():
            optimizer.zero_grad()
            mean_loss(model, batch).backward()
            optimizer.step()


def text_of(model):
    return tokens(model, 2, 12)


# At step 0


@pytest.mark.each_value
@each_family
@each_variant
def test_at_step_0_every_placement_changes_nothing(variant, family):
    plain = language_model(family)
    before = logits(plain, text_of(plain))
    for name in PLACED:
        model = copy.deepcopy(plain)
        put(model, name, variant)
        assert difference(logits(model, text_of(model)), before) < 1e-5, name


@pytest.mark.each_value("family", "init")
@pytest.mark.parametrize(("family", "init"), STARTS)
def test_at_step_0_every_start_changes_nothing(family, init):
    plain = language_model(family)
    before = logits(plain, text_of(plain))
    for variant in VARIANTS if init != "eva" else ["dora"]:
        model = copy.deepcopy(plain)
        put(model, "all_linear", variant, init)
        assert difference(logits(model, text_of(model)), before) < 1e-5, variant
        assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "pissa", "olora", "eva", "lora_ga"])
def test_every_start_is_another(init):
    usual, other = language_model("llama"), language_model("llama")
    put(usual, "attention")
    put(other, "attention", init=init)
    ours, theirs = lora_parameters(usual), lora_parameters(other)
    assert all(not ours[name].allclose(theirs[name]) for name in ours if ".lora_A." in name)


def test_the_same_seed_gives_the_same_start():
    for init in INITS:
        one, other = language_model("llama"), language_model("llama")
        put(one, "attention", init=init)
        put(other, "attention", init=init)
        theirs = lora_parameters(other)
        assert all(parameter.equal(theirs[name]) for name, parameter in lora_parameters(one).items()), init


@pytest.mark.parametrize("init", ["kaiming", "gaussian", "eva"])
def test_in_a_bf16_model_it_changes_nothing(init):
    model = language_model("llama").to(torch.bfloat16)
    before = logits(model, text_of(model))
    put(model, init=init)
    thaw(model, lora_parameters(model))
    assert logits(model, text_of(model)).equal(before)
    assert all(parameter.dtype == torch.float32 for parameter in lora_parameters(model).values())


def test_what_comes_from_the_weights_needs_fp32():
    for init in CHANGES_WEIGHTS:
        with pytest.raises(UserError, match=f"init={init}.*model.dtype=float32"):
            put(language_model("llama").to(torch.bfloat16), init=init)


def test_what_comes_from_data_needs_data():
    model = language_model("llama")
    rows = PLACEMENTS.build("attention", model=model, rank=4)
    for init in ("eva", "lora_ga"):
        with pytest.raises(UserError, match=f"init={init} needs training data"):
            place_lora(model, rows, init=init)


@pytest.mark.parametrize(("variant", "scaling"), [("lora", 8 / 4), ("rslora", 8 / 2), ("dora", 8 / 4)])
def test_the_scaling(variant, scaling):
    model = language_model("llama")
    put(model, "attention", variant)
    assert model.get_submodule("model.layers.0.self_attn.q_proj").scaling["default"] == pytest.approx(scaling)


# The original


@pytest.mark.each_value("family", "init")
@pytest.mark.parametrize(("family", "init"), BOTH)
def test_the_original_stays_as_it_is(family, init):
    model = language_model(family)
    original, before = twin(model), logits(model, text_of(model))
    if init in CHANGES_WEIGHTS:
        rows = PLACEMENTS.build("hybrid", model=model, parts=PARTS)
        separate(original, [model.get_submodule(row.module).weight for row in rows])
    put(model, init=init)
    assert logits(original, text_of(model)).equal(before)
    learn(model)
    assert logits(original, text_of(model)).equal(before)
    assert difference(logits(model, text_of(model)), before) > 1e-3
    assert not any("lora" in name for name, _ in original.named_modules())


@each_init
def test_the_original_of_a_study_stays_as_it_is(init, small):
    from data_modules import build_data_module
    from lightning_modules.config import read_config
    from lightning_modules.load import load_language_model, operate

    cfg = read_config(train.compose(small("placement=all_linear", "placement.rank=4", f"placement.init={init}")))
    loader = cfg.model_loader()
    module = load_language_model(cfg, loader, loader.tokenizer())
    before = logits(module.original, text_of(module.model))
    operate(module, cfg, build_data_module(cfg.plain, module.tokenizer))
    assert difference(logits(module.model, text_of(module.model)), before) < 1e-5
    learn(module.model)
    assert logits(module.original, text_of(module.model)).equal(before)


# What trains


@each_family
@each_variant
def test_exactly_the_additions_train(variant, family, make_module, make_stage):
    module = make_module(family=family)
    module.placement = put(module.model, variant=variant)
    stage = make_stage(module, "next_token")
    stage.workspace = stage.workspace.__class__(**{**vars(stage.workspace), "placement": module.placement})
    module.begin("next_token", stage)
    rows = module.placement.rows
    kinds = ["lora_A.default.weight", "lora_B.default.weight"]
    kinds += ["lora_magnitude_vector.default.weight"] if variant == "dora" else []
    assert set(module.trained_parameters()) == {f"{row.module}.{kind}" for row in rows for kind in kinds}
    assert sum(p.numel() for p in module.trained_parameters().values()) == sum(row.parameters for row in rows)
    stage.start(module.model)
    stage.loss(module.model, batches()[0])[0].backward()
    assert {name for name, p in module.model.named_parameters() if p.grad is not None} == set(
        module.trained_parameters()
    )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_replaced_attention_trains_with_them(family, make_module):
    module = make_module("toroidal", family, [1])
    placed = put(module.model)
    chosen = select_parameters(module.model, module.surgery, placed, "replaced")
    attention = attention_parameters(module.model, [1])
    assert set(chosen) == set(attention) | set(lora_parameters(module.model))
    assert any(".core." in name for name in chosen)
    assert all(".1." in name for name in chosen if ".lora_" not in name)


@each_init
def test_steps_change_the_additions_and_nothing_else(init, make_module, make_stage, loader, blocks, tmp_path, request):
    module = make_module()
    module.placement = put(module.model, init=init)
    stage = make_stage(module, "next_token", steps=2)
    stage.workspace = stage.workspace.__class__(**{**vars(stage.workspace), "placement": module.placement})
    module.begin("next_token", stage)
    before = {name: parameter.detach().clone() for name, parameter in module.model.named_parameters()}
    options = request.getfixturevalue("trainer_options")
    fit(module, loader(blocks, 4), loader(blocks), options, tmp_path / "fit")
    changed = {name for name, parameter in module.model.named_parameters() if not parameter.equal(before[name])}
    assert changed == set(lora_parameters(module.model))


# Adapters


@pytest.mark.each_value
@pytest.mark.parametrize(("family", "init"), BOTH)
@each_variant
def test_a_saved_adapter_is_loaded_by_peft(variant, family, init, tmp_path):
    plain = language_model(family)
    model = copy.deepcopy(plain)
    before = logits(plain, text_of(plain))
    placed = put(model, variant=variant, init=init)
    learn(model)
    text, expected = text_of(model), logits(model, text_of(model))
    assert difference(expected, before) > 1e-3
    save_lora_folder(model, placed, tmp_path, "some/model")
    loaded = copy.deepcopy(plain)
    load_lora_folder(loaded, tmp_path)
    assert difference(logits(loaded, text), expected) < 1e-5
    assert not any(parameter.isnan().any() for parameter in loaded.parameters())
    by_peft = PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path)).eval()
    assert difference(logits(by_peft, text), expected) < 1e-5
    merged = by_peft.merge_and_unload()
    assert difference(logits(merged, text), expected) < 1e-5
    assert {type(module) for module in merged.modules()} == {type(module) for module in plain.modules()}


def test_the_folder_tells_its_base_and_is_plain_json(tmp_path):
    model = language_model("llama")
    save_lora_folder(model, put(model), tmp_path, "some/model")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/model"
    assert config["peft_type"] == "LORA"
    assert set(config["rank_pattern"].values()) == {6}
    assert {file.name for file in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_an_adapter_of_another_model_is_told(tmp_path):
    with pytest.raises(UserError, match="holds no LoRA"):
        load_lora_folder(language_model("llama"), tmp_path)
    model = language_model("llama")
    save_lora_folder(model, put(model), tmp_path, None)
    with pytest.raises(UserError, match="another model"):
        load_lora_folder(language_model("llama", num_layers=1), tmp_path)


def test_an_empty_table_is_an_error():
    with pytest.raises(UserError, match="no linear layer"):
        place_lora(language_model("llama"), [])


# Runs


def scored_by(overrides, folder):
    """The config that scores a run on the data of small studies."""
    kept = [line for line in overrides if line.split(".")[0].split("=")[0] in ("dataset", "trainer")]
    kept = [line for line in kept if "max_steps" not in line and "interval" not in line and "log_every" not in line]
    return compose([*kept, f"run={folder}"], "score")


@pytest.mark.parametrize(
    "overrides",
    [
        ["placement=hybrid"],
        ["placement=all_linear", "placement.variant=dora", "placement.init=pissa"],
        ["model.family=gpt2", "placement=attention", "placement.budget=9000", "placement.init=lora_ga"],
        ["placement=importance", "placement.budget=9000", "placement.rank=4"],
        ["placement=attention", "replacement=toroidal", "replacement.transfer_steps=2"],
    ],
    ids=str,
)
def test_a_finished_run_is_loaded_with_its_scores(overrides, run, small):
    folder = run(*overrides)
    result = json.loads((folder / "result.json").read_text())
    metrics, table = result["metrics"], json.loads((folder / "placement.json").read_text())
    lora = sum(row["parameters"] for row in table["rows"])
    assert metrics["params/lora"] == lora
    assert (metrics["params/trainable"] == lora) == ("replacement=toroidal" not in overrides)
    assert lora == sum(table["parameters_by_role"].values()) == sum(table["parameters_by_layer"].values())
    assert bool(table["scores"]) == ("placement=importance" in overrides)
    assert (folder / LORA_FOLDER / "adapter_model.safetensors").is_file()
    assert load_module(folder).model.get_submodule(table["rows"][0]["module"]).lora_A["default"] is not None
    again = score.score(scored_by(small(), folder))
    assert again["loss"] == pytest.approx(metrics["val/loss"], rel=1e-6)
    assert again["loss"] != pytest.approx(metrics["baseline/loss"], rel=1e-6)


def test_modules_with_cores_keep_their_cores(make_module, tmp_path):
    """An adapter is put on a model after surgery as it was."""
    module = make_module("toroidal", "llama", [0])
    disturb_cores(module.model)
    plain = copy.deepcopy(module.model)
    placed = put(module.model)
    learn(module.model)
    save_lora_folder(module.model, placed, tmp_path, None)
    load_lora_folder(plain, tmp_path)
    text = text_of(plain)
    assert logits(plain, text).equal(logits(module.model, text))


# What was once wrong


@pytest.mark.each_value
@pytest.mark.parametrize("init", ["kaiming", *CHANGES_WEIGHTS])
@pytest.mark.parametrize("training", [["replacement=toroidal", "replacement.transfer_steps=2"], ["model.freeze=false"]])
def test_a_run_that_trains_the_weights_below_the_additions_is_loaded_as_it_was(run, init, training):
    folder = run("placement=attention", f"placement.init={init}", "placement.rank=4", "model.dtype=float32", *training)
    result = json.loads((folder / "result.json").read_text())
    found = score.score(compose([f"run={folder}", *_dataset(result)], "score"))
    assert found["loss"] == pytest.approx(result["metrics"]["val/loss"], abs=1e-5)


@pytest.mark.parametrize(("family", "init"), [case for case in BOTH if case[1] in CHANGES_WEIGHTS])
def test_weights_that_a_start_has_changed_are_put_back(family, init):
    """Of GPT-2 too, whose matrices are stored the other way round: square ones give no error when they are turned."""
    model = language_model(family)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    placed = put(model, "all_linear", init=init)
    frozen = {row.module: model.get_submodule(row.module).base_layer.weight for row in placed.rows}
    assert all(not weight.allclose(before[f"{module}.weight"], atol=1e-3) for module, weight in frozen.items())
    learn(model)  # the additions alone: what they started with is what was taken
    trained = {f"{module}.base_layer.weight": weight for module, weight in frozen.items()}
    found = plain_weights(model, placed, trained | lora_parameters(model))
    assert found.keys() == trained.keys()
    for module in frozen:
        torch.testing.assert_close(found[f"{module}.base_layer.weight"], before[f"{module}.weight"], rtol=0, atol=1e-5)


def _dataset(result):
    dataset, keys = result["config"]["dataset"], ("path", "block_size", "val_size")
    return [f"dataset={dataset['name']}", *(f"dataset.{key}={dataset[key]}" for key in keys)]


def test_dropout_acts_in_training_and_nowhere_else(run):
    losses = []
    for dropout in (0.0, 0.5):
        folder = run("placement=attention", f"placement.dropout={dropout}", "placement.rank=4", "optimizer.lr=0.05")
        losses.append(json.loads((folder / "result.json").read_text())["metrics"]["val/loss"])
    assert losses[0] != losses[1]
    assert not any(module.training for module in load_module(folder).model.modules())


def test_eva_joins_batches_that_are_shorter_than_the_rank():
    model = language_model("llama")
    rows = PLACEMENTS.build("attention", model=model, rank=28)
    place_lora(model, rows, init="eva", batches=lambda: [{"input_ids": batch["input_ids"][:1]} for batch in batches()])
    with pytest.raises(UserError, match="at least as many tokens as the rank, 40"):
        rows = PLACEMENTS.build("feed_forward", model=language_model("llama"), rank=40, layers=[0])
        place_lora(
            language_model("llama"), rows, init="eva", batches=lambda: [{"input_ids": batches()[0]["input_ids"]}]
        )


@pytest.mark.parametrize("family", ["phi", "gpt_neox"])
def test_eva_keeps_the_ranks_of_layers_that_share_their_input(family):
    model = language_model(family)
    parts = [{"roles": ["attention"], "layers": "all", "rank": 3}, {"roles": ["mlp"], "layers": "all", "rank": 5}]
    rows = PLACEMENTS.build("hybrid", model=model, parts=parts)
    place_lora(model, rows, init="eva", batches=batches)
    for row in rows:
        assert len(model.get_submodule(row.module).lora_A["default"].weight) == row.rank


def test_orthogonal_matrices_change_nothing_in_bf16():
    model = language_model("llama").to(torch.bfloat16)
    before = logits(model, text_of(model))
    place_lora(model, PLACEMENTS.build("all_linear", model=model, rank=4), init="orthogonal")
    assert difference(logits(model, text_of(model)), before) < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["placement=attention", "placement.init=olora", "model.family=gpt2"], "olora does not work for gpt2"),
        (["placement=attention", "placement.init=orthogonal", "placement.rank=3"], "needs even ranks"),
        (["placement=attention", "placement.init=lora_ga", "placement.rank=33"], "rank of at most"),
        (["placement=attention", "placement.roles=[]"], "at least 1 item"),
        (["placement=attention", "placement.roles=[mlpp]"], "placement.roles: role 'mlpp'"),
        (["placement=attention", "placement.layers=[70]"], "placement.layers=.70. names layer 70"),
        (["placement=hybrid", "placement.parts=[{roles:[mlp],layers:all,rank:4000}]"], "placement.parts.0..rank=4000"),
        (["placement=attention", "placement.variant=dra"], "variant='dra'"),
    ],
)
def test_what_cannot_work_is_told_before_any_weights_are_read(options, message):
    with pytest.raises(UserError, match=message) as error:
        compose(["model=random", *options])
    assert len(error.value.messages) == 1


@each_variant
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_merged_additions_leave_a_plain_model(family, variant):
    model = language_model(family)
    plain = {name for name, _ in model.named_parameters()}
    put(model, variant=variant)
    learn(model)
    before = logits(model, text_of(model))
    merge(model)
    assert {name for name, _ in model.named_parameters()} == plain
    assert difference(logits(model, text_of(model)), before) < 1e-5
