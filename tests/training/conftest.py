"""What a run saves on its way, for tests that look into it: at its end the checkpoints are removed."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest

from tlkit.training.checkpointing.callback import Checkpoints


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Fills with the content of every checkpoint that is written."""
    states: list[dict[str, Any]] = []
    write = Checkpoints.write

    def noted(checkpoints: Checkpoints, state: Mapping[str, Any]) -> None:
        write(checkpoints, state)
        states.append(deepcopy(dict(state)))

    monkeypatch.setattr(Checkpoints, "write", noted)
    return states
