"""Published benchmarks are fetched, and checked for what is missing."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch, translate
from pathlib import Path, PurePosixPath

from mgkit.benchmarks.archives import extract, is_extracted, recorded_hashes
from mgkit.benchmarks.find import BENCHMARKS
from mgkit.benchmarks.published import Benchmark, Images, some
from mgkit.machine.download import TIMEOUT, WAITS, DownloadError, fetch, file_hash
from mgkit.machine.progress import progress

DOWNLOADS = ".downloads"  # below the root: the archives; once extracted they are not needed any more
EMBEDDED = "mini.json"  # marks the root of the embedded set, which is smaller by design


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
    waits: as for `mgkit.machine.download.fetch`. Archives go to `root/.downloads`; one put there by hand counts as well. Where a folder
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
