"""A peer's own virtual environment, built from its pinned list."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

ENVIRONMENTS = Path(__file__).parents[1] / "env"
PEERS = Path(__file__).parents[1] / "peers"
# Lists that name every package: nothing is resolved, nothing else installed.
COMPLETE = frozenset({"llamafactory", "torchtune", "unsloth"})
# Left out of an environment after installation: libraries that only load beside CUDA and that nothing here calls.
USELESS = {"llamafactory": ("torchaudio/lib",)}
VERSIONS = (
    "import json, importlib.metadata as m; "
    "print(json.dumps({d.metadata['Name'].lower(): d.version for d in m.distributions()}))"
)


def python_of(peer: str, torch: str) -> Path:
    """The interpreter of a peer's environment; builds it when it is missing or its list has changed."""
    folder, pins = ENVIRONMENTS / peer, PEERS / f"{peer}.txt"
    stamp = hashlib.sha256(f"{torch}\n{pins.read_text()}".encode()).hexdigest()
    marker, python = folder / "built", folder / "bin" / "python"
    if not (marker.exists() and marker.read_text() == stamp):
        print(f"building {folder} (minutes) ...", file=sys.stderr)
        subprocess.run([sys.executable, "-P", "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, f"torch=={torch}"], check=True)
        subprocess.run([*install, *(["--no-deps"] if peer in COMPLETE else []), "-r", pins], check=True)
        for name in USELESS.get(peer, ()):
            shutil.rmtree(next(folder.glob("lib/python*/site-packages")) / name)
        marker.write_text(stamp)
    return python


def versions(python: Path | str, names: tuple[str, ...]) -> dict[str, str]:
    found = json.loads(subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, check=True).stdout)
    return {name: found[name] for name in names if name in found}
