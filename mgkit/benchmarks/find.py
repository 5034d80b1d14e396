"""Registry of the published benchmarks, and the retrieval sets in a folder, published or of the user."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mgkit.benchmarks.classes.cars196 import CARS196, cars196
from mgkit.benchmarks.classes.cub200 import CUB200, cub200
from mgkit.benchmarks.classes.inshop import INSHOP, inshop
from mgkit.benchmarks.classes.sop import SOP, sop
from mgkit.benchmarks.copies.copydays import COPYDAYS, LEVEL_KINDS, copydays, copydays_all, copydays_levels
from mgkit.benchmarks.copies.disc21 import DISC21, disc21, disc21_10k
from mgkit.benchmarks.instances.gldv2 import GLDV2, gldv2
from mgkit.benchmarks.instances.holidays import HOLIDAYS, holidays
from mgkit.benchmarks.instances.ilias import ILIAS, ilias
from mgkit.benchmarks.instances.instre import INSTRE, instre
from mgkit.benchmarks.instances.revisited import ROXFORD5K, RPARIS6K, revisited
from mgkit.benchmarks.instances.ukbench import UKBENCH, ukbench
from mgkit.benchmarks.own import GROUPS, csv_set, folder_set, plain_set, queried_set
from mgkit.benchmarks.retrieval_set import RetrievalSet, with_distractors
from mgkit.data.folders import check_folder
from mgkit.data.layouts import dataset_root, plain_images
from mgkit.machine.download import file_hash
from mgkit.machine.printable import printable_errors
from mgkit.machine.progress import progress

BENCHMARKS = {
    "holidays": HOLIDAYS, "ukbench": UKBENCH, "copydays": COPYDAYS,
    "roxford5k": ROXFORD5K, "rparis6k": RPARIS6K, "disc21": DISC21,
    "gldv2": GLDV2, "instre": INSTRE, "ilias": ILIAS,
    "sop": SOP, "cub200": CUB200, "cars196": CARS196, "inshop": INSHOP,
}  # fmt: skip
FILES_OF_ONES_OWN = (".csv", ".txt")
READERS = {  # {name: reader of the set's folder}, see FOLDERS
    "holidays": lambda folder, incomplete: [holidays(folder, incomplete=incomplete)],
    "ukbench": lambda folder, incomplete: [ukbench(folder, incomplete=incomplete)],
    "copydays": lambda folder, incomplete: [copydays(folder)],
    "copydays_levels": lambda folder, incomplete: copydays_levels(folder),
    "roxford5k": lambda folder, incomplete: revisited(folder, "roxford5k"),
    "rparis6k": lambda folder, incomplete: revisited(folder, "rparis6k"),
    "disc21": lambda folder, incomplete: [disc21(folder)],
    "disc21_10k": lambda folder, incomplete: [disc21_10k(folder)],
    "gldv2": lambda folder, incomplete: gldv2(folder),
    "instre": lambda folder, incomplete: [instre(folder)],
    "ilias": lambda folder, incomplete: ilias(folder),
    "sop": lambda folder, incomplete: [sop(folder)],
    "cub200": lambda folder, incomplete: [cub200(folder)],
    "cars196": lambda folder, incomplete: [cars196(folder)],
    "inshop": lambda folder, incomplete: [inshop(folder)],
}
SET_NAMES = tuple(READERS)
OF_COPYDAYS = ("copydays", "copydays_levels")
FOLDERS = {"copydays_levels": "copydays", "disc21_10k": "disc21"}  # of sets in the folder of another name


@printable_errors()
def find_sets(
    root: str | Path, *, names: Sequence[str] = (), queries: str = "", distractors: str = "",
    incomplete: str = "raise",
) -> list[RetrievalSet]:  # fmt: skip
    """Return the retrieval sets of those names below root, or all that exist, or the user's own images.

    root: folder; each benchmark is in the folder of its name (`copydays_levels` in `copydays/`). Other images
    are grouped by `groups.csv`, or by sub-folder, or not at all; ImageNet gives its validation images.
    A csv of groups, or a list of images without groups (`.txt`), may be given instead.
    names: of `SET_NAMES`; `disc21_10k`, a part of `disc21/`, is read only if named
    queries: folder or csv of queries, for which the user's own images are the gallery (see `queried_set`)
    distractors: folder or list, added to the database of every set; "": Copydays has those in
    `unlabelled/distractors` below root, if that exists
    incomplete: `raise` an error for incomplete groups of Holidays and UKBench, or `skip` them, with a line
    Raises ValueError for an unknown name, FileNotFoundError for a missing set, and what readers raise.
    """
    check_names(names)
    root = Path(root)
    of_file = root.suffix.lower() in FILES_OF_ONES_OWN and not root.is_dir()
    if of_file:
        check_file(root, names)
    else:
        check_folder(root, "data")
    extra = plain_images(distractors, purpose="distractors") if distractors else None
    wanted = list(names) or ([] if of_file or (root / GROUPS).is_file() else sets_below(root))
    if wanted and queries:
        raise ValueError(
            f"queries: {root} has the set {wanted[0]}, with queries of its own: "
            "give a folder of images of your own as data, and no sets"
        )
    spare = None if distractors else distractor_source(root, "")
    found = published_sets(root, wanted, incomplete, spare) if wanted else [own_set(root, queries)]
    return with_distractors(found, extra) if extra else found


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError for a name that is unknown or repeated."""
    unknown = [name for name in names if name not in SET_NAMES]
    if unknown:
        raise ValueError(f"sets: {unknown[0]!r} is unknown; any of {', '.join(SET_NAMES)}, or none for all")
    repeated = [name for name in names if list(names).count(name) > 1]
    if repeated:
        raise ValueError(f"sets: {repeated[0]} is named more than once")


def check_file(path: Path, names: Sequence[str]) -> None:
    """Raise FileNotFoundError for a csv or list that is missing, ValueError for one with names of sets."""
    if names:
        raise ValueError(f"sets: {names[0]} needs a folder, but data is the file {path}")
    if not path.is_file():
        raise FileNotFoundError(f"data: the file {path} does not exist")


def sets_below(root: Path) -> list[str]:
    """Return the names of the published sets below root."""
    return [name for name in SET_NAMES if is_there(root, name)]


def published_sets(
    root: Path, names: Sequence[str], incomplete: str, spare: Path | None
) -> list[RetrievalSet]:
    """Read published sets below root; spare: folder of distractors for Copydays, if it exists."""
    readers = dict(READERS)
    if set(OF_COPYDAYS) <= set(names):  # read together to share their images
        readers["copydays"] = lambda folder, incomplete: copydays_all(folder)
        names = [name for name in names if name != "copydays_levels"]
    found = []
    for name in names:
        sets = readers[name](root / FOLDERS.get(name, name), incomplete)
        if name in OF_COPYDAYS and spare and spare.is_dir():
            sets = with_distractors(sets, plain_images(spare, purpose="distractors"))
        found += sets
    return found


def own_set(root: Path, queries: str) -> RetrievalSet:
    """Read the user's own images: a folder, a csv of groups or a list; see `find_sets`."""
    listing = root / GROUPS if root.is_dir() else root
    is_csv = listing.is_file() and listing.suffix.lower() == ".csv"
    if queries and is_csv:
        raise ValueError(f"queries: leave it empty, a column role in {listing} says which images are queries")
    if queries:
        return queried_set(root, Path(queries))
    if is_csv:
        return csv_set(listing)
    return folder_set(dataset_root(root)) if root.is_dir() else plain_set(root)


def is_there(root: Path, name: str) -> bool:
    """Return whether root has the folders of a set; the user's own folder may have the same name.

    Never for `disc21_10k`, whose images are all in `disc21`.
    """
    if name == "disc21_10k":
        return False
    if name == "copydays_levels":
        return any((root / "copydays" / kind).is_dir() for kind in LEVEL_KINDS)
    return BENCHMARKS[name].layout_of(root / name).is_in(root / name)


# --- Distractors


def distractor_source(root: Path, source: str) -> Path:
    """Return the given folder or list of distractors, else `unlabelled/distractors` below root."""
    return Path(source) if source else root / "unlabelled" / "distractors"


def distractor_record(paths: Iterable[str], root: str | Path) -> str:
    """Format SHA-256 and path of each distractor, one line each, as sha256sum does.

    paths: absolute paths of the distractors
    root: their folder, or list in it; paths are written relative to the folder, absolute outside
    """
    base = os.path.join(os.path.realpath(root if os.path.isdir(root) else os.path.dirname(root)), "")
    lines = []
    for path in progress(list(paths), "hashing distractors", unit="file"):
        name = path.removeprefix(base)
        escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        marked = "\\" if escaped != name else ""  # marks an escaped name
        lines.append(f"{marked}{file_hash(Path(path))}  {escaped}\n")
    return "".join(lines)
