import json
from pathlib import Path

import lm_eval.evaluator
import lm_eval.tasks
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._index import TaskIndex
from tokenizers.processors import TemplateProcessing

from lightning_modules.causal_lm import CausalLMModule
from lightning_modules.length_guard import guard_length
from registries.models.random import byte_tokenizer
from registries.registry import UserError
from studies.tools.harness import run_tasks
from tests.rules import language_model, limited_model, logits

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
ROWS = [{"question": f"Question {n}:", "choices": [" one", " other"], "label": n % 2} for n in range(6)]


@pytest.fixture(scope="module", autouse=True)
def quick_harness():
    """Of its 14,000 files of tasks, the harness reads those of one folder; and it starts no programs to tell where it
    runs."""
    build, library = TaskIndex.build, Path(lm_eval.tasks.__file__).parent

    def build_fewer(paths):
        first, *others = paths
        assert first == library
        return build([library / "arc", *others])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIndex, "build", staticmethod(build_fewer))
        patch.setattr(lm_eval.evaluator, "add_env_info", lambda results: None)
        yield


@pytest.fixture
def task_path(tmp_path, monkeypatch):
    """A folder with a task of local data; the harness's copy of the data goes to a folder of the test."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "task.yaml").write_text(TASK.format(name="graftlab_choices", data=data))
    return str(tmp_path / "tasks")


@pytest.fixture
def module():
    return CausalLMModule(language_model("llama"), byte_tokenizer())


def chosen(module, row):
    """The choice that the model finds more likely after the question."""
    sums = []
    for choice in row["choices"]:
        question, whole = (module.tokenizer(text, return_tensors="pt")["input_ids"] for text in
                           (row["question"], row["question"] + choice))  # fmt: skip
        nll = logits(module.model, whole[:, :-1]).log_softmax(-1).gather(2, whole[:, 1:, None])
        sums.append(nll[0, question.shape[1] - 1 :].sum().item())
    return sums.index(max(sums))


def test_a_local_task_is_scored_as_by_hand(module, task_path):
    expected = sum(chosen(module, row) == row["label"] for row in ROWS) / len(ROWS)
    assert run_tasks(module, ["graftlab_choices"], task_path)["graftlab_choices"]["acc"] == pytest.approx(expected)


def test_a_limit_takes_the_first_examples(module, task_path):
    expected = sum(chosen(module, row) == row["label"] for row in ROWS[:3]) / 3
    scores = run_tasks(module, ["graftlab_choices"], task_path, limit=3)
    assert scores["graftlab_choices"]["acc"] == pytest.approx(expected)


def test_an_unknown_task_is_told_before_anything_runs(module, task_path):
    with pytest.raises(UserError, match="unknown task 'graftlab_choice'; did you mean 'graftlab_choices'"):
        run_tasks(module, ["graftlab_choice"], task_path)


def test_a_task_whose_data_are_not_here(module, task_path, tmp_path):
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(UserError, match="without network, give tasks with local data"):
        run_tasks(module, ["graftlab_choices"], task_path)


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ({"doc_to_text": '"{{nothing_like_it}}"', "process_docs": "!function none.none"}, "none"),
        ({"doc_to_target": '"{{answer}}"'}, "answer"),
        ({"output_type": "none_such"}, "none_such"),
        ({"metric_list": "none_such"}, "metric_list"),
        ({"test_split": "none_such"}, "none_such"),
    ],
)
def test_a_task_that_does_not_fit_its_data_is_told(task, told, module, task_path):
    file = Path(task_path) / "task.yaml"
    lines = [line for line in file.read_text().splitlines() if line.split(":")[0] not in task]
    if "metric_list" in task:
        lines = lines[:-3]
    file.write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in task.items())]))
    with pytest.raises(UserError, match=told) as caught:
        run_tasks(module, ["graftlab_choices"], task_path)
    assert "graftlab_choices" in str(caught.value)
    assert len(caught.value.messages) == 1
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_start_and_end_is_told(module, task_path):
    module.tokenizer.eos_token = module.tokenizer.pad_token = None
    with pytest.raises(UserError, match="tokenizer has neither a start nor an end token"):
        run_tasks(module, ["graftlab_choices"], task_path)


def test_the_tokenizer_stays_as_it_is(module, task_path):
    module.tokenizer.pad_token = None
    before = module.tokenizer.get_vocab()
    run_tasks(module, ["graftlab_choices"], task_path, limit=1)
    assert (module.tokenizer.pad_token, module.tokenizer.get_vocab()) == (None, before)


@pytest.mark.parametrize("kind", ["loglikelihood_rolling", "generate_until"])
def test_texts_are_no_longer_than_the_model_reads(kind, task_path):
    module = CausalLMModule(guard_length(limited_model("llama, dynamic", 40)), byte_tokenizer())
    file = Path(task_path) / "task.yaml"
    lines = [line for line in file.read_text().split("metric_list")[0].splitlines() if "_to_choice" not in line]
    lines = [line.replace("multiple_choice", kind).replace("{{label}}", "{{question * 9}}") for line in lines]
    file.write_text("\n".join([*lines, "generation_kwargs: {until: [x], max_gen_toks: 30}"]))
    assert run_tasks(module, ["graftlab_choices"], task_path, limit=2)


ROLLING = """
task: graftlab_texts
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - metric: word_perplexity
"""


@pytest.mark.parametrize("setting", ["auto", False])
@pytest.mark.parametrize("task", ["graftlab_choices", "graftlab_texts"])
def test_texts_begin_with_the_start_token_once_and_end_where_they_end(task, setting, task_path, tmp_path, monkeypatch):
    (tmp_path / "tasks" / "rolling.yaml").write_text(ROLLING.format(data=tmp_path / "rows.jsonl"))
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<s>", tokenizer.eos_token)]
    template = TemplateProcessing(single=f"<s> $A {tokenizer.eos_token}", special_tokens=special)
    tokenizer.backend_tokenizer.post_processor = template
    module = CausalLMModule(language_model("llama"), tokenizer, start_token=setting)
    read, call = [], HFLM._model_call
    monkeypatch.setattr(
        HFLM, "_model_call", lambda model, rows, **others: read.append(rows) or call(model, rows, **others)
    )
    run_tasks(module, [task], task_path)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    first = start if setting == "auto" else end if task == "graftlab_texts" else None
    for row in [row.tolist() for rows in read for row in rows]:
        assert first is None or row[0] == first
        text = row if first is None else row[1:]
        assert start not in text and end not in text
    assert read
