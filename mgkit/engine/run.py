"""The folder of a run, outputs/<experiment>/<stage>/: config, provenance, metrics, results and figures.

Functions that read files take a config, of which only the experiment and the stage matter:
`read_results(WhitenConfig(experiment="mini"))` are the results of 03 in the experiment mini.
"""

import dataclasses
import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from mgkit.config import StageConfig, different, to_yaml
from mgkit.data.images import ImageList, list_hash
from mgkit.engine.provenance import provenance
from mgkit.machine.download import file_hash
from mgkit.machine.files import free_name, project_root, write_text
from mgkit.machine.records import read_json, read_yaml, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Results first: a run killed while it removes the files of an earlier one must not look finished.
LEFT_BY_A_RUN = (
    "results.json", "metrics.jsonl", "steps.jsonl", "provenance*.yaml", "*.png", "*.csv", "report.html",
)  # fmt: skip


def experiment_folder(experiment: str) -> Path:
    """outputs/<experiment>/ below the project root."""
    return project_root() / "outputs" / experiment


def stage_folder(config: StageConfig) -> Path:
    """The folder of the config's experiment and stage, outputs/<experiment>/<stage>/."""
    return experiment_folder(config.experiment) / config.stage


def papermill_command(config: StageConfig) -> str:
    """The command that runs a stage with this config, without Jupyter."""
    parameters = changed_parameters(config)
    copy = f"outputs/{config.experiment}-{config.notebook}.ipynb"
    options = [
        word
        for name, value in parameters.items()
        for word in ("-r" if is_converted(value) else "-p", name, as_text(value))
    ]
    return shlex.join(["papermill", f"notebooks/{config.notebook}.ipynb", copy, *options])


def is_converted(value: object) -> bool:
    """Whether papermill's -p makes another type of a text; its -r leaves texts as they are."""
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return value in ("True", "False", "None")
    return True


def as_text(value: object) -> str:
    """The text of a parameter's value, for papermill's -p and `config.make`."""
    return yaml.safe_dump(value, default_flow_style=True).strip() if isinstance(value, list) else str(value)


def changed_parameters(config: StageConfig) -> dict:
    """The experiment, the data, and all parameters that are not at their defaults."""
    defaults = dataclasses.asdict(type(config)())
    values = dataclasses.asdict(config)
    return {
        key: value for key, value in values.items() if key in ("experiment", "data") or value != defaults[key]
    }


def read_config(folder: Path) -> dict | None:
    """The parameters of the run in a folder, from config.yaml; None if there is none."""
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    try:
        values = read_yaml(path)
    except ValueError as error:
        print(f"{error}: the run in {folder} counts as one of another config")
        return {}
    return values if isinstance(values, dict) else {}


def read_results(config: StageConfig) -> dict | None:
    """The content of a stage's results.json; None if the stage has not been run.

    Raises ValueError, naming the file, for a damaged one.
    """
    path = stage_folder(config) / "results.json"
    if not path.is_file():
        return None
    try:
        values = read_json(path)
        if not isinstance(values, dict):
            raise ValueError(f"{path} is damaged, it holds {shown(values)} instead of results")
    except ValueError as error:
        raise ValueError(f"{error}: remove it and run {config.notebook} again") from None
    return values


def add_results(config: StageConfig, values: dict) -> None:
    """Add values to a stage's results.json."""
    merged = (read_results(config) or {}) | values
    write_text(stage_folder(config) / "results.json", json.dumps(merged, indent=1))


def read_metrics(config: StageConfig) -> list[dict]:
    """The lines of a stage's metrics.jsonl, one per epoch; empty if there are none."""
    return json_lines(stage_folder(config) / "metrics.jsonl")


def read_steps(config: StageConfig) -> list[dict]:
    """The lines of a stage's steps.jsonl, one every few optimizer steps; empty if there are none."""
    return json_lines(stage_folder(config) / "steps.jsonl")


def runs(config: StageConfig) -> dict[str, list[dict]]:
    """The metrics of all runs of a stage, {folder name: lines of metrics.jsonl}.

    The latest run comes first, then those set aside: train.1, train.2, … Only runs with a finished epoch
    count.
    """
    latest = stage_folder(config)
    aside = [folder for folder in latest.parent.glob(f"{latest.name}.*") if folder.suffix[1:].isdecimal()]
    folders = [latest, *sorted(aside, key=lambda folder: int(folder.suffix[1:]))]
    found = {folder.name: json_lines(folder / "metrics.jsonl") for folder in folders}
    return {name: lines for name, lines in found.items() if lines}


def json_lines(path: Path) -> list[dict]:
    """Read a file of one JSON object per line; empty if there is no file. Damaged lines are left out."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return [line for line in lines if isinstance(line, dict)]


class Run:
    """One run of a stage. Opens its folder; an earlier run with another config is renamed and kept.

    checkpoint: file that the run starts from, for its provenance; empty for none
    images: image lists that the run works on, for its provenance
    fresh: False resumes an unfinished run of the same config: no file is moved or removed, and the new start
        gets a provenance file of its own, provenance.1.yaml, …
    keep: keep the earlier run even if it has the same config

    Raises ValueError when a run with another config would be resumed.
    """

    def __init__(
        self,
        config: StageConfig,
        *,
        checkpoint: str = "",
        images: ImageList | Sequence[ImageList] | None = None,
        fresh: bool = True,
        keep: bool = False,
    ):
        self.folder = stage_folder(config)
        self.started = time.perf_counter()
        origin = {"command": papermill_command(config)}
        if checkpoint:
            origin["checkpoint"] = {"file": checkpoint, "sha256": file_hash(Path(checkpoint))}
        if images is not None:
            lists = [images] if isinstance(images, ImageList) else images
            origin["data"] = [describe_images(one) for one in lists]
        changed = self.changed(config)
        if fresh:
            self.clear(aside=bool(changed) or keep)
        elif changed:
            raise ValueError(
                f"{self.folder} holds a run with another {', '.join(changed)}: resume it with its own config"
            )
        self.write("config.yaml", to_yaml(config))
        name = free_name(self.folder / "provenance.yaml").name
        self.write(name, yaml.safe_dump(origin | provenance(), sort_keys=False, width=1000))

    def changed(self, config: StageConfig) -> list[str]:
        """The parameters with an effect on results in which the folder's run differs from `config`."""
        earlier, now = read_config(self.folder), dataclasses.asdict(config)
        return [] if earlier is None else different(earlier, now)

    def clear(self, *, aside: bool) -> None:
        """Rename the folder of the earlier run (aside), or remove the files that a run writes."""
        if aside:
            kept = free_name(self.folder)
            self.folder.rename(kept)
            print(f"the earlier run is kept in {kept} (to resume it, rename the folder back)")
        for pattern in LEFT_BY_A_RUN:
            for stale in self.folder.glob(pattern):
                stale.unlink()

    def write(self, name: str, text: str) -> Path:
        """Write a text file in the run's folder, atomically."""
        write_text(self.folder / name, text)
        return self.folder / name

    def results(self, values: dict) -> dict:
        """Write results.json, with the seconds since the run was started; returns the values."""
        values = values | {"seconds": round(time.perf_counter() - self.started, 3)}
        self.write("results.json", json.dumps(values, indent=1))
        return values


def save_figure(figure: "Figure", path: Path) -> "Figure":
    """Write a figure as PNG, at 120 dots per inch, and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return figure


def describe_images(images: ImageList) -> dict:
    """The folder, the numbers of images and classes, and the hash of an image list, for provenance."""
    return {
        "root": str(images.root),
        "images": len(images),
        "classes": len(images.classes),
        "sha256": list_hash(images),
    }
