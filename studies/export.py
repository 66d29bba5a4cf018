"""Write a finished run's model as a Hugging Face folder.

python -m studies.export outputs/runs/<run> <folder> [float32|float16|bfloat16]

Placed LoRA is merged into the weights. Where a replacement or the LoRA of a recovery has changed the model,
`lightning_modules.load_exported(folder)` loads it; otherwise transformers alone does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from registries.registry import UserError
from studies.run_folder import write_text


def export(run: Path, folder: Path, dtype: str | None = None) -> None:
    """Save the model of `run` and its tokenizer to `folder`.

    Args:
        dtype: of the weights; None keeps each in the dtype that it has in the run.
    """
    import torch

    from lightning_modules import load_module
    from lightning_modules.cross_model import require_one_model
    from lightning_modules.exported import SURGERY_FILE
    from lightning_modules.placement import merge
    from lightning_modules.recovery import recovery_plan

    module = load_module(run)
    require_one_model(module, "an exported folder")
    result = json.loads((run / "result.json").read_text())
    model = module.model if dtype is None else module.model.to(getattr(torch, dtype))
    merge(model)  # placed LoRA; the run's own folder has it apart
    model.save_pretrained(folder)
    module.tokenizer.save_pretrained(folder)
    added = {
        "replacement": result["config"]["replacement"],
        "layers": result.get("layers", []),
        "recovery": recovery_plan(result["config"]) if result.get("stages") else {},
        "plugins": result["config"]["plugins"],
    }
    if module.surgery is not None or "lora" in added["recovery"]:
        write_text(folder / SURGERY_FILE, json.dumps(added, indent=2))
        write_text(folder / "README.md", _card(run, result))


def _card(run: Path, result: dict[str, Any]) -> str:
    metrics, config = result["metrics"], result["config"]
    return (
        f"# {config['model']['name']} after surgery\n\n"
        f"Attention of layers {result.get('layers', [])}: {config['replacement']['name']}. Validation perplexity "
        f"{metrics['val/ppl']:.4f}, the untouched model's {metrics['baseline/ppl']:.4f} ({run.name}).\n\n"
        "transformers alone would load it without the new attention. Load it with Graftlab:\n\n"
        "```python\nfrom lightning_modules import load_exported\n\nmodel, tokenizer = load_exported(folder)\n```\n"
    )


if __name__ == "__main__":
    from studies.launch import exit_with

    try:
        export(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
    except UserError as error:
        exit_with(error)
