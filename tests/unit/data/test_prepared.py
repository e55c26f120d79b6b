"""What is kept on disk of answers: cuts, labels, prompts, and what the report says of them."""

import json

import numpy as np
import pytest
from tests.tiny import tiny_tokenizer, with_template

from tunesmith.data.chat import encode
from tunesmith.data.check import check_data
from tunesmith.data.config import DataConfig, SourceConfig
from tunesmith.data.entries import read_entries
from tunesmith.data.prepared import Prepared, is_whole, prepare, prepare_key
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import DataError
from tunesmith.types import Task


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer(tmp_path_factory.mktemp("model")))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (SourceConfig(path=str(path)),)


def pairs(count, identical=0):
    return [
        {"prompt": f"Question {index}", "chosen": "Paris.", "rejected": "Paris." if index < identical else "No.",
         "margin": index / 8}
        for index in range(count)
    ]  # fmt: skip


ROWS = {
    "pair": pairs(5),
    "feedback": [{"prompt": f"Q {i % 3}", "completion": "Yes " * i + "!", "label": i % 2 == 0} for i in range(6)],
    "ranking": [{"prompt": "Q", "answers": ["a", "b", f"c {i}"], "scores": [0.1, 7, i]} for i in range(4)],
    "label": [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(4)],
    "process": [{"prompt": "Q", "steps": ["one", f"two {i}"], "labels": [1, 0.5]} for i in range(3)],
}


def task_for(kind):
    return Task(kind, "values" if kind in ("label", "process") else "logprobs", ("a", "b") if kind == "label" else ())


@pytest.mark.parametrize("kind", ROWS)
def test_examples_come_back_as_they_were_encoded(kind, tmp_path, tokenizer):
    sources, task, settings = written(tmp_path / "a.jsonl", ROWS[kind]), task_for(kind), DataConfig()
    made = [
        example for entry in read_entries(sources[0], kind=kind) for example in encode(entry, tokenizer, settings, task)
    ]
    stored = prepare(sources, settings, tokenizer, None, task)
    assert len(stored) == len(made) == len(ROWS[kind])
    for index, example in enumerate(made):
        found = stored[index]
        assert found.tokens.tolist() == example.tokens.tolist()
        assert found.weights.tolist() == example.weights.tolist()
        assert (found.cuts, found.labels, found.chained) == (example.cuts, example.labels, example.chained)
        assert (found.file, found.line) == (example.file, example.line)
    assert stored.first_labels.tolist() == [example.labels[0] for example in made]
    again = prepare(sources, settings, tokenizer, None, task)
    assert again.key == stored.key
    assert isinstance(again.tokens, np.memmap)


def test_plain_sequences_keep_no_judgements(tmp_path, tokenizer):
    stored = prepare(written(tmp_path / "a.jsonl", [{"text": "a b"}]), DataConfig(), tokenizer)
    assert (stored.judgements, stored[0].cuts, stored[0].labels) == (None, (), ())
    assert not (stored.folder / "cuts.npy").exists()


def test_prompt_hashes_tell_prompts_apart(tmp_path, tokenizer):
    stored = prepare(written(tmp_path / "a.jsonl", ROWS["feedback"]), DataConfig(), tokenizer, None, Task("feedback"))
    hashes = stored.prompt_hashes
    assert hashes.dtype == np.uint64
    assert [int(np.flatnonzero(hashes == value)[0]) for value in hashes] == [0, 1, 2, 0, 1, 2]


def test_the_task_is_part_of_the_key(tmp_path, tokenizer):
    sources = written(tmp_path / "a.jsonl", ROWS["label"])
    tasks = [Task("label", "values"), Task("label", "values", ("a", "b")), Task("label", "values", ("b", "a")), Task()]
    assert len({prepare_key(sources, DataConfig(), tokenizer, task) for task in tasks}) == 4


def test_the_same_bytes_have_one_key_wherever_they_lie_and_name_the_file_that_was_read(
    tmp_path, tokenizer, monkeypatch
):
    (tmp_path / "other").mkdir()
    absolute, copied = (written(folder / "a.jsonl", ROWS["pair"]) for folder in (tmp_path, tmp_path / "other"))
    monkeypatch.chdir(tmp_path)
    relative = (SourceConfig(path="a.jsonl"),)
    stored = [prepare(sources, DataConfig(), tokenizer, None, Task("pair")) for sources in (relative, absolute, copied)]
    assert len({each.key for each in stored}) == 1
    assert stored[0].folder == stored[1].folder
    assert stored[2][0].file == copied[0].path


def test_the_report_counts_what_is_shared_and_saved(tmp_path, tokenizer):
    stored = prepare(written(tmp_path / "a.jsonl", ROWS["ranking"]), DataConfig(), tokenizer, None, Task("ranking"))
    prompts = [example.cuts[0] for example in map(stored.__getitem__, range(len(stored)))]
    report = Prepared(stored.folder).report
    assert (report.answers, report.prompt_tokens, report.saved_tokens) == (12, sum(prompts), 2 * sum(prompts))
    assert report.tokens == int(stored.lengths.sum())
    feedback = prepare(written(tmp_path / "b.jsonl", ROWS["feedback"]), DataConfig(), tokenizer, None, Task("feedback"))
    assert (feedback.report.labels, feedback.report.saved_tokens) == ({"good": 3, "bad": 3}, 0)
    assert feedback.report.warnings == [f"good 3, bad 3 in {tmp_path / 'b.jsonl'}"]
    classes = prepare(written(tmp_path / "c.jsonl", ROWS["label"]), DataConfig(), tokenizer, None, task_for("label"))
    assert classes.report.labels == {"a": 2, "b": 2}


def test_d12_few_identical_answers_are_a_warning_and_more_an_error_with_lines(tmp_path, tokenizer):
    few = prepare(written(tmp_path / "a.jsonl", pairs(40, 2)), DataConfig(), tokenizer, None, Task("pair"))
    assert (len(few), few.report.identical) == (40, 2)
    (warning,) = few.report.warnings
    assert "W211" in warning
    assert "2 of 40 records have two equal answers" in warning
    assert "lines 1, 2" in warning
    many = written(tmp_path / "b.jsonl", pairs(40, 3))
    with pytest.raises(DataError, match="E215") as caught:
        prepare(many, DataConfig(), tokenizer, None, Task("pair"))
    found = caught.value.diagnostic
    assert (found.where.file, found.where.line) == (many[0].path, 1)
    assert found.fixes[0].set == {"data.on_bad": "skip"}
    assert "--drop-identical" in found.fixes[1].command
    left_out = prepare(many, DataConfig(on_bad="skip"), tokenizer, None, Task("pair"))
    assert (len(left_out), left_out.report.dropped) == (37, {"answers that do not differ": 3})
    assert left_out.report.identical == 3


@pytest.mark.parametrize("label", [True, False])
def test_feedback_of_one_class_is_an_error(tmp_path, tokenizer, label):
    rows = [{"prompt": "a", "completion": "b", "label": label}] * 3
    with pytest.raises(DataError, match=f"E216.*all 3 answers are {'good' if label else 'bad'}") as caught:
        prepare(written(tmp_path / "a.jsonl", rows), DataConfig(), tokenizer, None, Task("feedback"))
    assert caught.value.diagnostic.where.line == 1


def test_feedback_on_one_prompt_is_an_error_where_prompts_are_mismatched(tmp_path, tokenizer):
    rows = [{"prompt": "a", "completion": f"b{index}", "label": index % 2 == 0} for index in range(4)]
    sources = written(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"E280.*all 4 answers are to one prompt") as caught:
        prepare(sources, DataConfig(), tokenizer, None, Task("feedback", mismatches=True))
    found = caught.value.diagnostic
    assert (found.where.file, found.where.line) == (sources[0].path, 1)
    assert found.fixes[0].command == f"tunesmith data convert {sources[0].path} --to pairs"
    checked = check_data(DataConfig(train=sources), tokenizer, None, Task("feedback", mismatches=True))
    (finding,) = [one for one in checked.findings if one.code == "E280"]
    assert (finding.level, finding.where.line) == ("error", 1)
    assert len(prepare(sources, DataConfig(), tokenizer, None, Task("feedback"))) == 4


@pytest.mark.parametrize("rated", [0, 2, 4])
def test_rated_pairs_are_counted(tmp_path, tokenizer, rated):
    rows = [{**pair, "margin": 0 if index < rated else None} for index, pair in enumerate(pairs(4))]
    stored = prepare(written(tmp_path / "a.jsonl", rows), DataConfig(), tokenizer, None, Task("pair"))
    assert stored.report.rated == rated


def test_answers_without_a_trained_token_are_an_error_or_counted(tmp_path, tokenizer):
    ask = {"role": "user", "content": "a"}
    mute = {"role": "assistant", "content": "b", "train": False}
    rows = [
        {"prompt": [ask], "chosen": [mute], "rejected": "c"},
        *({"prompt": [ask], "chosen": f"{index}", "rejected": "c"} for index in range(3)),
    ]
    sources = written(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match="E031"):
        prepare(sources, DataConfig(), tokenizer, None, Task("pair"))
    kept = prepare(sources, DataConfig(on_bad="skip"), tokenizer, None, Task("pair"))
    assert (len(kept), kept.report.dropped) == (3, {"no trained token": 1})


def test_damaged_judgements_are_made_again(tmp_path, tokenizer):
    sources = written(tmp_path / "a.jsonl", ROWS["pair"])
    stored = prepare(sources, DataConfig(), tokenizer, None, Task("pair"))
    assert is_whole(stored.folder)
    np.save(stored.folder / "labels.npy", np.zeros(3))
    assert not is_whole(stored.folder)
    assert prepare(sources, DataConfig(), tokenizer, None, Task("pair"))[1].labels == (0.125, 0.0)


def test_an_unknown_class_of_the_evaluation_set_is_named(tmp_path, tokenizer):
    sources = written(tmp_path / "a.jsonl", [{"text": "x", "label": "a"}, {"text": "x", "label": "c"}])
    with pytest.raises(DataError, match="the class 'c' is not among"):
        prepare(sources, DataConfig(), tokenizer, None, task_for("label"))


def test_the_key_covers_bytes_template_tokenizer_mask_and_length(tmp_path, tokenizer):
    """And leaves out what changes no example: a run goes on from the same prepared data."""
    sources = written(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}])
    settings = DataConfig()
    plain = prepare_key(sources, settings, tokenizer)
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    smaller = load_tokenizer(tiny_tokenizer(tmp_path / "smaller", vocabulary=380))
    keys = {
        "mask": prepare_key(sources, DataConfig(train_on="all"), tokenizer),
        "length": prepare_key(sources, DataConfig(max_length=64), tokenizer),
        "policy": prepare_key(sources, DataConfig(overlong="cut_turns"), tokenizer),
        "limit": prepare_key(sources, DataConfig(limit=1), tokenizer),
        "control tokens": prepare_key(sources, DataConfig(special_tokens_in_text="error"), tokenizer),
        "columns": prepare_key((sources[0].model_copy(update={"columns": {"text": "t"}}),), settings, tokenizer),
        "shape": prepare_key((sources[0].model_copy(update={"shape": "text"}),), settings, tokenizer),
        "template": prepare_key(sources, settings, with_template(tokenizer, template)),
        "tokenizer": prepare_key(sources, settings, smaller),
        "order of files": prepare_key((*written(tmp_path / "b.jsonl", [{"text": "b"}]), *sources), settings, tokenizer),
    }
    written(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "too"}])
    keys["bytes"] = prepare_key(sources, settings, tokenizer)
    assert len({plain, *keys.values()}) == len(keys) + 1
    written(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}])
    assert prepare_key(sources, settings, tokenizer) == plain
    same = (DataConfig(shuffle=False), DataConfig(share_prefixes=False), DataConfig(eval=sources))
    assert {prepare_key(sources, one, tokenizer) for one in same} == {plain}
