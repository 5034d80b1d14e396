"""The explorers' output after a control moves: text, marks and pictures, safe for any file name."""

import base64
import datetime
import html
import io
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import demanding, noise, write_picture

from mgkit.data.layouts import plain_images
from mgkit.explore import widgets
from mgkit.explore.browse import Collection, describe_with
from mgkit.explore.repooling import Repooling, SetMaps, match
from mgkit.explore.toys.batch import ToyBatches
from mgkit.features import embed

EVIL = "a b'c\"<img src=x onerror=alert(1)>&amp;😀.png"


def line(explorer):
    """The text of its line, and that it is one that a screen reader announces."""
    found = re.fullmatch(
        r'<p class="mgkit-line" role="status" aria-live="polite">(.*)</p>', explorer.line.value
    )
    return html.unescape(found[1].replace("<br>", "\n"))


def captions(explorer):
    return [
        html.unescape(caption).strip()
        for caption in re.findall(r"<figcaption.*?>(.*?)<", explorer.page.value)
    ]


def pictures(explorer):
    return re.findall(r'<img src="(data:image/webp;base64,[^"]+)"', explorer.page.value)


def names(explorer):
    """What the pictures are called, where they are not seen."""
    return [html.unescape(alt) for alt in re.findall(r'alt="([^"]*)"', explorer.page.value)]


# --- p


@pytest.fixture
def slider(tiny_net, uneven_images, searched_set):
    repooling = Repooling(tiny_net, uneven_images, searched_set, size=32, description=None)
    return widgets.p_slider(repooling, k=4)


def test_the_p_slider_ranks_anew(slider, tiny_net, monkeypatch):
    monkeypatch.setattr(tiny_net.features, "forward", lambda *_: pytest.fail("the backbone ran again"))
    repooling = slider.repooling
    assert slider.p.value == 3.0 and slider.p.options[-1] == ("max pooling", math.inf)
    assert slider.p.options[0] == ("p = 1.00", 1.0) and slider.p.options[-2] == ("p = 10.00", 10.0)
    seen = set()
    for p in (1.0, 3.0, math.inf):
        slider.p.value = p
        descriptors = repooling.searched.descriptors(p)
        assert line(slider).startswith(repooling.summary(p, descriptors) + ".\n")
        found = repooling.searched.neighbours(slider.query.value, descriptors, 4)
        marks = {True: "✓", False: "✗", None: "–"}
        assert captions(slider) == ["query"] + [f"{marks[right]} {score:.2f}" for _, score, right in found]
        assert f"{sum(right is True for _, _, right in found)} of the first 4 are right" in line(slider)
        seen.add(line(slider))
    assert len(seen) == 3


def test_the_list_says_of_which_exponent_its_measures_are(slider):
    assert all(
        label.endswith(f", p = {slider.repooling.training_p:.2f}") for label, _ in slider.query.options
    )


def test_a_choice_of_query_does_not_pool_anew(slider, monkeypatch):
    monkeypatch.setattr(slider.repooling.searched.maps, "pooled", lambda p: pytest.fail("pooled again"))
    before = slider.page.value
    slider.query.value = slider.query.options[-1][1]
    assert slider.page.value != before and len(pictures(slider)) == 5


def test_right_and_wrong_are_told_without_colour(slider):
    everything = widgets.p_slider(slider.repooling, k=23)
    everything.query.value = 5  # of the third class, of which an image is junk
    _, query, *tiles = everything.page.value.split("<figure ")
    assert "solid grey" in query
    told = {
        "✓": ("3px solid", "right"),
        "✗": ("3px dashed", "wrong"),
        "–": ("3px dotted", "neither right nor wrong"),
    }
    marks = [caption[0] for caption in captions(everything)[1:]]
    assert [marks.count(mark) for mark in "✓✗–"] == [6, 16, 1]
    for mark, tile in zip(marks, tiles, strict=True):
        assert all(words in tile for words in told[mark])


def test_a_set_without_ground_truth(tiny_net, uneven_images, searched_set):
    unjudged = replace(searched_set, measure="none", junk=())
    slider = widgets.p_slider(Repooling(tiny_net, uneven_images, unjudged, size=32, description=None))
    assert "right" not in line(slider) + slider.page.value and "top-1" in line(slider)
    assert "classes" not in line(slider)


def test_controls_have_descriptions_and_classes(slider):
    assert slider.p.description == "exponent" and "mgkit-p" in slider.p._dom_classes
    assert slider.query.description == "query" and "mgkit-query" in slider.query._dom_classes
    assert "mgkit-explorer" in slider._dom_classes


def test_without_a_kernel_a_sentence_stands_there(slider):
    text = slider._repr_mimebundle_()["text/plain"]
    assert text == repr(slider) and "A slider of the pooling exponent p" in text and "figure, below" in text


# --- Queries


@pytest.fixture
def browser(tiny_net, uneven_images):
    tiny_net.classes = uneven_images.classes
    rows = embed(tiny_net, uneven_images, size=32, precision="float32", description=None)
    labels = uneven_images.labels
    collection = Collection(
        uneven_images, rows, queries=[20, 2, 11], truth=lambda i, j: bool(labels[i] == labels[j]),
        titles={20: "AP 3.0 %"}, classes=lambda i: [("moss & <bark>", 0.875), ("sand", 0.125)],
    )  # fmt: skip
    return widgets.query_browser(collection, describe=describe_with(tiny_net, size=32), k=5)


def test_a_query_is_chosen(browser, uneven_images):
    name = Path(uneven_images.paths[20]).name
    assert browser.query.options[0] == (f"1. {name} AP 3.0 %", 20) and len(browser.query.options) == 3
    assert line(browser).startswith(f"{name} AP 3.0 %\n") and "of the first 5 are right" in line(browser)
    browser.query.value = 11
    answers = browser.collection.answers(11, 5)
    assert captions(browser)[1:] == [
        f"{'✓' if right else '✗'} {score:.2f}"
        for right, score in zip(answers.right, answers.scores, strict=True)
    ]
    assert "moss &amp; &lt;bark&gt; 87.5 %" in browser.page.value and 'value="0.1250"' in browser.page.value
    assert len(pictures(browser)) == 6
    assert Image.open(io.BytesIO(decoded(pictures(browser)[0]))).size == uneven_images.load(11).size


def decoded(uri):
    return base64.b64decode(uri.split(",")[1])


def test_queries_are_found_by_name(browser, uneven_images):
    browser.find.value = Path(uneven_images.paths[2]).name.upper()
    assert [value for _, value in browser.query.options] == [
        i for i in (20, 2, 11) if Path(uneven_images.paths[i]).name == Path(uneven_images.paths[2]).name
    ]
    browser.find.value = "<nothing>"
    assert line(browser) == "No query's name contains <nothing>." and not browser.page.value
    browser.find.value = ""
    assert len(browser.query.options) == 3
    assert name_shown(browser) in line(browser) and len(pictures(browser)) == 6, "the first is shown again"


def test_of_many_queries_the_first_are_listed(uneven_images, monkeypatch):
    monkeypatch.setattr(widgets, "LISTED", 7)
    rows = np.eye(24, dtype=np.float32)
    browser = widgets.query_browser(Collection(uneven_images, rows))
    assert [value for _, value in browser.query.options] == list(range(7))
    assert not hasattr(browser, "upload") and "right" not in line(browser)


def bring(browser, name, content):
    given = {"name": name, "type": "image/png", "size": len(content), "content": memoryview(content)}
    browser.upload.value = ({**given, "last_modified": datetime.datetime.now(datetime.timezone.utc)},)


def test_a_picture_is_brought_along(browser, uneven_images):
    bring(browser, EVIL, Path(uneven_images.paths[13]).read_bytes())
    width, height = uneven_images.load(13).size
    assert line(browser) == f"{EVIL}, {width} × {height} pixels, and its 5 nearest images."
    assert captions(browser)[:2] == ["your picture", "1.00"] and EVIL in names(browser)
    assert "<img src=x" not in browser.page.value + browser.line.value
    assert names(browser)[1] == Path(uneven_images.paths[13]).name
    assert "mgkit-classes" in browser.page.value
    assert browser.upload.value == (), "the bytes are not kept"


def name_shown(browser):
    return Path(browser.collection.images.paths[browser.query.value]).name


def test_after_a_picture_of_one_s_own_any_query_can_be_chosen(browser, uneven_images):
    chosen = browser.query.value
    for find in ("", "."):
        bring(browser, "mine.png", Path(uneven_images.paths[13]).read_bytes())
        assert browser.query.label == "your picture"
        if find:
            browser.find.value = find
        else:
            browser.query.value = chosen  # which was chosen before
        assert name_shown(browser) in line(browser) and "your picture" not in captions(browser)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8\xff\xe0 cut off"])
def test_what_is_no_picture_gets_one_line(browser, content):
    bring(browser, EVIL, content)
    assert line(browser).startswith(f"cannot read the image {EVIL}: ") and "\n" not in line(browser)
    assert browser.page.value == "" and "<img" not in browser.line.value
    browser.query.value = 2
    assert len(pictures(browser)) == 6, "it goes on"


def test_a_huge_picture_gets_one_line(browser):
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    bring(browser, "bomb.png", file.getvalue())
    assert line(browser).startswith("cannot read the image bomb.png: it has 100 megapixels")


def test_names_are_escaped_and_broken_files_named(tmp_path):
    for seed, name in enumerate([EVIL, "plain.png", "gone.png", "\udcff.png"]):
        if name.startswith("\udcff"):
            noise(seed).save(str(tmp_path / "x.png"))
            (tmp_path / "x.png").rename(tmp_path / name)
        else:
            write_picture(tmp_path / name, seed=seed)
    images = plain_images(tmp_path)
    gone = next(i for i, path in enumerate(images.paths) if path.endswith("gone.png"))
    (tmp_path / "gone.png").unlink()
    browser = widgets.query_browser(Collection(images, np.eye(4, dtype=np.float32)))
    for _, i in browser.query.options:
        browser.query.value = i
        assert "<img src=x" not in browser.page.value and EVIL in names(browser)
        assert "<em>gone.png: unreadable</em>" in browser.page.value and len(pictures(browser)) == 3
        (browser.page.value + browser.line.value + str(browser.query.options)).encode()  # no half characters
    assert any(EVIL in label for label, _ in browser.query.options) and gone in range(4)


def test_thumbnails_are_made_once(browser, monkeypatch):
    browser.query.value = 2
    page = browser.page.value
    browser.query.value = 11
    monkeypatch.setattr(widgets, "thumbnail", lambda *_: pytest.fail("decoded again"))
    browser.query.value = 2
    assert browser.page.value == page


# --- Matching regions


@pytest.fixture
def heats(tiny_net, searched_set):
    return widgets.heat_maps(SetMaps(tiny_net, searched_set, size=32, description=None), k=3)


def test_heat_maps_follow_their_controls(heats):
    seen = {heats.page.value}
    heats.p.value = 10.0
    seen.add(heats.page.value)
    heats.neighbour.value = heats.neighbour.options[2][1]
    seen.add(heats.page.value)
    q = heats.query.options[-1][1]
    heats.query.value = q
    seen.add(heats.page.value)
    assert len(seen) == 4 and len(pictures(heats)) == 4
    maps, pair = heats.held.maps, (heats.held.set.queries[q], heats.neighbour.value)
    found = match(maps.map(pair[0]), maps.map(pair[1]), 10.0)
    assert line(heats).startswith(f"p = 10.00: similarity {found.similarity:.3f}; half of it comes from ")
    assert captions(heats)[1] == f"up to {100 * found.first.max():.1f} % per position"
    assert [name for name in names(heats) if name.endswith("heat map")] == names(heats)[1::2]
    descriptors = heats.held.descriptors(3.0)
    assert [image for _, image in heats.neighbour.options] == [
        image for image, _, _ in heats.held.neighbours(q, descriptors, 3)
    ]
    assert all(label[3] in "✓✗–" for label, _ in heats.neighbour.options)


# --- λ and N


def test_the_toy_batch_follows_its_controls(tiny_net, uneven_images):
    toy = widgets.toy_batch(ToyBatches(tiny_net, uneven_images, size=24))
    batch = toy.toys.draw(3)
    assert line(toy) == f"{batch.counts()}.\n{batch.summary(0.5)}."
    assert toy.page.value.count("mgkit-row") == 4 and len(pictures(toy)) == 12
    page = toy.page.value
    toy.lambda_.value = 0.2
    assert line(toy).endswith(f"{batch.summary(0.2)}.") and toy.page.value == page
    toy.copies.value = 6
    assert (
        line(toy).startswith("N = 6: 12 samples are 2 images × 6 copies")
        and toy.page.value.count("mgkit-row") == 2
    )
    page = toy.page.value
    toy.another.click()
    assert toy.page.value != page and line(toy).startswith("N = 6")


def test_a_picture_too_narrow_for_the_network_gets_one_line(browser, tiny_net):
    demanding(tiny_net)
    file = io.BytesIO()
    noise(0, (400, 20)).save(file, "PNG")
    bring(browser, "banner\n.png", file.getvalue())
    assert line(browser) == r"banner\n.png: 32 x 1 px at size 32 is too narrow for tiny"
    assert browser.page.value == ""
