"""A whitening that was learned on pictures is kept until they have changed a lot."""

import numpy as np
import pytest
import torch

from mgkit.config import PhotosConfig
from mgkit.photos.embedding.whitening import KeptWhitening, choose_whitening, identity_of

ROWS = np.random.default_rng(0).gamma(2.0, size=(300, 8)).astype(np.float32)
KEYS = np.arange(300).astype(np.uint64)


@pytest.fixture
def learned(tiny_net, tmp_path):
    """The whitening, and what is said of it, of some of the pictures."""

    def of(pictures):
        kept = KeptWhitening(tmp_path / "whitening.npz", KEYS[pictures])
        return choose_whitening(PhotosConfig(), tiny_net, ROWS[pictures], kept)

    return of


def test_it_is_kept_while_less_than_a_fifth_is_new_or_gone(learned, tmp_path):
    first, why = learned(slice(250))
    assert "learned on the pictures themselves (250 pictures" in why
    again, said = learned(slice(250))
    assert identity_of(again) == identity_of(first) and said == why
    grown, said = learned(slice(20, 280))
    assert identity_of(grown) == identity_of(first)
    assert said == f"{why}; 50 pictures are new or gone since"
    x = torch.from_numpy(ROWS)
    assert torch.equal(first(x), grown(x))


def test_it_is_learned_anew_after_a_larger_change_and_a_line_says_so(learned, capsys):
    first, _ = learned(slice(240))
    assert not capsys.readouterr().out
    other, why = learned(slice(300))
    assert identity_of(other) != identity_of(first) and "300 pictures" in why and "since" not in why
    assert "more than a fifth of its pictures are new or gone" in capsys.readouterr().out


def test_small_steps_do_not_add_up_unnoticed(learned):
    first, _ = learned(slice(200))
    for count in (220, 240):
        assert identity_of(learned(slice(count))[0]) == identity_of(first)
    assert identity_of(learned(slice(260))[0]) != identity_of(first)


@pytest.mark.parametrize("damage", ["empty", "not finite", "another size", "pickled"])
def test_a_damaged_one_is_learned_anew(learned, tmp_path, damage):
    first, _ = learned(slice(250))
    path = tmp_path / "whitening.npz"
    with np.load(path) as file:
        arrays = dict(file)
    if damage == "empty":
        path.write_bytes(b"")
    else:
        values = {"not finite": arrays["mean"] * np.nan, "another size": arrays["mean"][1:]}
        arrays["mean"] = values.get(damage, np.array([{}], object))
        np.savez(path, **arrays)
    again, why = learned(slice(250))
    assert identity_of(again) == identity_of(first) and "since" not in why


def test_of_a_large_collection_a_sample_is_enough(tiny_net, monkeypatch):
    monkeypatch.setattr("mgkit.photos.embedding.whitening.MOST_LEARNED", 150)
    sampled, why = choose_whitening(PhotosConfig(), tiny_net, ROWS)
    white = sampled(torch.from_numpy(ROWS))
    assert "300 pictures" in why
    assert torch.cov(white.T).sub(torch.eye(9)).abs().max() < 0.5 and white.mean(0).abs().max() < 0.2
