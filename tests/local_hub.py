"""A server on loopback with what `recipes/cifar_resnet.yaml` asks the world for, in the world's own formats.

CIFAR-10: an archive of pickled batches as Krizhevsky published them. The hub: the headers and paths that huggingface_hub's client reads.
"""

import base64
import hashlib
import io
import json
import pickle
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "/timm/resnet18.a1_in1k/resolve/main/model.safetensors"
ARCHIVE = "/cifar-10-python.tar.gz"


@dataclass
class LocalHub:
    """files: path -> content. requests: every path asked for, in order. status: what is answered instead of 200."""

    files: dict[str, bytes]
    address: str = ""
    requests: list[str] = field(default_factory=list)
    status: int = 200


@contextmanager
def serve(files: dict[str, bytes], status: int = 200) -> Iterator[LocalHub]:
    hub = LocalHub(files, status=status)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.wfile.write(self.answer())

        def do_POST(self) -> None:
            """What huggingface_hub sends to make a repository and put files into it; they can be fetched afterwards."""
            hub.requests.append(self.path)
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            answer = json.dumps(self.taken(sent.splitlines())).encode()
            self.send_response(hub.status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def taken(self, lines: list[str]) -> dict[str, object]:
            repository = "/".join(self.path.split("/")[3:5])
            if self.path == "/api/repos/create":
                return {"url": f"{hub.address}/me/it", "name": "me/it"}
            if "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(lines[0])["files"]]
                return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            if "/commit/" in self.path:
                for entry in (json.loads(line) for line in lines):
                    if entry["key"] == "file":
                        place = f"/{repository}/resolve/main/{entry['value']['path']}"
                        hub.files[place] = base64.b64decode(entry["value"]["content"])
                return {"commitUrl": f"{hub.address}/{repository}/commit/{COMMIT}", "commitOid": COMMIT}
            return {"warnings": [], "errors": []}  # of /api/validate-yaml

        def answer(self) -> bytes:
            hub.requests.append(self.path)
            content = hub.files.get(self.path)
            self.send_response(hub.status if hub.status != 200 else 200 if content is not None else 404)
            if content is not None and hub.status == 200:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            return content or b"" if hub.status == 200 else b""

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing on the console."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def resnet18_weights() -> bytes:
    """A whole timm resnet18 with random numbers, as its hub repository has it."""
    torch.manual_seed(0)
    return save(timm.create_model("resnet18").state_dict())


@dataclass(frozen=True)
class Cifar10:
    """archive: the .tar.gz. md5: that of each file in it, and of the archive, which torchvision compares."""

    archive: bytes
    archive_md5: str
    md5: dict[str, str]


def small_cifar10(images_a_batch: int = 40) -> Cifar10:
    """Six batches of noisy images whose colour gives their class away."""
    draws = np.random.default_rng(0)
    colours = draws.integers(0, 256, (10, 3))
    files: dict[str, bytes] = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        labels = [i % 10 for i in range(images_a_batch)]
        noisy = colours[labels][:, :, None, None] + draws.normal(0, 30, (images_a_batch, 3, 32, 32))
        batch = {
            "batch_label": name,
            "labels": labels,
            "data": noisy.clip(0, 255).astype(np.uint8).reshape(images_a_batch, -1),
            "filenames": [f"{name}_{i}.png" for i in range(images_a_batch)],
        }
        files[name] = pickle.dumps(batch, protocol=2)
    files["batches.meta"] = pickle.dumps({"label_names": CLASSES, "num_cases_per_batch": images_a_batch, "num_vis": 3072}, protocol=2)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    archive = packed.getvalue()
    return Cifar10(archive, hashlib.md5(archive).hexdigest(), {name: hashlib.md5(content).hexdigest() for name, content in files.items()})


def point_torchvision_here(folder: Path, address: str, cifar10: Cifar10) -> Path:
    """Writes a start-up file that changes CIFAR10's address and check sums, and nothing else; returns the folder for PYTHONPATH."""
    folder.mkdir(exist_ok=True)
    train = [[name, md5] for name, md5 in cifar10.md5.items() if name.startswith("data_batch")]
    text = f"""
import importlib.abc, importlib.util, sys

def change_sums(module):
    module.CIFAR10.tgz_md5 = {cifar10.archive_md5!r}
    module.CIFAR10.train_list = {train!r}
    module.CIFAR10.test_list = [["test_batch", {cifar10.md5["test_batch"]!r}]]
    module.CIFAR10.meta = {{"filename": "batches.meta", "key": "label_names", "md5": {cifar10.md5["batches.meta"]!r}}}

def change_address(module):
    module.archives_of = lambda name: [module.Archive("", {address + ARCHIVE!r}, {cifar10.archive_md5!r})]

CHANGES = {{"torchvision.datasets.cifar": change_sums, "tlkit.data.sources.torchvision_sets": change_address}}

class AfterImport(importlib.abc.MetaPathFinder):
    # Waits for the modules themselves, so that nothing is imported that the command wouldn't import.
    def find_spec(self, name, path, target=None):
        change = CHANGES.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            change(module)
        spec.loader.exec_module = exec_module
        return spec

if "torchvision.datasets.cifar" in sys.modules:
    CHANGES.pop("torchvision.datasets.cifar")(sys.modules["torchvision.datasets.cifar"])
sys.meta_path.insert(0, AfterImport())
"""
    (folder / "sitecustomize.py").write_text(text)
    return folder
