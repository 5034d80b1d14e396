"""02: p* and the sweep at every size, and what they leave."""

from unittest.mock import patch

import pytest

from mgkit.config import FinetunePConfig, make
from mgkit.finetune import sweep_p
from mgkit.stages.finetune_p import read_search, search_p


@pytest.fixture
def sweeps():
    """What counts the sweeps over p."""
    with patch("mgkit.stages.finetune_p.sweep_p", wraps=sweep_p) as made:
        yield made


def test_the_search_reads_every_header_once(tiny_net, uneven_images, headers, here, monkeypatch):
    monkeypatch.setattr(
        "mgkit.stages.finetune_p.training_data", lambda config: (uneven_images, uneven_images)
    )
    config = make(FinetunePConfig, {"experiment": "t", "sizes": [24, 32, 40], "ps": [1.0], "workers": 0})
    search_p(config, tiny_net)
    assert headers.call_count == 2 * len(uneven_images)  # of the training and of the validation images


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
