"""The frozen layers below what trains, which run once per block of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from data_modules.batches import ModelInput
from data_modules.tensor_files import tensors_sha256
from lightning_modules.hidden_states.frozen_states import FrozenStates
from lightning_modules.hidden_states.injection import block_entry, injected
from lightning_modules.stages.stage import Workspace
from registries.architectures import architecture_of


class FrozenPrefix:
    """The layers below the lowest one that trains: they run once per block of text, then their output is read back.

    Args:
        model: of which exactly what trains requires gradients.
        workspace: of the run.
    """

    def __init__(self, model: nn.Module, workspace: Workspace):
        self.model, self.blocks = model, architecture_of(model.config.model_type).blocks
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.layers = lowest_layer(trained, self.blocks) if self.blocks else 0
        self.states: FrozenStates | None = None
        if self.layers:
            identity = dict(workspace.identity)
            if self._changed(workspace):
                weights = tensors_sha256(self._parameters(model))
                identity |= {"changes": workspace.changes, "weights below": weights}
            self.states = FrozenStates(
                model, {"states": block_entry(model, self.layers)}, workspace.activations, identity
            )

    def reserve(self, rows: Sequence[ModelInput], visits: int) -> None:
        """Make room in the cache for that many visits of rows."""
        if self.states is not None:
            self.states.reserve(rows, visits)

    def _changed(self, workspace: Workspace) -> bool:
        """Whether surgery or an earlier stage has changed anything below."""
        if workspace.surgery and workspace.surgery.layers[0] < self.layers:
            return True
        parameters, originals = self._parameters(self.model), self._parameters(workspace.original)
        return parameters.keys() != originals.keys() or any(
            parameters[name] is not originals[name] for name in parameters
        )

    def _parameters(self, model: nn.Module) -> dict[str, Tensor]:
        """All parameters but those of the layers above (norm and head do no harm)."""
        above = tuple(f"{self.blocks}.{layer}." for layer in range(self.layers, model.config.num_hidden_layers))
        return {name: tensor for name, tensor in model.named_parameters() if not name.startswith(above)}

    @contextmanager
    def read_back(self, inputs: ModelInput) -> Iterator[None]:
        """Within this context, a forward pass of the model on `inputs` starts at the lowest layer that trains."""
        if self.states is None:
            yield
            return
        with injected(self.model, self.layers, self.states(inputs)["states"]):
            yield


def lowest_layer(trained: Sequence[str], blocks: str) -> int:
    """The lowest layer in which one of these parameters lies; 0 where one lies outside of all layers."""
    layers = [name.removeprefix(f"{blocks}.").partition(".")[0] for name in trained]
    return min((int(layer) if layer.isdigit() else 0 for layer in layers), default=0)
