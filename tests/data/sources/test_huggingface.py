import io
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from threading import Thread

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tlkit.data.decode import decode
from tlkit.data.samples import Samples
from tlkit.data.sources.read import read_source
from tlkit.data.splits.holdout import hash_images
from tlkit.errors import DataError
from tlkit.recipe.fields.source import HuggingFaceSource
from tlkit.recipe.schema import Task

NAMES = ["dog", "cat", "eel"]
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, whatever the machine has, and a cache of the test's own."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def rows(part: slice = slice(0, 12), **more: list[object]) -> datasets.Dataset:
    images = [Image.fromarray(pixels) for pixels in PIXELS[part]]
    labels = [i % 3 for i in range(len(images))]
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES), **{name: datasets.Value("int64") for name in more}}
    return datasets.Dataset.from_dict({"image": images, "label": labels, **more}, features=datasets.Features(features))


def read(name: Path | str, root: Path = Path("unused"), task: Task = "multiclass", **keys: str) -> Samples:
    return read_source(HuggingFaceSource(huggingface=str(name), **keys), root, task)


def fault(name: Path | str, root: Path = Path("unused"), task: Task = "multiclass", **keys: str) -> str:
    with pytest.raises(DataError) as raised:
        read(name, root, task, **keys)
    assert "\n  " in str(raised.value)
    return str(raised.value)


def pixels(samples: Samples) -> np.ndarray:
    return np.stack([decode(sample.image) for sample in samples.samples])


def test_a_folder_by_save_to_disk_is_read_with_its_splits_and_class_names(tmp_path: Path) -> None:
    parts = {"train": rows(slice(0, 6)), "validation": rows(slice(6, 9)), "test": rows(slice(9, 12))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    samples = read(tmp_path / "set")
    assert samples.classes == ("dog", "cat", "eel")  # in the order of the data set's own numbers
    assert [s.id for s in samples.samples][4:8] == ["train/000004", "train/000005", "val/000000", "val/000001"]
    assert [s.label for s in samples.samples] == [0, 1, 2] * 4
    assert np.array_equal(pixels(samples), PIXELS)


def test_a_set_without_splits_is_still_to_be_split(tmp_path: Path) -> None:
    rows().save_to_disk(tmp_path / "set")
    samples = read(tmp_path / "set")
    assert {s.split for s in samples.samples} == {""}
    assert samples.samples[3].id == "all/000003"


def test_images_keep_the_bytes_of_their_files_and_travel_without_them(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(content, "JPEG")
    (tmp_path / "a.jpg").write_bytes(content.getvalue())
    cells = [{"bytes": content.getvalue(), "path": None}, {"bytes": None, "path": str(tmp_path / "a.jpg")}, {"bytes": b"no", "path": None}]
    made = datasets.Dataset.from_dict({"image": cells, "label": [0, 1, 1]}).cast_column("image", datasets.Image(decode=False))
    made.save_to_disk(tmp_path / "set")
    samples = read(tmp_path / "set").samples
    assert [np.array_equal(decode(s.image), decode(tmp_path / "a.jpg")) for s in samples[:2]] == [True, True]
    assert len(set(hash_images(Samples(("a", "b"), samples[:2])).values())) == 1
    with pytest.raises(DataError, match=r"image\[2\]: this is not an image"):
        decode(samples[2].image)
    rows().save_to_disk(tmp_path / "other")
    sent = pickle.dumps(read(tmp_path / "other").samples)
    assert PIXELS[0].tobytes()[:20] not in sent
    assert np.array_equal(decode(pickle.loads(sent)[5].image), PIXELS[5])


def test_parquet_files_in_a_folder_are_read_and_converted_in_the_data_folder(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    rows(slice(0, 6)).to_parquet(tmp_path / "set/train-00000-of-00001.parquet")
    rows(slice(6, 12)).to_parquet(tmp_path / "set/test-00000-of-00001.parquet")
    before = {path: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    samples = read(tmp_path / "set", tmp_path / "data")
    assert (len(samples.of("train")), len(samples.of("test"))) == (6, 6)
    assert np.array_equal(pixels(samples), PIXELS)
    assert any((tmp_path / "data/huggingface").rglob("*.arrow"))
    assert {path: path.read_bytes() for path in (tmp_path / "set").iterdir()} == before


def test_tables_that_say_bytes_and_path_hold_images(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(content, "PNG")
    (tmp_path / "set").mkdir()
    cells = [{"bytes": content.getvalue(), "path": f"{i}.png"} for i in range(4)]
    pq.write_table(pa.table({"img": cells, "label": ["x", "y", "x", "y"]}), tmp_path / "set/data.parquet")
    samples = read(tmp_path / "set", tmp_path / "data")
    assert samples.classes == ("x", "y")
    assert np.array_equal(decode(samples.samples[2].image), PIXELS[0])


def test_columns_are_chosen_by_keys_where_there_are_several(tmp_path: Path) -> None:
    second = rows().rename_columns({"image": "second", "label": "third"}).select_columns(["second"])
    datasets.concatenate_datasets([rows(coarse=[i % 2 for i in range(12)]), second], axis=1).save_to_disk(tmp_path / "set")
    assert "has several columns of images: image, second." in fault(tmp_path / "set")
    assert "has no column 'imag'" in (message := fault(tmp_path / "set", image="imag"))
    assert "Did you mean 'image'?" in message
    assert read(tmp_path / "set", image="second").classes == ("dog", "cat", "eel")
    assert read(tmp_path / "set", image="image", label="coarse").classes == ("0", "1")
    assert "data.source.image: the column label holds no images" in fault(tmp_path / "set", image="label")


def test_lists_of_named_labels_are_label_sets(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(p) for p in PIXELS[:3]], "labels": [[0, 2], [], [2]]},
        features=datasets.Features({"image": datasets.Image(), "labels": datasets.List(datasets.ClassLabel(names=NAMES))}),
    )
    made.save_to_disk(tmp_path / "set")
    samples = read(tmp_path / "set", task="multilabel")
    assert samples.classes == ("dog", "eel")
    assert [s.labels for s in samples.samples] == [(0, 1), (), (1,)]
    assert "has lists of labels.\n  Set task to multilabel" in fault(tmp_path / "set")


def test_a_test_split_whose_labels_are_hidden_is_left_out_and_reported(tmp_path: Path) -> None:
    hidden = rows(slice(6, 12)).remove_columns("label").add_column("label", [-1] * 6)
    features = rows().features
    datasets.DatasetDict({"train": rows(slice(0, 6)), "test": hidden.cast(features)}).save_to_disk(tmp_path / "set")
    samples = read(tmp_path / "set")
    assert {s.split for s in samples.samples} == {"train"}
    assert "the labels of the test split are hidden (-1), so it is not read" in samples.warnings[0]


def test_rows_without_labels_or_images_are_reported(tmp_path: Path) -> None:
    plain = datasets.Dataset.from_dict({"image": [None] * 4, "label": [0, 1, None, None]})
    plain.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    assert "2 rows have no label in the column label" in fault(tmp_path / "set")
    plain.cast_column("image", datasets.Image()).select([0, 1]).save_to_disk(tmp_path / "two")
    with pytest.raises(DataError, match=r"image\[0\]: the row has no image"):
        decode(read(tmp_path / "two").samples[0].image)
    datasets.Dataset.from_dict({"text": ["a"], "stars": [5]}).save_to_disk(tmp_path / "text")
    assert "no column seems to hold the images; it has text, stars." in fault(tmp_path / "text")


def test_splits_without_a_train_are_reported(tmp_path: Path) -> None:
    datasets.DatasetDict({"a": rows(), "b": rows()}).save_to_disk(tmp_path / "set")
    assert "has the splits a, b and no train" in fault(tmp_path / "set")
    datasets.DatasetDict({"full": rows()}).save_to_disk(tmp_path / "one")
    assert {s.split for s in read(tmp_path / "one").samples} == {""}


def test_folders_that_hold_no_set_are_reported(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "can't be read" in fault(tmp_path / "empty", tmp_path / "data")
    assert "does not exist.\n  Did you mean 'empty'?" in fault(tmp_path / "emty")
    rows().save_to_disk(tmp_path / "set")
    next((tmp_path / "set").glob("*.arrow")).write_bytes(b"damaged")
    assert "can't be read" in fault(tmp_path / "set")


def test_a_loading_script_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    fault(tmp_path / "set", tmp_path / "data")
    assert not (tmp_path / "ran").exists()


def test_a_set_of_the_hub_comes_from_the_cache_where_there_is_no_network(tmp_path: Path) -> None:
    """The cache is laid out as the hub's own client leaves it, and read in a process that may not use the network."""
    cache = tmp_path / "cache/someone___clothes/default/0.0.0/0123456789abcdef0123456789abcdef01234567"
    (tmp_path / "set").mkdir()
    rows().to_parquet(tmp_path / "set/train.parquet")
    datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "made"))
    made = next(path.parent for path in (tmp_path / "made").rglob("dataset_info.json"))
    cache.parent.mkdir(parents=True)
    made.rename(cache)
    for file in cache.glob("*.arrow"):
        file.rename(cache / file.name.replace("parquet-", "clothes-").replace("set-", "clothes-"))
    code = (
        "from pathlib import Path; from tlkit.data.sources.read import read_source\n"
        "from tlkit.recipe.fields.source import HuggingFaceSource\n"
        "print(len(read_source(HuggingFaceSource(huggingface='someone/clothes'), Path('data')).samples))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.stdout.split() == ["12"], done.stderr


def test_a_set_that_is_not_in_the_cache_is_reported_without_asking_the_network(tmp_path: Path) -> None:
    assert "someone/nothing can't be read" in fault("someone/nothing")


def test_a_hub_that_does_not_answer_is_asked_once_and_the_cache_looked_into(tmp_path: Path) -> None:
    """Whoever connects is sent away without an answer."""
    asked = []

    def send_away(hub: socket.socket) -> None:
        while True:
            connection, _ = hub.accept()
            asked.append(connection.recv(4096))
            connection.close()

    code = (
        "from pathlib import Path; from tlkit.data.sources.read import read_source\n"
        "import datasets; from tlkit.recipe.fields.source import HuggingFaceSource\n"
        "try: read_source(HuggingFaceSource(huggingface='someone/nothing'), Path('data'))\n"
        "except Exception as error: print(type(error).__name__, str(error))"
    )
    with socket.create_server(("127.0.0.1", 0)) as hub:
        Thread(target=send_away, args=(hub,), daemon=True).start()
        address = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        environment = {**os.environ, **address, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.stdout.startswith("MissingDataError data.source.huggingface: someone/nothing can't be read"), done.stderr
    assert "Check the name on the hub and the network" in done.stdout
    # huggingface_hub 2.4 may also ask for this list, from which it makes its User-Agent.
    assert len([request for request in asked if b"/api/agent-harnesses" not in request]) == 1
