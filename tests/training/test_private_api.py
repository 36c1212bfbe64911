"""What tlkit uses of other packages' private API was tested with some minor versions of them; with another one, look again."""

import inspect
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from torch.distributed import distributed_c10d
from torch.nn.parallel import distributed as ddp
from torchmetrics import Metric

from tlkit.training import private_api

ROOT = Path(__file__).parents[2]
HOW = (
    "Read every function of tlkit/training/private_api.py beside the new version, run all tests, then add it to TESTED and pyproject.toml."
)


@pytest.mark.parametrize("package", private_api.TESTED)
def test_the_installed_version_is_one_that_the_private_api_was_tested_with(package: str) -> None:
    minor = ".".join(version(package).split(".")[:2])
    assert minor in private_api.TESTED[package], f"{package} {minor} was never tested. {HOW}"


def test_pyproject_allows_the_tested_versions_of_lightning_and_no_other() -> None:
    (pinned,) = re.findall(r'"lightning([^"]+)"', (ROOT / "pyproject.toml").read_text())
    allowed = SpecifierSet(pinned)
    tested = [Version(minor) for minor in private_api.TESTED["lightning"]]
    last = tested[-1]
    assert all(Version(f"{minor}.1") in allowed for minor in tested)
    assert Version(f"{last.major}.{last.minor + 1}") not in allowed
    assert Version(f"{tested[0].major}.{tested[0].minor - 1}") not in allowed


def test_the_private_names_are_there() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    loop = trainer.fit_loop
    assert callable(loop._should_accumulate)
    assert loop.epoch_loop.batch_idx == -1
    assert (loop.restarted_mid_epoch, loop.restarting) == (False, False)
    assert set(loop.state_dict()) >= {"state_dict", "epoch_progress", "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"}
    assert trainer._signal_connector._original_handlers == {}
    assert callable(_SubprocessScriptLauncher._call_children_scripts)
    assert DDPStrategy()._timeout is not None
    assert callable(WeightAveraging.on_validation_epoch_end)
    assert callable(distributed_c10d._get_default_store)
    assert "_ddp_params_and_buffers_to_ignore" in inspect.getsource(ddp)
    assert "_update_count" in vars(_Counted())


class _Counted(Metric):
    def update(self) -> None: ...

    def compute(self) -> torch.Tensor:
        return torch.tensor(0)
