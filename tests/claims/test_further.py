"""p*, whitening and several scales on a trained network: values, files, and verdicts over seeds."""

import json
import os
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import torch
from support import in_processes, one_line_error

from mgkit.claims import further as module
from mgkit.claims import run, statistics
from mgkit.claims.further import (
    GEM,
    SCALES,
    descriptors_of,
    fitted_whitenings,
    further_path,
    learned_exponents,
    measure_further,
    read_further,
    unlabelled_images,
    whitened_on,
    with_p,
)
from mgkit.claims.measures import evaluation, query_values, write_kept, write_measured
from mgkit.claims.plan import Training
from mgkit.claims.run import Outcome, Work, outcome
from mgkit.claims.statistics import paired
from mgkit.claims.verdicts import further_verdicts, table, whitening_gains
from mgkit.config import ClaimsConfig, make
from mgkit.data.layouts import labelled_images
from mgkit.features import Passes, classify, embed, pooled
from mgkit.finetune import finetune_p, set_p
from mgkit.model import get_multigrain

SIZES, COUNTS, OF_WHITEN = [32, 48], [10, 25, 500], 40  # images: 40 are there
ONE, OTHER = (Training("joint", 1, seed, 0.02) for seed in (0, 1))


@pytest.fixture(scope="module")
def claims_config(mini_root):
    """A function that makes a quick config, but for the values given."""
    quick = {"experiment": "t", "data": str(mini_root), "workers": 0, "precision": "float32"}
    quick |= {"eval_size": 32, "further": True, "larger_sizes": SIZES, "whitening_images": COUNTS}
    return lambda **values: make(ClaimsConfig, quick | values)


@pytest.fixture(scope="module")
def images(mini_root):
    """For training and for validation."""
    train_images, val_images = labelled_images(mini_root)
    return train_images.first_per_class(3), val_images


@pytest.fixture(scope="module")
def network(images):
    """A function that gives the network of a training: untrained, but classes are the nearest means."""
    return partial(nearest_means, images[0])


def nearest_means(images, training):
    torch.manual_seed(training.seed)
    net = get_multigrain("resnet8", num_classes=len(images.classes)).eval()
    net.classes = images.classes
    rows = torch.from_numpy(pooled(net, images, size=32, ps=[3.0], description=None)[0])
    rows, centre = rows - rows.mean(0), rows.mean(0)
    means = torch.stack([rows[images.labels == k].mean(0) for k in range(len(net.classes))])
    means = 20 * means / means.norm(dim=1, keepdim=True)
    net.copy_to_classifier(means, -means @ centre)
    return net


@pytest.fixture(scope="module")
def on(claims_config, images, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("sets"))
        every = evaluation(claims_config(), images[1])
    return replace(every, sets={name: every.sets[name] for name in ("holidays", "copies")})


@pytest.fixture(scope="module")
def measured(claims_config, images, network, on, tmp_path_factory):
    """The folder in which both trainings are measured."""
    folder = tmp_path_factory.mktemp("further")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for training in (ONE, OTHER):
            measure_further(training, claims_config(), network, images[0], on)
    return folder


@pytest.fixture
def kept(measured, claims_config, images, on, monkeypatch):
    """What was measured of both trainings; the working directory is its folder."""
    monkeypatch.chdir(measured)
    return read_further([ONE, OTHER], claims_config(), images[0], on)


@pytest.fixture
def again(claims_config, images, on):
    """A function that measures a training, without a network but for the one given."""

    def run(training=ONE, config=None, network=None, train_images=None, on=on):
        config = config or claims_config()
        measure_further(training, config, network or forbidden, train_images or images[0], on)

    return run


def forbidden(*args, **options):
    raise AssertionError("a network is measured again")


def test_p_star_is_that_of_02_and_the_network_keeps_its_p(kept, network, images):
    net = network(ONE)
    for size in SIZES:
        subset = images[0].first_per_class(40)
        path = finetune_p(net, subset, size=size, step_size=4, lr=0.03, seed=ONE.seed, precision="float32")
        assert kept[0].p_star[size] == pytest.approx(path[-1, 1], abs=1e-4) != 3
        set_p(net, 3.0)
    found = learned_exponents(net, [32], images[0], Passes(precision="float32", description=None), seed=7)
    assert net.pool.p.item() == kept[0].p == 3
    assert found[32] != kept[0].p_star[32]  # the seed orders the images


def test_classes_are_by_the_training_p_and_by_p_star(network, images, monkeypatch):
    """Here p* is far from p, so that they differ."""
    net = network(ONE)
    values = module.classified(
        net, images[1], {32: 1.0, 48: 20.0}, Passes(precision="float32", description=None)
    )
    for size, star in ((32, 1.0), (48, 20.0)):
        for name, p in (("p", 3.0), ("p*", star)):
            logits, labels = classify(set_p(net, p), images[1], size=size, precision="float32")
            right = (logits.argmax(1) == labels).double().numpy()
            np.testing.assert_array_equal(values[with_p(name, size)]["top-1"], right)
    assert any(
        (values[with_p("p", size)]["top-1"] != values[with_p("p*", size)]["top-1"]).any() for size in SIZES
    )


@pytest.fixture
def kinds(network, claims_config, on):
    """Descriptors of Holidays by the first network, {kind: [N,D]}."""
    net, passes = network(ONE), Passes(precision="float32", description=None)
    unlabelled = unlabelled_images(claims_config(), None)
    whitenings = fitted_whitenings(net, claims_config(), unlabelled, passes, seed=ONE.seed)
    return dict(descriptors_of(net, on.sets["holidays"], 32, whitenings, passes))


def test_descriptors_are_whitened_as_by_numpy_on_a_subset(kinds, network, claims_config, on):
    """On the first images of an order; descriptors are compared by their products, which have no signs."""
    features_of = partial(pooled, network(ONE), size=32, ps=[3.0], precision="float32")
    [rows] = with_one(features_of(unlabelled_images(claims_config(), None)))  # [40,D]
    [features] = features_of(on.sets["holidays"].images)  # [N,C]
    order = torch.randperm(OF_WHITEN, generator=torch.Generator().manual_seed(ONE.seed)).numpy()
    for count in (10, 25, OF_WHITEN):
        chosen = rows[order[:count]]
        values, vectors = np.linalg.eigh(np.cov(chosen.T))
        projection = vectors / np.sqrt(0.9 * values + 0.1 * values.mean())
        expected = unit((with_one(features) - chosen.mean(0)) @ projection)
        found = kinds[whitened_on(count)]
        np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=2e-3)
    np.testing.assert_allclose(kinds[GEM], unit(features), atol=1e-6)


def with_one(features):
    """Features [...,C] and a 1, of length 1, [...,C+1], in float64."""
    ones = np.ones_like(features[..., :1])
    return unit(np.concatenate([features, ones], axis=-1, dtype=np.float64))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_descriptors_of_several_scales_are_summed(kinds, network, on):
    images = on.sets["holidays"].images
    rows = [embed(network(ONE), images, size=size, precision="float32") for size in (23, 32, 45)]
    np.testing.assert_allclose(kinds[SCALES], unit(sum(rows)), atol=1e-5)


def test_queries_are_measured_by_each_kind_of_descriptor(kept, kinds, on):
    for kind, descriptors in kinds.items():
        close(kept[0].arrays(kind)["holidays"], query_values(on.sets["holidays"], descriptors))
        assert kept[0].arrays(kind).keys() == on.sets.keys()


def close(found, expected):
    """Rounding may swap two images that are almost alike, for few queries."""
    assert found.shape == expected.shape and (abs(found - expected) < 1e-3).mean() > 0.9


def test_subsets_are_nested_and_differ_between_seeds(network, claims_config, monkeypatch):
    asked = []
    monkeypatch.setattr(
        module, "fit_pca_whitening", lambda rows, shrinkage: asked.append(rows) or (rows[0], rows[:1])
    )
    net = network(ONE)
    unlabelled = unlabelled_images(claims_config(), None)
    for seed in (0, 1):
        fitted_whitenings(net, claims_config(), unlabelled, Passes(description=None), seed=seed)
    assert [len(rows) for rows in asked] == [10, 25, OF_WHITEN] * 2
    assert torch.equal(asked[0], asked[1][:10]) and torch.equal(asked[1], asked[2][:25])
    assert not torch.equal(asked[0], asked[3])


def test_unlabelled_images_are_those_of_the_benchmarks_or_of_data_or_for_training(
    claims_config, images, mini_root, here
):
    beside = mini_root / "unlabelled" / "whiten"
    assert unlabelled_images(claims_config(), images[0]).root == beside
    nothing = claims_config(benchmarks=str(here))
    assert unlabelled_images(nothing, images[0]).root == beside
    alone = claims_config(data=str(mini_root / "imagenet"))
    assert unlabelled_images(alone, images[0]) is images[0]
    both = claims_config(data=str(mini_root / "imagenet"), benchmarks=str(mini_root))
    assert unlabelled_images(both, images[0]).root == beside


def test_what_is_kept_is_not_measured_again(kept, again):
    before = further_path(ONE, make(ClaimsConfig, {"experiment": "t"})).read_bytes()
    again()
    assert further_path(ONE, make(ClaimsConfig, {"experiment": "t"})).read_bytes() == before


@pytest.mark.parametrize(
    "changed",
    [{"larger_sizes": [32]}, {"whitening_images": [10]}, {"eval_size": 40}, {"crop_scale": 0.5}],
    ids=str,
)
def test_other_parameters_are_measured_anew(kept, again, claims_config, images, on, changed):
    config = claims_config(**changed)
    assert read_further([ONE], config, images[0], on) == []
    with pytest.raises(AssertionError, match="measured again"):
        again(config=config)


def test_other_images_are_measured_anew(kept, again, images, on):
    with pytest.raises(AssertionError, match="measured again"):
        again(train_images=images[0].subset(range(30)))
    with pytest.raises(AssertionError, match="measured again"):
        again(on=replace(on, images=images[1].subset(range(30))))
    with pytest.raises(AssertionError, match="measured again"):
        again(training=replace(ONE, lr=0.01))


def test_the_unlabelled_images_decide_too(kept, again, claims_config):
    own = unlabelled_images(claims_config(), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "unlabelled_images", lambda config, train_images: own.subset(range(30)))
        with pytest.raises(AssertionError, match="measured again"):
            again()


def test_without_sizes_and_whitenings_only_scales_are_tried(here, again, network, claims_config, images, on):
    config = claims_config(larger_sizes=[], whitening_images=[])
    again(config=config, network=network)
    [found] = read_further([ONE, OTHER], config, images[0], on)
    assert [claim.text for claim in found.claims()] == ["several scales (against one)"]
    assert set(found.values) == {GEM, SCALES}


def test_a_damaged_file_is_named(kept, again, here, claims_config, measured, monkeypatch):
    content = json.loads((measured / "outputs/t/measured/joint-1epochs-seed0-further.json").read_text())
    path = here / "outputs/t/measured/joint-1epochs-seed0-further.json"
    path.parent.mkdir(parents=True)
    monkeypatch.chdir(here)
    del content["values"][with_p("p*", 48)]
    path.write_text(json.dumps(content))
    with one_line_error(ValueError, path, "p* at 48 px"):
        again()
    path.write_text("{")
    with one_line_error(ValueError, path, "damaged"):
        again()


def test_the_trainings_of_one_budget_are_tried_and_are_in_the_outcome(
    here, network, claims_config, images, on, monkeypatch
):
    config = claims_config(arms=["joint"], budgets=[1], larger_sizes=[], whitening_images=[])
    monkeypatch.setattr(run, "training_data", lambda config: images)
    monkeypatch.setattr(run, "evaluation", lambda config, val_images: on)
    for training in (ONE, OTHER):
        values = {"top-1": np.array([1.0, np.nan])}
        write_measured(training, config, images[0], on, values, {}, seconds=1.0)
    stops = iter([True, False, False])
    work = Work(config, images, on, lambda step: next(stops))
    monkeypatch.setattr(work, "network_if_here", network)
    with pytest.raises(run.StoppedError, match="joint-1epochs-seed0"):
        work.measure_further()
    assert [one.training["seed"] for one in outcome(config).further] == [0]
    work.measure_further()
    assert [one.training["seed"] for one in outcome(config).further] == [0, 1]


def test_without_its_network_a_training_is_left_out_in_a_line(here, again, claims_config, images, on, capsys):
    """As for values that were measured on another machine."""
    work = Work(claims_config(), images, on, lambda step: False)
    again(network=work.network_if_here)
    assert "joint-1epochs-seed0: its network is not here" in capsys.readouterr().out
    assert read_further([ONE], claims_config(), images[0], on) == []


def test_two_processes_share_the_passes_and_find_the_same(kept, claims_config, images, on, here):
    config = claims_config(larger_sizes=[32], whitening_images=[10])
    arguments = (ONE, config, partial(nearest_means, images[0]), images[0], on, here)
    written = in_processes(2, measured_in, *arguments)
    assert written == [["joint-1epochs-seed0-further.json"], []]
    [found] = read_further([ONE], config, images[0], on)
    assert found.p_star == {32: pytest.approx(kept[0].p_star[32], abs=1e-3)}
    assert [*found.values] == [with_p("p", 32), with_p("p*", 32), GEM, whitened_on(10), SCALES]
    for kind in found.values:
        for measure, values in found.arrays(kind).items():
            close(values, kept[0].arrays(kind)[measure])


def measured_in(training, config, network, train_images, on, folder):
    """Measure in a joined process; returns the names of the files that it wrote."""
    os.chdir(folder)
    with patch.object(module, "write_kept", wraps=write_kept) as write:
        measure_further(training, config, network, train_images, on)
    return [call.args[0].name for call in write.call_args_list]


# --- Verdicts


@pytest.fixture
def found(kept, claims_config, on, monkeypatch):
    monkeypatch.setattr(statistics, "DRAWS", 200)
    return Outcome(claims_config(), [], {}, [], dict(on.groups), kept)


def test_every_claim_is_compared_in_pairs_over_seeds_and_queries(found, kept, on):
    verdicts = further_verdicts(found)
    texts = list(dict.fromkeys(one.claim for one in verdicts))
    assert texts == [
        "p* at 32 px (against the training p)", "p* at 48 px (against the training p)",
        "whitening on 10 images (against none)", "whitening on 25 images (against none)",
        "whitening on 40 images (against none)", "several scales (against one)",
    ]  # fmt: skip
    assert [one.measure for one in verdicts] == ["top-1"] * 2 + [*on.sets] * 4
    pairs = [(with_p("p", size), with_p("p*", size)) for size in SIZES]
    pairs += [(GEM, whitened_on(count)) for count in (10, 25, 40)] + [(GEM, SCALES)]
    for one in verdicts:
        before, after = (
            np.stack([of_seed.arrays(kind)[one.measure] for of_seed in kept])
            for kind in pairs[texts.index(one.claim)]
        )
        expected = paired(before, after, on.groups[one.measure])
        assert one.difference == expected.difference and one.seeds == 2 and one.paper is None
        assert (one.before, one.after) == (np.nanmean(before), np.nanmean(after))
        assert one.samples == kept[0].samples
    assert table([one for one in verdicts if one.measure == "top-1"]).splitlines()[1] == texts[0]


def test_the_gain_of_whitening_by_the_number_of_images(found, on):
    gains = whitening_gains(found)
    assert [(count, measure) for count, measure, _ in gains] == [
        (count, measure) for count in (10, 25, 40) for measure in on.sets
    ]
    of_claims = [one for one in further_verdicts(found) if one.claim.startswith("whitening")]
    assert [gain.value for *_, gain in gains] == [one.difference.value for one in of_claims]


def test_without_anything_measured_there_is_no_verdict(found):
    assert further_verdicts(replace(found, further=[])) == whitening_gains(replace(found, further=[])) == []


def test_a_claim_that_one_network_lacks_has_no_verdict(found, kept):
    less = kept[1].model_copy(update={"whitening": [10]})
    claims = {one.claim for one in further_verdicts(replace(found, further=[kept[0], less]))}
    assert "whitening on 10 images (against none)" in claims
    assert "whitening on 25 images (against none)" not in claims
