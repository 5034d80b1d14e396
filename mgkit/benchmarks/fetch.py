"""Fetch published benchmarks, and check them for missing and unexpected files."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch, translate
from pathlib import Path, PurePosixPath

from mgkit.benchmarks.archives import extract, is_extracted, recorded_hashes
from mgkit.benchmarks.find import BENCHMARKS
from mgkit.benchmarks.published import Benchmark, Images, abbreviated, server_name
from mgkit.machine.download import TIMEOUT, WAITS, DownloadError, fetch, file_hash
from mgkit.machine.progress import progress

DOWNLOADS = ".downloads"  # folder of the archives below root; may be deleted after extraction
EMBEDDED = "mini.json"  # marks the root of the embedded set, which has fewer images


@dataclass(frozen=True)
class Report:
    """Result of a check: a summary line, and a line per finding."""

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
    """Download and extract the missing files of a benchmark to `root/name`; return that folder.

    name: one of `BENCHMARKS`
    root: folder of the benchmarks; archives are stored in `root/.downloads`, also those downloaded by hand
    addresses: maps file names on the server to addresses that replace the published ones
    timeout, waits: as for `mgkit.machine.download.fetch`
    A folder with the published number of images is complete, as is an extracted archive.

    Raises ValueError for an unknown name, the root of the embedded set, or an unsafe archive; DownloadError
    with instructions for a download by hand, after everything else; OSError for a full disk and the like.
    """
    benchmark, root = benchmark_of(name), Path(root)
    folder, addresses = root / name, addresses or {}
    if (root / EMBEDDED).exists():
        raise ValueError(f"{root} holds the embedded set ({EMBEDDED}): choose another root for {name}")
    if not benchmark.archives:
        raise DownloadError(f"{name} must be downloaded by hand: {benchmark.by_hand} {folder}")
    errors, filled = [], filled_folders(benchmark, folder)
    for archive in benchmark.archives:
        path = root / DOWNLOADS / archive.file_name
        if filled.issuperset(archive.fills) or is_extracted(path, folder):
            continue
        urls = addresses.get(path.name, archive.urls)
        try:
            fetch_from_any(urls, path, sha256=archive.sha256, timeout=timeout, waits=waits)
        except DownloadError as error:
            errors.append(str(error))
        else:
            extract(path, folder, rename=archive.place)
    for companion in filter(lambda each: each.urls, benchmark.companions):
        urls = addresses.get(server_name(companion.urls), companion.urls)
        try:
            fetch_from_any(urls, folder / companion.path, timeout=timeout, waits=waits)
        except DownloadError as error:
            errors.append(str(error))
    if errors:
        raise DownloadError(f"{name} is incomplete, {'; '.join(errors)}; then run this again")
    return folder


def fetch_from_any(urls: Sequence[str], path: Path, **options) -> Path:
    """Download from the first working address; raise the first address's DownloadError if none works."""
    errors = []
    for url in urls:
        try:
            return fetch(url, path, **options)
        except (DownloadError, ValueError) as error:
            errors.append(str(error))
    others = f" (also tried: {', '.join(urls[1:])})" if len(urls) > 1 else ""
    raise DownloadError(errors[0] + others)


def filled_folders(benchmark: Benchmark, folder: Path) -> set[str]:
    """Return the folders that hold the published number of images; none if an archive's other file lacks."""
    from_archives = [companion.path for companion in benchmark.companions if not companion.urls]
    if not all((folder / path).is_file() for path in from_archives):
        return set()
    images, _ = sort_files(benchmark, folder)
    return {inside for inside, number in benchmark.folders.items() if len(images[inside]) == number}


def examine(root: str | Path, name: str, *, hashes: bool = False) -> Report:
    """Check `root/name` for missing and unexpected files, without decoding images.

    root, name: as for `fetch_benchmark`
    hashes: compare each file with the hashes recorded by fetching
    The embedded set may have fewer images. Raises ValueError for an unknown name only.
    """
    root = Path(root)
    folder = root / name
    benchmark = benchmark_of(name).layout_of(folder)
    published = sum(benchmark.folders.values())
    if not folder.is_dir():
        how = f"run python -m mgkit.benchmarks fetch {name} --root {root}"
        how = how if benchmark.archives else f"{benchmark.by_hand} {folder}"
        return Report(f"{name}: not there", [f"{folder} does not exist: {how}"])
    images, findings = sort_files(benchmark, folder)
    number, embedded = sum(map(len, images.values())), (root / EMBEDDED).exists()
    if not embedded:
        findings += [
            *check_numbers(benchmark, images),
            *check_companions(benchmark, folder),
            *benchmark.details(folder, images),
        ]
    if hashes and not embedded:
        findings += check_hashes(folder)
    of = f" (the embedded set; published are {published:,})" if embedded else f" of {published:,}"
    result = "complete" if not findings else f"{len(findings)} finding{'s' * (len(findings) > 1)}"
    return Report(f"{name}: {number:,}{of} images, {result}", findings)


def names_below(root: Path) -> list[str]:
    """Return the benchmarks with a folder in root."""
    return [name for name in BENCHMARKS if (root / name).is_dir()]


def survey(root: str | Path) -> str:
    """Format `examine` of all benchmarks with a folder in root; empty if there is none."""
    return "\n".join(str(examine(root, name)) for name in names_below(Path(root)))


def benchmark_of(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark {name!r} is unknown; one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def sort_files(benchmark: Benchmark, folder: Path) -> tuple[Images, list[str]]:
    """Return the images of a benchmark by folder, and findings on other files; hidden ones are ignored.

    Each folder is listed once, down to `benchmark.depth`; no file is opened.
    """
    images, unexpected, empty, unreadable = {inside: set() for inside in benchmark.folders}, [], [], []
    known = ("*.sha256", *(companion.path for companion in benchmark.companions))
    fits = re.compile("|".join(map(translate, benchmark.names))).match
    for inside, path, size in walk(benchmark, folder, unreadable):
        name = path.rpartition("/")[2].lower()
        if size is not None and inside and fits(name):
            images[inside].add(path[len(inside) + 1 :].lower())
        elif any(fnmatch(name, pattern) for pattern in benchmark.beside):
            continue
        elif size is None or not any(fnmatch(path, pattern) for pattern in known):
            unexpected.append(path if size is not None else f"{path}/")
            continue
        if not size:
            empty.append(path)
    kinds = {"empty": empty, "not part of the set": unexpected, "cannot be read": unreadable}
    return images, [f"{kind}: {abbreviated(paths)}" for kind, paths in kinds.items() if paths]


def walk(benchmark: Benchmark, folder: Path, unreadable: list[str]) -> Iterator[tuple[str, str, int | None]]:
    """Yield the files of a benchmark, and the folders that are not its own: (of `folders`, path, size).

    The first is "" for what lies above `folders`; the size is None for a folder. Paths are below `folder`.
    """
    paths = (*benchmark.folders, *(companion.path for companion in benchmark.companions))
    above = {str(parent) for path in paths for parent in PurePosixPath(path).parents} - {"."}
    own = {*above, *benchmark.folders}
    pending = [("", above_one, 0) for above_one in sorted({"", *above} - {*benchmark.folders})]
    pending += [(inside, inside, benchmark.depth) for inside in sorted(benchmark.folders)]
    while pending:
        inside, path, depth = pending.pop()
        for name, size in listed(folder / path, unreadable):
            below = f"{path}/{name}" if path else name
            if size is None and depth:
                pending.append((inside, below, depth - 1))
            elif size is not None or below not in own:
                yield inside, below, size


def listed(folder: Path, unreadable: list[str]) -> Iterator[tuple[str, int | None]]:
    """Yield names and sizes in bytes (None: folder, 0: also a broken link); collect unreadable folders."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    size = entry.stat().st_size if entry.is_file() else 0
                    yield entry.name, None if entry.is_dir() else size
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError:
        unreadable.append(str(folder))


def check_numbers(benchmark: Benchmark, images: Images) -> Iterator[str]:
    """Yield findings on folders with no, too few or too many images."""
    empty = [inside for inside in images if not images[inside]]
    if empty:
        total = sum(benchmark.folders[inside] for inside in empty)
        yield f"no images: {abbreviated(f'{inside}/' for inside in empty)} ({total:,} images)"
    for inside, names in images.items():
        if names and len(names) != benchmark.folders[inside]:
            yield f"{inside}/ holds {len(names):,} images, published are {benchmark.folders[inside]:,}"


def check_companions(benchmark: Benchmark, folder: Path) -> Iterator[str]:
    """Yield findings on missing companion files."""
    for companion in benchmark.companions:
        if not any(path.is_file() for path in folder.glob(companion.path)):
            yield f"missing: {companion.path}, {companion.use}"


def check_hashes(folder: Path) -> Iterator[str]:
    """Yield findings on files that differ from their records, or on missing records."""
    records = sorted(folder.rglob("*.sha256"))
    if not records:
        yield "no hashes are recorded, since the files were not fetched by mgkit.benchmarks"
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
            yield f"changed since {record.name}: {abbreviated(changed)}"
        if gone:
            yield f"gone since {record.name}: {abbreviated(gone)}"
