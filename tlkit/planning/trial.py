"""A short fit of one phase on a copy: what `tlkit plan` times and `tlkit lr` sweeps. Nothing of it stays."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import cast

import torch
from lightning.pytorch import Callback

from tlkit.data.augment import Augmentation
from tlkit.data.datamodule import ImageDataModule
from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import Samples
from tlkit.errors import RunError
from tlkit.models.classifier import Classifier
from tlkit.recipe.fields.learning import Schedule
from tlkit.recipe.fields.phases import Phase
from tlkit.recipe.schema import Recipe
from tlkit.training.cache.activations import digest
from tlkit.training.checkpointing.rng import generator_states, set_generators
from tlkit.training.module import PhaseModule
from tlkit.training.objective.objective import build_objective
from tlkit.training.phases import build_module
from tlkit.training.specs import Learning, PhaseSpec
from tlkit.training.trainer import build_trial_trainer, fit_unsaved


@dataclass(frozen=True)
class Trial:
    """What phases are tried on: never changed, for each trial copies it. batch_size: of one device."""

    recipe: Recipe
    classifier: Classifier
    preprocessing: Preprocessing
    augmentation: Augmentation | None
    samples: Samples
    batch_size: int
    device: str

    def data(self, samples: Samples, batch_size: int) -> ImageDataModule:
        """Return a data module as the run's, of some images, which reads them in this process."""
        balanced, seed = self.recipe.imbalance == "sampler", self.recipe.seed
        return ImageDataModule(
            samples, self.preprocessing, self.augmentation, batch_size=batch_size, workers=0, seed=seed, balanced=balanced
        )


def try_phase(
    classifier: Classifier,
    data: ImageDataModule,
    learning: Learning,
    spec: PhaseSpec,
    *,
    callback: Callback,
    **limits: int,
) -> PhaseModule:
    """Train a copy of the classifier as the phase would, at a constant learning rate and on one device, and return what was trained.

    spec: of a phase that trains by gradients. limits: Lightning's `max_steps`, `limit_train_batches` and the like.
    """
    # Compiling takes longer than a trial.
    phase = cast(Phase, spec.phase).model_copy(update={"compile": False})
    copied = deepcopy(classifier)
    copied.train_only(spec.trained, spec.batchnorm, phase.adapter)
    learning = replace(learning, schedule=Schedule(name="constant", warmup=0.0))
    module = build_module(copied, data, build_objective(learning, copied, data.samples), learning, phase)
    trainer = build_trial_trainer(spec.trainer, optimizer=learning.optimizer, callbacks=[callback], **limits)
    fit_unsaved(trainer, module, data)
    return module


@contextmanager
def unchanged(classifier: torch.nn.Module) -> Iterator[None]:
    """Restore the random generators, and verify by hash that they and the classifier are as before.

    Raises RunError if something in the `with` changed the classifier's weights, buffers, gradients wanted or modes.
    """
    before = fingerprint(classifier)
    generators = generator_states()
    try:
        yield
    finally:
        set_generators(generators)
    if (after := fingerprint(classifier)) != before:
        changed = [part for part in before if before[part] != after[part]]
        raise RunError(f"A trial on a copy changed what it must not: {', '.join(changed)}.\n  This is a bug in tlkit: please report it.")


def fingerprint(classifier: torch.nn.Module) -> dict[str, str]:
    """Hash the weights and buffers, what trains and in which mode, and each random generator's state."""
    trains = [(name, parameter.requires_grad, parameter.grad is None) for name, parameter in classifier.named_parameters()]
    modes = [(name, module.training) for name, module in classifier.named_modules()]
    states = generator_states()
    generators = {
        "Python's generator": repr(states["python"]),
        "numpy's generator": repr(states["numpy"]),
        "torch's generator": states["torch"].numpy().tobytes().hex(),
        "CUDA's generators": repr([state.numpy().tobytes() for state in states["cuda"]]),
    }
    texts = {"what trains": repr(trains), "train mode": repr(modes), **generators}
    return {"weights": digest(classifier.state_dict()), **{part: sha256(text.encode()).hexdigest() for part, text in texts.items()}}
