"""A run's model in MLflow's own format: `mlflow.pyfunc.load_model("runs:/<id>/model").predict(["Once upon"])`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from mlflow.models import infer_signature
from mlflow.pyfunc import PythonModel, save_model

from registries.registry import UserError
from studies.progress import say
from studies.run.results import read_result

MODEL = "model"  # the artifact's folder
NEW_TOKENS = 32


class GraftedModel(PythonModel):
    """The model of an exported folder, surgery applied; it continues texts as in the run, with the most likely tokens.

    `predict` takes texts, and `max_new_tokens` as a parameter.

    Args:
        start: the token that is put before every text; None: none is.
    """

    def __init__(self, start: int | None):
        self.start = start

    def load_context(self, context: Any) -> None:
        """Load the weights."""
        import registries.recurrent_lm  # noqa: F401 (the small models are made known to transformers)
        from lightning_modules import load_exported

        self.model, self.tokenizer = load_exported(context.artifacts[MODEL])

    # Without types: MLflow would make its own signature of them.
    def predict(self, context, model_input, params=None):
        """The continuation of each text."""
        from lightning_modules.samples import continue_texts

        length = (params or {}).get("max_new_tokens", NEW_TOKENS)
        texts = (
            model_input.iloc[:, 0] if hasattr(model_input, "iloc") else model_input
        )  # MLflow makes a table of a list
        return continue_texts(self.model, self.tokenizer, list(texts), length, self.start)


def log_model(client: Any, run_id: str, folder: Path) -> None:
    """Send the model of a run's folder, where the run has one of its own."""
    from studies.tools.export import export

    with tempfile.TemporaryDirectory(dir=folder) as name:
        exported, packed = Path(name) / "exported", Path(name) / MODEL
        try:
            export(folder, exported)
        except UserError as error:
            say(f"tracking.log_model: {error}; no model was logged")
            return
        start = read_result(folder)["dataset"]["start_token"]
        signature = infer_signature(["a text"], ["its continuation"], {"max_new_tokens": NEW_TOKENS})
        about = {"artifacts": {MODEL: str(exported)}, "signature": signature, "pip_requirements": ["graftlab"]}
        save_model(packed, python_model=GraftedModel(start), **about)
        shutil.rmtree(exported)
        client.log_artifacts(run_id, str(packed), MODEL)
