"""Calls of tools in every form that templates teach, through the openai package and in pieces."""

import json
import re

import openai
import pytest
from tests.tiny import CHATML, tiny_model_folder
from tests.unit.serve.conftest import LIVELY
from tests.unit.serve.running import HELLO, serving

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.rollout.text import GrowingText
from tunesmith.serve.refusals import Refusal
from tunesmith.serve.tools import BARE, LISTED, NAMED, PARAMETERS, TAGGED, CallFinder, mark_ids, style_of, values_in

WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
CLOCK = {"name": "clock", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
TOOLS = [{"type": "function", "function": function} for function in (WEATHER, CLOCK)]
MISTRAL = (
    "{%- for message in messages %}{%- if message.tool_calls is defined %}{%- for call in message.tool_calls %}"
    "{%- if call.id|length != 9 %}{{ raise_exception('ids have nine characters') }}{%- endif %}"
    "{{ '[TOOL_CALLS]' }}{{ [call.function] | tojson }}{%- endfor %}{%- else %}{{ message.content }}{%- endif %}"
    "{%- endfor %}{%- if tools %}{{ tools | tojson }}{%- endif %}"
)
TEMPLATES = {
    TAGGED: "{% if tools %}{{ tools | tojson }} call with <tool_call>{% endif %}" + CHATML,
    LISTED: MISTRAL,
    NAMED: MISTRAL + "{# or [TOOL_CALLS]name[ARGS]{...} #}",
    PARAMETERS: '{% if tools %}{{ tools | tojson }} {"name": ..., "parameters": ...}{% endif %}' + CHATML,
    BARE: "{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML,
}
STYLES = list(TEMPLATES)


def with_marks(folder, marks: tuple[str, ...]) -> None:
    """Control tokens in the places of the last ids, as Mistral has them among the first."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    for mark, token in zip(marks, sorted(vocabulary, key=vocabulary.__getitem__)[-len(marks) :], strict=True):
        at = vocabulary[token]
        content["model"]["merges"] = [pair for pair in content["model"]["merges"] if "".join(pair) != token]
        vocabulary[mark] = vocabulary.pop(token)
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        content["added_tokens"].append({"id": at, "content": mark, "special": True, **plain})
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model for each style; in those of Mistral the marks are control tokens."""
    found = {}
    for style, template in TEMPLATES.items():
        folder = tmp_path_factory.mktemp("tools") / "model"
        found[style] = tiny_model_folder(folder, template=template, **LIVELY)
        if style in (LISTED, NAMED):
            with_marks(folder, ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"))
    return found


@pytest.fixture(scope="module")
def callers(folders):
    with serving({str(STYLES.index(style)): folder for style, folder in folders.items()}) as running:
        yield running


@pytest.mark.parametrize("style", STYLES)
def test_a_template_tells_the_form_of_calls(folders, style):
    tokenizer = load_tokenizer(folders[style])
    assert style_of(tokenizer) == style
    assert len(mark_ids(tokenizer, style)) == (3 if style == NAMED else 2 if style == LISTED else 0)


def test_a_template_without_tools_is_refused(tiny):
    with pytest.raises(Refusal, match="E423"):
        style_of(load_tokenizer(tiny))


@pytest.mark.parametrize(
    ("style", "text", "content", "calls"),
    [
        (TAGGED, 'Hm. <tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', "Hm. ", [("f", '{"x": 1}')]),
        (
            TAGGED,
            '<tool_call>{"name": "f"}</tool_call><tool_call>{"name": "g", "arguments": {}}',
            "",
            [("f", "{}"), ("g", "{}")],
        ),
        (TAGGED, "a <tool_ b", "a <tool_ b", []),
        (TAGGED, '<tool_call>{"name": "other"}</tool_call>', '<tool_call>{"name": "other"}</tool_call>', []),
        (TAGGED, "<tool_call></tool_call>", "<tool_call></tool_call>", []),
        (LISTED, '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}]', "", [("f", '{"x": 1}')]),
        (
            LISTED,
            'So: [TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"y": "]"}}]',
            "So: ",
            [("f", "{}"), ("g", '{"y": "]"}')],
        ),
        (LISTED, '[TOOL_CALLS] [{"name": "f", "arg', '[TOOL_CALLS] [{"name": "f", "arg', []),
        (LISTED, "[TOOL_ is not", "[TOOL_ is not", []),
        (NAMED, '[TOOL_CALLS]f[ARGS]{"x": 1}', "", [("f", '{"x": 1}')]),
        (
            NAMED,
            '[TOOL_CALLS]f[CALL_ID]a1b2c3d4e[ARGS]{"x": 1}[TOOL_CALLS]g[ARGS]{}',
            "",
            [("f", '{"x": 1}'), ("g", "{}")],
        ),
        (NAMED, "[TOOL_CALLS]f[ARGS]{", "[TOOL_CALLS]f[ARGS]{", []),
        (NAMED, "[TOOL_CALLS]other[ARGS]{}", "[TOOL_CALLS]other[ARGS]{}", []),
        (PARAMETERS, ' {"name": "f", "parameters": {"x": 1}}', "", [("f", '{"x": 1}')]),
        (
            PARAMETERS,
            '{"name": "f", "parameters": {"x": 1}}; {"name": "g", "parameters": {}}',
            "",
            [("f", '{"x": 1}'), ("g", "{}")],
        ),
        (PARAMETERS, '{"name": "f", "parameters": {}} or so', '{"name": "f", "parameters": {}} or so', []),
        (PARAMETERS, "It is {so}.", "It is {so}.", []),
        (PARAMETERS, '{"name": ["f"], "parameters": {}}', '{"name": ["f"], "parameters": {}}', []),
        (BARE, '{"name": "f", "arguments": "{}"}', "", [("f", "{}")]),
        (BARE, '{"city": "Paris"}', '{"city": "Paris"}', []),
    ],
)
def test_calls_are_found_however_the_text_is_cut(style, text, content, calls):
    for size in (1, 3, len(text)):
        finder = CallFinder(style, ["f", "g"])
        shown = "".join(finder.add(text[at : at + size]) for at in range(0, len(text), size))
        rest, found = finder.end()
        assert shown + rest == content
        assert [(call["function"]["name"], call["function"]["arguments"]) for call in found] == calls
        for call in found:
            wanted = r"[0-9a-f]{9}" if style in (LISTED, NAMED) else r"call_[0-9a-f]{24}"
            assert re.fullmatch(wanted, call["id"])


def test_values_of_a_text_that_is_no_json_are_none():
    assert values_in("[1, 2]; {}") == [1, 2, {}]
    assert values_in("{} and") == [None]
    assert values_in(" ") == [None]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_is_required_is_one_of_the_tools(callers, style, choice):
    pytest.importorskip("llguidance")
    settings = {"model": str(STYLES.index(style)), "messages": HELLO, "tools": TOOLS, "max_tokens": 200}
    names = set()
    for seed in range(2):
        own = {**settings, "tool_choice": choice, "seed": seed}
        whole = callers.client.chat.completions.create(**own)
        (call,) = whole.choices[0].message.tool_calls
        assert whole.choices[0].finish_reason == "tool_calls"
        assert whole.choices[0].message.content is None
        names.add(call.function.name)
        given = json.loads(call.function.arguments)
        assert given["city"] in ("Paris", "Rome") if call.function.name == "weather" else isinstance(given, dict)
        parts = [chunk.choices[0] for chunk in callers.client.chat.completions.create(**own, stream=True)]
        (told,) = [part.delta.tool_calls[0] for part in parts if part.delta.tool_calls]
        assert (told.function.name, told.function.arguments) == (call.function.name, call.function.arguments)
        assert parts[-1].finish_reason == "tool_calls"
        assert not any(part.delta.content for part in parts)
    assert names <= ({"weather", "clock"} if choice == "required" else {"weather"})


@pytest.mark.parametrize("style", [TAGGED, LISTED])
def test_the_answer_of_a_tool_goes_back_to_the_model(callers, style):
    pytest.importorskip("llguidance")
    settings = {"model": str(STYLES.index(style)), "tools": TOOLS, "max_tokens": 200, "seed": 1}
    asked = callers.client.chat.completions.create(**settings, messages=HELLO, tool_choice="required")
    (call,) = asked.choices[0].message.tool_calls
    turns = [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "Sunny."},
    ]
    said = callers.client.chat.completions.create(**{**settings, "messages": turns, "max_tokens": 4})
    assert 1 <= said.usage.completion_tokens <= 4
    assert said.usage.prompt_tokens > asked.usage.prompt_tokens


def test_without_a_choice_the_model_is_free_and_with_none_tools_are_not_shown(callers):
    settings = {"model": str(STYLES.index(LISTED)), "messages": HELLO, "tools": TOOLS, "max_tokens": 12, "seed": 2}
    free = callers.client.chat.completions.create(**settings)
    none = callers.client.chat.completions.create(**settings, tool_choice="none")
    assert none.usage.prompt_tokens < free.usage.prompt_tokens
    assert none.choices[0].message.tool_calls is None
    choice = {"type": "function", "function": {"name": "absent"}}
    with pytest.raises(openai.BadRequestError, match="no tool is called") as caught:
        callers.client.chat.completions.create(**settings, tool_choice=choice)
    assert caught.value.param == "tool_choice"


def test_marks_are_shown_and_other_control_tokens_are_not(folders):
    tokenizer = load_tokenizer(folders[LISTED])
    marks = frozenset(mark_ids(tokenizer, LISTED).values())
    call = tokenizer.control.ids["[TOOL_CALLS]"]
    ids = [*tokenizer.encode("So ", specials=False), call, 1, *tokenizer.encode("[{}]", specials=False), 2]
    text = GrowingText(tokenizer, marks)
    assert "".join(map(text.add, ids)) + text.end() == "So [TOOL_CALLS][{}]"
    plain = GrowingText(tokenizer)
    assert "".join(map(plain.add, ids)) + plain.end() == "So [{}]"
    assert tokenizer.decode(ids, skip_special=True, shown=marks) == "So [TOOL_CALLS][{}]"
