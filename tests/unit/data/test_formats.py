import json
from pathlib import Path

import pytest

from tunesmith.data.config import SourceConfig
from tunesmith.data.entries import read_entries
from tunesmith.data.formats import convert, recognise
from tunesmith.data.tally import Tally
from tunesmith.errors import DataError
from tunesmith.types import Completion, Conversation, Document, Message, Record

ASK, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def record(value: dict) -> Record:
    return Record(value, "a.jsonl", 7)


def read(value: dict, columns: dict[str, str] | None = None):
    source = SourceConfig(path="a.jsonl", columns=columns or {})
    entry = record(value)
    return convert(entry, recognise(entry, source), source.columns)


def refused(value: dict, columns: dict[str, str] | None = None):
    with pytest.raises(DataError) as caught:
        read(value, columns)
    found = caught.value.diagnostic
    assert (found.where.file, found.where.line) == ("a.jsonl", 7)
    return found


def chat(*turns: dict) -> dict:
    return {"messages": list(turns)}


def write(path: Path, records: list[dict]) -> SourceConfig:
    path.write_text("".join(json.dumps(value) + "\n" for value in records))
    return SourceConfig(path=str(path))


def test_alpaca_joins_instruction_and_input_by_a_line_break():
    full = read(
        {
            "instruction": "Translate.",
            "input": " Guten Tag ",
            "output": "Good day\n",
            "system": "Be exact.",
            "history": [["one", "two"]],
            "id": 3,
        }
    )
    assert full == Conversation(
        (
            Message("system", "Be exact."),
            Message("user", "one"),
            Message("assistant", "two"),
            Message("user", "Translate.\n Guten Tag "),
            Message("assistant", "Good day\n"),
        ),
        "a.jsonl",
        7,
    )
    short = read({"instruction": "Hi", "input": "", "output": "Hello", "system": None, "history": []})
    assert short.messages == (Message("user", "Hi"), Message("assistant", "Hello"))


def test_sharegpt_with_tools_and_calls():
    call = {"name": "add", "arguments": {"a": 1, "b": [2]}}
    tool = {"name": "add", "description": "adds", "parameters": {"type": "object"}}
    entry = read(
        {
            "conversations": [
                {"from": "human", "value": "1 + 2?"},
                {"from": "gpt", "value": "Let me see."},
                {"from": "function_call", "value": json.dumps(call)},
                {"from": "observation", "value": "3"},
                {"from": "gpt", "value": "3"},
            ],
            "tools": json.dumps([tool]),
            "system": "Use tools.",
        }
    )
    assert [message.role for message in entry.messages] == [
        "system",
        "user",
        "assistant",
        "assistant",
        "tool",
        "assistant",
    ]
    assert entry.messages[3] == Message("assistant", "", ({"type": "function", "function": call},))
    assert entry.tools == ({"type": "function", "function": tool},)


def test_openai_messages_with_parts_calls_names_and_weights():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    tool = {"type": "function", "function": {"name": "f"}}
    entry = read(
        {
            "messages": [
                {"role": "system", "content": ""},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a "}, {"type": "text", "value": "b"}],
                    "name": "Ann",
                },
                {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0},
                {"role": "tool", "content": "", "tool_call_id": "c1"},
                {"role": "assistant", "content": "one", "train": False},
                {"role": "user", "content": "two", "loss_weight": 0.0},
                {"role": "assistant", "content": "three", "loss_weight": 0.5, "train": True, "tool_calls": None},
                {"role": "assistant", "content": "four", "train": True},
            ],
            "tools": [tool],
        }
    )
    read_call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert entry.messages == (
        Message("system", ""),
        Message("user", "a b", name="Ann"),
        Message("assistant", "", (read_call,), weight=0.0),
        Message("tool", "", tool_call_id="c1"),
        Message("assistant", "one", weight=0.0),
        Message("user", "two", weight=0.0),
        Message("assistant", "three", weight=0.5),
        Message("assistant", "four", weight=1.0),
    )
    assert entry.tools == (tool,)


def test_prompt_completion_as_texts_and_as_turns():
    assert read({"prompt": "a ", "completion": " b"}) == Completion("a ", " b", "a.jsonl", 7)
    entry = read({"prompt": [ASK, ANSWER, ASK], "completion": [ANSWER]})
    assert [message.weight for message in entry.messages] == [0.0, 0.0, 0.0, None]
    assert [message.role for message in entry.messages] == ["user", "assistant", "user", "assistant"]


def test_text_and_the_order_of_recognition():
    assert read({"text": " a\n"}) == Document(" a\n", "a.jsonl", 7)
    assert isinstance(read({"text": "x", **chat(ASK, ANSWER)}), Conversation)
    assert isinstance(read({"text": "x", "instruction": "a", "output": "b"}), Conversation)
    source = SourceConfig(path="a.jsonl", shape="text")
    assert recognise(record({"text": "x", **chat(ASK, ANSWER)}), source) == "text"


def test_columns_map_our_names_to_those_of_the_file():
    entry = read({"question": "a", "output": "no", "answer": "b"}, {"instruction": "question", "output": "answer"})
    assert entry.messages == (Message("user", "a"), Message("assistant", "b"))
    assert read({"prompt": "a", "response": "b"}, {"completion": "response"}) == Completion("a", "b", "a.jsonl", 7)
    turns = [{"speaker": "user", "said": "a"}, {"speaker": "assistant", "said": "b"}]
    entry = read({"dialog": turns}, {"messages": "dialog", "role": "speaker", "content": "said"})
    assert [message.content for message in entry.messages] == ["a", "b"]


def test_conversations_may_hold_role_and_content():
    assert len(read({"conversations": [ASK, ANSWER]}).messages) == 2


def test_an_unknown_shape_lists_keys_shapes_and_the_mapping():
    found = refused({"instruction": "a", "input": "", "response": "b"})
    assert found.code == "E047"
    assert "instruction, input, response" in found.message
    assert "alpaca: instruction, output" in found.evidence
    assert found.fixes[0].label == "read it as alpaca: data.train.0.columns.output=response"
    assert found.fixes[0].set == {"data.train.0.columns": {"output": "response"}}
    assert refused({"chosen": "a", "rejected": "b"}).code == "E210"


def test_an_unknown_field_in_columns_has_a_near_name():
    assert "did you mean output?" in refused({"text": "a"}, {"outputs": "b"}).fixes[0].label


@pytest.mark.parametrize(
    ("value", "field", "words"),
    [
        ({"instruction": "a", "output": None}, "output", "output is null; want a text"),
        ({"instruction": "a", "output": 7}, "output", "output is a number (7); want a text"),
        ({"instruction": ["a"], "output": "b"}, "instruction", "instruction is a list of 1; want a text"),
        ({"instruction": "a", "input": {}, "output": "b"}, "input", "input is an object"),
        ({"instruction": "a", "output": "b", "history": [["a"]]}, "history[0]", "want two texts"),
        ({"text": True}, "text", "text is true; want a text"),
        ({"messages": "a"}, "messages", "messages is a text; want a list of turns"),
        (chat(ASK, "Hello"), "messages[1]", "messages[1] is a text; want an object"),
        (chat(ASK, {"role": "assistant"}), "messages[1].content", "messages[1].content is missing"),
        (chat(ASK, {"content": "a"}), "messages[1].role", "messages[1].role is missing"),
        (chat(ASK, {"role": 3, "content": "a"}), "messages[1].role", "is a number (3)"),
        (chat(ASK, {"role": "assistant", "content": 1.5}), "messages[1].content", "is a number (1.5)"),
        (chat(ASK, {"role": "assistant", "content": [{"type": "image"}]}), "messages[1].content[0]", "type 'image'"),
        (chat(ASK, {**ANSWER, "weight": "1"}), "messages[1].weight", "weight is a text"),
        (chat(ASK, {**ANSWER, "weight": -1}), "messages[1].weight", "want a number from 0 up"),
        (chat(ASK, {**ANSWER, "train": 0}), "messages[1].train", "want true or false"),
        (chat({**ASK, "tool_calls": [{}]}, ANSWER), "messages[0].tool_calls", "only assistant turns call tools"),
        (chat(ASK, {**ANSWER, "tool_calls": [{"function": {}}]}), "messages[1].tool_calls", "no function name"),
        (
            chat(ASK, {**ANSWER, "tool_calls": [{"name": "f", "arguments": "{"}]}),
            "messages[1].tool_calls",
            "the arguments of f are a text",
        ),
        ({**chat(ASK, ANSWER), "tools": "[{"}, "tools", "tools is a text; want a list of tools"),
        ({**chat(ASK, ANSWER), "tools": [{"type": "function"}]}, "tools[0]", "not a tool with a name"),
        ({"prompt": [ASK], "completion": "a"}, "prompt", "prompt is a list of 1; want a text"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "add 1"}]},
            "conversations[1].value",
            "want calls with name and arguments",
        ),
    ],
)
def test_d07_missing_null_and_wrong_types_name_field_got_and_want(value, field, words):
    found = refused(value)
    assert found.code == "E048"
    assert found.where.field == field
    assert words in found.message


def test_d07_a_missing_field_lists_what_there_is():
    entry = record({"instruction": "a", "answer": "b"})
    with pytest.raises(DataError, match="output is missing; want a text") as caught:
        convert(entry, "alpaca", {})
    assert caught.value.diagnostic.fixes[0].label == "the record has: instruction, answer"


def test_d07_counts_over_the_file_with_the_first_five_lines(tmp_path):
    good, bad, other = {"text": "a"}, {"text": None}, {"text": 3}
    source = write(tmp_path / "a.jsonl", [good, bad, good, *[bad] * 6, other, good, *[bad] * 4])
    with pytest.raises(DataError) as caught:
        list(read_entries(source))
    first, second = caught.value.diagnostics
    assert first.evidence == ("11 of 15 records (lines 2, 4, 5, 6, 7 ...)",)
    assert second.where.line == 10
    assert second.evidence == ()


def test_d08_a_type_change_at_line_200001_is_told_as_at_line_2(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        file.write('{"prompt": "a", "completion": "b"}\n' * 200_000)
        file.write('{"prompt": "a", "completion": 3}\n')
    with pytest.raises(DataError) as caught:
        list(read_entries(SourceConfig(path=str(path))))
    late = caught.value.diagnostic
    with pytest.raises(DataError) as caught:
        list(
            read_entries(
                write(tmp_path / "b.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": 3}])
            )
        )
    early = caught.value.diagnostic
    assert (late.where.line, early.where.line) == (200_001, 2)
    assert (late.code, late.message, late.where.field) == (early.code, early.message, early.where.field)


@pytest.mark.parametrize(
    ("typo", "meant"), [("asistant", "assistant"), ("User", "user"), ("humam", "human"), ("sytem", "system")]
)
def test_d09_role_typo_has_a_near_name(typo, meant):
    found = refused(chat(ASK, {"role": typo, "content": "a"}))
    assert found.code == "E049"
    assert found.message == f"unknown role {typo!r}: did you mean {meant}?"
    assert found.where.field == "messages[1].role"


def test_d09_a_role_unlike_any_lists_the_known_ones():
    found = refused({"conversations": [{"from": "human", "value": "a"}, {"from": "xyz", "value": "a"}]})
    assert "known: system, user, human, assistant, gpt" in found.message
    assert found.where.field == "conversations[1].from"


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (chat({**ASK, "content": " \n"}, ANSWER), "messages[0]"),
        (chat(ASK, {**ANSWER, "content": ""}), "messages[1]"),
        (chat(ASK, {**ANSWER, "content": []}), "messages[1]"),
        (chat(ASK), None),
        (chat(), None),
        ({"instruction": "", "input": "", "output": "a"}, "instruction"),
        ({"instruction": "a", "output": " "}, "output"),
        ({"prompt": "a", "completion": ""}, "completion"),
        ({"prompt": "", "completion": "a"}, "prompt"),
        ({"prompt": [ASK], "completion": [ASK]}, "completion"),
        ({"text": ""}, "text"),
    ],
)
def test_d10_empty_turns_and_missing_answers(value, field):
    found = refused(value)
    assert found.code == "E050"
    assert found.where.field == field


def test_d10_skip_counts_them(tmp_path):
    source = write(
        tmp_path / "a.jsonl", [chat(ASK, ANSWER), chat(ASK), chat(ASK, {**ANSWER, "content": ""}), chat(ASK, ANSWER)]
    )
    tally = Tally("skip")
    assert [entry.line for entry in read_entries(source, tally)] == [1, 4]
    assert tally.skipped == {"empty turn or no assistant turn": 2}
    assert tally.places == {"empty turn or no assistant turn": [f"{source.path}:2", f"{source.path}:3"]}


@pytest.mark.parametrize(
    ("roles", "index", "words"),
    [
        ("user user assistant", 1, "a second user turn in a row"),
        ("user assistant system user assistant", 2, "a system turn after the first"),
        ("system system user assistant", 1, "a system turn after the first"),
        ("assistant user assistant", 0, "begins with an assistant turn"),
        ("system assistant", 1, "begins with an assistant turn"),
        ("user tool assistant", 1, "no assistant turn asked for it"),
        ("tool user assistant", 0, "begins with a tool turn"),
    ],
)
def test_d11_role_order_names_the_turn(roles, index, words):
    found = refused(chat(*({"role": role, "content": "x"} for role in roles.split())))
    assert found.code == "E051"
    assert found.where.field == f"messages[{index}]"
    assert words in found.message


@pytest.mark.parametrize(
    "roles",
    [
        "user assistant assistant",
        "user assistant assistant tool tool assistant user assistant",
        "system user assistant user",
        "user assistant tool user assistant",
    ],
)
def test_d11_several_assistant_turns_in_a_row_are_accepted_unchanged(roles):
    turns = [{"role": role, "content": f"{role} {index}"} for index, role in enumerate(roles.split())]
    entry = read(chat(*turns))
    assert [{"role": message.role, "content": message.content} for message in entry.messages] == turns


def test_d18_an_escaped_nul_is_a_warning(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"text": "a\0b"}, {"text": "c"}, {"text": "\0"}])
    tally = Tally()
    assert [entry.text for entry in read_entries(source, tally)] == ["a\0b", "c", "\0"]
    (warning,) = tally.warnings
    assert (warning.code, warning.level, warning.where.line) == ("W030", "warning", 1)
    assert warning.evidence == ("2 times (lines 1, 3)",)


def test_skip_does_not_skip_a_whole_file_of_unknown_shape(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"question": "a", "answer": "b"}] * 3)
    with pytest.raises(DataError, match="no known shape"):
        list(read_entries(source, Tally("skip")))
    source = write(tmp_path / "b.jsonl", [{"question": "a"}, {"text": "b"}])
    assert [entry.text for entry in read_entries(source, Tally("skip"))] == ["b"]


def test_an_unknown_shape_stops_at_once(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"question": "a"}, {"text": "b"}])
    with pytest.raises(DataError, match="no known shape"):
        next(iter(read_entries(source)))


def test_the_shape_is_recognised_in_each_file(tmp_path):
    write(tmp_path / "a.jsonl", [{"text": "a"}])
    write(tmp_path / "b.jsonl", [chat(ASK, ANSWER)])
    entries = list(read_entries(SourceConfig(path=str(tmp_path))))
    assert [type(entry) for entry in entries] == [Document, Conversation]


def test_limit_counts_good_entries(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"text": "a"}, {"text": None}, {"text": "b"}, {"text": "c"}])
    assert [entry.line for entry in read_entries(source, Tally("skip"), 2)] == [1, 3]
    assert len(list(read_entries(source, limit=1))) == 1
    with pytest.raises(DataError):
        list(read_entries(source, limit=2))


def test_a_fault_found_by_the_caller_is_raised_also_at_the_limit(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b"}])
    tally = Tally()
    entries = read_entries(source, tally, 1)
    next(entries)
    tally.refuse(refused({"text": None}))
    with pytest.raises(DataError, match="text is null"):
        next(entries)
