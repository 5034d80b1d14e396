"""The results of 06 as one self-contained HTML file, which loads nothing; every name in it is escaped.

Its size is bounded (see sections.py, listing.py and map.py). The csv files beside it are complete.
"""

import base64
import hashlib
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mgkit.engine.feature_store import features_folder
from mgkit.engine.run import opened_folder, stage_folder
from mgkit.machine.files import write_text
from mgkit.machine.printable import shown_name
from mgkit.machine.progress import progress
from mgkit.photos.found import FoundPhotos
from mgkit.photos.report.listing import Listing, script_data
from mgkit.photos.report.sections import could_be_freed, first_upper, sections, shown_of
from mgkit.photos.report.thumbnails import Thumbnails, jpeg_uri

MOST_LEFT_OUT = 500
MOST_BYTES = 19_500_000  # of the file; the map is left out where it would be larger
SECONDS_WITHOUT_BAR = 3.0


def save_report(found: FoundPhotos) -> Path:
    """Write the report atomically into the folder of its run, and return its path.

    Of several machines, the first one writes. Thumbnails and map are kept for the experiment's next report.
    """
    config = found.task.config
    if config.node_rank:
        return stage_folder(config) / "report.html"
    text = report_text(found, features_folder(config.experiment))
    with opened_folder(config) as folder:
        write_text(folder / "report.html", text)
    return folder / "report.html"


def title_of(found: FoundPhotos) -> str:
    """The title of the page; of two folders, how many pictures of the first were looked for."""
    if found.against is None:
        return f"{len(found.readable):,} pictures below {shown_name(found.images.root.name)}"
    return f"{(found.readable < found.against).sum():,} pictures, looked for in another folder"


def folders_of(found: FoundPhotos) -> str:
    """The folder that holds the pictures; of two, which pictures were looked for in which."""
    config = found.task.config
    if found.against is None:
        return shown_name(str(found.images.root))
    return shown_name(f"{'; '.join(config.photos)}, looked for in {'; '.join(config.against)}")


def report_text(found: FoundPhotos, folder: Path) -> str:
    """The report as HTML. folder: where thumbnails and map are kept."""
    parts, listing = sections(found), Listing.of(found, folder)
    thumbnails = Thumbnails(found.images, folder)
    shown = dict.fromkeys([*(i for part in parts for i in part.shown()), *listing.tile_pictures()])
    for i in progress(shown, "thumbnails", unit="pictures", delay=SECONDS_WITHOUT_BAR):
        thumbnails.jpeg(i)
    thumbnails.save()

    style, script = (
        files(__package__).joinpath(f"report.{kind}").read_text("utf-8") for kind in ("css", "js")
    )
    values = {
        "title": title_of(found),
        "facts": facts(found), "how": how(found), "sections": parts,
        "uri": lambda i: jpeg_uri(thumbnails.jpeg(i)), "number": listing.number,
        "style": Markup(style), "style_hash": content_hash(style),
        "script": Markup(script), "script_hash": content_hash(script),
        "names": script_data(listing.names()), "listed": len(listing.pictures),
        "readable": len(found.readable), "tiles": len(listing.tile_pictures()),
        "left_out": [(shown_name(file), why) for file, why in list(found.left_out.items())[:MOST_LEFT_OUT]],
        "left_out_text": left_out_text(found),
    }  # fmt: skip
    if listing.places is None:
        return render(values, map=None, why="There are too few different pictures for a map.")
    text = render(values, map=script_data(listing.map(thumbnails)), why="")
    if len(text.encode(errors="surrogateescape")) <= MOST_BYTES:
        return text
    return render(values, map=None, why="The map is left out: the file would be too large with it.")


def render(values: dict, **of_map) -> str:
    loader = PackageLoader("mgkit.photos.report", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("page.html").render(**values, **of_map)


def content_hash(text: str) -> str:
    """The hash by which a content security policy knows a style or script in the page."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"


def facts(found: FoundPhotos) -> list[tuple[str, str]]:
    """(name, value) of what was found."""
    apart = found.against is not None
    against = [("The other folder", first_upper(found.describe_against()))] if apart else []
    return [
        ("Folder", folders_of(found)),
        ("Near-duplicates", found.describe()),
        *against,
        ("Could be freed", could_be_freed(found)),
    ]


def how(found: FoundPhotos) -> list[tuple[str, str]]:
    """(name, value) of what the results depend on."""
    task, thresholds = found.task, found.thresholds
    return [
        ("The same file", thresholds.file.describe()),
        ("The same moment", thresholds.moment.describe()),
        ("Network", task.network),
        ("Descriptor", f"{found.descriptors.shape[1]} dimensions, {found.whitened}"),
        ("Classes", found.fit),
    ]


def left_out_text(found: FoundPhotos) -> str:
    """How many files were left out, and how many are not images, by suffix."""
    left_out, others = len(found.left_out), found.task.folder.others
    text = shown_of(left_out, MOST_LEFT_OUT, "files and folders that were left out", "left_out.csv")
    if others:
        kinds = ", ".join(f"{shown_name(kind)} {n:,}" for kind, n in others.most_common(12))
        text += f" {others.total():,} files do not have an image's suffix: {kinds}."
    return text


def summary(path: Path) -> str:
    """One line: the report's path and size."""
    if not path.is_file():
        return f"{shown_name(path)} is written by the notebook of the first machine"
    return f"{shown_name(path)}: {path.stat().st_size / 1e6:.1f} MB, one file; open it in any browser"
