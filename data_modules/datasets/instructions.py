"""Instruction datasets from the Hugging Face hub; `path` reads local records instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from data_modules import DATASETS
from data_modules.datasets.hub import load_from_hub
from data_modules.documents import split_documents
from data_modules.instructions import (
    COLUMNS,
    Example,
    InstructionData,
    InstructionSettings,
    LossOn,
    Template,
    TooLong,
    read_examples,
    template_errors,
)
from data_modules.text_files import by_split, check_path, read_rows
from registries.registry import UserError

ENGLISH = Template(
    "### Instruction:\n{instruction}\n\n### Response:\n",
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
)
JAPANESE = Template(
    "### 指示:\n{instruction}\n\n### 応答:\n",
    "### 指示:\n{instruction}\n\n### 入力:\n{input}\n\n### 応答:\n",
)


def _check(path: str | None, fields: dict[str, str] | None, prompt: str, prompt_with_input: str) -> list[str]:
    known = list(dict.fromkeys([field for field in COLUMNS if field != "response"] + list(fields or {})))
    return check_path(path) + template_errors(Template(prompt, prompt_with_input), known)


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
        chosen, no_response = Template(prompt, prompt_with_input), 0

        def read(rows: Iterable[Mapping[str, Any]], label: str) -> list[Example]:
            nonlocal no_response
            examples, without = read_examples(list(rows), label, fields, chosen)
            no_response += without
            return examples

        if path is not None:
            examples = by_split(path, lambda file, root: read(read_rows(file), file.name))
        else:
            examples = split_documents(read(load_from_hub(repository)["train"], repository))
        if not any(examples.values()):
            raise UserError(
                f"dataset {path or repository} has {no_response} records, and none with a response: name the column of "
                "the responses, dataset.fields.response=<column>"
            )
        return InstructionData(examples, chosen, InstructionSettings(loss_on, packing, too_long), no_response)

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


DATASETS.register("alpaca", check=_check)(
    from_hub("tatsu-lab/alpaca", ENGLISH, "Alpaca: 52,000 instructions with responses by a language model.")
)
DATASETS.register("alpaca_ja", check=_check)(from_hub("fujiki/japanese_alpaca_data", JAPANESE, "Alpaca in Japanese."))
DATASETS.register("dolly15k", check=_check)(
    from_hub("databricks/databricks-dolly-15k", ENGLISH, "Dolly: 15,000 instructions with responses by people.")
)
