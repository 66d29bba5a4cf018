import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.instructions import COLUMNS, Example, Template, read_examples, template_errors
from registries.registry import UserError

TEMPLATE = Template("Q: {instruction}\nA: ", "Q: {instruction}\nI: {input}\nA: ")
FIELDS = ["instruction", "input"]

anything = st.text(max_size=20)


def examples(rows, fields=None, template=TEMPLATE):
    return read_examples(rows, "file.json", fields, template)[:2]


def only(row, **options):
    ((example,), without) = examples([row], **options)
    assert without == 0
    return example


# Templates


@given(anything, anything)
def test_a_prompt_holds_its_fields_as_they_are(instruction, given_input):
    """Braces in them, too: a field is no template."""
    expected = f"Q: {instruction}\n" + (f"I: {given_input}\n" if given_input.strip() else "") + "A: "
    assert TEMPLATE(instruction=instruction, input=given_input) == expected


def test_without_an_input_there_is_another_prompt():
    expected = "Q: Add.\nA: "
    assert TEMPLATE(instruction="Add.") == TEMPLATE(instruction="Add.", input=" \n") == expected


def test_right_templates_have_no_errors():
    assert template_errors(TEMPLATE, FIELDS) == []
    assert (
        template_errors(Template("{{literal}} {instruction}", "{instruction!r:>20}{category}"), [*FIELDS, "category"])
        == []
    )


@pytest.mark.parametrize("key", ["prompt", "prompt_with_input"])
def test_a_template_with_an_unknown_name(key):
    texts = {"prompt": "{instruction}", "prompt_with_input": "{instruction}", key: "{instrution} {context}"}
    first, second = template_errors(Template(**texts), FIELDS)
    assert first.startswith(f"dataset.{key} names {{instrution}}")
    assert "did you mean 'instruction'" in first
    assert second.startswith(f"dataset.{key} names {{context}}")
    for message in (first, second):
        assert "Allowed: instruction, input" in message
        assert "dataset.fields" in message


@pytest.mark.parametrize("text", ["{instruction", "instruction}", "{instruction} {"])
def test_a_template_with_a_single_brace(text):
    (message,) = template_errors(Template(text, "{instruction}"), FIELDS)
    assert message.startswith("dataset.prompt is no template")
    assert "written twice" in message


@pytest.mark.parametrize("text", ["{}", "{0}", "{instruction.upper}", "{instruction[0]}"])
def test_a_template_without_a_plain_name(text):
    (message,) = template_errors(Template("{instruction}", text), FIELDS)
    assert message.startswith("dataset.prompt_with_input names {")


# Records


def test_a_record_becomes_a_prompt_and_a_response():
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert only(row) == Example("file.json:0", "Q: Add.\nI: 1 2\nA: ", "3")
    assert only(row).prompt + only(row).response == "Q: Add.\nI: 1 2\nA: 3"


def test_examples_are_named_by_their_rows():
    """By all of them, also where some are left out, so that a record has a name of its own."""
    rows = [{"instruction": str(i), "output": "" if i == 1 else "yes"} for i in range(3)]
    found, without = examples(rows)
    assert [each.name for each in found] == ["file.json:0", "file.json:2"]
    assert without == 1


@pytest.mark.parametrize("column", COLUMNS["instruction"])
def test_usual_names_of_instructions(column):
    assert only({column: "Add.", "output": "3"}).prompt == "Q: Add.\nA: "


@pytest.mark.parametrize("column", ["input", "context"])
def test_usual_names_of_inputs(column):
    assert only({"instruction": "Add.", column: "1 2", "output": "3"}).prompt == "Q: Add.\nI: 1 2\nA: "


@pytest.mark.parametrize("column", ["output", "response", "answer", "completion"])
def test_usual_names_of_responses(column):
    assert only({"instruction": "Add.", column: "3"}).response == "3"


def test_nested_records():
    row = {"instruction": "Add.", "instances": [{"input": "1 2", "output": "3"}]}
    assert only(row) == Example("file.json:0", "Q: Add.\nI: 1 2\nA: ", "3")


def test_the_first_of_several_usual_names_is_taken():
    row = {"query": "no", "question": "no", "instruction": "yes", "completion": "no", "output": "yes"}
    assert only(row) == Example("file.json:0", "Q: yes\nA: ", "yes")


def test_a_named_column_goes_before_the_usual_ones():
    row = {"instruction": "no", "input": "no", "output": "no", "a": "Add.", "b": {"c": ["x", "1 2"]}, "d": "3"}
    fields = {"instruction": "a", "input": "b.c.1", "response": "d"}
    assert only(row, fields=fields) == Example("file.json:0", "Q: Add.\nI: 1 2\nA: ", "3")


def test_other_fields_are_for_templates():
    template = Template("[{topic}] {instruction}", "[{topic}] {instruction} {input}")
    row = {"instruction": "Add.", "output": "3", "category": "sums"}
    assert only(row, fields={"topic": "category"}, template=template).prompt == "[sums] Add."


def test_a_column_of_whole_prompts_needs_no_template():
    assert only({"prompt": "Say {this}:", "answer": "that"}) == Example("file.json:0", "Say {this}:", "that")


def test_unless_an_instruction_is_named():
    row = {"prompt": "no", "text": "Add.", "answer": "3"}
    assert only(row, fields={"instruction": "text"}).prompt == "Q: Add.\nA: "


@pytest.mark.parametrize("empty", [None, "", " \n\t"])
def test_records_without_a_response_are_left_out_and_counted(empty):
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": empty}]
    found, without = examples(rows)
    assert [each.response for each in found] == ["b"]
    assert without == 1


def test_nested_records_without_an_instance_have_no_response():
    rows = [{"instruction": "a", "instances": [{"input": "", "output": "b"}]}, {"instruction": "c", "instances": []}]
    found, without = examples(rows)
    assert (len(found), without) == (1, 1)


def test_an_empty_cell_is_an_empty_text():
    assert only({"instruction": None, "input": None, "output": "3"}).prompt == "Q: \nA: "


def test_responses_are_left_as_they_are():
    assert only({"instruction": "a", "output": "\n  b {c} \n"}).response == "\n  b {c} \n"


def test_no_rows_are_no_examples():
    assert examples([]) == ([], 0)


@pytest.mark.parametrize("missing", ["instruction", "response"])
def test_a_missing_column_is_an_error_with_the_way_out(missing):
    row = {"instruction": "a", "output": "b", "other": "c"}
    del row[{"instruction": "instruction", "response": "output"}[missing]]
    with pytest.raises(UserError) as error:
        examples([row])
    (message,) = error.value.messages
    assert message.startswith(f"file.json has no column for the {missing}")
    assert ", ".join(COLUMNS[missing]) in message
    assert f"it has {', '.join(row)}" in message
    assert f"dataset.fields.{missing}=<column>" in message


def test_all_missing_columns_are_told_at_once():
    with pytest.raises(UserError) as error:
        examples([{"a": "b"}], fields={"topic": "subject"})
    assert [message.split(" (")[0].rsplit(" ", 1)[-1] for message in error.value.messages] == [
        "instruction",
        "response",
        "topic",
    ]


@pytest.mark.parametrize("field", ["instruction", "input", "response", "topic"])
def test_a_named_column_that_is_not_there(field):
    row = {"instruction": "a", "input": "b", "output": "c"}
    with pytest.raises(UserError, match=f"no column for the {field} .looked for absent.0.text"):
        examples([row], fields={field: "absent.0.text"})


@pytest.mark.parametrize(("value", "kind"), [(3, "int"), ([{"text": "a"}], "list"), ({"text": "a"}, "dict")])
def test_a_column_that_holds_no_text(value, kind):
    with pytest.raises(UserError, match=f"file.json:1: column 'output' holds {kind}, not text"):
        examples([{"instruction": "a", "output": "b"}, {"instruction": "a", "output": value}])
