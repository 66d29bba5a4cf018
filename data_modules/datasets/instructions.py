"""Instruction datasets from the Hugging Face hub; `path` reads local records instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from data_modules import DATASETS
from data_modules.datasets.hub import load_from_hub
from data_modules.documents import SPLITS, split_documents
from data_modules.instructions import (
    COLUMNS,
    COMPLETE,
    Example,
    InstructionData,
    InstructionSettings,
    LossOn,
    Template,
    TooLong,
    read_examples,
    template_errors,
)
from data_modules.text_files import TABLE_FORMATS, by_split, check_path, read_rows
from registries.registry import UserError, nearest

ENGLISH = Template(
    "### Instruction:\n{instruction}\n\n### Response:\n",
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
)
JAPANESE = Template(
    "### 指示:\n{instruction}\n\n### 応答:\n",
    "### 指示:\n{instruction}\n\n### 入力:\n{input}\n\n### 応答:\n",
)


def _check(path: str | None, fields: dict[str, str] | None, prompt: str, prompt_with_input: str) -> list[str]:
    known = [field for field in dict.fromkeys([*COLUMNS, *(fields or {})]) if field != "response"]
    errors = check_path(path) + template_errors(Template(prompt, prompt_with_input), known)
    used = {name for text in (prompt, prompt_with_input) for name in known if f"{{{name}" in text}
    idle = [field for field in fields or {} if field not in (*COLUMNS, COMPLETE) and field not in used]
    return errors + [
        f"dataset.fields.{field} is named by no template{nearest(field, COLUMNS)} Allowed: {', '.join(COLUMNS)}, "
        f"{COMPLETE}, and what dataset.prompt or dataset.prompt_with_input names"
        for field in idle
    ]


def from_hub(repository: str, template: Template, summary: str) -> Callable[..., InstructionData]:
    """The component of a dataset whose hub copy has a train split alone, as most of them do."""

    def load(
        path: str | None = None,
        fields: dict[str, str] | None = None,
        prompt: str = template.prompt,
        prompt_with_input: str = template.prompt_with_input,
        loss_on: LossOn = "response",
        packing: bool = True,
        too_long: TooLong = "drop",
    ) -> InstructionData:
        chosen, notes, whole_prompts = Template(prompt, prompt_with_input), [], []

        def read(rows: Iterable[Mapping[str, Any]], label: str) -> list[Example]:
            examples, without, whole = read_examples(list(rows), label, fields, chosen)
            whole_prompts.append(whole)
            if without:
                notes.append(f"{without} records of {label} have no response and were left out")
            return examples

        if path is not None:
            root = Path(path).expanduser()
            examples = by_split(path, lambda file, _: read(read_rows(file), _label(file, root)), tuple(TABLE_FORMATS))
        else:
            examples = split_documents(read(load_from_hub(repository)["train"], repository))
        examples.setdefault("all", [example for split in SPLITS for example in examples[split]])
        if not examples["all"]:
            raise UserError(
                f"dataset {path or repository} has no record with a response: name the column of the responses, "
                "dataset.fields.response=<column>"
            )
        notes += _without_trained_prompts(examples)
        if all(whole_prompts) and chosen != template:
            notes.append(f"its column {COMPLETE!r} holds whole prompts: dataset.prompt changes nothing")
        used = None if all(whole_prompts) else chosen
        return InstructionData(examples, used, InstructionSettings(loss_on, packing, too_long), notes)

    load.__doc__ = f"""{summary}

    Args:
        path: .json, .jsonl or .parquet, or a folder of these, instead of the hub.
        fields: field -> column: `instruction`, `input`, `response`, and others that the templates name.
        prompt: template of records without an input.
        prompt_with_input: template of records with one.
        loss_on: what is scored: the response, or all.
        packing: whether examples share blocks.
        too_long: what happens to an example longer than a block.
    """
    return load


def _label(file: Path, root: Path) -> str:
    return file.name if file == root else file.relative_to(root).as_posix()


def _without_trained_prompts(examples: dict[str, list[Example]]) -> list[str]:
    """Take out of validation and test, in place, what files named for splits also have in training; what was done."""
    trained, notes = {example.text for example in examples["train"]}, []
    for split in ("validation", "test"):
        kept = [example for example in examples[split] if example.text not in trained]
        if len(kept) < len(examples[split]):
            notes.append(f"{len(examples[split]) - len(kept)} {split} prompts are trained on as well and were left out")
            examples[split] = kept
    return notes


DATASETS.register("alpaca", check=_check)(
    from_hub("tatsu-lab/alpaca", ENGLISH, "Alpaca: 52,000 instructions with responses by a language model.")
)
DATASETS.register("alpaca_ja", check=_check)(from_hub("fujiki/japanese_alpaca_data", JAPANESE, "Alpaca in Japanese."))
DATASETS.register("dolly15k", check=_check)(
    from_hub("databricks/databricks-dolly-15k", ENGLISH, "Dolly: 15,000 instructions with responses by people.")
)
