"""The benchmarks, on folders in each real layout: groups, queries, positives and junk by name, down to the last."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import (
    answers,
    file_name,
    list_backwards,
    one_line_error,
    ranked,
    write_empty,
    write_tree,
)

from mgkit.benchmark_sets import copydays, copydays_all, copydays_levels, disc21, holidays, revisited, ukbench
from mgkit.data.images import image_shapes
from mgkit.data.layouts import plain_images
from mgkit.data.loader import ImageDataset

HOLIDAYS = ["100000", "100001", "100002", "100100", "100101", "149900", "149901", "149902", "149903"]
HOLIDAYS_ANSWERS = {
    "100000.jpg": ["100001.jpg", "100002.jpg"],
    "100100.jpg": ["100101.jpg"],
    "149900.jpg": ["149901.jpg", "149902.jpg", "149903.jpg"],
}


def holidays_tree(root, numbers=HOLIDAYS):
    return write_tree(root, *[f"jpg/{number}.jpg" for number in numbers])


def test_holidays_down_to_the_last_group(tmp_path):
    found = holidays(holidays_tree(tmp_path))
    assert answers(found) == HOLIDAYS_ANSWERS
    assert ranked(found) == [f"{number}.jpg" for number in HOLIDAYS]
    assert (found.name, found.measure, found.images.exif) == ("holidays", "mAP", False)


def ukbench_files(objects):
    return [f"full/ukbench{4 * number + k:05d}.jpg" for number in objects for k in range(4)]


def test_ukbench_down_to_the_last_object(tmp_path):
    found = ukbench(write_tree(tmp_path, *ukbench_files([0, 1, 2549])))
    expected = {
        f"ukbench{4 * number + k:05d}.jpg": [
            f"ukbench{4 * number + other:05d}.jpg" for other in range(4) if other != k
        ]
        for number in (0, 1, 2549)
        for k in range(4)
    }
    assert answers(found) == expected
    assert (found.measure, sorted(ranked(found))) == ("score", sorted(expected))


COPYDAYS = ["original/200000.jpg", "original/200100.jpg", "original/215600.jpg"]
STRONG = ["strong/200001.jpg", "strong/200002.jpg", "strong/200003.jpg", "strong/215601.jpg"]


def test_copydays_counts_every_strong_copy_of_an_original(tmp_path):
    found = copydays(write_tree(tmp_path, *COPYDAYS, *STRONG))
    assert answers(found) == {
        "200001.jpg": ["200000.jpg"],
        "200002.jpg": ["200000.jpg"],
        "200003.jpg": ["200000.jpg"],
        "215601.jpg": ["215600.jpg"],
    }
    assert ranked(found) == ["200000.jpg", "200100.jpg", "215600.jpg"]
    assert found.name == "copydays"


def test_distractors_are_ranked_but_answer_nothing(tmp_path):
    write_tree(tmp_path / "set", *COPYDAYS, *STRONG)
    extra = plain_images(write_tree(tmp_path / "extra", "00/x.jpg", "01/y.jpg"))
    found = copydays(tmp_path / "set", distractors=extra)
    assert ranked(found) == ["200000.jpg", "200100.jpg", "215600.jpg", "x.jpg", "y.jpg"]
    assert answers(found)["215601.jpg"] == ["215600.jpg"]
    assert "2 distractors" in found.name


@pytest.mark.parametrize(
    ("numbers", "culprit"),
    [(["100000", "100001", "100101", "100102"], "1001"), (["100000", "100100", "100101"], "1000")],
)
def test_a_holidays_group_without_query_or_with_only_it_is_named(tmp_path, numbers, culprit):
    with one_line_error(ValueError, f"group {culprit} ", tmp_path):
        holidays(holidays_tree(tmp_path, numbers))


def test_an_incomplete_four_of_ukbench_is_named(tmp_path):
    with one_line_error(ValueError, "object 1 ", "ukbench00004.jpg", "3 images"):
        ukbench(write_tree(tmp_path, *ukbench_files([0, 1])[:-1]))


def test_a_strong_copy_without_original_is_named(tmp_path):
    with one_line_error(ValueError, tmp_path / "strong" / "209901.jpg", tmp_path / "original"):
        copydays(write_tree(tmp_path, *COPYDAYS, *STRONG, "strong/209901.jpg"))


def test_two_originals_of_one_number_are_named(tmp_path):
    with one_line_error(ValueError, "2000", tmp_path / "original"):
        copydays(write_tree(tmp_path, *COPYDAYS, *STRONG, "original/200050.jpg"))


def test_a_file_that_is_not_named_as_in_the_set_is_named(tmp_path):
    with one_line_error(ValueError, "IMG_1.jpg", tmp_path / "jpg"):
        holidays(holidays_tree(tmp_path, [*HOLIDAYS, "IMG_1"]))


@pytest.mark.parametrize(("read", "folder"), [(holidays, "jpg"), (ukbench, "full"), (copydays, "original")])
def test_a_missing_or_empty_folder_of_a_set_is_named(tmp_path, read, folder):
    with one_line_error(FileNotFoundError, read.__name__, tmp_path / folder):
        read(tmp_path)
    (tmp_path / folder).mkdir()
    with one_line_error(ValueError, read.__name__, tmp_path / folder):
        read(tmp_path)


@pytest.mark.parametrize(
    ("read", "names"),
    [
        (holidays, ["jpg/100000.jpg", "jpg/100000.jpeg"]),
        (holidays, ["jpg/100001.jpg", "jpg/more/100001.jpg"]),
        (ukbench, ["full/ukbench00001.jpg", "full/ukbench00001.JPG"]),
        (copydays, ["original/200000.jpg", "original/200000.jpeg"]),
        (copydays, ["strong/200001.jpg", "strong/200001.jpeg"]),
    ],
)
def test_two_files_of_one_number_are_named(tmp_path, read, names):
    write_empty(
        tmp_path, *[f"jpg/{number}.jpg" for number in HOLIDAYS], *ukbench_files([0]), *COPYDAYS, *STRONG
    )
    write_empty(tmp_path, *names)
    folder = tmp_path / names[0].split("/")[0]
    with one_line_error(ValueError, *(str(Path(name).relative_to(folder.name)) for name in names), folder):
        read(tmp_path)


# --- Upright Holidays


def upright(root, text):
    root.mkdir(parents=True, exist_ok=True)
    (root / "holidays-rotate.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def test_holidays_are_turned_as_the_list_says(tmp_path, capsys):
    listed = (
        '{\n"100001.jpg": 90,\n"149900.jpg": 180,\n"149903.jpg": 270,\n"123400.jpg": 90,\n}'  # as distributed
    )
    found = holidays(upright(holidays_tree(tmp_path), listed))
    turned = {file_name(found, i): view.turned for i, view in found.images.views.items()}
    assert turned == {"100001.jpg": 90, "149900.jpg": 180, "149903.jpg": 270}
    assert answers(found) == HOLIDAYS_ANSWERS
    assert capsys.readouterr().out == ""
    sizes = [(16, 24) if turned.get(f"{n}.jpg") in (90, 270) else (24, 16) for n in HOLIDAYS]
    assert image_shapes(found.images) == [found.images.load(i).size for i in range(len(HOLIDAYS))] == sizes


def test_without_the_list_a_line_says_so_but_not_for_the_embedded_set(tmp_path, capsys):
    root = holidays_tree(tmp_path / "holidays")
    assert not holidays(root).images.views
    [line] = capsys.readouterr().out.splitlines()
    assert "holidays-rotate.yaml" in line and str(root) in line and "fetch holidays" in line
    (tmp_path / "mini.json").touch()
    holidays(root)
    assert capsys.readouterr().out == ""


# --- Copydays' levels

LEVELS = [
    "crops/10/200000.jpg", "crops/10/200100.jpg", "crops/10/215600.jpg",
    "crops/80/200100.jpg", "crops/9/215600.jpg",
    "jpegqual/3/200000.jpg", "jpegqual/15/200100.jpg",
]  # fmt: skip


def test_every_level_of_copydays_is_a_set_of_the_same_images(tmp_path):
    write_tree(tmp_path / "set", *COPYDAYS, *LEVELS)
    extra = plain_images(write_tree(tmp_path / "extra", "x.jpg", "y.jpg"))
    found = copydays_levels(tmp_path / "set", distractors=extra)
    names = ["crops 9", "crops 10", "crops 80", "jpegqual 3", "jpegqual 15"]
    assert [each.name for each in found] == [f"copydays {name}" for name in names]
    asked = [["215600"], ["200000", "200100", "215600"], ["200100"], ["200000"], ["200100"]]
    for each, numbers in zip(found, asked, strict=True):
        assert each.images is found[0].images
        assert answers(each) == {f"{n}.jpg": [f"{n}.jpg"] for n in numbers}
        folders = {"/".join(each.name.split()[1:])}
        assert {
            str(Path(each.images.paths[q]).relative_to(tmp_path / "set").parent) for q in each.queries
        } == folders
        assert ranked(each) == ["200000.jpg", "200100.jpg", "215600.jpg", "x.jpg", "y.jpg"]
        assert {Path(each.images.paths[int(i)]).parent.name for p in each.positives for i in p} == {
            "original"
        }
        assert [file_name(each, i) for i in each.distractors] == ["x.jpg", "y.jpg"]


def test_the_strong_set_and_the_levels_together_share_their_images(tmp_path):
    strong, *levels = copydays_all(write_tree(tmp_path, *COPYDAYS, *STRONG, *LEVELS))
    assert len(levels) == 5 and all(each.images is strong.images for each in levels)
    assert answers(strong) == answers(copydays(tmp_path)) and strong.name == "copydays"
    for together, alone in zip(levels, copydays_levels(tmp_path), strict=True):
        assert (together.name, answers(together)) == (alone.name, answers(alone))


def test_a_level_that_is_no_number_or_no_level_at_all_is_named(tmp_path):
    write_tree(tmp_path, *COPYDAYS)
    with one_line_error(FileNotFoundError, tmp_path, "crops/<number>/"):
        copydays_levels(tmp_path)
    write_tree(tmp_path, "crops/all/200000.jpg")
    with one_line_error(ValueError, tmp_path / "crops" / "all"):
        copydays_levels(tmp_path)


def test_a_copy_of_a_level_without_original_is_named(tmp_path):
    with one_line_error(ValueError, "crops/10/209900.jpg", tmp_path / "original"):
        copydays_levels(write_tree(tmp_path, *COPYDAYS, *LEVELS, "crops/10/209900.jpg"))


# --- Revisited Oxford and Paris

REVISITED = {
    "imlist": [
        "all_souls_000001",
        "magdalen_000002",
        "christ_church_000003",
        "ashmolean_000004",
        "keble_000005",
    ],
    "qimlist": ["all_souls_000013", "keble_000055", "radcliffe_000777"],
    "gnd": [
        {"bbx": [3.4, 1.0, 11.6, 13.5], "easy": [3, 0], "hard": [1], "junk": [4]},
        {"bbx": (0.0, 0.0, 24.0, 16.0), "easy": [], "hard": [2, 4], "junk": []},
        {"bbx": [0, 2, 10, 10], "easy": [], "hard": [], "junk": [0]},
    ],
}
REVISITED_FILES = [
    f"jpg/{name}.jpg" for name in (*REVISITED["imlist"], *REVISITED["qimlist"], "worcester_000999")
]


def write_gnd(path, content=REVISITED):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path.parent


def revisited_tree(root, name="roxford5k"):
    return write_gnd(write_tree(root, *REVISITED_FILES) / f"gnd_{name}.pkl")


def revisited_hard(root):
    return revisited(root, "roxford5k")[2]


def junk(retrieval_set):
    return [{file_name(retrieval_set, i) for i in each} for each in retrieval_set.junk]


def jpg(*numbers):
    return {f"{REVISITED['imlist'][n]}.jpg" for n in numbers}


@pytest.mark.parametrize("name", ["roxford5k", "rparis6k"])
def test_revisited_sets_have_the_positives_and_junk_of_their_level(tmp_path, name):
    found = revisited(revisited_tree(tmp_path, name), name)
    assert [each.name for each in found] == [f"{name} {level}" for level in ("easy", "medium", "hard")]
    expected = [  # of each query: positives, junk
        [(jpg(0, 3), jpg(1, 4)), (jpg(), jpg(2, 4)), (jpg(), jpg(0))],
        [(jpg(0, 1, 3), jpg(4)), (jpg(2, 4), jpg()), (jpg(), jpg(0))],
        [(jpg(1), jpg(0, 3, 4)), (jpg(2, 4), jpg()), (jpg(), jpg(0))],
    ]
    for each, per_query in zip(found, expected, strict=True):
        assert each.images is found[0].images and each.measure == "mAP" and not each.images.exif
        assert list(answers(each)) == [f"{query}.jpg" for query in REVISITED["qimlist"]]
        assert [set(positives) for positives in answers(each).values()] == [p for p, _ in per_query]
        assert junk(each) == [j for _, j in per_query]
        assert ranked(each) == [f"{image}.jpg" for image in REVISITED["imlist"]]  # no query among them
        assert all(
            array.dtype == np.int64 for array in (*each.positives, *each.junk, each.queries, each.database)
        )


def test_revisited_queries_are_cropped_to_their_boxes(tmp_path):
    easy = revisited(revisited_tree(tmp_path), "roxford5k")[0]
    sizes = [easy.images.load(i).size for i in range(len(easy.images))]
    assert image_shapes(easy.images) == sizes == [(24, 16)] * 5 + [(9, 13), (24, 16), (10, 8)]
    for query, answer in zip(easy.queries, REVISITED["gnd"], strict=True):
        with Image.open(easy.images.paths[query]) as image:
            assert np.array_equal(easy.images.load(query), image.convert("RGB").crop(answer["bbx"]))


def test_revisited_images_may_lie_in_sub_folders_and_a_query_in_the_database(tmp_path):
    content = REVISITED | {"qimlist": ["all_souls_000001", "keble_000055", "radcliffe_000777"]}
    root = revisited_tree(tmp_path)
    write_gnd(root / "gnd_roxford5k.pkl", content)
    (root / "jpg" / "keble").mkdir()
    (root / "jpg" / "keble_000005.jpg").rename(root / "jpg" / "keble" / "keble_000005.jpg")
    easy = revisited(root, "roxford5k")[0]
    assert ranked(easy) == [f"{image}.jpg" for image in REVISITED["imlist"]]
    assert easy.images.load(0).size == (24, 16) and easy.images.load(5).size == (
        9,
        13,
    )  # one file, whole and cropped


def test_missing_revisited_images_are_counted_and_the_first_named(tmp_path):
    root = revisited_tree(tmp_path)
    for name in ("magdalen_000002", "keble_000005", "radcliffe_000777"):
        (root / "jpg" / f"{name}.jpg").unlink()
    with one_line_error(
        FileNotFoundError, "3 images", "magdalen_000002", root / "gnd_roxford5k.pkl", root / "jpg"
    ):
        revisited(root, "roxford5k")


def test_a_set_without_its_pickle_or_its_images_is_named(tmp_path):
    write_tree(tmp_path, *REVISITED_FILES)
    with one_line_error(FileNotFoundError, tmp_path / "gnd_rparis6k.pkl"):
        revisited(tmp_path, "rparis6k")
    root = write_gnd(tmp_path / "other" / "gnd_rparis6k.pkl")
    with one_line_error(FileNotFoundError, "rparis6k", root / "jpg"):
        revisited(root, "rparis6k")


# --- DISC

QUERIES = [f"queries/Q0000{n}.jpg" for n in range(5)]
REFERENCES = [f"references/R00{n}000.jpg" for n in range(4)]
TRAIN = ["train/T000000.jpg", "train/T000001.jpg"]


def disc_tree(root, text, *files):
    write_empty(root, *QUERIES, *REFERENCES, *files)
    (root / "public_ground_truth.csv").write_text(text)
    return root


def disc_answers(retrieval_set):
    return {query: [int(answer[3]) for answer in found] for query, found in answers(retrieval_set).items()}


MATCHES = "Q00001,R003000\nQ00003,R000000\nQ00003,R002000\nQ00003,R000000\n"


@pytest.mark.parametrize("header", ["", "query_id,reference_id\n", "\ufeffQuery_ID, reference_id\r\n"])
def test_disc_asks_all_its_queries_where_matches_alone_are_listed(tmp_path, header):
    found = disc21(disc_tree(tmp_path, header + MATCHES, *TRAIN))
    assert disc_answers(found) == {
        "Q00000.jpg": [], "Q00001.jpg": [3], "Q00002.jpg": [], "Q00003.jpg": [0, 2], "Q00004.jpg": [],
    }  # fmt: skip
    assert ranked(found) == [Path(name).name for name in REFERENCES]
    assert [file_name(found, i) for i in found.background] == ["T000000.jpg", "T000001.jpg"]
    assert (found.name, found.measure, found.images.exif, found.junk) == ("disc21", "micro-AP", False, ())


def test_disc_asks_the_listed_queries_where_distractors_are_listed(tmp_path, capsys):
    found = disc21(disc_tree(tmp_path, "query_id,reference_id\nQ00000,\nQ00003,R001000\nQ00001,\n"))
    assert disc_answers(found) == {"Q00000.jpg": [], "Q00001.jpg": [], "Q00003.jpg": [1]}
    assert len(found.images) == 4 + 3 and len(found.background) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert "3 of 5 queries" in line and "public_ground_truth.csv" in line


def test_disc_columns_are_found_by_name(tmp_path):
    text = "score,reference_id,query_id\n0.5,R001000,Q00002\n0.25,,Q00004\n"
    assert disc_answers(disc21(disc_tree(tmp_path, text))) == {"Q00002.jpg": [1], "Q00004.jpg": []}


@pytest.mark.parametrize(
    ("row", "culprits"),
    [
        ("Q77777,R001000\nQ88888,\n", ["2 images", "Q77777", "queries"]),
        ("Q00000,R777777\n", ["1 images", "R777777", "references"]),
    ],
)
def test_ids_without_an_image_are_counted_and_the_first_named(tmp_path, row, culprits):
    with one_line_error(FileNotFoundError, tmp_path / "public_ground_truth.csv", *culprits):
        disc21(disc_tree(tmp_path, MATCHES + row))


@pytest.mark.parametrize("name", ["queries/Q00002.png", "references/R001000.png"])
def test_two_images_of_one_id_are_named(tmp_path, name):
    with one_line_error(ValueError, Path(name).name, f"{Path(name).stem}.jpg", tmp_path):
        disc21(disc_tree(tmp_path, MATCHES, name))


def test_disc_wants_one_csv(tmp_path):
    disc_tree(tmp_path, MATCHES)
    (tmp_path / "final_ground_truth.csv").write_text(MATCHES)
    with one_line_error(ValueError, "final_ground_truth.csv", "public_ground_truth.csv"):
        disc21(tmp_path)
    for path in tmp_path.glob("*.csv"):
        path.unlink()
    with one_line_error(FileNotFoundError, tmp_path, "*ground*truth*.csv"):
        disc21(tmp_path)


@pytest.mark.parametrize("part", ["queries", "references"])
def test_disc_without_a_folder_is_named(tmp_path, part):
    (disc_tree(tmp_path, MATCHES) / part).rename(tmp_path / "elsewhere")
    with one_line_error(FileNotFoundError, "disc21", tmp_path / part):
        disc21(tmp_path)


# --- All of them


@pytest.mark.parametrize(
    ("read", "files"),
    [
        (holidays, [f"jpg/{number}.jpg" for number in HOLIDAYS]),
        (ukbench, ukbench_files([0, 7])),
        (copydays, [*COPYDAYS, *STRONG]),
        (revisited_hard, [*REVISITED_FILES]),
        (
            disc21,
            ["queries/Q1.jpg", "queries/Q2.jpg", "references/R1.jpg", "references/R2.jpg", "train/T1.jpg"],
        ),
    ],
)
def test_the_order_of_the_directory_does_not_matter(tmp_path, monkeypatch, read, files):
    write_tree(tmp_path / "set", *files)
    write_gnd(tmp_path / "set" / "gnd_roxford5k.pkl")
    (tmp_path / "set" / "a_ground_truth.csv").write_text("Q2,R1\nQ1,R2\n")
    forwards = read(tmp_path / "set")
    list_backwards(monkeypatch)
    found = read(tmp_path / "set")
    assert found.images.paths == forwards.images.paths
    assert answers(found) == answers(forwards)
    assert [each.tolist() for each in found.junk] == [each.tolist() for each in forwards.junk]
    assert found.images.views == forwards.images.views


def test_photos_in_every_layout(tmp_path, photos):
    """Real photos under the benchmarks' names: what is loaded is the photo, turned or cropped, wherever images are loaded."""
    sources = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:4]
    for k, source in enumerate(sources):
        with Image.open(source) as image:
            picture = image.convert("RGB")
            picture.thumbnail((160, 160))
        for name in (f"holidays/jpg/1000{k:02d}.jpg", f"oxford/jpg/photo_{k}.jpg"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / name, quality=95)
    upright(tmp_path / "holidays", '{"100001.jpg": 90, "100003.jpg": 270}')
    truth = {"imlist": ["photo_1", "photo_2", "photo_3"], "qimlist": ["photo_0"],
             "gnd": [{"bbx": [10.2, 20.0, 70.0, 80.9], "easy": [2], "hard": [0], "junk": []}]}  # fmt: skip
    write_gnd(tmp_path / "oxford" / "gnd_roxford5k.pkl", truth)
    turned, cropped = holidays(tmp_path / "holidays"), revisited(tmp_path / "oxford", "roxford5k")[1]
    assert answers(turned) == {"100000.jpg": ["100001.jpg", "100002.jpg", "100003.jpg"]}
    assert answers(cropped) == {"photo_0.jpg": ["photo_1.jpg", "photo_3.jpg"]}
    quarter_turns = {1: -1, 3: -3}  # anticlockwise
    for i, path in enumerate(turned.images.paths):
        with Image.open(path) as image:
            assert np.array_equal(turned.images.load(i), np.rot90(image, quarter_turns.get(i, 0)))
    with Image.open(cropped.images.paths[3]) as image:
        assert np.array_equal(cropped.images.load(3), np.asarray(image)[20:81, 10:70])
    for images in (turned.images, cropped.images):
        whole = ImageDataset(images, lambda image: image)
        assert [whole[i][0].size for i in range(len(images))] == image_shapes(images)
