"""outputs/reference/: a run of `make demo` in git, which other runs are compared with.

Each measure is stored with its tolerance. Precision, threads and library versions change the rounding, and so
the course of a training: measures of trained networks may differ as much as between seeds, others hardly, and
counts not at all. The levels of Copydays are left out, since each has only 40 queries."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import nbformat
import numpy as np
from PIL import Image

from mgkit.claims.run import Outcome
from mgkit.config import FinetunePConfig, PhotosConfig, RetrievalConfig, WhitenConfig
from mgkit.engine.provenance import provenance
from mgkit.engine.run import experiment_folder, latest_results
from mgkit.machine.files import project_root, write_text

# Tolerances, in the unit of each measure: shares, except UKBench's score (of 4), p* and the number of groups.
TRAINED = {"top-1": 0.15, "holidays": 0.15, "ukbench": 0.3, "copydays": 0.25, "copies": 0.25, "p*": 1.0}
PUBLISHED = {"groups": 2, "copies found": 0.1}  # of a published network on photographs: likewise
EXACT = 0.0

FIGURES = (
    "start_here/photographs", "train/curves", "train/figure_5", "finetune_p/p_star", "finetune_p/p_slider",
    "whiten/spectrum",
    "evaluate_imagenet/accuracy", "evaluate_retrieval/retrieval", "evaluate_retrieval/figure_4",
    "evaluate_retrieval/neighbours_holidays", "evaluate_retrieval/matching_regions",
    "search_photos/near_duplicates",
)  # fmt: skip
REAL = "real"  # folder of the run of `make real` in outputs/reference/
CLAIMS = "claims"  # of a run of 07 on photographs
OTHERS = (REAL, "fixres", CLAIMS)  # runs that are not of the demo
LARGE_PNG, JPEG_QUALITY = 120_000, 85  # bytes from which on a figure is stored as JPEG; its quality
WIDGET = "application/vnd.jupyter.widget-view+json"
MACHINE_PATH = re.compile(  # an absolute path; in JSON, a line break before it is two characters
    r"(?:(?<![\w.-])|(?<=\\[nrt]))/"
    r"(?:home|root|tmp|work|usr|var|opt|srv|mnt|media|scratch|Users|private)/[\w.-]"
)


@dataclass(frozen=True)
class Measure:
    """A value and its tolerance."""

    value: float
    tolerance: float


@dataclass(frozen=True)
class Comparison:
    """A measure of the reference and of the current run; None where it is missing."""

    name: str
    reference: Measure | None
    now: Measure | None

    @property
    def within(self) -> bool:
        if self.reference is None or self.now is None:
            return False
        return abs(self.now.value - self.reference.value) <= self.reference.tolerance + 1e-9


def folder() -> Path:
    return project_root() / "outputs" / "reference"


def measures(experiment: str, tried: Outcome) -> dict[str, Measure]:
    """All measures of a run, by name: from results.json of its stages, and what 07 has tried."""
    found = {}
    for one in tried.trained:
        for name, values in one.measured.arrays().items():
            found[f"07, {one.training.name}: {name}"] = Measure(float(np.nanmean(values)), TRAINED[name])
    search = latest_results(FinetunePConfig(experiment=experiment))
    for size, p in zip(search["sizes"], search["p_star"], strict=True):
        found[f"p* at {size} px"] = Measure(p, TRAINED["p*"])
    for size, top1 in zip(search["sizes"], search["top1_at_p_star"], strict=True):
        found[f"top-1 with p* at {size} px"] = Measure(top1, TRAINED["top-1"])
    for row in latest_results(RetrievalConfig(experiment=experiment))["rows"]:
        if set_name(row["set"]) in TRAINED:
            of_set = TRAINED[set_name(row["set"])]
            found[f"{row['set']}, {row['descriptor']}"] = Measure(row["value"], of_set)
    whitening = latest_results(WhitenConfig(experiment=experiment))
    found["images whose class folding keeps, share"] = Measure(whitening["same_class"], EXACT)
    found["images that whitening was fitted to"] = Measure(whitening["images"], EXACT)
    found["validation images"] = Measure(whitening["val_images"], EXACT)
    photos = latest_results(PhotosConfig(experiment=experiment))
    found |= {f"06: {name}": Measure(photos[name], EXACT) for name in ("pictures", "readable", "left_out")}
    found["06: groups of near-duplicates"] = Measure(photos["groups"], PUBLISHED["groups"])
    for change, share in photos["same_file"]["copies_found"].items():
        found[f"06: copies found, {change}"] = Measure(share, PUBLISHED["copies found"])
    return found


def set_name(name: str) -> str:
    """The name without distractors: `copydays + 300 distractors` -> `copydays`."""
    return name.split(" + ")[0]


def compare(reference: Mapping[str, Measure], now: Mapping[str, Measure]) -> list[Comparison]:
    """Compare all measures of either, in the order of the reference, then the new ones."""
    names = dict.fromkeys([*reference, *now])
    return [Comparison(name, reference.get(name), now.get(name)) for name in names]


def read_metrics(path: Path) -> dict[str, Measure]:
    """The measures of a metrics.json. Raises FileNotFoundError, and ValueError for a damaged file."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["measures"]
        return {name: Measure(**values) for name, values in stored.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): `git checkout` it") from None


def report(compared: Sequence[Comparison], *, where: str = "outputs/reference") -> str:
    """One line if all measures are within their tolerances; else a table of those that are not.

    where: folder of the reference, as it is named in the text
    """
    outside = [each for each in compared if not each.within]
    if not outside:
        return f"All {len(compared)} measures are within their tolerances of {where}/metrics.json."
    width, count = max(len(each.name) for each in outside), f"{len(outside)} of {len(compared)} measures"
    lines = [
        f"{count} differ from {where}/metrics.json by more than their tolerances:",
        f"{'':{width}}  {'reference':>9}  {'now':>9}  tolerance",
    ]
    for each in outside:
        allowed = f"{each.reference.tolerance:9.3g}" if each.reference else "        -"
        lines.append(f"{each.name:{width}}  {shown(each.reference)}  {shown(each.now)}  {allowed}")
    return "\n".join(lines)


def shown(measure: Measure | None) -> str:
    return f"{'-':>9}" if measure is None else f"{measure.value:9.3f}"


def compare_with_reference(now: Mapping[str, Measure], *, below: str = "") -> str:
    """The report on the comparison with the committed run; one line if that is missing or damaged.

    below: folder of the run below outputs/reference; empty for that of `make demo`
    """
    path, where = folder() / below / "metrics.json", "/".join(filter(None, ["outputs/reference", below]))
    try:
        return report(compare(read_metrics(path), now), where=where)
    except FileNotFoundError:
        return f"{path} is missing: nothing to compare with; `git checkout {where}` restores it"
    except ValueError as error:
        return str(error)


# --- Writing


def write_reference(experiment: str, now: Mapping[str, Measure]) -> Path:
    """Replace outputs/reference/ by a run: metrics.json, claims.txt, figures, notebooks; returns its path.

    Other runs in it stay. Raises ValueError if a notebook contains a path of the machine,
    FileNotFoundError if a figure is missing; the earlier reference is then kept.
    """
    with replaced(folder(), keep=OTHERS) as written:
        write_files(experiment, now, written)
    return folder()


@contextmanager
def replaced(target: Path, *, keep: Sequence[str] = ()) -> Iterator[Path]:
    """Yield an empty folder that replaces `target` after the block; an error keeps what was there.

    keep: names in target that stay
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".reference.") as temporary:
        written = Path(temporary) / "reference"
        written.mkdir()
        yield written
        for name in keep:
            if (target / name).exists():
                (target / name).rename(written / name)
        shutil.rmtree(target, ignore_errors=True)
        written.rename(target)


def write_files(experiment: str, now: Mapping[str, Measure], target: Path) -> None:
    """Write the files of the reference to a new folder."""
    write_metrics(target / "metrics.json", now)
    write_text(target / "claims.txt", (experiment_folder(experiment) / "claims.txt").read_text("utf-8"))
    for name in FIGURES:
        save_small(
            Image.open(figure_path(experiment, name), formats=["PNG"]), target / "figures" / Path(name).name
        )
    for path in sorted((experiment_folder(experiment) / "notebooks").glob("*.ipynb")):
        write_text(target / "notebooks" / path.name, without_machine(nbformat.read(path, as_version=4)))


def write_metrics(path: Path, now: Mapping[str, Measure]) -> None:
    """Write the measures with the versions and machine that they were made with."""
    made = provenance()
    content = {
        "made": {key: made[key] for key in ("revision", "packages", "python", "machine")},
        "measures": {name: asdict(measure) for name, measure in now.items()},
    }
    write_text(path, json.dumps(content, indent=1) + "\n")


def figure_path(experiment: str, name: str) -> Path:
    return experiment_folder(experiment) / f"{name}.png"


def without_machine(notebook: nbformat.NotebookNode) -> str:
    """The notebook as JSON without metadata of the run. Raises ValueError for a path of the machine."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            # A widget without its state would be shown as an error; its text remains.
            output.get("data", {}).pop(WIDGET, None)
    root = str(project_root())
    text = nbformat.writes(notebook).replace(f"{root}/", "").replace(root, ".") + "\n"
    left = MACHINE_PATH.search(text)
    if left:
        where = text[left.start() : left.end() + 60]
        raise ValueError(f"an executed notebook holds a path of this machine: {where!r}")
    return text


def save_small(picture: Image.Image, path: Path) -> Path:
    """Save as <path>.png, or as <path>.jpg if that were large; returns the file's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture, png, jpg = picture.convert("RGB"), path.with_suffix(".png"), path.with_suffix(".jpg")
    picture.save(png, optimize=True)
    if png.stat().st_size <= LARGE_PNG:
        return png
    png.unlink()
    picture.save(jpg, quality=JPEG_QUALITY, optimize=True)
    return jpg
