"""Colours, axes, thumbnails and grids shared by all figures."""

import base64
import io
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, MaxNLocator
from PIL import Image

from mgkit.data.images import ImageList

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
MARKERS = "osD^vP*"
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
RIGHT, WRONG = COLOURS[2], COLOURS[1]
TITLE = 26  # characters of a title over a panel 3.6 inches wide
TICK_INCHES = 0.42  # from one number at an axis to the next


class NotebookFigure(Figure):
    """A figure that notebooks show in few bytes: as a PNG of up to 64 colours or as a JPEG, whichever is smaller.

    Curves are smaller, and crisp, as a PNG; photographs as a JPEG. What is saved as a file is whole, as of any figure.
    """

    INLINE_DPI, PNG_COLOURS, JPEG_QUALITY = 72, 64, 50

    def draw(self, renderer) -> None:
        """Draws every text as it is: names may hold a $, which opens mathematics only at the ticks of logarithmic axes."""
        both = [axis for axes in self.axes for axis in (axes.xaxis, axes.yaxis)]
        powers = {
            label for axis in both if axis.get_scale() == "log" for label in axis.get_ticklabels(which="both")
        }
        for text in self.findobj(Text):
            text.set_parse_math(text in powers)
        super().draw(renderer)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, bytes]:
        """What IPython shows of the figure, by its type."""
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", dpi=self.INLINE_DPI, bbox_inches="tight")
        picture = Image.open(drawn).convert("RGB")
        # An octree keeps the colours of thin curves; the default, a median cut, mixes them.
        few = picture.quantize(self.PNG_COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        palette = encoded(few, "png", optimize=True)
        photo = encoded(picture, "jpeg", quality=self.JPEG_QUALITY, optimize=True)
        return {"image/png": palette} if len(palette) <= len(photo) else {"image/jpeg": photo}


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    """The picture as a file of that kind."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def data_uri(picture: Image.Image, kind: str, **options) -> str:
    """The picture as a file of that kind within a page."""
    return f"data:image/{kind};base64,{base64.b64encode(encoded(picture, kind, **options)).decode('ascii')}"


def axes_grid(
    rows: int, columns: int, *, width: float = 3.4, height: float = 2.6
) -> tuple[Figure, np.ndarray]:
    """A figure of rows × columns axes, each width × height inches, of which pyplot does not know."""
    figure = NotebookFigure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def style(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, axis labels with units, a light grid."""
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def show_image(axes: Axes, image: Image.Image | np.ndarray, title: str = "", **font) -> None:
    axes.imshow(image)
    axes.set(xticks=[], yticks=[])
    if title:
        axes.set_title(title, fontsize=8, **font)


def image_grid(images: Sequence[Sequence], *, row_titles: Sequence[str] = (), side: float = 1.1) -> Figure:
    """Rows of pictures (PIL images or [H,W,3] arrays), each row with its title at the left."""
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


def shortened(name: str, length: int = 18) -> str:
    """A name of at most so many characters: of a longer one the beginning and the end, for names often differ there alone."""
    end = length // 3
    return name if len(name) <= length else f"{name[: length - 1 - end]}…{name[-end:]}"


def tapering(k: int, count: int) -> dict[str, float]:
    """Width and size of markers for the k-th of so many lines: the later, the thinner, so that none hides one beneath it."""
    share = (count - 1 - k) / max(count - 1, 1)
    return {"linewidth": 1.2 + 2.8 * share, "markersize": 3.5 + 5 * share}


def turn(k: int) -> int:
    """A number for the k-th line's marker or dashes that has moved on by one when the colours come round again."""
    return k + k // len(COLOURS)


def whole_numbers(axes: Axes) -> None:
    """Ticks of x at whole numbers only, thousands as k."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def size_ticks(axes: Axes, sizes: Sequence[int]) -> None:
    """A tick of x at every size, with its number where there is room: always at the largest and the smallest."""
    sizes = sorted(set(sizes))
    inches = axes.get_position().width * axes.figure.get_figwidth()
    room = (sizes[-1] - sizes[0]) * TICK_INCHES / inches
    named = sizes[:1]
    for size in sizes[1:]:
        if size == sizes[-1] or min(size - named[-1], sizes[-1] - size) >= room:
            named.append(size)
    axes.set_xticks(named)
    axes.set_xticks(sizes, minor=True)


def nothing_measured(axes: Axes, why: str = "no ground truth, nothing measured") -> None:
    axes.text(0.5, 0.5, why, ha="center", transform=axes.transAxes)


def figure_legend(figure: Figure, *panels: Axes) -> None:
    """One legend under all panels, a line for each distinct label."""
    handles = {}
    for panel in panels:
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(),
        handles.keys(),
        fontsize=8,
        frameon=False,
        ncols=3,
        handlelength=3,
        loc="outside lower center",
    )


def mark_of(right: bool | None, judged: bool) -> tuple[str, str, object]:
    """Mark, colour and line of an answer's frame; without anybody's judgement neither right nor wrong."""
    if not judged:
        return "", "grey", "-"
    if right is None:
        return "–", "grey", ":"
    return ("✓", RIGHT, "-") if right else ("✗", WRONG, (0, (3, 2)))


def show_found(
    row: Sequence[Axes], images: ImageList, query: int, found: Iterable[tuple[int, float, bool | None]], *, judged: bool,
    title: str = "query",
) -> None:  # fmt: skip
    """A query and what it found, (image, score, whether it is right), in a row of axes; what is left of the row is empty."""
    show_image(row[0], thumbnail(images, query), title)
    frame(row[0], "black", "-")
    for axes in row[1:]:
        axes.axis("off")
    for axes, (image, score, right) in zip(row[1:], found, strict=False):
        axes.axis("on")
        mark, colour, line = mark_of(right, judged)
        show_image(axes, thumbnail(images, image), f"{mark} {score:.2f}".strip(), color=colour)
        frame(axes, colour, line)


def frame(axes: Axes, colour: str, line) -> None:
    for spine in axes.spines.values():
        spine.set(color=colour, linestyle=line, linewidth=2.5)


def thumbnail(images: ImageList, index: int, side: int = 128) -> Image.Image:
    """The image with its longest side of at most `side` pixels."""
    image = images.load(index, least=2 * side)
    image.thumbnail((side, side))
    return image
