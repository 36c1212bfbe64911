import hashlib
import inspect
import pickle
import socket
import tarfile
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from torchvision import datasets

from tlkit.data.decode import decode
from tlkit.data.samples import Samples
from tlkit.data.sources import torchvision_sets
from tlkit.data.sources.read import read_source
from tlkit.data.sources.torchvision_sets import SETS
from tlkit.errors import DataError, RecipeError
from tlkit.recipe.fields.source import TorchvisionSource

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def read(name: str, root: Path) -> Samples:
    return read_source(TorchvisionSource(torchvision=name), root)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive in CIFAR-10's own format, with torchvision's checksums set to it: 10 pictures a file."""
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
    monkeypatch.setattr(cifar, "tgz_md5", md5(path))
    monkeypatch.setattr(cifar, "train_list", [[name, md5(folder / name)] for name in names[:5]])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", md5(folder / "test_batch")]])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": md5(folder / "batches.meta")})
    return path


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """torchvision 0.29 asks for redirects with a GET that it breaks off."""


@pytest.fixture
def server(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = QuietServer(("127.0.0.1", 0), partial(Quiet, directory=str(archive.parent)))
    Thread(target=served.serve_forever, daemon=True).start()
    monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{served.server_port}/{archive.name}")
    yield served
    served.shutdown()
    served.server_close()


def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address where nothing answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{free.getsockname()[1]}/cifar-10-python.tar.gz")


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


@pytest.mark.parametrize("name", [name for name in SETS if name not in torchvision_sets.NOT_DOWNLOADABLE])
def test_a_set_that_is_not_there_fails_fast_and_leaves_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> socket.socket:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setitem(__import__("sys").modules, "gdown", None)
    began = time.monotonic()
    with pytest.raises(DataError) as raised:
        read(name, tmp_path / "data")
    assert time.monotonic() - began < 5
    assert name in str(raised.value)
    assert str(tmp_path / "data") in str(raised.value)
    assert "set data.root" in str(raised.value)
    assert not (tmp_path / "data").exists()


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
    nobody(monkeypatch)
    assert read("CIFAR10", tmp_path / "data").classes == samples.classes


def test_an_archive_put_there_by_hand_is_used(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody(monkeypatch)
    root = tmp_path / "data"
    root.mkdir()
    archive.rename(root / archive.name)
    assert len(read("CIFAR10", root).samples) == 60
    assert (root / archive.name).is_file()
    assert not (root / archive.name).is_symlink()


def test_a_failed_download_names_host_file_place_and_fix(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody(monkeypatch)
    with pytest.raises(DataError) as raised:
        read("CIFAR10", tmp_path / "data")
    message = str(raised.value)
    assert f"CIFAR10 is not in {tmp_path / 'data'}, and 127.0.0.1 did not give it" in message
    assert "Connection refused" in message
    assert f"Put cifar-10-python.tar.gz into {tmp_path / 'data'}, set data.root" in message


def test_an_archive_with_another_checksum_is_named_and_not_asked_for_again(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody(monkeypatch)
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


def test_a_host_that_never_answers_is_given_up_soon(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://silent.invalid/cifar-10-python.tar.gz")
    monkeypatch.setattr(torchvision_sets, "_try_to_connect", lambda target, outcome: time.sleep(20))
    began = time.monotonic()
    with pytest.raises(DataError, match="no answer within 4 seconds"):
        read("CIFAR10", tmp_path / "data")
    assert time.monotonic() - began < 5


def test_urllib_and_sockets_are_left_as_they_were(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    import urllib.request

    before = urllib.request._opener, socket.getdefaulttimeout(), torchvision_sets.torchvision_utils.tqdm
    read("CIFAR10", tmp_path / "data")
    assert (urllib.request._opener, socket.getdefaulttimeout(), torchvision_sets.torchvision_utils.tqdm) == before


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
