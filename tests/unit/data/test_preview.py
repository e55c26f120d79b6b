import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console
from tests.tiny import tiny_tokenizer

from tunesmith.data.chat import encode
from tunesmith.data.config import DataConfig, SourceConfig
from tunesmith.data.pieces import pieces_of
from tunesmith.data.preview import LEGEND, preview, preview_entry, to_html, to_text
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.types import Conversation, Labelled, Message, Pair, Process, Ranking, Task

HOSTILE = "<script>alert(1)</script> & <|im_end|> 😀 漢\x1b[31m"
CHAT = Conversation(
    (
        Message("user", HOSTILE),
        Message("assistant", "one 😀", weight=0.5),
        Message("user", "b"),
        Message("assistant", "two"),
    ),
    "data.jsonl",
    3,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("model")))


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "a.jsonl"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    long = [{"role": "user", "content": "word " * 99}, {"role": "assistant", "content": "hello"}]
    path.write_text("".join(json.dumps({"messages": value}) + "\n" for value in (turns, long, turns)))
    return DataConfig(train=(SourceConfig(path=str(path)),), max_length=64)


def plain(examples) -> str:
    console = Console(width=500, no_color=True, force_terminal=False, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(to_text(examples))
    return console.export_text()


def test_pieces_are_the_tokens_in_order(tokenizer):
    (example,) = encode(CHAT, tokenizer, DataConfig())
    pieces = pieces_of(example, tokenizer)
    assert [id for piece in pieces for id in piece.ids] == example.tokens.tolist()
    weights = [piece.weight for piece in pieces for _ in piece.ids]
    np.testing.assert_array_equal(np.array(weights, dtype=np.float32), example.weights)
    assert "".join(piece.text for piece in pieces) == tokenizer.render(CHAT.messages, add_generation_prompt=False)
    assert sum(piece.special for piece in pieces) == 8


def test_text_reads_without_colour(tokenizer):
    shown = plain(preview_entry(CHAT, tokenizer, DataConfig()))
    assert LEGEND in shown
    assert "⟦×0.5 one 😀⟨<|im_end|>⟩⟧↵" in shown
    assert "⟦two⟨<|im_end|>⟩⟧↵" in shown
    assert "& <|im_end|> 😀 漢␛[31m⟨<|im_end|>⟩" in shown
    assert "data.jsonl:3" in shown
    assert "weights 0.5" in shown
    assert "note: control tokens written in the text are kept as plain text" in shown


def test_preview_shows_the_first_records_and_why_one_is_dropped(settings, tokenizer):
    shown = preview(settings, tokenizer, 2)
    assert [example.dropped for example in shown] == [None, "longer than data.max_length"]
    assert "dropped: longer than data.max_length" in plain(shown)
    assert "segment 1" in plain(shown)
    cut = settings.model_copy(update={"max_length": 2000, "train_on": "all"})
    assert len(preview(cut, tokenizer, 99)) == 3


def test_cuts_and_splits_are_noted(tokenizer):
    rounds = [turn for _ in range(9) for turn in (Message("user", "again?"), Message("assistant", "yes"))]
    chat = Conversation(tuple(rounds), "f", 1)
    cut = preview_entry(chat, tokenizer, DataConfig(max_length=60, overlong="cut_turns"))
    assert "older turns were cut" in plain(cut)
    split = preview_entry(chat, tokenizer, DataConfig(max_length=60, overlong="split"))
    assert len(split) > 1
    assert f"example 2 of {len(split)}" in plain(split)


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def test_html_stands_alone_and_escapes_texts(tokenizer):
    text = to_html(preview_entry(CHAT, tokenizer, DataConfig()), title="<b>data</b>")
    page = Page()
    page.feed(text)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert page.addresses == []
    assert not re.search(r"https?:|@import|url\(", text)
    assert "<script>alert(1)</script> & <|im_end|> 😀 漢␛[31m" in "".join(page.text)
    assert "⟦×0.5 one 😀⟨<|im_end|>⟩⟧" in "".join(page.text)
    assert 'title="id 2, weight 0.5"' in text
    assert text.count("<mark>") == text.count("</mark>") == 2


ASKED = (Message("user", "Where?"),)
PAIR = Pair(
    ASKED, (Message("assistant", "It is in Paris."),), (Message("assistant", "It is in <Lyon>."),), "a.jsonl", 2,
    margin=1.5,
)  # fmt: skip


def test_a_pair_shows_its_prompt_once_and_answers_from_where_they_differ(tokenizer):
    shown = preview_entry(PAIR, tokenizer, DataConfig(), Task("pair"))
    (example,) = shown
    assert [answer.name for answer in example.answers] == ["chosen (margin 1.5)", "rejected"]
    text = plain(shown)
    assert text.count("Where?") == 1
    assert "tokens, computed once" in text
    same = "".join(piece.text for piece in example.answers[0].same)
    assert same.startswith("It is in")
    assert f"⟪{same}⟫⟦" in text
    assert text.count("⟪") == 3  # the legend, and each answer
    for answer, turns in zip(example.answers, (PAIR.chosen, PAIR.rejected), strict=True):
        joined = "".join(piece.text for piece in (*answer.same, *answer.pieces))
        assert joined == turns[0].content + "<|im_end|>\n"
        assert answer.tokens == sum(len(piece.ids) for piece in (*answer.same, *answer.pieces))
    assert answer.same != answer.pieces[: len(answer.same)]


def test_answers_on_the_page_are_escaped(tokenizer):
    text = to_html(preview_entry(PAIR, tokenizer, DataConfig(), Task("pair")))
    page = Page()
    page.feed(text)
    assert "lyon" not in page.tags
    assert "Lyon" in "".join(page.text)
    assert '<span class="masked same">⟪' in text
    assert text.count("<pre>") == text.count("</pre>") == 3


def test_rankings_steps_and_labels_have_names(tokenizer):
    answers = tuple((Message("assistant", text),) for text in ("a", "b", "c"))
    (ranking,) = preview_entry(
        Ranking(ASKED, answers, "f", 1, scores=(3.0, 2.0, 0.5)), tokenizer, DataConfig(), Task("ranking")
    )
    assert [answer.name for answer in ranking.answers][2] == "answer 3 (score 0.5)"
    process = Process("x", ("one", "two"), (1.0, 0.0), "f", 1)
    (steps,) = preview_entry(process, tokenizer, DataConfig(), Task("process", "values"))
    assert [answer.name for answer in steps.answers] == ["step 1 (label 1)", "step 2 (label 0)"]
    assert not any(answer.same for answer in steps.answers)
    (labelled,) = preview_entry(
        Labelled("x", "b", "f", 1), tokenizer, DataConfig(), Task("label", "values", ("a", "b"))
    )
    assert labelled.title.endswith("label b")
    assert "label b" in plain([labelled])


def test_preview_reads_records_of_the_task(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    (shown,) = preview(DataConfig(train=(SourceConfig(path=str(path)),)), tokenizer, 3, Task("pair"))
    assert len(shown.answers) == 2
