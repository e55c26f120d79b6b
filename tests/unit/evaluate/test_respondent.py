"""What benchmarks ask of a model, against one forward pass of transformers for each continuation."""

from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_model_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import DataError, UsageError
from tunesmith.evaluate.lm_harness import respondent as respondent_module
from tunesmith.evaluate.lm_harness.respondent import Respondent, Tree, sampling_of
from tunesmith.models.config import ModelConfig
from tunesmith.models.load import load_base
from tunesmith.rollout.choosing import Sampling

LIVELY = {"tie_word_embeddings": False, "initializer_range": 0.2}
SIZES = {"qwen3": {"head_dim": 16}, "gemma3_text": {"head_dim": 16, "sliding_window": 8}}
FRANCE = "What is the capital of France?"
PAIRS = [
    (FRANCE, " The capital of France is Paris."),
    (FRANCE, " The capital of France is not known to me"),
    (FRANCE, " The capital"),
    (FRANCE, " 42"),
    (FRANCE, " 42"),
    ("The answer is ", "12"),
    ("", "Hello, how are you?"),
    (f"{FRANCE} The quick brown fox jumps.", " Paris"),
]


def respondent(folder: Path, architecture: str = "llama", **settings) -> Respondent:
    tiny_model_folder(folder, architecture, **{**LIVELY, **SIZES.get(architecture, {}), **settings})
    return Respondent(load_base(folder, ModelConfig(path=str(folder))).eval(), load_tokenizer(folder), 3)


def likelihood(model, before: list[int], behind: list[int]) -> tuple[float, bool]:
    with torch.no_grad():
        logits = model(torch.tensor([[*before, *behind]])).logits[0].double().log_softmax(-1)
    rows = logits[len(before) - 1 : -1]
    chosen = torch.tensor(behind)
    return rows[torch.arange(len(behind)), chosen].sum().item(), bool((rows.argmax(-1) == chosen).all())


def split(tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """As the harness does: white space at the end of a context belongs to what follows."""
    if not context:
        return [tokenizer.bos_token_id], tokenizer.encode(continuation, add_special_tokens=False)
    before = tokenizer.encode(context.rstrip())
    return before, tokenizer.encode(context + continuation)[len(before) :]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text"])
def test_likelihoods_are_those_of_separate_texts(tmp_path, architecture) -> None:
    asked = respondent(tmp_path, architecture)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    heard: list[tuple[int, int]] = []
    found = asked.likelihoods(PAIRS, lambda done, total: heard.append((done, total)))
    wanted = [likelihood(model, *split(tokenizer, *pair)) for pair in PAIRS]
    assert [one for one, _ in found] == pytest.approx([one for one, _ in wanted], rel=1e-5, abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    assert found[3] == found[4]
    assert heard[-1] == (4, 4)  # contexts


def test_answers_that_are_too_many_for_a_batch_become_several_and_keep_their_order(tmp_path, monkeypatch) -> None:
    asked = respondent(tmp_path)
    pairs = [("", f"{number} is a number.") for number in range(9)]
    whole = asked.likelihoods([*pairs, pairs[3]])
    sizes: list[int] = []
    score = respondent_module.likelihoods_of

    def heard(model, examples, on_progress):
        sizes.extend(len(example.cuts) for example in examples)
        return score(model, examples, on_progress)

    monkeypatch.setattr(respondent_module, "MICROBATCH_TOKENS", 16)
    monkeypatch.setattr(respondent_module, "likelihoods_of", heard)
    parted = asked.likelihoods([*pairs, pairs[3]])
    assert len(sizes) > 2
    assert [one for one, _ in parted] == pytest.approx([one for one, _ in whole], abs=1e-4)
    assert parted[3] == parted[9]
    sizes.clear()
    asked.rolling([text for _, text in pairs])
    assert sizes == [1] * 9


def test_a_context_that_is_too_long_loses_its_beginning(tmp_path) -> None:
    asked = respondent(tmp_path, max_position_embeddings=32)
    long = "The quick brown fox jumps over the lazy dog. " * 8
    assert len(asked.ids(long)) > 60
    [(found, _)] = asked.likelihoods([(long + "1", " 2")])
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    before, behind = split(AutoTokenizer.from_pretrained(tmp_path), long + "1", " 2")
    assert found == pytest.approx(likelihood(model, before[-(33 - len(behind)) :], behind)[0], abs=1e-4)


def test_a_text_is_rolled_over_in_windows_that_predict_each_token_once(tmp_path) -> None:
    asked = respondent(tmp_path, max_position_embeddings=16)
    text = "Hello, how are you? I am fine, thank you. " * 3
    ids = asked.ids(text)
    pieces = list(asked.windows(text))
    assert [token for _, behind in pieces for token in behind] == ids
    assert pieces[0][0] == [asked.first]
    assert {len(before) + len(behind) for before, behind in pieces} == {17}
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    wanted = sum(likelihood(model, *piece)[0] for piece in pieces)
    assert asked.rolling([text, ""]) == pytest.approx([wanted, 0.0], rel=1e-5)


def test_answers_end_at_the_first_stop_and_are_greedy_unless_asked(tmp_path) -> None:
    asked = respondent(tmp_path)
    [whole] = asked.write([(FRANCE, {"max_gen_toks": 24, "until": []})])
    stop = whole[6:8]
    heard: list[tuple[int, int]] = []
    found = asked.write(
        [
            (FRANCE, {"max_gen_toks": 24, "until": [stop]}),
            (FRANCE, {"max_new_tokens": 3, "until": "no such text"}),
            ("", {"max_gen_toks": 4, "do_sample": False, "temperature": 0.7}),
        ],
        lambda done, total: heard.append((done, total)),
    )
    assert found[0] == whole.split(stop)[0]
    assert whole.startswith(found[1])
    assert len(asked.tokenizer.encode(found[1], specials=False)) <= 3
    assert heard[-1] == (3, 3)
    assert asked.write([("", {"max_gen_toks": 4})]) == found[2:]


def test_turns_are_written_by_the_template_and_left_open_to_be_continued(tmp_path) -> None:
    asked = respondent(tmp_path)
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "I am "}]
    assert asked.chat(turns[:1]) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert asked.chat(turns, asks=False).endswith("<|im_start|>assistant\nI am")
    assert asked.ids(asked.chat(turns[:1]))[0] == asked.first


def test_what_answers_begin_with_together_is_one_segment() -> None:
    tree = Tree.of([(1, 2, 3, 4, 5), (1, 2, 3, 9), (7,), (1, 2, 3), (1, 2, 3, 4, 5, 6)])
    rebuilt = {place: [token for at in path for token in tree.segments[at]] for place, path in tree.paths.items()}
    assert rebuilt == dict(enumerate(map(list, tree.answers)))
    assert tree.segments.count((1, 2, 3)) == 1
    assert all(stem < at for at, stem in enumerate(tree.stems))
    assert sum(map(len, tree.segments)) < sum(map(len, tree.answers))


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, Sampling(256)),
        ({"until": "\n", "max_tokens": 8, "num_beams": 1}, Sampling(8, until=("\n",))),
        ({"do_sample": False, "temperature": 0.9, "top_p": 0.5}, Sampling(256)),
        ({"do_sample": True}, Sampling(256, temperature=1.0)),
        (
            {"temperature": 0.5, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.2},
            Sampling(256, temperature=0.5, top_p=0.9, top_k=20, repetition=1.2),
        ),
    ],
)
def test_generation_settings_of_tasks_are_read(settings, wanted) -> None:
    assert sampling_of(settings) == wanted


def test_what_cannot_be_followed_or_measured_is_told(tmp_path) -> None:
    with pytest.raises(UsageError) as caught:
        sampling_of({"num_beams": 4})
    assert (caught.value.diagnostic.code, "num_beams" in caught.value.diagnostic.message) == ("E471", True)
    asked = respondent(tmp_path, max_position_embeddings=16)
    with pytest.raises(DataError) as caught:
        asked.likelihoods([("Hello", "")])
    assert "no tokens of its own" in str(caught.value)
    with pytest.raises(DataError) as caught:
        asked.write([("Hello", {"max_gen_toks": 16})])
    assert (caught.value.diagnostic.code, "16" in caught.value.diagnostic.message) == ("E470", True)
    with pytest.raises(DataError, match="E470"):
        asked.likelihoods([("Hello", " 12 and 30" * 20)])
