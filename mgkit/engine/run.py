"""A run's folder, outputs/<experiment>/<stage>/: config, provenance, metrics.jsonl, results.json, figures."""

import dataclasses
import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import yaml
from matplotlib.figure import Figure

from mgkit.config import StageConfig, different, to_yaml
from mgkit.data.images import ImageList, list_hash
from mgkit.engine.provenance import provenance
from mgkit.machine.download import file_hash
from mgkit.machine.files import free_name, project_root, write_text

NOTEBOOKS = {  # stage: the notebook that runs it
    "train": "01_train",
    "finetune_p": "02_finetune_p",
    "whiten": "03_whiten",
    "evaluate_imagenet": "04_evaluate_imagenet",
    "evaluate_retrieval": "05_evaluate_retrieval",
    "search_photos": "06_search_your_photos",
}
# Results first: a run that was killed while it cleared away an earlier one is not to look like a finished one.
LEFT_BY_A_RUN = (
    "results.json", "metrics.jsonl", "steps.jsonl", "provenance*.yaml", "*.png", "*.csv", "report.html",
)  # fmt: skip


def stage_folder(experiment: str, stage: str) -> Path:
    """outputs/<experiment>/<stage>/ below the project root."""
    return project_root() / "outputs" / experiment / stage


def papermill_command(stage: str, parameters: dict) -> str:
    """The command that runs a stage headless with these parameters."""
    copy = f"outputs/{parameters['experiment']}-{NOTEBOOKS[stage]}.ipynb"
    options = [word for name, value in parameters.items() for word in ("-p", name, as_text(value))]
    return shlex.join(["papermill", f"notebooks/{NOTEBOOKS[stage]}.ipynb", copy, *options])


def as_text(value: object) -> str:
    """A parameter's value as papermill's -p and `config.make` read it."""
    return yaml.safe_dump(value, default_flow_style=True).strip() if isinstance(value, list) else str(value)


def changed_parameters(config: StageConfig) -> dict:
    """The experiment and data of a config, and whatever else is not at its default."""
    defaults = dataclasses.asdict(type(config)())
    values = dataclasses.asdict(config)
    return {
        key: value for key, value in values.items() if key in ("experiment", "data") or value != defaults[key]
    }


def read_config(experiment: str, stage: str) -> dict | None:
    """The parameters of a stage's run, from its config.yaml; None if there is none."""
    path = stage_folder(experiment, stage) / "config.yaml"
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else None


def read_results(experiment: str, stage: str) -> dict | None:
    """The results.json of a stage, or None if it has not been run."""
    path = stage_folder(experiment, stage) / "results.json"
    return json.loads(path.read_text()) if path.is_file() else None


def add_results(experiment: str, stage: str, values: dict) -> None:
    """Add values to the results.json of a stage that has been run."""
    merged = (read_results(experiment, stage) or {}) | values
    write_text(stage_folder(experiment, stage) / "results.json", json.dumps(merged, indent=1))


def read_metrics(experiment: str, stage: str) -> list[dict]:
    """The lines of a stage's metrics.jsonl, one an epoch; none where it has not been run."""
    return json_lines(stage_folder(experiment, stage) / "metrics.jsonl")


def read_steps(experiment: str, stage: str) -> list[dict]:
    """The lines of a stage's steps.jsonl, one every few optimizer steps; none where it has not been run."""
    return json_lines(stage_folder(experiment, stage) / "steps.jsonl")


def runs(experiment: str, stage: str = "train") -> dict[str, list[dict]]:
    """{folder name: lines of its metrics.jsonl} of every run of a stage: `train`, then those set aside, `train.1`, …

    Those that finished no epoch are left out.
    """
    latest = stage_folder(experiment, stage)
    aside = [folder for folder in latest.parent.glob(f"{stage}.*") if folder.suffix[1:].isdecimal()]
    folders = [latest, *sorted(aside, key=lambda folder: int(folder.suffix[1:]))]
    found = {folder.name: json_lines(folder / "metrics.jsonl") for folder in folders}
    return {name: lines for name, lines in found.items() if lines}


def json_lines(path: Path) -> list[dict]:
    """The objects in a file of one a line; none where there is no file. A half-written line, as a kill leaves, is left out."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


class Run:
    """One run of a stage: opens its folder, and moves an earlier run with another config aside.

    checkpoint: the file that the run starts from, for its provenance; empty where it starts from none. images: the lists that
    it works on, for its provenance. fresh: False lets an unfinished run of the same config go on: nothing is moved or removed,
    and the provenance of the new start is written beside the first, as provenance.1.yaml, …. keep: the earlier run is moved
    aside even if it has the same config.

    Raises ValueError if a run is to go on whose config is another.
    """

    def __init__(
        self,
        stage: str,
        config: StageConfig,
        *,
        checkpoint: str = "",
        images: ImageList | Sequence[ImageList] | None = None,
        fresh: bool = True,
        keep: bool = False,
    ):
        self.folder = stage_folder(config.experiment, stage)
        self.started = time.perf_counter()
        origin = {"command": papermill_command(stage, changed_parameters(config))}
        if checkpoint:
            origin["checkpoint"] = {"file": checkpoint, "sha256": file_hash(Path(checkpoint))}
        if images is not None:
            lists = [images] if isinstance(images, ImageList) else images
            origin["data"] = [describe_images(each) for each in lists]
        changed = self.changed(config)
        if fresh:
            self.clear(aside=bool(changed) or keep)
        elif changed:
            raise ValueError(
                f"{self.folder} holds a run with another {', '.join(changed)}: only one of the same config can go on"
            )
        self.write("config.yaml", to_yaml(config))
        name = free_name(self.folder / "provenance.yaml").name
        self.write(name, yaml.safe_dump(origin | provenance(), sort_keys=False, width=1000))

    def changed(self, config: StageConfig) -> list[str]:
        """The parameters that change results and in which the run that the folder holds, if any, differs from `config`."""
        earlier, now = read_config(config.experiment, self.folder.name), dataclasses.asdict(config)
        return [] if earlier is None else different(earlier, now)

    def clear(self, *, aside: bool) -> None:
        """Make room: rename the folder of the earlier run, so that nothing of it is lost, or remove what a run leaves."""
        if aside:
            kept = free_name(self.folder)
            self.folder.rename(kept)
            print(f"the earlier run is kept in {kept} (to go on with it, give the folder its name back)")
        for pattern in LEFT_BY_A_RUN:
            for stale in self.folder.glob(pattern):
                stale.unlink()

    def write(self, name: str, text: str) -> Path:
        """Write a text file of the run, all or nothing."""
        write_text(self.folder / name, text)
        return self.folder / name

    def results(self, values: dict) -> dict:
        """Write results.json, with the seconds since this start of the run; returns the values."""
        values = values | {"seconds": round(time.perf_counter() - self.started, 3)}
        self.write("results.json", json.dumps(values, indent=1))
        return values


def save_figure(figure: Figure, path: Path) -> Figure:
    """Write the figure as a PNG, 120 dots an inch, and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return figure


def describe_images(images: ImageList) -> dict:
    """Which images a run works on: where they are, how many of how many classes, and the hash of their list."""
    return {
        "root": str(images.root),
        "images": len(images),
        "classes": len(images.classes),
        "sha256": list_hash(images),
    }
