"""The board: each figure printed in the paper beside the measurements of runs; newer figures of others."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from mgkit.machine.files import project_root
from mgkit.machine.records import read_json, read_yaml, shown

PAPER = Path(__file__).with_name("paper_results.yaml")
ELSEWHERE = Path(__file__).with_name("published_elsewhere.yaml")
IMAGENET_VALIDATION = 50_000  # images
RETRIEVAL_SETS = {  # key: (name, number of queries) in the results of notebook 05
    "holidays": ("holidays", 500),
    "ukbench": ("ukbench", 10_200),
    "copydays": ("copydays + 10000 distractors", 229),
}
DISC21_QUERIES = {"disc21": 25_000, "disc21_10k": 4_991}
WHITENED = "GeM, p*, whitened"


@dataclass(frozen=True)
class Measured:
    """A measurement of a run.

    value: in the paper's unit
    images: number of images or queries that it is a mean over
    complete: whether these are the paper's
    folder: of the run
    command: that repeats the run
    checkpoint: SHA-256 of the run's initial checkpoint, empty if none
    """

    value: float
    images: int
    complete: bool
    folder: Path
    command: str
    checkpoint: str


@dataclass(frozen=True)
class Entry:
    """A printed figure: position in the paper (table, row, size in px), measure, recipe, measurement."""

    table: str
    row: str
    size: int
    measure: str
    paper: float
    recipe: str
    measured: Measured | None

    @property
    def difference(self) -> float | None:
        """Measured minus printed value; None without a measurement."""
        return None if self.measured is None else self.measured.value - self.paper


@dataclass(frozen=True)
class Elsewhere:
    """A newer figure of another network, which no run is compared with.

    set: what was measured on
    row, size: network, and size of its images in px; "" if the source does not state it
    measure, value: in per cent
    source: where the figure is stated
    """

    set: str
    row: str
    size: str
    measure: str
    value: float
    source: str


def elsewhere() -> list[Elsewhere]:
    """Return the newer figures of other networks, by set."""
    published = yaml.safe_load(ELSEWHERE.read_text(encoding="utf-8"))
    sources = published["sources"]
    return [Elsewhere(**line | {"source": sources[line["source"]]}) for line in published["figures"]]


def board(outputs: Path | None = None) -> list[Entry]:
    """Return all printed figures, in the paper's order, each with its latest measurement.

    outputs: folder of the runs; None for outputs/ in the project
    A run counts if its experiment has the name given by the figure's recipe. Runs on other images than the
    paper's are marked.
    """
    outputs = project_root() / "outputs" if outputs is None else Path(outputs)
    printed = yaml.safe_load(PAPER.read_text(encoding="utf-8"))
    entries = []
    for line in printed["classification"]:
        for measure, key in (("top-1", "top1"), ("top-5", "top5"), ("p*", "p")):
            if key in line:
                entries.append(entry(line, measure, line[key], classified(outputs, line, key)))
    entries += [entry(line, "p*", line["p"], learned(outputs, line)) for line in printed["pooling_exponents"]]
    for line in printed["retrieval"]:
        entries += [entry(line, name, line[name], retrieved(outputs, line, name)) for name in RETRIEVAL_SETS]
    detection = printed["copy_detection"]
    return entries + [
        entry(line, line["measure"], line["value"], detected(outputs, line)) for line in detection
    ]


def entry(line: dict, measure: str, value: float, found: Iterator[Measured]) -> Entry:
    """Build the entry of a line of paper_results.yaml, with the first measurement found."""
    return Entry(line["table"], line["row"], line["size"], measure, value, line["recipe"], next(found, None))


def classified(outputs: Path, line: dict, key: str) -> Iterator[Measured]:
    """Yield measurements of a line's top1, top5 (%) or p by notebook 04."""
    for run in runs(outputs, line["experiment"], "evaluate_imagenet"):
        for row in run.results["rows"]:
            if all(row[name] == line[name] for name in ("crop", "size", "exponent")):
                images = run.results["images"]
                value = row["p"] if key == "p" else 100 * row[key]
                yield run.measured(value, images, images == IMAGENET_VALIDATION)


def learned(outputs: Path, line: dict) -> Iterator[Measured]:
    """Yield measurements of a line's p* by notebook 02."""
    for run in runs(outputs, line["experiment"], "finetune_p"):
        if line["size"] in run.results["sizes"]:
            images = run.results["val_images"]
            p = run.results["p_star"][run.results["sizes"].index(line["size"])]
            yield run.measured(p, images, images == IMAGENET_VALIDATION)


def retrieved(outputs: Path, line: dict, name: str) -> Iterator[Measured]:
    """Yield measurements of a line's mAP (%) or score with whitened descriptors, by notebook 05."""
    for run in runs(outputs, line["experiment"], "evaluate_retrieval"):
        for row in run.results["rows"]:
            right = row["set"].split(" + ")[0] == name and row["descriptor"] == WHITENED
            if right and run.results["size"] == line["size"]:
                value = row["value"] if row["measure"] == "score" else 100 * row["value"]
                complete = (row["set"], row["queries"]) == RETRIEVAL_SETS[name]
                yield run.measured(value, row["queries"], complete)


def detected(outputs: Path, line: dict) -> Iterator[Measured]:
    """Yield measurements of a line's measure (%) on DISC21 or its 10k subset by notebook 05."""
    wanted = line["set"], line["descriptor"], line["size"]
    for run in runs(outputs, line["experiment"], "evaluate_retrieval"):
        for row in run.results["rows"]:
            values = {row["measure"]: row["value"], **row.get("others", {})}
            found = row["set"], row["descriptor"], run.results.get("size")  # none of given descriptors
            if found == wanted and line["measure"] in values:
                complete = row["queries"] == DISC21_QUERIES[line["set"]]
                yield run.measured(100 * values[line["measure"]], row["queries"], complete)


@dataclass(frozen=True)
class FoundRun:
    """A finished run: folder, results, provenance, and when the results were written (seconds)."""

    folder: Path
    results: dict
    provenance: dict
    written: float

    def measured(self, value: float, images: int, complete: bool) -> Measured:
        checkpoint = self.provenance.get("checkpoint", {}).get("sha256", "")
        return Measured(value, images, complete, self.folder, self.provenance.get("command", ""), checkpoint)


def runs(outputs: Path, experiment: str, stage: str) -> Iterator[FoundRun]:
    """Yield the finished runs of a stage, latest first, from outputs/<experiment>/<stage>/, <stage>.1/, …"""
    folders = [outputs / experiment / stage, *(outputs / experiment).glob(f"{stage}.*")]
    found = [one for one in map(sound_run, folders) if one]
    yield from sorted(found, key=lambda run: run.written, reverse=True)


def sound_run(folder: Path) -> FoundRun | None:
    """As `read_run`; a run with damaged files is left out, said in a line."""
    try:
        return read_run(folder)
    except ValueError as error:
        print(f"{error}: the run is left out")
        return None


def read_run(folder: Path) -> FoundRun | None:
    """Read the results and the provenance of one and the same run; None if the folder has no results."""
    results, origin = folder / "results.json", folder / "provenance.yaml"
    for _ in range(10):  # again where the folder has been renamed in between, and is another run's now
        try:
            identity, written = folder.stat().st_ino, results.stat().st_mtime
            found = FoundRun(
                folder, read_record(results), read_record(origin) if origin.is_file() else {}, written
            )
            if folder.stat().st_ino == identity:
                return found
        except (FileNotFoundError, NotADirectoryError):
            return None


def read_record(path: Path) -> dict:
    """The values of a JSON or YAML file; ValueError, naming the file, for a damaged one."""
    values = read_json(path) if path.suffix == ".json" else read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged, it holds {shown(values)}")
    return values
