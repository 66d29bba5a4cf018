import json
import math

import pytest
import torch

from registries import UserError
from studies.tools.unshifted import main, perplexities


class Repeater(torch.nn.Module):
    """Gives the token it has read: without the shift it looks perfect."""

    def forward(self, input_ids, use_cache=False):
        logits = torch.nn.functional.one_hot(input_ids, 8).float() * 50
        return type("Output", (), {"logits": logits})


def test_a_model_that_repeats_looks_perfect_without_the_shift():
    text = torch.tensor([[1, 2, 3, 4, 5]])
    right, wrong = perplexities(Repeater(), [{"input_ids": text}])
    assert wrong == pytest.approx(1.0)
    assert right == pytest.approx(math.exp(50), rel=1e-3)


def test_a_run_is_shown_with_both(run, capsys):
    folder = run("placement=attention", "placement.rank=4")
    main(str(folder))
    printed = capsys.readouterr().out
    loss = json.loads((folder / "result.json").read_text())["metrics"]["val/loss"]
    assert f"{loss:.4f}" in printed and f"{math.exp(loss):.2f}" in printed and "untouched" in printed


def test_no_run():
    with pytest.raises(UserError, match="usage"):
        main()
