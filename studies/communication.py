"""Questions about what the source alone has read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import binomtest

from data_modules.facts import Question, make_questions
from lightning_modules.processes import from_first
from lightning_modules.two_models.cross_model import CrossModelModule
from lightning_modules.two_models.questions import CONDITIONS, first_token, right_answers
from studies.progress import say
from studies.run.ratios import CONFIDENCE
from studies.run.recording import RunRecord


def ask(cfg: Mapping[str, Any], tokenizer: Any) -> list[Question]:
    """The questions of `cfg.communication`, about facts that the source alone will read."""
    count, facts, choices = (cfg["communication"][key] for key in ("questions", "facts", "choices"))
    return make_questions(count, facts, choices, first_token(tokenizer)) if count else []


def record_communication(
    cfg: Mapping[str, Any], module: CrossModelModule, record: RunRecord, questions: Sequence[Question]
) -> None:
    """Ask what only the source has read, as `communication/<condition>/accuracy`, with a 95 % interval."""
    count = len(questions)
    if not count:
        return
    for condition in CONDITIONS:
        if condition == "shuffled" and count == 1:
            say("one question has no other one whose context is the wrong one: the condition shuffled is left out")
            continue
        read = condition in ("text", "nothing")  # by the target itself: the same for all sites
        for site in module.states.sites[: 1 if read else None]:
            say(f"asking {count} questions after {condition}" + ("" if read else f", block {site.target}"))
            asked = module, questions, site, condition
            right = from_first(lambda asked=asked: sum(right_answers(*asked)))
            interval = binomtest(right, count).proportion_ci(CONFIDENCE, "wilson")
            layer = f"layer_{site.target}/" if len(module.states.sites) > 1 and not read else ""
            values = {"": right / count, "_low": interval.low, "_high": interval.high}
            named = {f"communication/{layer}{condition}/accuracy{end}": value for end, value in values.items()}
            record.folder.record(**named)
    record.folder.record(**{"communication/chance": 1 / cfg["communication"]["choices"]})
