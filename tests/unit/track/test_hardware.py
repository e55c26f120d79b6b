"""What a run ran on."""

import json
import subprocess
import sys

from tunesmith.track.hardware import commit, describe_machine, memory_bytes, usable_cores, versions


def test_the_machine_is_described_as_json():
    about = describe_machine()
    assert json.loads(json.dumps(about)) == about
    assert about["hardware"]["host"]
    assert about["versions"]["torch"]
    assert about["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))


def test_cores_and_memory_are_plausible():
    assert 0 < usable_cores() <= 4096
    memory = memory_bytes()
    assert memory is not None
    assert memory > 1e8


def test_versions_come_without_imports():
    program = (
        "import sys, tunesmith.track.hardware as h; h.describe_machine();"
        "print(*{'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    assert versions()["numpy"]


def test_the_commit_is_a_hash_or_unknown():
    found = commit()
    assert found is None or len(found.removesuffix("+changes")) == 40
