"""The user's cache: what can be made again at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`DIFIX_CACHE`, or `~/.cache/difix`; it may not exist yet."""
    return Path(os.environ.get("DIFIX_CACHE") or Path.home() / ".cache" / "difix")
