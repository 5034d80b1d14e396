"""The board: every figure that the paper prints beside what runs of this kit left under outputs/, measured or not."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import yaml

from mgkit.machine.files import project_root

PAPER = Path(__file__).with_name("paper_results.yaml")
IMAGENET_VALIDATION = 50_000  # images
RETRIEVAL_SETS = {  # the paper's sets: name and queries in 05's results
    "holidays": ("holidays", 500),
    "ukbench": ("ukbench", 10_200),
    "copydays": ("copydays + 10000 distractors", 229),
}
DISC21_QUERIES = 25_000
WHITENED = "GeM, p*, whitened"


@dataclass(frozen=True)
class Measured:
    """What a run measured: the value in the paper's unit, the images or queries it is a mean over, and where it comes from.

    complete: whether these are the paper's. folder: of the run. command: that repeats it. checkpoint: SHA-256, empty where the
    run started from no file.
    """

    value: float
    images: int
    complete: bool
    folder: Path
    command: str
    checkpoint: str


@dataclass(frozen=True)
class Entry:
    """One printed figure: table and row of the paper, size (px), measure, value, the recipe that measures it, and what was measured."""

    table: str
    row: str
    size: int
    measure: str
    paper: float
    recipe: str
    measured: Measured | None

    @property
    def difference(self) -> float | None:
        """Measured less printed; None where nothing was measured."""
        return None if self.measured is None else self.measured.value - self.paper


def board(outputs: Path | None = None) -> list[Entry]:
    """Every printed figure, in the paper's order, with the latest run that measures it.

    outputs: where runs are looked for, the project's outputs/ unless given. A run counts for a figure if its experiment bears the
    name that the figure's recipe gives it; runs on other images than the paper's are marked as such, not left out.
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
    entries += [
        entry(line, "micro-AP", line["value"], detected(outputs, line)) for line in printed["copy_detection"]
    ]
    return entries


def entry(line: dict, measure: str, value: float, found: Iterator[Measured]) -> Entry:
    """The entry of a line of the paper's results, with the first of what was found."""
    return Entry(line["table"], line["row"], line["size"], measure, value, line["recipe"], next(found, None))


def classified(outputs: Path, line: dict, key: str) -> Iterator[Measured]:
    """04's measurements of a line's top1, top5 (per cent) or p."""
    for run in runs(outputs, line["experiment"], "evaluate_imagenet"):
        for row in run.results["rows"]:
            if all(row[name] == line[name] for name in ("crop", "size", "exponent")):
                images = run.results["images"]
                value = row["p"] if key == "p" else 100 * row[key]
                yield run.measured(value, images, images == IMAGENET_VALIDATION)


def learned(outputs: Path, line: dict) -> Iterator[Measured]:
    """02's measurements of a line's p*."""
    for run in runs(outputs, line["experiment"], "finetune_p"):
        if line["size"] in run.results["sizes"]:
            images = run.results["val_images"]
            p = run.results["p_star"][run.results["sizes"].index(line["size"])]
            yield run.measured(p, images, images == IMAGENET_VALIDATION)


def retrieved(outputs: Path, line: dict, name: str) -> Iterator[Measured]:
    """05's measurements of a line's mAP (per cent) or score, with whitened descriptors."""
    for run in runs(outputs, line["experiment"], "evaluate_retrieval"):
        for row in run.results["rows"]:
            right = row["set"].split(" + ")[0] == name and row["descriptor"] == WHITENED
            if right and run.results["size"] == line["size"]:
                value = row["value"] if row["measure"] == "score" else 100 * row["value"]
                yield run.measured(
                    value, row["queries"], (row["set"], row["queries"]) == RETRIEVAL_SETS[name]
                )


def detected(outputs: Path, line: dict) -> Iterator[Measured]:
    """05's measurements of a line's micro-AP (per cent) on DISC21."""
    for run in runs(outputs, line["experiment"], "evaluate_retrieval"):
        for row in run.results["rows"]:
            if (row["set"], row["descriptor"], run.results["size"]) == (
                "disc21",
                line["descriptor"],
                line["size"],
            ):
                yield run.measured(100 * row["value"], row["queries"], row["queries"] == DISC21_QUERIES)


@dataclass(frozen=True)
class FoundRun:
    """The folder of a finished run, its results and its provenance."""

    folder: Path
    results: dict
    provenance: dict

    def measured(self, value: float, images: int, complete: bool) -> Measured:
        checkpoint = self.provenance.get("checkpoint", {}).get("sha256", "")
        return Measured(value, images, complete, self.folder, self.provenance.get("command", ""), checkpoint)


def runs(outputs: Path, experiment: str, stage: str) -> Iterator[FoundRun]:
    """The finished runs of a stage, the latest first: outputs/<experiment>/<stage>/ and what was set aside, <stage>.1, …"""
    folders = [outputs / experiment / stage, *(outputs / experiment).glob(f"{stage}.*")]
    done = [folder for folder in folders if (folder / "results.json").is_file()]
    for folder in sorted(done, key=lambda folder: (folder / "results.json").stat().st_mtime, reverse=True):
        origin = folder / "provenance.yaml"
        provenance = yaml.safe_load(origin.read_text(encoding="utf-8")) if origin.is_file() else {}
        yield FoundRun(folder, json.loads((folder / "results.json").read_text(encoding="utf-8")), provenance)


def table(entries: list[Entry]) -> str:
    """The board as text: a line for each row and size of the paper's tables, then the runs that the measurements come from."""
    lines, sources = [], {}
    for name, of_table in groupby(entries, key=lambda entry: entry.table):
        lines += [f"{name}", f"{'':50}{'measure':30}{'paper':>20}{'measured':>21}{'difference':>21}"]
        for (row, size), group in groupby(of_table, key=lambda entry: (entry.row, entry.size)):
            group = list(group)
            columns = [" / ".join(shown) for shown in zip(*map(cells, group), strict=True)]
            if all(each.measured is None for each in group):
                columns[2:] = ["not measured", ""]
            label = f"{row}, {size} px"
            line = f"{label:50}{columns[0]:30}{columns[1]:>20}{columns[2]:>21}{columns[3]:>21}"
            lines.append((line + marks(group, sources)).rstrip())
        lines.append("")
    if not sources:
        return "\n".join(
            [*lines, "Nothing of this has been measured yet: notebooks/recipes/ has the commands."]
        )
    return "\n".join([*lines, *(f"[{number}] {source}" for source, number in sources.items())])


def cells(entry: Entry) -> tuple[str, str, str, str]:
    """An entry's measure, printed value, measured value and difference, as text; - where it was not measured."""
    digits = 2 if entry.measure == "ukbench" else 1
    paper = f"{entry.paper:.{digits}f}"
    if entry.measured is None:
        return entry.measure, paper, "-", "-"
    return entry.measure, paper, f"{entry.measured.value:.{digits}f}", f"{entry.difference:+.{digits}f}"


def marks(group: list[Entry], sources: dict[str, int]) -> str:
    """References to the runs of a line, which `sources` numbers, and how many images they are over if not the paper's."""
    text = ""
    for measured in dict.fromkeys(entry.measured for entry in group if entry.measured):
        checkpoint = f"checkpoint {measured.checkpoint[:12]}" if measured.checkpoint else "no checkpoint file"
        source = f"{measured.command}\n    {checkpoint}, {measured.folder}"
        number = sources.setdefault(source, len(sources) + 1)
        if f"[{number}]" not in text:
            text += f" [{number}]"
        if not measured.complete and "images" not in text:
            text += f" on {measured.images} images only, not the paper's"
    return text


if __name__ == "__main__":
    print(table(board()))
