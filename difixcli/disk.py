"""How much room a disk has."""

from __future__ import annotations

import math
import shutil
from pathlib import Path


def free_bytes(folder: Path) -> float:
    """What may still be written where the folder lies; infinity where the file system does not say how large it is."""
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else math.inf
