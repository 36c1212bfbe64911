from pathlib import Path

import pytest

from tlkit.data import file_facts


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_facts, "NEW_NS", 0)  # what a test has just written is settled
