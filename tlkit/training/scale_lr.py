"""`trainer.scale_lr`: scale batch size and learning rates from one device to all."""

import logging
from math import sqrt

from tlkit.recipe.fields.phases import Phase
from tlkit.recipe.schema import Recipe
from tlkit.training.distributed.ranks import is_main_process

LOG = logging.getLogger("tlkit")


def with_scaled_lr(recipe: Recipe) -> Recipe:
    """Return the recipe for all devices together, logged, without `scale_lr`; unchanged if it has none.

    n devices process n times batch_size images per step; lr is multiplied by n (`linear`: n small steps become one large one) or by its
    square root (`sqrt`: the noise of a step stays the same, as is recommended for Adam and its relatives).
    Raises DeviceError if this machine doesn't have the devices.

    Source of linear: Goyal et al. 2017, section 2.1, https://arxiv.org/abs/1706.02677; of sqrt: Krizhevsky 2014, section 5,
    https://arxiv.org/abs/1404.5997
    """
    scale = recipe.trainer.scale_lr
    if not scale:
        return recipe
    from tlkit.training.trainer import check_devices

    devices = check_devices(recipe.trainer).total
    factor = devices if scale == "linear" else sqrt(devices)
    size = recipe.data.known_batch_size
    phases = tuple(phase.model_copy(update={"lr": phase.lr * factor}) if isinstance(phase, Phase) else phase for phase in recipe.phases)
    if is_main_process() and devices > 1:
        LOG.info("trainer.scale_lr: %d devices take %d x %d images a step, at lr x %.3g", devices, devices, size, factor)
    data = recipe.data.model_copy(update={"batch_size": size * devices})
    trainer = recipe.trainer.model_copy(update={"scale_lr": False})
    return recipe.model_copy(update={"data": data, "phases": phases, "trainer": trainer}).at_places_of(recipe)
