"""The scaling model by hand arithmetic, and the page that shows it."""

import math
from pathlib import Path

import pytest

from tlkit.bench.scaling import CASES, Cluster, Training, allreduce_s, step, tables

TRAINING = Training("made up", parameters=25e6, images_s=100, batch_size=10, image_bytes=1e6)
CLUSTER = Cluster(devices=4, inside=1e9, between=1e8, latency_s=1e-3, read=1e9, decoded=1e6)


def test_a_ring_of_four_moves_one_and_a_half_times_the_bytes_in_six_messages_a_piece() -> None:
    """100 MB are 4 pieces of 25: 2 x 3/4 x 100 MB at 1 GB/s are 150 ms, and 4 x 6 messages of a millisecond 24."""
    assert allreduce_s(100e6, 4, 1e9, 1e-3) == pytest.approx(0.174)
    assert allreduce_s(100e6, 4, 1e9, 1e-3, "tree") == pytest.approx(0.150 + 4 * 4 * 1e-3)


def test_one_device_sends_nothing() -> None:
    alone = step(TRAINING, CLUSTER, 1)
    assert (alone.allreduce_s, alone.compute_s, alone.step_s, alone.efficiency) == (0.0, 0.1, 0.1, 1.0)
    assert alone.input_s == pytest.approx(0.01)  # 10 MB at 1 GB/s


def test_only_what_the_backward_pass_does_not_hide_counts() -> None:
    """100 ms of computing, of which 67 are backward: of 174 ms of all-reduce, 107 are left."""
    four = step(TRAINING, CLUSTER, 4)
    assert four.step_s == pytest.approx(0.1 + 0.174 - 2 / 30)
    assert four.images_s == pytest.approx(40 / four.step_s)
    assert four.efficiency == pytest.approx(0.1 / four.step_s)


def test_a_second_machine_is_as_quick_as_the_link_to_it() -> None:
    """2 x 7/8 x 100 MB at 0.1 GB/s are 1.75 s; 4 pieces of 14 messages 56 ms."""
    assert step(TRAINING, CLUSTER, 8).allreduce_s == pytest.approx(1.806)


def test_a_step_is_not_quicker_than_its_images_come() -> None:
    """40 images are 40 MB, at 0.1 GB/s of a machine's own disk; or 40, decoded at 50 a second; of two machines 80, from a shared disk."""
    assert step(TRAINING, Cluster(4, 1e12, 1e12, 0, read=1e8, decoded=1e6), 4).step_s == pytest.approx(0.4)
    assert step(TRAINING, Cluster(4, 1e12, 1e12, 0, read=1e12, decoded=50), 4).step_s == pytest.approx(0.8)
    assert step(TRAINING, Cluster(4, 1e12, 1e12, 0, read=1e12, decoded=1e6, shared_read=1e8), 8).step_s == pytest.approx(0.8)
    assert step(TRAINING, Cluster(4, 1e12, 1e12, 0, read=1e12, decoded=1e6), 8).efficiency == 1.0


def test_more_devices_never_do_less_by_tree_nor_more_than_their_share() -> None:
    for training, cluster in CASES.values():
        speeds = [step(training, cluster, n, "tree") for n in (1, 2, 4, 8)]
        assert [speed.images_s for speed in speeds] == sorted(speed.images_s for speed in speeds)
        assert all(0 < speed.efficiency <= 1 + 1e-12 for speed in speeds)
        assert math.isfinite(step(training, cluster, 1000).step_s)


def test_the_page_has_the_tables_as_the_model_gives_them() -> None:
    page = (Path(__file__).parents[2] / "docs/scaling.md").read_text(encoding="utf-8")
    assert "\n".join(tables()).strip() in page, "put what `python -m tlkit.bench.scaling` prints into docs/scaling.md"
