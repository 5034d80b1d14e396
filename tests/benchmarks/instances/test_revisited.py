"""The pickled ground truth, as old and new Python and numpy write it; code in it is named and not run."""

import copy
import functools
import os
import pickle
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from benchmark_trees import REVISITED, REVISITED_FILES, jpg, junk, revisited_tree, write_gnd
from PIL import Image
from support import answers, one_line_error, ranked, write_tree

from mgkit.benchmarks.instances.revisited import read_revisited_gnd, revisited
from mgkit.data.images import image_shapes

TRUTH = {
    "imlist": [
        "all_souls_000001", "magdalen_000002", "christ_church_000003", "ashmolean_000004", "keble_000005",
    ],
    "qimlist": ["all_souls_000013", "radcliffe_000777"],
    "gnd": [
        {"bbx": [136.5, 34.1, 648.5, 955.7], "easy": [3, 0], "hard": [1], "junk": [4]},
        {"bbx": [0.0, 2.0, 10.0, 1024.0], "easy": [], "hard": [], "junk": [0, 2]},
    ],
}  # fmt: skip


def with_answers(change):
    """The truth with every entry of gnd changed."""
    return TRUTH | {
        "gnd": [{key: change(key, value) for key, value in each.items()} for each in TRUTH["gnd"]]
    }


def arrays(key, value):
    return np.array(value, dtype=np.float64 if key == "bbx" else np.int64)


FORMS = {
    "lists": TRUTH,
    "tuples": with_answers(lambda key, value: tuple(value)),
    "arrays": with_answers(arrays),
    "empty arrays of floats": with_answers(lambda key, value: np.array(value)),
    "small integers": with_answers(lambda key, value: np.array(value, dtype="f4" if key == "bbx" else "u2")),
    "foreign byte order": with_answers(
        lambda key, value: np.array(value, dtype=">f8" if key == "bbx" else ">i4")
    ),
    "rows": with_answers(lambda key, value: arrays(key, value)[None]),
    "scalars": with_answers(lambda key, value: list(arrays(key, value))),
    "arrays of objects": with_answers(lambda key, value: np.array(value, dtype=object)),
    "arrays of names": TRUTH | {key: np.array(TRUTH[key]) for key in ("imlist", "qimlist")},
    "more keys": TRUTH | {"note": {"by": ("hand", None, True, b"bytes", 1 << 80)}},
}


def written(folder, content):
    path = folder / "gnd_roxford5k.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=2))
    return path


def check_truth(found):
    """What was read is `TRUTH`, its indices sorted."""
    assert (found.images, found.queries) == (tuple(TRUTH["imlist"]), tuple(TRUTH["qimlist"]))
    assert np.allclose(found.boxes, [each["bbx"] for each in TRUTH["gnd"]], rtol=1e-6)
    for kind, of_kind in (("easy", found.easy), ("hard", found.hard), ("junk", found.junk)):
        assert [each.tolist() for each in of_kind] == [sorted(each[kind]) for each in TRUTH["gnd"]]
        assert all(each.dtype == np.int64 for each in of_kind)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("form", FORMS)
def test_every_protocol_and_kind_of_container_is_read(tmp_path, form, protocol):
    check_truth(read_revisited_gnd(written(tmp_path, pickle.dumps(FORMS[form], protocol))))


class Python2Pickler(pickle._Pickler):
    """Writes texts and bytes alike as Python 2 wrote its strings."""

    dispatch = copy.copy(pickle._Pickler.dispatch)

    def save_python2_string(self, value):
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_python2_string


@pytest.mark.parametrize("form", ["lists", "arrays", "scalars", "rows", "foreign byte order"])
@pytest.mark.parametrize("text", ["python 2", "python 3"])
def test_pickles_of_numpy_1_are_read(tmp_path, form, text):
    path = tmp_path / "gnd_roxford5k.pkl"
    with open(path, "wb") as file:
        (Python2Pickler if text == "python 2" else pickle.Pickler)(file, protocol=2).dump(FORMS[form])
    content = path.read_bytes().replace(b"cnumpy._core.", b"cnumpy.core.")
    assert b"numpy._core" not in content and (form == "lists" or b"numpy.core.multiarray" in content)
    path.write_bytes(content)
    check_truth(read_revisited_gnd(path))


# --- Code


class Calls:
    """Pickled, it is a call."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def touch(path):
    return f"open({str(path)!r}, 'w').close()"


def by_hand(*parts):
    return b"".join(part.encode() if isinstance(part, str) else part for part in parts)


def evil(path):
    """{the name that is refused: pickles that would create the file at `path`}."""
    system, code, shell = Calls(os.system, f"touch {path}"), touch(path), f"touch {path}"
    hidden = np.array([None, Calls(exec, code)], dtype=object)
    return {
        f"{os.system.__module__}.system": [
            *(pickle.dumps(system, protocol) for protocol in range(6)),
            pickle.dumps(TRUTH | {"imlist": system}, 2),
            pickle.dumps(TRUTH | {"gnd": [*TRUTH["gnd"], system]}, 4),
            pickle.dumps({system: 1}, 4),
            
        ],
        "os.system": [
            by_hand("cos\nsystem\n(S'", shell, "'\ntR."),
            by_hand("(S'", shell, "'\nios\nsystem\n."),  # INST
            by_hand("(cos\nsystem\nS'", shell, "'\no."),  # OBJ
            by_hand(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c", bytes([len(shell)]), shell, b"\x85R."),
            by_hand(
                b"\x80\x02N0cos\nsystem\n0cos\nsystem\nX", struct.pack("<I", len(shell)), shell, b"\x85R."
            ),
        ],
        "eval": [
            pickle.dumps(Calls(eval, code), 2),
            pickle.dumps(TRUTH | {"qimlist": [Calls(eval, code)]}, 5),
        ],
        "exec": [pickle.dumps(hidden, protocol) for protocol in (2, 4, 5)],
        "subprocess.Popen": [pickle.dumps(Calls(subprocess.Popen, ["touch", str(path)]), 4)],
        "numpy.load": [by_hand("cnumpy\nload\n(S'x.npy'\nNI01\ntR.")],
        "numpy.save": [by_hand("cnumpy\nsave\n(S'", str(path), "'\n(lI1\natR.")],
        "numpy.memmap": [by_hand("cnumpy\nmemmap\n(S'", str(path), "'\ntR.")],
        "numpy.dtype.__class__": [by_hand(b"\x80\x04\x8c\x05numpy\x8c\x0fdtype.__class__\x93.")],
        "numpy.core.multiarray.fromfile": [by_hand("cnumpy.core.multiarray\nfromfile\n(S'x'\ntR.")],
        "functools.partial": [pickle.dumps(functools.partial(print), 2)],
        "copyreg._reconstructor": [by_hand("ccopyreg\n_reconstructor\n(NNNtR.")],
        "pathlib.": [by_hand(b"\x80\x02cpathlib\nPosixPath\n)\x81.")],  # NEWOBJ
        "getattr": [by_hand("c__builtin__\ngetattr\n(cos\nsystem\nS'x'\ntR.")],
    }  # fmt: skip


def test_code_is_named_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    proof = Path("proof")
    for name, contents in evil(proof).items():
        for content in contents:
            path = written(tmp_path, content)
            with one_line_error(ValueError, path, name, "which is not run"):
                read_revisited_gnd(path)
            assert not proof.exists(), name


@pytest.mark.parametrize("name", [f"{os.system.__module__}.system", "os.system", "eval", "exec"])
def test_the_evil_pickles_would_have_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    proof = Path("proof")
    pickle.loads(evil(proof)[name][0])
    assert proof.exists()


def array_by_hand(code, content, state=b"(I3\nS'|'\nNNNI-1\nI-1\nI63\ntb"):
    """A pickled array whose dtype and content contradict each other: numpy would take bytes for addresses."""
    return by_hand(
        "(dS'imlist'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\ntcnumpy\ndtype\n",
        f"(S'{code}'\nI0\nI1\ntR", state, "I00\n", content, "tbsS'qimlist'\n(lsS'gnd'\n(ls.",
    )  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        array_by_hand("O8", b"S'AAAAAAAA'\n"),  # addresses
        array_by_hand("O8", b"S'AAAAAAAA'\n", state=b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"),
        array_by_hand("V8", b"S'AAAAAAAA'\n"),
        array_by_hand("i8", b"S'AAA'\n"),
        array_by_hand("i99999999999", b"S'AAAAAAAA'\n"),
        array_by_hand("i8, O8", b"S'AAAAAAAA'\n"),
        array_by_hand("M8[ns]", b"S'AAAAAAAA'\n"),
        by_hand("cnumpy\ndtype\n(dS'of'\nS'x'\nsb."),  # BUILD on what may be mentioned
        by_hand("cnumpy\ndtype\n(N(dS'__call__'\nNstb."),
        by_hand("cnumpy\ndtype\n)\x81."),
        by_hand("cnumpy\nndarray\n(I1000000000000\ntR."),
        by_hand("c_codecs\nencode\n(S'x'\nS'zlib'\ntR."),
        by_hand(b"\x80\x04Pname\n."),  # a persistent id
        by_hand(b"\x80\x02\x82\x01."),  # an extension
        by_hand("(lp0\ng0\na."),  # a list that holds itself
        b"",
        b"<html>\n</html>\n",
        b"\x89HDF\r\n\x1a\n",
        pickle.dumps([1, 2]),
        pickle.dumps(None),
    ],
)
def test_what_is_no_ground_truth_is_named_in_one_line(tmp_path, content):
    path = written(tmp_path, content)
    with one_line_error(ValueError, path):
        read_revisited_gnd(path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_cut_anywhere_is_damaged(tmp_path, protocol):
    content = pickle.dumps(FORMS["arrays"], protocol)
    for length in range(0, len(content) - 1, len(content) // 60):
        path = written(tmp_path, content[:length])
        with one_line_error(ValueError, path):
            read_revisited_gnd(path)


def test_a_missing_file_is_named(tmp_path):
    with one_line_error(FileNotFoundError, tmp_path / "gnd_rparis6k.pkl"):
        read_revisited_gnd(tmp_path / "gnd_rparis6k.pkl")


# --- Structure


def without_key(key):
    return {name: value for name, value in TRUTH.items() if name != key}


def first_changed(**entries):
    first = {key: value for key, value in (TRUTH["gnd"][0] | entries).items() if value is not None}
    return TRUTH | {"gnd": [first, TRUTH["gnd"][1]]}


QUERY = "all_souls_000013"


@pytest.mark.parametrize(
    ("content", "culprits"),
    [
        (without_key("imlist"), ["imlist"]),
        (without_key("qimlist"), ["qimlist"]),
        (without_key("gnd"), ["gnd"]),
        (TRUTH | {"gnd": TRUTH["gnd"][:1]}, ["gnd", "2"]),
        (TRUTH | {"gnd": [1, 2]}, ["gnd"]),
        (TRUTH | {"gnd": {0: 1}}, ["gnd"]),
        (TRUTH | {"imlist": []}, ["imlist", "empty"]),
        (TRUTH | {"imlist": [*TRUTH["imlist"], None]}, ["imlist", "None"]),
        (TRUTH | {"imlist": [*TRUTH["imlist"], "keble_000005"]}, ["imlist", "keble_000005"]),
        (TRUTH | {"qimlist": "ab"}, ["list"]),
        (TRUTH | {"qimlist": [1, 2]}, ["qimlist"]),
        *((first_changed(**{key: None}), [QUERY, key]) for key in ("bbx", "easy", "hard", "junk")),
        (first_changed(bbx=[1, 2, 3]), [QUERY, "bbx"]),
        (first_changed(bbx=[10, 0, 10.4, 20]), [QUERY, "bbx"]),
        (first_changed(bbx=[0, 20, 10, 10]), [QUERY, "bbx"]),
        (first_changed(bbx=[0, 0, float("nan"), 10]), [QUERY, "bbx"]),
        (first_changed(bbx=[0, 0, float("inf"), 10]), [QUERY, "bbx"]),
        (first_changed(bbx=[0, 0, 1e300, 10]), [QUERY, "bbx"]),
        (first_changed(bbx=["0", "0", "10", "10"]), [QUERY, "bbx"]),
        (first_changed(bbx=5), ["int"]),
        (first_changed(easy=[5]), [QUERY, "5"]),
        (first_changed(hard=[-1]), [QUERY, "-1"]),
        (first_changed(junk=["1"]), [QUERY, "'1'"]),
        (first_changed(junk=[1.5]), [QUERY, "1.5"]),
        (first_changed(easy=[0, 1]), [QUERY, "image 1 twice"]),
        (first_changed(easy=[3, 3]), [QUERY, "image 3 twice"]),
        (first_changed(junk=np.array([4, 0])), [QUERY, "image 0 twice"]),
    ],
)
def test_what_does_not_hold_together_is_named(tmp_path, content, culprits):
    path = written(tmp_path, content)
    with one_line_error(ValueError, path, *culprits):
        read_revisited_gnd(path)


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
