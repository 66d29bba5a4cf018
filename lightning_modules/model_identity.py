"""What tells a model from others: its weights and its config."""

from __future__ import annotations

import hashlib
import json

from torch import nn

from data_modules.tensor_files import tensors_sha256


def model_identity(model: nn.Module) -> dict[str, str]:
    """What a model's activations depend on beside the tokens: its weights (with what else it keeps) and its config."""
    config = {key: value for key, value in model.config.to_dict().items() if not key.startswith("_")}  # not its path
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()
    parameters = dict(model.named_parameters())
    shared = {parameter.data_ptr() for parameter in parameters.values()}
    kept = {name: tensor for name, tensor in model.state_dict().items() if tensor.data_ptr() not in shared}
    return {"weights": tensors_sha256(parameters | kept), "config": digest}
