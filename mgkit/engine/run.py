"""The folder of a run, outputs/<experiment>/<stage>/: config, provenance, metrics, results and figures.

A run with another config renames the folder to <stage>.1, <stage>.2, …, also while notebooks still read it or
save figures there. So a run's own files are found by its config: `read_results(config)`, `save_figure`. Of
`stage_folder`, `latest_results` and `runs` only the config's experiment and stage matter:
`latest_results(WhitenConfig(experiment="mini"))` are those of the latest 03 in the experiment mini.
"""

import dataclasses
import io
import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import yaml

from mgkit.config import StageConfig, different, to_yaml
from mgkit.data.images import ImageList, list_hash
from mgkit.engine.provenance import provenance
from mgkit.machine.download import file_hash
from mgkit.machine.files import (
    atomic_write,
    check_writable,
    exclusive,
    free_name,
    project_root,
    remove_partial,
    write_text,
)  # fmt: skip
from mgkit.machine.records import read_json, read_yaml, shown
from mgkit.machine.timing import timed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = TypeVar("Found")
KEPT: dict[tuple[str, str], int] = {}  # the inodes of the folders that this process keeps to
SECONDS_TO_APPEAR = 90  # of what another machine wrote; NFS may know of it a minute later
MOST_RENAMED = 10  # times in a row that a folder is renamed while it is read; some file systems change inodes

# Results first: a run killed while it removes the files of an earlier one must not look finished.
LEFT_BY_A_RUN = (
    "results.json", "metrics.jsonl", "steps.jsonl", "provenance*.yaml", "*.png", "*.csv", "*.sha256",
    "report.html",
)  # fmt: skip


def experiment_folder(experiment: str) -> Path:
    """outputs/<experiment>/ below the project root."""
    return project_root() / "outputs" / experiment


def stage_folder(config: StageConfig) -> Path:
    """The folder of the latest run of an experiment's stage, outputs/<experiment>/<stage>/."""
    return experiment_folder(config.experiment) / config.stage


def folders(config: StageConfig) -> list[Path]:
    """The folders of all runs of a stage: the latest one, whether it is there or not, then <stage>.1, …"""
    latest = stage_folder(config)
    aside = [folder for folder in latest.parent.glob(f"{latest.name}.*") if folder.suffix[1:].isdecimal()]
    return [latest, *sorted(aside, key=lambda folder: int(folder.suffix[1:]))]


def run_folder(config: StageConfig) -> Path | None:
    """The folder of the latest run with this config, under its present name; None if there is none.

    In a process that has run or joined the stage with this config, the folder of that run, see `keep_to_run`.
    """

    def agrees(folder: Path) -> bool:
        written = read_config(folder)
        return written is not None and not different(written, dataclasses.asdict(config))

    present = identities(config)
    kept = KEPT.get(key_of(config))
    latest, *aside = every = folders(config)
    own = next((folder for folder in every if present.get(folder.name, 0) == kept), None)
    if own is not None and agrees(own):
        return own
    if agrees(latest):
        return latest
    return max(
        filter(agrees, reversed(aside)),  # the highest number first: time stamps may be equal
        key=lambda folder: (folder / "config.yaml").stat().st_mtime_ns,
        default=None,
    )


def keep_to_run(config: StageConfig) -> None:
    """Have this process read and draw the present run, also when a newer one has the same config."""
    folder = run_folder(config)
    if folder is not None:
        KEPT[key_of(config)] = folder.stat().st_ino


def leave_run(config: StageConfig) -> None:
    """End `keep_to_run`."""
    KEPT.pop(key_of(config), None)


def key_of(config: StageConfig) -> tuple[str, str]:
    return str(stage_folder(config).absolute()), to_yaml(config)


def existing_folder(config: StageConfig) -> Path:
    """`run_folder`, or FileNotFoundError."""
    folder = run_folder(config)
    if folder is None:
        raise FileNotFoundError(
            f"{stage_folder(config)} is not of the run with these parameters, nor is a folder beside it: run "
            "the stage again"
        )
    return folder


@contextmanager
def renaming(config: StageConfig) -> Iterator[None]:
    """No other process renames folders of the experiment within the block."""
    with exclusive(experiment_folder(config.experiment) / ".renaming.lock", purpose=""):
        yield


@contextmanager
def opened_folder(config: StageConfig) -> Iterator[Path]:
    """Yield the folder of the run with this config, which is not renamed within the block.

    Raises FileNotFoundError where there is no such run.
    """
    with renaming(config):
        yield existing_folder(config)


def unmoved(config: StageConfig, read: Callable[[], Found]) -> Found:
    """What `read` returns; it is called again if a run was renamed meanwhile."""
    for _ in range(MOST_RENAMED):
        before, found = identities(config), read()
        if identities(config) == before:
            break
    return found


def identities(config: StageConfig) -> dict[str, int]:
    """{name: inode} of the folders of a stage's runs."""
    found = {}
    for folder in folders(config):
        with suppress(FileNotFoundError):
            found[folder.name] = folder.stat().st_ino
    return found


def papermill_command(config: StageConfig) -> str:
    """The command that runs a stage with this config, without Jupyter."""
    parameters = changed_parameters(config)
    if config.command:
        options = [word for name, value in parameters.items() for word in (f"--{name}", as_text(value))]
        return shlex.join(["python", "-m", config.command, *options])
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
    try:
        values = read_yaml(folder / "config.yaml")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        print(f"{error}: the run in {folder} counts as one of another config")
        return {}
    return values if isinstance(values, dict) else {}


def results_in(folder: Path | None, notebook: str) -> dict | None:
    """The content of results.json in a folder; None for a run of the notebook that has not finished.

    Raises ValueError, naming the file, for a damaged one.
    """
    if folder is None:
        return None
    path = folder / "results.json"
    try:
        values = read_json(path)
        if not isinstance(values, dict):
            raise ValueError(f"{path} is damaged, it holds {shown(values)} instead of results")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"{error}: remove it and run {notebook} again") from None
    return values


def read_results(config: StageConfig) -> dict | None:
    """The results of the run with this config; None if it has not been run, or not finished.

    Raises ValueError, naming the file, for damaged ones.
    """
    return unmoved(config, lambda: results_in(run_folder(config), config.notebook))


def results_of_machines(config: StageConfig) -> dict:
    """`read_results` of a run that has finished, maybe on another machine, whose files may appear late.

    Raises FileNotFoundError if they do not within SECONDS_TO_APPEAR.
    """
    began = time.monotonic()
    while (results := read_results(config)) is None:
        if config.nnodes == 1 or time.monotonic() - began > SECONDS_TO_APPEAR:
            folder = experiment_folder(config.experiment).resolve()
            raise FileNotFoundError(
                f"{folder} lacks the results of {config.notebook}, which has ended: all machines must work "
                "in one and the same folder, and nothing else may remove its files"
            )
        time.sleep(0.5)
    return results


def latest_results(config: StageConfig) -> dict | None:
    """The results of the latest run of the config's experiment and stage, with whatever parameters.

    Raises ValueError, naming the file, for damaged ones.
    """
    return results_in(stage_folder(config), config.notebook)


def add_results(config: StageConfig, values: dict) -> None:
    """Add values to results.json of the run with this config, unless the run is being repeated.

    Of several machines, the first one does.
    """
    if config.node_rank:
        return
    with opened_folder(config) as folder:
        results = results_in(folder, config.notebook)
        if results is not None:
            write_text(folder / "results.json", json.dumps(results | values, indent=1))


def read_metrics(config: StageConfig) -> list[dict]:
    """The lines of metrics.jsonl of the run with this config, one per epoch; empty if there are none."""
    return lines_of(config, "metrics.jsonl")


def read_steps(config: StageConfig) -> list[dict]:
    """The lines of its steps.jsonl, one every few optimizer steps; empty if there are none."""
    return lines_of(config, "steps.jsonl")


def lines_of(config: StageConfig, name: str) -> list[dict]:
    """The lines of a file of the run with this config; empty if there are none."""

    def read() -> list[dict]:
        folder = run_folder(config)
        return json_lines(folder / name) if folder else []

    return unmoved(config, read)


def runs(config: StageConfig) -> dict[str, list[dict]]:
    """The metrics of all runs of a stage, {folder name: lines of metrics.jsonl}.

    The latest run comes first, then those set aside: train.1, train.2, … Only runs with a finished epoch
    count.
    """

    def read() -> dict[str, list[dict]]:
        return {folder.name: json_lines(folder / "metrics.jsonl") for folder in folders(config)}

    return {name: lines for name, lines in unmoved(config, read).items() if lines}


def json_lines(path: Path) -> list[dict]:
    """Read a file of one JSON object per line; empty if there is no file. Damaged lines are left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return [line for line in lines if isinstance(line, dict)]


class Run:
    """One run of a stage. Opens its folder; an earlier run with another config is renamed and kept.

    checkpoint: file that the run starts from, for its provenance; empty for none
    sha256: of the checkpoint as it was loaded; empty to read the file again
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
        sha256: str = "",
        images: ImageList | Sequence[ImageList] | None = None,
        fresh: bool = True,
        keep: bool = False,
    ):
        self.config, self.started = config, time.perf_counter()
        origin = {"command": papermill_command(config)}
        if checkpoint:
            origin["checkpoint"] = {"file": checkpoint, "sha256": sha256 or file_hash(Path(checkpoint))}
        if images is not None:
            lists = [images] if isinstance(images, ImageList) else images
            origin["data"] = [describe_images(one) for one in lists]
        origin |= provenance()
        with renaming(config):  # no notebook is saving a figure there
            remove_partial(stage_folder(config))
            self.open(stage_folder(config), fresh=fresh, keep=keep)
        name = free_name(self.folder / "provenance.yaml").name
        self.write(name, yaml.safe_dump(origin, sort_keys=False, width=1000))

    @property
    def folder(self) -> Path:
        """The run's folder, under its present name. Raises FileNotFoundError where it was removed."""
        return existing_folder(self.config)

    def open(self, folder: Path, *, fresh: bool, keep: bool) -> None:
        """Make the stage's folder that of this run, with its config.yaml."""
        written = read_config(folder)
        changed = [] if written is None else different(written, dataclasses.asdict(self.config))
        check_writable(folder / "config.yaml")  # before anything of an earlier run is moved or removed
        if fresh:
            self.clear(folder, aside=bool(changed) or keep)
        elif changed:
            raise ValueError(
                f"{folder} holds a run with another {', '.join(changed)}: resume it with its own config"
            )
        write_text(folder / "config.yaml", to_yaml(self.config))

    def clear(self, folder: Path, *, aside: bool) -> None:
        """Rename the folder of the earlier run (aside), or remove the files that a run writes."""
        if aside:
            kept = free_name(folder)
            folder.rename(kept)
            print(f"the earlier run is kept in {kept} (to resume it, rename the folder back)")
        for pattern in LEFT_BY_A_RUN:
            for stale in folder.glob(pattern):
                stale.unlink()

    def write(self, name: str, text: str) -> Path:
        """Write a text file in the run's folder, atomically."""
        with opened_folder(self.config) as folder:
            write_text(folder / name, text)
        return folder / name

    def results(self, values: dict) -> dict:
        """Write results.json, with the seconds since the run was started; returns the values."""
        values = values | {"seconds": round(time.perf_counter() - self.started, 3)}
        self.write("results.json", json.dumps(values, indent=1))
        return values


@timed("figures")
def save_figure(figure: "Figure", config: StageConfig, name: str) -> "Figure":
    """Write a figure as PNG into the folder of the config's run, at 120 dots per inch, and return it.

    Of several machines, the first one writes.
    """
    if config.node_rank:
        return figure
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120, bbox_inches="tight")
    with opened_folder(config) as folder, atomic_write(folder / name) as temporary:
        temporary.write_bytes(image.getvalue())
    return figure


def describe_images(images: ImageList) -> dict:
    """The folder, the numbers of images and classes, and the hash of an image list, for provenance."""
    return {
        "root": str(images.root),
        "images": len(images),
        "classes": len(images.classes),
        "sha256": list_hash(images),
    }
