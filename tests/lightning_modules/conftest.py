import pytest
import torch
from torch.utils.data import DataLoader

from data_modules.caches.activation_cache import ActivationCache
from data_modules.tensor_files import tensors_sha256
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.config import TrainerSettings
from lightning_modules.learning_rate import OptimizerSettings
from lightning_modules.stages import STAGES
from lightning_modules.stages.stage import Workspace
from lightning_modules.surgery.replaced_attention import replace_attention
from registries.models.random import byte_tokenizer
from tests.rules import language_model

LENGTH, VOCABULARY = 16, 512


@pytest.fixture
def trainer_options():
    """The config group `trainer` of three steps on a CPU, without validation."""
    group = {
        "name": "cpu",
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "max_steps": 3,
        "val_check_interval": None,
        "checkpoint_every_n_steps": 1000,
    }
    return TrainerSettings.read(group)


@pytest.fixture
def blocks():
    """(12, 16) random tokens."""
    return torch.randint(VOCABULARY, (12, LENGTH), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def loader():
    """A loader of batches of some blocks, in order, which starts again when it is at the end."""

    def make(blocks, batch_size=2, batches=None):
        rows = blocks
        if batches is not None:
            rows = blocks.repeat(-(-batches * batch_size // len(blocks)), 1)[: batches * batch_size]
        return DataLoader([{"input_ids": row} for row in rows], batch_size=batch_size)

    return make


@pytest.fixture
def make_module():
    """A module of a random model, after surgery where a replacement is named; the same for the same arguments."""

    def make(
        replacement=None,
        family="llama",
        layers=(0, 1),
        init="copy",
        dtype=torch.float32,
        options=None,
        num_layers=2,
        optimizer=None,
        **others,
    ):
        model = language_model(family, num_layers=num_layers).to(dtype)
        torch.manual_seed(0)
        settings = OptimizerSettings.read({"name": "adamw", **(optimizer or {})})
        module = CausalLMModule(model, byte_tokenizer(), optimizer=settings, **others)
        if replacement:
            module.surgery = replace_attention(model, replacement, list(layers), init, options)
        return module

    return make


@pytest.fixture
def make_stage(tmp_path, blocks):
    """A stage of a module, with what it shares with others; `pass_size` is that of end-to-end stages."""

    def make(module, name, pass_size=4, loss_chunk_size=None, cache=True, **keys):
        workspace = Workspace(
            original=module.original,
            tokenizer=module.tokenizer,
            surgery=module.surgery,
            activations=ActivationCache(tmp_path / "cache", 1.0, cache),
            identity={"weights": tensors_sha256(dict(module.original.named_parameters()))},
            train_blocks=blocks,
            batch_size=pass_size,
            loss_chunk_size=loss_chunk_size,
        )
        return STAGES.build(name, workspace=workspace, **{"steps": 3, "batch_size": 4, "lr": 0.05, **keys})

    return make
