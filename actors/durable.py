"""Files that outlive a power cut. In: a path. Out: its content, or a directory's names, on the disk. Left out: whole
files that replace others (cluster/run/directory.py)."""

from __future__ import annotations

import os
from pathlib import Path


def fsync(path: Path) -> None:
    """Return when the disk holds a file's content, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
