"""02: p* and the sweep at every size, and what they leave."""

import math

from support import one_line_error

from mgkit.config import FinetunePConfig, make
from mgkit.finetune import set_p
from mgkit.stages.finetune_p import p_star, search_p


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
