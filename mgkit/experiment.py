"""A run's folder, outputs/<experiment>/<stage>/: config, provenance, metrics.jsonl, results.json, figures."""

import dataclasses
import json
import platform
import shlex
import subprocess
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import yaml
from matplotlib.figure import Figure

from mgkit.config import NetworkConfig, StageConfig, to_yaml
from mgkit.download import file_hash
from mgkit.files import atomic_write, find_path, project_root
from mgkit.hardware import describe, pick_device
from mgkit.mini import make_mini

NOTEBOOKS = {  # stage: the notebook that runs it
    "train": "01_train",
    "finetune_p": "02_finetune_p",
    "whiten": "03_whiten",
    "evaluate_imagenet": "04_evaluate_imagenet",
    "evaluate_retrieval": "05_evaluate_retrieval",
}
PACKAGES = ("mgkit", "torch", "torchvision", "numpy", "pillow")


def data_root(data: str) -> Path:
    """The folder of `data`; `mini` is the embedded set, drawn on first use under data/mini."""
    if data == "mini":
        return make_mini(project_root() / "data" / "mini", progress=True)
    if not data:
        raise ValueError("data is empty: give a folder, or mini for the embedded set")
    return find_path(data)


def is_mini(data: str) -> bool:
    """Whether `data` is the embedded set, where a missing earlier stage costs minutes and is simply run."""
    return data == "mini" or (find_path(data) / "mini.json").is_file()


def stage_folder(experiment: str, stage: str) -> Path:
    """outputs/<experiment>/<stage>/ below the project root."""
    return project_root() / "outputs" / experiment / stage


def missing_stage(path: Path, stage: str, config: StageConfig) -> FileNotFoundError:
    """The error for a file that an earlier stage should have left, with the command that makes it."""
    shared = {"experiment": config.experiment, "data": config.data}
    if isinstance(config, NetworkConfig) and config.backbone:
        shared["backbone"] = config.backbone
    return FileNotFoundError(f"{path} does not exist: make it with `{papermill_command(stage, shared)}`")


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


def read_results(experiment: str, stage: str) -> dict | None:
    """The results.json of a stage, or None if it has not been run."""
    path = stage_folder(experiment, stage) / "results.json"
    return json.loads(path.read_text()) if path.is_file() else None


def add_results(experiment: str, stage: str, values: dict) -> None:
    """Add values to the results.json of a stage that has been run."""
    merged = (read_results(experiment, stage) or {}) | values
    with atomic_write(stage_folder(experiment, stage) / "results.json") as temporary:
        temporary.write_text(json.dumps(merged, indent=1), encoding="utf-8")


def read_metrics(experiment: str, stage: str) -> list[dict]:
    """The lines of a stage's metrics.jsonl."""
    path = stage_folder(experiment, stage) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Run:
    """One run of a stage: opens its folder, and moves an earlier run with another config aside.

    checkpoint: the file that the run starts from, for its provenance; empty where it starts from none.
    """

    def __init__(self, stage: str, config: StageConfig, *, checkpoint: str = ""):
        self.folder = stage_folder(config.experiment, stage)
        self.started = time.perf_counter()
        self.set_aside(config)
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in ("metrics.jsonl", "results.json"):
            (self.folder / stale).unlink(missing_ok=True)
        self.write("config.yaml", to_yaml(config))
        origin = {"command": papermill_command(stage, changed_parameters(config))}
        if checkpoint:
            origin["checkpoint"] = {"file": checkpoint, "sha256": file_hash(Path(checkpoint))}
        self.write("provenance.yaml", yaml.safe_dump(origin | provenance(), sort_keys=False, width=1000))

    def set_aside(self, config: StageConfig) -> None:
        """Rename the folder of an earlier run whose config differs, so that nothing of it is lost."""
        written = self.folder / "config.yaml"
        if not written.is_file() or yaml.safe_load(written.read_text()) == dataclasses.asdict(config):
            return
        number = 1
        while (kept := self.folder.with_name(f"{self.folder.name}.{number}")).exists():
            number += 1
        self.folder.rename(kept)
        print(f"the earlier run with other parameters is kept in {kept}")

    def write(self, name: str, text: str) -> Path:
        """Write a text file of the run, all or nothing."""
        with atomic_write(self.folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return self.folder / name

    def log(self, **metrics) -> None:
        """Append one line to metrics.jsonl."""
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def results(self, values: dict) -> dict:
        """Write results.json, with the seconds since the run began; returns the values."""
        values = values | {"seconds": round(time.perf_counter() - self.started, 1)}
        self.write("results.json", json.dumps(values, indent=1))
        return values

    def figure(self, figure: Figure, name: str) -> Figure:
        """Save a figure as <name>.png beside the results; returns it, for the notebook to show."""
        return save_figure(figure, self.folder / f"{name}.png")


def save_figure(figure: Figure, path: Path) -> Figure:
    """Write the figure as a PNG, 120 dots an inch, and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return figure


def provenance() -> dict:
    """What a result depends on besides its config: code, packages, machine, time."""
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "revision": revision.stdout.strip() or "unknown",
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": describe(pick_device()),
    }


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
