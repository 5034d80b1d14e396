"""Shared by the tests of 07: a config that trains in seconds."""

from functools import partial

import pytest

from mgkit.config import ClaimsConfig, make


def claims_config(root, /, **values) -> ClaimsConfig:
    """A config of two arms, one budget and one seed, and a few batches at 32 px, with the values given."""
    quick = {
        "experiment": "t", "data": str(root), "size": 32, "eval_size": 32, "batch_size": 12, "workers": 0,
        "budgets": [1], "seeds": [0], "arms": ["plain", "joint"], "len_factor": 0.5, "copies": 5,
        "larger_sizes": [], "whitening_images": [],
    }  # fmt: skip
    return make(ClaimsConfig, quick | values)


@pytest.fixture
def config(mini_root):
    """A function that makes such a config on the reduced mini set."""
    return partial(claims_config, mini_root)
