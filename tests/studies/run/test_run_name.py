import pytest

from lightning_modules.config import as_plain, read_config
from studies.config.compose import compose
from studies.run.run_name import LONGEST, run_name


@pytest.mark.parametrize(
    ("typed", "keys", "name"),
    [
        (["model=tiny_phi"], None, "tiny_phi-none"),
        (
            ["model=tiny_phi", "replacement=toroidal", "replacement.depth=4", "replacement.lambda_distance=0.5"],
            None,
            "tiny_phi-toroidal depth=4 lambda_distance=0.5",
        ),
        (
            ["model=tiny_phi", "replacement=toroidal", "replacement.layers=[0,2]", "trainer.max_steps=4", "seed=1"],
            ["replacement.layers", "seed"],
            "tiny_phi-toroidal layers=0,2 seed=1",
        ),
        (["model=tiny_phi", "dataset=pycode", "output_dir=/tmp/a", "tracking=none"], None, "tiny_phi-none pycode"),
        (["model=tiny_phi", "trainer.log_every_n_steps=5", "hydra.verbose=true"], None, "tiny_phi-none"),
    ],
)
def test_a_name_says_what_differs(typed, keys, name):
    cfg = read_config(as_plain(compose([line for line in typed if not line.startswith("hydra.")])))
    assert run_name(cfg, typed, keys) == name


def test_a_long_name_is_cut():
    cfg = read_config(as_plain(compose(["model=tiny_phi"])))
    assert len(run_name(cfg, [f"samples.prompts=[{'word,' * 100}]"])) <= LONGEST
