"""A recipe on one screen, for `tlkit check`."""

from tlkit.recipe.schema import Recipe, Strict


def recipe_summary(recipe: Recipe) -> str:
    """One line a part of the recipe, one line a phase; defaults included where they matter to the result."""
    data, model = recipe.data, recipe.model
    pictures = f"{data.image_size} px by {data.resize}, {data.channels_in_words}"
    rows = [
        ("name", f"{recipe.name}, seed {recipe.seed}"),
        ("data", f"{_words(data.source)}; {pictures}, normalize {data.normalize}, batches of {data.batch_size}"),
        ("task", f"{recipe.task}, imbalance {recipe.imbalance}"),
        ("augment", ", ".join(transform.name for transform in recipe.augment) or "nothing"),
        ("model", f"{model.backbone}, weights {_words(model.weights)}, head {model.head.kind} with dropout {model.head.dropout}"),
    ]
    for index, phase in enumerate(recipe.phases):
        decay = f", layer_decay {phase.layer_decay}" if phase.layer_decay is not None else ""
        epochs = f"{phase.epochs} epoch{'' if phase.epochs == 1 else 's'}"
        rows.append((f"phases[{index}]", f"train {_words(phase.train)}, {epochs}, lr {phase.lr}{decay}"))
    optimizer, schedule, trainer = recipe.optimizer, recipe.schedule, recipe.trainer
    rows.append(("optimizer", f"{optimizer.name}, weight_decay {optimizer.weight_decay}; {schedule.name} lr, warmup {schedule.warmup}"))
    rows.append(("trainer", f"accelerator {trainer.accelerator}, devices {trainer.devices}, precision {trainer.precision}"))
    return "\n".join(f"  {part:<11}{words}" for part, words in rows)


def _words(value: Strict | str) -> str:
    """`pretrained`, or `from layer4` for the one-key mapping {from: layer4}."""
    return value if isinstance(value, str) else " ".join(map(str, next(iter(value.model_dump(by_alias=True).items()))))
