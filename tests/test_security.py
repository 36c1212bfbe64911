"""What docs/security.md promises: files are data, nothing asks the network, secrets stay where they are."""

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from tests import warm
from tests.shades import draw_shades
from tlkit.cli import main
from tlkit.deploy.export.artifact import write_manifest
from tlkit.errors import without_passwords
from tlkit.recipe.load import load_recipe
from tlkit.training.finetune import run_recipe

ROOT = Path(__file__).parents[1]
RECIPE = """
name: shades
data: {source: {folder: pictures}, image_size: 32, resize: stretch, normalize: dataset, batch_size: 8, test: 0.25, workers: 0}
augment: [HorizontalFlip: {p: 0.5}]
model: {backbone: test_resnet, weights: random}
phases: [{train: all, epochs: 1, lr: 1e-2}]
"""
SECRETS = {
    "HF_TOKEN": "hf_hush1",
    "HUGGING_FACE_HUB_TOKEN": "hf_hush2",
    "AWS_ACCESS_KEY_ID": "AKIAHUSH3",
    "AWS_SECRET_ACCESS_KEY": "hush4",
    "TLKIT_TOKEN": "hush-hush-hush-hush-5",
    "WANDB_API_KEY": "hush6",
    "HTTPS_PROXY": "http://user:hush7@127.0.0.1:9",
}

Tlkit = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 noisy images each of light and dark, and a run on them."""
    folder = tmp_path_factory.mktemp("shades")
    draw_shades(folder / "pictures")
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_recipe(load_recipe("recipe.yaml"), out=Path("run"))
    return folder


# --- nothing in a file is run ---


class Trap:
    """Who unpickles it runs a program."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.sprung}'",)


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    """The file that a trap makes; that this very trap does so is proved first."""
    proof = tmp_path / "proof"
    pickle.loads(pickle.dumps(Trap(proof)))
    assert proof.exists()
    return tmp_path / "sprung"


def traps(folder: Path, sprung: Path) -> list[Path]:
    """The same trap in every form and under every name that is known for weights, arrays and models."""
    folder.mkdir()
    plain, saved = pickle.dumps(Trap(sprung)), io.BytesIO()
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}, "epoch": Trap(sprung)}, saved)
    for suffix in ("pth", "pt", "bin", "ckpt", "pth.tar", "safetensors", "pkl", "pt2", "onnx", "zip", "npz", "npy", "yaml"):
        (folder / f"plain.{suffix}").write_bytes(plain)
        (folder / f"saved.{suffix}").write_bytes(saved.getvalue())
    np.savez(folder / "objects.npz", images=np.array([Trap(sprung)], object), train_images=np.array([Trap(sprung)], object))
    np.save(folder / "objects.npy", np.array([Trap(sprung)], object), allow_pickle=True)
    return sorted(folder.iterdir())


def test_no_command_runs_what_is_in_a_file(workplace: Path, sprung: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = "pictures/dark/00.png"
    files = traps(workplace / "traps", sprung)
    assert len(files) == 28
    for file in files:
        commands = [
            ["finetune", "recipe.yaml", f"model.weights={{file: '{file}'}}", "--out", "new"],
            ["finetune", "recipe.yaml", f"data.source={{npz: '{file}'}}", "--out", "new"],
            ["finetune", "recipe.yaml", f"data.source={{npy: '{file}', labels: '{file}'}}", "--out", "new"],
            ["check", str(file)],
            ["predict", str(file), image],
            ["verify", str(file)],
            ["serve", str(file), "--port", "0"],
            ["evaluate", str(file)],
            ["export", str(file)],
        ]
        if file.suffix not in (".npz", ".npy"):
            del commands[1:3]
        for command in commands:
            assert main(command) == 2, (command, capsys.readouterr().err)
            assert not sprung.exists(), command
            assert not Path("new").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_a_strangers_model_folder_runs_nothing(workplace: Path, sprung: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its checksums are right: whoever puts a trap into it can count them too."""
    model = workplace / "run" / "model"
    facts = json.loads((model / "tlkit.json").read_text())
    for content in (file.read_bytes() for file in traps(workplace / "traps", sprung) if file.stem in ("plain", "saved")):
        (model / "model.safetensors").write_bytes(content)
        facts["sha256"]["model.safetensors"] = hashlib.sha256(content).hexdigest()
        (model / "tlkit.json").write_text(json.dumps(facts))
        for command in (
            ["predict", "run", "pictures/dark/00.png"],
            ["evaluate", "run"],
            ["export", "run"],
            ["finetune", "recipe.yaml", "model.weights={run: run}", "--out", "new"],
        ):
            assert main(command) == 2, command
            assert not sprung.exists(), command


@pytest.mark.parametrize("name", ["hf-hub:stranger/resnet18", "hf_hub:stranger/resnet18", "local-dir:/tmp", "resnet18/../x", ""])
def test_a_strangers_model_folder_names_no_other_place(workplace: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = workplace / "run" / "model" / "tlkit.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "backbone": name}))
    for command in (["predict", "run", "pictures/dark/00.png"], ["evaluate", "run"], ["export", "run"]):
        assert main(command) == 2
        assert f"names the backbone '{name}', which timm" in capsys.readouterr().err


def test_a_strangers_artifact_runs_nothing(tmp_path: Path, sprung: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    numbers = {"image_size": 8, "resize": "stretch", "crop_pct": 1.0, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}
    for number, file in enumerate(traps(tmp_path / "traps", sprung)):
        for kind in ("onnx", "openvino", "torch", "safetensors"):
            artifact = tmp_path / f"artifact-{number}-{kind}"
            artifact.mkdir()
            shutil.copy(file, artifact / file.name)
            facts = {"format": kind, "network": file.name, "input": {"name": "pictures", "dtype": "uint8"}, "task": "multiclass"}
            write_manifest(artifact, {**facts, "head": "linear", "classes": ["a", "b"], "thresholds": [], "preprocessing": numbers})
            for command in (["predict", str(artifact), str(tmp_path / "a.png")], ["serve", str(artifact), "--port", "0"]):
                assert main(command) == 2, command
                assert not sprung.exists(), command
            main(["verify", str(artifact)])  # which says of torch's formats alone that the files are whole
            assert not sprung.exists()
    assert "a bug in tlkit" not in capsys.readouterr().err


def test_a_checkpoint_runs_nothing(workplace: Path, sprung: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = workplace / "run"
    for name in ("report.html", "metrics.json"):
        (run / name).unlink()
    (run / "checkpoints").mkdir(exist_ok=True)
    for file in traps(workplace / "traps", sprung):
        if file.name.endswith(".ckpt"):
            content = file.read_bytes()
            (run / "checkpoints" / "0001.ckpt").write_bytes(content)
            about = {"format": 1, "sha256": hashlib.sha256(content).hexdigest(), "phase": 0, "epoch": 0, "batch": 0, "versions": {}}
            (run / "checkpoints" / "0001.json").write_text(json.dumps(about))
            assert main(["finetune", "recipe.yaml", "--out", "run", "--resume"]) == 2
            assert not sprung.exists()
    assert "0001.ckpt" in capsys.readouterr().err


# --- nothing asks the network ---

WATCH = """
import os, sys

def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        address = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
        if not isinstance(address, (str, bytes)) or event.startswith("socket.get"):  # the name of a file: processes of one machine
            with open(os.environ["ASKED"], "a") as file:
                file.write(f"{event} {address!r} {sys.argv}\\n")
            raise OSError("the network is closed")

sys.addaudithook(note)
"""


@pytest.fixture
def tlkit(workplace: Path) -> Tlkit:
    """Runs tlkit as a user would who has set nothing, and notes what asks the network."""
    (workplace / "watch").mkdir()
    (workplace / "watch" / "sitecustomize.py").write_text(WATCH)
    unset = ("NO_ALBUMENTATIONS_UPDATE", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    environment |= {"PYTHONPATH": f"{workplace / 'watch'}{os.pathsep}{ROOT}", "ASKED": str(workplace / "asked"), **SECRETS}
    environment |= {"HOME": str(workplace / "home"), "HF_HOME": str(workplace / "home" / "hf")}
    environment |= {"MPLCONFIGDIR": matplotlib.get_cachedir()}  # its list of fonts takes seconds to make

    def run(*words: str, program: tuple[str, ...] = ("-m", "tlkit")) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, *program, *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.mark.slow
def test_nothing_asks_the_network_or_leaves_a_secret(tlkit: Tlkit, workplace: Path) -> None:
    # In two processes, one of them without torch: what is imported is imported once.
    commands = """
        finetune recipe.yaml data.workers=1 --out new; evaluate new; export new --format onnx openvino --pictures 2;
        predict new pictures/dark/00.png --out rows.csv; verify new/export/openvino
    """
    code = "import sys; from tlkit.cli import main; sys.exit(any([main(words.split()) for words in sys.argv[1].split(';')]))"
    said = [
        tlkit(commands, program=("-c", code)),
        tlkit("check recipe.yaml; predict new/export/onnx pictures/dark/00.png", program=("-c", code)),
    ]
    assert [(done.args, done.stderr) for done in said if done.returncode] == []
    asked = workplace / "asked"
    assert not asked.exists(), asked.read_text()
    # What this watches with does see a network call.
    assert tlkit(program=("-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9')")).returncode == 1
    assert asked.exists()
    left = {str(file): file.read_bytes() for folder in ("new", "home") for file in (workplace / folder).rglob("*") if file.is_file()}
    left |= {str(number): f"{done.stdout}{done.stderr}".encode() for number, done in enumerate(said)}
    left |= {name: (workplace / name).read_bytes() for name in os.listdir(workplace) if name.startswith("rows.csv")}
    assert len(left) > 20
    leaked = [
        (name, secret) for name, content in left.items() for secret in SECRETS.values() if secret.rpartition("/")[2].encode() in content
    ]
    assert leaked == []
    assert not any(b"hush7" in content for content in left.values())


def test_a_failing_download_hides_the_password_of_its_mirror_and_the_token(workplace: Path) -> None:
    """A mirror of the hub that refuses, as a real server on this machine does."""

    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403)

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": f"http://user:hush8@127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_hush1", "PYTHONPATH": str(ROOT)}
    environment |= {"HF_HOME": str(workplace / "home")}
    words = ["finetune", "recipe.yaml", "model={backbone: resnet18, weights: pretrained}", "--debug"]
    done = warm.run(*words, cwd=workplace, env=environment)
    server.shutdown()
    assert done.returncode == 2, done.stderr
    assert "http://***@127.0.0.1" in done.stderr
    assert "hush8" not in done.stderr
    assert "hf_hush1" not in done.stderr


def test_passwords_in_addresses_are_hidden_and_nothing_else() -> None:
    assert without_passwords("get http://a:b@host/x and s3://key@bucket") == "get http://***@host/x and s3://***@bucket"
    for harmless in ("https://host/a@b", "me@example.org", "a@b//c", "hf-hub:x/y@main"):
        assert without_passwords(harmless) == harmless


# --- recipes that attack ---

CHECKED = """
import json, os, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (400_000_000, 400_000_000))
from tlkit.cli import main
main(["check", "quickstart"])  # so that no import counts below
# Each in a process of its own, forked from this one; the last line of its stderr is its memory in MB and its seconds of a processor.
for recipe in sys.argv[1:]:
    child = os.fork()
    if not child:
        os.dup2(os.open(recipe + ".err", os.O_WRONLY | os.O_CREAT, 0o600), 2)
        began = time.process_time()
        code = main(["check", recipe])
        seconds = time.process_time() - began
        # Not ru_maxrss, which begins with what the parent process had.
        (peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
        print(int(peak) // 1000, seconds, file=sys.stderr, flush=True)
        os._exit(code)
    with open(recipe + ".code", "w") as file:
        file.write(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""
LARGEST = "name: largest\naugment:\n" + "  - HorizontalFlip: {p: 0.5}\n" * 1_300
"""About as large as a recipe may be; what is wrong with it is said for its last lines only."""
LAUGHS = "a: &a [lol, lol, lol]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
ATTACKS = {
    "a billion laughs": (LAUGHS, "= *a is a YAML alias."),
    "100 MB": ("phases:\n" + "  - {train: head}\n" * 5_600_000, "is larger than 200 kB."),
    "10,000 lists": ("data: " + "[" * 10_000 + "]" * 10_000, "is nested deeper than 20 levels."),
    "10,000 mappings": ("data: " + "{a: " * 10_000 + "}" * 10_000, "is nested deeper than 20 levels."),
    "10,000 dashes": ("- " * 10_000, "is nested deeper than 20 levels."),
    "a Python object": ("name: !!python/object/apply:os.system ['touch sprung']\n", "has the YAML tag !!python/object/apply:os.system."),
    "90,000 values": ("phases: [" + "1," * 90_000 + "]", "has more than 4,000 keys and values."),
    "10,000 unknown keys": ("".join(f"key{i}: 1\n" for i in range(10_000)), "has more than 4,000 keys and values."),
    "a number of 190,000 digits": ("seed: " + "9" * 190_000, "seed = "),
    "3,900 tags": ("augment: [" + ", ".join(["!x y"] * 3_900) + "]", "has more than these 100 faults."),
    "3,900 aliases": ("seed: &a 1\naugment: [" + ", ".join(["*a"] * 3_900) + "]", "has more than these 100 faults."),
    "3,900 unknown words": ("augment: [" + ", ".join(f"HorizontalFlp{i}" for i in range(3_900)) + "]", "has more than these 100 faults."),
    "1,900 unknown keys": ("".join(f"horizontal_{i}: 1\n" for i in range(1_900)), "has more than these 100 faults."),
    "a name of 190,000 letters": ("name: " + "x" * 190_000, "name = "),
}


@dataclass(frozen=True)
class Checked:
    """What `tlkit check` of one recipe came to."""

    code: int
    errors: str
    megabytes: float
    seconds: float


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checked]:
    """Every attack, and an honest recipe of the largest size to compare with."""
    folder = tmp_path_factory.mktemp("attacks")
    texts = {"largest": LARGEST} | {name: text for name, (text, _) in ATTACKS.items()}
    files = {name: folder / f"{number}.yaml" for number, name in enumerate(texts)}
    for name, file in files.items():
        file.write_text(texts[name])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", CHECKED, *(file.name for file in files.values())], cwd=folder, env=environment, check=True)
    assert not (folder / "sprung").exists()
    found = {}
    for name, file in files.items():
        errors = Path(f"{file}.err").read_text()
        found[name] = Checked(int(Path(f"{file}.code").read_text()), errors, *map(float, errors.splitlines()[-1].split()))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured as Linux does")
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attacking_recipe_is_refused_soon_and_in_little_memory(attack: str, checked: dict[str, Checked]) -> None:
    found = checked[attack]
    assert found.code == 2, found.errors[-500:]
    assert ATTACKS[attack][1] in found.errors
    assert found.megabytes < 200
    assert found.seconds < 8 * checked["largest"].seconds


def test_an_attacking_override_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for value, words in (
        ("!!python/object/apply:os.system ['touch sprung']", "has the YAML tag"),
        ("{a: &a [x], b: *a}", "is a YAML alias"),
        ("[" * 10_000, "is nested deeper than 20 levels"),
        ("[" + "1," * 60_000 + "]", "has more than 4,000 keys and values"),
    ):
        assert main(["check", "quickstart", f"augment={value}"]) == 2
        assert words in capsys.readouterr().err
    assert main(["check", "quickstart", *["seed=1"] * 201]) == 2
    assert "override comes 201 times; at most 200." in capsys.readouterr().err
    assert not Path("sprung").exists()
