"""The bench of adapters: a real phase, whose parameters are counted by hand and whose losses don't depend on the cache."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("peft")

from tlkit.bench.adapters import measure


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the resident memory is read from /proc")
def test_adapters_are_counted_merged_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path))
    live = measure("vit_tiny_patch16_224", "lora")
    assert not (tmp_path / "activations").exists()
    cached = measure("vit_tiny_patch16_224", "lora, cached")
    assert (tmp_path / "activations").is_dir()
    assert live.losses == cached.losses
    # 192 values wide, 12 blocks with layers of 192 to 576, 192 to 192, 192 to 768 and 768 to 192; the head from 192 to 10.
    assert live.parameters == 12 * 8 * ((192 + 576) + (192 + 192) + (192 + 768) + (768 + 192)) + 192 * 10 + 10
    assert live.merging < 1e-5 < live.largest_logit
    assert live.peak_bytes > 0
