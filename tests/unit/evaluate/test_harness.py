import json
import math
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_model_folder

from tunesmith.data.config import DataConfig, SourceConfig
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import DataError
from tunesmith.evaluate.config import EvaluateConfig
from tunesmith.evaluate.harness import evaluate, name_tasks, write_rows
from tunesmith.models.config import ModelConfig
from tunesmith.models.load import load_base
from tunesmith.rollout.generator import Sampling, generate

CHATS = [
    [("user", "What is the capital of France?"), ("assistant", "Paris.")],
    [("system", "Be short."), ("user", "Hello"), ("assistant", "Hi."), ("user", "Add 12 and 30"), ("assistant", "42")],
    [("user", "Good morning"), ("assistant", "Guten Morgen.")],
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tiny_model_folder(tmp_path_factory.mktemp("model"), tie_word_embeddings=False, initializer_range=0.2)
    return load_base(folder, ModelConfig(path=str(folder))), load_tokenizer(folder)


def write(path: Path, records: list[dict]) -> SourceConfig:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return SourceConfig(path=str(path))


def chats(path: Path) -> SourceConfig:
    return write(path, [{"messages": [{"role": r, "content": c} for r, c in chat]} for chat in CHATS])


def settings(source: SourceConfig, *metrics: str, **more) -> EvaluateConfig:
    return EvaluateConfig(data=(source,), metrics=metrics, max_new_tokens=8, **more)


def test_loss_and_perplexity_are_those_of_one_record_at_a_time(loaded, tmp_path: Path) -> None:
    model, tokenizer = loaded
    source = chats(tmp_path / "dev.jsonl")
    scores = evaluate(model, tokenizer, settings(source, "loss", "perplexity")).scores["dev"]
    total = count = 0.0
    model.set_attn_implementation("sdpa")
    for chat in CHATS:
        ids: list[int] = []
        for role, content in chat:
            header = tokenizer.encode(f"<|im_start|>{role}\n", specials=True)
            body = tokenizer.encode(f"{content}<|im_end|>", specials=True)
            if role == "assistant":
                with torch.no_grad():
                    logits = model(torch.tensor([ids + header + body])).logits[0].log_softmax(-1)
                for place, token in enumerate(body, start=len(ids) + len(header)):
                    total -= logits[place - 1, token].item()
                    count += 1
            ids += header + body + tokenizer.encode("\n", specials=True)
    model.set_attn_implementation("tunesmith_ragged")
    assert scores["loss"].value == pytest.approx(total / count, abs=1e-4)
    assert scores["perplexity"].value == pytest.approx(math.exp(total / count), rel=1e-4)
    assert scores["loss"].n == 3


def test_answers_follow_the_prompt_before_the_last_assistant_turn(loaded, tmp_path: Path) -> None:
    model, tokenizer = loaded
    source = chats(tmp_path / "dev.jsonl")
    heard: list[tuple[str, int, int]] = []
    found = evaluate(
        model, tokenizer, settings(source, "exact_match", "rouge_l"), on_progress=lambda *seen: heard.append(seen)
    )
    assert [row.reference for row in found.rows] == ["Paris.", "42", "Guten Morgen."]
    assert [row.prompt for row in found.rows] == ["What is the capital of France?", "Add 12 and 30", "Good morning"]
    prompt = tokenizer.encode(
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi.<|im_end|>\n"
        "<|im_start|>user\nAdd 12 and 30<|im_end|>\n<|im_start|>assistant\n",
        specials=True,
    )
    assert found.rows[1].answer == generate(model, tokenizer, [prompt], Sampling(8))[0].text
    assert found.rows[0].record.endswith("dev.jsonl:1")
    assert heard[-1] == ("dev", 3, 3)
    assert found.scores["dev"].keys() == {"exact_match", "rouge_l"}


def test_a_right_answer_counts(loaded, tmp_path: Path) -> None:
    model, tokenizer = loaded
    own = generate(model, tokenizer, [tokenizer.encode("Hello", specials=False)], Sampling(8))[0].text
    source = write(
        tmp_path / "qa.jsonl", [{"prompt": "Hello", "completion": own}, {"prompt": "Hello", "completion": "x"}]
    )
    found = evaluate(model, tokenizer, settings(source, "exact_match"))
    assert [row.ok for row in found.rows] == [True, False]
    assert found.scores["qa"]["exact_match"].value == 0.5
    assert found.to_json()["qa"]["exact_match"]["n"] == 2


def test_documents_have_a_loss_and_no_answers(loaded, tmp_path: Path) -> None:
    model, tokenizer = loaded
    source = write(tmp_path / "text.jsonl", [{"text": "The quick brown fox."}])
    found = evaluate(model, tokenizer, settings(source, "loss", "exact_match"))
    assert found.scores["text"].keys() == {"loss"}
    assert found.unused["text"]["no_text_answer"] == 1
    with pytest.raises(DataError, match="E153"):
        evaluate(model, tokenizer, settings(source, "exact_match"))


def test_records_beyond_the_length_are_counted(loaded, tmp_path: Path) -> None:
    model, tokenizer = loaded
    long = [{"role": "user", "content": "sea " * 600}, {"role": "assistant", "content": "moon"}]
    short = [{"role": "user", "content": "sea"}, {"role": "assistant", "content": "moon"}]
    source = write(tmp_path / "two.jsonl", [{"messages": long}, {"messages": short}])
    found = evaluate(model, tokenizer, settings(source, "loss", "exact_match"), DataConfig(max_length=64))
    assert found.scores["two"]["loss"].n == found.scores["two"]["exact_match"].n == 1
    assert found.unused["two"] == {"overlong": 1, "prompt_fills_context": 1}


def test_limit_and_rows_on_disk(loaded, tmp_path: Path) -> None:
    model, tokenizer = loaded
    source = chats(tmp_path / "dev.jsonl")
    found = evaluate(model, tokenizer, settings(source, "exact_match", limit=2))
    write_rows(found.rows, tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()]
    assert [row["reference"] for row in rows] == ["Paris.", "42"]
    assert rows[0].keys() == {"task", "record", "prompt", "answer", "reference", "ok", "finished"}


def test_equal_file_names_become_two_tasks() -> None:
    sources = [SourceConfig(path=path) for path in ("a/dev.jsonl", "b/dev.jsonl.gz", "folder/")]
    assert [name for name, _ in name_tasks(sources)] == ["dev", "dev-2", "folder"]
