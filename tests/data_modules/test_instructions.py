import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.instructions import USUAL_COLUMNS, Example, Template, read_examples, read_template, template_errors
from registries.registry import UserError

TEMPLATE = Template("Q: {instruction}\nA: ", "Q: {instruction}\nI: {input}\nA: ")
FIELDS = ["instruction", "input"]

anything = st.text(max_size=20)


def examples(rows, fields=None, template=TEMPLATE):
    reading = read_examples(rows, "file.json", fields, template)
    return reading.examples, reading.counts["no response"]


def counts(rows, **fields):
    return dict(read_examples(rows, "file.json", fields, TEMPLATE).counts)


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


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"Q: {instruction}\n\tA: ", "Q: {instruction}\n\tA: "),
        ("Q: {instruction}\n\tA: ", "Q: {instruction}\n\tA: "),
        (r"\\n {instruction}", r"\n {instruction}"),
        (r"\\\n {instruction}", "\\\n {instruction}"),
        (r"\section{{{instruction}}}\\", r"\section{{{instruction}}}" + "\\"),
        ("C:\\", "C:\\"),
    ],
)
def test_a_template_is_read_as_in_yaml_wherever_it_is_typed(typed, meant):
    assert read_template(typed, typed) == Template(meant, meant)


@given(st.text(), st.text(r"\ntr{}", max_size=8))
def test_doubled_backslashes_make_any_template(text, backslashes):
    template = Template(text + backslashes, backslashes + text)
    typed = (part.replace("\\", "\\\\") for part in (template.prompt, template.prompt_with_input))
    assert read_template(*typed) == template


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


@pytest.mark.parametrize("column", ["instruction", "question", "query"])
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
    assert ", ".join(USUAL_COLUMNS[missing]) in message
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


def test_half_a_character_is_no_text():
    with pytest.raises(UserError, match=r"file.json:0: column 'output' holds .ud83d, half of a character"):
        examples([{"instruction": "a", "output": "b \ud83d"}])


# Tables that are put together from several


def test_each_record_has_the_first_column_that_it_fills():
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"question": "Sum?", "context": "4 5", "answer": "9", "input": ""},
        {"instruction": None, "query": "Both?", "context": "6 7", "input": " ", "response": "13"},
        {"prompt": "Whole:", "completion": "text"},
        {"instruction": "Say.", "instances": [{"input": "so", "output": "so"}]},
    ]
    read = read_examples(rows, "file.json", None, TEMPLATE)
    assert [(example.prompt, example.response) for example in read.examples] == [
        ("Q: Add.\nI: 1 2\nA: ", "3"),
        ("Q: Sum?\nI: 4 5\nA: ", "9"),
        ("Q: Both?\nI: 6 7\nA: ", "13"),
        ("Whole:", "text"),
        ("Q: Say.\nI: so\nA: ", "so"),
    ]
    assert read.counts == {"whole prompts": 1}


@given(st.lists(st.sampled_from(["instruction", "question", "query"]), min_size=1, max_size=20), st.randoms())
def test_columns_of_other_records_change_no_record(columns, random):
    """As a table has it, whose rows all have all columns, or as lines have it."""
    rows = [{column: f"ask {index}", "output": f"say {index}"} for index, column in enumerate(columns)]
    table = [dict.fromkeys(["query", "question", "instruction"], random.choice([None, ""])) | row for row in rows]
    assert examples(rows) == examples(table)
    assert [example.prompt for example in examples(rows)[0]] == [f"Q: ask {index}\nA: " for index in range(len(rows))]


def test_what_records_lack_is_counted():
    rows = [
        {"instruction": "a", "input": "b", "output": "c"},
        {"instruction": "a", "input": "", "output": "c"},
        {"input": "b", "output": "c"},
        {"instruction": "a"},
    ]
    assert counts(rows) == {"no instruction": 1, "no input": 1, "no response": 1}


# Conversations

TURNS = [("system", "Be kind."), ("user", "Hello?"), ("assistant", "Hi."), ("user", "More?"), ("assistant", "No.")]
STYLES = {
    "messages": lambda who, text: {"role": who, "content": text},
    "conversations": lambda who, text: {"from": {"user": "human", "assistant": "gpt"}.get(who, who), "value": text},
}


@pytest.mark.parametrize("column", STYLES)
@pytest.mark.parametrize(
    ("turns", "oddities"),
    [
        (TURNS[1:3], {}),
        (TURNS[:3], {"system text": 1}),
        (TURNS[1:], {"further turns": 1}),
        (TURNS, {"system text": 1, "further turns": 1}),
        ([("assistant", "Greetings!"), *TURNS[1:3]], {"further turns": 1}),
    ],
)
def test_of_a_conversation_the_users_first_turn_and_its_answer_are_read(column, turns, oddities):
    row = {column: [STYLES[column](*turn) for turn in turns]}
    assert only(row) == Example("file.json:0", "Q: Hello?\nA: ", "Hi.")
    assert counts([row]) == {"no input": 1} | oddities
    template = Template("{system}|{instruction}|", "")
    assert only(row, template=template).prompt == ("Be kind." if turns[0] == TURNS[0] else "") + "|Hello?|"


def test_turns_of_two_styles_in_one_table():
    """A .parquet file gives every turn the keys of both."""
    keys = {"role": None, "content": None, "from": None, "value": None}
    row = {"messages": [keys | STYLES["conversations"](*turn) for turn in TURNS[1:3]]}
    assert only(row) == Example("file.json:0", "Q: Hello?\nA: ", "Hi.")


def test_prompts_and_completions_may_be_conversations():
    row = {"prompt": [STYLES["messages"](*turn) for turn in TURNS[:2]], "completion": [STYLES["messages"](*TURNS[2])]}
    assert only(row) == Example("file.json:0", "Q: Hello?\nA: ", "Hi.")


def test_a_named_turn_of_somebody_else_is_no_instruction():
    """Some conversations begin with the system, so that all their turns are one later."""
    fields = {"instruction": "conversations.0.value", "response": "conversations.1.value"}
    rows = [{"conversations": [STYLES["conversations"](*turn) for turn in turns]} for turns in (TURNS[1:3], TURNS[:3])]
    read = read_examples(rows, "file.json", fields, TEMPLATE)
    assert read.examples == [Example("file.json:0", "Q: Hello?\nA: ", "Hi.")]
    assert read.counts["strange turn"] == 1


def test_conversations_without_an_answer_have_no_response():
    rows = [{"messages": [STYLES["messages"](*turn) for turn in TURNS[:end]]} for end in (3, 2)]
    read = read_examples(rows, "file.json", None, TEMPLATE)
    assert (len(read.examples), read.counts["no response"]) == (1, 1)


def test_a_conversation_whose_turns_hold_no_text():
    row = {"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "A cat."}]}
    with pytest.raises(UserError, match=r"file.json:0: column 'messages.user' holds list, not text"):
        examples([row])
