"""Datasets and loaders: seeds, workers, unreadable images, how loaders end."""

import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from support import broken_file, one_line_error, write_picture

from mgkit.data import images as lists
from mgkit.data import loader as loader
from mgkit.data import loader as module
from mgkit.data.decoding import UnreadableImageError, View
from mgkit.data.images import ImageList
from mgkit.data.layouts import plain_images
from mgkit.data.loader import ImageDataset, SeededBatches, UnreadableImages, batch_loader, end_workers
from mgkit.transforms import eval_transform, train_transform


def test_samples_are_of_the_view_and_one_file_may_be_there_whole_and_cropped(tmp_path):
    path = str(write_picture(tmp_path / "noise.png"))
    images = ImageList(tmp_path, (path, path), np.zeros(2, int), views={1: View(box=(0, 0, 5, 6))})
    dataset = ImageDataset(images, np.asarray)
    [whole, *_], [part, *_] = dataset[0], dataset[1]
    assert whole.shape == (16, 24, 3) and np.array_equal(part, whole[:6, :5])
    for (sample, _, index), expected in zip(
        dataset.__getitems__([(0, 1), (1, 2)]), (whole, part), strict=True
    ):
        assert np.array_equal(sample, expected), index


# --- Samples

BATCHES = [[0, 0, 0, 1], [1, 1, 2, 2], [2, 3]]
OTHER_BATCHES = [[0, 0], [0, 1, 1, 1, 2, 2], [2], [3]]


def samples(images, batches, workers=0, seed=3):
    dataset = ImageDataset(images, train_transform(16, "full"))
    parts = list(batch_loader(dataset, SeededBatches(batches, seed), workers=workers))
    return tuple(torch.cat(column) for column in list(zip(*parts, strict=True))[:3])


@pytest.mark.parametrize("workers", [1, 2])
def test_samples_do_not_depend_on_the_number_of_workers(images, workers):
    for alone, parallel in zip(samples(images, BATCHES), samples(images, BATCHES, workers), strict=True):
        assert torch.equal(alone, parallel)


def test_samples_do_not_depend_on_the_batch_they_came_in(images):
    for one, other in zip(samples(images, BATCHES), samples(images, OTHER_BATCHES), strict=True):
        assert torch.equal(one, other)


def test_copies_of_an_image_differ_and_another_seed_gives_others(images):
    pictures, labels, instances = samples(images, BATCHES)
    assert not torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures, samples(images, BATCHES, seed=4)[0])
    assert instances.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert labels.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]


def test_another_epoch_gives_other_augmentations(images):
    dataset, batches = ImageDataset(images, train_transform(16, "full")), SeededBatches(BATCHES)
    first = next(iter(batch_loader(dataset, batches))).image
    batches.epoch = 1
    assert not torch.equal(first, next(iter(batch_loader(dataset, batches))).image)


def test_drawing_samples_leaves_the_global_random_state_alone(images):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    ImageDataset(images, train_transform(16, "full")).__getitems__([(0, 1), (1, 2)])
    assert torch.equal(torch.get_rng_state(), state)


def test_copies_side_by_side_are_decoded_once(images, monkeypatch):
    decoded = []
    load = lists.load_image
    monkeypatch.setattr(
        lists, "load_image", lambda path, **options: decoded.append(path) or load(path, **options)
    )
    dataset = ImageDataset(images, train_transform(16))
    assert len(dataset.__getitems__([(i, seed) for i in (2, 0) for seed in range(3)])) == 6
    assert decoded == [images.paths[2], images.paths[0]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_copy_is_what_its_seed_alone_draws_from_a_fresh_decoding(images, workers):
    transform, batches = train_transform(16, "full"), SeededBatches(BATCHES)
    pairs = [pair for batch in batches for pair in batch]
    loader = batch_loader(ImageDataset(images, transform), batches, workers=workers)
    for view, (index, seed) in zip(torch.cat([batch.image for batch in loader]), pairs, strict=True):
        torch.manual_seed(seed)
        assert torch.equal(view, transform(images.load(index)))


def test_an_item_is_image_label_and_instance(images):
    image, label, instance = ImageDataset(images, eval_transform(16))[3]
    assert (tuple(image.shape), label, instance) == ((3, 16, 16), 1, 3)


# --- Unreadable images


@pytest.fixture
def broken(images):
    """The list, whose image 1 is truncated."""
    broken_file(Path(images.paths[1]), "truncated")
    return images


def watched(images, batches, unreadable, workers=0):
    loader = batch_loader(ImageDataset(images, eval_transform(16)), SeededBatches(batches), workers=workers)
    return list(unreadable.watch(loader))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_stops_the_work_and_is_named(broken, workers):
    with one_line_error(UnreadableImageError, broken.paths[1], "skip"):
        watched(broken, BATCHES, UnreadableImages("raise"), workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_images_are_counted_and_listed_once(broken, workers, capsys):
    unreadable = UnreadableImages("skip")
    batches = watched(broken, BATCHES, unreadable, workers)
    assert [batch.instance.tolist() for batch in batches] == [[0, 0, 0], [2, 2], [2, 3]]
    assert all(len(batch.image) == len(batch.label) for batch in batches)
    unreadable.report()
    printed = capsys.readouterr().out
    assert list(unreadable.reasons) == [broken.paths[1]]
    assert "skipped 1 " in printed and printed.count(broken.paths[1]) == 1


def test_a_batch_without_a_readable_image_is_left_out(broken):
    batches = watched(broken, [[1, 1], [0, 2], [1]], UnreadableImages("skip"))
    assert [batch.instance.tolist() for batch in batches] == [[0, 2]]


def test_nothing_is_reported_where_all_was_readable(images, capsys):
    unreadable = UnreadableImages("skip")
    watched(images, BATCHES, unreadable)
    unreadable.report()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("kind", "pinned"), [("cpu", False), ("cuda", True), ("xpu", True), ("mps", False)])
def test_batches_are_in_pinned_memory_for_gpus_that_copy_from_it(kind, pinned):
    loader = batch_loader(ImageDataset([], None), SeededBatches([]), device=torch.device(kind))
    assert loader.pin_memory is pinned


def test_skipping_every_image_is_an_error_that_names_one(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_text("not a picture")
    dataset = ImageDataset(plain_images(tmp_path), eval_transform(16))
    loader = batch_loader(dataset, SeededBatches([[0, 1], [2]]))
    with pytest.raises(UnreadableImageError, match=r"none of 3 images is readable: .*0\.jpg"):
        list(UnreadableImages("skip").watch(loader))


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="needs an alarm")
@pytest.mark.parametrize(("seconds", "ends"), [(600, False), (1, True)])
def test_a_loader_goes_on_after_sigterm_and_ends_in_the_end(uneven_images, monkeypatch, seconds, ends):
    monkeypatch.setattr(module, "SECONDS_TO_SAVE", seconds)
    dataset = ImageDataset(uneven_images, train_transform(16, "full"))
    loader = batch_loader(dataset, SeededBatches([[i] for i in range(24)]), workers=1)
    batches = iter(loader)
    next(batches)
    [worker] = loader._iterator._workers
    worker.terminate()
    if ends:
        with suppress(RuntimeError):  # of torch's, which watches over loaders that are still needed
            worker.join(60)
        worker.join(60)
        assert worker.exitcode == -signal.SIGALRM
    else:
        assert len(list(batches)) == 23 and worker.is_alive()
        end_workers(loader)


def test_the_processes_of_a_loader_can_be_ended_in_the_midst_of_its_work(uneven_images):
    dataset = ImageDataset(uneven_images, train_transform(16, "full"))
    loader = batch_loader(dataset, SeededBatches([[i] for i in range(24)]), workers=2)
    batches = iter(loader)
    next(batches)
    workers = loader._iterator._workers
    began = time.monotonic()
    end_workers(loader)
    assert time.monotonic() - began < 4 and not any(worker.is_alive() for worker in workers)
    end_workers(batch_loader(dataset, SeededBatches([[0]])))  # one that has none


def slowly(image):
    time.sleep(3)


def test_a_reading_process_that_hangs_is_an_error(uneven_images, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_FOR_A_BATCH", 1)
    loader = batch_loader(ImageDataset(uneven_images, slowly), SeededBatches([[0]]), workers=1)
    with pytest.raises(RuntimeError, match="timed out"):
        next(iter(loader))
