"""What is found below a folder: the benchmarks that are there, or the user's own groups, by file name."""

import hashlib
import subprocess

import numpy as np
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
from support import (
    answers,
    flat_name,
    list_backwards,
    one_line_error,
    ranked,
    write_devkit,
    write_empty,
    write_picture,
    write_tree,
    written,
)

from mgkit.benchmarks.find import distractor_record, find_sets, grouped_folder, read_groups
from mgkit.data.layouts import plain_images


def every_benchmark(root):
    holidays_tree(root / "holidays")
    write_empty(root / "ukbench", *ukbench_files([0, 1]))
    write_empty(root / "copydays", *COPYDAYS, *STRONG, *LEVELS)
    for name in ("roxford5k", "rparis6k"):
        revisited_tree(root / name, name)
    disc_tree(root / "disc21", MATCHES)
    return root


def test_a_grouped_folder_with_singletons(tmp_path):
    found = grouped_folder(
        write_tree(tmp_path, "a/1.png", "a/2.png", "b/3.png", "c/4.png", "c/5.png", "c/6.png")
    )
    assert answers(found) == {
        "1.png": ["2.png"],
        "2.png": ["1.png"],
        "4.png": ["5.png", "6.png"],
        "5.png": ["4.png", "6.png"],
        "6.png": ["4.png", "5.png"],
    }
    assert ranked(found) == [f"{n}.png" for n in range(1, 7)]
    assert found.images.exif


def test_groups_of_one_image_are_counted(tmp_path, capsys):
    grouped_folder(write_tree(tmp_path / "mixed", "a/1.png", "a/2.png", "b/3.png", "c/4.png"))
    assert "2 of 3 groups" in capsys.readouterr().out
    grouped_folder(write_tree(tmp_path / "pairs", "a/1.png", "a/2.png"))
    assert capsys.readouterr().out == ""


def test_a_grouped_folder_does_not_depend_on_the_order_of_the_directory(tmp_path, monkeypatch):
    files = ["a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg", "b/5.jpg"]
    forwards = grouped_folder(write_tree(tmp_path, *files))
    list_backwards(monkeypatch)
    found = grouped_folder(tmp_path)
    assert (found.images.paths, answers(found)) == (forwards.images.paths, answers(forwards))


def test_a_grouped_folder_of_singletons_is_refused(tmp_path):
    with one_line_error(ValueError, tmp_path):
        grouped_folder(write_tree(tmp_path, "a/1.png", "b/2.png"))


@pytest.mark.parametrize("below", ["", "imagenet/"])
@pytest.mark.parametrize("val", ["val", "ILSVRC2012_img_val"])
def test_imagenet_s_layout_gives_its_validation_images(tmp_path, val, below):
    files = [
        f"{below}{split}/{c}/{split}_{c}_{n}.png" for split in ("train", val) for c in "ab" for n in (1, 2)
    ]
    [found] = find_sets(write_tree(tmp_path, *files))
    assert answers(found) == {
        f"{val}_a_1.png": [f"{val}_a_2.png"],
        f"{val}_a_2.png": [f"{val}_a_1.png"],
        f"{val}_b_1.png": [f"{val}_b_2.png"],
        f"{val}_b_2.png": [f"{val}_b_1.png"],
    }


def test_imagenet_s_flat_validation_images_are_grouped_by_class(tmp_path):
    write_tree(tmp_path, *[f"val/{flat_name(n)}" for n in range(1, 5)], "train/n01000000/1.JPEG")
    [plain] = find_sets(tmp_path)
    assert plain.measure == "none"  # nothing says the classes
    write_devkit(tmp_path, {1: "n02000000", 2: "n01000000"}, [2, 1, 2, 1])
    [found] = find_sets(tmp_path)
    first, second, third, fourth = (flat_name(n) for n in range(1, 5))
    assert answers(found) == {first: [third], second: [fourth], third: [first], fourth: [second]}


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


def test_a_plain_folder_has_queries_but_no_ground_truth(tmp_path):
    for number in range(3):
        write_picture(tmp_path / f"{number}.jpg")
    [each] = find_sets(tmp_path)
    assert each.measure == "none" and "without ground truth" in each.describe()
    assert each.queries.tolist() == each.database.tolist() == [0, 1, 2]
    assert not any(len(positives) for positives in each.positives)
    left = each.only(np.array([True, False, True]))
    assert left.queries.tolist() == [0, 1]


# --- Groups from a csv

PHOTOS = ["a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg", "5.jpg", "6.jpg"]
ROWS = ["a/1.jpg,door", "b/3.jpg,door", "b/4.jpg,door", "a/2.jpg,window", "5.jpg,", "6.jpg,window"]
CSV_ANSWERS = {
    "1.jpg": ["3.jpg", "4.jpg"],
    "2.jpg": ["6.jpg"],
    "3.jpg": ["1.jpg", "4.jpg"],
    "4.jpg": ["1.jpg", "3.jpg"],
    "6.jpg": ["2.jpg"],
}


def by_name(retrieval_set):
    return {query: sorted(found) for query, found in sorted(answers(retrieval_set).items())}


def csv_tree(root, *rows, name="groups.csv", header="image,group"):
    write_empty(root, *PHOTOS)
    (root / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return root


@pytest.mark.parametrize(
    "rows", [ROWS, ROWS[::-1], [f"./{row}" for row in ROWS], [*(f"{row} " for row in ROWS), "", " , "]]
)
def test_groups_come_from_a_csv(tmp_path, rows, capsys):
    [found] = find_sets(csv_tree(tmp_path / "mine", *rows))
    assert by_name(found) == CSV_ANSWERS
    assert ranked(found) == ["5.jpg", "6.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg"]  # 5.jpg asks nothing
    assert (found.name, found.measure, found.images.exif) == ("mine", "mAP", True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("encoding", "line_end", "separator"),
    [
        ("utf-8-sig", "\r\n", ";"), ("utf-16", "\r\n", "\t"), ("utf-8", "\r", ","), ("utf-32", "\n", ";"),
        ("utf-8-sig", "\r\n", "sep=;"),
    ],
)  # fmt: skip
def test_a_csv_may_come_from_excel_and_other_systems(tmp_path, encoding, line_end, separator):
    root = write_empty(tmp_path, *PHOTOS)
    mark, lines = (
        separator[-1],
        ["image,group", *(f'"{row.split(",")[0]}",{row.split(",")[1]}' for row in ROWS)],
    )
    text = line_end.join(
        [*(["sep=;"] if len(separator) > 1 else []), *(x.replace(",", mark) for x in lines), ""]
    )
    (root / "groups.csv").write_bytes(text.encode(encoding))
    [found] = find_sets(root)
    assert by_name(found) == CSV_ANSWERS


def test_every_image_of_a_csv_may_have_a_group(tmp_path):
    [found] = find_sets(csv_tree(tmp_path, "5.jpg,x", "6.jpg,x", "a/1.jpg,0", "a/2.jpg,0"))
    assert by_name(found) == {"1.jpg": ["2.jpg"], "2.jpg": ["1.jpg"], "5.jpg": ["6.jpg"], "6.jpg": ["5.jpg"]}


def test_a_csv_of_any_name_and_column_order_may_be_the_data(tmp_path):
    rows = [",".join(["9", *row.split(",")[::-1]]) for row in ROWS]
    root = csv_tree(tmp_path, *rows, name="doors.csv", header="\ufeffprice,Group,Image")
    [found] = find_sets(root / "doors.csv")
    assert (by_name(found), found.name) == (CSV_ANSWERS, "doors")


def test_a_csv_may_list_absolute_paths(tmp_path):
    photos = write_empty(tmp_path / "photos", *PHOTOS)
    (tmp_path / "lists").mkdir()
    listing = tmp_path / "lists" / "doors.csv"
    listing.write_text("\n".join(["image,group", *(f"{photos}/{row}" for row in ROWS)]))
    assert by_name(find_sets(listing)[0]) == CSV_ANSWERS


@pytest.mark.parametrize(("name", "left_out"), [("groups.csv", 3), ("doors.csv", 1)])
def test_images_that_the_csv_does_not_list_are_left_out(tmp_path, capsys, name, left_out):
    """A groups.csv covers all images below its folder; another csv the folders of the images it lists."""
    root = csv_tree(tmp_path, "a/1.jpg,door", "5.jpg,door", "6.jpg,door", name=name)
    [found] = find_sets(root / name)
    assert list(by_name(found)) == ranked(found)[2:] + ranked(found)[:2] == ["1.jpg", "5.jpg", "6.jpg"]
    [line] = capsys.readouterr().out.splitlines()
    assert str(root / name) in line and f" {left_out} images" in line


def test_groups_of_one_image_in_a_csv_are_ranked_ask_nothing_and_are_counted(tmp_path, capsys):
    [found] = find_sets(csv_tree(tmp_path, *ROWS[:3], "a/2.jpg,window", "5.jpg,roof", "6.jpg,"))
    assert sorted(answers(found)) == ["1.jpg", "3.jpg", "4.jpg"] and len(ranked(found)) == 6
    assert "2 of 3 groups" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "content", "culprits"),
    [
        (ValueError, b"", ["empty"]),
        (ValueError, b"\n , \n", ["empty"]),
        (ValueError, b"image,group\n", ["no images"]),
        (ValueError, b"a/1.jpg,door\na/2.jpg,door\n", ["image,group", "a/1.jpg,door"]),
        (ValueError, b"image|group\na/1.jpg|door\n", ["image,group", "image|group"]),
        (FileNotFoundError, b"image,group\na/1.jpg,x\na/7.jpg,x\nb/8.jpg,x\n", ["2 missing", "a/7.jpg"]),
        (ValueError, b"image,group\na/1.jpg,x\na/2.jpg,x\na/1.jpg,y\n", ["line 4", "a/1.jpg", "twice"]),
        (ValueError, b"image,group\na/1.jpg,x\na/2.jpg,x\nb/../a/1.jpg,y\n", ["line 4", "twice"]),
        (ValueError, b"image,group\n,x\n", ["line 2", "no image"]),
        (ValueError, b"image,group\na/1.jpg,x\na/2.jpg,y\n", ["no group has two images"]),
        (ValueError, b"image,group\na/1.jpg,\na/2.jpg,\n", ["no group has two images"]),
        (ValueError, "image,group\na/1.jpg,T\u00fcr\n".encode("latin1"), ["UTF-8"]),
        (ValueError, b"image,group\n" + b"x" * 200_000 + b",y\n", ["csv"]),
        (FileNotFoundError, b'image,group\n"a\n.jpg",x\n', ["1 missing"]),
    ],
)
@pytest.mark.parametrize("name", ["groups.csv", "doors.csv"])
def test_a_wrong_csv_is_named(tmp_path, name, kind, content, culprits):
    write_empty(tmp_path, *PHOTOS)
    (tmp_path / name).write_bytes(content)
    with one_line_error(kind, tmp_path / name, *culprits):
        find_sets(tmp_path if name == "groups.csv" else tmp_path / name)


def test_a_missing_csv_and_a_csv_with_names_of_sets_are_refused(tmp_path):
    with one_line_error(FileNotFoundError, tmp_path / "none.csv"):
        find_sets(tmp_path / "none.csv")
    with one_line_error(ValueError, "holidays", "groups.csv"):
        find_sets(csv_tree(tmp_path, *ROWS) / "groups.csv", names=["holidays"])


# --- Distractors


def test_distractors_are_recorded_as_sha256sum_does(tmp_path):
    write_tree(tmp_path / "copydays", *COPYDAYS, *STRONG)
    extra = write_tree(tmp_path / "extra", "00/x y.jpg", "01/\u00fc.jpg", "01/odd\n\\name.jpg")
    [found] = find_sets(tmp_path, names=["copydays"], distractors=str(extra))
    record = distractor_record(found.images, found.distractors, extra)
    assert len(record.splitlines()) == 3
    content = (extra / "00/x y.jpg").read_bytes()
    assert record.splitlines()[0] == f"{hashlib.sha256(content).hexdigest()}  00/x y.jpg"
    checked = subprocess.run(["sha256sum", "-c", "-"], input=record.encode(), cwd=extra, capture_output=True)
    assert checked.returncode == 0 and checked.stdout.count(b": OK") == 3, checked.stderr


def test_listed_distractors_are_recorded_from_the_list_s_folder_and_absolute_outside(tmp_path):
    extra = write_tree(tmp_path / "extra", "in/x.jpg").resolve()
    other = write_tree(tmp_path / "other", "y.jpg").resolve()
    (extra / "list.txt").write_text(f"in/x.jpg\n{other}/y.jpg\n")
    record = distractor_record(plain_images(extra / "list.txt"), np.arange(2), extra / "list.txt")
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


def test_images_beside_the_sub_folders_are_counted_in_a_line(tmp_path, capsys):
    [found] = find_sets(write_tree(tmp_path, "a/1.jpg", "a/2.jpg", "x.jpg", "y.jpg"))
    assert len(found.images) == 2 and "2 images outside" in capsys.readouterr().out


def test_a_set_is_named_once(mini_root):
    with one_line_error(ValueError, "sets", "ukbench", "once"):
        find_sets(mini_root, names=["ukbench", "ukbench"])


def test_distractors_that_are_not_there_are_named_though_no_set_wants_them(mini_root, tmp_path):
    with one_line_error(FileNotFoundError, "distractors", tmp_path / "nowhere"):
        find_sets(mini_root, names=["holidays"], distractors=str(tmp_path / "nowhere"))


def test_copydays_own_images_are_no_distractors(mini_root):
    with one_line_error(ValueError, "distractors", "Copydays itself"):
        find_sets(mini_root, names=["copydays"], distractors=str(mini_root / "copydays" / "original"))


def test_a_list_with_a_file_twice_is_named(mini_root, tmp_path):
    write_tree(tmp_path, "1.png")
    (tmp_path / "list.txt").write_text("1.png\n1.png\n")
    with one_line_error(ValueError, "list.txt", "repeats 1 files", "1.png"):
        find_sets(mini_root, names=["copydays"], distractors=str(tmp_path / "list.txt"))


def test_groups_are_sorted_by_path(tmp_path):
    for name in ("b.jpg", "a.jpg"):
        (tmp_path / name).touch()
    path = written(tmp_path, "group,note,image\nx,1,b.jpg\n,2,a.jpg\n")
    assert list(read_groups(path).items()) == [(str(tmp_path / "a.jpg"), ""), (str(tmp_path / "b.jpg"), "x")]


def test_a_long_first_line_of_a_csv_is_cut_in_the_message(tmp_path):
    (tmp_path / "groups.csv").write_text("a," * 10**5)
    with pytest.raises(ValueError, match="the first line should name the columns image,group") as error:
        read_groups(tmp_path / "groups.csv")
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("folder", ["__MACOSX", "@eaDir", ".thumbnails"])
def test_a_plain_folder_may_hold_folders_of_systems(tmp_path, folder):
    write_empty(tmp_path, "1.jpg", "2.jpg", f"{folder}/3.jpg")
    (found,) = find_sets(tmp_path)
    assert len(found.images) == 2 and found.measure == "none"
