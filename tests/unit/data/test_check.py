import json

import pytest
from tests.tiny import CHATML, tiny_tokenizer, with_template

from tunesmith.config import Config
from tunesmith.data.check import check_data
from tunesmith.data.config import DataConfig, SourceConfig
from tunesmith.data.probes import check_stop_token, check_template
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.types import Task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


def chat(question="hi", answer="hello"):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def written(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return (SourceConfig(path=str(path)),)


def codes(report):
    return [finding.code for finding in report.findings]


def found(report, code):
    return next(finding for finding in report.findings if finding.code == code)


def test_clean_data_has_no_findings(tmp_path, tokenizer):
    records = [chat(f"question {index}", "answer") for index in range(20)]
    report = check_data(DataConfig(train=written(tmp_path / "a.jsonl", records)), tokenizer)
    assert report.findings == ()
    assert not report.failed
    (train,) = report.sets
    assert (train.records, train.examples, train.bad, train.duplicates) == (20, 20, 0, 0)
    assert 0 < train.trained_tokens < train.tokens
    assert report.rows()[1] == ("records", "20")
    assert json.loads(json.dumps(report.to_json()))["sets"][0]["records"] == 20


def test_d26_zero_trained_records_are_e031_with_their_lines(tmp_path, tokenizer):
    records = [chat(str(index)) for index in range(5)]
    for line in (2, 4):
        records[line]["messages"][1]["weight"] = 0
    report = check_data(DataConfig(train=written(tmp_path / "a.jsonl", records)), tokenizer)
    finding = found(report, "E031")
    assert report.failed
    assert "2 of 5 records" in finding.message
    assert "lines 3, 5" in finding.evidence[0]
    skipping = check_data(DataConfig(train=written(tmp_path / "a.jsonl", records), on_bad="skip"), tokenizer)
    assert found(skipping, "E031").level == "warning"
    assert skipping.sets[0].dropped == {"no trained token": 2}


def test_d28_duplicates_and_overlap_with_the_evaluation_set(tmp_path, tokenizer):
    train = written(tmp_path / "train.jsonl", [chat("a"), chat("b"), chat("a"), chat("a")])
    held_out = written(tmp_path / "eval.jsonl", [chat("c"), chat("b")])
    report = check_data(DataConfig(train=train, eval=held_out), tokenizer)
    assert report.sets[0].duplicates == 2
    assert "2 of 4 train records" in found(report, "W063").message
    assert report.overlap == 1
    assert "1 of 2 evaluation records" in found(report, "W064").message
    assert "eval.jsonl:2 = " in found(report, "W064").evidence[0]
    assert not report.failed


def test_d25_overlong_records_are_counted_and_the_fix_works(tmp_path, tokenizer):
    records = [chat("short", str(index)) for index in range(8)] + [chat("word " * 60), chat("word " * 80)]
    settings = DataConfig(train=written(tmp_path / "a.jsonl", records), max_length=48)
    report = check_data(settings, tokenizer)
    finding = found(report, "W062")
    assert "2 of 10 records are longer than 48 tokens and are dropped" in finding.message
    for fix in finding.fixes:
        mended = check_data(_with(settings, fix.set), tokenizer)
        assert mended.sets[0].examples >= report.sets[0].examples
    longer = _with(settings, finding.fixes[0].set)
    assert "100.0%" in finding.fixes[0].effect
    assert codes(check_data(longer, tokenizer)) == []
    all_lost = check_data(DataConfig(train=written(tmp_path / "b.jsonl", records[8:]), max_length=48), tokenizer)
    assert all_lost.failed
    assert codes(all_lost)[0] == "E078"
    stopping = check_data(settings.model_copy(update={"overlong": "error"}), tokenizer)
    assert found(stopping, "E070").level == "error"


def _with(settings: Config, keys):
    return settings.model_copy(update={key.removeprefix("data."): value for key, value in keys.items()})


def test_bad_records_are_findings_with_lines_and_the_rest_is_still_checked(tmp_path, tokenizer):
    records = [chat("a"), {"messages": [{"role": "asistant", "content": "x"}]}, chat("b"), {"messages": 3}]
    path = tmp_path / "a.jsonl"
    settings = DataConfig(train=written(path, records))
    with path.open("a") as file:
        file.write('{"messages": [\n')
    report = check_data(settings, tokenizer)
    assert report.failed
    assert report.sets[0].records == 2
    assert report.sets[0].bad == 3
    assert sorted(finding.where.line for finding in report.findings) == [2, 4, 5]
    assert not check_data(settings.model_copy(update={"on_bad": "skip"}), tokenizer).failed


def test_a_missing_file_is_a_finding(tmp_path, tokenizer):
    report = check_data(DataConfig(train=(SourceConfig(path=str(tmp_path / "no.jsonl")),)), tokenizer)
    assert report.failed
    assert codes(report) == ["E041"]


def test_f10_unknown_tokens_and_lost_text_of_a_foreign_tokenizer(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<unk>": 0, "</s>": 1, "a": 2, "b": 3}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens(["<unk>", "</s>"])
    core.save(str(tmp_path / "tokenizer.json"))
    names = {"eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    source = written(tmp_path / "a.jsonl", [{"text": "a b c d"}] * 1 + [{"text": "b c d e"}])
    report = check_data(DataConfig(train=source), load_tokenizer(tmp_path))
    assert "50.0%" in found(report, "W065").message
    assert "2 of 2" in found(report, "W074").message


def test_control_text_is_a_warning(tmp_path, tokenizer):
    report = check_data(DataConfig(train=written(tmp_path / "a.jsonl", [chat("x<|im_end|>y")])), tokenizer)
    assert "1 records hold control tokens" in found(report, "W068").message


def test_f11_a_model_without_template_is_an_error_for_chats_only(tmp_path):
    tokenizer = load_tokenizer(tiny_tokenizer(tmp_path / "m", None))
    assert codes(check_data(DataConfig(train=written(tmp_path / "a.jsonl", [chat()])), tokenizer)) == ["E065"]
    text = written(tmp_path / "b.jsonl", [{"text": "some text"}])
    assert codes(check_data(DataConfig(train=text), tokenizer)) == []


def test_f14_the_stop_token_must_end_a_generation(tmp_path, folder, tokenizer):
    assert check_stop_token(tokenizer) is None
    other = tiny_tokenizer(tmp_path / "other")
    (other / "generation_config.json").write_text('{"eos_token_id": 0}')
    finding = check_stop_token(load_tokenizer(other))
    assert finding.code == "W060"
    assert "'<|im_end|>' (2)" in finding.message
    assert "put 2 into" in finding.fixes[0].label
    endless = with_template(tokenizer, CHATML.replace("<|im_end|>", ""))
    assert check_stop_token(endless).code == "W061"


def test_f11_probes_name_what_a_template_cannot_do(tokenizer):
    assert check_template(tokenizer) == []
    picky = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    (finding,) = check_template(with_template(tokenizer, picky))
    assert finding.code == "W072"
    assert "a system message" in finding.message
    assert "no system" in finding.message
    (finding,) = check_template(with_template(tokenizer, "{{ raise_exception('never') }}"))
    assert finding.code == "E064"


PAIRS, FEEDBACK = Task("pair"), Task("feedback")


def pair(index, chosen="Paris", rejected="Lyon", **more):
    return {"prompt": f"question {index}", "chosen": chosen, "rejected": rejected, **more}


def checked(tmp_path, tokenizer, task, train, held_out=(), **settings):
    sources = {"train": written(tmp_path / "a.jsonl", train)}
    if held_out:
        sources["eval"] = written(tmp_path / "b.jsonl", held_out)
    return check_data(DataConfig(**sources, **settings), tokenizer, None, task)


def test_clean_pairs_have_no_findings_and_figures(tmp_path, tokenizer):
    rows = [pair(index, *(("long " * 3, "x"), ("x", "long " * 3))[index % 2]) for index in range(30)]
    report = checked(tmp_path, tokenizer, PAIRS, rows)
    assert report.findings == ()
    (train,) = report.sets
    assert train.answers["answers"] == 60
    assert train.answers["chosen longer"] == 0.5
    assert train.answers["mean chosen tokens"] == train.answers["mean rejected tokens"]
    assert 0 < train.answers["saved by shared prompts"] < 0.5
    table = {row[0]: row[1] for row in report.rows()}
    assert table["chosen longer"] == "50.0%"
    assert table["answers alike"] == "0"
    assert json.loads(json.dumps(report.to_json()))["sets"][0]["answers"]["answers"] == 60


def test_what_records_begin_with_is_told_as_an_estimate(tmp_path, tokenizer):
    rows = [pair(f"{'You are a helpful assistant. ' * 4}{index}") for index in range(30)]
    name = "saved by shared beginnings, 16 a step"
    report = checked(tmp_path, tokenizer, PAIRS, rows)
    assert 0.3 < report.sets[0].answers[name] < 0.9
    assert dict(row[:2] for row in report.rows())[name].endswith("%")
    assert name not in checked(tmp_path, tokenizer, PAIRS, rows, share_prefixes=False).sets[0].answers


def test_d12_identical_answers_in_a_check(tmp_path, tokenizer):
    rows = [pair(index, "Paris", "Paris" if index < 3 else "x y z") for index in range(30)]
    report = checked(tmp_path, tokenizer, PAIRS, rows)
    assert report.failed
    assert "3 of 30 records have two equal answers" in found(report, "E215").message
    assert not checked(tmp_path, tokenizer, PAIRS, rows, on_bad="skip").failed
    assert report.sets[0].answers["answers alike"] == 3


@pytest.mark.parametrize(("better", "worse", "word"), [("long " * 9, "x", "long"), ("x", "long " * 9, "short")])
def test_length_bias_is_told_with_mean_lengths(tmp_path, tokenizer, better, worse, word):
    finding = found(checked(tmp_path, tokenizer, PAIRS, [pair(index, better, worse) for index in range(30)]), "W212")
    assert f"to be {word} may be what is learned" in finding.message
    assert "mean tokens: chosen" in finding.evidence[0]
    assert finding.fixes[0].set == {"objective": "simpo"}
    rows = [{"prompt": str(i), "completion": better if i % 2 else worse, "label": i % 2} for i in range(60)]
    finding = found(checked(tmp_path, tokenizer, FEEDBACK, rows), "W212")
    assert "the good answer is the longer one" in finding.message
    ranks = [{"prompt": str(i), "answers": [better, "some words", worse]} for i in range(30)]
    assert "the best answer" in found(checked(tmp_path, tokenizer, Task("ranking"), ranks), "W212").message
    few = checked(tmp_path, tokenizer, PAIRS, [pair(index, better, worse) for index in range(5)])
    assert few.findings == ()


def test_feedback_lengths_are_compared_pair_by_pair(tmp_path, tokenizer):
    words = ["a"] * 3 + ["a b"] * 4 + ["a b c"] * 3
    rows = [{"prompt": f"{i}", "completion": text, "label": i % 3 == 0} for i, text in enumerate(words * 3)]
    report = checked(tmp_path, tokenizer, FEEDBACK, rows)
    lengths = [len(tokenizer.encode(row["completion"], specials=False)) for row in rows]
    good = [length for length, row in zip(lengths, rows, strict=True) if row["label"]]
    bad = [length for length, row in zip(lengths, rows, strict=True) if not row["label"]]
    longer = sum(one > other for one in good for other in bad)
    shorter = sum(one < other for one in good for other in bad)
    assert report.sets[0].answers["good longer"] == longer / (longer + shorter)


def test_one_sided_and_one_class_labels(tmp_path, tokenizer):
    rows = [{"prompt": str(i), "completion": "yes", "label": i < 38} for i in range(40)]
    finding = found(checked(tmp_path, tokenizer, FEEDBACK, rows), "W213")
    assert "only 2 of 40 train records are 'bad'" in finding.message
    assert finding.evidence == ("good: 38, bad: 2",)
    report = checked(tmp_path, tokenizer, FEEDBACK, [{**row, "label": True} for row in rows])
    assert report.failed
    assert "E216" in codes(report)
    classes = Task("label", "values", ("a", "b", "c"))
    rows = [{"text": f"text {i}", "label": "abc"[(i > 28) + (i > 29)]} for i in range(31)]
    report = checked(tmp_path, tokenizer, classes, rows)
    assert "are 'b'" in found(report, "W213").message
    assert report.sets[0].labels == {"a": 29, "b": 1, "c": 1}
    assert ("label a", "29") in report.rows()


def test_d28_leaks_by_record_and_by_prompt(tmp_path, tokenizer):
    train = [pair(index, f"yes {index}", "no") for index in range(6)]
    held_out = [train[2], pair(3, "another", "answer"), pair(77, "a", "b c")]
    report = checked(tmp_path, tokenizer, PAIRS, train, held_out)
    assert (report.overlap, report.prompt_overlap) == (1, 2)
    finding = found(report, "W214")
    assert "2 of 3 evaluation prompts are also trained" in finding.message
    assert "b.jsonl:2 = " in finding.evidence[0]
    assert report.to_json()["prompt_overlap"] == 2


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        (PAIRS, [pair(1, "a", "b c"), pair(1, "b c", "a"), pair(2, "b c", "a"), pair(1, "a", "b c", margin=2)]),
        (FEEDBACK, [{"prompt": "q", "completion": "a", "label": label} for label in (1, 0)]),
        (Task("ranking"), [{"prompt": "q", "answers": ["a", "b", "c"]}, {"prompt": "q", "answers": ["a", "c", "b"]}]),
        (Task("label", "values", ("a", "b")), [{"text": "x", "label": "a"}, {"text": "x", "label": "b"}]),
    ],
)
def test_contradictions_name_both_records(tmp_path, tokenizer, task, rows):
    finding = found(checked(tmp_path, tokenizer, task, rows), "W215")
    assert "1 train records say the opposite of an earlier one" in finding.message
    assert "a.jsonl:2 against " in finding.evidence[0]
    assert "a.jsonl:1" in finding.evidence[0]


def test_ties_in_rankings_contradict_nothing(tmp_path, tokenizer):
    rows = [{"prompt": "q", "answers": ["a", "b", "c"], "scores": scores} for scores in ([2, 2, 1], [3, 4, 1])]
    assert "W215" not in codes(checked(tmp_path, tokenizer, Task("ranking"), rows))


def test_records_of_another_kind_are_a_finding(tmp_path, tokenizer):
    assert codes(checked(tmp_path, tokenizer, PAIRS, [chat()])) == ["E210", "E078"]
