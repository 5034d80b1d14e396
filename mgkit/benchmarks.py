"""The published retrieval benchmarks: what each consists of, where it comes from, and what of it is missing here.

From a shell: `python -m mgkit.benchmarks fetch holidays --root data`, `python -m mgkit.benchmarks check --root data`.
"""

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch, translate
from functools import partial
from pathlib import Path, PurePosixPath

from mgkit.archives import extract, is_extracted, recorded_hashes
from mgkit.download import TIMEOUT, WAITS, DownloadError, fetch, file_hash
from mgkit.files import find_path
from mgkit.progress import progress
from mgkit.revisited import read_revisited_gnd

DOWNLOADS = ".downloads"  # below the root: the archives; once extracted they are not needed any more
EMBEDDED = "mini.json"  # marks the root of the embedded set, which is smaller by design
SHOWN = 3  # names in a finding

Images = Mapping[str, set[str]]  # folder of a set -> names of the images in it, in small letters


@dataclass(frozen=True)
class Archive:
    """An archive of images.

    urls: tried in this order. place: a file's path in the archive -> its path below the set's folder, None to leave it out.
    fills: the folders of the set that its images go to. sha256: in hexadecimal, where it is known.
    """

    urls: tuple[str, ...]
    place: Callable[[str], str | None]
    fills: tuple[str, ...]
    sha256: str | None = None


@dataclass(frozen=True)
class Companion:
    """A file beside the images: path (or pattern) below the set's folder, what for, and addresses tried in this order."""

    path: str
    use: str
    urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """A published set, as it lies in the folder of its name.

    folders: folder -> published number of images. names: patterns of the images' names. details: the set's folder, its images ->
    what is wrong with them beyond their number, as texts. by_hand: what a person does where there are no archives to fetch.
    """

    folders: Mapping[str, int]
    names: tuple[str, ...]
    details: Callable[[Path, Images], Iterable[str]]
    archives: tuple[Archive, ...] = ()
    companions: tuple[Companion, ...] = ()
    by_hand: str = ""


@dataclass(frozen=True)
class Report:
    """What a check found: one line on the number of images, and a line for each thing that is missing or unexpected."""

    summary: str
    findings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n  ".join([self.summary, *self.findings])


def fetch_benchmark(
    name: str,
    root: str | Path,
    *,
    addresses: Mapping[str, Sequence[str]] | None = None,
    timeout: float = TIMEOUT,
    waits: Sequence[float] = WAITS,
) -> Path:
    """Download and extract what is missing of a set below `root/name`; returns that folder.

    name: one of `BENCHMARKS`. addresses: file name on the server -> addresses to use instead of the published ones. timeout,
    waits: as for `mgkit.download.fetch`. Archives go to `root/.downloads`; one put there by hand counts as well. Where a folder
    holds the published number of images, or its archive has been extracted, nothing is done.

    Raises ValueError for an unknown name, a root that holds the embedded set, or an archive that must not be extracted;
    DownloadError, which says what to fetch by hand and where to put it, once everything else has come; OSError for
    a full disk and the like.
    """
    benchmark, root = benchmark_of(name), Path(root)
    folder, addresses = root / name, addresses or {}
    if (root / EMBEDDED).exists():
        raise ValueError(f"{root} holds the embedded set ({EMBEDDED}): choose another root for {name}")
    if not benchmark.archives:
        raise DownloadError(f"{name} has to be fetched by hand: {benchmark.by_hand} {folder}")
    troubles = []
    for archive in benchmark.archives:
        path = root / DOWNLOADS / server_name(archive.urls)
        if is_extracted(path, folder) or is_filled(benchmark, folder, archive.fills):
            continue
        urls = addresses.get(path.name, archive.urls)
        try:
            fetch_from_any(urls, path, sha256=archive.sha256, timeout=timeout, waits=waits)
        except DownloadError as trouble:
            troubles.append(str(trouble))
        else:
            extract(path, folder, rename=archive.place)
    for companion in benchmark.companions:
        urls = addresses.get(server_name(companion.urls), companion.urls)
        try:
            fetch_from_any(urls, folder / companion.path, timeout=timeout, waits=waits)
        except DownloadError as trouble:
            troubles.append(str(trouble))
    if troubles:
        raise DownloadError(f"{name} is not complete, {'; '.join(troubles)}; then run this again")
    return folder


def fetch_from_any(urls: Sequence[str], path: Path, **options) -> Path:
    """The file from the first address that gives it; DownloadError, of the first one, if none does."""
    troubles = []
    for url in urls:
        try:
            return fetch(url, path, **options)
        except (DownloadError, ValueError) as trouble:
            troubles.append(str(trouble))
    others = f" (in vain also: {', '.join(urls[1:])})" if len(urls) > 1 else ""
    raise DownloadError(troubles[0] + others)


def server_name(urls: Sequence[str]) -> str:
    """The name of a file by its first address."""
    return urls[0].rpartition("/")[2]


def is_filled(benchmark: Benchmark, folder: Path, folders: Iterable[str]) -> bool:
    """Whether these folders of a set hold as many images as published."""
    images, _ = sorted_out(benchmark, folder)
    return all(len(images[each]) == benchmark.folders[each] for each in folders)


def examine(root: str | Path, name: str, *, hashes: bool = False) -> Report:
    """What is missing or unexpected in `root/name`, and a line that sums up. No image is decoded.

    hashes: also compare every file with the hashes that were recorded when it was fetched and extracted. In a root
    that holds the embedded set, few images are no finding. Raises ValueError for an unknown name only.
    """
    benchmark, root = benchmark_of(name), Path(root)
    folder, published = root / name, sum(benchmark.folders.values())
    if not folder.is_dir():
        how = f"run python -m mgkit.benchmarks fetch {name} --root {root}"
        how = how if benchmark.archives else f"{benchmark.by_hand} {folder}"
        return Report(f"{name}: not there", [f"{folder} does not exist: {how}"])
    images, findings = sorted_out(benchmark, folder)
    number, embedded = sum(map(len, images.values())), (root / EMBEDDED).exists()
    if not embedded:
        findings += [
            *wrong_numbers(benchmark, images),
            *missing_companions(benchmark, folder),
            *benchmark.details(folder, images),
        ]
    if hashes and not embedded:
        findings += wrong_hashes(folder)
    of = f" (the embedded set; published are {published:,})" if embedded else f" of {published:,}"
    result = "complete" if not findings else f"{len(findings)} finding{'s' * (len(findings) > 1)}"
    return Report(f"{name}: {number:,}{of} images, {result}", findings)


def names_below(root: Path) -> list[str]:
    """The published sets of which root has a folder."""
    return [name for name in BENCHMARKS if (root / name).is_dir()]


def survey(root: str | Path) -> str:
    """`examine` of every published set of which root has a folder, as text; empty where there is none."""
    return "\n".join(str(examine(root, name)) for name in names_below(Path(root)))


def benchmark_of(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise ValueError(f"{name!r} is no published set; one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def sorted_out(benchmark: Benchmark, folder: Path) -> tuple[Images, list[str]]:
    """The images of a set by their folders, and findings on what else is there; what is hidden is passed over."""
    images, strange, empty, closed = {each: set() for each in benchmark.folders}, [], [], []
    known = ("*.sha256", *(companion.path for companion in benchmark.companions))
    fits = re.compile("|".join(map(translate, benchmark.names))).match
    above = {"", *(str(parent) for each in images for parent in PurePosixPath(each).parents)} - {"."}
    for inside in sorted({*images, *above}):
        start = f"{inside}/" if inside else ""
        for name, size in listed(folder / inside, closed):
            if size is None:
                if f"{start}{name}" not in {*images, *above}:
                    strange.append(f"{start}{name}/")
                continue
            small = name.lower()
            if inside in images and fits(small):
                images[inside].add(small)
            elif not any(fnmatch(name, pattern) for pattern in known):
                strange.append(f"{start}{name}")
                continue
            if not size:
                empty.append(f"{start}{name}")
    kinds = {"empty": empty, "not part of the set": strange, "cannot be read": closed}
    return images, [f"{kind}: {some(paths)}" for kind, paths in kinds.items() if paths]


def listed(folder: Path, closed: list[str]) -> Iterator[tuple[str, int | None]]:
    """What a folder holds: name and bytes (None: a folder; 0: also a broken link). One that cannot be read is noted in closed."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    size = entry.stat().st_size if entry.is_file() else 0
                    yield entry.name, None if entry.is_dir() else size
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError:
        closed.append(str(folder))


def wrong_numbers(benchmark: Benchmark, images: Images) -> Iterator[str]:
    """Findings on folders that hold none, too few or too many images."""
    bare = [f"{each}/" for each in images if not images[each]]
    if bare:
        yield f"no images: {some(bare)} ({sum(benchmark.folders[each[:-1]] for each in bare):,} images)"
    for each, names in images.items():
        if names and len(names) != benchmark.folders[each]:
            yield f"{each}/ holds {len(names):,} images, published are {benchmark.folders[each]:,}"


def missing_companions(benchmark: Benchmark, folder: Path) -> Iterator[str]:
    for companion in benchmark.companions:
        if not any(path.is_file() for path in folder.glob(companion.path)):
            yield f"missing: {companion.path}, {companion.use}"


def wrong_hashes(folder: Path) -> Iterator[str]:
    """Findings on files that differ from their records, or the finding that there are no records."""
    records = sorted(folder.rglob("*.sha256"))
    if not records:
        yield "no hashes are recorded here: they are by fetching"
    for record in records:
        try:
            hashes = recorded_hashes(record)
        except (OSError, ValueError) as error:
            yield str(error)
            continue
        changed, gone = [], []
        for path, recorded in progress(hashes.items(), f"hashing {record.stem}", unit="file"):
            try:
                if file_hash(record.parent / path) != recorded:
                    changed.append(path)
            except OSError:
                gone.append(path)
        if changed:
            yield f"changed since {record.name}: {some(changed)}"
        if gone:
            yield f"gone since {record.name}: {some(gone)}"


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def numbered(formats: Mapping[str, tuple[str, int]], folder: Path, images: Images) -> Iterator[str]:
    """Missing images where names are consecutive numbers: folder -> (format of a name, number of images)."""
    for each, (name, number) in formats.items():
        missing = [name.format(i) for i in range(number)] if images[each] else []
        missing = [image for image in missing if image.lower() not in images[each]]
        if missing:
            yield f"missing in {each}/: {some(missing)}"


def groups_of_holidays(folder: Path, images: Images) -> Iterator[str]:
    """A group is what has the first four digits in common; its image ..00 is the query, the others are the answers."""
    groups = Counter(name[:4] for name in images["jpg"])
    if groups and len(groups) != 500:
        yield f"{len(groups)} groups, published are 500"
    unasked = [f"{group}00.jpg" for group in groups if f"{group}00.jpg" not in images["jpg"]]
    if unasked:
        yield f"groups without their query: {some(unasked)}"
    alone = [f"{group}00.jpg" for group, number in groups.items() if number == 1]
    if alone:
        yield f"groups of one image: {some(alone)}"


def levels_of_copydays(folder: Path, images: Images) -> Iterator[str]:
    """Every level has the originals, known by the first four digits; strong copies have their originals."""
    number = {each: {name[:4] for name in names} for each, names in images.items()}
    without = number["strong"] - number["original"]
    if without:
        yield f"missing in original/, though strong/ has copies: {some(f'{each}00.jpg' for each in without)}"
    for each in images:
        missing = number["original"] - number[each]
        if missing and images[each] and each != "strong":
            yield f"missing in {each}/: {some(f'{each}00.jpg' for each in missing)}"


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


def images_to(folder: str, path: str, *, out_of: str = "*", leave_out: Sequence[str] = ()) -> str | None:
    """Places the JPEG files of an archive, or those out of folders of one name, in one folder."""
    inside, name = PurePosixPath(path).parent.name, PurePosixPath(path).name
    wanted = (
        name.lower().endswith(".jpg")
        and not name.startswith(".")
        and name not in leave_out
        and fnmatch(inside, out_of)
    )
    return f"{folder}/{name}" if wanted else None


def levels_to(folder: str, path: str) -> str | None:
    """Places `.../<number>/<name>.jpg` of an archive in `folder/<number>/`."""
    level = PurePosixPath(path).parent.name
    return images_to(f"{folder}/{level}", path) if level.isdigit() else None


MULTIGRAIN = "https://raw.githubusercontent.com/facebookresearch/multigrain"
MULTIGRAIN_VERSIONS = ("master", "main", "53c5ccf39e936a996691f0f278f43abd5b81acce")
ROTATION = "multigrain/datasets/holidays-rotate.yaml"
INRIA = "http://pascal.inrialpes.fr"
COPYDAYS_MIRROR = "https://dl.fbaipublicfiles.com/vissl/datasets"
OXFORD = "https://thor.robots.ox.ac.uk"
OXFORD_OLD = "https://www.robots.ox.ac.uk/~vgg/data"
CROPS = tuple(f"crops/{percent}" for percent in (10, 15, 20, 30, 40, 50, 60, 70, 80))
QUALITIES = tuple(f"jpegqual/{quality}" for quality in (3, 5, 8, 10, 15, 20, 30, 50, 75))

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


def holidays_archive(name: str) -> Archive:
    urls = (f"ftp://ftp.inrialpes.fr/pub/lear/douze/data/{name}", f"{INRIA}/data2/holidays/{name}")
    return Archive(urls, partial(images_to, "jpg"), ("jpg",))


def copydays_archive(
    kind: str, place: Callable, fills: tuple[str, ...], sha256: str | None = None
) -> Archive:
    """The mirror has, and first, those whose hash is known."""
    name = f"copydays_{kind}.tar.gz"
    mirrors = (f"{COPYDAYS_MIRROR}/{name}",) if sha256 else ()
    return Archive(
        (*mirrors, f"{INRIA}/data2/holidays/{name}", f"{INRIA}/data/holidays/{name}"), place, fills, sha256
    )


def buildings_archive(path: str, leave_out: Sequence[str] = ()) -> Archive:
    urls = (f"{OXFORD}/{path}", f"{OXFORD_OLD}/{path}")
    return Archive(urls, partial(images_to, "jpg", leave_out=leave_out), ("jpg",))


def revisited(name: str, number: int, *archives: Archive) -> Benchmark:
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


BENCHMARKS = {
    "holidays": Benchmark(
        {"jpg": 1_491},
        (f"1{'[0-9]' * 5}.jpg",),
        groups_of_holidays,
        tuple(holidays_archive(name) for name in ("jpg1.tar.gz", "jpg2.tar.gz")),
        (
            Companion(
                "holidays-rotate.yaml",
                "without which images are not turned upright",
                tuple(f"{MULTIGRAIN}/{branch}/{ROTATION}" for branch in MULTIGRAIN_VERSIONS),
            ),
        ),
    ),
    "ukbench": Benchmark(
        {"full": 10_200},
        (f"ukbench{'[0-9]' * 5}.jpg",),
        partial(numbered, {"full": ("ukbench{:05d}.jpg", 10_200)}),
        (
            Archive(
                ("https://archive.org/download/ukbench/ukbench.zip",),
                partial(images_to, "full", out_of="full"),
                ("full",),
            ),
        ),
    ),
    "copydays": Benchmark(
        {"original": 157, "strong": 229} | dict.fromkeys((*CROPS, *QUALITIES), 157),
        (f"{'[0-9]' * 6}.jpg",),
        levels_of_copydays,
        (
            copydays_archive(
                "original",
                partial(images_to, "original"),
                ("original",),
                "8b85b7914fd0145bc258bde3440f6a622243ca91ee085fe2025ce7bdeb0bfb8e",
            ),
            copydays_archive(
                "strong",
                partial(images_to, "strong"),
                ("strong",),
                "7852c64aa4a37e8329ce08159fc947c16f09c66737db0a2479a90fc9ae40760c",
            ),
            copydays_archive("crop", partial(levels_to, "crops"), CROPS),
            copydays_archive("jpeg", partial(levels_to, "jpegqual"), QUALITIES),
        ),
    ),
    "roxford5k": revisited("roxford5k", 4_993, buildings_archive("oxbuildings/oxbuild_images-v1.tgz")),
    "rparis6k": revisited(
        "rparis6k",
        6_322,
        *(buildings_archive(f"parisbuildings/paris_{i}-v1.tgz", BROKEN_IN_PARIS) for i in (1, 2)),
    ),
    "disc21": Benchmark(
        {"queries": 50_000, "references": 1_000_000, "train": 1_000_000},
        tuple(f"{letter}{'[0-9]' * digits}.jpg" for letter, digits in (("q", 5), ("r", 6), ("t", 6))),
        companions=(Companion("*ground*truth*.csv", "which says the answers"),),
        details=partial(
            numbered,
            {
                "queries": ("Q{:05d}.jpg", 50_000),
                "references": ("R{:06d}.jpg", 1_000_000),
                "train": ("T{:06d}.jpg", 1_000_000),
            },
        ),
        by_hand="accept the terms at https://ai.meta.com/datasets/disc21-dataset/, then put the development queries in queries/, the "
        "reference images in references/, the training images in train/ and dev_queries_groundtruth.csv beside them, below",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetches a set, or checks sets; returns 0 where nothing is missing or unexpected, else 1."""
    parser = argparse.ArgumentParser(prog="python -m mgkit.benchmarks", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, number, purpose in (
        ("fetch", "+", "download, verify and extract what is missing"),
        ("check", "*", "say what is missing or unexpected; without names, in all sets that are there"),
    ):
        each = commands.add_parser(command, help=purpose, description=purpose)
        each.add_argument("names", nargs=number, metavar="NAME", help=", ".join(BENCHMARKS))
        each.add_argument("--root", default="data", help="the folder above the sets' folders (default: data)")
        each.add_argument("--hashes", action="store_true", help="compare files with their recorded hashes")
    given = parser.parse_args(arguments)
    root = find_path(given.root)
    names = given.names or names_below(root)
    if not names:
        print(f"{root} holds none of {', '.join(BENCHMARKS)}", file=sys.stderr)
    failed = not names
    for name in names:
        try:
            if given.command == "fetch":
                fetch_benchmark(name, root)
            report = examine(root, name, hashes=given.hashes)
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            failed = True
            continue
        print(report)
        failed = failed or bool(report.findings)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
