"""Whether a text that a run is scored on is one that it was trained on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from data_modules import DATASETS
from data_modules.dataset_settings import DatasetSettings
from data_modules.documents import SPLITS
from data_modules.instructions import InstructionData
from registries.registry import UserError

log = logging.getLogger(__name__)


def warn_of_trained_texts(trained: DatasetSettings, scored: DatasetSettings, split: str) -> None:
    """Tell how many documents of a split (of instruction data, prompts) are among those that a run could train on.

    Args:
        trained: dataset of the run.
        scored: what it is scored on.
    """
    try:
        known = set(_texts(trained, "train"))
    except UserError as error:
        log.warning("whether this run was trained on the scored text cannot be told: %s", error)
        return
    texts = _texts(scored, split)
    count = sum(text in known for text in texts)
    if count:
        log.warning(
            "%d of %d scored documents (split=%s) are in the run's training split (dataset=%s): the score tells little "
            "about other text",
            count,
            len(texts),
            split,
            trained.name,
        )


def _texts(dataset: DatasetSettings, split: str) -> list[str]:
    """The texts of a split; none of what is streamed from the hub or made of random tokens."""
    content = DATASETS.build(dataset.name, **dataset.arguments)
    splits = content.examples if isinstance(content, InstructionData) else content
    if not isinstance(splits, Mapping):
        return []
    parts = [splits[part] for part in ([split] if split in splits else SPLITS)]
    return [document.text for part in parts if isinstance(part, Sequence) for document in part]
