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
from mgkit.photos.embedding import growing
from mgkit.photos.embedding.growing import growing_features

OPTIONS = dict(size=32, precision="float32", batch_size=4, description=None)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(growing, "WINDOW", 5)


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
    assert sorted(map(os.path.basename, opened)) == ["00a.png", "05a.png", "zz.png"]
    assert "12 of 15 photos are known from earlier, 3 new" in capsys.readouterr().out
    np.testing.assert_allclose(rows, expected(tiny_net, folder), rtol=1e-5, atol=1e-6)
    opened.clear()
    assert np.array_equal(embedded(), rows) and not opened


def test_it_may_grow_again_and_again(tiny_net, folder, embedded, opened):
    for seed in range(20, 23):
        embedded()
        write_uneven(folder / f"{seed}.png", seed)
        opened.clear()
        rows = embedded()
        assert len(opened) == 1
    np.testing.assert_allclose(rows, expected(tiny_net, folder), rtol=1e-5, atol=1e-6)


def test_a_changed_picture_is_embedded_again_and_a_removed_one_has_no_row(tiny_net, folder, embedded, opened):
    embedded()
    write_uneven(folder / "03.png", 77)
    (folder / "07.png").unlink()
    opened.clear()
    rows = embedded()
    assert [os.path.basename(path) for path in opened] == ["03.png"]
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
    assert [os.path.basename(path) for path in opened] == ["04a.png"] and np.isfinite(rows).all()
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


def stored(folder):
    """The file of rows below a folder, and the size of its records."""
    [path] = folder.glob("*/photos.rows")
    return path, path.stat().st_size // 12


@pytest.mark.parametrize("place", [0, 9, -1], ids=["key", "checksum", "row"])
def test_a_damaged_record_is_made_again(tiny_net, folder, embedded, opened, tmp_path, place):
    embedded()
    path, size = stored(tmp_path / "store")
    content = bytearray(path.read_bytes())
    content[place % size] ^= 255  # of the first record
    path.write_bytes(content)
    opened.clear()
    rows = embedded()
    assert [os.path.basename(path) for path in opened] == ["00.png"]
    np.testing.assert_allclose(rows, expected(tiny_net, folder), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("content", [b"", b"PK", bytes(500)])
def test_a_damaged_file_is_made_again(tiny_net, folder, embedded, opened, tmp_path, content):
    embedded()
    stored(tmp_path / "store")[0].write_bytes(content)
    opened.clear()
    rows = embedded()
    assert len(opened) == 12
    np.testing.assert_allclose(rows, expected(tiny_net, folder), rtol=1e-5, atol=1e-6)


def test_a_picture_that_goes_and_comes_back_is_known(folder, embedded, opened):
    embedded()
    (folder / "03.png").rename(folder / "away")
    assert len(embedded()) == 11
    (folder / "away").rename(folder / "03.png")
    opened.clear()
    assert len(embedded()) == 12 and not opened


@pytest.mark.parametrize("change", [os.unlink, lambda path: write_uneven(path, 99)], ids=["gone", "changed"])
def test_a_picture_that_changes_during_the_run_is_left_out_and_named(folder, embedded, monkeypatch, change):
    def at_last(images, of):
        change(folder / "11.png")

    unreadable = UnreadableImages("skip")
    monkeypatch.setattr(growing, "spread", lambda count: np.arange(count))
    rows = embedded(unreadable=unreadable, passed=lambda images, of: images == 5 and at_last(images, of))
    assert np.flatnonzero(np.isnan(rows[:, 0])).tolist() == [11]
    [(path, why)] = unreadable.reasons.items()
    assert path == str(folder / "11.png")
    again = UnreadableImages("skip")
    assert np.isfinite(embedded(unreadable=again)).all() and not again.reasons


def test_what_passed_before_an_interruption_is_known(folder, embedded, opened, capsys):
    def interrupt(images, of):
        if images == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedded(passed=interrupt)
    opened.clear()
    embedded()
    assert len(opened) == 2 and "10 of 12 photos are known from earlier, 2 new" in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 4, 5, 12, 43])
def test_windows_are_spread_over_the_folder(count):
    order = growing.spread(count)
    assert sorted(order) == list(range(count))
    for start in range(0, count - 4, 5):
        window = order[start : start + 5]
        assert np.ptp(window) >= count / 2


def test_repeated_files_have_rows_of_their_own(tiny_net, folder, embedded, opened):
    images = listed(folder).subset([0, 1, 0])
    rows = embedded(images=images, name="twice")
    opened.clear()
    assert np.array_equal(embedded(images=images, name="twice"), rows) and not opened
    np.testing.assert_allclose(rows, expected(tiny_net, folder)[[0, 1, 0]], rtol=1e-5, atol=1e-6)


def in_a_process(net, images, store_folder):
    return np.array(growing_features(net, images, p=3.0, folder=store_folder, **OPTIONS))


def test_processes_share_what_is_new(tiny_net, folder, embedded, tmp_path):
    embedded()
    for seed in range(20, 27):
        write_uneven(folder / f"{seed}.png", seed)
    parts = in_processes(2, in_a_process, tiny_net, listed(folder), tmp_path / "store")
    for rows in parts:
        np.testing.assert_allclose(rows, expected(tiny_net, folder), rtol=1e-5, atol=1e-6)


def test_a_list_with_parts_of_files_is_refused(folder, embedded):
    with one_line_error(ValueError, "each file is taken whole"):
        embedded(images=replace(listed(folder), views={2: View(turned=90)}))


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


def test_damaged_reasons_are_left_out(folder, embedded, tmp_path):
    (folder / "04a.png").write_bytes(b"no picture")
    embedded(unreadable=UnreadableImages("skip"))
    [lines] = (tmp_path / "store").glob("*/photos.jsonl")
    lines.write_bytes(b'PK\n[1]\n["a", 3]\n' + b"{" * 100)
    unreadable = UnreadableImages("skip")
    embedded(unreadable=unreadable)
    assert list(unreadable.reasons.values()) == ["it could not be read"]
