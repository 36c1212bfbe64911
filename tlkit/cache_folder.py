"""Where tlkit keeps what it would otherwise work out again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$TLKIT_CACHE, or tlkit's part of the user's cache folder."""
    chosen = os.environ.get("TLKIT_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tlkit"
