import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.config import SourceConfig
from tunesmith.data.tally import Tally
from tunesmith.errors import DataError
from tunesmith.rollout.prompts import Prompt, read_prompts
from tunesmith.types import Message

ASK, SAY = Message("user", "2 + 2?"), {"role": "assistant", "content": "4"}
TURN = {"role": "user", "content": "2 + 2?"}


def prompts(folder: Path, *records: dict[str, Any], **settings: Any) -> list[Prompt]:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return list(read_prompts(SourceConfig(path=str(path)), **settings))


@pytest.mark.parametrize(
    ("record", "turns", "reference"),
    [
        ({"messages": [TURN, SAY]}, (ASK,), "4"),
        ({"messages": [TURN]}, (ASK,), None),
        ({"messages": [TURN, SAY, TURN]}, (ASK, Message("assistant", "4"), ASK), None),
        ({"conversations": [{"from": "human", "value": "2 + 2?"}]}, (ASK,), None),
        ({"instruction": "2 + 2?", "output": "4"}, (ASK,), "4"),
        ({"instruction": "2 + 2?"}, (ASK,), None),
        ({"prompt": "2 + 2 ="}, "2 + 2 =", None),
        ({"prompt": "2 + 2 =", "reference": " 4"}, "2 + 2 =", " 4"),
        ({"prompt": "2 + 2 =", "completion": " 4"}, "2 + 2 =", " 4"),
        ({"prompt": [TURN]}, (ASK,), None),
        ({"prompt": [TURN], "completion": [SAY]}, (ASK,), "4"),
        ({"prompt": [TURN], "chosen": [SAY], "rejected": [{**SAY, "content": "5"}]}, (ASK,), "4"),
        ({"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}, "2 + 2 =", " 4"),
        ({"chosen": [TURN, SAY], "rejected": [TURN, {**SAY, "content": "5"}]}, (ASK,), "4"),
        ({"prompt": [TURN], "answers": ["4", "5"], "finished": [True, True]}, (ASK,), None),
        ({"messages": [TURN, SAY], "label": False}, (ASK,), None),
        ({"text": "Once upon"}, "Once upon", None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_every_shape_gives_its_prompt(tmp_path: Path, record: dict, turns: Any, reference: str | None) -> None:
    (found,) = prompts(tmp_path, record)
    assert found.turns == turns
    assert found.reference == reference
    assert found.line == 1


def test_a_prompt_written_and_read_again_is_the_same(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    system = {"role": "system", "content": "Be short."}
    (found,) = prompts(tmp_path, {"messages": [system, TURN, SAY], "tools": tools})
    (again,) = prompts(tmp_path, found.to_json())
    assert again == found


def test_lines_of_a_text_file_are_what_a_user_says_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("2 + 2?\n\nName a sea.\n", "utf-8")
    source = SourceConfig(path=str(path))
    assert [found.turns for found in read_prompts(source)] == [(ASK,), (Message("user", "Name a sea."),)]
    assert [found.turns for found in read_prompts(source, texts="plain")] == ["2 + 2?", "Name a sea."]
    assert [found.line for found in read_prompts(source, limit=1)] == [1]


def test_text_prompts_become_chats_when_asked(tmp_path: Path) -> None:
    (found,) = prompts(tmp_path, {"prompt": "2 + 2?"}, texts="chat")
    assert found.turns == (ASK,)


def test_bad_records_are_named_with_their_line_or_skipped_and_counted(tmp_path: Path) -> None:
    good, bad = {"messages": [TURN]}, {"messages": [{"role": "usr", "content": "2 + 2?"}]}
    with pytest.raises(DataError, match=r"prompts\.jsonl:2") as caught:
        prompts(tmp_path, good, bad)
    assert caught.value.diagnostic.code == "E049"
    tally = Tally("skip")
    assert len(prompts(tmp_path, good, bad, {"nothing": 1}, tally=tally)) == 1
    assert tally.skipped.total() == 2
    with pytest.raises(DataError, match="E051"):
        prompts(tmp_path, {"messages": [SAY]})
    with pytest.raises(DataError, match="E050"):
        prompts(tmp_path, {"prompt": "  "})
