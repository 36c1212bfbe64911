"""Everything that is wrong with a recipe is reported at once, with its place, what was expected and the nearest fix."""

import math
import re
from pathlib import Path
from typing import get_args

import pytest

from tests.recipe.trial import SOUND, faults_of, only_fault, with_override, write
from tlkit.errors import Fault, RecipeError
from tlkit.recipe.explain import format_value
from tlkit.recipe.fields.model import Model
from tlkit.recipe.fields.phases import FromStage, Lora
from tlkit.recipe.fields.trainer import Trainer
from tlkit.recipe.load import load_recipe, recipe_yaml


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


def test_a_fault_that_is_found_later_gets_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND)
    recipe = load_recipe(path)
    with pytest.raises(RecipeError, match=re.escape(f"{path}:8: phases[1].train.from = 'layr4' is")), recipe.located():
        raise RecipeError([Fault("phases[1].train.from", "= 'layr4' is not a stage of resnet18.", "Expected one of: layer4.")])


def test_one_image_a_step_has_none_to_mix_with(tmp_path: Path) -> None:
    fault = only_fault(write(tmp_path, SOUND), "mix={mixup: 0.2}", "data.batch_size=1")
    assert (fault.key, fault.problem) == ("mix", "needs two images of a batch to mix, and data.batch_size = 1 has one.")
    assert with_override(tmp_path, "mix={cutmix: 1.0}", "data.batch_size=2").mix.cutmix == 1


def test_wise_ft_needs_a_head_phase_before_the_others(tmp_path: Path) -> None:
    assert with_override(tmp_path, "wise_ft=true").wise_ft
    for phases in ("[{train: all, epochs: 1, lr: 1e-3}]", "[{train: head, epochs: 1, lr: 1e-3}]"):
        fault = only_fault(write(tmp_path, SOUND), "wise_ft=true", f"phases={phases}")
        assert "needs weights to blend with" in fault.problem


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
        ("phases[0].train=lora", "= 'lora' can't be used.", "Did you mean {lora: {rank: R}}?"),
        ("phases[0].train=from", "= 'from' can't be used.", "Did you mean {from: STAGE}?"),
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
        ("data.source={folder:photos}", "can't be used.", "YAML needs a blank after the colon: {folder: photos}."),
        ("ema={decay:0.9}", "is not a key of ema.", "YAML needs a blank after the colon: {decay: 0.9}."),
        ("early_stopping={patience:1}", "is not a key of early_stopping.", "YAML needs a blank after the colon: {patience: 1}."),
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


def test_adapters_have_no_place_where_the_linear_layers_are_left_out(tmp_path: Path) -> None:
    overrides = ("phases[0].train={lora: {rank: 8}}", "model.backbone=alexnet", "model.features=conv")
    (fault,) = faults_of(write(tmp_path, SOUND), *overrides)
    assert (fault.key, fault.place) == ("phases[0].train", f"override {overrides[0]}")
    assert fault.problem == "= {lora: ..}, but alexnet with features = 'conv' has no linear layers below the head to adapt."
    assert load_recipe(write(tmp_path, SOUND), overrides[:2]).phases[0].train == Lora.model_validate({"lora": {"rank": 8}})


def test_the_stage_of_the_dense_layers_has_no_place_where_they_are_left_out(tmp_path: Path) -> None:
    overrides = ("phases[0].train={from: dense}", "model.backbone=vgg11", "model.features=conv")
    (fault,) = faults_of(write(tmp_path, SOUND), *overrides)
    assert (fault.key, fault.place) == ("phases[0].train", f"override {overrides[0]}")
    assert fault.problem == "= {from: dense}, but model.features = 'conv' leaves the dense layers out."
    assert load_recipe(write(tmp_path, SOUND), overrides[:2]).phases[0].train == FromStage.model_validate({"from": "dense"})


def test_a_part_that_is_missing_has_the_line_of_what_it_is_missing_from(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND.replace("    lr: 3e-4\n", "").replace("name: trial\n", ""))
    assert [(fault.place, fault.key) for fault in faults_of(path)] == [(f"{path}:1", "name"), (f"{path}:7", "phases[1].lr")]


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
