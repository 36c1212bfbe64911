import hashlib
import inspect
import pickle
import socket
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from torchvision import datasets
from torchvision.datasets import utils as torchvision_utils

from tlkit.data.decode import decode
from tlkit.data.samples import Samples
from tlkit.data.sources import download, torchvision_sets
from tlkit.data.sources.read import read_source
from tlkit.data.sources.torchvision_sets import SETS, Archive, archives_of
from tlkit.errors import DataError, RecipeError
from tlkit.recipe.fields.source import TorchvisionSource

NOWHERE = "http://127.0.0.1:1"
"""A port that only the system's administrator may listen on; nobody does."""
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def read(name: str, root: Path) -> Samples:
    return read_source(TorchvisionSource(torchvision=name), root)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive in CIFAR-10's own format, with torchvision's checksums set to it: 10 images a file."""
    folder = tmp_path / "made/cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for number, name in enumerate(names):
        images = np.random.default_rng(number).integers(0, 256, (10, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": images, "labels": list(range(10))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CLASSES}))
    path = tmp_path / "served/cifar-10-python.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, folder.name)
    cifar = datasets.CIFAR10
    nowhere = Archive("", f"{NOWHERE}/{path.name}", md5(path))
    monkeypatch.setattr(torchvision_sets, "archives_of", lambda name: [nowhere])
    monkeypatch.setattr(cifar, "tgz_md5", md5(path))
    monkeypatch.setattr(cifar, "train_list", [[name, md5(folder / name)] for name in names[:5]])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", md5(folder / "test_batch")]])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": md5(folder / "batches.meta")})
    return path


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(archive.parent)))
    Thread(target=served.serve_forever, daemon=True).start()
    here = Archive("", f"http://127.0.0.1:{served.server_port}/{archive.name}", md5(archive))
    monkeypatch.setattr(torchvision_sets, "archives_of", lambda name: [here])
    yield served
    served.shutdown()
    served.server_close()


def test_every_row_of_the_table_fits_torchvisions_constructor() -> None:
    assert len(SETS) == 32
    for name, splits in SETS.items():
        made = getattr(datasets, name.partition("/")[0])
        for arguments in splits.values():
            signature = inspect.signature(made.__init__)
            signature.bind(None, root="x", **arguments)
            known = {parameter for base in made.__mro__ for parameter in inspect.signature(base.__init__).parameters}
            assert set(arguments) <= known, name
            assert name in torchvision_sets.NOT_DOWNLOADABLE or "download" in known, name


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """No network, and what it was asked for."""
    addresses: list[object] = []

    def no_network(address: object, *_: object, **__: object) -> socket.socket:
        addresses.append(address)
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setitem(sys.modules, "gdown", None)
    return addresses


DOWNLOADABLE = [name for name in SETS if name not in torchvision_sets.NOT_DOWNLOADABLE]


@pytest.mark.parametrize("name", DOWNLOADABLE)
def test_a_set_that_is_not_there_is_asked_for_once_and_leaves_nothing(name: str, tmp_path: Path, asked: list[object]) -> None:
    with pytest.raises(DataError) as raised:
        read(name, tmp_path / "data")
    assert len(asked) == (name != "PCAM")
    assert name in str(raised.value)
    assert str(tmp_path / "data") in str(raised.value)
    assert "set data.root" in str(raised.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", [name for name in DOWNLOADABLE if name != "PCAM"])
def test_archives_have_torchvisions_addresses_and_sums_and_are_put_where_it_looks(
    name: str, tmp_path: Path, asked: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    archives = archives_of(name)
    source = inspect.getsource(inspect.getmodule(getattr(datasets, name.partition("/")[0])))
    for archive in archives:
        assert archive.url.rpartition("/")[0] in source
        assert archive.name in source
        assert archive.md5 is None or archive.md5 in source
        (tmp_path / archive.folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / archive.folder / archive.name).write_bytes(b"no archive")
    sums = {archive.name: archive.md5 for archive in archives}
    monkeypatch.setattr(torchvision_utils, "calculate_md5", lambda path, **_: sums[Path(path).name])
    with suppress(Exception):  # what is in them can't be unpacked
        torchvision_sets._open(name, tmp_path, download=True)
    assert asked == []  # as it does where an archive isn't there


def test_a_download_is_read_and_a_second_run_needs_no_network(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    samples = read("CIFAR10", tmp_path / "data")
    assert samples.classes == tuple(CLASSES)
    assert (len(samples.of("train")), len(samples.of("test"))) == (50, 10)
    assert samples.samples[3].id == "train/000003"
    assert [sample.label for sample in samples.of("test")] == list(range(10))
    expected = np.random.default_rng(5).integers(0, 256, (10, 3072), dtype=np.uint8)[7].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(decode(samples.of("test")[7].image), expected)
    assert capfd.readouterr().err == ""
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        ".CIFAR10.lock",
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
    ]
    server.shutdown()
    server.server_close()
    assert read("CIFAR10", tmp_path / "data").classes == samples.classes


def test_an_archive_put_there_by_hand_is_used(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    root.mkdir()
    archive.rename(root / archive.name)
    assert len(read("CIFAR10", root).samples) == 60
    assert (root / archive.name).is_file()
    assert not (root / archive.name).is_symlink()


def test_a_failed_download_names_host_file_place_and_fix(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError) as raised:
        read("CIFAR10", tmp_path / "data")
    message = str(raised.value)
    assert f"CIFAR10 is not in {tmp_path / 'data'}, and 127.0.0.1 did not give it" in message
    assert "Connection refused" in message
    assert f"Put cifar-10-python.tar.gz into {tmp_path / 'data'}, set data.root" in message


def test_an_archive_with_another_checksum_is_named_and_not_asked_for_again(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / archive.name).write_bytes(archive.read_bytes()[:-9])
    with pytest.raises(DataError) as raised:
        read("CIFAR10", root)
    assert f"{root / archive.name} is damaged, or packed by somebody else: its checksum is not torchvision's" in str(raised.value)
    assert "Put cifar" not in str(raised.value)


def test_a_damaged_download_leaves_nothing_behind(server: ThreadingHTTPServer, archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    root = tmp_path / "data"
    root.mkdir()
    (root / "mine.txt").write_text("stays")
    with pytest.raises(DataError, match="checksum"):
        read("CIFAR10", root)
    assert [path.name for path in root.iterdir()] == ["mine.txt"]
    archive.write_bytes(whole)
    assert len(read("CIFAR10", root).samples) == 60


def test_what_a_killed_download_left_is_not_taken_for_the_set(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    left = tmp_path / "data/.CIFAR10.unfinished/cifar-10-batches-py"
    left.mkdir(parents=True)
    (left / "data_batch_1").write_bytes(b"half")
    assert len(read("CIFAR10", tmp_path / "data").samples) == 60
    assert not left.exists()


def test_a_host_that_never_answers_is_given_up(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "SILENT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        here = Archive("", f"http://127.0.0.1:{silent.getsockname()[1]}/{archive.name}", md5(archive))
        monkeypatch.setattr(torchvision_sets, "archives_of", lambda name: [here])
        with pytest.raises(DataError, match=r"127\.0\.0\.1 did not give it .*: timed out"):
            read("CIFAR10", tmp_path / "data")


def test_unknown_names_and_missing_variants_are_recipe_faults(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        read("CIFAR11", tmp_path)
    assert raised.value.faults[0].key == "data.source.torchvision"
    assert "Did you mean 'CIFAR10'?" in str(raised.value)
    with pytest.raises(RecipeError, match="EMNIST/letters"):
        read("EMNIST", tmp_path)


def test_classes_without_images_and_names_that_come_twice(tmp_path: Path) -> None:
    class Made:
        classes = ("N/A", ("crane", "bird"), "crane", "crane")
        targets = (3, 1, 2, 2)

        def __len__(self) -> int:
            return 4

    samples = torchvision_sets._samples({"": Made()})
    assert samples.classes == ("crane, bird", "crane (2)", "crane (3)")
    assert [sample.label for sample in samples.samples] == [2, 0, 1, 1]
