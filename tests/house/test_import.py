"""`import tunesmith` prints nothing, imports nothing heavy, and changes nothing."""

import json
import subprocess
import sys

PROGRAM = """
import json, os, sys, threading
before = dict(os.environ), threading.active_count(), set(os.listdir("."))
import tunesmith
heavy = sorted({"torch", "numpy", "transformers", "pydantic", "rich", "typer"} & set(sys.modules))
after = dict(os.environ), threading.active_count(), set(os.listdir("."))
sys.stdout.write(json.dumps([heavy, before == after]))
"""


def test_import_has_no_side_effects(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout) == [[], True]
    assert done.stderr == ""
