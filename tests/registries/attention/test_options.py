"""Every option of every attention replacement does something."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from registries import ATTENTION, UserError
from registries.option import shared_keys
from registries.registry import parameters
from registries.settings import ReplacementSettings

# component -> option -> (a value that is not the default, other options with which it shows)
EFFECTS = {
    "standard": {},
    "window": {"window": (2, {}), "period": (16, {"window": 3})},
    "toroidal": {
        "depth": (4, {}),
        "frequencies": ("neighbouring", {}),
        "lambda_distance": (1.0, {}),
        "fusion_mode": ("mean", {}),
        "fusion_rank": (2, {"fusion_residual": False}),
        "fusion_residual": (False, {}),
        "period": (16, {}),
        "position": ("toroidal", {}),
    },
}
# Tested below: these do not show in the output of a fresh core in evaluation mode.
OTHERWISE = {"backend", "dropout", "temperature"}


def test_every_option_is_tested_here():
    for name, effects in EFFECTS.items():
        assert effects.keys() == parameters(ATTENTION.get(name)).keys() - OTHERWISE - {"shape"}
    assert not OTHERWISE & set(shared_keys(ReplacementSettings))


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name, effects in EFFECTS.items() for option in effects]
)
def test_an_option_changes_the_output(name, option, make_core, states):
    value, others = EFFECTS[name][option]
    query, key, value_states = states(40)

    def output(**options):
        return make_core(name, **others, **options)(query, key, value_states, None, 0.25, 0, 0)

    assert (output(**{option: value}) - output()).abs().max() > 1e-3


@pytest.mark.parametrize("options", [{}, {"backend": "reference"}], ids=str)
def test_dropout_acts_in_training_only(options, make_core, states):
    core, plain = make_core("toroidal", dropout=0.5, **options), make_core("toroidal", **options)
    arguments = (*states(20), None, 0.25, 0, 0)
    assert core(*arguments).equal(plain(*arguments))
    core.train()
    assert (core(*arguments) - plain(*arguments)).abs().max() > 0.1


def test_temperature_is_learned_for_each_head(make_core, states):
    core, plain = make_core("toroidal", temperature=True), make_core("toroidal")
    arguments = (*states(20), None, 0.25, 0, 0)
    assert core(*arguments).equal(plain(*arguments))
    core(*arguments).square().sum().backward()
    assert (core.log_temperature.grad != 0).all()
    with torch.no_grad():
        core.log_temperature[1] = 20.0  # so hot that all visible values weigh the same, but for the distance
    changed = (core(*arguments) - plain(*arguments)).abs().amax(dim=(0, 2, 3)) > 1e-3
    assert changed.tolist() == [False, True, False, False]


@pytest.mark.parametrize("name", ["toroidal", "window"])
@pytest.mark.parametrize(("backend", "uses_sdpa"), [("reference", False), ("sdpa", True), ("auto", True)])
def test_backend_chooses_how_it_is_computed(name, backend, uses_sdpa, make_core, states):
    class Calls(TorchDispatchMode):
        names: list[str] = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.append(function.name())
            return function(*args, **(kwargs or {}))

    Calls.names = []
    with torch.no_grad(), Calls():
        make_core(name, backend=backend)(*states(8), None, 0.25, 0, 0)
    assert any("scaled_dot_product" in call for call in Calls.names) == uses_sdpa


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("toroidal", {"depth": 0}),
        ("toroidal", {"depth": 2.0}),
        ("toroidal", {"lambda_distance": -0.1}),
        ("toroidal", {"fusion_mode": "median"}),
        ("toroidal", {"fusion_rank": 0}),
        ("toroidal", {"period": 1}),
        ("toroidal", {"position": "none"}),
        ("toroidal", {"dropout": 1.0}),
        ("toroidal", {"backend": "flash"}),
        ("toroidal", {"window": 3}),
        ("window", {"window": -1}),
        ("window", {"period": 1}),
        ("standard", {"depth": 1}),
    ],
)
def test_values_out_of_range_are_errors(name, options, shape):
    with pytest.raises(UserError, match=next(iter(options))):
        ATTENTION.build(name, shape=shape, **options)
