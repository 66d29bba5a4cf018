import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_modules import DATASETS, build_data_module, dataset_errors
from registries.registry import UserError
from studies.config.compose import compose

CONF = Path(__file__).parents[2] / "conf" / "dataset"


def test_looking_up_datasets_imports_nothing_heavy():
    code = (
        "import sys, data_modules; data_modules.DATASETS.names(); data_modules.dataset_errors({'name': 'pydoc'}); "
        "heavy = {'torch', 'lightning', 'datasets', 'transformers'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CONF.parents[1])


def test_every_dataset_has_a_config_and_every_config_a_dataset():
    named = {file.stem for file in CONF.glob("*.yaml") if yaml.safe_load(file.read_text())["name"] in DATASETS}
    assert named >= set(DATASETS.names())


@pytest.mark.parametrize("name", DATASETS.names())
def test_the_configs_are_valid(name):
    if name != "text":
        compose([f"dataset={name}"])
        return
    with pytest.raises(UserError) as error:
        compose(["dataset=text"])
    assert error.value.messages == ["dataset 'text' needs a local file or folder: set dataset.path"]


def test_all_errors_come_at_once(tokenizer):
    dataset = {"name": "pydoc", "block_sise": 3, "val_size": 0, "train_size": "3"}
    with pytest.raises(UserError) as error:
        build_data_module({"dataset": dataset, "seed": 0, "cache_dir": "unused"}, tokenizer)
    assert len(error.value.messages) == 3
    assert "'block_sise'; did you mean 'block_size'?" in str(error.value)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"name": "pydok"}, "did you mean 'pydoc'?"),
        ({"name": None}, "unknown dataset None"),
        ({"name": "text", "path": "nowhere"}, "dataset.path='nowhere' does not exist"),
        ({"name": "wikitext2", "path": "nowhere"}, "dataset.path='nowhere' does not exist"),
        ({"name": "openwebtext", "val_size": 1, "test_size": 1}, "dataset.train_size=null would read all"),
        ({"name": "sinusoidal", "train_size": 1, "val_size": 1}, "set dataset.test_size to a number of blocks"),
        ({"name": "pydoc", "num_workers": True}, "num_workers=True is not valid"),
    ],
)
def test_messages(dataset, message):
    (only,) = dataset_errors(dataset)
    assert message in only
