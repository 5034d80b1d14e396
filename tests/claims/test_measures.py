"""What is measured of a network, against the kit's own stages, and the files it is kept in."""

import json

import numpy as np
import pytest
from support import one_line_error

from mgkit.claims.measures import (
    Measured,
    evaluation,
    groups_of,
    measure,
    path_of,
    query_values,
    read_measured,
    write_measured,
)
from mgkit.claims.plan import Training
from mgkit.features import classify, embed
from mgkit.model import get_multigrain
from mgkit.retrieval.protocols import retrieve
from mgkit.stages.inputs import training_data

pytestmark = pytest.mark.usefixtures("here")
ONE = Training("plain", 1, 0, 0.02)


@pytest.fixture
def on(config):
    return evaluation(config(), training_data(config())[1])


@pytest.fixture
def net(on):
    return get_multigrain("resnet8", p=3.0, num_classes=len(on.images.classes)).eval()


def test_the_sets_are_those_below_data_and_queries_of_one_thing_are_a_group(on):
    assert list(on.sets) == ["holidays", "ukbench", "copies"]
    ukbench = on.groups["ukbench"]
    assert len(np.unique(ukbench)) == len(ukbench) // 4  # four views of each object
    assert len(np.unique(on.groups["holidays"])) == len(on.groups["holidays"])
    # Copies of one original are a group.
    originals = [int(answers[0]) for answers in on.sets["copies"].positives]
    assert on.groups["copies"].tolist() == originals


def test_values_are_those_of_classify_and_retrieve(config, on, net):
    values = measure(net, on, config())
    logits, labels = classify(net, on.images, size=32, crop="rect")
    assert np.array_equal(values["top-1"], (logits.argmax(1) == labels).double().numpy())
    for name, one in on.sets.items():
        expected = retrieve(one, embed(net, one.images, size=32)).per_query
        assert np.allclose(values[name], expected, atol=1e-6)


def test_class_scores_that_are_not_finite_are_an_error_that_names_an_image(config, on, net):
    net.classifier.bias.data[0] = np.nan
    with one_line_error(ValueError, "class scores", on.images.paths[0], "not finite"):
        measure(net, on, config())


def test_an_unreadable_image_has_no_value_and_moves_no_other(on):
    one = on.sets["ukbench"]
    rows = np.random.default_rng(0).normal(size=(len(one.images), 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[one.queries[2]] = np.nan
    values = query_values(one, rows)
    assert np.flatnonzero(np.isnan(values)).tolist() == [2]
    assert len(values) == len(one.queries)


def write(config, on, values):
    images = training_data(config)[0]
    write_measured(ONE, config, images, on, values, {"effective rank": 3.0}, seconds=2.0)
    return read_measured(ONE, config, images, on)


def test_values_are_kept_as_they_are(config, on):
    values = {"top-1": np.array([1.0, 0.0, np.nan]), "holidays": np.array([0.123456, 1.0])}
    kept = write(config(), on, values)
    assert np.array_equal(kept.arrays()["top-1"], values["top-1"], equal_nan=True)
    assert np.allclose(kept.arrays()["holidays"], values["holidays"], atol=1e-4)
    assert kept.diagnosis == {"effective rank": 3.0}


def test_a_file_holds_no_path_of_the_machine(config, on, here):
    write(config(), on, {"top-1": np.ones(2)})
    text = path_of(ONE, config()).read_text()
    assert str(here) not in text and "experiment" not in json.loads(text)["training"]


def test_what_was_half_written_is_removed_when_it_is_measured_again(config, on):
    path = path_of(ONE, config())
    path.parent.mkdir(parents=True)
    (path.parent / f".{path.name}.77.partial").write_text("half")
    write(config(), on, {"top-1": np.ones(2)})
    assert [*path.parent.iterdir()] == [path]


def test_a_damaged_file_is_named(config, on):
    write(config(), on, {"top-1": np.ones(2)})
    path = path_of(ONE, config())
    path.write_text(path.read_text().replace('"values"', '"valves"'))
    with one_line_error(ValueError, path, "values"):
        read_measured(ONE, config(), training_data(config())[0], on)


def test_values_of_other_parameters_are_not_taken(config, on):
    images = training_data(config())[0]
    write(config(), on, {"top-1": np.ones(2)})
    assert isinstance(read_measured(ONE, config(), images, on), Measured)
    assert read_measured(ONE, config(crop_scale=0.9), images, on) is None
    assert read_measured(ONE, config(eval_size=64), images, on) is None
    assert read_measured(ONE, config(), images.subset([0, 1]), on) is None
    assert read_measured(ONE, config(workers=3), images, on) is not None  # which changes nothing


def test_groups_join_a_query_and_its_answers(on):
    one = on.sets["holidays"]
    groups = groups_of(one)
    for query, answers, group in zip(one.queries, one.positives, groups, strict=True):
        assert group == min(query, *answers)
