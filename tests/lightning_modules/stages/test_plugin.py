"""A stage from a file outside this repository, from the command line."""

import json

STAGE = '''
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt

from lightning_modules.training.objectives import EndToEnd
from lightning_modules.stages import STAGES, Loss, Workspace
from lightning_modules.surgery.trained_parameters import attention_parameters


@STAGES.register("outputs_only")
@dataclass
class OutputsOnly:
    """Trains the output projections of the replaced layers on the text, with a scaled loss."""

    workspace: Workspace
    steps: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    scale: Annotated[float, Gt(0)] = 2.0

    scope: ClassVar[str] = "model"

    @staticmethod
    def imitates(keys):
        return False

    def prepare(self, model):
        pass

    def parameters(self, model):
        trained = attention_parameters(model, self.workspace.surgery.layers)
        return {name: parameter for name, parameter in trained.items() if ".o_proj." in name}

    def start(self, model):
        self.objective = EndToEnd(model, self.workspace, self.steps * self.batch_size)

    def loss(self, model, batch):
        total, count, parts = self.objective(model, batch)
        return Loss(total * self.scale, count, parts)
'''


def test_a_stage_of_a_plugin_gets_its_option_from_its_signature(forked, small_in, tmp_path):
    (tmp_path / "my_stage.py").write_text(STAGE)
    overrides = small_in(
        tmp_path / "outputs", "plugins=[my_stage]", "replacement=toroidal", "recovery=[outputs_only,next_token]",
        "replacement.transfer_steps=0", "recovery.outputs_only.scale=3.0", "recovery.outputs_only.steps=2",
    )  # fmt: skip
    done = forked("train.py", *overrides, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "outputs" / "runs").glob("*/result.json")
    result = json.loads(file.read_text())
    assert list(result["stages"]["outputs_only"]["trained"]) == ["model.layers.0.self_attn.o_proj.weight"]
    assert result["stages"]["outputs_only"]["steps"] == 2
    assert result["config"]["recovery"]["outputs_only"]["scale"] == 3.0
    wrong = forked("train.py", *overrides, "recovery.outputs_only.scale=-1", PYTHONPATH=str(tmp_path))
    assert wrong.returncode == 2
    assert "scale=-1" in wrong.stderr
