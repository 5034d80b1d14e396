"""02: p* and the sweep at every size, and what they leave."""

import pytest

from mgkit.config import FinetunePConfig, WhitenConfig, make
from mgkit.stages.finetune_p import p_star, read_search, search_p


def test_the_search_reads_every_header_once(tiny_net, uneven_images, headers, here, monkeypatch):
    monkeypatch.setattr(
        "mgkit.stages.finetune_p.training_data", lambda config: (uneven_images, uneven_images)
    )
    config = make(FinetunePConfig, {"experiment": "t", "sizes": [24, 32, 40], "ps": [1.0], "workers": 0})
    search_p(config, tiny_net)
    assert headers.call_count == 2 * len(uneven_images)  # of the training and of the validation images


def test_p_star_of_a_published_network_is_not_learned_on_the_embedded_set(tiny_net, mini_root, capsys, here):
    """It has ImageNet's classes, which are not those of the set."""
    values = {"experiment": "t", "data": str(mini_root), "backbone": "resnet18", "pretrained_backbone": True}
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
