import json

import pytest
from omegaconf import OmegaConf


@pytest.fixture(scope="session")
def finished_context_run(tmp_path_factory):
    """The folder of a run that trained a context-vector model, as far as the checks of a config look at it."""
    from studies.config.compose import compose

    folder = tmp_path_factory.mktemp("finished")
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(compose(["model=context_lm"]), resolve=True))
    (folder / "result.json").write_text(json.dumps({"status": "finished", "stages": {"next_token": {}}}))
    return folder
