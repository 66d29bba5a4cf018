"""What a run says and records of a LoRA placement.

python -m studies.tools.placements model=dialogpt_medium placement=attention placement.rank=16

prints the table of a placement from the model's config alone.
"""

from __future__ import annotations

from types import SimpleNamespace

from registries.registry import UserError, parameters
from studies.report.display import show_placement


def main(*overrides: str) -> None:
    """The command line."""
    from lightning_modules.config import read_config
    from registries import PLACEMENTS
    from studies.config.compose import compose

    cfg = read_config(compose(overrides))
    name, config = cfg.placement.name if cfg.placement else "none", cfg.model_loader().config()
    if name == "none" or config is None or "scores" in parameters(PLACEMENTS.get(name)):
        raise UserError(
            f"placement={name} of model={cfg.model.name} has no table before a run: name another placement "
            "(importance looks at the data first), or a model whose config is here"
        )
    show_placement(
        name, PLACEMENTS.build(name, model=SimpleNamespace(config=config), **cfg.placement.component_arguments())
    )


if __name__ == "__main__":
    from studies.tools.command import run_tool

    run_tool(main, __doc__)
