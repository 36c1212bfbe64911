"""`tlkit serve` as its clients see it: a real server in a Python without torch, asked over the loopback."""

import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.processes import HANGS_S
from tlkit.cli import main
from tlkit.files import sha256_of
from tlkit.models.backbones import create_backbone
from tlkit.models.classifier import Classifier
from tlkit.models.model_folder import ModelCard, write_model_folder
from tlkit.recipe.fields.model import Head

for package in ("onnxruntime", "fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(package)

CLASSES = ("cat", "<b>dog</b>", "owl")
PREPROCESSING = {"image_size": 32, "resize": "crop", "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.0] * 3, "std": [0.3] * 3}
WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "timm", "lightning"):
    sys.modules[name] = None
from tlkit.cli import main
sys.exit(main(sys.argv[1:]))
"""
PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, its artifact `export/onnx`, and 40 images in `photos`."""
    folder = tmp_path_factory.mktemp("serve")
    torch.manual_seed(0)
    classifier = Classifier(create_backbone("test_resnet", 32), Head(), 3, 32)
    card = ModelCard("test_resnet", Head(), CLASSES, PREPROCESSING, {"name": "pets & co"}, {}, {})
    write_model_folder(folder / "model", classifier, card)
    draws = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for i in range(40):
        Image.fromarray(draws.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(folder / f"photos/{i:02d}.png")
    assert main(["export", str(folder / "model"), "--out", str(folder / "export"), "--images", str(folder / "photos")]) == 0
    return folder


class Client:
    """port of a server on the loopback; pid: its process."""

    def __init__(self, port: int, process: subprocess.Popen[str]) -> None:
        self.port, self.process = port, process

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def error(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
        status, _, said = self.ask(method, path, body, headers)
        return status, json.loads(said)["error"]

    def predictions(self, body: bytes, headers: dict[str, str], query: str = "") -> list[dict[str, Any]]:
        status, _, said = self.ask("POST", f"/predict{query}", body, headers)
        assert status == 200, said
        found: list[dict[str, Any]] = json.loads(said)["predictions"]
        return found

    def memory(self) -> int:
        """Bytes of the process that lie in memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def serving(workplace: Path, *words: str, token: str | None = None, stop: int = signal.SIGTERM) -> Iterator[Client]:
    """A server; when it has stopped, its exit code is 0 and its log is JSON."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), **({"TLKIT_TOKEN": token} if token else {})}
    command = [sys.executable, "-c", WITHOUT_TORCH, "serve", str(workplace / "export/onnx"), "--port", "0", *words]
    log = (workplace / "log.txt").open("w")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, preexec_fn=partial(signal.alarm, HANGS_S)
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://[^:]+:(\d+)", line)
        assert found, (line, (workplace / "log.txt").read_text())
        yield Client(int(found[1]), process)
        process.send_signal(stop)
        assert process.wait() == 0
    finally:
        process.kill()
        log.close()


@pytest.fixture(scope="module")
def client(workplace: Path) -> Iterator[Client]:
    with serving(workplace, "--max-upload", "2", "--max-files", "4", "--max-pixels", "5") as client:
        yield client


def images(workplace: Path) -> list[Path]:
    return sorted((workplace / "photos").glob("*.png"))


def form(*files: bytes) -> tuple[bytes, dict[str, str]]:
    parts = [b'--x\r\nContent-Disposition: form-data; name="files"; filename="secret.png"\r\n\r\n' + file + b"\r\n" for file in files]
    return b"".join(parts) + b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


def test_answers_are_those_of_predict_however_many_ask_at_once(client: Client, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(workplace / "model"), *map(str, images(workplace)), "--format", "json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda file: client.predictions(file.read_bytes(), PNG)[0], images(workplace) * 3))
    for answer, row in zip(answers, expected * 3, strict=True):
        assert answer["class"] == row["class"]
        assert answer["probability"] == pytest.approx(row["probability"], abs=1e-5)
        assert [found["class"] for found in answer["top"]] == [found["class"] for found in row["top"]]


def test_a_form_may_hold_several_files_and_a_query_what_to_say(client: Client, workplace: Path) -> None:
    files = [file.read_bytes() for file in images(workplace)[:3]]
    alone = [client.predictions(file, {}, "?top_k=1")[0] for file in files]
    together = client.predictions(*form(*files), "?top_k=1")
    assert [answer["class"] for answer in together] == [answer["class"] for answer in alone]
    assert all(len(answer["top"]) == 1 for answer in together)
    (unsure,) = client.predictions(files[0], PNG, "?threshold=1")
    assert unsure["class"] is None
    assert unsure["abstains"] is True


def test_one_bad_file_of_several_is_reported_beside_the_others_answers(client: Client, workplace: Path) -> None:
    status, _, said = client.ask("POST", "/predict", *form(images(workplace)[0].read_bytes(), b"no image"))
    answer = json.loads(said)
    assert status == 422
    assert answer["predictions"][0]["class"] in CLASSES
    assert "image 2: this is not an image" in answer["predictions"][1]["error"] == answer["error"]


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in a few hundred bytes, whose data ends at once."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    head = pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")


def image_bytes(size: tuple[int, int] = (40, 56), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind)
    return file.getvalue()


BAD = {
    "empty": (b"", PNG, 400, "no bytes"),
    "text": (b"hello", PNG, 422, "not an image"),
    "cut off": (image_bytes()[:60], PNG, 422, "damaged or cut off"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", PNG, 422, "not an image"),
    "json": (b"{}", {"Content-Type": "application/json"}, 415, "application/json"),
    "curl's own type": (b"x", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "With curl: -H"),
    "bomb": (bomb(), PNG, 413, "more than 179 million pixels; the limit is 5"),
    "pixels": (image_bytes((3000, 2000)), PNG, 413, "6 million pixels"),
    "large": (bytes(3_000_000), PNG, 413, "larger than 2 MB"),
    "no boundary": (b"x", {"Content-Type": "multipart/form-data"}, 400, "boundary"),
    "broken form": (b"--y\r\nnonsense", {"Content-Type": "multipart/form-data; boundary=x"}, 400, "form can't be read"),
    "form without files": (b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}, 400, "no file"),
    "five files": (*form(*[image_bytes()] * 5), 422, "more than 4 files"),
    "empty file": (*form(b"", image_bytes()), 422, "image 1: the file is empty"),
    "elongated": (image_bytes((2_000_000, 1), "TIFF")[:2_000_000], PNG, 422, "The image"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_bodies_are_refused_with_what_came_and_what_was_expected(client: Client, kind: str) -> None:
    body, headers, status, message = BAD[kind]
    found = client.error("POST", "/predict", body, headers)
    assert found[0] == status, found
    assert message in found[1]


def test_bad_methods_paths_and_queries_are_refused_in_json(client: Client) -> None:
    assert client.error("GET", "/predict") == (405, "GET of this path: Method Not Allowed. Expected POST.")
    assert client.error("POST", "/predcit")[0] == 404
    assert client.error("POST", "/predict?top_k=0", image_bytes(), PNG)[0] == 422
    assert client.error("POST", "/predict?threshold=nan", image_bytes(), PNG)[0] == 422
    message = "'treshold' is no parameter of /predict. Expected one of: top_k, threshold. Did you mean 'threshold'?"
    assert client.error("POST", "/predict?treshold=0.9", image_bytes(), PNG) == (422, message)


def test_what_is_no_http_is_refused_in_json(client: Client) -> None:
    with socket.create_connection(("127.0.0.1", client.port)) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert b"400 Bad Request" in (said := connection.recv(4096))
        assert b'{"error"' in said


def test_an_endless_upload_is_cut_off_at_the_limit(client: Client) -> None:
    """In pieces without a length: the answer is there after 2 MB, though the client would go on."""
    with socket.create_connection(("127.0.0.1", client.port)) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        for _ in range(40):
            connection.sendall(piece)
        assert b"413" in connection.recv(4096)


def test_clients_that_never_finish_are_dropped(workplace: Path) -> None:
    begun = [b"", b"POST /predict HT", b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nabc"]
    with serving(workplace, "--read-timeout", "0.2") as client, ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", client.port))) for _ in begun]
        for connection, sent in zip(connections, begun, strict=True):
            connection.sendall(sent)
        said = [read_to_its_end(connection) for connection in connections]
    assert b"408" in said[2]
    assert b"had not arrived after 0.2 s" in said[2]


def read_to_its_end(connection: socket.socket) -> bytes:
    """What the server sends before it ends the connection, which it does or the test hangs."""
    said = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(4096):
            said += piece
    return said


def test_more_clients_than_may_wait_are_reported_to_come_again(workplace: Path) -> None:
    """Thirty images at a time where four may wait: every answer is right or a 503 that says when to come again."""
    body = images(workplace)[0].read_bytes()
    with serving(workplace, "--max-waiting", "4", "--max-batch", "2") as client:
        (right,) = client.predictions(body, PNG)
        with ThreadPoolExecutor(30) as pool:
            found = list(pool.map(lambda _: client.ask("POST", "/predict", body, PNG), range(300)))
        for status, headers, said in found:
            assert status in (200, 503), said
            if status == 503:
                assert headers["retry-after"] == "1"
            else:
                assert json.loads(said)["predictions"][0]["class"] == right["class"]
        assert {status for status, _, _ in found} == {200, 503}
        assert client.predictions(body, PNG)[0]["class"] == right["class"]


def test_memory_stays_flat_under_malformed_requests(client: Client) -> None:
    bodies = [(body, headers) for body, headers, *_ in BAD.values()]

    def all_of(number: int) -> set[int]:
        with ThreadPoolExecutor(8) as pool:
            return {status for status, _, _ in pool.map(lambda i: client.ask("POST", "/predict", *bodies[i % len(bodies)]), range(number))}

    all_of(150)
    before = client.memory()
    assert {status // 100 for status in all_of(600)} == {4}
    assert client.memory() < before + 40_000_000
    assert client.ask("GET", "/ready")[0] == 200


def test_a_token_is_asked_for(workplace: Path) -> None:
    body = images(workplace)[0].read_bytes()
    with serving(workplace, token="geheim") as client:
        for headers in ({}, {"Authorization": "Bearer falsch"}, {"Authorization": "Basic geheim"}, {"Authorization": "Bearer gehéim"}):
            status, answer, said = client.ask("POST", "/predict", body, {**PNG, **headers})
            assert (status, answer["www-authenticate"]) == (401, "Bearer")
            assert b"Authorization: Bearer TOKEN" in said
        assert client.error("GET", "/metrics")[0] == 401
        assert client.ask("GET", "/health")[0] == 200
        assert client.predictions(body, {**PNG, "Authorization": "Bearer geheim"})
    assert "geheim" not in (workplace / "log.txt").read_text()


def test_an_empty_token_is_no_token(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TLKIT_TOKEN", " ")
    assert main(["serve", str(workplace / "export/onnx")]) == 2
    assert "TLKIT_TOKEN is empty" in capsys.readouterr().err


@pytest.mark.parametrize("token", ["gehéim", "秘密", "two\nlines"])
def test_a_token_that_clients_cannot_send_is_refused_at_the_start(
    token: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clients encode such a header each in its own way or not at all, so that everybody was locked out."""
    monkeypatch.setenv("TLKIT_TOKEN", token)
    with socket.create_server(("127.0.0.1", 0)) as taken:  # where it would be accepted, the port isn't free
        assert main(["serve", str(workplace / "export/onnx"), "--port", str(taken.getsockname()[1])]) == 2
    said = capsys.readouterr().err
    assert "TLKIT_TOKEN has a character that a header can't carry" in said
    assert token not in said


def test_what_was_begun_is_finished_after_the_signal(workplace: Path) -> None:
    """The body's second half is sent after SIGTERM; new connections are refused by then."""
    body = images(workplace)[0].read_bytes()
    with serving(workplace) as client, ExitStack() as stack:
        idle, connection = (stack.enter_context(socket.create_connection(("127.0.0.1", client.port))) for _ in range(2))
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert b"100 Continue" in connection.recv(4096)  # the request is being answered
        connection.sendall(body[:100])
        client.process.send_signal(signal.SIGTERM)
        assert read_to_its_end(idle) == b""  # ended after the server has stopped to listen
        with pytest.raises(OSError):  # noqa: PT011  # refused or reset
            client.ask("GET", "/health")
        connection.sendall(body[100:])
        said = read_to_its_end(connection)
        assert b"200 OK" in said
        assert b'"class"' in said


def test_the_log_is_json_and_holds_neither_names_nor_other_paths(workplace: Path) -> None:
    with serving(workplace, stop=signal.SIGINT) as client:
        client.predictions(*form(images(workplace)[0].read_bytes()))
        client.ask("GET", "/patients/jane-doe")
    lines = [json.loads(line) for line in (workplace / "log.txt").read_text().splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert [(line["path"], line["status"]) for line in requests] == [("/predict", 200), ("other", 404)]
    assert requests[0]["pictures"] == 1
    assert not re.search("secret|jane", (workplace / "log.txt").read_text())


def test_metrics_count_requests_images_and_batches(workplace: Path) -> None:
    body = images(workplace)[0].read_bytes()
    with serving(workplace) as client:
        client.predictions(*form(body, body, body))
        client.predictions(body, PNG)
        client.error("POST", "/predict", b"no image", PNG)
        status, headers, said = client.ask("GET", "/metrics")
    found = dict(line.rsplit(" ", 1) for line in said.decode().splitlines() if not line.startswith("#"))
    assert (status, headers["content-type"][:10]) == (200, "text/plain")
    assert float(found['tlkit_requests_total{path="/predict",status="200"}']) == 2
    assert float(found['tlkit_requests_total{path="/predict",status="422"}']) == 1
    assert float(found['tlkit_request_seconds_count{path="/predict"}']) == 3
    assert float(found["tlkit_pictures_total"]) == 4
    assert float(found["tlkit_batch_pictures_sum"]) == 4
    assert float(found["tlkit_waiting_pictures"]) == float(found["tlkit_held_bytes"]) == 0


def test_the_page_needs_nothing_from_elsewhere_and_shows_names_as_they_are(client: Client) -> None:
    status, headers, said = client.ask("GET", "/")
    page = said.decode()
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert not re.search(r"""(src|href)=["'](?!data:)|https?://""", page)
    assert "&lt;b&gt;dog&lt;/b&gt;" in page
    assert "pets &amp; co" in page


def test_schemathesis_finds_nothing_that_is_not_as_described(workplace: Path, tmp_path: Path) -> None:
    """All its checks in all its phases; binary data that is to be valid are images, see schemathesis_images.py."""
    variables = {"SCHEMATHESIS_HOOKS": "tests.deploy.serve.schemathesis_images", "PYTHONPATH": str(Path(__file__).parents[3])}
    options = ["--checks", "all", "--seed", "0", "--max-examples", "10", "--generation-database", ":memory:", "--no-color"]
    with serving(workplace, "--max-upload", "2", "--max-files", "4", token="geheim") as client:
        words = ["run", f"http://127.0.0.1:{client.port}/openapi.json", *options, "--header", "Authorization: Bearer geheim"]
        command = [sys.executable, "-m", "schemathesis.cli", *words]
        found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables}, cwd=tmp_path)
    print(found.stdout)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "4 selected / 4 total" in found.stdout
    assert "No issues found" in found.stdout


def test_the_description_of_the_service_names_its_ways_to_ask_and_its_limits(client: Client) -> None:
    description = json.loads(client.ask("GET", "/openapi.json")[2])
    body = description["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "image/*", "application/octet-stream"}
    files = body["multipart/form-data"]["schema"]["properties"]["files"]
    assert (files["minItems"], files["maxItems"]) == (1, 4)
    assert "components" not in description  # no token is asked for


def with_first_weights(artifact: Path, to: Path, weights: float) -> Path:
    """Copy an artifact with other weights in its first convolution, and the sha256 of those."""
    import onnx

    shutil.copytree(artifact, to)
    network = onnx.load(to / "model.onnx")
    first = next(tensor for tensor in network.graph.initializer if len(tensor.dims) == 4)
    first.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(first.dims), weights, np.float32), first.name))
    onnx.save(network, to / "model.onnx")
    facts = json.loads((to / "artifact.json").read_text())
    facts["sha256"]["model.onnx"] = sha256_of(to / "model.onnx")
    (to / "artifact.json").write_text(json.dumps(facts))
    return to


def test_a_model_with_a_nan_in_its_weights_is_not_served(workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(with_first_weights(workplace / "export/onnx", tmp_path / "onnx", float("nan")))]) == 2
    said = capsys.readouterr()
    assert "answers NaN for a black image, so it isn't served" in said.err
    assert "Serving" not in said.out


def test_nobody_is_answered_with_nan(workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights of 3e38 are finite, and times zero, which black is here, they are nothing; other images overflow."""
    artifact = with_first_weights(workplace / "export/onnx", tmp_path / "export/onnx", 3e38)
    photo, black = images(workplace)[0], image_bytes()
    with serving(tmp_path) as client:
        assert client.predictions(black, PNG)
        assert client.error("POST", "/predict", photo.read_bytes(), PNG) == (500, "The image: the model answers NaN for this image.")
        status, _, said = client.ask("POST", "/predict", *form(black, photo.read_bytes()))
        first, second = json.loads(said)["predictions"]
        assert (status, first["class"] in CLASSES, second) == (500, True, {"error": "image 2: the model answers NaN for this image."})
        figures = client.ask("GET", "/metrics")[2].decode()
    assert "tlkit_pictures_total 2.0" in figures
    assert main(["predict", str(artifact), str(photo), "--format", "jsonl"]) == 2
    assert json.loads(capsys.readouterr().out) == {"path": str(photo), "error": f"{photo}: the model answers NaN for this image."}


def test_what_cannot_be_served_is_reported(workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(workplace / "model")]) == 2
    assert "tlkit export RUN" in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "model.pkl")]) == 2
    assert "pickle" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(workplace / "export/onnx"), "--port", str(taken.getsockname()[1])]) == 2
    assert "can't be listened on" in capsys.readouterr().err


def test_five_hundred_clients_at_once_are_answered_or_reported_to_come_again(client: Client, workplace: Path) -> None:
    body = images(workplace)[0].read_bytes()
    found: list[int] = []

    def one() -> None:
        found.append(client.ask("POST", "/predict", body, PNG)[0])

    threads = [threading.Thread(target=one) for _ in range(500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 500
    assert set(found) <= {200, 503}
    assert found.count(200) >= 100
    assert client.ask("GET", "/ready")[0] == 200
