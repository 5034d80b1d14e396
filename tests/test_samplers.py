"""Repeated augmentation against a naive generator; batches of one shape."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgkit.samplers import RepeatedAugmentationSampler, same_shape_batches


def naive_batches(dataset_len, batch_size, repetitions, len_factor, drop_last):
    """One image after the other, each several times; a batch goes out whenever it is full (unshuffled)."""
    left = int(dataset_len * len_factor)
    batch, batches = [], []
    for image in itertools.cycle(range(dataset_len)):
        for _ in range(repetitions):
            if left == 0:
                return batches + ([batch] if batch and not drop_last else [])
            batch.append(image)
            left -= 1
            if len(batch) == batch_size:
                batches.append(batch)
                batch = []


SETTINGS = dict(
    dataset_len=st.integers(1, 20),
    batch=st.integers(0, 12),
    repetitions=st.integers(1, 5),
    len_factor=st.sampled_from([1.0, 1.5, 2.0, 3.7]),
    drop_last=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(**SETTINGS)
def test_unshuffled_batches_are_those_of_the_naive_generator(
    dataset_len, batch, repetitions, len_factor, drop_last
):
    arguments = (dataset_len, repetitions + batch, repetitions, len_factor)
    sampler = RepeatedAugmentationSampler(*arguments, shuffle=False, drop_last=drop_last)
    batches = list(sampler)
    assert batches == naive_batches(*arguments, drop_last)
    assert len(batches) == len(sampler)


@settings(max_examples=40, deadline=None)
@given(**SETTINGS)
def test_shuffled_epochs_hold_runs_of_copies_of_images_in_permutations(
    dataset_len, batch, repetitions, len_factor, drop_last
):
    sampler = RepeatedAugmentationSampler(
        dataset_len, repetitions + batch, repetitions, len_factor, drop_last=drop_last
    )
    order = sum(sampler, [])
    images = order[::repetitions]
    assert order == [image for image in images for _ in range(repetitions)][: len(order)]
    for start in range(0, len(images), dataset_len):
        once = images[start : start + dataset_len]
        assert len(set(once)) == len(once)  # no image twice before all came once
    assert len(order) == len(sampler) * sampler.batch_size or not drop_last


@pytest.mark.parametrize("case", range(4))
def test_batches_match_the_reference(pieces, case):
    dataset_len, batch_size, repetitions, len_factor, drop_last = pieces[f"ra{case}__args"]
    sampler = RepeatedAugmentationSampler(
        int(dataset_len), int(batch_size), int(repetitions), len_factor, shuffle=False,
        drop_last=bool(drop_last),
    )  # fmt: skip
    batches = list(sampler)
    assert len(sampler) == int(pieces[f"ra{case}__len"])
    assert [len(b) for b in batches] == pieces[f"ra{case}__sizes"].tolist()
    assert sum(batches, []) == pieces[f"ra{case}__indices"].tolist()


def test_copies_run_on_across_the_border_of_a_batch():
    sampler = RepeatedAugmentationSampler(6, 4, 3, shuffle=False)
    assert list(sampler) == [[0, 0, 0, 1], [1, 1]]


def test_more_copies_than_samples_give_one_image():
    assert list(RepeatedAugmentationSampler(2, 5, 5, shuffle=False)) == [[0, 0]]


def test_three_copies_see_two_thirds_of_the_images_at_twice_the_length():
    seen = Counter(sum(RepeatedAugmentationSampler(300, 30, 3, 2.0), []))
    assert len(seen) == 200 and set(seen.values()) == {3}


def test_epochs_and_seeds_change_the_order_and_repeat_it():
    def order(seed, epoch):
        sampler = RepeatedAugmentationSampler(50, 10, 2, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert len({str(order(seed, epoch)) for seed in (0, 1, 2) for epoch in (0, 1, 2)}) == 9
    sampler = RepeatedAugmentationSampler(50, 10, 2)
    assert list(sampler) == list(sampler) == order(0, 0)  # until set_epoch says otherwise


@settings(max_examples=40, deadline=None)
@given(**SETTINGS, world_size=st.integers(1, 4), seed=st.integers(0, 5))
def test_the_shares_of_all_ranks_make_the_global_batch(
    dataset_len, batch, repetitions, len_factor, drop_last, world_size, seed
):
    batch_size = max(repetitions + batch, world_size)
    arguments = (dataset_len, batch_size, repetitions, len_factor, True, drop_last, seed)
    ranks = [
        RepeatedAugmentationSampler(*arguments, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    shares = list(zip(*ranks, strict=True))  # strict: every rank has as many batches
    assert [sum(of_batch, []) for of_batch in shares] == list(RepeatedAugmentationSampler(*arguments))
    for of_batch in shares:
        sizes = [len(share) for share in of_batch]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (dict(dataset_len=0), "dataset_len"),
        (dict(batch_size=0), "batch_size"),
        (dict(repetitions=0), "repetitions"),
        (dict(repetitions=-1), "repetitions"),
        (dict(len_factor=0.0), "len_factor"),
        (dict(len_factor=0.05), "len_factor"),
        (dict(len_factor=-1.0), "len_factor"),
        (dict(batch_size=2, repetitions=3), "smaller than repetitions"),
        (dict(rank=-1), "rank"),
        (dict(rank=2, world_size=2), "rank"),
        (dict(world_size=0), "world_size"),
        (dict(batch_size=3, world_size=4), "world_size"),
    ],
)
def test_invalid_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        RepeatedAugmentationSampler(**(dict(dataset_len=10, batch_size=6) | arguments))


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=40),
    batch_size=st.integers(1, 8),
)
def test_batches_of_one_shape_hold_every_index_once(shapes, batch_size):
    batches = same_shape_batches(shapes, batch_size)
    assert sorted(sum(batches, [])) == list(range(len(shapes)))
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len({shapes[i] for i in batch}) == 1
    assert [batch[0] for batch in batches] == sorted(batch[0] for batch in batches)
    for shape in set(shapes):  # and as few batches as that allows
        assert sum(shapes[batch[0]] == shape for batch in batches) == -(-shapes.count(shape) // batch_size)
