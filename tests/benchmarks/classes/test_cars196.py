"""Stanford Cars in its two layouts; a MATLAB file that is damaged or another is named."""

import pytest
from benchmark_trees import cars_tree, cars_tree_in_parts, write_cars
from scipy.io import savemat
from support import answers, one_line_error

from mgkit.benchmarks.classes.cars196 import cars196
from mgkit.benchmarks.fetch import examine


def paths(found):
    """{query: its positives}, by path below the root."""
    names = found.images.names()
    return {
        names[query]: [names[i] for i in positives]
        for query, positives in zip(found.queries, found.positives, strict=True)
    }


def test_the_second_half_of_the_classes_is_read(tmp_path):
    found = cars196(cars_tree(tmp_path))
    assert answers(found) == {
        "000003.jpg": ["000004.jpg"],
        "000004.jpg": ["000003.jpg"],
        "000005.jpg": ["000006.jpg"],
        "000006.jpg": ["000005.jpg"],
    }
    assert (found.name, found.measure, found.recalls) == ("cars196", "Recall@1", (1, 2, 4, 8))
    assert found.database.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("labels", ["", "devkit/"])
@pytest.mark.parametrize("doubled", [False, True])
def test_classes_run_through_both_parts_of_the_other_layout(tmp_path, doubled, labels):
    root = cars_tree_in_parts(tmp_path, doubled=doubled, labels=f"{labels}cars_test_annos_withlabels.mat")
    train, test = (f"cars_{part}/cars_{part}" if doubled else f"cars_{part}" for part in ("train", "test"))
    assert paths(cars196(root)) == {
        f"{train}/00002.jpg": [f"{test}/00001.jpg"],
        f"{test}/00001.jpg": [f"{train}/00002.jpg"],
        f"{test}/00002.jpg": [f"{test}/00003.jpg"],
        f"{test}/00003.jpg": [f"{test}/00002.jpg"],
    }


def test_a_missing_list_or_image_is_named(tmp_path):
    root = cars_tree(tmp_path)
    (root / "car_ims" / "000005.jpg").unlink()
    with one_line_error(FileNotFoundError, root / "cars_annos.mat", "1 images", "car_ims/000005.jpg"):
        cars196(root)
    (root / "cars_annos.mat").unlink()
    with one_line_error(FileNotFoundError, root / "cars_annos.mat"):
        cars196(root)
    (cars_tree_in_parts(tmp_path / "parts") / "cars_test_annos_withlabels.mat").unlink()
    with one_line_error(FileNotFoundError, tmp_path / "parts" / "cars_test_annos_withlabels.mat"):
        cars196(tmp_path / "parts")


def test_a_damaged_or_another_mat_file_is_named(tmp_path):
    listing = cars_tree(tmp_path) / "cars_annos.mat"
    content = listing.read_bytes()
    for wrong in (b"", b"no matlab file", content[:200], content[: len(content) // 2]):
        listing.write_bytes(wrong)
        with one_line_error(ValueError, listing, "Stanford Cars"):
            cars196(tmp_path)
    savemat(listing, {"other": [1]})
    with one_line_error(ValueError, listing, "annotations"):
        cars196(tmp_path)
    savemat(listing, {"annotations": [1, 2]})
    with one_line_error(ValueError, listing):
        cars196(tmp_path)


@pytest.mark.parametrize(
    ("rows", "culprits"),
    [
        ({"car_ims/000003.jpg": 197}, ["000003.jpg", "197"]),
        ({"car_ims/000003.jpg": 98.5}, ["000003.jpg", "98.5"]),
        ({"car_ims/000003.jpg": "Fiat"}, []),
        ({"car_ims/000001.jpg": 1}, ["no test images"]),
    ],
)
def test_a_wrong_class_is_named(tmp_path, rows, culprits):
    listing = write_cars(cars_tree(tmp_path) / "cars_annos.mat", "relative_im_path", rows)
    with one_line_error(ValueError, listing, *culprits):
        cars196(tmp_path)


def test_no_name_leads_out_of_the_folder(tmp_path):
    (tmp_path / "secret.jpg").touch()
    root = cars_tree(tmp_path / "cars196")
    write_cars(root / "cars_annos.mat", "relative_im_path", {"car_ims/../../secret.jpg": 99})
    with one_line_error(FileNotFoundError, root / "cars_annos.mat", "secret.jpg"):
        cars196(root)


def test_both_layouts_are_checked(tmp_path):
    for path in cars_tree(tmp_path / "cars196").rglob("*.jpg"):
        path.write_bytes(b"1")
    (tmp_path / "cars196" / "car_ims" / "000004.jpg").unlink()
    assert examine(tmp_path, "cars196").findings == [
        "car_ims/ holds 5 images, published are 16,185",
        "missing: car_ims/000004.jpg",
        "cars_annos.mat names 4 test images of 2 classes, published are 8,131 of 98",
    ]
    other = tmp_path / "other"
    for path in cars_tree_in_parts(other / "cars196", doubled=True).rglob("*.jpg"):
        path.write_bytes(b"1")
    (other / "cars196" / "devkit" / "cars_train_annos.mat").unlink()
    assert examine(other, "cars196").findings == [
        "cars_train/ holds 2 images, published are 8,144",
        "cars_test/ holds 3 images, published are 8,041",
        "missing: devkit/cars_train_annos.mat, the classes of the images",
    ]
