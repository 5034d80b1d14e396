"""Colours, axes, grids and thumbnails of all figures."""

import base64
import io
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, MaxNLocator
from PIL import Image, ImageDraw

from mgkit.data.decoding import UnreadableImageError
from mgkit.data.images import ImageList
from mgkit.machine.printable import shown_name
from mgkit.machine.timing import timed

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
MARKERS = "osD^vP*"
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
RIGHT, WRONG = COLOURS[2], COLOURS[1]
GREY = (200, 200, 200)  # of a tile for an unreadable image
TITLE = 26  # longest title of a panel (characters)
TICK_INCHES = 0.42  # least distance between tick labels


class NotebookFigure(Figure):
    """A figure shown inline as a 64-colour PNG or a JPEG, whichever is smaller.

    saved: what was last saved in memory as PNG, and its dots per inch. Unless the figure has changed since,
    it is shown from there: to draw it again would take as long as to save it.
    """

    INLINE_DPI, JPEG_QUALITY = 72, 50
    saved: tuple[bytes, float] | None = None

    def draw(self, renderer) -> None:
        """Draw printable text without mathtext: names may hold anything. Log axes need it for ticks."""
        both = [axis for axes in self.axes for axis in (axes.xaxis, axes.yaxis)]
        powers = {
            label for axis in both if axis.get_scale() == "log" for label in axis.get_ticklabels(which="both")
        }
        for text in self.findobj(Text):
            text.set_parse_math(text in powers)
            shown = "\n".join(map(shown_name, text.get_text().split("\n")))
            if shown != text.get_text():
                text.set_text(shown)
        super().draw(renderer)

    def savefig(self, file, **options) -> None:
        """As matplotlib's, without a warning for each letter that the font lacks; a box is drawn for it."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ ")
            warnings.filterwarnings("ignore", r"Matplotlib currently does not support")  # some scripts
            super().savefig(file, **options)
        if isinstance(file, io.BytesIO) and options.get("format") == "png" and "dpi" in options:
            self.saved = file.getvalue(), options["dpi"]
            self.stale = False  # until something in the figure changes

    @timed("figures")
    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, bytes]:
        """The figure as IPython shows it, {MIME type: content}."""
        picture = self.picture()
        palette = encoded(few_colours(picture), "png", optimize=True)
        photo = encoded(picture, "jpeg", quality=self.JPEG_QUALITY, optimize=True)
        return {"image/png": palette} if len(palette) <= len(photo) else {"image/jpeg": photo}

    def picture(self) -> Image.Image:
        """The figure as a picture of INLINE_DPI dots per inch."""
        if self.saved is None or self.stale or self.saved[1] < self.INLINE_DPI:
            self.savefig(io.BytesIO(), format="png", dpi=self.INLINE_DPI, bbox_inches="tight")
        content, dpi = self.saved
        drawn = Image.open(io.BytesIO(content), formats=["PNG"]).convert("RGB")
        sides = [max(1, round(side * self.INLINE_DPI / dpi)) for side in drawn.size]
        return drawn if dpi == self.INLINE_DPI else drawn.resize(sides, Image.Resampling.LANCZOS)


def few_colours(picture: Image.Image, count: int = 64) -> Image.Image:
    """The picture with a palette of `count` colours, for a small PNG of curves."""
    # An octree keeps the colours of thin curves; the default, median cut, mixes them.
    return picture.convert("RGB").quantize(count, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    """The content of an image file (png, jpeg or webp)."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def data_uri(picture: Image.Image, kind: str, **options) -> str:
    """The picture as a data URI (png, jpeg or webp)."""
    return f"data:image/{kind};base64,{base64.b64encode(encoded(picture, kind, **options)).decode('ascii')}"


def axes_grid(
    rows: int, columns: int, *, width: float = 3.4, height: float = 2.6
) -> tuple[Figure, np.ndarray]:
    """A figure of rows × columns axes of width × height inches each, not registered with pyplot."""
    figure = NotebookFigure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def wrapped_grid(count: int, **inches) -> tuple[Figure, np.ndarray]:
    """A figure and `count` axes, in at most three columns and the fewest for that number of rows."""
    rows = -(-count // 3)
    figure, axes = axes_grid(rows, -(-count // rows), **inches)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, axes.flat[:count]


def style(axes: Axes, title: str, x: str, y: str) -> None:
    """Set the title, axis labels with units and a light grid."""
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def show_image(axes: Axes, image: Image.Image | np.ndarray, title: str = "", **font) -> None:
    axes.imshow(image)
    axes.set(xticks=[], yticks=[])
    if title:
        axes.set_title(title, fontsize=8, **font)


def image_grid(images: Sequence[Sequence], *, row_titles: Sequence[str] = (), side: float = 1.1) -> Figure:
    """Rows of pictures (PIL images or [H,W,3] arrays) with titles at the left; side in inches."""
    columns = max(len(row) for row in images)
    figure, axes = axes_grid(len(images), columns, width=side, height=side)
    for i, row in enumerate(images):
        for j in range(columns):
            if j < len(row):
                show_image(axes[i, j], row[j])
            else:
                axes[i, j].axis("off")
        if row_titles:
            axes[i, 0].set_ylabel(row_titles[i], rotation=0, ha="right", va="center", fontsize=9)
    return figure


def line_sizes(k: int, count: int) -> dict[str, float]:
    """Line width and marker size of the k-th of `count` lines; later lines are thinner."""
    share = (count - 1 - k) / max(count - 1, 1)
    return {"linewidth": 1.2 + 2.8 * share, "markersize": 3.5 + 5 * share}


def cycled(values: Sequence, k: int):
    """The k-th of MARKERS, LINES or hatches, cyclic; shifted by one each time that the colours repeat."""
    return values[(k + k // len(COLOURS)) % len(values)]


def integer_ticks(axes: Axes) -> None:
    """Ticks of x at integers only, thousands as k."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def size_ticks(axes: Axes, sizes: Sequence[int]) -> None:
    """A tick of x at every size, labelled where there is room: always the smallest and the largest."""
    sizes = sorted(set(sizes))
    inches = axes.get_position().width * axes.figure.get_figwidth()
    room = (sizes[-1] - sizes[0]) * TICK_INCHES / inches
    named = sizes[:1]
    for size in sizes[1:]:
        if size == sizes[-1] or min(size - named[-1], sizes[-1] - size) >= room:
            named.append(size)
    axes.set_xticks(named)
    axes.set_xticks(sizes, minor=True)


def show_reason(axes: Axes, why: str = "no ground truth, nothing measured") -> None:
    """Write in an empty panel why it is empty."""
    axes.text(0.5, 0.5, why, ha="center", transform=axes.transAxes)


def figure_legend(figure: Figure, *panels: Axes) -> None:
    """One legend below all panels, with each distinct label once."""
    handles = {}
    for panel in panels:
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    labels = {"handles": handles.values(), "labels": handles.keys()}
    figure.legend(**labels, fontsize=8, frameon=False, ncols=3, handlelength=3, loc="outside lower center")


def frame_style(right: bool | None, judged: bool) -> tuple[str, str, object]:
    """Mark, colour and line style of an answer's frame; judged: whether there is ground truth."""
    if not judged:
        return "", "grey", "-"
    if right is None:
        return "–", "grey", ":"
    return ("✓", RIGHT, "-") if right else ("✗", WRONG, (0, (3, 2)))


def show_found(
    row: Sequence[Axes], images: ImageList, query: int, found: Iterable[tuple[int, float, bool | None]],
    *, judged: bool, title: str = "query",
) -> None:  # fmt: skip
    """A query and its answers (image, score, whether it is right) in a row of axes."""
    show_image(row[0], picture_tile(images, query), title)
    frame(row[0], "black", "-")
    for axes in row[1:]:
        axes.axis("off")
    for axes, (image, score, right) in zip(row[1:], found, strict=False):
        axes.axis("on")
        mark, colour, line = frame_style(right, judged)
        show_image(axes, picture_tile(images, image), f"{mark} {score:.2f}".strip(), color=colour)
        frame(axes, colour, line)


def frame(axes: Axes, colour: str, line) -> None:
    for spine in axes.spines.values():
        spine.set(color=colour, linestyle=line, linewidth=2.5)


def thumbnail(images: ImageList, index: int, side: int = 128) -> Image.Image:
    """The image with its longest side of at most `side` pixels; raises UnreadableImageError."""
    image = images.load(index, least=2 * side)
    image.thumbnail((side, side))
    return image


def picture_tile(images: ImageList, index: int, side: int = 128) -> Image.Image:
    """The `thumbnail`, or a grey tile for an unreadable image."""
    try:
        return thumbnail(images, index, side)
    except UnreadableImageError:
        return grey_tile(side)


def grey_tile(side: int) -> Image.Image:
    """What is shown in the place of an unreadable image."""
    tile = Image.new("RGB", (side, side), GREY)
    ImageDraw.Draw(tile).text((side / 2, side / 2), "unreadable", "black", anchor="mm", font_size=side // 6)
    return tile
