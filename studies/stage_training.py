"""The training of one stage, or what it trained before; a stage that was finished is not repeated."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning import Callback

from data_modules.data_module import BlockDataModule
from data_modules.tensor_files import save_weights
from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.config import TrainerSettings
from lightning_modules.processes import from_first
from lightning_modules.stages.stage import Stage
from lightning_modules.training.finders import STEPS_OF_A_SIZE, TRIALS, find_batch_size, find_rate
from lightning_modules.training.stage_plan import filled_in, training_notes
from lightning_modules.training.trainer import fit
from lightning_modules.weights import read_weights
from registries.registry import UserError
from studies.progress import say
from studies.report.display import show_parameters
from studies.study import Study

LARGEST_BATCH = 8192  # blocks, up to which a batch is searched for
CHECKPOINT_KEYS = ("global_step", "state_dict", "stage", "optimizer_states", "lr_schedulers", "loops", "callbacks")


def train_stage(
    study: Study,
    module: CausalLMModule,
    name: str,
    stage: Stage,
    callbacks: Sequence[Callback] = (),
    trainer: TrainerSettings | None = None,
) -> dict[str, Any]:
    """Train one stage, or take what it trained from the folder if it was finished before. Returns its parameters.

    Args:
        trainer: None: that of the config.
    """
    data, record, trainer = study.data, study.record, trainer or study.cfg.trainer
    module.begin(name, stage)
    parameters = module.trained_parameters()
    folder = record.folder.path / "checkpoints" / name
    done = record.folder.result.setdefault("stages", {})
    first_step = sum(earlier["steps"] for key, earlier in done.items() if key != name)
    if name in done:
        restore_stage(parameters, folder / "weights.safetensors")
    else:
        _find(study, module, name, trainer)
        show_parameters(name, parameters)
        start = _completed_steps(folder)
        since = f", from step {start} on" if start else ""
        say(f"{name}: {stage.steps} steps of {stage.batch_size} x {data.settings.block_size} tokens{since}")
        notes = training_notes(name, stage, trainer, len(data.train_blocks))
        for note in notes:
            say(note)
        for logger in record.loggers:
            logger.first_step = first_step
        loader = data.fit_loader(stage.steps, start, stage.batch_size, name)
        clock = fit(module, loader, data.val_dataloader(), trainer, folder, record.loggers, callbacks)
        save_weights(parameters, folder / "weights.safetensors")
        if stage.scope == "layers":
            record.folder.record(**from_first(lambda: _held_out(module, stage, data, name)))
        done[name] = {
            "steps": module.trainer.global_step,  # fewer than planned where training stopped early
            "tokens": module.trainer.global_step * stage.batch_size * data.settings.block_size,
            "trained": {key: list(parameter.shape) for key, parameter in parameters.items()},
            "seconds": clock.seconds,
            "tokens_per_s": clock.tokens_per_s,
            "notes": notes,
        }
        record.folder.write()
        (folder / "last.ckpt").unlink(missing_ok=True)  # it would only fill the disk: the stage is done
    return parameters


def _find(study: Study, module: CausalLMModule, name: str, trainer: TrainerSettings) -> None:
    """Let Lightning search for the batch size and the rate of a stage, where that was asked for; once in a run."""
    stage, record, data = module.stage, study.record, study.data
    if stage.scope != "model" or not (trainer.find_lr or trainer.find_batch_size):
        return
    found = record.folder.result.setdefault("found", {}).setdefault(name, {})
    if trainer.find_batch_size:
        if "batch_size" not in found:
            say(f"{name}: searching for the largest batch")
            found["batch_size"] = find_batch_size(
                module,
                lambda blocks: data.fit_loader(STEPS_OF_A_SIZE, 0, blocks, name),
                trainer,
                min(LARGEST_BATCH, len(data.train_blocks)),
            )
        stage.batch_size = found["batch_size"]
        stage.workspace = replace(stage.workspace, batch_size=stage.batch_size)
        keys = {"batch_size": stage.batch_size}
        stage.steps = filled_in(name, keys, study.cfg, stage.workspace)["steps"]
    if trainer.find_lr:
        if "lr" not in found:
            say(f"{name}: searching for a learning rate")
            found["lr"] = find_rate(module, data.fit_loader(TRIALS, 0, stage.batch_size, name), trainer)
        stage.lr = found["lr"]
    record.folder.write()
    say(f"{name}: found {', '.join(f'{key} {value:.3g}' for key, value in found.items())}")


def _held_out(module: CausalLMModule, stage: Stage, data: BlockDataModule, name: str) -> dict[str, float]:
    """The stage's loss, and its parts by layer, on the validation blocks; recorded as `<stage>/error...`."""
    import torch

    module.model.eval()
    sums, count = Counter(), 0
    with torch.no_grad():
        for batch in data.val_dataloader():
            batch = {key: tensor.to(module.model.device) for key, tensor in batch.items()}
            _, terms, parts = stage.loss(module.model, batch)
            count += terms
            sums.update(parts)
    return {f"{name}/{part}": (value / count).item() for part, value in sums.items()}


def restore_stage(parameters: Mapping[str, Any], file: Path) -> None:
    """Put the weights of a stage that was finished before into its parameters, in place.

    Raises:
        UserError: the file is not there, damaged, or of other parameters.
    """
    remedy = f"remove {file.parent.parent.parent} and run the study again"
    if not file.is_file():
        raise UserError(f"the weights {file} of a finished stage are gone; {remedy}")
    try:
        weights = read_weights(file)
    except UserError as error:
        raise UserError(f"{error}, or {remedy}") from error
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (weights, parameters)]
    if shapes[0] != shapes[1]:
        raise UserError(f"the weights {file} are of other parameters than this stage trains; {remedy}")
    for name, tensor in weights.items():
        parameters[name].data.copy_(tensor)


def _completed_steps(folder: Path) -> int:
    """Steps that the checkpoint of a stage has behind it.

    A checkpoint is a zip archive with a checksum of every file in it, which torch does not compare when it reads.

    Raises:
        UserError: it is damaged.
    """
    import pickle

    import torch

    file = folder / "last.ckpt"
    if not file.is_file():
        return 0
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the content of {damaged} does not fit its checksum")
        checkpoint = torch.load(file, weights_only=True, mmap=True)
        missing = [key for key in CHECKPOINT_KEYS if key not in checkpoint]
        if missing:
            raise KeyError(*missing)
        return checkpoint["global_step"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        reason = error
    except (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, EOFError) as error:
        reason = error
    raise UserError(f"the checkpoint {file} is damaged ({reason}); remove it to start its stage anew") from reason
