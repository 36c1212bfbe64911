"""The bench of adapters: a real phase, whose parameters are counted by hand and whose losses don't depend on the cache."""

import sys

import pytest

pytest.importorskip("peft")

from tlkit.bench.adapters import measure


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the resident memory is read from /proc")
def test_adapters_are_counted_merged_and_cached() -> None:
    live, cached = (measure("test_vit", way) for way in ("lora", "lora, cached"))
    # timm's test_vit: 64 values wide, 6 blocks with layers of 64 to 192, 64 to 64, 64 to 192 and 192 to 64; the head from 64 to 10.
    assert live.parameters == 6 * 8 * ((64 + 192) + (64 + 64) + (64 + 192) + (192 + 64)) + 64 * 10 + 10
    assert live.merging < 1e-5 < live.largest_logit
    assert live.losses == cached.losses
    assert live.peak_bytes > 0
