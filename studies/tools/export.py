"""Write a finished run's model as a Hugging Face folder.

python -m studies.tools.export outputs/runs/<run> <folder> [float32|float16|bfloat16]

The folder is made anew, or is empty. Placed LoRA is merged into the weights. Where a replacement or the LoRA of a
recovery has changed the model, `lightning_modules.load_exported(folder)` loads it; otherwise transformers alone does.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from registries.registry import UserError, nearest
from studies.run.files import write_text

DTYPES = ("float32", "float16", "bfloat16")


def export(run: Path, folder: Path, dtype: str | None = None) -> None:
    """Save the model of `run` and its tokenizer to `folder`, all of it or nothing.

    Args:
        dtype: of the weights; None keeps each in the dtype that it has in the run.

    Raises:
        UserError: the folder holds something already or cannot be written, or the run has no model of its own.
    """
    folder = folder.expanduser().resolve()
    _require_room(folder)
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is none{nearest(dtype, DTYPES)} Allowed: {', '.join(DTYPES)}")
    module, result = _load(run)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial", dir=folder.parent))
        try:
            _write(module, result, run, partial, dtype)
            partial.chmod(0o777 & ~_umask())
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write the model to {folder}: {error}") from error


def _require_room(folder: Path) -> None:
    if folder.is_file():
        raise UserError(f"{folder} is a file: name a new folder, or an empty one")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty, and files of another model would mix with these: name a new folder")


def _umask() -> int:
    """The permissions that new files do not get; it can only be read by setting it."""
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def _load(run: Path) -> tuple[Any, dict[str, Any]]:
    from lightning_modules import load_module

    module = load_module(run)
    module.require_one_model("an exported folder")
    return module, json.loads((run / "result.json").read_text())


def _write(module: Any, result: dict[str, Any], run: Path, folder: Path, dtype: str | None) -> None:
    import torch

    from lightning_modules.config import read_config
    from lightning_modules.surgery.exported import SURGERY_FILE
    from lightning_modules.surgery.lora import merge
    from lightning_modules.training.stage_plan import recovery_plan

    model = module.model if dtype is None else module.model.to(getattr(torch, dtype))
    merge(model)  # placed LoRA; the run's own folder has it apart
    model.save_pretrained(folder)
    module.tokenizer.save_pretrained(folder)
    added = {
        "replacement": result["config"]["replacement"],
        "layers": result.get("layers", []),
        "recovery": recovery_plan(read_config(result["config"])) if result.get("stages") else {},
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


def main(run: str, folder: str, dtype: str | None = None) -> None:
    """The command line."""
    export(Path(run), Path(folder), dtype)


if __name__ == "__main__":
    from studies.tools.command import run_tool

    run_tool(main, __doc__)
