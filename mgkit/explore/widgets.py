"""Interactive explorers for the notebooks, made of ipywidgets: p, queries, matching regions, λ and N.

`mgkit.explore.stills` has the same as figures. All work by keyboard, and each describes what it shows in a
line of text (class `mgkit-line`) for screen readers. Nothing is sent to other machines.
"""

import html
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import ipywidgets
import numpy as np
from PIL import Image

from mgkit.data.decoding import UnreadableImageError
from mgkit.data.images import ImageList
from mgkit.explore.browse import Classes, Collection, Describe, read_picture
from mgkit.explore.repooling import Repooling, SetMaps, exponents, positions_for_half, shown_exponent
from mgkit.explore.stills import heat_overlay
from mgkit.explore.style import data_uri, frame_style, picture_tile, thumbnail
from mgkit.explore.toys.batch import COPIES, ToyBatches
from mgkit.machine.printable import shown_name

SIDE = 96  # of a thumbnail (px)
HEAT_SIDE = 192  # of a picture with a heat map (px)
THUMBNAILS = 512  # in the cache, about 1 kB each
LISTED = 500  # longest list of queries; `find` filters it
YOURS = "your picture"
NO_QUERY = -1  # value of an uploaded picture in the list of queries
LOOK = {"style": {"description_width": "6em"}, "layout": {"width": "32em"}}

# Whether an answer is right -> mark, colour and line of the frame, text.
MARKS = {
    right: (*frame_style(right, judged=True)[:2], line, words)
    for right, line, words in (
        (True, "solid", "right"), (False, "dashed", "wrong"), (None, "dotted", "neither right nor wrong"),
    )
}  # fmt: skip
UNMARKED = ("", "grey", "solid", "")


# --- HTML


class Explorer(ipywidgets.VBox):
    """Controls, a line of text and a page of pictures.

    controls: what to call when the value of each changes
    shows: its text where there is no kernel
    """

    def __init__(self, controls: dict[ipywidgets.Widget, Callable], *buttons: ipywidgets.Button, shows: str):
        self.shows = shows
        self.line, self.page = ipywidgets.HTML(), ipywidgets.HTML()
        super().__init__([*controls, *buttons, self.line, self.page])
        self.add_class("mgkit-explorer")
        for control, changed in controls.items():
            control.observe(changed, names="value")

    def __repr__(self) -> str:
        return f"{self.shows}: live in a running notebook; as a figure, below"

    def say(self, *lines: str) -> None:
        """Set the line to plain text."""
        paragraphs = "<br>".join(map(escaped, lines))
        self.line.value = f'<p class="mgkit-line" role="status" aria-live="polite">{paragraphs}</p>'


def escaped(text: str) -> str:
    """Text for HTML, printable."""
    return html.escape(shown_name(text))


def name_of(images: ImageList, index: int) -> str:
    return shown_name(Path(images.paths[index]).name)


def inline(picture: Image.Image) -> str:
    """A picture as a WebP data URI, half the size of a JPEG: widgets are saved with the notebook."""
    return data_uri(picture, "webp", quality=75, method=2)


def tile(uri: str, name: str, caption: str, mark: tuple[str, str, str, str] = UNMARKED) -> str:
    """A framed picture with its caption; its name if there is no uri."""
    sign, colour, line, words = mark
    alt = escaped(f"{name}, {words}" if words else name)
    picture = f'<img src="{uri}" alt="{alt}" title="{alt}">'
    picture = picture if uri else f"<em>{escaped(name)}: unreadable</em>"
    return (
        f'<figure class="mgkit-tile" style="margin:4px;text-align:center">'
        f'<div style="border:3px {line} {colour};padding:2px;display:inline-block">{picture}</div>'
        f'<figcaption style="line-height:1.3">{sign} {escaped(caption)}</figcaption></figure>'
    )


def row(tiles: Iterable[str]) -> str:
    style = "display:flex;flex-wrap:wrap;align-items:flex-end"
    return f'<div class="mgkit-row" style="{style}">{"".join(tiles)}</div>'


def class_list(classes: Classes) -> str:
    """Classes with their probabilities, as text and as bars."""
    items = "".join(
        f"<li>{escaped(name)} {100 * probability:.1f} % "
        f'<meter min="0" max="1" value="{probability:.4f}"></meter></li>'
        for name, probability in classes
    )
    return f'<ol class="mgkit-classes">{items}</ol>' if items else ""


class Thumbnails:
    """Cached thumbnails of images for a page."""

    def __init__(self, images: ImageList):
        self.images = images
        self.uri = lru_cache(maxsize=THUMBNAILS)(self.uri)

    def uri(self, index: int) -> str:
        """The thumbnail as a data URI; empty for an unreadable image."""
        try:
            return inline(thumbnail(self.images, index, SIDE))
        except UnreadableImageError:
            return ""

    def tile(self, index: int, caption: str, mark: tuple[str, str, str, str] = UNMARKED) -> str:
        return tile(self.uri(index), name_of(self.images, index), caption, mark)


def found_row(
    thumbnails: Thumbnails, query: str, found: Iterable[tuple[int, float, bool | None]], *, judged: bool
) -> str:
    """A query's tile and those of its answers (image, score, right), marked if there is ground truth."""
    tiles = [
        thumbnails.tile(image, f"{score:.2f}", MARKS[right] if judged else UNMARKED)
        for image, score, right in found
    ]
    return row([query, *tiles])


def how_many_right(right: Sequence[bool | None]) -> str:
    return f"{sum(map(bool, right))} of the first {len(right)} are right"


def p_control(p: float) -> ipywidgets.SelectionSlider:
    """A slider of exponents in equal steps of log p, with initial value p."""
    options = [(shown_exponent(each), each) for each in exponents(p)]
    slider = ipywidgets.SelectionSlider(options=options, value=p, description="exponent", **LOOK)
    slider.add_class("mgkit-p")
    return slider


def choice(name: str, options: Sequence[tuple[str, int]]) -> ipywidgets.Dropdown:
    chooser = ipywidgets.Dropdown(options=options, description=name, **LOOK)
    chooser.add_class(f"mgkit-{name}")
    return chooser


def query_options(held: SetMaps, p: float) -> list[tuple[str, int]]:
    """(name and measure with exponent p, number) of the queries of a set, failures first."""
    with_p = f", {shown_exponent(p)}"
    return [
        (name_of(held.set.images, held.set.queries[q]) + (f" {title}{with_p}" if title else ""), q)
        for q, title in held.titles(p).items()
    ]


# --- p (02)


def p_slider(repooling: Repooling, *, k: int = 8) -> Explorer:
    """A slider of p that pools the feature maps in memory and ranks again (section 3.5)."""
    return PSlider(repooling, k)


class PSlider(Explorer):
    def __init__(self, repooling: Repooling, k: int):
        self.repooling, self.k = repooling, k
        held = repooling.searched
        self.thumbnails = Thumbnails(held.set.images)
        self.p = p_control(repooling.training_p)
        self.query = choice("query", query_options(held, repooling.training_p))
        controls = {self.p: self.pool, self.query: self.show}
        super().__init__(controls, shows="A slider of the pooling exponent p")
        self.pool()

    def pool(self, change: object = None) -> None:
        """Pool with the chosen exponent, evaluate, and show."""
        p = self.p.value
        self.descriptors = self.repooling.searched.descriptors(p)
        self.summary = self.repooling.summary(p, self.descriptors)
        self.show()

    def show(self, change: object = None) -> None:
        """Show the chosen query's neighbours."""
        searched, q = self.repooling.searched, self.query.value
        judged = searched.set.measure != "none"
        found = searched.neighbours(q, self.descriptors, self.k)
        right = [of_image for _, _, of_image in found]
        self.say(f"{self.summary}.", *([f"Chosen query: {how_many_right(right)}."] if judged else []))
        query = self.thumbnails.tile(searched.set.queries[q], "query")
        self.page.value = found_row(self.thumbnails, query, found, judged=judged)


# --- Queries (05, 06)


def query_browser(collection: Collection, *, describe: Describe | None = None, k: int = 8) -> Explorer:
    """Choose an image of the collection or upload one: its k nearest images with scores, its classes.

    describe: a function, uploaded picture -> (descriptor [D], classes); None: no upload.
    """
    return QueryBrowser(collection, describe, k)


class QueryBrowser(Explorer):
    def __init__(self, collection: Collection, describe: Describe | None, k: int):
        self.collection, self.describe, self.k = collection, describe, k
        self.thumbnails = Thumbnails(collection.images)
        part = {"placeholder": "part of a name", "continuous_update": False}
        self.find = ipywidgets.Text(description="find", **part, **LOOK)
        self.query = choice("query", self.listed(""))
        controls = {self.find: self.filter, self.query: self.show}
        if describe:
            self.upload = ipywidgets.FileUpload(
                accept="image/*", description="search with a picture of yours", layout={"width": "20em"}
            )
            controls[self.upload] = self.search
        super().__init__(controls, shows="A browser of queries and their neighbours")
        self.show()

    def listed(self, part: str) -> list[tuple[str, int]]:
        """(name and title, image) of the first queries whose name contains `part`."""
        images, titles = self.collection.images, self.collection.titles
        found = []
        for number, i in enumerate(self.collection.queries.tolist(), 1):
            name = name_of(images, i)
            if part.lower() in name.lower():
                found.append((f"{number}. {name} {titles.get(i, '')}".strip(), i))
            if len(found) == LISTED:
                break
        return found

    def filter(self, change: object = None) -> None:
        """List the queries that match `find`, and show the first."""
        found = self.listed(self.find.value)
        if found:
            self.query.options = found
            self.show()  # not triggered if the first is the same as before
        else:
            self.say(f"No query's name contains {self.find.value}.")
            self.page.value = ""

    def show(self, change: object = None) -> None:
        """Show the neighbours of the chosen image."""
        i = self.query.value
        if i == NO_QUERY:
            return
        answers = self.collection.answers(i, self.k)
        judged = self.collection.truth is not None
        lines = [f"{name_of(self.collection.images, i)} {self.collection.titles.get(i, '')}".strip()]
        if judged:
            lines.append(f"{how_many_right(answers.right)}.")
        self.say(*lines)
        found = zip(answers.neighbours, answers.scores, answers.right, strict=True)
        query = self.thumbnails.tile(i, "query")
        pictures = found_row(self.thumbnails, query, found, judged=judged)
        self.page.value = pictures + class_list(answers.classes)

    def search(self, change: object = None) -> None:
        """Show the neighbours of an uploaded picture, or why it cannot be read."""
        if not self.upload.value:
            return
        [given] = self.upload.value
        name, content = given["name"], bytes(given["content"])
        self.upload.value = ()  # not saved with the notebook
        self.query.options = [(YOURS, NO_QUERY), *self.listed(self.find.value)]
        self.query.value = NO_QUERY  # so that choosing any query triggers `show`
        try:
            picture = read_picture(name, content)
            descriptor, classes = self.describe(picture)
        except UnreadableImageError as error:
            self.say(str(error) if shown_name(name) in str(error) else f"{name}: {error}")
            self.page.value = ""
            return
        neighbours, scores = self.collection.similar(descriptor, self.k)
        size = f"{picture.width} × {picture.height} pixels"
        self.say(f"{name}, {size}, and its {len(neighbours)} nearest images.")
        picture.thumbnail((SIDE, SIDE))
        query = tile(inline(picture), name, YOURS)
        found = [(j, score, None) for j, score in zip(neighbours, scores, strict=True)]
        self.page.value = found_row(self.thumbnails, query, found, judged=False) + class_list(classes)


# --- Matching regions (05)


def heat_maps(held: SetMaps, *, k: int = 8) -> Explorer:
    """Matching regions of a query and one of its k neighbours for any exponent (`repooling.Match`).

    The neighbours are those at the network's exponent.
    """
    return HeatMaps(held, k)


class HeatMaps(Explorer):
    def __init__(self, held: SetMaps, k: int):
        self.held, self.k = held, k
        own = held.maps.net.pool.p.item()
        self.descriptors = held.descriptors(own)
        self.picture = lru_cache(maxsize=64)(self.picture)
        self.query = choice("query", query_options(held, own))
        self.neighbour = choice("neighbour", self.neighbours())
        self.p = p_control(own)
        controls = {self.query: self.choose, self.neighbour: self.show, self.p: self.show}
        super().__init__(controls, shows="Heat maps of matching regions")
        self.show()

    def picture(self, index: int) -> Image.Image:
        return picture_tile(self.held.set.images, index, HEAT_SIDE)

    def neighbours(self) -> list[tuple[str, int]]:
        """(rank, mark and name, image) of the chosen query's neighbours."""
        found = self.held.neighbours(self.query.value, self.descriptors, self.k)
        judged = self.held.set.measure != "none"
        return [
            (f"{rank}. {MARKS[right][0] if judged else ''} {name_of(self.held.set.images, image)}", image)
            for rank, (image, _, right) in enumerate(found, 1)
        ]

    def choose(self, change: object = None) -> None:
        """List the neighbours of the chosen query and show the first."""
        with self.neighbour.hold_trait_notifications():
            self.neighbour.options = self.neighbours()
        self.show()

    def show(self, change: object = None) -> None:
        """Show the two pictures with their heat maps."""
        images, p = self.held.set.images, self.p.value
        pair = (int(self.held.set.queries[self.query.value]), self.neighbour.value)
        found = self.held.maps.match(*pair, p)
        heats = (found.first, found.second)
        first, second = (f"{positions_for_half(heat)} of {heat.size} positions" for heat in heats)
        self.say(
            f"{shown_exponent(p)}: similarity {found.similarity:.3f}; half of it comes from {first} of the "
            f"query and {second} of the neighbour."
        )
        tiles = []
        for index, heat, role in zip(pair, heats, ("query", "neighbour"), strict=True):
            picture, name = self.picture(index), name_of(images, index)
            hot = Image.fromarray((255 * heat_overlay(picture, heat)).astype(np.uint8))
            most = f"up to {100 * heat.max():.1f} % per position"
            tiles += [tile(inline(picture), name, role), tile(inline(hot), f"{name}, heat map", most)]
        self.page.value = row(tiles)


# --- λ and N (01)


def toy_batch(toys: ToyBatches, *, lambda_: float = 0.5) -> Explorer:
    """A batch of 12 samples for any N, its losses and cross-entropy's share of the gradient for any λ."""
    return ToyBatchExplorer(toys, lambda_)


class ToyBatchExplorer(Explorer):
    def __init__(self, toys: ToyBatches, lambda_: float):
        self.toys, self.number = toys, 0
        self.drawn = lru_cache(maxsize=64)(toys.draw)  # by N and number
        for each in COPIES:
            self.drawn(each, number=self.number)  # forward passes now, so that moving N needs none
        self.copies = ipywidgets.SelectionSlider(options=COPIES, value=3, description="N, copies", **LOOK)
        options = {"min": 0, "max": 1, "step": 0.05, "description": "λ"}
        self.lambda_ = ipywidgets.FloatSlider(value=lambda_, **options, **LOOK)
        self.another = ipywidgets.Button(description="another batch")
        self.copies.add_class("mgkit-copies")
        self.lambda_.add_class("mgkit-lambda")
        self.another.on_click(self.next)
        controls = {self.copies: self.show, self.lambda_: self.weigh}
        super().__init__(controls, self.another, shows="A toy batch for any λ and N")
        self.show()

    def next(self, button: object = None) -> None:
        """Draw other images."""
        self.number += 1
        self.show()

    def show(self, change: object = None) -> None:
        """Show the batch, the copies of an image in each row."""
        batch, rows = self.drawn(self.copies.value, number=self.number), []
        for start in range(0, len(batch.pictures), batch.copies):
            copies = batch.pictures[start : start + batch.copies]
            pictures = [Image.fromarray((255 * copy).astype(np.uint8)) for copy in copies]
            rows.append([tile(inline(each), f"image {batch.images[start]}", "") for each in pictures])
        self.page.value = "".join(map(row, rows))
        self.weigh()

    def weigh(self, change: object = None) -> None:
        """Show the losses for the chosen λ."""
        batch = self.drawn(self.copies.value, number=self.number)
        self.say(batch.counts() + ".", batch.summary(self.lambda_.value) + ".")
