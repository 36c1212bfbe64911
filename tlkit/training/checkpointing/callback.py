"""Where a run is, saved so that it goes on from there as if it had never stopped: in any phase, after any batch.

Lightning 2.6 saves weights, optimizer, schedule, moving average and early stopping. What it leaves out is added here: the random
generators, gradients of a step that is half accumulated, the figures of the unfinished epoch, the position in the training order, and
what a run knows beyond one phase.
"""

import logging
import signal
import threading
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import distributed

from tlkit.errors import RunError
from tlkit.models.classifier import Classifier
from tlkit.recipe.fields.trainer import CheckpointEvery
from tlkit.training.auxiliary import AuxiliaryHeads
from tlkit.training.cache.activations import digest
from tlkit.training.callbacks import BestWeights, MetricsTable
from tlkit.training.checkpointing.files import KEPT, Checkpoint, next_number, put_back, remove_others, write_checkpoint
from tlkit.training.checkpointing.rng import generator_states, set_generators
from tlkit.training.distributed.launch import all_gather_objects
from tlkit.training.distributed.ranks import is_main_process
from tlkit.training.distributed.signals import Stop

LOG = logging.getLogger("tlkit")

BETWEEN_EPOCHS_S = 5.0
"""At most this much work is lost when a process is killed between two epochs. Epochs of a fraction of a second, as kept activations
allow, don't write a checkpoint each: that took a quarter of such a phase."""
SHARE = 0.05
"""Of the time, at most, goes into checkpoints between epochs: those of large networks take seconds."""

WEIGHTS = ("state_dict", "current_model_state")
"""Where Lightning has them: with a moving average that one, and beside it those that train."""


class Checkpoints(CheckpointCallback):
    """Lightning calls it after all other callbacks, so that it saves what they have done with a batch.

    seconds: a phase's name -> its wall-clock time, of the phases that are done. phase: the one that runs.
    """

    def __init__(
        self,
        folder: Path,
        classifier: Classifier,
        best: BestWeights,
        table: MetricsTable,
        auxiliary: AuxiliaryHeads | None,
        *,
        every: CheckpointEvery,
        stop: Stop,
        began: float,
    ) -> None:
        """began: when the run did, or would have without a break, by time.perf_counter."""
        self.seconds: dict[str, float] = {}
        self.phase = 0
        self.resumed_file: Path | None = None
        """Of a phase that goes on in its midst: what Lightning reads its part from."""
        self._folder, self._classifier, self._best, self._table, self._auxiliary = folder, classifier, best, table, auxiliary
        self._within_s = 60 * every.minutes
        self._stop = stop
        self._run_began = began
        self._phase_began = self._saved_at = time.perf_counter()
        self._seconds_before = 0.0
        self._resumed: Mapping[str, Any] | None = None
        self._kept: list[Checkpoint] = []
        self._at = (0, 0)
        self._changing: frozenset[str] = frozenset()
        self._frozen: tuple[frozenset[str], str] = (frozenset(), "")
        self._took_s = 0.0

    # --- going on ---

    def go_on(self, checkpoint: Checkpoint, state: Mapping[str, Any]) -> None:
        """Puts everything back but what Lightning restores when it fits. state: the checkpoint's content."""
        run = state["run"]
        if "loops" in state:  # within a phase, else before one
            # With a moving average, Lightning has it in place of the weights, and these beside it.
            weights = state.get("current_model_state", state["state_dict"])
            self.resumed_file, self._resumed = checkpoint.file, run
        else:
            weights = state["state_dict"]
        changed = _part(weights, "classifier.")
        self._changing = frozenset(changed)
        if self._frozen_digest() != run["frozen"]:
            raise RunError(
                "The weights that the run began with are not those of now: what hasn't trained yet differs.\n"
                "  Restore the weights that its recipe names; or start anew in another --out."
            )
        self._classifier.load_state_dict(changed, strict=False)
        if self._auxiliary is not None:
            self._auxiliary.load_state_dict(_part(weights, "auxiliary."))
        self.phase, self.seconds, self._seconds_before = run["phase"], dict(run["seconds"]), run["phase_seconds"]
        self._table.rows = [dict(row) for row in run["rows"]]
        self._best.score, self._best.phase, self._best.epoch, *loss = run["best"]
        self._best.loss = loss[0] if loss else float("inf")  # not in checkpoints of earlier versions
        if is_main_process():
            if checkpoint.best is not None:
                put_back(checkpoint.best, self._best.file)
            else:
                self._best.file.unlink(missing_ok=True)
        self._kept = [checkpoint]
        if len(run["ranks"]) != (processes := len(all_gather_objects(None))):
            LOG.warning(
                "the run began on %d processes and goes on with %d: what is drawn at random will differ", len(run["ranks"]), processes
            )
        set_generators(_mine(run["ranks"])["generators"])

    @property
    def _between_s(self) -> float:
        return min(self._within_s, max(BETWEEN_EPOCHS_S, self._took_s / SHARE))

    # --- phases ---

    def set_trainable_names(self, names: frozenset[str]) -> None:
        """names: of the classifier's tensors, all that the phase may change. What none has changed yet is in no checkpoint."""
        self._changing |= names
        self._best.set_trainable_names(names, keeps=is_main_process())

    def begin_phase(self, number: int) -> None:
        self._phase_began = time.perf_counter() - (self._seconds_before if number == self.phase else 0.0)
        self._seconds_before = 0.0
        self.phase = self._best.current_phase = self._table.phase = number

    def end_phase(self, name: str) -> None:
        """Saves that it is done, if that is worth it, and stops the run if a signal came."""
        self.seconds[name] = round(time.perf_counter() - self._phase_began, 3)
        self._phase_began = time.perf_counter()
        self.phase += 1
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
        if threading.current_thread() is threading.main_thread():
            # Lightning 2.6 has just put its own handler here. With several processes that one broadcasts wherever Python happens to be.
            signal.signal(signal.SIGTERM, self._stop.on_signal)
        if self._resumed is None:
            return
        mine = _mine(self._resumed["ranks"])
        if self._resumed["batch"] < trainer.num_training_batches:  # else the next pass is that of the next epoch
            # Lightning 2.6 would load it only where nobody has asked for the number of steps before; a schedule does.
            trainer.train_dataloader.load_state_dict({"batches": self._resumed["batch"]})  # type: ignore[union-attr]
        if self._resumed["batch"]:
            pl_module.go_on(mine["figures"])  # type: ignore[operator]
            self._table.epoch_began -= self._resumed["epoch_seconds"]
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
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging):
                    callback.on_validation_epoch_end(trainer, pl_module)  # swaps the weights that train back in
            self._save(trainer, batch=int(trainer.num_training_batches))
            self._stop.raise_if_requested()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Still set in an epoch that was resumed in its midst, and then Lightning 2.6 doesn't tell plateau how it went.
        trainer.fit_loop.restarting = False

    def _save_if_due(self, trainer: Trainer, every_s: float, *, batch: int) -> None:
        """All ranks save and stop together."""
        due, stops = time.perf_counter() - self._saved_at > every_s, self._stop.requested is not None
        if trainer.world_size > 1:
            flags = [due and trainer.is_global_zero, int(self._stop.requested or 0)]
            asked = torch.tensor(flags, dtype=torch.int32, device=trainer.strategy.root_device)
            distributed.all_reduce(asked, distributed.ReduceOp.MAX)
            due, number = asked.tolist()
            self._stop.handle(number)
            stops = number > 0
            # Gradients that aren't averaged yet are each rank's own, and as large as the network.
            if batch and trainer.fit_loop._should_accumulate():
                return
        if due or stops:
            self._save(trainer, batch=batch)
        if stops:
            raise KeyboardInterrupt

    def _save(self, trainer: Trainer, *, batch: int) -> None:
        self._at = (trainer.current_epoch, batch)
        trainer.save_checkpoint(self._folder / "now")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        epoch, batch = self._at
        _rewind(checkpoint["loops"]["fit_loop"], epoch=epoch, batch=batch, batches=int(trainer.num_training_batches))
        mine = self._of_this_process()
        if batch:
            mine["figures"] = pl_module.figures()  # type: ignore[operator]
            if trainer.fit_loop._should_accumulate():
                mine["gradients"] = [parameter.grad for parameter in pl_module.parameters()]
        checkpoint["run"] = self._run(all_gather_objects(mine))

    def _of_this_process(self) -> dict[str, Any]:
        return {"generators": generator_states(), "gradients": [], "figures": {}, "asked": int(self._stop.requested or 0)}

    def _run(self, ranks: list[Any]) -> dict[str, Any]:
        """What is known beyond weights and optimizer. ranks: of each process what is its own."""
        now = time.perf_counter()
        epoch, batch = self._at
        return {
            "phase": self.phase,
            "epoch": epoch,
            "batch": batch,
            "best": (self._best.score, self._best.phase, self._best.epoch, self._best.loss),
            "rows": self._table.rows,
            "seconds": self.seconds,
            "phase_seconds": now - self._phase_began,
            "epoch_seconds": now - self._table.epoch_began,
            "run_seconds": now - self._run_began,
            "frozen": self._frozen_digest(),
            "ranks": ranks,
        }

    def _frozen_digest(self) -> str:
        """Of all that no phase has changed yet: a checkpoint leaves it out, since the run begins with it each time."""
        if self._frozen[0] != self._changing:
            frozen = {name: tensor for name, tensor in self._classifier.state_dict().items() if name not in self._changing}
            self._frozen = self._changing, digest(frozen)
        return self._frozen[1]

    def without_frozen(self, state: Mapping[str, Any]) -> dict[str, Any]:
        frozen = {f"classifier.{name}" for name in self._classifier.state_dict().keys() - self._changing}
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
    """Lightning writes through it. Where to is decided here, not by Lightning."""

    def __init__(self, saves: Checkpoints) -> None:
        self._saves = saves

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self._saves.write(checkpoint)

    def load_checkpoint(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        return self._saves.with_frozen(super().load_checkpoint(*arguments, **named))


def _rewind(fit_loop: dict[str, Any], *, epoch: int, batch: int, batches: int) -> None:
    """Lightning's counters as they have to stand for it to go on with this batch of this epoch.

    2.6 takes what it saved at the start of an epoch for an epoch that is done, and what it saved after the last batch of training for
    one whose validation is done.
    """
    started = epoch + (batch > 0)
    for tracker in _trackers(fit_loop["epoch_progress"]):
        tracker.update(ready=started, started=started, processed=epoch, completed=epoch)
    training = fit_loop["epoch_loop.batch_progress"]
    if batch == batches:
        for tracker in _trackers(training):
            tracker["completed"] = tracker["ready"]
        training["is_last_batch"] = True
        # A validation whose first batch has begun and isn't done: Lightning runs it, from the first batch on.
        validation = fit_loop["epoch_loop.val_loop.batch_progress"]
        for tracker in _trackers(validation):
            tracker.update(ready=1, started=1, processed=0, completed=0)
        validation["is_last_batch"] = False
    fit_loop["state_dict"].pop("combined_loader", None)


def _trackers(progress: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    return progress["total"], progress["current"]


def _part(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _mine(ranks: list[Any]) -> dict[str, Any]:
    """Of this process; where it has none, of the first."""
    rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
    mine: dict[str, Any] = ranks[rank if rank < len(ranks) else 0]
    return mine
