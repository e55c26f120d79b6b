"""The file system that a folder is on."""

from __future__ import annotations

import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")  # man 5 proc_pid_mountinfo
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "9p")


def file_system(folder: Path) -> str | None:
    """Its type, such as ext4 or fuse.gcsfuse; None where the system does not tell."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    place, found, longest = folder.resolve(), None, -1
    for line in lines:
        own, _, about = line.partition(" - ")
        mount = Path(unescaped(own.split()[4]))
        # of two mounts on one place the later one hides the other
        if place.is_relative_to(mount) and len(mount.parts) >= longest:
            found, longest = about.split()[0], len(mount.parts)
    return found


def renames_folders(folder: Path) -> bool:
    """Whether renaming a folder is one act there: not on object stores, which are mounted by FUSE, nor on networks."""
    kind = file_system(folder) or ""
    return kind not in NETWORK and not kind.startswith("fuse.")


def unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
