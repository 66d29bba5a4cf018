import dataclasses

import pytest
import torch

from data_modules.batches import ModelInput
from lightning_modules.output_head import final_states
from lightning_modules.training.objectives import EndToEnd
from lightning_modules.training.teacher import Teacher
from registries import UserError
from registries.models.random import byte_tokenizer
from tests.rules import difference, disturb_cores, language_model, logits, tokens

FAMILIES = ["gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma3"]
each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def workspace_of(make_module, make_stage):
    """A replaced module, and its workspace."""

    def workspace_of(family="llama", **options):
        module = make_module("toroidal", family, **options)
        disturb_cores(module.model)
        return module, make_stage(module, "next_token").workspace

    return workspace_of


@pytest.fixture
def folder_of(tmp_path):
    """A folder with a model and its tokenizer."""

    def folder_of(model, name="teacher", tokenizer=None):
        model.save_pretrained(tmp_path / name)
        (tokenizer or byte_tokenizer()).save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return folder_of


def body_calls(model):
    calls = []
    model.base_model.register_forward_pre_hook(lambda module, args, kwargs: calls.append(1), with_kwargs=True)
    return calls


# The untouched model


@each_family
def test_without_a_path_the_teacher_is_the_untouched_model(family, workspace_of):
    module, workspace = workspace_of(family)
    teacher, text = Teacher(workspace), tokens(module.model, 3, 12)
    assert teacher.model is module.original
    states = teacher.final_states(ModelInput(text))
    with torch.no_grad():
        assert difference(states, final_states(language_model(family), ModelInput(text))) < 1e-6
        assert difference(states, final_states(module.model, ModelInput(text))) > 1e-3
    assert not states.requires_grad


def test_final_states_are_computed_once_per_block(workspace_of):
    module, workspace = workspace_of()
    calls, text = body_calls(module.original), tokens(module.model, 3, 12)
    first = Teacher(workspace).final_states(ModelInput(text))
    assert len(calls) == 3
    again = Teacher(workspace).final_states(ModelInput(text[[2, 0, 2]]))  # of another run, or another stage
    assert len(calls) == 3
    assert again.equal(first[[2, 0, 2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_final_states_reserve_what_they_take(dtype, workspace_of, monkeypatch):
    module, workspace = workspace_of(dtype=dtype)
    teacher, asked = Teacher(workspace), []
    monkeypatch.setattr(workspace.activations, "reserve", lambda *arguments: asked.append(arguments))
    blocks = list(ModelInput(tokens(module.model, 7, 12)).rows())
    for visits in (5, 100):
        teacher.reserve(blocks, visits)
    states = teacher.final_states(ModelInput(tokens(module.model, 1, 12)))
    assert states.dtype == dtype
    size = states.numel() * states.element_size()
    assert asked == [([teacher.key], blocks, 5, size), ([teacher.key], blocks, 7, size)]


def test_another_untouched_model_is_another_place(workspace_of):
    _, workspace = workspace_of()
    others = [dataclasses.replace(workspace, identity={"weights": name}) for name in ("a", "b")]
    assert len({Teacher(each).key for each in [workspace, *others]}) == 3


# Another model


@each_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_teacher_from_a_folder(dtype, family, workspace_of, folder_of):
    """Of any family and any size, in the dtype of the model that trains."""
    module, workspace = workspace_of("llama", dtype=dtype)
    other = language_model(family, seed=3, num_layers=1, hidden_size=32)
    teacher, text = Teacher(workspace, folder_of(other)), tokens(module.model, 2, 12)
    assert teacher.width == 32
    assert teacher.model.dtype == dtype
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    with torch.no_grad():
        expected = torch.cat([final_states(other.to(dtype), row) for row in ModelInput(text).rows()])
    assert difference(teacher.final_states(ModelInput(text)).float(), expected.float()) < (
        1e-6 if dtype == torch.float32 else 0.05
    )


def test_the_states_of_two_teachers_are_not_mixed_up(workspace_of, folder_of):
    module, workspace = workspace_of()
    text = tokens(module.model, 2, 12)
    models = [language_model("llama", seed=seed) for seed in (3, 4)]
    teachers = [Teacher(workspace, folder_of(model, f"teacher{index}")) for index, model in enumerate(models)]
    teachers.append(Teacher(workspace))
    assert len({teacher.key for teacher in teachers}) == 3
    for _ in range(2):
        for teacher, model in zip(teachers, [*models, module.original], strict=True):
            with torch.no_grad():
                assert difference(teacher.final_states(ModelInput(text)), final_states(model, ModelInput(text))) < 1e-6


def test_the_same_teacher_in_another_folder_shares_its_states(workspace_of, folder_of):
    _, workspace = workspace_of()
    model = language_model("llama", seed=3)
    assert Teacher(workspace, folder_of(model, "a")).key == Teacher(workspace, folder_of(model, "b")).key


def test_the_same_weights_with_another_config_are_another_teacher(workspace_of, folder_of):
    module, workspace = workspace_of()
    text = tokens(module.model, 2, 12)
    folders = []
    for theta in (10_000.0, 10.0):
        model = language_model("llama", seed=3)
        model.config.rope_parameters = {"rope_type": "default", "rope_theta": theta}
        folders.append(folder_of(model, f"theta {theta}"))
    states = [Teacher(workspace, folder).final_states(ModelInput(text)) for folder in folders]
    with torch.no_grad():
        expected = final_states(Teacher(workspace, folders[1]).model, ModelInput(text))
    assert difference(states[1], expected) < 1e-6


def test_another_vocabulary_is_an_error_that_names_both(workspace_of, folder_of):
    _, workspace = workspace_of()
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["another", "token"])
    folder = folder_of(language_model("llama"), tokenizer=tokenizer)
    with pytest.raises(UserError) as error:
        Teacher(workspace, folder)
    for named in (folder, "259 tokens", "(257)", "same tokenizer"):
        assert named in str(error.value)


def test_a_vocabulary_of_the_same_size_in_another_order_is_an_error(workspace_of, folder_of):
    _, workspace = workspace_of()
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = byte_tokenizer().get_vocab()
    turned = {token: (index + 1) % len(vocabulary) for token, index in vocabulary.items()}
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=turned, merges=[])))
    with pytest.raises(UserError, match="another vocabulary"):
        Teacher(workspace, folder_of(language_model("llama"), tokenizer=other))


def test_an_output_layer_of_another_size_is_an_error_or_can_be_learned_from(workspace_of, folder_of):
    """The tokenizer is the same, and one of the models has its output padded to a round number."""
    module, workspace = workspace_of()
    folder = folder_of(language_model("llama", vocab_size=640))
    try:
        EndToEnd(module.model, workspace, 4, "kl", teacher=folder)(
            module.model, {"input_ids": tokens(module.model, 2, 12) % 257}
        )
    except UserError as error:
        assert "512" in str(error) and "640" in str(error)


@pytest.mark.parametrize("missing", ["folder", "weights", "tokenizer"])
def test_a_folder_that_cannot_be_read_is_an_error(missing, workspace_of, folder_of, tmp_path):
    _, workspace = workspace_of()
    folder = tmp_path / "nothing"
    if missing != "folder":
        folder = tmp_path / "teacher"
        folder_of(language_model("llama"))
        for file in folder.glob("*.safetensors" if missing == "weights" else "tokenizer*"):
            file.unlink()
    with pytest.raises(UserError, match=str(folder)):
        Teacher(workspace, str(folder))


def test_a_teacher_does_not_change_the_model_that_trains(workspace_of, folder_of):
    module, workspace = workspace_of()
    text = tokens(module.model, 2, 12)
    before = logits(module.model, text)
    Teacher(workspace, folder_of(language_model("llama", seed=3))).final_states(ModelInput(text))
    assert logits(module.model, text).equal(before)
