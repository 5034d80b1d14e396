"""02: p* and the sweep at every size, and what they leave."""

import json
import math
from unittest.mock import patch

import numpy as np
import pytest
from support import one_line_error

from mgkit.config import FinetunePConfig, WhitenConfig, make
from mgkit.engine.run import stage_folder
from mgkit.finetune import set_p, sweep_hits, sweep_p
from mgkit.stages.finetune_p import p_star, read_search, search_p


@pytest.fixture
def sweeps():
    """What counts the sweeps over p."""
    with patch("mgkit.stages.finetune_p.sweep_hits", wraps=sweep_hits) as made:
        yield made


def test_the_search_reads_every_header_once(tiny_net, uneven_images, headers, here, monkeypatch):
    monkeypatch.setattr(
        "mgkit.stages.finetune_p.training_data", lambda config: (uneven_images, uneven_images)
    )
    config = make(FinetunePConfig, {"experiment": "t", "sizes": [24, 32, 40], "ps": [1.0], "workers": 0})
    search_p(config, tiny_net)
    assert headers.call_count == 2 * len(uneven_images)  # of the training and of the validation images


def test_max_pooling_has_no_p_to_learn_and_is_its_own(tiny_net, here, capsys):
    config = make(FinetunePConfig, {"experiment": "t", "data": str(here)})
    tiny_net.source = "max.pth"
    with one_line_error(ValueError, "max.pth", "p = inf", "train with a finite p"):
        search_p(config, set_p(tiny_net, math.inf))
    assert not (here / "outputs").exists()
    assert p_star(config, tiny_net, size=32, crop="rect") == math.inf
    assert "max.pth was trained with p = inf" in capsys.readouterr().out


SOUND = {"sizes": [32, 64], "p_star": [2.0, 3.0], "crop": "rect"}


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"sizes": None}, "sizes"),
        ({"sizes": ["big", 64]}, "sizes.0"),
        ({"sizes": []}, "sizes"),
        ({"p_star": [2.0]}, "p_star"),
        ({"p_star": [2.0, -1.0]}, "p_star.1"),
        ({"p_star": [2.0, 5000.0]}, "p_star.1"),
        ({"p_star": [2.0, float("nan")]}, "p_star.1"),
        ({"crop": "oval"}, "crop"),
        ({"crop": None}, "crop"),
    ],
)
def test_damaged_results_of_02_are_named_by_field(tiny_net, here, changed, field):
    config = make(FinetunePConfig, {"experiment": "t", "data": str(here)})
    path = stage_folder(config) / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(SOUND))
    assert p_star(config, tiny_net, size=60, crop="rect") == 3.0
    path.write_text(json.dumps(SOUND | changed))
    with one_line_error(ValueError, path, field):
        p_star(config, tiny_net, size=60, crop="rect")
    path.write_text(json.dumps({key: value for key, value in SOUND.items() if key != "sizes"}))
    with one_line_error(ValueError, path, "sizes is missing"):
        p_star(config, tiny_net, size=60, crop="rect")


@pytest.mark.parametrize("source", [{"pretrained_backbone": True}, {"weights": "own.pth"}])
def test_p_star_of_a_network_off_the_shelf_is_not_learned_on_the_embedded_set(
    tiny_net, mini_root, capsys, here, source
):
    """It has other classes, such as ImageNet's, which are not those of the set."""
    values = {"experiment": "t", "data": str(mini_root), "backbone": "resnet18"} | source
    assert p_star(make(WhitenConfig, values), tiny_net, size=64, crop="rect") == 3.0
    assert "no p* in" in capsys.readouterr().out


def test_the_gain_of_p_star_has_an_interval_and_is_read_again(tiny_net, uneven_images, here, monkeypatch):
    monkeypatch.setattr(
        "mgkit.stages.finetune_p.training_data", lambda config: (uneven_images, uneven_images)
    )
    values = {"experiment": "t", "sizes": [24, 32], "ps": [1.0], "workers": 0, "lr": 20.0}
    config = make(FinetunePConfig, values)
    found = search_p(config, tiny_net)
    assert read_search(config).gains == found.gains
    for before, after, gain in zip(found.top1_at_training_p, found.top1_at_p_star, found.gains, strict=True):
        assert gain.value == pytest.approx(after - before) and gain.low <= gain.value <= gain.high
    assert any(gain.low < gain.high for gain in found.gains)


def test_each_size_is_swept_with_its_own_exponents(tiny_net, uneven_images, here, monkeypatch, sweeps):
    monkeypatch.setattr(
        "mgkit.stages.finetune_p.training_data", lambda config: (uneven_images, uneven_images)
    )
    values = {"experiment": "t", "sizes": [24, 40], "ps": [1.0, 5.0], "lr": 0.5, "precision": "float32"}
    config = make(FinetunePConfig, values | {"workers": 0})
    found = search_p(config, tiny_net)
    swept = [call.kwargs["ps"] for call in sweeps.call_args_list]
    assert swept == [[1.0, 5.0, 3.0, p] for p in found.p_star] and found.p_star[0] != found.p_star[1]
    for s, size in enumerate(config.sizes):  # against a sweep of its own for each exponent
        of_size = [*found.top1[s], found.top1_at_training_p[s], found.top1_at_p_star[s]]
        for p, top1 in zip(swept[s], of_size, strict=True):
            assert (
                top1 == sweep_p(tiny_net, uneven_images, sizes=[size], ps=[p], precision="float32")[0, 0, 0]
            )
    assert read_search(config).top1_at_p_star == found.top1_at_p_star
    low, high = np.moveaxis(read_search(config).intervals, -1, 0)  # [S,P,2] -> two of [S,P]
    assert (low <= found.top1).all() and (found.top1 <= high).all() and (low < high).any()
