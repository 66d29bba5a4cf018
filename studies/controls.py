"""Controls of a study: what the same training does without the replacement or the expansion."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from lightning_modules.config import Config, read_config
from lightning_modules.perplexity import perplexity
from lightning_modules.stages import STAGES
from lightning_modules.training.stage_plan import recovery_plan
from registries import EXPANSIONS
from registries.option import split_keys
from registries.registry import defaults
from registries.settings import ReplacementSettings
from studies.run.document_scores import read_documents
from studies.run.lifecycle import RunRecord
from studies.run.ratios import ppl_ratio
from studies.run.run_folder import RunFolder

CONTROLS = {
    "original": "the unmodified model, given the same training of the same layers' attention",
    "standard": "the same layers with standard attention from random weights, given the same recovery",
    "scratch": "the larger model from random weights, given the operations of both trainings",
}

RATIOS = {
    "original": "ppl_ratio_control",
    "standard": "ppl_ratio_standard",
    "scratch": "ppl_ratio_scratch",
}  # control -> metric of the ratio to it


def control_config(cfg: Config, control: str) -> Config:
    """The config of a control: same data, order, steps and rates.

    It is a run of its own that others may share, so that it belongs to no experiment.
    """
    changed = copy.deepcopy(dict(cfg.plain))
    changed |= {"experiment": {"name": "none"}, "controls": [], "skip_finished": True, "resume": "auto"}
    if cfg.expansion is not None:
        # The model as it was is the same whatever it would be expanded to: all these studies share it.
        own = defaults(EXPANSIONS.get(cfg.expansion.name)) if control == "original" else {}
        changed["expansion"] |= {"mode": control, **own}
        return read_config(changed)
    shared, plan = split_keys(ReplacementSettings, cfg.plain["replacement"])[0], recovery_plan(cfg)
    changed["replacement"] = {"name": "standard", **shared, "init": "copy" if control == "original" else "random"}
    if control == "original":
        # It has nothing to learn from imitating itself; weight decay would even move it.
        plan = {name: keys for name, keys in plan.items() if not STAGES.get(name).imitates(keys)}
        # Studies that differ only in their transfer share this control.
        own = {"transfer_steps": 0, "transfer_lr": 1.0, "transfer_batch_size": 1}
        changed["replacement"] |= own
    if not plan:
        changed["replacement"]["transfer_steps"], changed["trainer"] = 0, {**cfg.plain["trainer"], "max_steps": 0}
    # With every key, so that all ways to write the same plan share the control.
    changed["recovery"] = {name: {**defaults(STAGES.get(name)), **keys} for name, keys in plan.items()}
    return read_config(changed)


def record_ratios(record: RunRecord, controls: Mapping[str, RunFolder]) -> None:
    """Record the ratios of perplexities to the untouched model and to each control, with confidence intervals."""
    result = record.folder.result
    result["controls"] = {name: folder.path.name for name, folder in controls.items()}
    for prefix in ("val/", "test/"):
        documents = read_documents(record.folder.path, prefix)
        baseline = read_documents(record.folder.path, "baseline/" + prefix.removeprefix("val/"))
        references = {"ppl_ratio": baseline}
        for name, folder in controls.items():
            references[RATIOS[name]] = read_documents(folder.path, prefix)
            loss = folder.result["metrics"][f"{prefix}loss"]
            record.folder.record(
                **{f"control/{name}/{prefix}loss": loss, f"control/{name}/{prefix}ppl": perplexity(loss)}
            )
        for name, reference in references.items():
            record.folder.record(**ppl_ratio(documents, reference).named(f"{prefix}{name}"))
