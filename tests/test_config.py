"""What may be set: every refusal is one line that names the culprit."""

import dataclasses
import math
import typing

import pytest
import yaml
from support import one_line_error

from mgkit.config import (
    ClassifyConfig,
    DescribeConfig,
    FinetunePConfig,
    PhotosConfig,
    RetrievalConfig,
    StageConfig,
    TrainConfig,
    WhitenConfig,
    from_notebook,
    from_yaml,
    make,
    to_yaml,
)

STAGES = (StageConfig, TrainConfig, FinetunePConfig, WhitenConfig, ClassifyConfig, RetrievalConfig)


@pytest.mark.parametrize(
    ("values", "culprits"),
    [
        ({"lambda_": 1.5}, ["lambda_", "1.5"]),
        ({"lambda_": -0.1}, ["lambda_", "-0.1"]),
        ({"lambda_": math.nan}, ["lambda_"]),
        ({"lambda_": 0.5, "repetitions": 1}, ["lambda_", "repetitions"]),
        ({"lambda_": 0.0, "repetitions": 1}, ["lambda_", "repetitions"]),
        ({"p": 0.0}, ["p:", "0.0"]),
        ({"p": -3.0}, ["p:", "-3.0"]),
        ({"p": math.nan}, ["p:"]),
        ({"augmentation": "heavy"}, ["augmentation", "heavy", "senet"]),
        ({"backbone": "resnet7"}, ["backbone", "resnet7", "resnet50"]),
        ({"epoch": 3}, ["unknown parameter 'epoch': did you mean epochs? TrainConfig has accumulate, "]),
        ({"colour": "red"}, ["unknown parameter 'colour': TrainConfig has accumulate, "]),
        ({"batch_size": 2, "repetitions": 3}, ["batch_size 2", "repetitions 3"]),
        ({"batch_size": 1, "repetitions": 1, "lambda_": 1.0}, ["batch_size"]),
        ({"repetitions": 0}, ["repetitions"]),
        ({"epochs": "many"}, ["epochs", "many"]),
        ({"epochs": 2.5}, ["epochs", "2.5"]),
        ({"epochs": True}, ["epochs", "True"]),
        ({"lr": "fast"}, ["lr", "fast"]),
        ({"lr": -0.1}, ["lr"]),
        ({"lr": math.inf}, ["lr"]),
        ({"data": 3.5}, ["data", "3.5", "-r data"]),
        ({"data": True}, ["data", "True", "-r data"]),
        ({"data": None}, ["data", "None", "-r data"]),
        ({"data": "a\0b"}, ["data", "NUL"]),
        ({"data": "~nobody-of-that-name/x"}, ["data", "home"]),
        ({"experiment": "nul"}, ["experiment", "nul"]),
        ({"experiment": "a."}, ["experiment", "a."]),
        ({"experiment": "a" * 255}, ["experiment", "200 bytes"]),
        ({"gpus": "two"}, ["gpus", "two", "auto"]),
        ({"gpus": 2.0}, ["gpus", "2.0"]),
        ({"seed": 10**5000}, ["seed"]),
        ({"size": 0}, ["size"]),
        ({"workers": -1}, ["workers"]),
        ({"lr_drops": "3, soon"}, ["lr_drops", "soon"]),
        ({"precision": "fp8"}, ["precision", "fp8"]),
        ({"on_unreadable": "ignore"}, ["on_unreadable"]),
        ({"exif": "yes"}, ["exif"]),
        ({"val_fraction": 1.0}, ["val_fraction"]),
        ({"experiment": "../elsewhere"}, ["experiment"]),
        ({"experiment": ""}, ["experiment"]),
        ({"crop_scale": 0.0}, ["crop_scale"]),
    ],
)
def test_a_refused_training_parameter_is_named_in_one_line(values, culprits):
    with one_line_error(ValueError, *culprits):
        make(TrainConfig, values)


@pytest.mark.parametrize(
    ("cls", "values", "culprits"),
    [
        (FinetunePConfig, {"ps": [1.0, 0.0]}, ["ps", "0.0"]),
        (FinetunePConfig, {"ps": []}, ["ps"]),
        (FinetunePConfig, {"sizes": []}, ["sizes"]),
        (FinetunePConfig, {"sizes": "64, big"}, ["sizes", "big"]),
        (FinetunePConfig, {"crop": "oval"}, ["crop", "oval"]),
        (FinetunePConfig, {"backbone": "resnet7"}, ["backbone", "resnet7", "resnet50"]),
        (WhitenConfig, {"p": -1.0}, ["p", "-1.0"]),
        (WhitenConfig, {"shrinkage": 1.1}, ["shrinkage"]),
        (ClassifyConfig, {"crops": ["square", "oval"]}, ["crops", "oval"]),
        (RetrievalConfig, {"sets": [3.5]}, ["sets", "3.5"]),
        (RetrievalConfig, {"scales": [1.0, 90.0]}, ["scales", "90"]),
        (ClassifyConfig, {"sizes": [64, 64]}, ["sizes", "64", "twice"]),
        (ClassifyConfig, {"sizes": [[64]]}, ["sizes", "[64]"]),
        (ClassifyConfig, {"sizes": list(range(8, 2000))}, ["sizes"]),
        (ClassifyConfig, {"sizes": "[" * 10_000}, ["sizes"]),
        (ClassifyConfig, {"sizes": f"[&a [{'1,' * 50}], &b [{'*a,' * 50}], [{'*b,' * 50}]]"}, ["sizes"]),
        (RetrievalConfig, {"set": "holidays"}, ["'set'", "did you mean sets?"]),
        (ClassifyConfig, {"size": 64}, ["'size'", "did you mean sizes?"]),
        (WhitenConfig, {"sizes": [64]}, ["'sizes'", "did you mean size?"]),
        (WhitenConfig, {"node_rank": 1}, ["node_rank 1", "nnodes 1"]),
        (RetrievalConfig, {"nnodes": 2}, ["nnodes", "rdzv_endpoint"]),
        (PhotosConfig, {"nnodes": 2}, ["nnodes", "rdzv_endpoint"]),
        (TrainConfig, {"nnodes": 0}, ["nnodes"]),
        (TrainConfig, {"node_rank": 1}, ["node_rank 1", "nnodes 1"]),
    ],
)
def test_a_refused_parameter_of_another_stage_is_named_in_one_line(cls, values, culprits):
    with one_line_error(ValueError, *culprits):
        make(cls, values)


@pytest.mark.parametrize("cls", STAGES)
def test_unknown_keywords_are_refused_by_the_class_itself(cls):
    with pytest.raises(ValueError, match="colour"):
        cls(colour="red")


@pytest.mark.parametrize("cls", STAGES)
def test_the_defaults_are_valid_and_frozen(cls):
    config = make(cls, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.data = "elsewhere"


def test_the_borders_of_the_ranges_are_allowed():
    config = make(TrainConfig, {"lambda_": 1.0, "repetitions": 1, "batch_size": 2, "p": math.inf, "lr": 1})
    assert (config.lambda_, config.repetitions, config.p, config.lr) == (1.0, 1, math.inf, 1.0)
    assert make(TrainConfig, {"lambda_": 0.0, "batch_size": 3}).lambda_ == 0.0


@pytest.mark.parametrize("given", ["64, 96", "[64, 96]", [64, 96], (64, 96)])
def test_a_list_may_come_as_text(given):
    assert make(FinetunePConfig, {"sizes": given}).sizes == [64, 96]


@pytest.mark.parametrize("given", ["[64", "{64", "64: 96, ]"])
def test_text_that_is_no_list_is_one_line_with_the_parameter(given):
    with one_line_error(ValueError, "sizes: a list is wanted", repr(given)):
        make(FinetunePConfig, {"sizes": given})


def test_names_of_folders_may_have_brackets():
    assert make(PhotosConfig, {"photos": "[2019] trip; {b}"}).photos == ["[2019] trip", "{b}"]
    assert make(PhotosConfig, {"photos": "[a, b]"}).photos == ["a", "b"]


@pytest.mark.parametrize("given", ["1, inf", "[1, Inf]", "1, .inf", [1, "inf"], [1.0, math.inf]])
def test_max_pooling_among_exponents(given):
    assert make(FinetunePConfig, {"ps": given}).ps == [1.0, math.inf]


@pytest.mark.parametrize(
    ("cls", "name", "given", "taken"),
    [
        (PhotosConfig, "photos", 2019, ["2019"]),
        (PhotosConfig, "photos", [2019, "b"], ["2019", "b"]),
        (TrainConfig, "data", 2019, "2019"),
        (TrainConfig, "experiment", 7, "7"),
    ],
)
def test_a_whole_number_is_taken_for_a_name_and_said(cls, name, given, taken, capsys):
    assert getattr(make(cls, {name: given}), name) == taken
    assert (
        f"{name}: the number {given if isinstance(given, int) else given[0]} is taken"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("given", ["2019, true, 1e5", "[2019, true, 1e5]"])
def test_names_in_the_text_of_a_list_stay_as_they_are(given):
    assert make(RetrievalConfig, {"sets": given}).sets == ["2019", "true", "1e5"]


def test_infinity_is_a_number_only_where_numbers_are_read():
    assert make(FinetunePConfig, {"ps": "inf"}).ps == [math.inf]
    assert make(RetrievalConfig, {"sets": "inf"}).sets == ["inf"]
    with one_line_error(ValueError, "ps", "-inf"):
        make(FinetunePConfig, {"ps": "1, -inf"})


def test_a_single_value_is_a_list_of_one():
    assert make(FinetunePConfig, {"sizes": 64}).sizes == [64]
    assert make(RetrievalConfig, {"sets": "holidays"}).sets == ["holidays"]


def namespace(*cells, **values):
    return {"In": ["", *cells], "something_else": 1, **values}


def test_a_notebook_s_parameters_make_its_config():
    cells = ["# Parameters: change them\nsize: int = 64", "# Parameters\nsize = 32", "from x import y"]
    assert from_notebook(TrainConfig, namespace(*cells, size=32)).size == 32


def test_an_unknown_parameter_of_a_notebook_is_named():
    cells = ["# Parameters: change them\nsize: int = 64", "# Parameters\nepoch = 1"]
    with one_line_error(ValueError, "'epoch'", "TrainConfig"):
        from_notebook(TrainConfig, namespace(*cells, size=64, epoch=1))


def test_names_that_other_cells_assign_are_no_parameters():
    cells = ["# Parameters\nsize = 32", "epoch = 1  # Parameters"]
    assert from_notebook(TrainConfig, namespace(*cells, size=32, epoch=1)).size == 32


@pytest.mark.parametrize("cls", STAGES)
def test_yaml_gives_the_config_back(cls, tmp_path):
    config = make(cls, {"experiment": "e", "workers": 0} | ({"p": math.inf} if cls is TrainConfig else {}))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_yaml(cls, tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("text", "culprit"), [("epoch: 3\n", "'epoch'"), ("- 3\n", "mapping"), ("", "mapping")]
)
def test_a_refused_yaml_file_is_named(text, culprit, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with one_line_error(ValueError, path, culprit):
        from_yaml(TrainConfig, path)


@pytest.mark.parametrize("values", [{}, {"backbone": "resnet18", "checkpoint": "a.pth"}])
def test_a_published_network_needs_a_backbone_and_no_checkpoint(values):
    with one_line_error(ValueError, "pretrained_backbone needs a backbone and no checkpoint"):
        make(ClassifyConfig, values | {"pretrained_backbone": True})


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("IVF4,Flat", ["IVF4,Flat"]),
        ("IVF4,Flat; PCAR64,IVF16,PQ32", ["IVF4,Flat", "PCAR64,IVF16,PQ32"]),
        ('["IVF4,Flat", "Flat"]', ["IVF4,Flat", "Flat"]),
        ("", []),
        ("[]", []),
    ],
)
def test_faiss_strings_keep_their_commas(text, indices):
    assert make(RetrievalConfig, {"indices": text}).indices == indices


# --- Every field of every config

CONFIGS = (*STAGES[1:], DescribeConfig, PhotosConfig)
NUMBERS = (0, -1, 1, 0.5, 2**70, 10**5000, 1e-300, 1e308, -1e308, math.inf, -math.inf, math.nan)
OTHERS = (
    "",
    "x",
    "nan",
    "[",
    "2019",
    None,
    True,
    [],
    [[]],
    [None],
    [math.nan],
    [2**70],
    {"a": 1},
    b"x",
    object(),
)


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: cls.__name__)
def test_any_value_of_any_field_makes_a_config_or_one_line_that_names_the_field(cls):
    for field in dataclasses.fields(cls):
        for value in (*NUMBERS, *OTHERS):
            for given in (value, [value]):
                try:
                    config = make(cls, {field.name: given})
                except ValueError as error:
                    assert field.name in str(error) and "\n" not in str(error), (field.name, given)
                    assert len(str(error)) < 500, (field.name, given)
                else:
                    again = yaml.safe_load(to_yaml(config))
                    assert make(cls, again) == config, (field.name, given)


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: cls.__name__)
def test_every_number_has_two_ends(cls):
    for field in dataclasses.fields(cls):
        for beyond in (2**70, 1e300, -(2**70), -1e300, math.nan):
            for given in (beyond, [beyond]):
                if typing.get_type_hints(cls)[field.name] not in (str, list[str]):
                    with one_line_error(ValueError, field.name):
                        make(cls, {field.name: given})


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "../x",
        "a/b",
        "/etc",
        "a\\b",
        "C:x",
        ".hidden",
        "-x",
        "a b",
        "a\n",
        "a.",
        "CON",
        "nul.txt",
        "é/..",
        "~",
    ],
)
def test_nothing_leaves_outputs(name):
    with one_line_error(ValueError, "experiment"):
        make(TrainConfig, {"experiment": name})


def test_words_of_other_scripts_may_be_experiments():
    for name in ("größe-1", "実験_2", "a.b", "x", "con2", "7"):
        assert make(TrainConfig, {"experiment": name}).experiment == name


LITE0 = ("efficientnet_lite0", True, 320, 1.74)


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        ({}, ("", False, 96, None)),
        ({"photos": "~/a b; c"}, LITE0),
        ({"photos": ["a"], "experiment": "pets"}, LITE0),
        ({"photos": ["a"], "size": 224, "p": 3.0}, (*LITE0[:2], 224, 3.0)),
        ({"photos": ["a"], "data": "~/pets"}, ("", False, 96, None)),
        ({"photos": ["a"], "checkpoint": "x.pth"}, ("", False, 96, None)),
        ({"photos": ["a"], "checkpoint": "x.pth", "size": 500}, ("", False, 500, None)),
        ({"photos": ["a"], "backbone": "resnet18"}, ("resnet18", False, 96, None)),
        ({"backbone": "resnet18", "pretrained_backbone": True}, ("resnet18", True, 320, None)),
        ({"photos": ["a"], "backbone": "resnet18", "weights": "x.pth"}, ("resnet18", False, 320, None)),
    ],
)
def test_photos_have_a_published_network_unless_another_is_chosen(values, chosen):
    config = make(PhotosConfig, values)
    assert (config.backbone, config.pretrained_backbone, config.size, config.p) == chosen
    assert make(PhotosConfig, yaml.safe_load(to_yaml(config))) == config
