import json
from pathlib import Path

import pytest
from tests.tiny import tiny_model_folder

from tunesmith.data.tokenizer import Tokenizer, load_tokenizer
from tunesmith.errors import Interrupted, UsageError
from tunesmith.models.config import ModelConfig
from tunesmith.models.load import load_base
from tunesmith.rollout.answers import AnswerFile, read_answers
from tunesmith.rollout.config import SamplingConfig
from tunesmith.rollout.journal import Journal
from tunesmith.rollout.prompts import Prompt
from tunesmith.rollout.sampling import Drawing, Sampled, draw_answers, drawing_identity
from tunesmith.types import Message

PROMPTS = [Prompt((Message("user", text),), "p.jsonl", at + 1) for at, text in enumerate(("Hello", "A sea?", "moon"))]
SETTINGS = SamplingConfig(answers=3, temperature=1.0, top_p=0.9, max_new_tokens=12, batch_size=4)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tiny_model_folder(tmp_path_factory.mktemp("m"), tie_word_embeddings=False, initializer_range=0.2)
    return load_base(folder, ModelConfig(path=str(folder))).eval(), load_tokenizer(folder)


def draw(loaded, path: Path, prompts=PROMPTS, settings=SETTINGS, seed: int = 0, check_stop=None) -> Sampled:
    with AnswerFile(path, drawing_identity(settings, seed, {"base": "x"})) as file:
        return draw_answers(lambda: loaded, prompts, file, Drawing(settings, seed, check_stop=check_stop))


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_answers_are_the_same_for_every_batch_size_and_differ_with_the_seed(loaded, tmp_path):
    first = draw(loaded, tmp_path / "a.jsonl")
    draw(loaded, tmp_path / "b.jsonl", settings=SETTINGS.model_copy(update={"batch_size": 1}))
    draw(loaded, tmp_path / "c.jsonl", seed=1)
    assert rows(tmp_path / "a.jsonl") == rows(tmp_path / "b.jsonl") != rows(tmp_path / "c.jsonl")
    assert (first.prompts, first.completions, first.new) == (3, 9, 9)
    assert first.tokens_per_second > 0
    lengths = [length for row in rows(tmp_path / "a.jsonl") for length in row["lengths"]]
    assert first.mean_length == sum(lengths) / 9


def test_a_row_holds_prompt_answers_ends_and_no_order(loaded, tmp_path):
    draw(loaded, tmp_path / "a.jsonl")
    row = rows(tmp_path / "a.jsonl")[1]
    assert row["prompt"] == [{"role": "user", "content": "A sea?"}]
    assert len(row["answers"]) == len(row["finished"]) == 3
    assert row["scores"] == [0.0, 0.0, 0.0]
    assert row["record"] == "p.jsonl:2"
    (_, answered, _) = read_answers(str(tmp_path / "a.jsonl"))
    assert answered.prompt.turns == PROMPTS[1].turns
    assert answered.answers == tuple(row["answers"])
    assert answered.finished == tuple(row["finished"])


def test_an_interrupted_file_is_absent_and_goes_on_with_the_same_answers(loaded, tmp_path):
    whole, path = tmp_path / "whole.jsonl", tmp_path / "a.jsonl"
    draw(loaded, whole)
    left = tmp_path / "a.jsonl.partial"

    def stop() -> None:
        if left.stat().st_size:
            raise Interrupted("E131", "stopped")

    with pytest.raises(Interrupted):
        draw(loaded, path, check_stop=stop)
    assert not path.exists()
    kept = len(rows(left))
    assert 0 < kept < 3
    left.write_text(left.read_text("utf-8") + '{"index": 2, "ans', "utf-8")  # torn by a kill
    result = draw(loaded, path)
    assert rows(path) == rows(whole)
    assert result.new == 9 - 3 * kept
    assert not left.exists()


def test_a_finished_file_loads_no_model_and_grows_with_its_prompts(loaded, tmp_path):
    path = tmp_path / "a.jsonl"
    draw(loaded, path, PROMPTS[:2])

    def never() -> tuple:
        raise AssertionError

    with AnswerFile(path, drawing_identity(SETTINGS, 0, {"base": "x"})) as file:
        assert draw_answers(never, PROMPTS[:2], file, Drawing(SETTINGS)).new == 0
    assert draw(loaded, path).new == 3
    draw(loaded, tmp_path / "b.jsonl")
    assert rows(path) == rows(tmp_path / "b.jsonl")


def test_other_settings_prompts_or_files_are_refused(loaded, tmp_path):
    path = tmp_path / "a.jsonl"
    draw(loaded, path)
    with pytest.raises(UsageError, match="temperature") as caught:
        draw(loaded, path, settings=SETTINGS.model_copy(update={"temperature": 0.5}))
    assert caught.value.diagnostic.code == "E260"
    with pytest.raises(UsageError, match="other prompts"):
        draw(loaded, path, [PROMPTS[1], PROMPTS[0]])
    strange = tmp_path / "notes.jsonl"
    strange.write_text('{"mine": 1}\n')
    with pytest.raises(UsageError, match="not written by sampling"):
        draw(loaded, strange)
    assert strange.read_text() == '{"mine": 1}\n'
    assert not (tmp_path / "notes.jsonl.partial").exists()


def test_prompts_that_fill_the_context_are_left_out_and_counted(loaded, tmp_path):
    long = Prompt((Message("user", "sea " * 600),), "p.jsonl", 4)
    result = draw(loaded, tmp_path / "a.jsonl", [PROMPTS[0], long, PROMPTS[2]])
    assert (result.prompts, result.left_out) == (2, 1)
    assert [row["index"] for row in rows(tmp_path / "a.jsonl")] == [0, 2]
    assert draw(loaded, tmp_path / "a.jsonl", [PROMPTS[0], long, PROMPTS[2]]).left_out == 1


def test_two_writers_of_one_file_are_refused(tmp_path):
    with Journal(tmp_path / "votes.jsonl") as journal:
        journal.write({"vote": 1}, sync=True)
        with pytest.raises(UsageError, match="E261"):
            Journal(tmp_path / "votes.jsonl")
    with Journal(tmp_path / "votes.jsonl") as journal:
        assert journal.rows == [{"vote": 1}]


def test_plain_prompts_are_continued_without_a_template(loaded, tmp_path):
    tokenizer: Tokenizer = loaded[1]
    assert Prompt("Hello", "p", 1).tokens(tokenizer) == tokenizer.encode("Hello", specials=False)
    draw(loaded, tmp_path / "a.jsonl", [Prompt("Hello", "p", 1)])
    assert rows(tmp_path / "a.jsonl")[0]["prompt"] == "Hello"
