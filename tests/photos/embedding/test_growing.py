"""A folder that grows: only what is new is embedded, and the rows are those of a pass over all."""

import os
from dataclasses import replace

import numpy as np
import pytest
from support import demanding, in_processes, one_line_error, write_picture, write_uneven

from mgkit.benchmarks.retrieval_set import unlabelled
from mgkit.data.decoding import UnreadableImageError, View
from mgkit.data.loader import UnreadableImages
from mgkit.features import pooled
from mgkit.photos.embedding.growing import growing_features

pytestmark = pytest.mark.usefixtures("small_shards")

OPTIONS = dict(size=32, precision="float32", batch_size=4, description=None)


@pytest.fixture
def folder(tmp_path):
    """A folder of 12 pictures of three shapes."""
    for seed in range(12):
        write_uneven(tmp_path / "photos" / f"{seed:02d}.png", seed)
    return tmp_path / "photos"


def names(paths):
    return {os.path.basename(path) for path in paths}


def listed(folder):
    return unlabelled(folder, sorted(map(str, folder.rglob("*.png"))), exif=True)


@pytest.fixture
def embedded(tiny_net, folder, tmp_path):
    """`growing_features` of what is in the folder; arguments replace its own."""

    def call(**changes):
        options = dict(p=3.0, folder=tmp_path / "store", **OPTIONS) | changes
        return growing_features(tiny_net, options.pop("images", listed(folder)), **options)

    return call


def expected(net, folder, p=3.0, **changes):
    return pooled(net, listed(folder), ps=[p], **OPTIONS | changes)[0]


def test_only_new_pictures_are_embedded(tiny_net, folder, embedded, opened, capsys):
    embedded()
    for name in ("00a", "05a", "zz"):
        write_uneven(folder / f"{name}.png", 40 + len(name))
    opened.clear()
    rows = embedded()
    assert {"00a.png", "05a.png", "zz.png"} <= names(opened)
    assert len(opened) == 4  # one that is known goes along
    assert "12 of 15 images are known from earlier, 3 are new" in capsys.readouterr().out
    np.testing.assert_allclose(rows, expected(tiny_net, folder), rtol=1e-5, atol=1e-6)
    opened.clear()
    assert np.array_equal(embedded(), rows) and not opened


def test_it_may_grow_again_and_again(tiny_net, folder, embedded, opened):
    for seed in range(20, 23):
        embedded()
        write_uneven(folder / f"{seed}.png", seed)
        opened.clear()
        rows = embedded()
        assert len(opened) == 2
    np.testing.assert_allclose(rows, expected(tiny_net, folder), rtol=1e-5, atol=1e-6)


def test_a_changed_picture_is_embedded_again_and_a_removed_one_has_no_row(tiny_net, folder, embedded, opened):
    embedded()
    write_uneven(folder / "03.png", 77)
    (folder / "07.png").unlink()
    opened.clear()
    rows = embedded()
    assert "03.png" in names(opened) and len(opened) == 2
    assert rows.shape == (11, tiny_net.width)
    np.testing.assert_allclose(rows, expected(tiny_net, folder), rtol=1e-5, atol=1e-6)


def test_a_broken_new_picture_is_listed_and_tried_again(tiny_net, folder, embedded, opened):
    embedded()
    (folder / "04a.png").write_bytes(b"no picture")
    unreadable = UnreadableImages("skip")
    rows = embedded(unreadable=unreadable)  # all that is new cannot be read
    assert [os.path.basename(path) for path in unreadable.reasons] == ["04a.png"]
    assert np.flatnonzero(np.isnan(rows[:, 0])).tolist() == [5]
    again = UnreadableImages("skip")
    embedded(unreadable=again)
    assert again.reasons == unreadable.reasons
    write_uneven(folder / "04a.png", 50)
    opened.clear()
    rows = embedded()
    assert "04a.png" in names(opened) and len(opened) == 2 and np.isfinite(rows).all()
    np.testing.assert_allclose(rows, expected(tiny_net, folder), rtol=1e-5, atol=1e-6)


def test_a_broken_new_picture_that_must_not_be_skipped_raises_and_nothing_is_lost(folder, embedded, opened):
    embedded()
    (folder / "04a.png").write_bytes(b"no picture")
    with pytest.raises(UnreadableImageError, match="04a.png"):
        embedded()
    (folder / "04a.png").unlink()
    opened.clear()
    embedded()
    assert not opened


@pytest.mark.parametrize("change", [{"p": 2.0}, {"size": 40}, {"crop": "square"}])
def test_rows_that_were_made_otherwise_are_not_taken(tiny_net, folder, embedded, opened, change):
    embedded()
    write_uneven(folder / "zz.png", 50)
    opened.clear()
    rows = embedded(**change)
    assert len(opened) == 13
    np.testing.assert_allclose(rows, expected(tiny_net, folder, **change), rtol=1e-5, atol=1e-6)


def test_a_damaged_array_is_not_taken(tiny_net, folder, embedded, opened, tmp_path):
    embedded()
    [features] = (tmp_path / "store").glob("*/features.npy")
    content = bytearray(features.read_bytes())
    content[-1] ^= 255
    features.write_bytes(content)
    write_uneven(folder / "zz.png", 50)
    opened.clear()
    rows = embedded()
    assert len(opened) == 13
    np.testing.assert_allclose(rows, expected(tiny_net, folder), rtol=1e-5, atol=1e-6)


def test_what_was_made_for_the_new_ones_alone_is_removed(folder, embedded, tmp_path):
    embedded()
    write_uneven(folder / "zz.png", 50)
    embedded()
    counts = sorted(
        np.load(path, mmap_mode="r").shape[0] for path in (tmp_path / "store").glob("*/features.npy")
    )
    assert counts == [12, 13]


def in_a_process(net, images, store_folder):
    return np.array(growing_features(net, images, p=3.0, folder=store_folder, **OPTIONS))


def test_processes_share_what_is_new(tiny_net, folder, embedded, tmp_path):
    embedded()
    for seed in range(20, 27):
        write_uneven(folder / f"{seed}.png", seed)
    parts = in_processes(2, in_a_process, tiny_net, listed(folder), tmp_path / "store")
    for rows in parts:
        np.testing.assert_allclose(rows, expected(tiny_net, folder), rtol=1e-5, atol=1e-6)


def test_a_list_with_parts_of_files_or_one_twice_is_refused(folder, embedded):
    images = listed(folder)
    for wrong in (images.subset([0, 1, 0]), replace(images, views={2: View(turned=90)})):
        with one_line_error(ValueError, "each file is taken once, and whole"):
            embedded(images=wrong)


def test_a_picture_too_narrow_for_the_network_stays_left_out_as_the_folder_grows(tiny_net, folder, embedded):
    demanding(tiny_net)
    write_picture(folder / "05a.png", size=(200, 20))
    for new in ("first", "second"):
        write_picture(folder / f"{new}.png", seed=len(new), size=(24, 16))
        unreadable = UnreadableImages("skip")
        rows = embedded(unreadable=unreadable)
        narrow = listed(folder).paths.index(str(folder / "05a.png"))
        assert np.flatnonzero(np.isnan(rows[:, 0])).tolist() == [narrow]
        [(path, why)] = unreadable.reasons.items()
        assert path == str(folder / "05a.png") and why.endswith("32 x 3 px at size 32 is too narrow for tiny")
    with one_line_error(UnreadableImageError, "05a.png", "too narrow"):
        embedded()


@pytest.mark.parametrize("content", [b"", b"PK", np.arange(3)])
def test_damaged_fingerprints_are_not_taken(tiny_net, folder, embedded, opened, tmp_path, content):
    embedded()
    [fingerprints] = (tmp_path / "store").glob("*/images.npy")
    if isinstance(content, bytes):
        fingerprints.write_bytes(content)
    else:
        np.save(fingerprints, content)
    write_uneven(folder / "zz.png", 50)
    opened.clear()
    embedded()
    assert len(opened) == 13
