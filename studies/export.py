"""Write a finished run's model as a Hugging Face folder that transformers alone can load.

python -m studies.export outputs/runs/<run> <folder> [float32|float16|bfloat16]
"""

from __future__ import annotations

import sys
from pathlib import Path

from registries.registry import UserError


def export(run: Path, folder: Path, dtype: str = "float32") -> None:
    """Save the model of `run` and its tokenizer to `folder`, with weights in `dtype`.

    Raises:
        UserError: its attention was replaced, which transformers alone cannot load.
    """
    import torch

    from lightning_modules import load_module

    module = load_module(run)
    if module.surgery is not None:
        raise UserError(
            f"{run} has replaced attention layers {module.surgery.layers}, which transformers alone cannot load; "
            "lightning_modules.load_module(run) loads it"
        )
    module.model.to(getattr(torch, dtype)).save_pretrained(folder)
    module.tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    from studies.launch import exit_with

    try:
        export(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
    except UserError as error:
        exit_with(error)
