import json

import pytest
from mlflow import MlflowClient

from registries import UserError
from studies.tools.runs_page import runs_page
from tests.studies.report.made_runs import made_sweep


def test_the_page_shows_what_varies_and_the_headlines(tmp_path):
    made_sweep(tmp_path)
    (page,) = runs_page(tmp_path, "http://host")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("graftlab")
    assert page.startswith(f"http://host/#/experiments/{experiment.experiment_id}/runs?viewStateShareKey=graftlab")
    columns = json.loads(experiment.tags["mlflow.sharedViewState.graftlab"])["selectedColumns"]
    assert "params.`replacement.depth`" in columns and "metrics.`val/loss`" in columns
    assert "params.`dataset.block_size`" not in columns  # it is the same in all
    assert "metrics.`val/ppl_ratio`" in columns and "attributes.`Dataset`" in columns


def test_runs_without_tracking_have_no_page(tmp_path):
    def untracked(results):
        for result in results.values():
            result["config"]["tracking"] = {"name": "none"}

    made_sweep(tmp_path, untracked)
    with pytest.raises(UserError, match="no run that is tracked"):
        runs_page(tmp_path)
