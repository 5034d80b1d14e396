"""Revisited Oxford and Paris: images, ground truth, easy, medium and hard protocols."""

import math
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from mgkit.benchmarks.published import Archive, Benchmark, Companion, Images, abbreviated, images_to
from mgkit.benchmarks.retrieval_set import RetrievalSet, by_stem, files_of, located, unlabelled
from mgkit.data.decoding import View

KINDS = ("easy", "hard", "junk")
LONGEST_SIDE = 2**16  # px, the limit of JPEG
OXFORD = "https://thor.robots.ox.ac.uk"
OXFORD_OLD = "https://www.robots.ox.ac.uk/~vgg/data"
# These files are web pages, not images; the revisited ground truth lists none of them.
BROKEN_IN_PARIS = tuple(
    f"paris_{image}.jpg"
    for image in (
        "louvre_000136", "louvre_000146", "moulinrouge_000422", "museedorsay_001059", "notredame_000188",
        "pantheon_000284", "pantheon_000960", "pantheon_000974", "pompidou_000195", "pompidou_000196",
        "pompidou_000201", "pompidou_000467", "pompidou_000640", "sacrecoeur_000299", "sacrecoeur_000330",
        "sacrecoeur_000353", "triomphe_000662", "triomphe_000833", "triomphe_000863", "triomphe_000867",
    )
)  # fmt: skip


@dataclass(frozen=True)
class RevisitedGroundTruth:
    """Content of a gnd_*.pkl with N database images and Q queries.

    images, queries: file names without `.jpg`
    boxes: (x1, y1, x2, y2) of each query (px)
    easy, hard, junk: disjoint indices into `images` for each query
    """

    images: tuple[str, ...]
    queries: tuple[str, ...]
    boxes: tuple[tuple[float, ...], ...]
    easy: tuple[np.ndarray, ...]
    hard: tuple[np.ndarray, ...]
    junk: tuple[np.ndarray, ...]


def read_revisited_gnd(path: str | Path) -> RevisitedGroundTruth:
    """Read a `gnd_roxford5k.pkl` or `gnd_rparis6k.pkl`, without running code from it.

    Raises FileNotFoundError for a missing file; ValueError, naming the file, for one that is damaged,
    inconsistent, or contains anything but plain values and numpy arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the ground truth {path} of revisited Oxford or Paris does not exist")
    try:
        with open(path, "rb") as file:
            content = RestrictedUnpickler(file, encoding="latin1").load()
        return checked(content)
    except Exception as error:  # a damaged pickle may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read as revisited ground truth: {reason}") from None


# --- Restricted unpickling: numpy's own functions are unsafe, they trust a dtype's flags


class Dtype:
    """Replaces numpy.dtype, for numbers, strings, and objects whose values are listed."""

    def __init__(self, code: str, *flags):
        if not re.fullmatch(r"[iuf][1248]|U[1-9]\d{0,3}|O8", str(code)):
            raise ValueError(f"an array of {code!r} is neither of numbers nor of strings")
        self.code, self.order = str(code), "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "="

    def values(self, content: bytes | str) -> list:
        """Decode the elements from bytes, or from a latin-1 string as in pickles of Python 2."""
        content = content.encode("latin1") if isinstance(content, str) else content
        return np.frombuffer(content, dtype=self.order + self.code).tolist() if content else []


class Array(list):
    """Replaces numpy.ndarray by the flat list of its elements."""

    def __setstate__(self, state: tuple) -> None:
        _, _, dtype, _, content = state
        self[:] = content if isinstance(content, list) else dtype.values(content)


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickler of plain values and numpy arrays (as lists); ValueError for any other global."""

    def find_class(self, module: str, name: str) -> Callable:
        allowed = {  # new for each call, since a pickle may set attributes of these objects
            "numpy.dtype": Dtype,
            "numpy.ndarray": Array,
            "numpy.core.multiarray._reconstruct": lambda *empty: Array(),
            "numpy.core.multiarray.scalar": lambda dtype, content: dtype.values(content)[0],
            "numpy.core.numeric._frombuffer": lambda content, dtype, *shape: dtype.values(content),
            "_codecs.encode": lambda text, encoding: text.encode("latin1"),  # bytes in protocols 0 to 2
            "__builtin__.bytes": lambda: b"",  # empty bytes
        }
        found = allowed.get(f"{module}.{name}".replace("numpy._core.", "numpy.core."))  # numpy 2
        if found is None:
            raise ValueError(
                f"it contains {f'{module}.{name}'!r}, which is not run; "
                "only plain values and numpy arrays are read"
            )
        return found


# --- Validation


def checked(content: object) -> RevisitedGroundTruth:
    """Convert the content of the file; ValueError where it is inconsistent."""
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a dict of imlist, qimlist and gnd")
    images, queries = (names(entry(content, key, "it"), key) for key in ("imlist", "qimlist"))
    if len(set(images)) < len(images):
        raise ValueError(f"imlist names {Counter(images).most_common(1)[0][0]!r} twice")
    truth = entry(content, "gnd", "it")
    if not isinstance(truth, list | tuple) or list(map(type, truth)) != [dict] * len(queries):
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
    """Return a non-empty list of names; ValueError for others."""
    for name in listed(value, key):
        if not isinstance(name, str) or not name:
            raise ValueError(f"{key} should be a list of names, but holds {name!r}")
    if not value:
        raise ValueError(f"{key} is empty")
    return tuple(value)


def listed(value: object, key: str) -> list | tuple:
    """Return a list or tuple; ValueError for other types."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"{key} should be a list or an array, and is a {type(value).__name__}")
    return value


def box(query: str, answers: dict) -> tuple[float, ...]:
    """Return the query's box x1, y1, x2, y2 (px); ValueError if it is empty."""
    found = listed(entry(answers, "bbx", f"query {query!r}"), "bbx")
    numbers = all(type(x) in (int, float) and math.isfinite(x) and abs(x) < LONGEST_SIDE for x in found)
    corners = [round(x) for x in found] if numbers and len(found) == 4 else [0] * 4
    if corners[2] <= corners[0] or corners[3] <= corners[1]:
        raise ValueError(
            f"the bbx of query {query!r} should be pixels x1, y1, x2, y2 with x1 < x2, y1 < y2, got {found}"
        )
    return tuple(map(float, found))


def answer_indices(query: str, answers: dict, images: int) -> tuple[np.ndarray, ...]:
    """Return a query's easy, hard and junk images; ValueError for an invalid or repeated index."""
    of_kind = [listed(entry(answers, kind, f"query {query!r}"), kind) for kind in KINDS]
    indices = [index for found in of_kind for index in found]
    for index in indices:
        if type(index) not in (int, float) or not 0 <= index < images or index != int(index):
            raise ValueError(f"the gnd of query {query!r} holds {index!r}, not an index of 0..{images - 1}")
    if len(set(indices)) < len(indices):
        index, _ = Counter(indices).most_common(1)[0]
        raise ValueError(f"easy, hard and junk of query {query!r} hold image {int(index)} twice")
    return tuple(np.array(sorted(found), dtype=np.int64) for found in of_kind)


# --- Record


def check_images(name: str, folder: Path, images: Images) -> Iterator[str]:
    """Yield findings on images that the ground truth lists, or does not list."""
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
        yield f"missing in jpg/: {abbreviated(wanted - images['jpg'])}"
    if images["jpg"] - wanted:
        yield f"in jpg/ but not in {path.name}: {abbreviated(images['jpg'] - wanted)}"


def buildings_archive(path: str, leave_out: Sequence[str] = ()) -> Archive:
    urls = (f"{OXFORD}/{path}", f"{OXFORD_OLD}/{path}")
    return Archive(urls, partial(images_to, "jpg", leave_out=leave_out), ("jpg",))


def buildings(name: str, number: int, *archives: Archive) -> Benchmark:
    """Build the record of revisited Oxford or Paris: database images and 70 queries in one folder."""
    truth = f"gnd_{name}.pkl"
    there = f"://cmp.felk.cvut.cz/revisitop/data/datasets/{name}/{truth}"
    return Benchmark(
        {"jpg": number + 70},
        ("*.jpg",),
        partial(check_images, name),
        archives,
        (Companion(truth, "the queries and their ground truth", (f"http{there}", f"https{there}")),),
    )


ROXFORD5K = buildings("roxford5k", 4_993, buildings_archive("oxbuildings/oxbuild_images-v1.tgz"))

RPARIS6K = buildings(
    "rparis6k",
    6_322,
    *(buildings_archive(f"parisbuildings/paris_{i}-v1.tgz", BROKEN_IN_PARIS) for i in (1, 2)),
)


# --- Reader


def revisited(root: str | Path, name: Literal["roxford5k", "rparis6k"]) -> list[RetrievalSet]:
    """Read revisited Oxford or Paris, `gnd_<name>.pkl` and `jpg/`, as `<name> easy`, `medium` and `hard`.

    The sets share their images: the database is imlist, the queries are qimlist, cropped to their boxes.
    Queries without positives are kept, for the protocol to skip. Raises FileNotFoundError for missing images,
    and as `read_revisited_gnd`.
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


def joined(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Return the union of indices for each query."""
    return tuple(np.union1d(*pair) for pair in zip(one, other, strict=True))
