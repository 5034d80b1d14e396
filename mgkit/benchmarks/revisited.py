"""Revisited Oxford and Paris: images, ground truth, easy, medium and hard protocols."""

import math
import pickle
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from mgkit.benchmarks.published import Archive, Benchmark, Companion, Images, images_to, some
from mgkit.benchmarks.retrieval_set import RetrievalSet, by_stem, files_of, located, unlabelled
from mgkit.data.decoding import View

KINDS = ("easy", "hard", "junk")
FARTHEST = 2**16  # pixels: no JPEG has a longer side
ARRAY, BUFFER, SCALAR, DTYPE, BYTES = "array", "array from a buffer", "scalar", "dtype", "bytes"
NUMPY_CORES = ("numpy.core", "numpy._core")  # before numpy 2, and since
ADMITTED = {
    **{(f"{core}.multiarray", "_reconstruct"): ARRAY for core in NUMPY_CORES},
    **{(f"{core}.numeric", "_frombuffer"): BUFFER for core in NUMPY_CORES},
    **{(f"{core}.multiarray", "scalar"): SCALAR for core in NUMPY_CORES},
    ("numpy", "dtype"): DTYPE,
    ("numpy", "ndarray"): "ndarray",
    ("_codecs", "encode"): BYTES,  # how Python 3 writes bytes for Python 2
    ("__builtin__", "bytes"): BYTES,  # and how it writes none at all
}


@dataclass(frozen=True)
class RevisitedGroundTruth:
    """What a gnd_*.pkl says of N database images and Q queries.

    images, queries: their names, without `.jpg`. boxes: (x1, y1, x2, y2) in pixels of each query. easy, hard, junk: for each
    query, indices into `images`, disjoint.
    """

    images: tuple[str, ...]
    queries: tuple[str, ...]
    boxes: tuple[tuple[float, ...], ...]
    easy: tuple[np.ndarray, ...]
    hard: tuple[np.ndarray, ...]
    junk: tuple[np.ndarray, ...]


def read_revisited_gnd(path: str | Path) -> RevisitedGroundTruth:
    """The ground truth in a `gnd_roxford5k.pkl` or `gnd_rparis6k.pkl`; nothing in it is executed.

    Raises FileNotFoundError for a missing file, ValueError, naming the file, for one that is damaged, mentions anything but
    plain values and numpy arrays (named as well), or does not hold together.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: the ground truth of revisited Oxford or Paris")
    try:
        with open(path, "rb") as file:
            content = NarrowUnpickler(file, encoding="latin1").load()
        return checked(content)
    except Exception as error:  # a damaged pickle may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read as revisited ground truth: {reason}") from None


# --- The pickle: whatever it would call is only noted


class Note:
    """A call that a pickle asks for, which nobody makes: of what, with which arguments, and the state set afterwards."""

    __slots__ = ("args", "of", "state")

    def __init__(self, of: str, args: tuple):
        self.of, self.args, self.state = of, args, None

    def __setstate__(self, state: object) -> None:
        self.state = state


class Admitted:
    """Stands for a global that a pickle may mention; called, it makes a note."""

    __slots__ = ("of",)

    def __init__(self, of: str):
        self.of = of

    def __call__(self, *args) -> Note:
        return Note(self.of, args)

    def __setstate__(self, state: object) -> None:
        raise ValueError("it gives a function a state")


class NarrowUnpickler(pickle.Unpickler):
    """Gives plain values, and a `Note` wherever numpy would have to be called; ValueError for any other global."""

    def find_class(self, module: str, name: str) -> Admitted:
        if (module, name) not in ADMITTED:
            raise ValueError(
                f"it mentions {f'{module}.{name}'!r}, where plain values and numpy arrays are expected; nothing of it was run"
            )
        return Admitted(ADMITTED[module, name])


def items(value: object) -> list:
    """The elements of a list, a tuple or a noted numpy array as plain Python values; ValueError for anything else."""
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, Note) and value.of == ARRAY:
        _, _, dtype, _, content = value.state
        return items(content) if isinstance(content, list) else stored(content, dtype)
    if isinstance(value, Note) and value.of == BUFFER:
        return stored(*value.args[:2])
    raise ValueError(f"a {type(value).__name__} stands where a list or an array is expected")


def plain(value: object) -> object:
    """The value of a noted numpy scalar; any other value as it is."""
    if isinstance(value, Note) and value.of == SCALAR:
        dtype, content = value.args
        [value] = stored(content, dtype)
    return value


def stored(content: object, dtype: Note) -> list:
    """The numbers or texts that an array's bytes stand for, flat."""
    if isinstance(content, Note) and content.of == BYTES:
        content = content.args[0] if content.args else b""
    if isinstance(content, str):  # Python 2's strings are bytes, read as latin-1
        content = content.encode("latin1")
    return np.frombuffer(content, dtype=element_type(dtype)).tolist() if content else []


def element_type(dtype: object) -> np.dtype:
    """The type that a noted numpy.dtype means: integers, floats or texts; ValueError for any other."""
    code = str(dtype.args[0]) if isinstance(dtype, Note) and dtype.of == DTYPE else ""
    match = re.fullmatch(r"[<>|=]?([iuf][1248]|U[1-9]\d{0,3})", code)
    if not match:
        raise ValueError(f"an array of {code or 'nothing known'!r} is neither of numbers nor of texts")
    order = dtype.state[1] if dtype.state else "="
    return np.dtype((order if order in ("<", ">") else "=") + match[1])


# --- The structure


def checked(content: object) -> RevisitedGroundTruth:
    """The content of the file, once it holds together; ValueError says where it does not."""
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a dict of imlist, qimlist and gnd")
    images, queries = (names(entry(content, key, "it"), key) for key in ("imlist", "qimlist"))
    if len(set(images)) < len(images):
        raise ValueError(f"imlist names {Counter(images).most_common(1)[0][0]!r} twice")
    truth = entry(content, "gnd", "it")
    if not isinstance(truth, list | tuple) or [type(each) for each in truth] != [dict] * len(queries):
        raise ValueError(f"gnd should be a list of {len(queries)} dicts, one for each of qimlist")
    boxes, indices = [], []
    for query, answers in zip(queries, truth, strict=True):
        boxes.append(box(query, answers))
        indices.append(answer_indices(query, answers, len(images)))
    return RevisitedGroundTruth(images, queries, tuple(boxes), *zip(*indices, strict=True))


def entry(content: dict, key: str, whose: str) -> object:
    if key not in content:
        raise ValueError(f"{whose} has no {key!r}")
    return content[key]


def names(value: object, key: str) -> tuple[str, ...]:
    """A list of names; ValueError for an empty one, and for what is no name."""
    found = items(value)
    for each in found:
        if not isinstance(each, str) or not each:
            raise ValueError(f"{key} should be a list of names, but holds {each!r}")
    if not found:
        raise ValueError(f"{key} is empty")
    return tuple(found)


def box(query: str, answers: dict) -> tuple[float, ...]:
    """The query's part of its image, x1, y1, x2, y2; ValueError unless it has an extent."""
    found = items(entry(answers, "bbx", f"query {query!r}"))
    numbers = all(type(x) in (int, float) and math.isfinite(x) and abs(x) < FARTHEST for x in found)
    if (
        not numbers
        or len(found) != 4
        or round(found[2]) <= round(found[0])
        or round(found[3]) <= round(found[1])
    ):
        raise ValueError(
            f"the bbx of query {query!r} should be pixels x1, y1, x2, y2 with x1 < x2, y1 < y2, got {found}"
        )
    return tuple(map(float, found))


def answer_indices(query: str, answers: dict, images: int) -> tuple[np.ndarray, ...]:
    """A query's easy, hard and junk images; ValueError for one that is not among the images, or stands there twice."""
    of_kind = [items(entry(answers, kind, f"query {query!r}")) for kind in KINDS]
    everything = [index for found in of_kind for index in found]
    for index in everything:
        if type(index) not in (int, float) or not 0 <= index < images or index != int(index):
            raise ValueError(
                f"the gnd of query {query!r} holds {index!r}, no index into the {images} of imlist"
            )
    if len(set(everything)) < len(everything):
        index, _ = Counter(everything).most_common(1)[0]
        raise ValueError(f"easy, hard and junk of query {query!r} hold image {int(index)} twice")
    return tuple(np.array(sorted(found), dtype=np.int64) for found in of_kind)


# --- Revisited Oxford and Paris


def revisited(root: str | Path, name: Literal["roxford5k", "rparis6k"]) -> list[RetrievalSet]:
    """Revisited Oxford or Paris, `gnd_<name>.pkl` and `jpg/`, as `<name> easy`, `medium` and `hard`; they share their images.

    The database is imlist; the queries are qimlist, cropped to their boxes, and no part of it. A query without positives stays,
    for the protocol to skip. Raises FileNotFoundError for missing images, and as `read_revisited_gnd`.
    """
    root = Path(root)
    listing, folder = root / f"gnd_{name}.pkl", root / "jpg"
    truth = read_revisited_gnd(listing)
    paths = files_of(folder, name)
    at = located([*truth.images, *truth.queries], by_stem(paths, folder), folder, listing)
    database, queries = np.split(np.arange(len(at)), [len(truth.images)])
    views = {query: View(box=box) for query, box in zip(queries.tolist(), truth.boxes, strict=True)}
    images = unlabelled(folder, [paths[i] for i in at], views=views)
    protocols = {
        "easy": (truth.easy, joined(truth.junk, truth.hard)),
        "medium": (joined(truth.easy, truth.hard), truth.junk),
        "hard": (truth.hard, joined(truth.junk, truth.easy)),
    }
    return [
        RetrievalSet(f"{name} {level}", images, queries, database, positives, junk=junk)
        for level, (positives, junk) in protocols.items()
    ]


def joined(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The indices of both, query by query."""
    return tuple(np.union1d(*pair) for pair in zip(some, others, strict=True))


def images_of_revisited(name: str, folder: Path, images: Images) -> Iterator[str]:
    """The ground truth names the database's images and the queries."""
    path = folder / f"gnd_{name}.pkl"
    if not path.is_file():
        return
    try:
        truth = read_revisited_gnd(path)
    except (OSError, ValueError) as error:
        yield str(error)
        return
    wanted = {f"{image}.jpg".lower() for image in (*truth.images, *truth.queries)}
    if images["jpg"] and wanted - images["jpg"]:
        yield f"missing in jpg/: {some(wanted - images['jpg'])}"
    if images["jpg"] - wanted:
        yield f"in jpg/ but not in {path.name}: {some(images['jpg'] - wanted)}"


OXFORD = "https://thor.robots.ox.ac.uk"
OXFORD_OLD = "https://www.robots.ox.ac.uk/~vgg/data"

# Web pages under the names of images; the revisited ground truth names none of them.
BROKEN_IN_PARIS = tuple(
    f"paris_{image}.jpg"
    for image in (
        "louvre_000136", "louvre_000146", "moulinrouge_000422", "museedorsay_001059", "notredame_000188", "pantheon_000284",
        "pantheon_000960", "pantheon_000974", "pompidou_000195", "pompidou_000196", "pompidou_000201", "pompidou_000467",
        "pompidou_000640", "sacrecoeur_000299", "sacrecoeur_000330", "sacrecoeur_000353", "triomphe_000662", "triomphe_000833",
        "triomphe_000863", "triomphe_000867",
    )
)  # fmt: skip


def buildings_archive(path: str, leave_out: Sequence[str] = ()) -> Archive:
    urls = (f"{OXFORD}/{path}", f"{OXFORD_OLD}/{path}")
    return Archive(urls, partial(images_to, "jpg", leave_out=leave_out), ("jpg",))


def buildings(name: str, number: int, *archives: Archive) -> Benchmark:
    """Revisited Oxford or Paris: images of the database and 70 queries in one folder, and the new ground truth."""
    truth = f"gnd_{name}.pkl"
    there = f"://cmp.felk.cvut.cz/revisitop/data/datasets/{name}/{truth}"
    return Benchmark(
        {"jpg": number + 70},
        ("*.jpg",),
        partial(images_of_revisited, name),
        archives,
        (Companion(truth, "which says the queries and their answers", (f"http{there}", f"https{there}")),),
    )


ROXFORD5K = buildings("roxford5k", 4_993, buildings_archive("oxbuildings/oxbuild_images-v1.tgz"))

RPARIS6K = buildings(
    "rparis6k",
    6_322,
    *(buildings_archive(f"parisbuildings/paris_{i}-v1.tgz", BROKEN_IN_PARIS) for i in (1, 2)),
)
