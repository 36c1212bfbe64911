"""All private and unstable APIs of Lightning, torchmetrics and torch that tlkit uses.

tests/training/test_private_api.py fails if another minor version is installed than those in TESTED: then check each function.
"""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

TESTED = {"lightning": ("2.6",), "torchmetrics": ("1.9",)}
"""Package -> the minor versions that these functions were tested with; pyproject.toml pins lightning to them."""


# --- Lightning: loops and their counters ---


def accumulates(trainer: Any) -> bool:
    """Return whether the batch that just ran makes no step of the optimizer yet."""
    return bool(trainer.fit_loop._should_accumulate())


def batch_index(trainer: Any) -> int:
    """Return the index of the training batch that runs, counted from 0, where a hook isn't given it."""
    return int(trainer.fit_loop.epoch_loop.batch_idx)


def resumed_mid_epoch(trainer: Any) -> bool:
    return bool(trainer.fit_loop.restarted_mid_epoch)


def forget_resuming(trainer: Any) -> None:
    """Reset the resumed flag: Lightning 2.6 keeps it until the end of a resumed epoch, and then doesn't step a plateau schedule."""
    trainer.fit_loop.restarting = False


def rewind(checkpoint: dict[str, Any], *, epoch: int, batch: int, batches: int) -> None:
    """Set Lightning's counters in a checkpoint so that it goes on with this batch of this epoch, counted from 0.

    2.6 takes what it saved at the start of an epoch for an epoch that is done, and what it saved after the last batch of training for
    one whose validation is done.
    """
    fit_loop = checkpoint["loops"]["fit_loop"]
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


def is_within_phase(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether Lightning has written its part of a checkpoint."""
    return "loops" in checkpoint


def training_weights(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the weights that train: with a moving average, Lightning has that one in place of them, and these beside it."""
    weights: Mapping[str, Any] = checkpoint.get("current_model_state", checkpoint["state_dict"])
    return weights


WEIGHTS = ("state_dict", "current_model_state")
"""Key of the weights in a checkpoint."""


def swap_back_average(trainer: Any, module: Any) -> None:
    """Swap the trained weights in for their moving average, within validation."""
    from lightning.pytorch.callbacks import WeightAveraging

    for callback in trainer.callbacks:
        if isinstance(callback, WeightAveraging):
            callback.on_validation_epoch_end(trainer, module)


# --- Lightning: signals and processes ---


@contextmanager
def keyboard_interrupt_kept() -> Iterator[None]:
    """Undo what Lightning 2.6 does to KeyboardInterrupt: it raises SystemExit and leaves SIGINT ignored."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if in_main_thread and handler is not None:
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error


def restore_sigterm(trainer: Any) -> None:
    """Restore the previous handler in place of Lightning's, which with several processes broadcasts wherever Python happens to be."""
    handler = trainer._signal_connector._original_handlers.get(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def starts_scripts(strategy: Any) -> bool:
    """Return whether a strategy's launcher runs the same command once more for each device."""
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

    return isinstance(strategy.launcher, _SubprocessScriptLauncher)


def start_scripts(strategy: Any) -> list[Any]:
    """Start them, and return the processes. Not by launch(): the observer that this would start kills all processes, and says nothing."""
    strategy.launcher._call_children_scripts()
    started: list[Any] = strategy.launcher.procs
    return started


def set_timeout(strategy: Any, timeout: Any) -> None:
    """Set an argument of DDPStrategy, which Lightning has created by its name."""
    strategy._timeout = timeout


# --- torch and torchmetrics ---


def add_to_store(key: str) -> int:
    """Add 1 to a counter that the processes of a run share, and return its value."""
    from torch import distributed

    return int(distributed.distributed_c10d._get_default_store().add(key, 1))


def leave_out_of_ddp(module: Any, buffers: list[str]) -> None:
    """Keep DDP from broadcasting buffers that are the same in every process for good."""
    module._ddp_params_and_buffers_to_ignore = buffers


def metric_state(metric: Any) -> tuple[int, dict[str, Any]]:
    return metric.update_count, metric.metric_state


def set_metric_state(metric: Any, state: tuple[int, dict[str, Any]], device: Any) -> None:
    """Set a metric's counts, for which torchmetrics 1.9 has no public way; otherwise it warns that nothing was counted."""
    metric._update_count, states = state
    for name, value in states.items():
        setattr(metric, name, value.to(device))
