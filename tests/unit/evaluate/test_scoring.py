"""Scores are those of transformers for the text that the template writes; shared prompts and order change nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny import tiny_model_folder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tunesmith.data.chat import encode
from tunesmith.data.config import DataConfig
from tunesmith.errors import DataError, ModelError
from tunesmith.evaluate.scoring import Scorer, centre, join, joined, values_of
from tunesmith.models.adapters import trainable
from tunesmith.models.config import FullConfig, ModelConfig
from tunesmith.models.load import load_model
from tunesmith.models.meaning import read_meaning, store_offset
from tunesmith.models.save import save_weights
from tunesmith.types import Example, Feedback, Message, Task

CHATS = [
    ("What is the capital of France?", "Paris."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Hello, how are you?", "Fine."),
    ("Add the numbers 12 and 30.", "42"),
]
ITEMS = [((Message("user", asked),), (Message("assistant", said),)) for asked, said in CHATS]


def reward_model(path: Path, outputs: int = 1, kind: str = "pair") -> Path:
    base = tiny_model_folder(path / "base", tie_word_embeddings=False, initializer_range=0.2)
    model = load_model(base, ModelConfig(path=str(base), adapter=FullConfig()), outputs=outputs)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    classes = tuple("abcdefgh"[:outputs]) if outputs > 1 else ()
    return save_weights(model, path, base, Task(kind, "values", classes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return reward_model(tmp_path_factory.mktemp("reward"))


def test_scores_equal_transformers_on_the_rendered_chat_padded(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    chats = [[{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in CHATS]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    assert texts[0].endswith("<|im_end|>\n")
    with torch.no_grad():
        theirs = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0]
        together = tokenizer.apply_chat_template(chats, padding=True, return_tensors="pt", return_dict=True)
        assert torch.equal(model(**together).logits[:, 0], theirs)
    ours = Scorer.open(str(folder)).score(ITEMS)
    assert ours == pytest.approx(theirs.tolist(), abs=1e-5)
    assert len({round(score, 3) for score in ours}) == 4


def test_every_answer_has_the_score_it_has_alone_in_any_order(folder: Path) -> None:
    scorer = Scorer.open(str(folder))
    together = scorer.score(ITEMS)
    assert [scorer.score([item])[0] for item in ITEMS] == pytest.approx(together, abs=1e-5)
    assert scorer.score(ITEMS[::-1]) == pytest.approx(together[::-1], abs=1e-5)
    assert scorer.score([]) == []


def test_a_text_after_a_chat_is_a_turn_and_plain_texts_need_no_template(folder: Path) -> None:
    scorer = Scorer.open(str(folder))
    assert scorer.score([(ITEMS[0][0], "Paris.")]) == scorer.score(ITEMS[:1])
    plain = scorer.score([("What is the capital of France? ", "Paris.")])
    assert plain != pytest.approx(scorer.score(ITEMS[:1]), abs=1e-3)


def test_the_offset_is_subtracted(tmp_path: Path) -> None:
    folder = reward_model(tmp_path)
    before = Scorer.open(str(folder)).score(ITEMS)
    store_offset(folder, 2.5, "pairs.jsonl")
    assert Scorer.open(str(folder)).score(ITEMS) == pytest.approx([score - 2.5 for score in before])


def test_centred_rewards_have_the_mean_0_over_the_reference_set(tmp_path: Path) -> None:
    folder = reward_model(tmp_path)
    scorer = Scorer.open(str(folder))
    entries = [Feedback(prompt, answer, True, "f", 1) for prompt, answer in ITEMS]
    examples = [encode(each, scorer.tokenizer, DataConfig(), Task("feedback", "values"))[0] for each in entries]
    offset = centre(scorer.model, examples, folder, "dev.jsonl")
    assert offset == pytest.approx(np.mean(scorer.score(ITEMS)), abs=1e-5)
    assert np.mean(Scorer.open(str(folder)).score(ITEMS)) == pytest.approx(0, abs=1e-5)
    assert read_meaning(folder).centred_on == "dev.jsonl"


def test_what_cannot_be_scored_is_refused(folder: Path, tmp_path: Path) -> None:
    scorer = Scorer.open(str(folder))
    with pytest.raises(DataError, match="E246") as caught:
        scorer.score([*ITEMS[:1], (ITEMS[0][0], (Message("assistant", "sea " * 600),))])
    assert "answer 2" in str(caught.value)
    with pytest.raises(ModelError, match="E247"):
        Scorer.open(str(reward_model(tmp_path, outputs=3, kind="label")))
    with pytest.raises(ModelError, match="E245"):
        Scorer.open(str(tmp_path / "base"))


def test_answers_in_a_row_to_one_prompt_share_it() -> None:
    def one(prompt: list[int], answer: list[int]) -> Example:
        weights = np.zeros(len(prompt) + len(answer), dtype=np.float32)
        weights[-1] = 1
        return Example(np.array([*prompt, *answer], dtype=np.int32), weights, "f", 1, (len(prompt),), (1.0,))

    made = list(joined([one([5, 6], [7]), one([5, 6], [8, 9]), one([5, 7], [8]), one([5, 6], [7])]))
    assert [example.tokens.tolist() for example in made] == [[5, 6, 7, 8, 9], [5, 7, 8], [5, 6, 7]]
    assert made[0].cuts == (2, 3)
    assert made[0].weights.tolist() == [0, 0, 1, 0, 1]
    assert join([one([5], [6])]).cuts == (1,)


def test_progress_is_told_and_values_stand_in_the_order_of_the_examples(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("tunesmith.evaluate.scoring.MICROBATCH_TOKENS", 16)
    scorer = Scorer.open(str(folder))
    heard: list[tuple[int, int]] = []
    whole = scorer.score(ITEMS, lambda done, total: heard.append((done, total)))
    assert heard[-1][0] == heard[-1][1]
    assert len(heard) > 1
    monkeypatch.undo()
    assert scorer.score(ITEMS) == pytest.approx(whole, abs=1e-5)
    assert values_of(scorer.model, []) == []
