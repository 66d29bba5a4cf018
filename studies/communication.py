"""Questions about what the source alone has read."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import binomtest

from data_modules.facts import Question, make_questions
from lightning_modules.processes import from_first
from lightning_modules.two_models.cross_model import CrossModelModule
from lightning_modules.two_models.questions import CONDITIONS, first_token, right_answers
from studies.progress import say
from studies.run.ratios import CONFIDENCE
from studies.study import Study


def ask(study: Study) -> list[Question]:
    """The questions that the config asks for, about facts that the source alone will read."""
    settings = study.cfg.communication
    if not settings.questions:
        return []
    return make_questions(settings.questions, settings.facts, settings.choices, first_token(study.tokenizer))


def record_communication(study: Study, module: CrossModelModule, questions: Sequence[Question]) -> None:
    """Ask what only the source has read, as `communication/<condition>/accuracy`, with a 95 % interval."""
    count, record = len(questions), study.record.folder.record
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
            record(**{f"communication/{layer}{condition}/accuracy{end}": value for end, value in values.items()})
    record(**{"communication/chance": 1 / study.cfg.communication.choices})
