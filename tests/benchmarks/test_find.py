"""What is found below a folder: the benchmarks that are there, and distractors for all of them."""

import hashlib
import subprocess

import pytest
from benchmark_trees import (
    COPYDAYS,
    LEVELS,
    MATCHES,
    STRONG,
    cars_tree_in_parts,
    cub_tree,
    disc_tree,
    gldv2_tree,
    holidays_tree,
    ilias_tree,
    inshop_tree,
    instre_tree,
    revisited_tree,
    sop_tree,
    ukbench_files,
)
from support import answers, file_name, one_line_error, ranked, write_empty, write_tree

from mgkit.benchmarks.copies.disc21 import SUBSET
from mgkit.benchmarks.find import distractor_record, find_sets
from mgkit.data.images import UNLABELLED
from mgkit.data.layouts import plain_images


def every_benchmark(root):
    holidays_tree(root / "holidays")
    write_empty(root / "ukbench", *ukbench_files([0, 1]))
    write_empty(root / "copydays", *COPYDAYS, *STRONG, *LEVELS)
    for name in ("roxford5k", "rparis6k"):
        revisited_tree(root / name, name)
    disc_tree(root / "disc21", MATCHES)
    return root


def test_all_sets_of_the_mini_set_are_found(mini_root, capsys):
    found = find_sets(mini_root)
    levels = [f"crops {n}" for n in (10, 15, 20, 30, 40, 50, 60, 70, 80)]
    levels += [f"jpegqual {n}" for n in (3, 5, 8, 10, 15, 20, 30, 50, 75)]
    assert [each.name for each in found] == [
        "holidays", "ukbench", "copydays + 6 distractors", *(f"copydays {level}" for level in levels)
    ]  # fmt: skip
    assert all(each.images is found[2].images for each in found[3:])
    assert capsys.readouterr().out == ""
    for each in found:
        assert each.describe().startswith(f"{each.name}: {len(each.queries)} queries")
        assert all(
            query not in positives
            for query, positives in zip(each.queries, map(list, each.positives), strict=True)
        )


def test_every_benchmark_below_a_folder_is_found(tmp_path):
    root = every_benchmark(tmp_path)
    levels = [
        f"copydays {level}" for level in ("crops 9", "crops 10", "crops 80", "jpegqual 3", "jpegqual 15")
    ]
    oxford, paris = (
        [f"{name} {level}" for level in ("easy", "medium", "hard")] for name in ("roxford5k", "rparis6k")
    )
    assert [each.name for each in find_sets(root)] == [
        "holidays", "ukbench", "copydays", *levels, *oxford, *paris, "disc21"
    ]  # fmt: skip
    (root / "disc21" / SUBSET).write_text("Q00001,R003000\n")
    assert [each.name for each in find_sets(root, names=["disc21_10k"])] == ["disc21_10k"]
    assert find_sets(root)[-1].name == "disc21"  # the subset only where it is named
    names = ["disc21", "copydays_levels", "rparis6k", "holidays"]
    assert [each.name for each in find_sets(root, names=names)] == ["disc21", *levels, *paris, "holidays"]


def test_benchmarks_of_classes_and_of_many_images_are_found(tmp_path):
    trees = {
        "gldv2": gldv2_tree, "instre": instre_tree, "ilias": ilias_tree,
        "sop": sop_tree, "cub200": cub_tree, "cars196": cars_tree_in_parts, "inshop": inshop_tree,
    }  # fmt: skip
    for name, tree in trees.items():
        tree(tmp_path / name)
    assert [each.name for each in find_sets(tmp_path)] == [
        "gldv2 private", "gldv2 public", "instre", "ilias core", "sop", "cub200", "cars196", "inshop"
    ]  # fmt: skip
    assert [each.name for each in find_sets(tmp_path, names=["inshop", "sop"])] == ["inshop", "sop"]


def test_named_sets_come_in_the_order_asked(mini_root):
    assert [each.name for each in find_sets(mini_root, names=["ukbench", "holidays"])] == [
        "ukbench",
        "holidays",
    ]


def test_other_distractors_may_be_given(mini_root, tmp_path):
    write_tree(tmp_path, "1.png", "2.png")
    [found] = find_sets(mini_root, names=["copydays"], distractors=str(tmp_path))
    assert found.name == "copydays + 2 distractors"


def test_an_unknown_set_is_named(mini_root):
    with one_line_error(ValueError, "'oxford'", "holidays"):
        find_sets(mini_root, names=["holidays", "oxford"])


def test_a_set_that_is_not_there_is_named(tmp_path):
    holidays_tree(tmp_path / "holidays")
    with one_line_error(FileNotFoundError, "ukbench", tmp_path / "ukbench" / "full"):
        find_sets(tmp_path, names=["ukbench"])


# --- Distractors


def test_distractors_are_recorded_as_sha256sum_does(tmp_path):
    write_tree(tmp_path / "copydays", *COPYDAYS, *STRONG)
    extra = write_tree(tmp_path / "extra", "00/x y.jpg", "01/\u00fc.jpg", "01/odd\n\\name.jpg")
    [found] = find_sets(tmp_path, names=["copydays"], distractors=str(extra))
    record = distractor_record([found.images.paths[i] for i in found.distractors], extra)
    assert len(record.splitlines()) == 3
    content = (extra / "00/x y.jpg").read_bytes()
    assert record.splitlines()[0] == f"{hashlib.sha256(content).hexdigest()}  00/x y.jpg"
    checked = subprocess.run(["sha256sum", "-c", "-"], input=record.encode(), cwd=extra, capture_output=True)
    assert checked.returncode == 0 and checked.stdout.count(b": OK") == 3, checked.stderr


def test_listed_distractors_are_recorded_from_the_list_s_folder_and_absolute_outside(tmp_path):
    extra = write_tree(tmp_path / "extra", "in/x.jpg").resolve()
    other = write_tree(tmp_path / "other", "y.jpg").resolve()
    (extra / "list.txt").write_text(f"in/x.jpg\n{other}/y.jpg\n")
    record = distractor_record(plain_images(extra / "list.txt").paths, extra / "list.txt")
    assert [line.split("  ")[1] for line in record.splitlines()] == ["in/x.jpg", f"{other}/y.jpg"]


def test_a_folder_of_one_s_own_may_be_called_as_a_benchmark(tmp_path):
    write_tree(tmp_path, *[f"{name}/{number}.jpg" for name in ("holidays", "pets") for number in range(2)])
    [found] = find_sets(tmp_path)
    assert found.name == tmp_path.name and len(found.queries) == 4


def test_a_csv_counts_before_folders_that_are_called_as_benchmarks(tmp_path):
    write_tree(tmp_path, "holidays/jpg/1.jpg", "holidays/jpg/2.jpg")
    (tmp_path / "groups.csv").write_text("image,group\nholidays/jpg/1.jpg,a\nholidays/jpg/2.jpg,a\n")
    [found] = find_sets(tmp_path)
    assert len(found.queries) == 2


def test_a_set_is_named_once(mini_root):
    with one_line_error(ValueError, "sets", "ukbench", "once"):
        find_sets(mini_root, names=["ukbench", "ukbench"])


def test_distractors_that_are_not_there_are_named_though_no_set_wants_them(mini_root, tmp_path):
    with one_line_error(FileNotFoundError, "distractors", tmp_path / "nowhere"):
        find_sets(mini_root, names=["holidays"], distractors=str(tmp_path / "nowhere"))


def test_a_set_s_own_images_are_no_distractors(mini_root, tmp_path, capsys):
    own = mini_root / "copydays" / "original"
    with one_line_error(ValueError, "distractors", own, "copydays itself"):
        find_sets(mini_root, names=["copydays"], distractors=str(own))
    write_tree(tmp_path, "1.png")
    (tmp_path / "own").symlink_to(own)
    [found] = find_sets(mini_root, names=["copydays"], distractors=str(tmp_path))
    assert found.name == "copydays + 1 distractors" and len(found.distractors) == 1
    assert "of copydays itself, and left out" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["holidays", "ukbench", "copydays", "roxford5k", "rparis6k", "disc21"])
def test_every_set_takes_given_distractors_at_its_end(tmp_path, name):
    root, extra = every_benchmark(tmp_path / "data"), write_tree(tmp_path / "extra", "00/x.jpg", "01/y.jpg")
    for before, found in zip(
        find_sets(root, names=[name]), find_sets(root, names=[name], distractors=str(extra)), strict=True
    ):
        assert found.name == f"{before.name} + 2 distractors"
        assert answers(found) == answers(before) and ranked(found) == [*ranked(before), "x.jpg", "y.jpg"]
        assert found.images.paths[:-2] == before.images.paths and found.images.views == before.images.views
        assert found.images.labels[-2:].tolist() == [UNLABELLED] * 2
        assert len(found.images.labels) == len(found.images) and found.images.exif == before.images.exif
        assert found.distractors.tolist() == [len(before.images), len(before.images) + 1]
        assert [each.tolist() for each in found.junk] == [each.tolist() for each in before.junk]
        assert found.background.tolist() == before.background.tolist()


def test_sets_that_share_their_images_share_them_with_distractors(tmp_path):
    root, extra = every_benchmark(tmp_path / "data"), write_tree(tmp_path / "extra", "x.jpg")
    easy, medium, hard = find_sets(root, names=["roxford5k"], distractors=str(extra))
    assert easy.images is medium.images is hard.images
    copies, *levels = find_sets(root, names=["copydays", "copydays_levels"], distractors=str(extra))
    assert levels and all(each.images is copies.images for each in levels)
    assert {each.name for each in levels} >= {"copydays crops 9"}


def test_without_given_distractors_only_copydays_has_some(tmp_path):
    root = every_benchmark(tmp_path)
    write_tree(root, "unlabelled/distractors/00/x.jpg")
    with_some = {each.name.split()[0] for each in find_sets(root) if len(each.distractors)}
    assert with_some == {"copydays"}
    extra = write_tree(tmp_path / "extra", "y.jpg")
    [copies] = find_sets(root, names=["copydays"], distractors=str(extra))
    assert ranked(copies)[-1] == "y.jpg" and "x.jpg" not in ranked(copies)


def test_the_million_distractors_of_revisited_oxford_and_paris_are_read_as_published(tmp_path):
    """revisitop1m/: jpg/ with sub-folders, and a list of the images that is relative to jpg/."""
    revisited_tree(tmp_path / "roxford5k", "roxford5k")
    write_empty(tmp_path / "revisitop1m", "jpg/0/a.jpg", "jpg/1/b.jpg", "jpg/1/c.jpg")
    (tmp_path / "revisitop1m" / "revisitop1m.txt").write_text("0/a.jpg\n1/b.jpg\n1/c.jpg\n")
    for found in find_sets(tmp_path, names=["roxford5k"], distractors=str(tmp_path / "revisitop1m")):
        assert [file_name(found, i) for i in found.distractors] == ["a.jpg", "b.jpg", "c.jpg"]


def test_one_s_own_images_take_distractors(tmp_path):
    extra = write_empty(tmp_path / "extra", "x.jpg", "y.jpg")
    write_empty(tmp_path / "data", "cat/1.jpg", "cat/2.jpg")
    write_empty(tmp_path / "asked", "cat/a.jpg", "yak/b.jpg")
    write_empty(tmp_path / "plain", "1.jpg")
    [grouped] = find_sets(tmp_path / "data", distractors=str(extra))
    [asked] = find_sets(tmp_path / "data", queries=str(tmp_path / "asked"), distractors=str(extra))
    [plain] = find_sets(tmp_path / "plain", distractors=str(extra))
    assert (grouped.name, asked.name) == ("data + 2 distractors",) * 2
    assert ranked(grouped) == ranked(asked) == ["1.jpg", "2.jpg", "x.jpg", "y.jpg"]
    assert answers(asked) == {"a.jpg": ["1.jpg", "2.jpg"], "b.jpg": []} and len(asked.query_groups) == 2
    assert plain.queries.tolist() == [0] and ranked(plain) == ["1.jpg", "x.jpg", "y.jpg"]
    assert plain.describe() == "plain + 2 distractors: 1 images without ground truth, all queries"


def test_a_list_with_a_file_twice_is_named(mini_root, tmp_path):
    write_tree(tmp_path, "1.png")
    (tmp_path / "list.txt").write_text("1.png\n1.png\n")
    with one_line_error(ValueError, "list.txt", "repeats 1 files", "1.png"):
        find_sets(mini_root, names=["copydays"], distractors=str(tmp_path / "list.txt"))
