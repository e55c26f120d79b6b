"""S25, Z7: secrets are covered by their shape, by their name, and by their value in the environment."""

import json
import time

import pytest

from tunesmith.redaction import COVER, known_values, names_a_secret, redacted, redacted_tree
from tunesmith.track.files import replace_text
from tunesmith.track.metrics import JsonLines

LETTERS = "abcdEFGH12345678ijklMNOP"


@pytest.fixture(autouse=True)
def looking_again():
    """Secrets that a test sets are seen at once, and those of the test before are forgotten."""
    known_values.cache_clear()
    yield
    known_values.cache_clear()


@pytest.mark.row("S25")
@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"login with hf_{LETTERS} failed", f"login with {COVER} failed"),
        (f"sk-proj-{LETTERS}", COVER),
        (f"ghp_{LETTERS}, github_pat_{LETTERS}", f"{COVER}, {COVER}"),
        ("AKIA0123456789ABCDEF", COVER),
        (f"Authorization: Bearer {LETTERS}", f"Authorization: Bearer {COVER}"),
        ("https://me:swordfish@example.org/x", f"https://{COVER}@example.org/x"),
        (f"judge.api_key={LETTERS} x", f"judge.api_key={COVER} x"),
        ('{"password": "swordfish1"}', f'{{"password": "{COVER}"}}'),
        (f"eyJ{LETTERS}.eyJ{LETTERS}.{LETTERS}", COVER),
    ],
)
def test_s25_shapes_and_names(text, left):
    assert redacted(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "judge.key_variable=OPENAI_API_KEY", "the bearer of good news, a basic idea", "max_new_tokens: 12345678",
        "https://example.org:8080/path@2", "task-oriented sk-learn", "the secret of a good poem is perseverance",
    ],
)  # fmt: skip
def test_ordinary_text_stays(text):
    assert redacted(text) == text


def test_values_of_the_environment_go_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("MY_PASSWORD", 'open "sesame"\\')
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    monkeypatch.setenv("NOT_ASKED", "unrelated-value")
    known_values.cache_clear()
    assert redacted('say open "sesame"\\ abc unrelated-value') == f"say {COVER} abc unrelated-value"
    kept = json.loads(redacted(json.dumps({"said": 'open "sesame"\\', "other": "x"})))
    assert kept == {"said": COVER, "other": "x"}
    assert redacted_tree({"a": ["x", ('open "sesame"\\', 3)]}) == {"a": ["x", [COVER, 3]]}


def test_names_of_secrets_and_of_places():
    assert all(map(names_a_secret, ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASS"]))
    assert not any(map(names_a_secret, ["HF_TOKEN_PATH", "TOKENIZERS_PARALLELISM", "SSH_AUTH_SOCK", "MONKEY"]))


def test_files_of_a_run_are_written_without_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "canary-in-a-file")
    known_values.cache_clear()
    replace_text(tmp_path / "run.json", '{"argv": ["canary-in-a-file"]}')
    lines = JsonLines(tmp_path / "events.jsonl")
    lines.write({"message": "canary-in-a-file"})
    lines.write_text("canary-in-a-file")
    lines.close()
    for path in tmp_path.iterdir():
        assert "canary" not in path.read_text()
        assert COVER in path.read_text()


@pytest.mark.row("S22")
def test_s22_hostile_text_takes_no_time():
    for part in ("hf_", "sk-", "eyJ", "://a:", "password=", "api-key:", "bearer ", "a:b@"):
        begun = time.perf_counter()
        redacted(part * (100_000 // len(part)))
        redacted(part + "a" * 100_000)
        assert time.perf_counter() - begun < 1.0, part
