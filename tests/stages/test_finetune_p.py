"""02: p* and the sweep at every size, and what they leave."""

from mgkit.config import FinetunePConfig, make
from mgkit.stages.finetune_p import search_p


def test_the_search_reads_every_header_once(tiny_net, uneven_images, headers, here, monkeypatch):
    monkeypatch.setattr(
        "mgkit.stages.finetune_p.training_data", lambda config: (uneven_images, uneven_images)
    )
    config = make(FinetunePConfig, {"experiment": "t", "sizes": [24, 32, 40], "ps": [1.0], "workers": 0})
    search_p(config, tiny_net)
    assert headers.call_count == 2 * len(uneven_images)  # of the training and of the validation images
