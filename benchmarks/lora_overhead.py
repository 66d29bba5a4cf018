"""What the framework adds to a step of LoRA training: with tracking and progress bar, over a plain loop with PEFT.

python benchmarks/lora_overhead.py [model=...] [--steps 60] [--batch 4] [--length 128]

In one process and in turn: the framework's step, from the end of the one before to its own end (loader, logging,
progress bar and callbacks included), and a step of a plain loop on a second copy of the model with the same modules, by
the same optimizer on the same tokens. Both clip gradients.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback
from torch.nn.functional import cross_entropy

import train
from data_modules import build_data_module
from lightning_modules.config import Config, read_config
from lightning_modules.load import load_language_model, operate, workspace
from lightning_modules.training.stage_plan import build_stages
from lightning_modules.training.trainer import fit
from studies.run.curve_file import CurveFile
from studies.run.run_folder import RunFolder
from studies.run.trackers import build_tracker

WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as model=tiny_phi")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides = ["placement=all_linear", f"dataset.block_size={arguments.length}", *arguments.overrides]
        overrides += [f"dataset.batch_size={arguments.batch}", f"trainer.max_steps={arguments.steps}"]
        cfg = read_config(train.compose([*overrides, "trainer.val_check_interval=null", f"output_dir={folder}"]))
        ours, data = _module(cfg)
        plain = PlainLoop(_module(cfg)[0].model, cfg)
        (stage,) = build_stages(cfg, workspace(ours, cfg, identity={}, train_blocks=data.train_blocks)).values()
        ours.begin("next_token", stage)
        clock = InTurn(plain)
        run = RunFolder.create(Path(folder), "overhead", config=cfg.plain, mlflow_run_id=None)
        (run.path / "config.yaml").write_text(yaml.safe_dump(dict(cfg.plain)))  # which the tracker sends too
        tracker = build_tracker(cfg.tracking).open(run.path, Path(folder))
        loader = data.fit_loader(stage.steps, 0, stage.batch_size, "next_token")
        loggers = [CurveFile(run.path), tracker]
        fit(ours, loader, data.val_dataloader(), cfg.trainer, Path(folder) / "stage", loggers, [clock])
        tracker.close(run)
    framework, loop = (statistics.median(times[WARM_UP:]) for times in (clock.framework, clock.plain))
    ratios = [a / b for a, b in zip(clock.framework[WARM_UP:], clock.plain[WARM_UP:], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.batch} x {arguments.length} tokens"
    )
    print(f"framework {framework:.4f} s, plain loop {loop:.4f} s, medians of {len(ratios)} steps in turn")
    print(f"ratio of the medians {framework / loop:.4f}; of steps in pairs {quartiles[1]:.4f}", end=" ")
    print(f"(quartiles {quartiles[0]:.4f} - {quartiles[2]:.4f})")


def _module(cfg: Config) -> tuple[Any, Any]:
    loader = cfg.model_loader()
    tokenizer = loader.tokenizer()
    module, data = load_language_model(cfg, loader, tokenizer), build_data_module(cfg.plain, tokenizer)
    operate(module, cfg, data)
    return module, data


class PlainLoop:
    """A training loop as one writes it by hand."""

    def __init__(self, model: Any, cfg: Config):
        self.model = model
        self.parameters = [parameter for name, parameter in model.named_parameters() if ".lora_" in name]
        for parameter in self.parameters:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=cfg.optimizer.arguments["lr"])
        self.clip = cfg.trainer.gradient_clip_val

    def step(self, input_ids: torch.Tensor) -> None:
        logits = self.model(input_ids=input_ids, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), input_ids[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()


class InTurn(Callback):
    """After each step of the framework, one of the plain loop."""

    def __init__(self, plain: PlainLoop):
        self.plain_loop, self.framework, self.plain = plain, [], []
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        ended = time.perf_counter()
        self.framework.append(ended - self._since)
        self.plain_loop.step(batch["input_ids"])
        self._since = time.perf_counter()
        self.plain.append(self._since - ended)


if __name__ == "__main__":
    main()
