"""A model folder holds its own files: links out of it, pipes and devices are refused, and nothing of them is copied."""

import hashlib
import os
import shlex
import signal

import pytest
from tests.hostile import copy, tunesmith
from tests.tiny import tiny_model_folder

from tunesmith.contained import READ, check_contained, check_file, check_tree
from tunesmith.errors import Unsafe
from tunesmith.models.blueprint import locate_tokenizer
from tunesmith.models.content import content_hash
from tunesmith.models.headers import read_headers
from tunesmith.models.locate import locate
from tunesmith.models.safety import read_json_object
from tunesmith.models.save import TOKENIZER_FILES, copy_tokenizer

pytestmark = pytest.mark.row("S16")
LINKED = (*TOKENIZER_FILES, "config.json", "model.safetensors", "zz.safetensors", "adapter_config.json")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("contained") / "good")


@pytest.fixture
def folder(good, tmp_path):
    """A model that may be changed."""
    return copy(good, tmp_path / "M")


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_text("my own")
    return path


@pytest.fixture(autouse=True)
def limit():
    """A hang is a failure, not a test that never ends."""

    def late(signum, frame):
        raise AssertionError("still waiting after a minute")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def replace(path, target):
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize("name", LINKED)
def test_a_link_that_leaves_the_folder_is_refused_by_name_wherever_it_is_read(folder, secret, tmp_path, name):
    replace(folder / name, os.path.relpath(secret, folder))
    for read in (locate, locate_tokenizer):
        with pytest.raises(Unsafe, match="E540") as caught:
            read(str(folder))
        told = caught.value.diagnostic
        assert (caught.value.exit_code, told.evidence) == (9, (f"{name} -> {secret}",))
        assert told.where is not None
        assert told.where.file == str(folder / name)
        assert told.fixes[0].command == f"rm {shlex.quote(str(folder / name))}"
    with pytest.raises(Unsafe, match="E540"):
        content_hash(folder)
    with pytest.raises(Unsafe, match="E540"):
        read_headers(folder)
    if name in TOKENIZER_FILES:
        out = tmp_path / "copy"
        out.mkdir()
        with pytest.raises(Unsafe, match="E540"):
            copy_tokenizer(folder, out)
        assert all(path.read_bytes() != b"my own" for path in out.iterdir())


def test_no_command_publishes_what_a_link_leads_to(folder, secret, tmp_path):
    replace(folder / "merges.txt", secret)
    data = tmp_path / "texts.jsonl"
    data.write_text('{"prompt": "What?", "completion": "That."}\n')
    out = tmp_path / "out"
    settings = (f"model.path={folder}", f"data.train={data}")
    fresh = ("model.fresh.layers=1", f"model.fresh.tokenizer={folder}", f"data.train={data}")
    for words in (
        ("export", folder, out),
        ("export", folder, out, "--to", "gguf"),
        ("plan", "sft", *settings),
        ("train", "sft", *settings, "train.steps=1", f"run.folder={out}"),
        ("plan", "from-scratch", *fresh),
        ("chat", folder, "--prompt", "hi"),
        ("data", "preview", "sft", *settings),
    ):
        done = tunesmith(*words)
        assert (done.code, "E540" in done.text) == (9, True), (words, done.text)
        assert "my own" not in done.text
        assert not [path for path in out.rglob("*") if path.is_file() and b"my own" in path.read_bytes()]


@pytest.mark.row("F4")
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_device_beside_good_weights_is_refused_at_once(folder, kind, tmp_path):
    path = folder / "zz.safetensors"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    code = "E541" if kind == "pipe" else "E540"
    for read in (lambda: locate(str(folder)), lambda: content_hash(folder), lambda: read_headers(folder)):
        with pytest.raises(Unsafe, match=code):
            read()
    data = tmp_path / "texts.jsonl"
    data.write_text('{"prompt": "What?", "completion": "That."}\n')
    for verb in ("plan", "train"):
        done = tunesmith(verb, "sft", f"model.path={folder}", f"data.train={data}", f"run.folder={tmp_path / 'runs'}")
        assert (done.code, code in done.text) == (9, True), done.text


@pytest.mark.parametrize("name", sorted(set(LINKED) - {"zz.safetensors"}))
def test_a_pipe_in_any_place_is_refused(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(Unsafe, match=f"E541.*{name} is a named pipe"):
        locate(str(folder))


def test_a_run_and_an_adapter_are_looked_at_as_well(good, folder, secret, tmp_path):
    adapter = tmp_path / "A"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").symlink_to(secret)
    for words in (
        ("chat", adapter, "--prompt", "hi"),
        ("adapters", "ls", adapter),
        ("export", adapter, tmp_path / "o"),
    ):
        done = tunesmith(*words)
        assert (done.code, "E540" in done.text) == (9, True), (words, done.text)
    run = tmp_path / "runs" / "r"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "config.yaml").write_text(f"model: {{path: {good}}}\n")
    folder.rename(run / "model")
    replace(run / "model" / "vocab.json", secret)
    for name in (run, run / "model"):
        done = tunesmith("export", name, tmp_path / "o")
        assert (done.code, "E540" in done.text) == (9, True), done.text


def test_links_inside_the_folder_and_to_the_folder_are_followed(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "weights.bin")
    (folder / "model.safetensors").symlink_to("weights.bin")
    (tmp_path / "link").symlink_to(folder)
    assert locate(str(tmp_path / "link")) == tmp_path / "link"
    assert content_hash(tmp_path / "link") == content_hash(folder)


def test_the_hubs_cache_leads_into_its_own_store_and_no_other(folder, secret, tmp_path):
    repository = tmp_path / "models--owner--name"
    snapshot, blobs = repository / "snapshots" / "0123", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        content = path.read_bytes()
        stored = blobs / hashlib.sha256(content).hexdigest()
        stored.write_bytes(content)
        (snapshot / path.name).symlink_to(f"../../blobs/{stored.name}")
    assert locate(str(snapshot)) == snapshot
    assert content_hash(snapshot)
    other = tmp_path / "models--other" / "blobs"
    other.mkdir(parents=True)
    (other / "x").write_text("not mine")
    for target in ("../../../models--other/blobs/x", str(secret), "../../refs"):
        replace(snapshot / "merges.txt", target)
        with pytest.raises(Unsafe, match="E540"):
            locate(str(snapshot))
    (snapshot / "merges.txt").unlink()
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unsafe, match="E540"):
        locate(str(snapshot))


def test_a_folder_that_is_copied_as_a_whole_holds_no_link_out_of_it(tmp_path, secret):
    folder = tmp_path / "A"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "file").write_text("x")
    (folder / "notes.md").symlink_to("below/file")
    check_tree(folder)
    replace(folder / "notes.md", secret)
    check_contained(folder)  # nothing reads it
    with pytest.raises(Unsafe, match="E540"):
        check_tree(folder)
    replace(folder / "notes.md", ".")
    with pytest.raises(Unsafe, match=r"E541.*notes\.md is a link to a folder"):
        check_tree(folder)


def test_what_is_not_there_and_what_leads_in_a_circle(tmp_path):
    assert check_file(tmp_path / "none") == tmp_path / "none"
    (tmp_path / "config.json").symlink_to("config.json")
    with pytest.raises((Unsafe, RuntimeError, OSError)):
        read_json_object(tmp_path / "config.json")
    assert "*.safetensors" in READ
