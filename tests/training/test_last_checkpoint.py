from pathlib import Path

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from tlkit.training import callbacks
from tlkit.training.callbacks import LastCheckpoint


class Line(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(("every_s", "expected"), [(0.0, [0, 1, 2, 3]), (1000.0, [0, 3])])
def test_short_epochs_write_the_first_and_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_s: float, expected: list[int]
) -> None:
    monkeypatch.setattr(callbacks, "CHECKPOINT_EVERY_S", every_s)
    written = []
    trainer = lightning.Trainer(
        max_epochs=4,
        accelerator="cpu",
        callbacks=[LastCheckpoint(tmp_path)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    save = trainer.save_checkpoint
    monkeypatch.setattr(trainer, "save_checkpoint", lambda *arguments: (written.append(trainer.current_epoch), save(*arguments)))
    module = Line()
    trainer.fit(module, DataLoader(torch.ones(4, 2), batch_size=2))
    assert written == expected
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state["layer.weight"], module.layer.weight.detach())
