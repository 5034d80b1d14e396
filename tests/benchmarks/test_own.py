"""Retrieval sets of one's own images: sub-folders, csv files, lists, and queries apart; by file name."""

import numpy as np
import pytest
from support import (
    answers,
    file_name,
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

from mgkit.benchmarks.find import find_sets
from mgkit.benchmarks.own import Listed, grouped_folder, read_groups


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


def test_images_beside_the_sub_folders_are_counted_in_a_line(tmp_path, capsys):
    [found] = find_sets(write_tree(tmp_path, "a/1.jpg", "a/2.jpg", "x.jpg", "y.jpg"))
    assert len(found.images) == 2 and "2 images outside" in capsys.readouterr().out


def test_groups_are_sorted_by_path(tmp_path):
    for name in ("b.jpg", "a.jpg"):
        (tmp_path / name).touch()
    path = written(tmp_path, "group,note,image\nx,1,b.jpg\n,2,a.jpg\n")
    found = [(str(tmp_path / "a.jpg"), Listed("")), (str(tmp_path / "b.jpg"), Listed("x"))]
    assert list(read_groups(path).items()) == found


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


def test_a_list_of_images_has_no_ground_truth(tmp_path):
    write_empty(tmp_path, "in/1.jpg", "in/2.jpg", "in/3.jpg")
    (tmp_path / "mine.txt").write_text("in/3.jpg\n# a remark\n\nin/1.jpg\n")
    [found] = find_sets(tmp_path / "mine.txt")
    assert (found.name, found.measure, ranked(found)) == ("mine", "none", ["3.jpg", "1.jpg"])
    assert found.queries.tolist() == [0, 1] and found.images.exif


def test_a_missing_list_and_a_list_with_names_of_sets_are_refused(tmp_path):
    with one_line_error(FileNotFoundError, "data", tmp_path / "none.txt"):
        find_sets(tmp_path / "none.txt")
    (tmp_path / "mine.txt").write_text("1.jpg\n")
    with one_line_error(FileNotFoundError, "data", tmp_path / "mine.txt", "1 missing", "1.jpg"):
        find_sets(tmp_path / "mine.txt")
    with one_line_error(ValueError, "sets", "ukbench", tmp_path / "mine.txt"):
        find_sets(tmp_path / "mine.txt", names=["ukbench"])


# --- Queries apart from the gallery


def queried(data, queries, **options):
    [found] = find_sets(data, queries=str(queries), **options)
    return found


def test_a_query_is_answered_by_the_sub_folder_of_its_name(tmp_path, capsys):
    write_empty(tmp_path / "shop", "cat/1.jpg", "cat/more/2.jpg", "dog/3.jpg", "eel/4.jpg")
    write_empty(tmp_path / "asked", "cat/a.jpg", "dog/b.jpg", "dog/c.jpg", "yak/d.jpg", "ape/e.jpg")
    found = queried(tmp_path / "shop", tmp_path / "asked")
    assert by_name(found) == {
        "a.jpg": ["1.jpg", "2.jpg"], "b.jpg": ["3.jpg"], "c.jpg": ["3.jpg"], "d.jpg": [], "e.jpg": []
    }  # fmt: skip
    assert ranked(found) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"] and len(found.images) == 9
    group = dict(zip([file_name(found, q) for q in found.queries], found.query_groups.tolist(), strict=True))
    assert group["b.jpg"] == group["c.jpg"] and len(set(group.values())) == 4
    assert (found.name, found.measure, found.recalls, found.cutoff) == ("shop", "mAP", (1, 5, 10), None)
    assert found.describe() == (
        "shop: 5 queries, 4 database images, 0.8 positives per query, 2 queries without an answer"
    )
    [line] = capsys.readouterr().out.splitlines()
    assert "shop" in line and "2 of 5 queries have no answer" in line


def test_a_picture_of_both_folders_is_one_image_that_is_no_answer_to_itself(tmp_path):
    write_empty(tmp_path / "data", "cat/1.jpg", "cat/2.jpg", "dog/3.jpg")
    write_empty(tmp_path / "asked", "cat/a.jpg")
    (tmp_path / "asked" / "cat" / "b.jpg").symlink_to(tmp_path / "data" / "cat" / "1.jpg")
    (tmp_path / "asked" / "dog").symlink_to(tmp_path / "data" / "dog")
    found = queried(tmp_path / "data", tmp_path / "asked")
    assert by_name(found) == {"a.jpg": ["1.jpg", "2.jpg"], "1.jpg": ["2.jpg"], "3.jpg": []}
    assert len(found.images) == 4 and ranked(found) == ["1.jpg", "2.jpg", "3.jpg"]


def test_a_folder_that_searches_itself_is_a_grouped_folder(tmp_path):
    write_empty(tmp_path / "data", "cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "dog/4.jpg", "dog/5.jpg")
    found = queried(tmp_path / "data", tmp_path / "data")
    assert by_name(found) == by_name(grouped_folder(tmp_path / "data")) and len(found.images) == 5


def test_queries_do_not_depend_on_the_order_of_the_directory(tmp_path, monkeypatch):
    write_empty(tmp_path / "data", "cat/1.jpg", "cat/2.jpg", "dog/3.jpg")
    write_empty(tmp_path / "asked", "cat/a.jpg", "cat/b.jpg", "yak/c.jpg")
    forwards = queried(tmp_path / "data", tmp_path / "asked")
    list_backwards(monkeypatch)
    found = queried(tmp_path / "data", tmp_path / "asked")
    assert (found.images.paths, answers(found)) == (forwards.images.paths, answers(forwards))
    assert found.query_groups.tolist() == forwards.query_groups.tolist()


@pytest.mark.parametrize(
    ("kind", "data", "asked", "queries", "culprits"),
    [
        (FileNotFoundError, ["cat/1.jpg"], [], "nowhere", ["queries", "nowhere", "does not exist"]),
        (FileNotFoundError, ["cat/1.jpg"], [], "none.csv", ["queries", "none.csv", "does not exist"]),
        (ValueError, ["cat/1.jpg"], ["cat/a.txt"], "asked", ["queries", "asked", "holds no images"]),
        (ValueError, ["cat/1.jpg"], ["a.jpg"], "asked", ["queries", "asked", "<class>"]),
        (ValueError, ["1.jpg"], ["cat/a.jpg"], "asked", ["data", "<class>"]),
        (ValueError, ["cat/1.jpg"], ["dog/a.jpg"], "asked", ["asked", "data", "no sub-folder in common"]),
        (ValueError, ["cat/1.jpg", "dog/2.jpg"], [], "data/dog", ["queries", "data/dog", "apart"]),
        (NotADirectoryError, ["cat/1.jpg"], ["a.jpg"], "asked/a.jpg", ["queries", "a.jpg", "not a folder"]),
    ],
)
def test_folders_of_queries_that_cannot_be_used_are_named(tmp_path, kind, data, asked, queries, culprits):
    write_empty(tmp_path / "data", *data)
    write_empty(tmp_path / "asked", *asked)
    with one_line_error(kind, *culprits):
        queried(tmp_path / "data", tmp_path / queries)


def test_queries_that_no_image_answers_are_refused(tmp_path):
    write_empty(tmp_path / "data", "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked" / "cat").symlink_to(tmp_path / "data" / "cat")
    with one_line_error(ValueError, "data", "answers any of the 1 queries"):
        queried(tmp_path / "data", tmp_path / "asked")


def test_a_file_that_is_two_queries_is_named(tmp_path):
    write_empty(tmp_path / "data", "cat/1.jpg")
    write_empty(tmp_path / "asked", "cat/a.jpg", "cat/b.jpg")
    (tmp_path / "asked" / "cat" / "c.jpg").symlink_to(tmp_path / "asked" / "cat" / "a.jpg")
    with one_line_error(ValueError, "cat/a.jpg", "cat/c.jpg", "same file"):
        queried(tmp_path / "data", tmp_path / "asked")


def test_queries_are_asked_of_one_s_own_images_only(tmp_path):
    write_empty(tmp_path, "asked/cat/a.jpg", "data/holidays/jpg/100000.jpg", "data/ukbench/1.jpg")
    for names in ([], ["ukbench"]):
        with one_line_error(ValueError, "queries", "ukbench" if names else "holidays", "of your own"):
            queried(tmp_path / "data", tmp_path / "asked", names=names)


def test_queries_beside_a_csv_of_groups_are_refused(tmp_path):
    root = csv_tree(tmp_path / "mine", *ROWS)
    for data in (root, root / "groups.csv"):
        with one_line_error(ValueError, "queries", "role", root / "groups.csv"):
            queried(data, root)


# --- Roles in a csv

ROLE_ROWS = [
    "a/1.jpg,door,query", "b/3.jpg,door,gallery", "b/4.jpg,door,both", "a/2.jpg,window,Query",
    "5.jpg,,query", "6.jpg,,gallery",
]  # fmt: skip


def test_roles_tell_queries_from_the_gallery(tmp_path, capsys):
    [found] = find_sets(csv_tree(tmp_path / "roles", *ROLE_ROWS, header="image,group,role"))
    assert by_name(found) == {"1.jpg": ["3.jpg", "4.jpg"], "4.jpg": ["3.jpg"], "2.jpg": [], "5.jpg": []}
    assert ranked(found) == ["6.jpg", "3.jpg", "4.jpg"] and len(found.images) == 6
    group = dict(zip([file_name(found, q) for q in found.queries], found.query_groups.tolist(), strict=True))
    assert group["1.jpg"] == group["4.jpg"] and len(set(group.values())) == 3 and min(group.values()) >= 0
    assert (found.name, found.measure, found.recalls) == ("roles", "mAP", (1, 5, 10))
    assert "2 of 4 queries have no answer" in capsys.readouterr().out


def test_images_without_group_show_something_each(tmp_path):
    rows = ["a/1.jpg,x,both", "a/2.jpg,x,both", "5.jpg,,query", "6.jpg,,both"]
    [found] = find_sets(csv_tree(tmp_path / "each", *rows, header="image,group,role"))
    assert by_name(found) == {"1.jpg": ["2.jpg"], "2.jpg": ["1.jpg"], "5.jpg": [], "6.jpg": []}
    assert len(set(found.query_groups.tolist())) == 3


@pytest.mark.parametrize(
    ("rows", "culprits"),
    [
        (["a/1.jpg,x,query", "a/2.jpg,x,index"], ["line 3", "'index'", "query or gallery or both"]),
        (["a/1.jpg,x,query", "a/2.jpg,x"], ["line 3", "''", "query or gallery or both"]),
        (["a/1.jpg,x,query", "a/1.jpg,x,gallery"], ["line 3", "a/1.jpg", "twice"]),
        (["a/1.jpg,x,query", "a/2.jpg,x,query"], ["gallery or both"]),
        (["a/1.jpg,x,gallery", "a/2.jpg,x,gallery"], ["query or both"]),
        (["a/1.jpg,x,query", "a/2.jpg,y,gallery"], ["answers any of the 1 queries"]),
    ],
)
def test_roles_that_cannot_be_used_are_named(tmp_path, rows, culprits):
    with one_line_error(ValueError, "wrong", *culprits):
        find_sets(csv_tree(tmp_path / "wrong", *rows, header="image,group,role"))


# --- Pairs from a csv


def pair_tree(root, *rows, header="query,image"):
    write_empty(root, *(f"data/{name}" for name in PHOTOS), "asked/q1.jpg", "asked/q2.jpg", "asked/q3.jpg")
    (root / "asked" / "pairs.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return root / "data", root / "asked" / "pairs.csv"


def test_pairs_of_a_csv_give_several_answers_one_or_none(tmp_path, capsys):
    rows = ["q2.jpg,b/4.jpg", "q1.jpg,a/2.jpg", "q2.jpg,./a/1.jpg", "q3.jpg,", "../data/5.jpg,6.jpg"]
    found = queried(*pair_tree(tmp_path / "pairs", *rows))
    assert by_name(found) == {
        "q2.jpg": ["1.jpg", "4.jpg"],
        "q1.jpg": ["2.jpg"],
        "q3.jpg": [],
        "5.jpg": ["6.jpg"],
    }
    assert ranked(found) == ["5.jpg", "6.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg"] and len(found.images) == 9
    assert found.query_groups.tolist() == [0, 1, 2, 3] and found.recalls == (1, 5, 10)
    assert "1 of 4 queries have no answer" in capsys.readouterr().out


def test_pairs_search_a_list_of_images(tmp_path):
    data, pairs = pair_tree(tmp_path, "q1.jpg,a/2.jpg")
    (data / "some.txt").write_text("a/2.jpg\n5.jpg\n")
    found = queried(data / "some.txt", pairs)
    assert (by_name(found), ranked(found)) == ({"q1.jpg": ["2.jpg"]}, ["2.jpg", "5.jpg"])
    with one_line_error(ValueError, "queries", "some.txt", "query,image"):
        queried(data / "some.txt", data)


@pytest.mark.parametrize(
    ("kind", "rows", "culprits"),
    [
        (ValueError, [], ["no queries"]),
        (ValueError, ["q1.jpg,5.jpg", "q1.jpg,a/../5.jpg"], ["line 3", "q1.jpg", "twice"]),
        (ValueError, ["q1.jpg,", "q1.jpg,"], ["line 3", "q1.jpg", "twice"]),
        (ValueError, ["q1.jpg,", "q1.jpg,5.jpg"], ["line 3", "q1.jpg", "answers and a row without"]),
        (ValueError, ["q1.jpg,5.jpg", "q1.jpg,"], ["line 3", "q1.jpg", "answers and a row without"]),
        (ValueError, [",5.jpg"], ["line 2", "no query"]),
        (ValueError, ["../data/5.jpg,5.jpg"], ["line 2", "5.jpg", "own answer"]),
        (FileNotFoundError, ["q1.jpg,5.jpg", "q7.jpg,5.jpg"], ["1 missing", "q7.jpg"]),
        (FileNotFoundError, ["q1.jpg,5.jpg", "q1.jpg,7.jpg", "q2.jpg,8.jpg"], ["2 images", "data", "7.jpg"]),
        (FileNotFoundError, ["q1.jpg,../asked/q2.jpg"], ["1 images", "data", "q2.jpg"]),
    ],
)
def test_pairs_that_cannot_be_used_are_named(tmp_path, kind, rows, culprits):
    data, pairs = pair_tree(tmp_path, *rows)
    with one_line_error(kind, pairs, *culprits):
        queried(data, pairs)


def test_pairs_without_any_answer_or_without_the_columns_are_named(tmp_path):
    with one_line_error(ValueError, "data", "answers any of the 2 queries"):
        queried(*pair_tree(tmp_path / "1", "q1.jpg,", "q2.jpg,"))
    data, pairs = pair_tree(tmp_path / "2", "q1.jpg,5.jpg", header="query_id,reference_id")
    with one_line_error(ValueError, pairs, "query,image", "query_id"):
        queried(data, pairs)


# --- Images that cannot be read


def test_queries_without_an_answer_stay_when_images_go(tmp_path):
    write_empty(tmp_path / "data", "cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "eel/4.jpg")
    write_empty(tmp_path / "asked", "cat/a.jpg", "cat/b.jpg", "dog/c.jpg", "eel/e.jpg", "yak/d.jpg")
    found = queried(tmp_path / "data", tmp_path / "asked")
    lost = ("1.jpg", "a.jpg", "3.jpg")
    kept = found.only(np.array([file_name(found, i) not in lost for i in range(len(found.images))]))
    assert answers(kept) == {"b.jpg": ["2.jpg"], "e.jpg": ["4.jpg"], "d.jpg": []}  # c lost its only answer
    assert ranked(kept) == ["2.jpg", "4.jpg"]
    group = dict(zip([file_name(found, q) for q in found.queries], found.query_groups, strict=True))
    assert kept.query_groups.tolist() == [group[name] for name in ("b.jpg", "e.jpg", "d.jpg")]
