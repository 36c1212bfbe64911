"""What a phase has for itself: its precision, compiling, and a fused optimizer where torch has one."""

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import load_file

from tests.shades import draw_shades
from tlkit.cli import main
from tlkit.errors import RecipeError
from tlkit.recipe.load import load_recipe
from tlkit.training import module, phases
from tlkit.training.finetune import run_recipe
from tlkit.training.module import PhaseModule
from tlkit.training.specs import phase_specs

RECIPE = """
name: shades
data: {source: {folder: pictures}, image_size: 32, resize: stretch, batch_size: 8, validation: 0.2, test: 0.2}
model: {backbone: test_resnet, weights: random}
phases:
  - {train: {last: 1}, epochs: 1, lr: 1e-2}
  - {train: all, epochs: 1, lr: 1e-2, precision: bf16-mixed}
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shades")
    draw_shades(folder / "pictures", light=190, noise=50, size=32)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def place(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(workplace)
    return tmp_path


def losses(run: Path) -> list[list[float]]:
    with (run / "metrics.csv").open() as file:
        return [[float(row["train/loss"]), float(row["val/loss"])] for row in csv.DictReader(file)]


def test_a_cpu_that_is_asked_for_16_mixed_says_once_what_it_takes(
    place: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "phases[0], phases[1]: a CPU computes in bf16-mixed where 16-mixed is asked for. Set precision to bf16-mixed or 32-true."
    words = ["recipe.yaml", "trainer.precision=16-mixed", "phases[1].precision=16-mixed", "trainer.accelerator=cpu"]
    run_recipe(load_recipe(words[0], words[1:]), out=place / "run")
    assert [record.getMessage() for record in caplog.records].count(said) == 1
    assert main(["plan", *words]) == 0
    assert capsys.readouterr().out.count("a CPU computes in bf16-mixed") == 1
    assert not [warning for warning in recwarn if "fp16" in str(warning.message)]


class Watch(Callback):
    """Number formats and the optimizer in the first step of each phase."""

    def __init__(self) -> None:
        self.seen: list[tuple[torch.dtype, torch.dtype, bool]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer) -> None:
        if trainer.global_step == 0:
            with trainer.precision_plugin.forward_context():
                product = torch.ones(2, 2) @ torch.ones(2, 2)
            weights = next(pl_module.parameters()).dtype
            self.seen.append((product.dtype, weights, bool(optimizer.param_groups[0].get("fused"))))


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch, build = Watch(), phases.build_trainer

    def build_watched(*arguments: Any, callbacks: list[Callback], **named: Any) -> Trainer:
        return build(*arguments, callbacks=[*callbacks, watch], **named)

    monkeypatch.setattr(phases, "build_trainer", build_watched)
    return watch


def test_a_phase_has_its_own_number_format_and_the_weights_stay_in_32_bits(place: Path, watch: Watch) -> None:
    run = run_recipe(load_recipe("recipe.yaml"), out=place / "run")
    assert watch.seen == [(torch.float32, torch.float32, True), (torch.bfloat16, torch.float32, True)]
    plain = losses(run_recipe(load_recipe("recipe.yaml", ["phases[1].precision=32-true"]), out=place / "plain"))
    assert losses(run)[0] == plain[0]
    assert losses(run)[1] != plain[1]
    assert losses(run)[1] == pytest.approx(plain[1], rel=0.2)


def test_what_is_kept_has_the_phases_number_format(place: Path) -> None:
    recipe = "phases=[{train: {last: 1}, epochs: 1, lr: 1e-2}, {train: {last: 1}, epochs: 1, lr: 1e-2, precision: bf16-mixed}]"
    run = run_recipe(load_recipe("recipe.yaml", [recipe]), out=place / "run")
    assert (run / "log.txt").read_text().count("frozen part run once") == 2


def test_fused_steps_give_the_weights_of_plain_ones(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("recipe.yaml", ["phases[1].precision=32-true"])
    fused = run_recipe(recipe, out=place / "fused")
    monkeypatch.setattr(module, "can_fuse", lambda device, precision, clips: False)
    plain = run_recipe(recipe, out=place / "plain")
    np.testing.assert_allclose(losses(fused), losses(plain), rtol=1e-4)


def test_a_gradient_scaler_and_clipping_go_without_fused_steps() -> None:
    assert module.can_fuse("cuda", "bf16-mixed")
    assert not module.can_fuse("cuda", "bf16-mixed", clips=True)
    assert module.can_fuse("cpu", "32-true", clips=True)
    assert not module.can_fuse("cuda", "16-mixed")
    assert not module.can_fuse("mps", "32-true")


COMPILED = "phases=[{train: {last: 1}, epochs: 2, lr: 1e-2, compile: true}, {train: all, epochs: 2, lr: 1e-2, compile: true}]"


@pytest.mark.slow
def test_compiled_phases_give_the_same_losses_and_the_same_names(
    place: Path, monkeypatch: pytest.MonkeyPatch, saved: list[dict[str, Any]]
) -> None:
    # aot_eager traces as the default backend does, and runs torch's own kernels: no compiler is needed.
    compile, traced = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda network: (traced.append(network), compile(network, backend="aot_eager"))[1])
    every_batch = "trainer.checkpoint_every={minutes: 1e-6}"
    fast = run_recipe(load_recipe("recipe.yaml", [COMPILED, every_batch]), out=place / "compiled")
    assert len(traced) == 2
    names = {frozenset(state["state_dict"]) for state in saved}
    plain = run_recipe(load_recipe("recipe.yaml", [COMPILED.replace("true", "false"), every_batch]), out=place / "plain")
    np.testing.assert_allclose(losses(fast), losses(plain), rtol=1e-4)
    for file in ("checkpoints/best.safetensors", "model/model.safetensors"):
        assert set(load_file(fast / file)) == set(load_file(plain / file))
    assert names == {frozenset(state["state_dict"]) for state in saved}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU, and there is no g++ here")
def test_the_default_compiler_gives_the_same_losses(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # no processes, each of which would import torch
    phases = "phases=[{train: all, epochs: 2, lr: 1e-2, compile: true}]"
    few = "model.backbone=lenet5"  # layers, for each of which g++ works for seconds
    fast = run_recipe(load_recipe("recipe.yaml", [phases, few]), out=place / "compiled")
    plain = run_recipe(load_recipe("recipe.yaml", [phases.replace("true", "false"), few]), out=place / "plain")
    # Fused kernels round otherwise, and what an epoch rounds the next one trains on.
    np.testing.assert_allclose(losses(fast)[0], losses(plain)[0], rtol=1e-3)
    np.testing.assert_allclose(losses(fast), losses(plain), rtol=0.05)


def test_what_can_not_be_compiled_is_reported_with_the_phase_and_the_fix(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> None:
        raise ValueError("no working C++ compiler found")

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: compile(network, backend=fails))
    with pytest.raises(RecipeError) as raised:
        run_recipe(load_recipe("recipe.yaml", ["phases[1].compile=true"]), out=place / "run")
    message = str(raised.value)
    assert "phases[1].compile = true can't be done here: ValueError: no working C++ compiler found" in message
    assert "Set it to false; or install a C++ compiler" in message


def test_other_faults_of_a_compiled_phase_stay_what_they_are(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: PhaseModule, inputs: object) -> None:
        raise ZeroDivisionError("elsewhere")

    monkeypatch.setattr(PhaseModule, "_logits", fails)
    with pytest.raises(ZeroDivisionError):
        run_recipe(load_recipe("recipe.yaml", ["phases[0].compile=true"]), out=place / "run")


def test_auxiliary_heads_can_not_listen_to_compiled_layers(place: Path) -> None:
    recipe = ["model.backbone=googlenet", "phases=[{train: all, epochs: 1, lr: 1e-2, compile: true}]"]
    with pytest.raises(RecipeError, match=r"phases\[0\]\.compile = true, but auxiliary heads of googlenet .*\n.*auxiliary_loss to 0"):
        run_recipe(load_recipe("recipe.yaml", recipe), out=place / "run")


@pytest.mark.parametrize(
    ("weights", "batchnorm", "images", "expected"),
    [
        ("pretrained", "auto", 19_999, "frozen"),
        ("pretrained", "auto", 20_000, "adapt"),
        ("{file: w.pth}", "auto", 300, "frozen"),
        ("random", "auto", 300, "adapt"),
        ("pretrained", "adapt", 300, "adapt"),
        ("random", "frozen", 20_000, "frozen"),
    ],
)
def test_statistics_of_pretrained_weights_are_kept_where_images_are_few(weights: str, batchnorm: str, images: int, expected: str) -> None:
    phases = f"phases=[{{train: head, epochs: 1, lr: 1e-3}}, {{train: all, epochs: 1, lr: 1e-3, batchnorm: {batchnorm}}}]"
    recipe = load_recipe("quickstart", [f"model.weights={weights}", phases])
    assert phase_specs(recipe, [frozenset(), frozenset({"conv.weight"})], images)[1].batchnorm == expected


def test_the_log_says_where_statistics_are_kept_without_being_asked(place: Path) -> None:
    run_recipe(load_recipe("recipe.yaml"), out=place / "made")
    assert "batch-norm" not in (place / "made" / "log.txt").read_text()
    pretrained = [f"model.weights={{run: {place / 'made'}}}", "phases[1].batchnorm=adapt"]
    run_recipe(load_recipe("recipe.yaml", pretrained), out=place / "again")
    assert "weights: batch-norm keeps their statistics in phase 1, since images are few" in (place / "again" / "log.txt").read_text()
