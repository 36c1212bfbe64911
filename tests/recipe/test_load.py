"""Recipes are read as YAML 1.2, and everything that is wrong with one is reported at once, with its place and the fix."""

import math
import re
from pathlib import Path
from typing import get_args

import pytest

from tlkit.errors import Fault, RecipeError
from tlkit.recipe.fields.model import Model, PackageWeights
from tlkit.recipe.fields.phases import FromStage, SolvedPhase
from tlkit.recipe.fields.trainer import Trainer
from tlkit.recipe.load import find_recipe, load_recipe, recipe_yaml
from tlkit.recipe.schema import Recipe
from tlkit.system import shipped

SOUND = """\
name: trial
data:
  source: {folder: photos}
model:
  backbone: resnet18
phases:
  - {train: head, epochs: 2, lr: 1e-3}
  - train: {from: layer4}
    epochs: 3
    lr: 3e-4
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "trial.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def faults_of(path: Path | str, *overrides: str) -> list[Fault]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return list(caught.value.faults)


def only_fault(path: Path | str, *overrides: str) -> Fault:
    (fault,) = faults_of(path, *overrides)
    return fault


def with_override(tmp_path: Path, *overrides: str) -> Recipe:
    return load_recipe(write(tmp_path, SOUND), overrides)


# --- shipped recipes ---

SHIPPED = sorted(shipped("recipes").rglob("*.yaml"))


def test_the_degradation_pair_differs_in_name_and_backbone_alone() -> None:
    plain, residual = (load_recipe(f"degradation_{name}").model_dump() for name in ("plain34", "residual34"))
    assert (plain.pop("name"), residual.pop("name")) == ("degradation_plain34", "degradation_residual34")
    assert (plain["model"].pop("backbone"), residual["model"].pop("backbone")) == ("plain34", "resnet34")
    assert plain == residual


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_is_named_as_its_file_and_survives_the_round_trip(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert f"tlkit finetune recipes/{path.name}" in path.read_text()
    again = load_recipe(write(tmp_path, recipe_yaml(recipe)))
    assert again.model_dump() == recipe.model_dump()


def test_the_cifar_recipe_says_what_the_design_says() -> None:
    recipe = load_recipe("recipes/cifar_resnet.yaml")
    assert (recipe.data.source.model_dump(), recipe.data.image_size) == ({"torchvision": "CIFAR10"}, 224)
    assert (recipe.model.backbone, recipe.model.weights, recipe.model.head.dropout) == ("resnet18", "pretrained", 0.2)
    assert [transform.name for transform in recipe.augment] == ["HorizontalFlip", "Rotate", "Affine"]
    assert recipe.augment[2].arguments == {"scale": [0.9, 1.1], "translate_percent": 0.1}
    assert [phase.train for phase in recipe.phases] == ["head", "all"]


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "recipes/quickstart.yaml"])
def test_a_shipped_recipe_is_found_by_name_from_any_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name) == shipped("recipes/quickstart.yaml")


def test_a_file_of_the_user_comes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart.yaml").write_text(SOUND)
    assert load_recipe("quickstart.yaml").name == "trial"


# --- values ---


def test_a_sound_recipe_has_its_values_and_the_defaults(tmp_path: Path) -> None:
    recipe = with_override(tmp_path)
    assert [phase.lr for phase in recipe.phases] == [0.001, 0.0003]
    assert recipe.phases[1].train == FromStage.model_validate({"from": "layer4"})
    assert (recipe.seed, recipe.data.batch_size, recipe.optimizer.name, recipe.early_stopping) == (0, 64, "adamw", None)


@pytest.mark.parametrize("word", ["off", "no", "on", "yes", "2024-01-01", "1_000", "0777x", "12:30:00"])
def test_words_that_yaml_1_1_would_convert_stay_text(word: str, tmp_path: Path) -> None:
    assert with_override(tmp_path, f"data.root={word}").data.root == word


@pytest.mark.parametrize(("text", "number"), [("1e-3", 1e-3), ("1E+2", 100.0), (".5", 0.5), ("1.", 1.0), ("+2.5e0", 2.5), ("3", 3.0)])
def test_numbers_are_read_as_yaml_1_2_writes_them(text: str, number: float, tmp_path: Path) -> None:
    assert with_override(tmp_path, f"phases[0].lr={text}").phases[0].lr == number


TRICKY = [
    "off",
    "null",
    "~",
    "1e-3",
    "0o17",
    "0x1F",
    "1.",
    ".5",
    "+.inf",
    ".nan",
    "true",
    "",
    " a ",
    "a: b",
    "# c",
    "ü",
    "a\nb",
    "*a",
    "!b",
    "1_0",
    "-",
]


def test_text_that_looks_like_something_else_survives_the_round_trip(tmp_path: Path) -> None:
    values = load_recipe(write(tmp_path, SOUND)).model_dump(by_alias=True)
    values["augment"] = [{"name": "Rotate", "arguments": {"limit": [1, -2.5e-7, None, True, *TRICKY]}}, {"name": "D4", "arguments": {}}]
    recipe = Recipe.model_validate(values)
    assert load_recipe(write(tmp_path, recipe_yaml(recipe))).model_dump() == recipe.model_dump()


def test_every_key_knows_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND)
    recipe = load_recipe(path, ["data.image_size=64"])
    lines = {key: recipe.place_of(key) for key in ("name", "data.source.folder", "phases[0].train", "phases[1].train.from", "phases[1].lr")}
    assert lines == {
        "name": f"{path}:1",
        "data.source.folder": f"{path}:3",
        "phases[0].train": f"{path}:7",
        "phases[1].train.from": f"{path}:8",
        "phases[1].lr": f"{path}:10",
    }
    assert recipe.place_of("data.image_size") == "override data.image_size=64"
    assert recipe.place_of("model.head.dropout") == f"{path}:4", "a default has the place of the part it belongs to"


def test_a_fault_that_is_found_later_gets_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND)
    recipe = load_recipe(path)
    with pytest.raises(RecipeError, match=re.escape(f"{path}:8: phases[1].train.from = 'layr4' is")), recipe.located():
        raise RecipeError([Fault("phases[1].train.from", "= 'layr4' is not a stage of resnet18.", "Expected one of: layer4.")])


# --- faults ---


def test_all_faults_are_reported_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = SOUND.replace("name: trial", "name: trial\nsede: 1").replace("backbone", "bakbone").replace("epochs: 3", "epochs: 0")
    faults = faults_of(write(tmp_path, text + "augment: [Rotat]\n"))
    assert [(fault.place.rpartition(":")[2], fault.key) for fault in faults] == [
        ("2", "sede"),
        ("5", "model.backbone"),
        ("6", "model.bakbone"),
        ("10", "phases[1].epochs"),
        ("12", "augment[0].Rotat"),
    ]


def test_the_message_has_place_key_problem_and_fix(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND.replace("backbone", "bakbone: x\n  backbone"))
    assert str(only_fault(path)) == (
        f"{path}:5: model.bakbone is not a key of model.\n  Expected one of: {', '.join(Model.model_fields)}. Did you mean 'backbone'?"
    )


@pytest.mark.parametrize("other", ["mix={mixup: 0.2}", "wise_ft=true", "imbalance=sampler"])
def test_what_needs_gradients_has_no_place_beside_a_classical_head(other: str, tmp_path: Path) -> None:
    fault = only_fault(write(tmp_path, SOUND), "model.head={kind: svm}", other)
    assert fault.key == other.partition("=")[0]
    assert "has no place here: scikit-learn fits a svm head" in fault.problem


def test_wise_ft_needs_a_head_phase_before_the_others(tmp_path: Path) -> None:
    assert with_override(tmp_path, "wise_ft=true").wise_ft
    for phases in ("[{train: all, epochs: 1, lr: 1e-3}]", "[{train: head, epochs: 1, lr: 1e-3}]"):
        fault = only_fault(write(tmp_path, SOUND), "wise_ft=true", f"phases={phases}")
        assert "needs weights to blend with" in fault.problem


def test_a_classical_head_needs_no_phases(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, SOUND), ["model.head={kind: knn}", "phases=[]"]).phases == ()


def test_a_known_key_in_the_wrong_part_is_reported_where_it_belongs(tmp_path: Path) -> None:
    assert "Did you mean phases[0].lr?" in only_fault(write(tmp_path, SOUND + "optimizer: {lr: 1e-3}\n")).fix


@pytest.mark.parametrize(
    ("override", "problem", "fix"),
    [
        ("data.image_size='224'", "= '224' is text.", "Expected a whole number from 8 to 4096: side .* Write it without quotes: 224"),
        ("data.image_size=64.0", "= 64.0 is a number with a point.", "Did you mean 64?"),
        ("data.image_size=4", "= 4 is out of range.", "Expected a whole number from 8 to 4096"),
        ("data.image_size=[8]", "= [8] is a list.", "Expected a whole number"),
        ("data.image_size=true", "= true is a truth value.", "Expected a whole number"),
        ("data.image_size=", "is empty.", "Expected a whole number"),
        ("data.image_size=.inf", "= .inf is a number with a point.", "Expected a whole number"),
        ("data.validation=1", "= 1 is out of range.", "Expected a number above 0 and below 1: share"),
        ("data.resize=corp", "= 'corp' can't be used.", "Expected one of: crop, pad, stretch. Did you mean 'crop'?"),
        ("data.root=7", "= 7 is a whole number.", "Expected text: folder for downloads. Write it in quotes: '7'"),
        ("data.workers=many", "= 'many' can't be used.", "Expected a whole number of at least 0 or auto"),
        ("data.workers=-1", "= -1 is out of range.", "Expected a whole number of at least 0 or auto"),
        ("name=a b", "= 'a b' can't be used.", "letters, digits and . _ -"),
        ("name=", "is empty.", "Expected text"),
        ("seed=4294967296", "= 4294967296 is out of range.", "at least 0 and below 4294967296"),
        ("phases[0].lr=0", "= 0 is out of range.", "Expected a number above 0: highest learning rate."),
        ("phases[0].lr=.nan", "= .nan is out of range.", "Expected a number above 0"),
        ("phases[0].lr=.inf", "= .inf is out of range.", "Expected a number above 0"),
        ("model.head={kind: knn, hidden: 3}", "= 3 does nothing: it is of mlp, and kind is knn.", "Remove it, or set kind to mlp"),
        ("model.head={kind: locally_connected, pool: max}", "= 'max', but a locally_connected head sees the map itself.", "Remove it"),
        ("task=multilabel", "= 'multilabel', but a folder source gives an image one label.", "Set data.source to {csv: FILE}"),
        ("phases=[]", "is empty, and a linear head learns in a phase.", "Write at least one, such as {train: head, epochs: 5, lr: 1e-3}."),
        ("phases=head", "= 'head' is text.", "Expected a list of mappings"),
        ("phases[0]=head", "= 'head' is text.", "Expected a mapping with the keys train, epochs, lr"),
        ("trainer.deterministic=yes", "= 'yes' is text.", "Expected true or false.* Did you mean true?"),
        ("phases[0].precision=16-true", "= '16-true' can't be used.", "Expected one of: 32-true, 16-mixed, bf16-mixed."),
        ("trainer.precision=16", "= 16 is a whole number.", "Expected one of 32-true, 16-mixed"),
        (
            "trainer.devices=1.5",
            "= 1.5 is a number with a point.",
            "Expected a whole number of at least -1, a list of whole numbers or text",
        ),
        ("trainer.devices=0", "= 0 leaves no device to train on.", "Expected auto"),
        ("optimizer=adam", "= 'adam' is text.", "Expected a mapping with the keys name, weight_decay, momentum"),
        ("early_stopping={}", "is missing.", "Expected a whole number of at least 1: epochs without"),
        ("data.test=0.95", "= 0.95 and validation = 0.1 leave no images to train on.", "below 1"),
        (
            "phases[0].layer_decay=0.5",
            "= 0.5 does nothing: this phase trains only the head.",
            "Remove it, or set train to all or {from: STAGE}",
        ),
        (
            "model.weights={package: efficientnet-lite0}",
            "holds no weights for backbone 'resnet18'.",
            "Set model.backbone to tf_efficientnet_lite0",
        ),
        (
            "model.features=conv",
            "= 'conv' leaves out the dense layers that VGG and AlexNet end in, and backbone is 'resnet18'.",
            "Remove it, or set model.backbone to another. Expected one of: alexnet, vgg11, vgg11_bn",
        ),
        (
            "phases[0].train={lora: {rank: 8}}",
            "= {lora: ..}, but resnet18 has no linear layers below the head to adapt.",
            "Set it to {from: STAGE}, or model.backbone to one that has some: vit_tiny_patch16_224, convnext_tiny",
        ),
        ("phases[0].train={lora: {rank: 0}}", "= 0 is out of range.", "Expected a whole number of at least 1"),
        ("phases[0].train={lroa: {rank: 8}}", "can't be used.", "Did you mean 'lora'?"),
        # Unions: one fault each, whatever the number of alternatives.
        (
            "data.source={foldr: x}",
            "= {foldr: x} can't be used.",
            "Expected {folder: FOLDER}, {csv: FILE}, {parquet: FILE}, .* Did you mean 'folder'?",
        ),
        (
            "data.source=photos",
            "= 'photos' can't be used.",
            "Expected {folder: FOLDER}, {csv: FILE}, {parquet: FILE}, {torchvision: NAME}, {idx: DIR}, .* or {bundled: fashion_mnist_mini}",
        ),
        ("data.source={}", "= {} can't be used.", "Expected {folder: FOLDER}"),
        ("data.source=", "is empty.", "Expected {folder: FOLDER}"),
        ("data.source={folder: 3}", "= 3 is a whole number.", "Expected text"),
        ("data.source={bundled: fashion}", "= 'fashion' can't be used.", "Expected one of: fashion_mnist_mini."),
        ("data.source={idx: d, classes: a}", "= 'a' is text.", "Expected a list of text: names of the labels 0, 1, 2"),
        ("data.source={idx: d, classes: [a, 2]}", "= [a, 2] can't be used.", "Expected a list of text"),
        ("data.source={idx: d, clases: [a]}", "is not a key of data.source.", "Expected one of: idx, classes. Did you mean 'classes'?"),
        ("data.source={npy: a.npy}", "is missing.", "Expected text: an .npy file with a label for each image"),
        ("data.source={npy: a.npy, idx: d}", "can't stand beside data.source.npy.", "'data.source={idx: DIR}'"),
        ("data.source={csv: a.csv, root: ''}", "is empty.", "Expected text: folder that the paths are relative to"),
        ("data.source.torchvision=MNIST", "can't stand beside data.source.folder.", "'data.source={torchvision: NAME}'"),
        (
            "phases[0].train=haed",
            "= 'haed' can't be used.",
            "Expected head, all, norm, bias, {from: STAGE}, {last: N}, {lora: {rank: R}} or {dora: {rank: R}}: .* Did you mean 'head'?",
        ),
        (
            "phases[0].train={frm: layer4}",
            "= {frm: layer4} can't be used.",
            "Expected head, all, norm, bias, {from: STAGE}, {last: N}, {lora: {rank: R}} or {dora: {rank: R}}.* Did you mean 'from'?",
        ),
        ("phases[0].train={from: 4}", "= 4 is a whole number.", "Expected text: the first stage that trains.* Write it in quotes: '4'"),
        ("phases[0].train={from: layer4, too: layer2}", "is not a key of phases[0].train.", "Expected one of: from."),
        (
            "model.weights=pretraind",
            "= 'pretraind' can't be used.",
            "Expected pretrained, random, {file: FILE}, .* Did you mean 'pretrained'?",
        ),
    ],
)
def test_a_value_that_cannot_be_used_is_one_fault_with_what_was_expected(override: str, problem: str, fix: str, tmp_path: Path) -> None:
    fault = only_fault(write(tmp_path, SOUND), override)
    assert problem in fault.problem
    assert all(part in fault.fix for part in fix.split(".* ")), fault.fix
    assert fault.place == f"override {override}"


def test_a_part_that_is_missing_has_the_line_of_what_it_is_missing_from(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND.replace("    lr: 3e-4\n", "").replace("name: trial\n", ""))
    assert [(fault.place, fault.key) for fault in faults_of(path)] == [(f"{path}:1", "name"), (f"{path}:7", "phases[1].lr")]


def test_a_key_given_twice_is_refused_with_both_lines_and_hides_no_other_fault(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND + "seed: -1\nname: other\n")
    seed, name = faults_of(path)
    assert seed.key == "seed"
    assert str(name) == f"{path}:12: name is given twice; the first is at {path}:1.\n  Keep one of the two."


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", None, "is empty."),
        ("# nothing\n", None, "is empty."),
        ("- a\n", 1, "= [a] is a list."),
        ("3\n", 1, "= 3 is a whole number."),
        ("a: b: c\n", 1, "is not valid YAML: mapping values are not allowed here."),
        ("a: 1\nb: [1,\n", 3, "is not valid YAML"),
        ("a:\n\tb: 1\n", 2, "is not valid YAML"),
        ("a: 'b\n", 2, "is not valid YAML"),
        ("a: \x07\n", 1, "is not valid YAML"),
        ("a: 1\n---\nb: 2\n", 2, "a second document begins here"),
        ("a: " + "[" * 30 + "]" * 30, 1, "is nested deeper than 20 levels."),
        ("a: " + "{a: " * 5000, 1, "is nested deeper than 20 levels."),
        (b"a: 1\nb: caf\xe9\n", 2, "is not UTF-8 text."),
        (b"\xff\xfea\x00", 1, "is not UTF-8 text."),
        (b"# " + b"x" * 200_001, None, "is larger than 200 kB."),
        ("a: [" + "1," * 4000 + "]", 1, "has more than 4,000 keys and values."),
    ],
)
def test_a_file_that_is_no_recipe_is_reported_in_one_fault(text: str | bytes, line: int | None, problem: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    fault = only_fault(path)
    assert problem in fault.problem
    assert fault.place == (f"{path}:{line}" if line else "")
    assert str(path) in str(fault)


@pytest.mark.parametrize("value", ["!!python/object/apply:os.system [ls]", "!!python/name:os.system", "!thing 3", "!!set {a, b}"])
def test_tags_are_refused_and_nothing_is_made_of_them(value: str, tmp_path: Path) -> None:
    fault = only_fault(write(tmp_path, SOUND + f"trainer:\n  accelerator: {value}\n"))
    assert fault.key == "trainer.accelerator"
    assert "has the YAML tag !" in fault.problem


def test_aliases_are_refused_so_that_they_cannot_multiply(tmp_path: Path) -> None:
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijklm", "bcdefghijklmn", strict=True))
    faults = faults_of(write(tmp_path, SOUND + bomb))
    assert "b[0] = *a is a YAML alias." in {f"{fault.key} {fault.problem}" for fault in faults}


def test_a_missing_file_names_the_nearest_recipe(tmp_path: Path) -> None:
    write(tmp_path, SOUND)
    assert f"Did you mean '{tmp_path / 'trial.yaml'}'?" in only_fault(tmp_path / "tral.yaml").fix
    assert str(only_fault("recipes/cifar_resnt.yaml")).startswith(
        "recipes/cifar_resnt.yaml does not exist.\n  Did you mean 'cifar_resnet'?"
    )


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    write(tmp_path, SOUND)
    assert str(only_fault(tmp_path)) == f"{tmp_path} is a folder, not a recipe.\n  It holds trial.yaml."


def test_a_missing_folder_in_place_of_a_recipe_names_the_nearest_folder_and_init(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    fault = str(only_fault(tmp_path / "photo"))
    assert f"{tmp_path / 'photo'} does not exist.\n  Did you mean the folder {tmp_path / 'photos'}? If it holds a folder" in fault
    assert f"init {tmp_path / 'photos'}" in fault
    assert "tlkit ships these" not in fault


# --- overrides ---


def test_overrides_set_values_lists_and_mappings_in_the_order_given(tmp_path: Path) -> None:
    recipe = with_override(
        tmp_path,
        "phases=[{train: head, epochs: 2, lr: 1e-3}]",
        "phases[0].epochs=5",
        "early_stopping.patience=3",
        "trainer={devices: [0, 1]}",
        "trainer.precision=bf16-mixed",
        "data.source={bundled: fashion_mnist_mini}",
        "augment=[HorizontalFlip, Rotate: {limit: 3}]",
        "augment[1].Rotate.limit=20",
        "name=a=b".replace("a=b", "a-b"),
    )
    assert [(phase.train, phase.epochs, phase.lr) for phase in recipe.phases] == [("head", 5, 1e-3)]
    assert recipe.early_stopping is not None
    assert (recipe.early_stopping.patience, recipe.trainer.devices, recipe.trainer.precision) == (3, [0, 1], "bf16-mixed")
    assert [(item.name, item.arguments) for item in recipe.augment] == [("HorizontalFlip", {}), ("Rotate", {"limit": 20})]


def test_random_weights_take_the_place_of_a_mapping() -> None:
    assert load_recipe("quickstart").model.weights == PackageWeights(package="efficientnet-lite0")
    assert load_recipe("quickstart", ["model.weights=random"]).model.weights == "random"


def test_an_override_mends_a_fault_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND.replace("epochs: 3", "epochs: &a [1, *a]") + "seed: !!x 3\n")
    assert load_recipe(path, ["phases[1].epochs=4", "seed=1"]).phases[1].epochs == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phases[9].epochs=1", "phases[9].epochs can't be set: phases has 2 items, counted from 0.\n  To add one, set the list whole"),
        ("phases[-1].epochs=1", "override = 'phases[-1].epochs' is not the path of a key."),
        ("phases.epochs=1", "phases.epochs can't be set: phases is [{train: head"),
        ("data[0]=1", "data[0] can't be set: data is not a list."),
        ("augment[0]=D4", "augment[0] can't be set: augment has 0 items"),
        ("model.backbone", "override has no '='.\n  Write it as phases[0].epochs=1"),
        ("=3", "override = '' is not the path of a key."),
        ("a b=3", "override = 'a b' is not the path of a key."),
        ("seed={", "seed is not valid YAML"),
        ("seed=*a", "seed = *a is a YAML alias."),
        ("modle.backbone=x", "modle is not a key of a recipe.\n  Expected one of: name,"),
        ("phases[1].train.frm=x", "phases[1].train.frm is not a key of phases[1].train."),
        ("model.backbone.name=x", "model.backbone.name can't be set: model.backbone is 'resnet18', which has no keys."),
        ("phases[0].train.from=x", "phases[0].train is 'head', which has no keys.\n  Set it whole: 'phases[0].train={from: x}'."),
    ],
)
def test_an_override_that_leads_nowhere_is_reported_with_the_override(override: str, message: str, tmp_path: Path) -> None:
    text = str(only_fault(write(tmp_path, SOUND), override))
    assert text.startswith(f"override {override}: ")
    assert message in text


def test_a_faulty_override_is_reported_though_a_later_one_replaces_it(tmp_path: Path) -> None:
    assert only_fault(write(tmp_path, SOUND), "phases[9].lr=1", "phases=[{train: all, epochs: 1, lr: 1}]").key == "phases[9].lr"


def test_a_clash_that_an_override_made_has_the_place_of_the_override(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND.replace("lr: 3e-4", "lr: 3e-4\n    layer_decay: 0.7"))
    fault = only_fault(path, "phases[1].train=head")
    assert (fault.key, fault.place) == ("phases[1].layer_decay", "override phases[1].train=head")


# --- phases of two kinds ---

SOLVED = "phases[0]={train: head, solver: lbfgs"


def test_a_phase_with_a_solver_needs_no_epochs_and_no_lr_and_survives_the_round_trip(tmp_path: Path) -> None:
    recipe = with_override(tmp_path, SOLVED + "}", "wise_ft=true")
    assert isinstance(recipe.phases[0], SolvedPhase)
    assert recipe.phases[0].weight_decay is None
    assert (list(recipe.run_phases), list(recipe.gradient_phases)) == ([0, 1], [1])
    again = load_recipe(write(tmp_path, recipe_yaml(recipe)))
    assert again.model_dump() == recipe.model_dump()


@pytest.mark.parametrize(
    ("overrides", "key", "problem", "fix"),
    [
        (
            [SOLVED + ", epochs: 3}"],
            "phases[0].epochs",
            "can't stand beside phases[0].solver.",
            "Remove one of the two. With solver, expected",
        ),
        (
            [SOLVED + "}", "phases[0].lr=1"],
            "phases[0].lr",
            "can't stand beside phases[0].solver.",
            "keys train, solver and if needed weight",
        ),
        (
            [SOLVED + ", batchnorm: frozen}"],
            "phases[0].batchnorm",
            "is not a key of phases[0].",
            "Expected one of: train, solver, weight_d",
        ),
        ([SOLVED + "}", "phases[0].train=all"], "phases[0].train", "can't be solved", "Set it to head, or give epochs and lr in place of"),
        ([SOLVED + "}", "phases[0].train={from: layer4}"], "phases[0].train", "can't be solved", "Set it to head, or give epochs and lr"),
        ([SOLVED + "}", "phases[0].train=haed"], "phases[0].train", "= 'haed' can't be used.", "Did you mean 'head'?"),
        ([SOLVED + "}", "phases[0].solver=lbgfs"], "phases[0].solver", "= 'lbgfs' can't be used.", "Did you mean 'lbfgs'?"),
        ([SOLVED + ", weight_decay: 0}"], "phases[0].weight_decay", "= 0 is out of range.", "Expected a number above 0"),
        (["phases[1].weight_decay=1"], "phases[1].weight_decay", "is not a key of phases[1].", "Expected one of: train, epochs, lr"),
        (
            [SOLVED + "}", "model.head={kind: mlp}"],
            "model.head.kind",
            "= 'mlp', but phases[0].solver finds a linear head.",
            "Set it to line",
        ),
        (
            [SOLVED + "}", "imbalance=sampler"],
            "imbalance",
            "= 'sampler' draws images by chance",
            "Set it to loss_weights or logit_adjust",
        ),
    ],
)
def test_what_does_not_fit_a_solved_phase_is_one_fault(overrides: list[str], key: str, problem: str, fix: str, tmp_path: Path) -> None:
    fault = only_fault(write(tmp_path, SOUND), *overrides)
    assert fault.key == key
    assert problem in fault.problem
    assert fix in fault.fix
    assert fault.place == f"override {overrides[-1]}"


def test_a_solver_put_on_a_phase_of_the_file_names_the_lines_of_what_has_to_go(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND)
    assert [(fault.place, fault.key) for fault in faults_of(path, "phases[0].solver=lbfgs")] == [
        (f"{path}:7", "phases[0].epochs"),
        (f"{path}:7", "phases[0].lr"),
    ]


def test_a_misspelt_solver_is_reported(tmp_path: Path) -> None:
    faults = faults_of(write(tmp_path, SOUND), "phases[0]={train: head, solvr: lbfgs}")
    assert "Did you mean 'solver'?" in next(fault.fix for fault in faults if fault.key == "phases[0].solvr")


# --- robustness ---


def test_any_value_anywhere_is_reported_and_never_raises_anything_else(tmp_path: Path) -> None:
    """Every key of a whole recipe set to values of every kind: a Recipe or a RecipeError, with a place, comes of it."""
    text = SOUND + "  - {train: head, solver: lbfgs, weight_decay: 1}\naugment: [HorizontalFlip: {p: 0.5}]\n"
    keys = [key for key in load_recipe(write(tmp_path, recipe_yaml(load_recipe(write(tmp_path, text)))))._places if key]
    path = write(tmp_path, text)  # the short one again, which is read 1,500 times
    assert len(keys) > 40
    for key in keys:
        for value in (
            "",
            "3",
            "-1",
            "2.5",
            ".nan",
            "-.inf",
            "true",
            "word",
            "[]",
            "[[1]]",
            "{}",
            "{a: {b: 1}}",
            "{from: {x: 1}}",
            "9" * 500,
        ):
            faults = faults_or_none(path, f"{key}={value}")
            assert all(fault.place and fault.problem and fault.fix for fault in faults), faults


def faults_or_none(path: Path, override: str) -> tuple[Fault, ...]:
    try:
        load_recipe(path, [override])
    except RecipeError as error:
        return error.faults
    return ()


def test_a_value_that_is_not_a_number_is_not_shown_as_one() -> None:
    from tlkit.recipe.explain import format_value

    assert (format_value(math.inf), format_value(None), format_value({"a": ["b", 1.5, True]})) == (".inf", "null", "{a: [b, 1.5, true]}")
    assert len(format_value("x" * 200)) == 80


@pytest.mark.parametrize(
    ("override", "problem", "fix"),
    [
        ("data.background=[1, 2]", "= [1, 2] can't be used.", "Expected a list of 3 whole numbers from 0 to 255"),
        ("data.background=[1, 300, 300]", "= [1, 300, 300] can't be used.", "Expected a list of 3 whole numbers from 0 to 255"),
        ("data.background=white", "= 'white' is text.", "Expected a list of 3 whole numbers"),
        ("data.range_16bit=[0, 70000]", "= [0, 70000] can't be used.", "Expected a list of 2 whole numbers from 0 to 65535"),
        ("data.range_16bit=[9, 9]", "= [9, 9] is no range.", "such as [0, 4095]"),
        ("data={source: {folder: a}, channels: 4, background: [0, 0, 0]}", "= [0, 0, 0] does nothing", "set channels to 3 or 1"),
        ("data.max_pixels=200000000", "= 200000000 is out of range.", "from 1 to 178956970"),
        ("data.on_bad=ignore", "= 'ignore' can't be used.", "Expected one of: error, skip."),
    ],
)
def test_settings_of_the_decoder_are_checked(tmp_path: Path, override: str, problem: str, fix: str) -> None:
    fault = only_fault(write(tmp_path, SOUND), override)
    assert fault.problem.startswith(problem)
    assert fix in fault.fix


def test_settings_of_the_decoder_survive_yaml(tmp_path: Path) -> None:
    recipe = with_override(tmp_path, "data.background=[1, 2, 3]", "data.range_16bit=[0, 4095]", "data.on_bad=skip")
    assert recipe.data.background == (1, 2, 3)
    (tmp_path / "again.yaml").write_text(recipe_yaml(recipe))
    assert load_recipe(tmp_path / "again.yaml").data == recipe.data


def test_a_key_that_several_sources_have_is_suggested_once() -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe("quickstart", ["data.classes=4"])
    assert str(raised.value).endswith("Did you mean data.source.classes?")


@pytest.mark.parametrize("precision", get_args(Trainer.model_fields["precision"].annotation))
def test_every_precision_of_the_schema_is_taken_or_refused_with_the_reason(precision: str) -> None:
    values = {"precision": precision}
    if precision in ("32-true", "16-mixed", "bf16-mixed"):
        assert Trainer.model_validate(values).precision == precision
    else:
        with pytest.raises(ValueError, match="tlkit trains and ships them in 32 bits"):
            Trainer.model_validate(values)


def test_a_key_of_the_top_level_is_suggested_as_one() -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe("quickstart", ["phases[1].ema=1"])
    assert str(raised.value).endswith("Did you mean ema, at the top level?")
