"""Instruction datasets from the Hugging Face hub; `path` reads local records instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from data_modules import DATASETS
from data_modules.datasets.hub import load_from_hub
from data_modules.documents import SPLITS, drop_trained, split_documents
from data_modules.instructions import (
    USUAL_COLUMNS,
    WHOLE_PROMPT,
    Example,
    InstructionData,
    InstructionSettings,
    LossOn,
    Template,
    TooLong,
    read_examples,
    read_template,
    template_errors,
)
from data_modules.tables import TABLE_FORMATS, read_rows
from data_modules.text_files import by_split, check_path
from registries.registry import UserError, nearest

ENGLISH = Template(
    "### Instruction:\n{instruction}\n\n### Response:\n",
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
)
NOTES = {
    "no response": "{count} records of {label} have no response and were left out",
    "strange turn": "{count} records of {label} were left out: the turn that dataset.fields names as the "
    "instruction (response) is not the user's (assistant's); <column>.user and <column>.assistant are the first ones",
    "no instruction": "{count} of {total} records of {label} have no instruction; they are kept",
    "no input": "{count} of {total} records of {label} have no input",
    "further turns": "{count} of {total} records of {label} have further turns, which are not read: of a conversation, "
    "the instruction and the response are",
    "system text": "{count} of {total} records of {label} have a text of the system that no template names: {{system}}",
}
JAPANESE = Template(
    "### 指示:\n{instruction}\n\n### 応答:\n",
    "### 指示:\n{instruction}\n\n### 入力:\n{input}\n\n### 応答:\n",
)


def _check(path: str | None, fields: dict[str, str] | None, prompt: str, prompt_with_input: str) -> list[str]:
    known = [field for field in dict.fromkeys([*USUAL_COLUMNS, *(fields or {})]) if field != "response"]
    template = read_template(prompt, prompt_with_input)
    errors = check_path(path) + template_errors(template, known)
    used = {*USUAL_COLUMNS, WHOLE_PROMPT, *(field for field in known if template.names(field))}
    return errors + [
        f"dataset.fields.{field} is named by no template{nearest(field, USUAL_COLUMNS)} Allowed: "
        f"{', '.join(USUAL_COLUMNS)}, {WHOLE_PROMPT}, and what dataset.prompt or dataset.prompt_with_input names"
        for field in fields or {}
        if field not in used
    ]


def from_hub(repository: str, template: Template, summary: str) -> Callable[..., InstructionData]:
    """The component of an instruction dataset whose hub copy has a train split alone, as most have."""

    def load(
        path: str | None = None,
        fields: dict[str, str] | None = None,
        prompt: str = template.prompt,
        prompt_with_input: str = template.prompt_with_input,
        loss_on: LossOn = "response",
        packing: bool = True,
        too_long: TooLong = "drop",
    ) -> InstructionData:
        typed, counts, labels = read_template(prompt, prompt_with_input), Counter(), []

        def read(rows: Iterable[Mapping[str, Any]], label: str) -> list[Example]:
            reading = read_examples(list(rows), label, fields, typed)
            counts.update(reading.counts)
            labels.append(label)
            return reading.examples

        if path is not None:
            root = Path(path).expanduser()
            examples = by_split(path, lambda file, _: read(read_rows(file), _label(file, root)), tuple(TABLE_FORMATS))
        else:
            examples = split_documents(read(load_from_hub(repository)["train"], repository))
        examples.setdefault("all", [example for split in SPLITS for example in examples[split]])
        total = len(examples["all"])
        notes = _notes(counts, total, labels[0] if len(labels) == 1 else str(path))
        if not total:
            raise UserError(
                [
                    f"dataset {path or repository} has no record with a response: name the column of the responses, "
                    "dataset.fields.response=<column>",
                    *notes,
                ]
            )
        notes += drop_trained(examples, "prompts")
        whole = counts["whole prompts"] == total
        if whole and typed != template:
            notes.append(f"its column {WHOLE_PROMPT!r} holds whole prompts: dataset.prompt changes nothing")
        settings = InstructionSettings(loss_on, packing, too_long)
        return InstructionData(examples, None if whole else typed, settings, notes)

    load.__doc__ = f"""{summary}

    Args:
        path: .json, .jsonl or .parquet, or a folder of these, instead of the hub.
        fields: field -> column, for `instruction`, `input`, `response`, `system` and others that the templates name.
        prompt: template of records without an input; see `data_modules.instructions.read_template`.
        prompt_with_input: template of records with an input.
        loss_on: the scored tokens: those of the response, or all.
        packing: whether examples share blocks.
        too_long: what happens to an example longer than a block.
    """
    return load


def _notes(counts: Counter, total: int, label: str) -> list[str]:
    """A line for each kind of record that differs from the rest."""
    if counts["no input"] + counts["whole prompts"] >= total:
        counts = {**counts, "no input": 0}
    return [NOTES[kind].format(count=counts[kind], total=total, label=label) for kind in NOTES if counts.get(kind)]


def _label(file: Path, root: Path) -> str:
    return file.name if file == root else file.relative_to(root).as_posix()


DATASETS.register("alpaca", check=_check)(
    from_hub("tatsu-lab/alpaca", ENGLISH, "Alpaca: 52,000 instructions with responses by a language model.")
)
DATASETS.register("alpaca_ja", check=_check)(from_hub("fujiki/japanese_alpaca_data", JAPANESE, "Alpaca in Japanese."))
DATASETS.register("dolly15k", check=_check)(
    from_hub("databricks/databricks-dolly-15k", ENGLISH, "Dolly: 15,000 instructions with responses by people.")
)
