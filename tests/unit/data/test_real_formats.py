"""The real data sets convert completely."""

from pathlib import Path

import pytest

from tunesmith.data.config import SourceConfig
from tunesmith.data.entries import read_entries
from tunesmith.data.tally import Tally
from tunesmith.errors import DataError
from tunesmith.types import Completion, Conversation, Document, Feedback, Pair

REAL = Path(__file__).parents[3].parent / "shared" / "data"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real data sets (../shared/data) are not here")


@needs_real
@pytest.mark.parametrize(
    ("path", "columns", "kind", "count"),
    [
        ("sft_lf_demos/alpaca_en_demo.jsonl", {}, Conversation, 999),
        ("sft_lf_demos/alpaca_zh_demo.jsonl", {}, Conversation, 1000),
        ("sft_lf_demos/v1_sft_demo.jsonl", {}, Conversation, 500),
        ("tools_glaive/glaive_toolcall_*_demo.jsonl", {}, Conversation, 600),
        ("chat_fastchat_dummy", {}, Conversation, 500),
        ("sft_gpteacher_roleplay", {"output": "response"}, Conversation, 1923),
        ("sft_dolly_hh_small", {"completion": "response"}, Completion, 1000),
        ("sft_rasbt_1100", {}, Conversation, 1100),
        ("pt_lf_demos/c4_demo.jsonl", {}, Document, 300),
        ("pt_lf_demos/wiki_demo.txt", {"text": "line"}, Document, 30),
        ("pt_moby_dick", {}, Document, 1),
    ],
)
def test_real_sets_convert_completely(path, columns, kind, count):
    source = SourceConfig(path=str(REAL / path), columns=columns)
    tally = Tally("error")
    entries = list(read_entries(source, tally))
    assert len(entries) == tally.records == count
    assert all(type(entry) is kind for entry in entries)
    assert not tally.warnings


@needs_real
def test_real_tool_calls_are_objects():
    entries = list(read_entries(SourceConfig(path=str(REAL / "tools_glaive" / "glaive_toolcall_en_demo.jsonl"))))
    calls = [call for entry in entries for message in entry.messages for call in message.tool_calls]
    assert len(calls) == 211
    assert all(isinstance(call["function"]["arguments"], dict) for call in calls)
    assert all(tool["function"]["name"] for entry in entries for tool in entry.tools)


@needs_real
def test_real_weights_are_kept():
    for entry in read_entries(SourceConfig(path=str(REAL / "sft_lf_demos" / "v1_sft_demo.jsonl"))):
        assert {message.role: message.weight for message in entry.messages} == {"user": 0.0, "assistant": 1.0}


@needs_real
def test_real_reasoning_parts_are_refused_by_name():
    source = SourceConfig(path=str(REAL / "tools_glaive" / "reason_tool_use_demo_50.jsonl"))
    with pytest.raises(DataError, match="part of type 'reasoning'"):
        list(read_entries(source))


@needs_real
@pytest.mark.parametrize(
    ("path", "kind", "count", "skipped"),
    [
        ("pref_lf_demos/dpo_en_demo.jsonl", "pair", 300, 0),
        ("pref_lf_demos/dpo_zh_demo.jsonl", "pair", 300, 0),
        ("pref_lf_demos/v1_dpo_demo.jsonl", "pair", 10, 0),
        ("pref_lf_demos/kto_en_demo.jsonl", "feedback", 300, 0),
        ("pref_rasbt_1100", "pair", 1100, 0),
        ("pref_hh_harmless/hh_harmless_a.jsonl", "pair", 1196, 4),
    ],
)
def test_real_preferences_convert_completely(path, kind, count, skipped):
    tally = Tally("skip")
    entries = list(read_entries(SourceConfig(path=str(REAL / path)), tally, kind=kind))
    assert (len(entries), tally.skipped.total()) == (count, skipped)
    assert all(type(entry) is (Pair if kind == "pair" else Feedback) for entry in entries)
    assert all(entry.prompt[-1].role == "user" for entry in entries)


@needs_real
def test_real_faults_of_transcripts_are_told_with_their_lines():
    with pytest.raises(DataError) as caught:
        list(read_entries(SourceConfig(path=str(REAL / "pref_hh_harmless" / "hh_harmless_a.jsonl")), kind="pair"))
    assert {found.code for found in caught.value.diagnostics} == {"E050"}
    assert all("assistant turn is empty" in found.message for found in caught.value.diagnostics)
