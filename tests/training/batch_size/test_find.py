"""The batch size that memory allows."""

import os
import re
import sys
from functools import partial
from pathlib import Path

import pytest

from tests import warm
from tlkit.recipe.load import load_recipe
from tlkit.training.batch_size.find import largest_that_fits, rounded, with_batch_size
from tlkit.training.batch_size.probe import largest_phases
from tlkit.training.specs import phase_specs


@pytest.mark.parametrize("room", [*range(40), 63, 64, 100, 1000])
def test_the_largest_that_fits_is_found_to_an_eighth(room: int) -> None:
    tried = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= room

    found = largest_that_fits(fits, most=225)
    best = min(room, 225) if room >= 2 else 0
    assert found <= best
    assert found >= best / 1.125 - 1
    assert max(tried) <= 225
    assert len(tried) == len(set(tried)) <= 9


def test_kernels_get_multiples_of_eight() -> None:
    assert [rounded(size) for size in (2, 15, 16, 23, 24, 129)] == [2, 15, 16, 16, 24, 128]


def test_a_number_stays_as_it_is() -> None:
    recipe = load_recipe("quickstart", ["data.batch_size=48"])
    assert with_batch_size(recipe) is recipe


def test_the_phase_with_the_most_and_that_of_each_precision_and_adapter_are_tried() -> None:
    trains = ("train: head", "train: {lora: {rank: 4}}", "train: all", "train: {last: 1}, precision: bf16-mixed", "train: {last: 2}")
    phases = f"phases=[{', '.join(f'{{{train}, epochs: 1, lr: 1e-3}}' for train in trains)}]"
    recipe = load_recipe("quickstart", ["model={backbone: test_vit, weights: random}", phases])
    trained = [frozenset(map(str, range(number))) for number in (0, 3, 9, 2, 4)]
    assert [spec.number for spec in largest_phases(phase_specs(recipe, trained, images=100))] == [2, 3, 4]


def limit_memory(left: int) -> None:
    """Leave this process, and each that it starts, so much more address space than it has now; a trial leaves 1.1 GB of it to the run."""
    import resource  # which Windows doesn't have

    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + left,) * 2)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's address space reliably")
def test_a_batch_that_memory_bounds_trains_a_whole_epoch(tmp_path: Path) -> None:
    words = [
        *("finetune", "quickstart", "data.batch_size={find: 0.8}", "data.image_size=128", "data.limit=260", "augment=[]"),
        *("model={backbone: tf_efficientnet_lite0, weights: random}", "phases=[{train: all, epochs: 1, lr: 1e-3}]"),
        *("ema={decay: 0.99}", "mix={mixup: 0.2}", "--out", str(tmp_path / "run")),
    ]
    ended = warm.start(*words, cwd=tmp_path, env=os.environ, out=tmp_path / "out", first=partial(limit_memory, 1_450_000_000)).finished()
    assert ended.returncode == 0, ended.stderr
    said = re.search(r"data\.batch_size: (\d+)\. (\d+) images fit on a device", ended.stderr)
    assert said is not None, ended.stderr
    print("FOUND", said[0])
    assert 2 <= int(said[1]) < int(said[2])


def print_limit() -> None:
    import resource

    from tlkit.training.batch_size import probe

    resource.setrlimit(resource.RLIMIT_AS, (8_000_000_000, resource.RLIM_INFINITY))
    probe.limit_memory()
    print(resource.getrlimit(resource.RLIMIT_AS)[0])
    sys.exit()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's address space reliably")
def test_a_trial_leaves_the_address_space_that_a_run_reserves(tmp_path: Path) -> None:
    ended = warm.start(cwd=tmp_path, env=os.environ, out=tmp_path / "out", first=print_limit).finished()
    assert 0 < int(ended.stdout) <= 8_000_000_000 - 1024**3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's address space reliably")
def test_a_batch_without_room_is_reported_with_one_that_fits(tmp_path: Path) -> None:
    words = [
        *("finetune", "quickstart", "data.batch_size=512", "data.image_size=64", "model={backbone: resnet18, weights: random}"),
        *("data.limit=1000", "augment=[]", "phases=[{train: all, epochs: 1, lr: 1e-3}]", "cache.use=false", "--out", str(tmp_path / "run")),
    ]
    ended = warm.start(*words, cwd=tmp_path, env=os.environ, out=tmp_path / "out", first=partial(limit_memory, 1_200_000_000)).finished()
    assert ended.returncode == 2
    said = re.search(r"data.batch_size = 512 doesn't fit into memory: .*\n  Set it to (\d+), the largest that fitted", ended.stderr)
    assert said is not None, ended.stderr
    print("FOUND", said[1])
    assert 2 <= int(said[1]) < 512
    assert "Traceback" not in ended.stderr
