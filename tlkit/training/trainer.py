"""recipe.trainer -> Lightning's Trainer, one for each phase."""

from pathlib import Path

from lightning.pytorch import Callback
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.loggers import TensorBoardLogger

from tlkit.errors import DeviceError
from tlkit.recipe.schema import Trainer


def build_trainer(trainer: Trainer, *, epochs: int, phase_name: str, callbacks: list[Callback], out: Path) -> LightningTrainer:
    """Raises DeviceError if this machine doesn't have what the recipe asks for."""
    try:
        return LightningTrainer(
            accelerator=trainer.accelerator,
            devices=trainer.devices,
            num_nodes=trainer.num_nodes,
            strategy=trainer.strategy,
            precision=trainer.precision,
            deterministic=trainer.deterministic,
            max_epochs=epochs,
            callbacks=callbacks,
            logger=TensorBoardLogger(out, name="tensorboard", version=phase_name),
            default_root_dir=out,
            enable_progress_bar=False,
            enable_model_summary=False,
            # The sanity pass costs more than it tells: validation comes after the first epoch anyway.
            num_sanity_val_steps=0,
            # tlkit's own sampler splits over ranks, and seeds every picture's augmentation.
            use_distributed_sampler=False,
        )
    except (ValueError, RuntimeError, TypeError) as error:  # MisconfigurationException is one of these, by Lightning's release
        asked = (
            f"accelerator: {trainer.accelerator}, devices: {trainer.devices}, strategy: {trainer.strategy}, precision: {trainer.precision}"
        )
        raise DeviceError(
            f"trainer = {{{asked}}} can't be had on this machine.\n  Lightning says: {error}\n  `auto` takes what is there."
        ) from error
