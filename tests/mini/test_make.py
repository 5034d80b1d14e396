"""The embedded data set: layouts, determinism, and that a set is there whole or not at all."""

import dataclasses
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from mgkit.mini import make as module
from mgkit.mini.make import MiniSizes, make_mini
from mgkit.mini.pictures import LONG_SIDE, draw_picture
from mgkit.mini.shapes import CLASS_NAMES

SIZES = MiniSizes(
    train_per_class=3,
    val_per_class=2,
    holidays_groups=6,
    ukbench_objects=3,
    copydays_originals=3,
    whiten=20,
    distractors=3,
)
TINY = MiniSizes(1, 1, 1, 1, 1, 1, 1)


def contents(root):
    """Every file below root: its relative name and its bytes."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_mini(tmp_path_factory.mktemp("mini") / "set", sizes=SIZES, workers=1)


@pytest.fixture(scope="module")
def files(root):
    return contents(root)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_mini(tmp_path_factory.mktemp("mini") / "tiny", sizes=TINY, workers=1)


def test_bytes_do_not_depend_on_the_number_of_workers(tiny, tmp_path):
    assert contents(make_mini(tmp_path / "set", sizes=TINY, workers=2)) == contents(tiny)


def test_bytes_of_a_file_do_not_depend_on_the_sizes_but_on_the_seed(files, tiny, tmp_path):
    fewer = contents(tiny)
    other = contents(make_mini(tmp_path / "other", sizes=TINY, workers=1, seed=1))
    pictures = {name for name in fewer if name not in ("mini.json", "imagenet/classes.txt")}
    assert pictures < set(files)
    assert all(fewer[name] == files[name] for name in pictures)
    assert set(other) == set(fewer)
    assert all(other[name] != fewer[name] for name in pictures)


def test_imagenet_layout(root):
    lines = (root / "imagenet/classes.txt").read_text().splitlines()
    assert lines == [f"n{1000001 + c:08d} {name}" for c, name in enumerate(CLASS_NAMES)]
    assert len(set(CLASS_NAMES)) == 12
    for part, pattern, count in (("train", "{0}_*.JPEG", 3), ("val", "ILSVRC2012_val_????????.JPEG", 2)):
        folders = sorted((root / "imagenet" / part).iterdir())
        assert [folder.name for folder in folders] == [line.split()[0] for line in lines]
        for folder in folders:
            assert len(list(folder.iterdir())) == len(list(folder.glob(pattern.format(folder.name)))) == count
    assert len({path.name for path in (root / "imagenet/val").rglob("*.JPEG")}) == 24


def test_holidays_groups_start_with_their_query(root):
    numbers = sorted(int(path.stem) for path in (root / "holidays/jpg").glob("*.jpg"))
    groups = Counter(number // 100 for number in numbers)
    assert list(groups) == [1000 + g for g in range(6)]
    assert all(2 <= size <= 5 for size in groups.values())
    assert all(group * 100 in numbers for group in groups)


def test_ukbench_is_in_fours(root):
    names = sorted(path.name for path in (root / "ukbench/full").iterdir())
    assert names == [f"ukbench{n:05d}.jpg" for n in range(12)]


def test_copydays_has_every_copy_of_every_original(root):
    base = root / "copydays"
    originals = sorted(path.name for path in (base / "original").iterdir())
    assert originals == ["200000.jpg", "200100.jpg", "200200.jpg"]
    for part, strengths in (("crops", module.CROPS), ("jpegqual", module.QUALITIES)):
        assert sorted(int(folder.name) for folder in (base / part).iterdir()) == list(strengths)
        for strength in strengths:
            folder = base / part / str(strength)
            assert sorted(path.name for path in folder.iterdir()) == originals
            for name in originals:
                with Image.open(folder / name) as copy, Image.open(base / "original" / name) as original:
                    assert copy.size == original.size
    strong = sorted(path.name for path in (base / "strong").iterdir())
    assert {name[:4] + "00.jpg" for name in strong} == set(originals)
    assert all(name[4:6] in ("01", "02", "03") for name in strong)
    weights = [(base / f"jpegqual/{quality}/200000.jpg").stat().st_size for quality in module.QUALITIES]
    assert weights == sorted(weights)


def test_unlabelled_layout(root):
    for part, count in (("whiten", 20), ("distractors", 3)):
        names = sorted(
            str(path.relative_to(root / "unlabelled" / part)) for path in root.glob(f"unlabelled/{part}/*/*")
        )
        assert names == [f"00/{n:06d}.jpg" for n in range(count)]


def test_files_are_jpegs_of_varied_sizes_some_grey(root):
    modes, sizes = Counter(), set()
    for path in root.rglob("*"):
        if path.suffix.lower() in (".jpg", ".jpeg"):
            with Image.open(path) as image:
                image.load()
                assert image.format == "JPEG"
                modes[image.mode] += 1
                sizes.add(image.size)
                if "strong" not in path.parts:
                    assert LONG_SIDE[0] <= max(image.size) <= LONG_SIDE[1]
    assert set(modes) == {"RGB", "L"} and modes["L"] < 0.15 * modes.total()
    assert len({round(width / height, 1) for width, height in sizes}) >= 4
    assert modes.total() == json.loads((root / "mini.json").read_text())["files"]


def test_the_plan_of_the_default_set_shares_no_instance_and_covers_the_classes():
    jobs = module.plan(MiniSizes())
    assert len({job.path for job in jobs}) == len(jobs)
    owners = {}
    for job in jobs:
        part = "/".join(job.path.split("/")[:2])
        assert owners.setdefault(job.instance, part) == part
    strong = sum(job.strong for job in jobs)
    assert len(jobs) == 12 * 156 + 210 + 200 + 40 + 1100 and 70 <= strong <= 80
    for part in ("holidays", "ukbench", "copydays", "unlabelled/distractors"):
        assert {job.class_index for job in jobs if job.path.startswith(part)} == set(range(12))


def test_a_complete_set_is_left_alone(root, monkeypatch):
    monkeypatch.setattr(module, "_write", None)
    assert make_mini(root, sizes=SIZES) == root


def test_another_set_is_refused(root):
    with pytest.raises(ValueError, match=r"seed 0 instead of 7.*delete the folder or choose another"):
        make_mini(root, sizes=SIZES, seed=7)
    with pytest.raises(ValueError, match="sizes"):
        make_mini(root, sizes=TINY)


def test_a_foreign_folder_or_file_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("keep me")
    (tmp_path / "file").write_text("keep me")
    for name in ("mine", "file"):
        with pytest.raises(FileExistsError, match="without a mini.json"):
            make_mini(tmp_path / name, sizes=TINY, workers=1)
    assert contents(tmp_path) == {"mine/thesis.txt": b"keep me", "file": b"keep me"}


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "set").mkdir()
    assert (make_mini(tmp_path / "set", sizes=TINY, workers=1) / "mini.json").is_file()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_a_failure(tmp_path, monkeypatch, error):
    drawn = []

    def fail(*names):
        drawn.append(names)
        if len(drawn) > 20:
            raise error("in the middle")
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(module, "draw_picture", fail)
    with pytest.raises(error):
        make_mini(tmp_path / "deep/set", sizes=TINY, workers=1)
    assert len(drawn) > 20
    assert not contents(tmp_path) and not list((tmp_path / "deep").iterdir())


def test_two_callers_at_once_both_end_with_the_set(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(make_mini, tmp_path / "set", sizes=TINY, workers=1) for _ in range(2)]
        assert [call.result() for call in calls] == [tmp_path / "set"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_set_that_appears_meanwhile_is_kept(tmp_path, monkeypatch):
    """The slower of two finds the set of the faster one in its place when it is done."""
    target, written = tmp_path / "set", module._written

    def slow(*args):
        yield from written(*args)
        monkeypatch.setattr(module, "_written", written)
        make_mini(target, sizes=TINY, workers=1)

    monkeypatch.setattr(module, "_written", slow)
    assert make_mini(target, sizes=TINY, workers=1) == target
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(MiniSizes)])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, 10**9])
def test_sizes_are_checked(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"sizes.{field} must be"):
        make_mini(tmp_path / "set", sizes=dataclasses.replace(TINY, **{field: value}))
    assert not list(tmp_path.iterdir())


def test_seed_and_workers_are_checked(tmp_path):
    for name, value in (("seed", -1), ("seed", None), ("workers", -2), ("workers", 0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            make_mini(tmp_path / "set", sizes=TINY, **{name: value})


def drawn(class_index, *, view, scene):
    """A view of an instance in a scene, of one size whatever the scene."""
    image = draw_picture(0, class_index, "thing", "thing", f"scene {scene}", f"view {view}")
    return image.resize((160, 160))


def test_views_of_one_scene_are_closer_than_views_of_two():
    def distance(a, b):
        return np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean()

    together = [distance(*(drawn(c, view=v, scene=0) for v in (0, 1))) for c in range(12)]
    apart = [distance(*(drawn(c, view=v, scene=v) for v in (0, 1))) for c in range(12)]
    assert np.mean(together) < np.mean(apart)


def test_progress_is_shown_on_request(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mgkit.machine.progress.SECONDS_BETWEEN_LINES", 0.0)
    make_mini(tmp_path / "quiet", sizes=TINY, workers=1)
    assert not capsys.readouterr().out
    make_mini(tmp_path / "set", sizes=TINY, workers=1, progress=True)
    assert "drawing the embedded dataset" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "{", "3", "[]"])
def test_a_damaged_record_of_the_set_is_named(tmp_path, content):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mini.json").write_text(content)
    with pytest.raises(ValueError, match="mini.json is damaged"):
        make_mini(tmp_path / "set", sizes=TINY, workers=1)
