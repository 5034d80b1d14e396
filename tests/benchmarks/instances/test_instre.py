"""INSTRE as it is distributed: the MATLAB ground truth, cropped queries, and what does not hold together."""

import pytest
from benchmark_trees import INSTRE, INSTRE_IMAGES, INSTRE_QUERIES, instre_tree, write_instre
from scipy.io import savemat
from support import one_line_error

from mgkit.benchmarks.fetch import examine
from mgkit.benchmarks.instances.instre import instre, read_instre_gnd
from mgkit.data.images import image_shapes


def test_positives_are_numbered_from_one_in_the_file(tmp_path):
    found = instre(instre_tree(tmp_path))
    names = found.images.names()
    assert [names[i] for i in found.database] == INSTRE_IMAGES  # no query among them
    assert [names[i] for i in found.queries] == INSTRE_QUERIES
    assert [[names[i] for i in each] for each in found.positives] == [
        [INSTRE_IMAGES[0], INSTRE_IMAGES[2]],
        INSTRE_IMAGES[3:],
        [INSTRE_IMAGES[2]],
    ]
    assert (found.name, found.measure) == ("instre", "mAP")


def test_queries_are_cropped_to_their_boxes(tmp_path):
    found = instre(instre_tree(tmp_path))
    sizes = [found.images.load(i).size for i in range(len(found.images))]
    assert image_shapes(found.images) == sizes == [(24, 16)] * 5 + [(9, 13), (24, 16), (8, 7)]


def test_a_single_query_with_a_single_image(tmp_path):
    content = {"imlist": INSTRE_IMAGES[:1], "qimlist": INSTRE_QUERIES[:1], "gnd": [([1], [0, 0, 4, 4])]}
    truth = read_instre_gnd(write_instre(tmp_path / "gnd_instre.mat", content))
    assert [each.tolist() for each in truth.positives] == [[0]]
    assert (truth.images, truth.queries) == (tuple(INSTRE_IMAGES[:1]), tuple(INSTRE_QUERIES[:1]))


def first_answer(positives, box):
    return INSTRE | {"gnd": [(positives, box), *INSTRE["gnd"][1:]]}


@pytest.mark.parametrize(
    ("content", "culprits"),
    [
        (first_answer([0, 1], [0, 0, 4, 4]), [INSTRE_QUERIES[0], "1..5"]),
        (first_answer([6], [0, 0, 4, 4]), [INSTRE_QUERIES[0], "6", "1..5"]),
        (first_answer([1.5], [0, 0, 4, 4]), ["1.5"]),
        (first_answer([float("nan")], [0, 0, 4, 4]), ["nan"]),
        (first_answer([2, 2], [0, 0, 4, 4]), ["twice"]),
        (first_answer([], [0, 0, 4, 4]), [INSTRE_QUERIES[0], "no number"]),
        (first_answer([1], [8, 0, 4, 4]), [INSTRE_QUERIES[0], "x1 < x2"]),  # as x, y, width, height would be
        (first_answer([1], [0, 0, 4]), [INSTRE_QUERIES[0]]),
        (first_answer([1], [0, 0, 4, float("inf")]), [INSTRE_QUERIES[0]]),
        (INSTRE | {"gnd": INSTRE["gnd"][:2]}, ["2 entries", "3 queries"]),
        (INSTRE | {"imlist": [INSTRE_IMAGES[0]] * 5}, ["imlist", "twice"]),
        (INSTRE | {"qimlist": [1, 2, 3]}, ["qimlist", "names"]),
    ],
)
def test_what_does_not_hold_together_is_named(tmp_path, content, culprits):
    path = write_instre(tmp_path / "gnd_instre.mat", content)
    with one_line_error(ValueError, path, *culprits):
        read_instre_gnd(path)


def test_a_damaged_or_another_mat_file_is_named(tmp_path):
    path = write_instre(tmp_path / "gnd_instre.mat")
    content = path.read_bytes()
    for wrong in (b"", b"no matlab file", content[:200], content[: len(content) // 2]):
        path.write_bytes(wrong)
        with one_line_error(ValueError, path, "INSTRE"):
            read_instre_gnd(path)
    savemat(path, {"imlist": ["a"]})
    with one_line_error(ValueError, path, "qimlist"):
        read_instre_gnd(path)


def test_a_missing_truth_or_image_is_named(tmp_path):
    root = instre_tree(tmp_path)
    (root / INSTRE_QUERIES[1]).unlink()
    with one_line_error(FileNotFoundError, root / "gnd_instre.mat", "1 images", INSTRE_QUERIES[1]):
        instre(root)
    (root / "gnd_instre.mat").unlink()
    with one_line_error(FileNotFoundError, root / "gnd_instre.mat"):
        instre(root)


def test_no_name_leads_out_of_the_folder(tmp_path):
    (tmp_path / "secret.jpg").touch()
    root = instre_tree(tmp_path / "instre", INSTRE | {"qimlist": ["../secret.jpg", *INSTRE_QUERIES[1:]]})
    with one_line_error(FileNotFoundError, root / "gnd_instre.mat", "../secret.jpg"):
        instre(root)


def test_numbers_and_missing_images_are_checked(tmp_path):
    root = instre_tree(tmp_path / "instre")
    (root / INSTRE_IMAGES[0]).unlink()
    assert examine(tmp_path, "instre").findings == [
        "INSTRE-S1/ holds 2 images, published are 11,011",
        "INSTRE-S2/ holds 3 images, published are 12,059",
        "INSTRE-M/ holds 2 images, published are 5,473",
        f"missing: {INSTRE_IMAGES[0]}",
    ]
