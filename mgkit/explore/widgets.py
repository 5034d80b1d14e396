"""Explorers for the notebooks, of ordinary ipywidgets: p, queries, matching regions, λ and N, live.

Each has a figure in `mgkit.explore.stills` that shows the same where no kernel runs. All can be worked by keyboard, and each says what it
shows in a line of text (class `mgkit-line`), which a screen reader announces. Nothing leaves the machine.
"""

import html
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import ipywidgets
import numpy as np
from PIL import Image

from mgkit.data.decoding import UnreadableImageError
from mgkit.data.images import ImageList
from mgkit.explore.browse import Classes, Collection, Describe, read_picture
from mgkit.explore.repooling import Repooling, SetMaps, exponents, match, positions_for_half, shown_exponent
from mgkit.explore.stills import heat_overlay
from mgkit.explore.style import data_uri, frame_style, thumbnail
from mgkit.explore.toy_batch import COPIES, ToyBatches

SIDE = 96  # px of a thumbnail
HEAT_SIDE = 192  # px of a picture with heat on it
THUMBNAILS = 512  # that a collection keeps: about 1 kB each
LISTED = 500  # queries in a list to choose from; `find` says which
YOURS = "your picture"
NO_QUERY = -1  # among queries: a picture that was brought along
WIDE = {"description_width": "6em"}

# Whether an answer is right -> mark, colour and line of the frame, in words.
MARKS = {
    right: (*frame_style(right, judged=True)[:2], line, words)
    for right, line, words in (
        (True, "solid", "right"), (False, "dashed", "wrong"), (None, "dotted", "neither right nor wrong"),
    )
}  # fmt: skip
UNMARKED = ("", "grey", "solid", "")


# --- Pieces of a page


class Explorer(ipywidgets.VBox):
    """Controls, a line of text, a page of pictures. shows: what stands in its place without a kernel."""

    def __init__(self, controls: Sequence[ipywidgets.Widget], *, shows: str):
        self.shows = shows
        self.line, self.page = ipywidgets.HTML(), ipywidgets.HTML()
        super().__init__([*controls, self.line, self.page])
        self.add_class("mgkit-explorer")

    def __repr__(self) -> str:
        return f"{self.shows}: live in a running notebook; as a figure, below"

    def say(self, *lines: str) -> None:
        """Put plain text into the line."""
        paragraphs = "<br>".join(map(escaped, lines))
        self.line.value = f'<p class="mgkit-line" role="status" aria-live="polite">{paragraphs}</p>'


def escaped(text: str) -> str:
    """Text, as a file's name that is no Unicode too, for HTML."""
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))


def name_of(images: ImageList, index: int) -> str:
    return Path(images.paths[index]).name.encode("utf-8", "replace").decode("utf-8")


def inline(picture: Image.Image) -> str:
    """A picture within the page, in half the bytes of a JPEG: notebooks are saved with what their widgets show."""
    return data_uri(picture, "webp", quality=75, method=2)


def tile(uri: str, name: str, caption: str, mark: tuple[str, str, str, str] = UNMARKED) -> str:
    """A framed picture with its caption; without a uri its name stands for it."""
    sign, colour, line, words = mark
    alt = escaped(f"{name}, {words}" if words else name)
    picture = (
        f'<img src="{uri}" alt="{alt}" title="{alt}">' if uri else f"<em>{escaped(name)}: unreadable</em>"
    )
    return (
        f'<figure class="mgkit-tile" style="margin:4px;text-align:center">'
        f'<div style="border:3px {line} {colour};padding:2px;display:inline-block">{picture}</div>'
        f'<figcaption style="line-height:1.3">{sign} {escaped(caption)}</figcaption></figure>'
    )


def row(tiles: Iterable[str]) -> str:
    return f'<div class="mgkit-row" style="display:flex;flex-wrap:wrap;align-items:flex-end">{"".join(tiles)}</div>'


def likely(classes: Classes) -> str:
    """Classes with their probabilities, as text and as bars."""
    items = "".join(
        f'<li>{escaped(name)} {100 * probability:.1f} % <meter min="0" max="1" value="{probability:.4f}"></meter></li>'
        for name, probability in classes
    )
    return f'<ol class="mgkit-classes">{items}</ol>' if items else ""


class Thumbnails:
    """Images as small pictures within a page, the last so many kept."""

    def __init__(self, images: ImageList):
        self.images = images
        self.uri = lru_cache(maxsize=THUMBNAILS)(self.uri)

    def uri(self, index: int) -> str:
        """Empty for an image that cannot be read."""
        try:
            return inline(thumbnail(self.images, index, SIDE))
        except UnreadableImageError:
            return ""

    def tile(self, index: int, caption: str, mark: tuple[str, str, str, str] = UNMARKED) -> str:
        return tile(self.uri(index), name_of(self.images, index), caption, mark)


def found_row(
    thumbnails: Thumbnails, query: str, found: Iterable[tuple[int, float, bool | None]], *, judged: bool
) -> str:
    """A query's tile, and those of (image, score, whether it is right), marked if anybody judged them."""
    tiles = [
        thumbnails.tile(image, f"{score:.2f}", MARKS[right] if judged else UNMARKED)
        for image, score, right in found
    ]
    return row([query, *tiles])


def how_many_right(right: Sequence[bool | None]) -> str:
    return f"{sum(map(bool, right))} of the first {len(right)} are right"


def p_control(p: float) -> ipywidgets.SelectionSlider:
    """A slider over exponents, in equal steps of log p, from p on."""
    options = [(shown_exponent(each), each) for each in exponents(p)]
    slider = ipywidgets.SelectionSlider(
        options=options, value=p, description="exponent", style=WIDE, layout={"width": "32em"}
    )
    slider.add_class("mgkit-p")
    return slider


def choice(description: str, options: Sequence[tuple[str, int]], kind: str) -> ipywidgets.Dropdown:
    chooser = ipywidgets.Dropdown(
        options=options, description=description, style=WIDE, layout={"width": "32em"}
    )
    chooser.add_class(f"mgkit-{kind}")
    return chooser


def query_options(held: SetMaps, p: float) -> list[tuple[str, int]]:
    """(name, measure with exponent p, number) of the queries of a set, failures first."""
    with_p = f", {shown_exponent(p)}"
    return [
        (name_of(held.set.images, held.set.queries[q]) + (f" {title}{with_p}" if title else ""), q)
        for q, title in held.titles(p).items()
    ]


# --- p (02)


def p_slider(repooling: Repooling, *, k: int = 8) -> Explorer:
    """A slider that pools the held feature maps anew and ranks again, without a forward pass (section 3.5)."""
    return PSlider(repooling, k)


class PSlider(Explorer):
    def __init__(self, repooling: Repooling, k: int):
        self.repooling, self.k = repooling, k
        held = repooling.searched
        self.thumbnails = Thumbnails(held.set.images)
        self.p = p_control(repooling.training_p)
        self.query = choice("query", query_options(held, repooling.training_p), "query")
        super().__init__([self.p, self.query], shows="A slider of the pooling exponent p")
        self.p.observe(self.pool, names="value")
        self.query.observe(self.show, names="value")
        self.pool()

    def pool(self, change: object = None) -> None:
        """Pool with the chosen exponent, measure, and show."""
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
        self.say(f"{self.summary}.", *([f"Of the chosen query {how_many_right(right)}."] if judged else []))
        query = self.thumbnails.tile(searched.set.queries[q], "query")
        self.page.value = found_row(self.thumbnails, query, found, judged=judged)


# --- Queries (05, 06)


def query_browser(collection: Collection, *, describe: Describe | None = None, k: int = 8) -> Explorer:
    """Choose an image of the collection, or bring one along: its k nearest images with scores, its classes.

    describe: gives (descriptor [D], classes) of a picture that is brought along; None: none can be.
    """
    return QueryBrowser(collection, describe, k)


class QueryBrowser(Explorer):
    def __init__(self, collection: Collection, describe: Describe | None, k: int):
        self.collection, self.describe, self.k = collection, describe, k
        self.thumbnails = Thumbnails(collection.images)
        self.find = ipywidgets.Text(
            description="find", placeholder="part of a name", continuous_update=False, style=WIDE, layout={"width": "32em"}
        )  # fmt: skip
        self.query = choice("query", self.listed(""), "query")
        controls = [self.find, self.query]
        if describe:
            self.upload = ipywidgets.FileUpload(
                accept="image/*", description="search with a picture of yours", layout={"width": "20em"}
            )
            self.upload.observe(self.search, names="value")
            controls.append(self.upload)
        super().__init__(controls, shows="A browser of queries and their neighbours")
        self.find.observe(self.filter, names="value")
        self.query.observe(self.show, names="value")
        self.show()

    def listed(self, part: str) -> list[tuple[str, int]]:
        """(name and title, image) of the first queries whose name holds `part`."""
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
        """List the queries that `find` asks for, and show the first of them."""
        found = self.listed(self.find.value)
        if found:
            self.query.options = found
            self.show()  # also where it is the same as before
        else:
            self.say(f"No query's name holds {self.find.value}.")
            self.page.value = ""

    def show(self, change: object = None) -> None:
        """Show what the chosen image finds."""
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
        self.page.value = found_row(self.thumbnails, query, found, judged=judged) + likely(answers.classes)

    def search(self, change: object = None) -> None:
        """Show what a picture finds that was brought along; in one line, why it cannot be read."""
        if not self.upload.value:
            return
        [given] = self.upload.value
        name, content = given["name"], bytes(given["content"])
        self.upload.value = ()  # neither kept in memory nor saved with the notebook
        self.query.options = [(YOURS, NO_QUERY), *self.listed(self.find.value)]
        self.query.value = NO_QUERY  # so that to choose any other is a change
        try:
            picture = read_picture(name, content)
        except UnreadableImageError as error:
            self.say(str(error))
            self.page.value = ""
            return
        descriptor, classes = self.describe(picture)
        neighbours, scores = self.collection.similar(descriptor, self.k)
        self.say(
            f"{name}, {picture.width} × {picture.height} pixels, and its {len(neighbours)} nearest images."
        )
        picture.thumbnail((SIDE, SIDE))
        query = tile(inline(picture), name, YOURS)
        found = [(j, score, None) for j, score in zip(neighbours, scores, strict=True)]
        self.page.value = found_row(self.thumbnails, query, found, judged=False) + likely(classes)


# --- Matching regions (05)


def heat_maps(held: SetMaps, *, k: int = 8) -> Explorer:
    """Which regions of a query and of one of its k neighbours make them alike, for any exponent (see `repooling.Match`).

    Neighbours are those of the network's own exponent.
    """
    return HeatMaps(held, k)


class HeatMaps(Explorer):
    def __init__(self, held: SetMaps, k: int):
        self.held, self.k = held, k
        own = held.maps.net.pool.p.item()
        self.descriptors = held.descriptors(own)
        self.picture = lru_cache(maxsize=64)(self.picture)
        self.query = choice("query", query_options(held, own), "query")
        self.neighbour = choice("neighbour", self.neighbours(), "neighbour")
        self.p = p_control(own)
        super().__init__(
            [self.query, self.neighbour, self.p], shows="Heat maps of what makes two images match"
        )
        self.query.observe(self.choose, names="value")
        for control in (self.neighbour, self.p):
            control.observe(self.show, names="value")
        self.show()

    def picture(self, index: int) -> Image.Image:
        return thumbnail(self.held.set.images, index, HEAT_SIDE)

    def neighbours(self) -> list[tuple[str, int]]:
        """(rank, mark and name, image) of the chosen query's neighbours."""
        found = self.held.neighbours(self.query.value, self.descriptors, self.k)
        judged = self.held.set.measure != "none"
        return [
            (f"{rank}. {MARKS[right][0] if judged else ''} {name_of(self.held.set.images, image)}", image)
            for rank, (image, _, right) in enumerate(found, 1)
        ]

    def choose(self, change: object = None) -> None:
        """List the neighbours of the chosen query, and show the first."""
        with self.neighbour.hold_trait_notifications():
            self.neighbour.options = self.neighbours()
        self.show()

    def show(self, change: object = None) -> None:
        """Show the two pictures with their heat."""
        images, p = self.held.set.images, self.p.value
        pair = (int(self.held.set.queries[self.query.value]), self.neighbour.value)
        found = match(self.held.maps.map(pair[0]), self.held.maps.map(pair[1]), p)
        heats = (found.first, found.second)
        self.say(
            f"{shown_exponent(p)}: similarity {found.similarity:.3f}; half of it comes from {positions_for_half(heats[0])} of the "
            f"{heats[0].size} positions of the query and {positions_for_half(heats[1])} of {heats[1].size} of the neighbour."
        )
        tiles = []
        for index, heat, role in zip(pair, heats, ("query", "neighbour"), strict=True):
            picture, name = self.picture(index), name_of(images, index)
            hot = Image.fromarray((255 * heat_overlay(picture, heat)).astype(np.uint8))
            tiles += [tile(inline(picture), name, role), tile(inline(hot), f"{name}, heat", f"up to {100 * heat.max():.1f} % at a position")]  # fmt: skip
        self.page.value = row(tiles)


# --- λ and N (01)


def toy_batch(toys: ToyBatches, *, copies: int = 3, lambda_: float = 0.5) -> Explorer:
    """A batch of 12 for any number of copies N, both losses on it, and the share of the pull that λ gives the classes."""
    return ToyBatchExplorer(toys, copies, lambda_)


class ToyBatchExplorer(Explorer):
    def __init__(self, toys: ToyBatches, copies: int, lambda_: float):
        self.toys, self.number = toys, 0
        self.drawn = lru_cache(maxsize=64)(toys.draw)  # by N and number
        for each in COPIES:
            self.drawn(each, number=self.number)  # one forward pass each, so that moving N needs none
        self.copies = ipywidgets.SelectionSlider(
            options=COPIES, value=copies, description="N, copies", style=WIDE, layout={"width": "32em"}
        )
        self.lambda_ = ipywidgets.FloatSlider(
            min=0, max=1, step=0.05, value=lambda_, description="λ", style=WIDE, layout={"width": "32em"}
        )
        self.another = ipywidgets.Button(description="another batch")
        self.copies.add_class("mgkit-copies")
        self.lambda_.add_class("mgkit-lambda")
        super().__init__([self.copies, self.lambda_, self.another], shows="A toy batch for any λ and N")
        self.copies.observe(self.show, names="value")
        self.lambda_.observe(self.weigh, names="value")
        self.another.on_click(self.next)
        self.show()

    def next(self, button: object = None) -> None:
        """Draw other images."""
        self.number += 1
        self.show()

    def show(self, change: object = None) -> None:
        """Show the batch: a row an image, its copies side by side."""
        batch, rows = self.drawn(self.copies.value, number=self.number), []
        for start in range(0, len(batch.pictures), batch.copies):
            copies = batch.pictures[start : start + batch.copies]
            pictures = [Image.fromarray((255 * copy).astype(np.uint8)) for copy in copies]
            rows.append([tile(inline(each), f"image {batch.images[start]}", "") for each in pictures])
        self.page.value = "".join(map(row, rows))
        self.weigh()

    def weigh(self, change: object = None) -> None:
        """Say what the losses are with the chosen λ."""
        batch = self.drawn(self.copies.value, number=self.number)
        self.say(batch.counts() + ".", batch.summary(self.lambda_.value) + ".")
