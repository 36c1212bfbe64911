"""A recipe on one screen, for `tlkit check`."""

from collections.abc import Iterator

from tlkit.recipe.explain import format_value
from tlkit.recipe.fields.data import Data, FindBatchSize
from tlkit.recipe.fields.learning import Mix
from tlkit.recipe.fields.model import CLASSICAL_HEADS, Head
from tlkit.recipe.fields.phases import SolvedPhase
from tlkit.recipe.fields.search import Range
from tlkit.recipe.fields.strict import Strict
from tlkit.recipe.schema import Recipe
from tlkit.terminal import counted

FROZEN_ACCURACY = {"weights": 0.842, "dataset": 0.834, "pixelwise": 0.824, "none": 0.824}
"""Mean over seeds 0 to 2 of `tlkit finetune quickstart data.normalize=... data.image_size=96 augment=[]`, with one phase:
`{train: head, epochs: 10, lr: 3e-3}`. See docs/splits_and_statistics.md."""


READ_BY = {
    "schedule.factor": ("step", "plateau"),
    "schedule.every": ("step",),
    "schedule.patience": ("plateau",),
    "optimizer.momentum": ("momentum", "nesterov", "rmsprop"),
}
"""Key -> the names of its part that read it; the other ones ignore it."""


def recipe_summary(recipe: Recipe) -> str:
    """Return one line per part of the recipe and one per phase; defaults are included if they matter to the result."""
    data, model = recipe.data, recipe.model
    images = f"{data.image_size} px by {data.resize}, {data.channels_label}"
    features = ", features conv" if model.features == "conv" else ""
    rows = [
        ("name", f"{recipe.name}, seed {recipe.seed}"),
        ("data", f"{_words(data.source)}; {images}, normalize {data.normalize}, batches {_batches(data)}"),
        *([("limit", f"{data.limit:g} of the images" if data.limit < 1 else counted(int(data.limit), "image"))] if data.limit else []),
        *([("folds", f"{data.folds} runs, each validated on its own fold")] if data.folds else []),
        ("task", f"{recipe.task}, imbalance {recipe.imbalance}"),
        ("augment", ", ".join(transform.name for transform in recipe.augment) or "nothing"),
        ("model", f"{model.backbone}{features}, weights {_words(model.weights)}, {_head_words(model.head)}"),
    ]
    for index, phase in enumerate(recipe.phases):
        if isinstance(phase, SolvedPhase):
            decay = "chosen on validation" if phase.weight_decay is None else phase.weight_decay
            rows.append((f"phases[{index}]", f"train head, solved by L-BFGS on the features, weight_decay {decay}"))
            continue
        settings = {key: getattr(phase, key) for key in ("backbone_lr", "layer_decay", "batchnorm", "precision")}
        more = [f"{key} {value}" for key, value in settings.items() if value not in (None, "auto")]
        words = [f"train {_words(phase.train)}", counted(phase.epochs, "epoch"), f"lr {phase.lr}", *more]
        rows.append((f"phases[{index}]", ", ".join([*words, "compiled"] if phase.compile else words)))
    if recipe.wise_ft:
        rows.append(("wise_ft", "ships the blend of before and after fine-tuning that validates best"))
    optimizer, schedule, trainer = recipe.optimizer, recipe.schedule, recipe.trainer
    rows.append(("optimizer", f"{optimizer.name}, weight_decay {optimizer.weight_decay}; {schedule.name} lr{_warmup(recipe)}"))
    rows.append(("trainer", f"accelerator {trainer.accelerator}, devices {trainer.devices}, precision {trainer.precision}"))
    rows += [("search", f"{key}: {_range_words(values)}") for key, values in (recipe.search or {}).items()]
    return "\n".join(f"  {part:<11}{words}" for part, words in rows)


def _warmup(recipe: Recipe) -> str:
    if recipe.schedule.warmup is not None:
        return f", warmup {recipe.schedule.warmup:g}"
    shares = {recipe.schedule.of_phase(phase.train).warmup or 0.0 for phase in recipe.gradient_phases.values()}
    return f", warmup {max(shares):g} beyond the head" if any(shares) else ""


def _range_words(values: Range) -> str:
    if values.choice is not None:
        return f"one of {', '.join(map(format_value, values.choice))}"
    kind = "whole numbers from " if values.integer is not None else ""
    low, high = values.ends
    return f"{kind}{low:g} to {high:g}{', by order of magnitude' if values.log is not None else ''}"


def recipe_warnings(recipe: Recipe) -> list[str]:
    """Return warnings: settings that are allowed but very likely cost accuracy."""
    normalize = recipe.data.normalize
    frozen_first = not recipe.phases or recipe.phases[0].train == "head"
    if normalize == "weights" or recipe.model.weights == "random" or not frozen_first:
        return []
    reached, instead = FROZEN_ACCURACY[normalize], FROZEN_ACCURACY["weights"]
    return [
        f"data.normalize = '{normalize}' gives a frozen backbone inputs that its weights were not trained with. On tlkit's own images "
        f"a head on a frozen backbone then reached a test accuracy of {reached} instead of {instead}: use `normalize: weights`."
    ]


def _batches(data: Data) -> str:
    size = data.batch_size
    return f"{size.find:g} of the largest that fits" if isinstance(size, FindBatchSize) else f"of {size}"


def recipe_notes(recipe: Recipe) -> list[str]:
    """Return notes: settings whose effect is not what everybody would expect."""
    kind = recipe.model.head.kind
    notes = [*_notes_on_augment(recipe), *_notes_on_ignored(recipe)]
    if (scale := recipe.trainer.scale_lr) and recipe.gradient_phases:
        factor = "n" if scale == "linear" else "the square root of n"
        notes.append(f"trainer.scale_lr: n devices take n x {recipe.data.known_batch_size} images a step, at lr times {factor}.")
    if recipe.data.normalize == "pixelwise":
        notes.append(
            "the mean image is computed without augmentation and subtracted after augmentation. It is saved in the model folder; "
            "plain timm doesn't use it: there, compute (pixels / 255 - mean image) / std yourself."
        )
    if kind not in CLASSICAL_HEADS:
        return notes + _notes_on_solved(recipe)
    notes += [
        f"phases[{i}] is not run: it would train only the head, which scikit-learn fits."
        for i in range(len(recipe.phases))
        if i not in recipe.run_phases
    ]
    if recipe.augment and not recipe.gradient_phases:
        notes.append(f"augment is not used: no phase trains by gradients, and scikit-learn fits the {kind} head without augmentation.")
    if kind == "knn":
        notes.append("a knn head stores the features of all training images: predict and evaluate use it, but it can't be exported.")
    return notes


def _notes_on_ignored(recipe: Recipe) -> Iterator[str]:
    """Yield a note on every key that the recipe gives, and that its other keys leave without effect."""
    for key, names in READ_BY.items():
        section, _, name = key.partition(".")
        part = getattr(recipe, section)
        if part.name not in names and f"{section}.name" not in (recipe.search or {}) and _is_given(part, name):
            yield f"{key} = {getattr(part, name):g} does nothing: {section}.name is {part.name}, and it is for {', '.join(names)}."
    for i, phase in recipe.gradient_phases.items():
        if phase.train == "head" and phase.batchnorm != "auto":
            yield f"phases[{i}].batchnorm = '{phase.batchnorm}' does nothing: only the head trains, and all below it is held as it is."
    if recipe.cache.views and not (recipe.augment and recipe.cache.use):
        why = "augment is empty" if recipe.cache.use else "cache.use is false"
        yield f"cache.views = {recipe.cache.views} does nothing: {why}."
    if not recipe.gradient_phases:
        is_fitted, loss = recipe.model.head.kind in CLASSICAL_HEADS, recipe.loss
        ignored = {"ema": recipe.ema, "early_stopping": recipe.early_stopping, "loss.l2_sp": loss.l2_sp}
        ignored |= {"loss.label_smoothing": loss.label_smoothing} if is_fitted else {}  # a solved phase smooths labels too
        if given := [key for key, value in ignored.items() if value]:
            yield f"{', '.join(given)} {'do' if len(given) > 1 else 'does'} nothing: no phase trains by gradients."


def _is_given(part: Strict, key: str) -> bool:
    """Return whether the recipe itself gives the key. One that tlkit wrote gives all: there, whether it isn't the default."""
    fields = type(part).model_fields
    is_written_out = part.model_fields_set == fields.keys()
    return key in part.model_fields_set and not (is_written_out and getattr(part, key) == fields[key].default)


def _notes_on_augment(recipe: Recipe) -> list[str]:
    """Return notes on transforms: torchvision's TrivialAugment shifts by up to 32 pixels, RandAugment by a share of the image."""
    if recipe.data.margin > 1 and not recipe.augment:
        return [f"data.margin = {recipe.data.margin:g} does nothing: augment is empty, and training images are those that validation sees."]
    size = recipe.data.image_size
    if size < 64 and any(transform.name == "trivialaugment" for transform in recipe.augment):
        return [f"trivialaugment moves images by up to 32 pixels whatever their size, and these have {size}: randaugment goes by size."]
    return []


def _notes_on_solved(recipe: Recipe) -> list[str]:
    unused = [
        name
        for name, given in (("augment", recipe.augment), ("mix", recipe.mix != Mix()), ("head dropout", recipe.model.head.dropout))
        if given
    ]
    return [
        f"phases[{i}] is solved on training images without {' or '.join(unused)}."
        for i, phase in enumerate(recipe.phases)
        if isinstance(phase, SolvedPhase) and unused
    ]


def _head_words(head: Head) -> str:
    pooled = f", pool {head.pool}" if head.pool else ""
    fitted = ", fitted by scikit-learn" if head.kind in CLASSICAL_HEADS else f" with dropout {head.dropout}"
    return f"head {head.kind}{fitted}{pooled}"


def _words(value: Strict | str) -> str:
    """Return `pretrained`, `from layer4` for the one-key mapping {from: layer4}, or `lora rank 8` for {lora: {rank: 8}}."""
    if isinstance(value, str):
        return value
    key, inner = next(iter(value.model_dump(by_alias=True).items()))
    return f"{key} {_words_of(inner)}" if isinstance(inner, dict) else f"{key} {inner}"


def _words_of(values: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def precision_warning(recipe: Recipe, device: str) -> list[str]:
    """Return a line where phases ask a CPU for 16-mixed: Lightning takes bf16-mixed for it."""
    asked = [f"phases[{i}]" for i, phase in recipe.gradient_phases.items() if recipe.trainer_of(phase).precision == "16-mixed"]
    if device != "cpu" or not asked:
        return []
    return [f"{', '.join(asked)}: a CPU computes in bf16-mixed where 16-mixed is asked for. Set precision to bf16-mixed or 32-true."]
