import math
import sys

import pytest

from tunesmith.errors import MachineError
from tunesmith.evaluate.metrics import (
    ANSWER_METRICS,
    contains,
    corpus,
    exact_match,
    longest_common,
    loss,
    mean,
    perplexity,
    proportion,
    rouge_l,
    valid_json,
    words,
)


def test_exact_match_ignores_only_white_space_around() -> None:
    assert exact_match(" Paris\n", "Paris")
    assert not exact_match("paris", "Paris")
    assert not exact_match("Pa ris", "Paris")


def test_contains() -> None:
    assert contains("The answer is 42.", " 42 ")
    assert not contains("The answer is 4 2.", "42")
    assert contains(" ", "")
    assert not contains("anything", "")


@pytest.mark.parametrize("text", ['{"a": 1}', " [1, 2]\n", "[]", '{"a": {"b": null}}'])
def test_valid_json(text: str) -> None:
    assert valid_json(text)


@pytest.mark.parametrize(
    "text", ["", "42", '"a"', "null", '{"a": 1} and more', '```json\n{"a": 1}\n```', "{'a': 1}", "[NaN]", "[" * 100_000]
)
def test_not_valid_json(text: str) -> None:
    assert not valid_json(text)


def test_rouge_l_by_hand() -> None:
    # common subsequence "police kill the gunman" without "the": police, the, gunman
    assert rouge_l("Police kill the gunman", "police killed the gunman!") == pytest.approx(2 * 3 / (4 + 4))
    assert rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(2 * 2 / 8)
    assert rouge_l("the cat", "the cat sat on the mat") == pytest.approx(2 * 2 / (2 + 6))
    assert rouge_l("", "a") == rouge_l("a", "") == rouge_l("", "") == 0.0
    assert rouge_l("日本語", "日本人") == pytest.approx(2 * 2 / 6)
    assert words("Naïve_test, x2!") == ["naïve", "test", "x2"]


def test_longest_common_equals_the_table_method() -> None:
    def table(one: str, other: str) -> int:
        rows = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
        for i, a in enumerate(one):
            for j, b in enumerate(other):
                rows[i + 1][j + 1] = rows[i][j] + 1 if a == b else max(rows[i][j + 1], rows[i + 1][j])
        return rows[-1][-1]

    text = "abcabbacbdabcbadbcabdbabcbdbacbdabc"
    for cut in range(len(text)):
        assert longest_common(text[:cut], text[cut:]) == table(text[:cut], text[cut:])


def test_wilson_interval_by_hand() -> None:
    # 8 of 10: centre (0.8 + 3.8415/20) / 1.38415 = 0.71674, half 0.22659 (Newcombe 1998 method 3)
    score = proportion([True] * 8 + [False] * 2)
    assert (score.value, score.n) == (0.8, 10)
    assert score.low == pytest.approx(0.49016, abs=1e-5)
    assert score.high == pytest.approx(0.94331, abs=1e-5)
    none, every = proportion([False] * 10), proportion([True] * 10)
    assert (none.low, every.high) == (pytest.approx(0.0, abs=1e-12), pytest.approx(1.0))
    assert none.high == pytest.approx(0.27753, abs=1e-5)
    assert every.low == pytest.approx(1 - 0.27753, abs=1e-5)


def test_bootstrap_interval_is_near_the_normal_one_and_repeats() -> None:
    values = [index % 10 for index in range(400)]  # mean 4.5, standard deviation 2.8723
    score = mean(values)
    assert score.value == pytest.approx(4.5)
    half = 1.96 * 2.8723 / math.sqrt(400)
    assert score.low == pytest.approx(4.5 - half, abs=0.03)
    assert score.high == pytest.approx(4.5 + half, abs=0.03)
    assert score == mean(values)


def test_loss_is_a_ratio_of_sums_and_perplexity_its_exponent() -> None:
    nll, tokens = [2.0, 9.0], [1.0, 9.0]  # mean of the records' means would be 1.5
    assert loss(nll, tokens).value == pytest.approx(1.1)
    score = perplexity(nll, tokens)
    assert score.value == pytest.approx(math.exp(1.1))
    assert (score.low, score.high) == (pytest.approx(math.e), pytest.approx(math.e**2))
    assert score.n == 2
    assert math.isfinite(perplexity([1e9], [1.0]).value)


def test_bleu_and_chrf_are_those_of_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    answers = ["the cat sat on the mat today", "a dog barked at the moon", "it rains"] * 5
    references = ["the cat sat on a mat today", "a dog barked at the moon", "it snows a lot"] * 5
    score = corpus("bleu", answers, references)
    assert score.value == pytest.approx(sacrebleu.corpus_bleu(answers, [references]).score)
    assert 0 < score.low < score.value < score.high < 100
    assert score.n == 15
    chrf = corpus("chrf", answers, references)
    assert chrf.value == pytest.approx(sacrebleu.corpus_chrf(answers, [references]).score)
    assert corpus("chrf", answers, answers).value == pytest.approx(100)


def test_missing_sacrebleu_is_told_with_the_command(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(MachineError, match="pip install sacrebleu"):
        ANSWER_METRICS["bleu"](["a"], ["a"])
