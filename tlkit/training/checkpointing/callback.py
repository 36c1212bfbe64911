"""Checkpoints from which a run resumes exactly: in any phase, after any batch.

Lightning 2.6 saves weights, optimizer, schedule, moving average and early stopping. Added here: the random
generators, gradients of a partly accumulated step, the metrics of the unfinished epoch, the position in the training order, and
the state of a run beyond one phase.
"""

import logging
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import distributed

from tlkit.errors import RunError
from tlkit.models.adapters import is_adapters, plain_name
from tlkit.models.classifier import Classifier
from tlkit.recipe.fields.phases import Dora, Lora
from tlkit.recipe.fields.trainer import CheckpointEvery
from tlkit.training.cache.activations import digest
from tlkit.training.callbacks.best_weights import BestWeights
from tlkit.training.callbacks.metrics_table import MetricsTable
from tlkit.training.checkpointing.files import KEPT, Checkpoint, next_number, remove_others, write_checkpoint
from tlkit.training.checkpointing.rng import generator_states, set_generators
from tlkit.training.context import RunContext
from tlkit.training.distributed.flags import SharedFlags
from tlkit.training.distributed.launch import all_gather_objects
from tlkit.training.distributed.ranks import is_main_process
from tlkit.training.objective.auxiliary import AuxiliaryHeads
from tlkit.training.private_api import (
    WEIGHTS,
    accumulates,
    forget_resuming,
    is_within_phase,
    restore_sigterm,
    rewind,
    swap_back_average,
    training_weights,
)
from tlkit.training.specs import PhaseSpec

LOG = logging.getLogger("tlkit")

BETWEEN_EPOCHS_S = 5.0
"""At most this many seconds of work are lost when a process is killed between two epochs. Epochs of a fraction of a second, as cached
activations allow, don't write a checkpoint each: that took a quarter of such a phase."""
SHARE = 0.05
"""Largest share of the time for checkpoints between epochs: those of large networks take seconds."""


class Checkpoints(CheckpointCallback):
    """Lightning calls it after all other callbacks, so that it saves what they have done with a batch.

    seconds: a phase's name -> its wall-clock time, of the phases that are done. phase: the index of the one that runs.
    """

    def __init__(
        self,
        classifier: Classifier,
        auxiliary: AuxiliaryHeads | None,
        best: BestWeights,
        table: MetricsTable,
        *,
        every: CheckpointEvery,
        context: RunContext,
    ) -> None:
        self.seconds: dict[str, float] = {}
        self.phase = 0
        self.resumed_file: Path | None = None
        """The file from which Lightning resumes its part of an interrupted phase."""
        self._folder, self._stop, self._context = context.checkpoints, context.stop, context
        self._classifier, self._auxiliary, self._best, self._table = classifier, auxiliary, best, table
        self._within_s = 60 * every.minutes
        self._phase_began = self._saved_at = time.perf_counter()
        self._seconds_before = 0.0
        self._resumed: Mapping[str, Any] | None = None
        self._kept: list[Checkpoint] = []
        self._at = (0, 0)
        self._changing: frozenset[str] = frozenset()
        self._frozen: tuple[frozenset[str], str] = (frozenset(), "")
        self._took_s = 0.0
        self._flags: SharedFlags | None = None

    # --- going on ---

    def go_on(self, checkpoint: Checkpoint, state: Mapping[str, Any]) -> None:
        """Restore everything except what Lightning restores in fit. state: the checkpoint's content."""
        run = counted_from_one(state["run"])
        if is_within_phase(state):  # else before one
            self.resumed_file, self._resumed = checkpoint.file, run
        if adapter := run.get("adapter"):
            self._classifier.adapt(run["adapted"], (Dora if "dora" in adapter else Lora).model_validate(adapter))
        self._load_weights(training_weights(state), run["frozen"])
        self.phase, self.seconds, self._seconds_before = run["phase"], dict(run["seconds"]), run["phase_seconds"]
        self._table.load_state(run["rows"])
        self._best.load_state(run["best"], checkpoint.best, keeps=is_main_process())
        self._kept = [checkpoint]
        if len(run["ranks"]) != (processes := len(all_gather_objects(None))):
            LOG.warning(
                "the run began on %d processes and is resumed with %d: what is drawn at random will differ", len(run["ranks"]), processes
            )
        set_generators(_mine(run["ranks"])["generators"])

    def _load_weights(self, weights: Mapping[str, torch.Tensor], frozen: str) -> None:
        """Load weights. frozen: the digest of what no phase had changed. Raises RunError if it has changed since."""
        changed = _part(weights, "classifier.")
        self._changing = frozenset(map(plain_name, changed))
        if self._frozen_digest() != frozen:
            raise RunError(
                "The weights that the run started from have changed: layers that have not trained yet differ.\n"
                "  Restore the weights that its recipe names; or start again in another --out."
            )
        self._classifier.load_state_dict(changed, strict=False)
        if self._auxiliary is not None:
            self._auxiliary.load_state_dict(_part(weights, "auxiliary."))

    @property
    def _between_s(self) -> float:
        return min(self._within_s, max(BETWEEN_EPOCHS_S, self._took_s / SHARE))

    # --- phases ---

    def set_trainable_names(self, names: frozenset[str]) -> None:
        """Set the names of all tensors that the phase may change. Checkpoints leave out what no phase has changed yet."""
        self._changing |= names
        self._best.set_trainable_names(names, keeps=is_main_process())

    def begin_phase(self, spec: PhaseSpec) -> None:
        self._phase_began = time.perf_counter() - (self._seconds_before if spec.index == self.phase else 0.0)
        self._seconds_before = 0.0
        self.phase = spec.index
        self._best.begin_phase(spec.number)
        self._table.begin_phase(spec.number)

    def end_phase(self, spec: PhaseSpec) -> None:
        """Save that it is done, if that is worth it, and stop the run if a signal came."""
        self.seconds[spec.name] = round(time.perf_counter() - self._phase_began, 3)
        self._phase_began = time.perf_counter()
        self.phase = spec.index + 1
        self.resumed_file = self._resumed = None
        ranks = all_gather_objects(self._of_this_process())
        self._stop.handle(max(rank["asked"] for rank in ranks))
        if is_main_process() and (self._stop.requested or time.perf_counter() - self._saved_at > self._between_s):
            self._at = (0, 0)
            self.write({"state_dict": self._weights(), "run": self._run(ranks)})
        self._stop.raise_if_requested()

    def _weights(self) -> dict[str, torch.Tensor]:
        parts = {"classifier.": self._classifier, "auxiliary.": self._auxiliary}
        return {
            prefix + name: tensor for prefix, module in parts.items() if module is not None for name, tensor in module.state_dict().items()
        }

    # --- within a phase ---

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        restore_sigterm(trainer)
        if trainer.world_size > 1 and self._flags is None:
            self._flags = SharedFlags()
        if self._resumed is None:
            return
        mine = _mine(self._resumed["ranks"])
        if self._resumed["batch"] < trainer.num_training_batches:  # else the next pass is that of the next epoch
            # Lightning 2.6 would load it only where nobody has asked for the number of steps before; a schedule does.
            trainer.train_dataloader.load_state_dict({"batches": self._resumed["batch"]})  # type: ignore[union-attr]
        if self._resumed["batch"]:
            pl_module.load_epoch_state(mine["figures"])  # type: ignore[operator]
            self._table.resume_within_epoch(self._resumed["epoch_seconds"])
        for parameter, gradient in zip(pl_module.parameters(), mine["gradients"], strict=False):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        self._resumed = None
        set_generators(mine["generators"])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not at the end of the epoch before: there, plateau's rate hasn't moved yet.
        if trainer.current_epoch > 0:
            self._save_if_due(trainer, self._between_s, batch=0)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._save_if_due(trainer, self._within_s, batch=batch_idx + 1)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any, **named: Any) -> None:
        # Ranks may have different numbers of batches to validate, so that they can't agree here.
        if self._stop.requested and trainer.world_size == 1:
            swap_back_average(trainer, pl_module)
            self._save(trainer, batch=int(trainer.num_training_batches))
            self._stop.raise_if_requested()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        forget_resuming(trainer)

    def _save_if_due(self, trainer: Trainer, every_s: float, *, batch: int) -> None:
        """Save if it is due; all ranks save and stop together."""
        due = int(time.perf_counter() - self._saved_at > every_s)
        requested = int(self._stop.requested or 0)
        if self._flags is not None:
            due, requested = self._flags.exchange([due * trainer.is_global_zero, requested])
            self._stop.handle(requested)
            # Gradients that aren't averaged yet are each rank's own, and as large as the network.
            if batch and accumulates(trainer):
                return
        if due or requested:
            self._save(trainer, batch=batch)
        if requested:
            raise KeyboardInterrupt

    def _save(self, trainer: Trainer, *, batch: int) -> None:
        self._at = (trainer.current_epoch, batch)
        trainer.save_checkpoint(self._folder / "now")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        epoch, batch = self._at
        rewind(checkpoint, epoch=epoch, batch=batch, batches=int(trainer.num_training_batches))
        mine = self._of_this_process()
        if batch:
            mine["figures"] = pl_module.epoch_state()  # type: ignore[operator]
            if accumulates(trainer):
                mine["gradients"] = [parameter.grad for parameter in pl_module.parameters()]
        checkpoint["run"] = self._run(all_gather_objects(mine))

    def _of_this_process(self) -> dict[str, Any]:
        return {"generators": generator_states(), "gradients": [], "figures": {}, "asked": int(self._stop.requested or 0)}

    def _run(self, ranks: list[Any]) -> dict[str, Any]:
        """Return the state beyond weights and optimizer. ranks: the own state of each process."""
        now = time.perf_counter()
        epoch, batch = self._at
        return {
            "phase": self.phase,
            "epoch": epoch,
            "batch": batch,
            "best": self._best.state(),
            "rows": self._table.state(),
            "counts_from": 1,
            "seconds": self.seconds,
            "phase_seconds": now - self._phase_began,
            "epoch_seconds": self._table.epoch_seconds,
            "run_seconds": self._context.seconds,
            "frozen": self._frozen_digest(),
            "adapter": self._classifier.adapter.model_dump() if self._classifier.adapter else None,
            "adapted": sorted({plain_name(name) for name in self._classifier.backbone.state_dict() if is_adapters(name)}),
            "ranks": ranks,
        }

    def _frozen_digest(self) -> str:
        """Hash all that no phase has changed yet: checkpoints leave it out, since each run loads it from its source."""
        if self._frozen[0] != self._changing:
            state = {plain_name(name): tensor for name, tensor in self._classifier.state_dict().items()}
            frozen = {name: tensor for name, tensor in state.items() if name not in self._changing}
            self._frozen = self._changing, digest(frozen)
        return self._frozen[1]

    def without_frozen(self, state: Mapping[str, Any]) -> dict[str, Any]:
        frozen = {f"classifier.{name}" for name in self._classifier.state_dict() if plain_name(name) not in self._changing}
        kept = {part: {name: tensor for name, tensor in state[part].items() if name not in frozen} for part in WEIGHTS if part in state}
        return {**state, **kept}

    def with_frozen(self, state: Mapping[str, Any]) -> dict[str, Any]:
        whole = {f"classifier.{name}": tensor for name, tensor in self._classifier.state_dict().items()}
        return {**state, **{part: {**whole, **state[part]} for part in WEIGHTS if part in state}}

    def write(self, state: Mapping[str, Any]) -> None:
        began = time.perf_counter()
        epoch, batch = self._at
        versions = {name: version(name) for name in ("torch", "lightning", "timm")}
        about = {"phase": self.phase, "epoch": epoch, "batch": batch, "versions": versions}
        written = write_checkpoint(self._folder, next_number(self._folder), self.without_frozen(state), self._best.file, about)
        self._kept = [*self._kept, written][-KEPT:]
        remove_others(self._folder, self._kept)
        self._saved_at = time.perf_counter()
        self._took_s = self._saved_at - began
        LOG.debug("checkpoint %s in %.2f s", written.file, self._took_s)


class WholeFiles(TorchCheckpointIO):
    """Lightning's checkpoint writer; the file is chosen here, not by Lightning."""

    def __init__(self, saves: Checkpoints) -> None:
        self._saves = saves

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self._saves.write(checkpoint)

    def load_checkpoint(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        return self._saves.with_frozen(super().load_checkpoint(*arguments, **named))


def counted_from_one(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a checkpoint knows; where an older tlkit has counted phases and epochs in the table and of the best from 0, from 1."""
    if "counts_from" in run:
        return run
    score, phase, epoch = run["best"]
    rows = [{**row, "phase": row["phase"] + 1, "epoch": row["epoch"] + 1} for row in run["rows"]]
    return {**run, "best": (score, phase + 1, epoch + 1), "rows": rows}


def _part(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _mine(ranks: list[Any]) -> dict[str, Any]:
    """Return this process's state; if there is none, the main process's."""
    rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
    mine: dict[str, Any] = ranks[rank if rank < len(ranks) else 0]
    return mine
