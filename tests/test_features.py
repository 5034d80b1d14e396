"""Descriptors depend on the image alone: not on batches, workers, or which other exponents were asked for."""

import copy
import os
import tracemalloc
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import torch
from support import demanding, in_processes, one_line_error, stand_in_for_timm, write_picture

from mgkit import features
from mgkit import features as descriptors
from mgkit.config import ClassifyConfig, FinetunePConfig, make
from mgkit.data.decoding import UnreadableImageError, load_image
from mgkit.data.layouts import class_folders
from mgkit.data.loader import UnreadableImages
from mgkit.features import (
    JoinedRows,
    Passes,
    by_window,
    classify,
    embed,
    feature_maps,
    multi_scale,
    plain,
    pooled,
    rows_at,
    whitened,
)
from mgkit.machine.distributed import rank, world_size
from mgkit.model import get_multigrain
from mgkit.transforms import eval_transform
from mgkit.whitening import whiten

SIZES = [(40, 30), (30, 40), (40, 40), (40, 30), (60, 20), (40, 30), (30, 40), (40, 40), (80, 60)]
OPTIONS = dict(size=48, precision="float32", description=None)


def maps_of(net, images, *, window=None, shapes=None, **changes):
    """`feature_maps` at 48 px in float32."""
    passes = Passes(precision="float32", description=None, **changes)
    return feature_maps(net, images, size=48, passes=passes, window=window, shapes=shapes)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for seed, size in enumerate(SIZES):
        write_picture(root / f"class{seed % 3}" / f"{seed}.png", seed=seed, size=size)
    return class_folders(root)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = get_multigrain("resnet8", num_classes=3)
    for module in net.modules():  # as after training: statistics that are not 0 and 1
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


@pytest.fixture(scope="module")
def one_by_one(net, images):
    """The network's own descriptors and logits, an image at a time."""
    transform = eval_transform(48, "rect")
    with torch.no_grad():
        outputs = [net(transform(load_image(path, exif=True))[None]) for path in images.paths]
    return {key: torch.cat([output[key] for output in outputs]) for key in outputs[0]}


@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
def test_whole_images_in_batches_are_what_they_are_alone_and_in_order(net, images, one_by_one, batch_size):
    rows = embed(net, images, batch_size=batch_size, crop="rect", **OPTIONS)
    expected = one_by_one["normalized_embedding"].numpy()
    assert rows.shape == (9, net.width) and rows.dtype == np.float32
    assert np.abs(rows - expected).max() < 1e-5
    assert np.abs(expected[0] - expected[1:]).max() > 1e-3  # another order would be seen


def test_square_crops_do_not_depend_on_the_batch_either(net, images):
    whole, alone = (embed(net, images, crop="square", batch_size=size, **OPTIONS) for size in (9, 1))
    assert np.abs(whole - alone).max() < 1e-5


def test_descriptors_do_not_depend_on_the_number_of_workers(net, images):
    none, two = (embed(net, images, batch_size=2, workers=workers, **OPTIONS) for workers in (0, 2))
    assert np.array_equal(none, two)


def test_several_exponents_in_one_pass_are_the_single_ones(net, images):
    ps = [1.0, 3.0, 7.5, float("inf")]
    together = embed(net, images, ps=ps, **OPTIONS)
    assert together.shape == (4, 9, net.width)
    for p, rows in zip(ps, together, strict=True):
        assert np.array_equal(rows, embed(net, images, ps=[p], **OPTIONS)[0])
    assert not np.allclose(together[0], together[1], atol=1e-3)
    assert np.array_equal(together[1], embed(net, images, **OPTIONS))  # the network's own p is 3


def test_descriptors_are_of_length_one(net, images):
    assert np.allclose(np.linalg.norm(embed(net, images, **OPTIONS), axis=1), 1, atol=1e-4)


def test_a_whitened_network_gives_whitened_descriptors_but_pools_as_before(net, images):
    dimension = net.width + 1
    whitened = whiten(net, torch.zeros(dimension), torch.eye(dimension))
    assert embed(whitened, images, **OPTIONS).shape == (9, dimension)
    assert np.array_equal(
        pooled(whitened, images, ps=[3.0], **OPTIONS), pooled(net, images, ps=[3.0], **OPTIONS)
    )


@pytest.mark.parametrize("whitening", [False, True])
def test_embedding_is_the_head_s_but_a_batch_at_a_time_and_without_logits(net, images, whitening):
    own = copy.deepcopy(net)
    if whitening:
        own = whiten(own, torch.rand(net.width + 1) / 9, torch.rand(net.width + 1, net.width + 1))
    rows = torch.from_numpy(pooled(own, images, ps=[1.0, 3.0], batch_size=2, **OPTIONS))
    with torch.no_grad():
        expected = torch.stack([own.head(of_p)["normalized_embedding"] for of_p in rows])
    own.classifier.register_forward_hook(lambda *_: pytest.fail("logits were computed"))
    at_once = []
    if whitening:
        own.whitening.register_forward_hook(lambda module, inputs, _: at_once.append(len(inputs[0])))
    found = embed(own, images, ps=[1.0, 3.0], batch_size=2, **OPTIONS)
    assert found.dtype == np.float32 and max(at_once, default=0) <= 2
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "dimensions"), [("tiny_net", 8), ("whitened_net", 9)])
def test_the_classifier_reads_the_network_s_embeddings(request, uneven_images, kind, dimensions):
    net = request.getfixturevalue(kind)
    rows = features.classifier_inputs(net, uneven_images, size=24, ps=[3.0, 1.5], precision="float32")
    assert rows.shape == (2, 24, dimensions)
    for of_p, p in zip(rows, (3.0, 1.5), strict=True):
        alone = copy.deepcopy(net)
        alone.pool.p.data.fill_(p)
        for i in (0, 7, 23):
            image = eval_transform(24, "rect")(load_image(uneven_images.paths[i]))
            with torch.no_grad():
                expected = alone(image[None])["embedding"][0]
            np.testing.assert_allclose(of_p[i], expected, rtol=1e-4, atol=1e-5)


def test_embedding_holds_little_beside_its_result(tiny_net, monkeypatch):
    count, width = 60_000, tiny_net.width
    batch = np.ones((1, 100, width), np.float32)
    batches = ((batch, np.arange(start, start + 100)) for start in range(0, count, 100))
    monkeypatch.setattr("mgkit.features.pooled_batches", lambda *_, **__: batches)
    tracemalloc.start()
    rows = embed(tiny_net, range(count), size=32)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows.shape == (count, width) and most < 1.2 * rows.nbytes


def test_logits_come_in_the_order_of_the_images(net, images, one_by_one):
    logits, labels = classify(net, images, crop="rect", batch_size=4, **OPTIONS)
    assert torch.allclose(logits, one_by_one["classifier_output"], atol=1e-4)
    assert labels.tolist() == images.labels.tolist()


def test_every_image_comes_once_in_batches_of_one_shape(net, images):
    batches = list(maps_of(net, images, batch_size=3))
    indices = [index for _, _, batch in batches for index in batch.tolist()]
    assert sorted(indices) == list(range(9))
    assert all(len(maps) == len(labels) == len(batch) <= 3 for maps, labels, batch in batches)


def test_batches_do_not_mix_windows_which_come_in_order(net, images):
    windows = [
        {index // 4 for index in batch.tolist()} for *_, batch in maps_of(net, images, batch_size=4, window=4)
    ]
    assert all(len(window) == 1 for window in windows)
    order = [window.pop() for window in windows]
    assert order == sorted(order) and set(order) == {0, 1, 2}


@pytest.mark.parametrize("crop", ["rect", "square"])
def test_no_images_give_no_maps_no_logits_no_rows(net, images, crop):
    none = images.subset([])
    assert list(maps_of(net, none, crop=crop)) == []
    logits, labels = classify(net, none, crop=crop, **OPTIONS)
    assert logits.shape == (0, 3) and labels.shape == (0,)
    assert embed(net, none, crop=crop, ps=[1.0, 3.0], **OPTIONS).shape == (2, 0, net.width)


def test_shapes_of_other_images_are_refused(net, images):
    with one_line_error(ValueError, "shapes", "8", "9 images"):
        next(maps_of(net, images, shapes=[(40, 30)] * 8))


def test_several_batches_at_once_give_the_same_in_the_same_order(net, images, request):
    def found():
        maps = list(maps_of(net, images, batch_size=2, window=5))
        rows = pooled(net, images, ps=[1.0, 2.7], batch_size=2, **OPTIONS)
        return maps, rows, *classify(net, images, batch_size=2, **OPTIONS)

    alone, at_once = found(), [request.getfixturevalue("four_threads"), found()][1]
    for of_alone, of_many in zip(alone[0], at_once[0], strict=True):
        for one, other in zip(of_alone, of_many, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for one, other in zip(alone[1:], at_once[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_batches_beside_others_are_small(net, images, four_threads, monkeypatch):
    monkeypatch.setattr("mgkit.features.PIXELS_A_LANE", 2 * 48**2)
    assert max(len(indices) for _, _, indices in maps_of(net, images)) == 2


def test_what_is_read_of_the_maps_comes_instead(net, images, four_threads):
    read = feature_maps(
        net, images, size=48, passes=Passes(description=None), read=lambda maps: maps.amax((2, 3))
    )
    for (maps, _, indices), (rows, _, of_read) in zip(maps_of(net, images), read, strict=True):
        assert torch.equal(indices, of_read) and not rows.requires_grad
        torch.testing.assert_close(maps.amax((2, 3)), rows, rtol=1e-5, atol=1e-6)


def test_the_network_is_put_in_eval_mode(net, images):
    net.train()
    next(maps_of(net, images))
    assert not net.training


@pytest.fixture
def broken(tmp_path):
    for seed in range(4):
        write_picture(tmp_path / f"class{seed % 2}" / f"{seed}.png", seed=seed)
    (tmp_path / "class0" / "2.png").write_bytes(b"not an image")
    return class_folders(tmp_path)  # 0.png, 2.png, 1.png, 3.png


def test_an_unreadable_image_is_named(net, broken):
    with one_line_error(UnreadableImageError, broken.paths[1]):
        embed(net, broken, **OPTIONS)


def test_a_skipped_image_has_a_row_of_nan_and_no_logits(net, broken):
    unreadable = UnreadableImages("skip")
    rows = embed(net, broken, unreadable=unreadable, **OPTIONS)
    assert np.isnan(rows).all(axis=1).tolist() == [False, True, False, False]
    assert np.isfinite(rows[[0, 2, 3]]).all()
    logits, labels = classify(net, broken, unreadable=UnreadableImages("skip"), **OPTIONS)
    assert len(logits) == 3 and labels.tolist() == [0, 1, 1]


def test_bf16_stays_close_to_float32(net, images):
    exact = embed(net, images, **OPTIONS)
    rounded = embed(net, images, **OPTIONS | {"precision": "bf16"})
    assert rounded.dtype == np.float32
    assert (exact * rounded).sum(axis=1).min() > 0.99


def test_passes_take_what_a_config_has_and_what_is_changed():
    values = {"crop": "square", "batch_size": 3, "workers": 1, "precision": "bf16", "on_unreadable": "skip"}
    passes = Passes.of(make(FinetunePConfig, values), description=None)
    assert (passes.crop, passes.batch_size, passes.workers, passes.precision) == ("square", 3, 1, "bf16")
    assert passes.unreadable.on_unreadable == "skip" and passes.description is None
    assert Passes.of(make(ClassifyConfig, {})).crop == "rect"  # whose config has a list of crops
    assert Passes.of(make(FinetunePConfig, {}), crop="square").crop == "square"


def test_a_change_of_an_unknown_field_is_refused(net, images):
    for work in (embed, classify, partial(pooled, ps=[3.0])):
        with pytest.raises(TypeError, match="sizes"):
            work(net, images, size=48, sizes=[48])


# --- Several processes


def shared_passes(net, images):
    """Pooled rows, which all get, and the logits and labels of this process's share."""
    options = dict(size=32, batch_size=2, precision="float32")
    rows = pooled(net, images, ps=[1.0, 3.0], **options)
    return rows, *(x.numpy() for x in classify(net, images, crop="rect", **options))


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_images(tiny_net, uneven_images, processes):
    few = uneven_images.subset(range(7))
    rows, logits, labels = shared_passes(tiny_net, few)
    found = in_processes(processes, shared_passes, tiny_net, few)
    for of_rank in found:
        np.testing.assert_array_equal(of_rank[0], rows)
    shared = np.concatenate([of_rank[1] for of_rank in found])
    assert sorted(np.concatenate([of_rank[2] for of_rank in found])) == sorted(labels)
    np.testing.assert_allclose(np.sort(shared, axis=0), np.sort(logits, axis=0), rtol=1e-4, atol=1e-5)


def refused_by_all(net, images):
    """The last process alone gets maps that are not finite."""

    def spoilt(*args, **options):
        for maps, *rest in feature_maps(*args, **options):
            yield maps * (np.nan if rank() == world_size() - 1 else 1), *rest

    with patch("mgkit.features.feature_maps", spoilt):
        for work in (embed, partial(pooled, ps=[3.0])):
            with one_line_error(ValueError, "the features of", images.root, "weights hold NaN"):
                work(net, images, size=32)


@pytest.mark.parametrize("processes", [1, 2])
def test_features_that_are_not_finite_are_refused_by_all(tiny_net, uneven_images, processes):
    in_processes(processes, refused_by_all, tiny_net, uneven_images)


def test_every_window_comes_also_where_a_process_has_nothing_of_it():
    batches = iter([("a", [0, 2]), ("b", [1]), ("c", [7])])
    assert list(by_window(batches, 3, 10)) == [[("a", [0, 2]), ("b", [1])], [], [("c", [7])], []]
    assert list(by_window(iter([]), 4, 4)) == [[]]


def pooled_rows(n=11, width=8, seed=0):
    return np.abs(np.random.default_rng(seed).normal(size=(n, width))).astype(np.float32)


@pytest.fixture
def whitened_net(tiny_net):
    generator = torch.Generator().manual_seed(1)
    return whiten(tiny_net, torch.randn(9, generator=generator) / 9, torch.randn(9, 9, generator=generator))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_plain_descriptors_are_unit_vectors_along_the_pooled_features():
    rows = pooled_rows()
    found = plain(rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, unit(rows), atol=1e-5)


def test_whitened_descriptors_are_the_network_s(whitened_net):
    rows = pooled_rows()
    with torch.no_grad():
        expected = whitened_net.head(torch.from_numpy(rows))["normalized_embedding"].numpy()
    np.testing.assert_allclose(whitened(whitened_net, rows), expected, atol=1e-6)


@pytest.mark.parametrize("dims", [2, 5, 9])
def test_fewer_dimensions_are_the_first_ones_normalised_anew(whitened_net, dims):
    rows = pooled_rows()
    all_of_them = whitened(whitened_net, rows)
    np.testing.assert_allclose(
        whitened(whitened_net, rows, dims=dims), unit(all_of_them[:, :dims]), atol=1e-3
    )


@pytest.mark.parametrize("dims", [0, 10])
def test_dims_must_be_those_of_the_descriptor(whitened_net, dims):
    with one_line_error(ValueError, "dims", "9", dims):
        whitened(whitened_net, pooled_rows(), dims=dims)


def test_a_network_without_whitening_is_named(tiny_net):
    with one_line_error(ValueError, "tiny", "03_whiten"):
        whitened(tiny_net, pooled_rows())


def test_scales_are_summed_and_normalised():
    parts = [unit(pooled_rows(seed=seed)) for seed in range(3)]
    np.testing.assert_allclose(multi_scale(parts), unit(sum(parts)), atol=1e-5)
    np.testing.assert_allclose(multi_scale(parts[:1]), parts[0], atol=1e-5)


def test_blocks_and_files_on_disk_change_nothing(whitened_net, tmp_path, monkeypatch):
    rows = pooled_rows(23)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    expected = plain(rows), whitened(whitened_net, rows)
    monkeypatch.setattr(descriptors, "ROWS", 5)
    np.testing.assert_array_equal(plain(mapped), expected[0])
    np.testing.assert_allclose(whitened(whitened_net, mapped), expected[1], atol=1e-6)


def test_large_rows_are_in_a_file_beside_theirs_that_is_gone_with_them(tmp_path, monkeypatch):
    rows = pooled_rows(23)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    expected, odd = plain(rows), np.arange(1, 23, 2)
    monkeypatch.setattr(descriptors, "MOST_IN_MEMORY", 4 * rows.size - 1)
    found = plain(mapped)
    assert isinstance(found, np.memmap) and os.path.dirname(found.filename) == str(tmp_path)
    np.testing.assert_array_equal(found, expected)
    monkeypatch.setattr(descriptors, "MOST_IN_MEMORY", 0)
    np.testing.assert_array_equal(rows_at(found, odd), expected[odd])
    assert os.listdir(tmp_path) == ["rows.npy"]


def test_consecutive_rows_are_not_copied():
    rows = pooled_rows(23)
    assert np.shares_memory(rows_at(rows, np.arange(3, 9)), rows)
    np.testing.assert_array_equal(rows_at(rows, np.array([5, 4])), rows[[5, 4]])
    assert rows_at(rows, np.array([], dtype=np.int64)).shape == (0, rows.shape[1])


@pytest.mark.parametrize("wanted", [slice(0, 9), slice(3, 5), slice(2, 30), slice(7, 7), slice(20, 23)])
def test_joined_rows_are_read_as_one_array(wanted):
    rows = pooled_rows(23)
    joined = JoinedRows((rows[:4], rows[4:4], rows[4:]))
    assert len(joined) == 23 and joined.shape == rows.shape
    np.testing.assert_array_equal(joined[wanted], rows[wanted])
    np.testing.assert_array_equal(joined[:, 0], rows[:, 0])
    np.testing.assert_array_equal(plain(joined), plain(rows))


def test_an_unreadable_image_s_row_stays_nan(whitened_net):
    rows = pooled_rows()
    rows[3] = np.nan
    for found in (plain(rows), whitened(whitened_net, rows), multi_scale([plain(rows)] * 2)):
        assert np.flatnonzero(~np.isfinite(found[:, 0])).tolist() == [3]


def test_images_of_other_shapes_than_their_headers_say_are_embedded(tiny_net, banners):
    """As of a file that is replaced while a pass runs."""
    expected = embed(tiny_net, banners, **OPTIONS)
    with patch("mgkit.features.image_shapes", return_value=[(40, 30)] * len(banners)):
        np.testing.assert_allclose(embed(tiny_net, banners, **OPTIONS), expected, rtol=1e-5, atol=1e-6)


# --- Pictures too narrow for the network


@pytest.fixture(scope="module")
def banners(tmp_path_factory):
    """Nine pictures, of which the third and the last are too narrow at 48 px."""
    root = tmp_path_factory.mktemp("banners")
    sizes = [(40, 30), (30, 40), (200, 20), (40, 40), (40, 30), (60, 20), (40, 30), (48, 48), (10, 90)]
    for seed, size in enumerate(sizes):
        write_picture(root / f"class{seed // 3}" / f"{seed}.png", seed=seed, size=size)
    return class_folders(root)


NARROW = [False, False, True, False, False, False, False, False, True]


@pytest.mark.parametrize("how", ["error", "empty", "not finite"])
def test_a_picture_too_narrow_for_the_network_is_unreadable(tiny_net, banners, how):
    expected = embed(tiny_net, banners, **OPTIONS)
    net, unreadable = demanding(tiny_net, how), UnreadableImages("skip")
    rows = embed(net, banners, unreadable=unreadable, **OPTIONS)
    assert np.isnan(rows[:, 0]).tolist() == NARROW
    wide = np.logical_not(NARROW)
    np.testing.assert_allclose(rows[wide], expected[wide], rtol=1e-5, atol=1e-6)  # batch norms are not folded
    assert unreadable.reasons == {
        banners.paths[
            i
        ]: f"cannot use the image {banners.paths[i]}: {size} px at size 48 is too narrow for tiny"
        for i, size in {2: "48 x 4", 8: "5 x 48"}.items()
    }
    logits, labels = classify(net, banners, unreadable=UnreadableImages("skip"), **OPTIONS)
    assert len(logits) == 7 and labels.tolist() == [0, 0, 1, 1, 1, 2, 2]
    with one_line_error(UnreadableImageError, banners.paths[2], "48 x 4 px", "on_unreadable='skip'"):
        embed(net, banners, **OPTIONS)


@pytest.mark.parametrize(
    ("how", "error"),
    [("always", "fault of the device"), ("squares", "squares only"), ("whole batch", "fault")],
)
def test_other_errors_of_the_network_are_raised_as_they_are(tiny_net, banners, how, error):
    with pytest.raises((RuntimeError, ValueError), match=error):
        embed(demanding(tiny_net, how), banners, unreadable=UnreadableImages("skip"), **OPTIONS)


def test_if_all_pictures_are_too_narrow_the_error_names_one(tiny_net, banners):
    few = banners.subset([2, 8])
    with one_line_error(UnreadableImageError, "none of 2 images is readable", "too narrow"):
        embed(demanding(tiny_net, "error"), few, unreadable=UnreadableImages("skip"), **OPTIONS)


def skipped_by_all(net, images):
    unreadable = UnreadableImages("skip")
    rows = embed(net, images, unreadable=unreadable, **OPTIONS)
    unreadable.share()
    with one_line_error(UnreadableImageError, "too narrow for tiny"):
        embed(net, images, **OPTIONS)
    return rows, unreadable.reasons


def test_processes_skip_narrow_pictures_alike(tiny_net, banners):
    for rows, reasons in in_processes(2, skipped_by_all, demanding(tiny_net, "error"), banners):
        assert np.isnan(rows[:, 0]).tolist() == NARROW and len(reasons) == 2


def test_a_picture_is_too_narrow_for_a_backbone_that_takes_only_the_square_of_its_side():
    halving = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 2, stride=2) for _ in range(3))).eval()
    with torch.no_grad():
        for shape in ((8, 7), (7, 8), (1, 8)):
            assert features.maps_of(halving, torch.zeros(1, 3, *shape)) is None
        assert features.maps_of(halving, torch.zeros(1, 3, 8, 8)).shape == (1, 3, 1, 1)
        with one_line_error(ValueError, "size: 7 px (size × scale) is too small for the network"):
            features.maps_of(halving, torch.zeros(1, 3, 5, 7))


def test_a_picture_narrower_than_a_patch_is_unreadable(banners, monkeypatch):
    stand_in_for_timm(monkeypatch)
    net, unreadable = get_multigrain("timm/test_vit", pretrained_backbone=True), UnreadableImages("skip")
    rows = embed(net, banners, unreadable=unreadable, **OPTIONS)
    assert np.isnan(rows[:, 0]).tolist() == NARROW
    assert [*unreadable.reasons] == [banners.paths[2], banners.paths[8]]
    with one_line_error(UnreadableImageError, banners.paths[2], "48 x 4 px", "too narrow for timm/test_vit"):
        embed(net, banners, **OPTIONS)
    with one_line_error(ValueError, "size: 12 px", "timm/test_vit takes images of at least 16 x 16 px"):
        embed(net, banners, **OPTIONS | dict(size=12))


def test_a_network_of_one_size_takes_square_crops_alone(banners, monkeypatch):
    stand_in_for_timm(monkeypatch)
    net = get_multigrain("timm/test_vit_relpos", num_classes=3)
    for size in (48, 160):
        with one_line_error(ValueError, "timm/test_vit_relpos takes images of 160 x 160 px only, got"):
            embed(net, banners, **OPTIONS | dict(size=size))
    assert np.isfinite(embed(net, banners, **OPTIONS | dict(size=160, crop="square"))).all()
