"""The report: one file without external links, safe for any name; complete counts, bounded size, atomic."""

import base64
import hashlib
import json
import os
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgkit.engine.run import Run
from mgkit.photos.report import page as module
from mgkit.photos.report.page import save_report, summary
from mgkit.photos.report.sections import (
    MOST_CLASSES,
    MOST_GROUPS,
    MOST_MEMBERS,
    MOST_NEIGHBOURS,
    MOST_PER_CLASS,
    MOST_QUERIES,
)
from mgkit.photos.report.thumbnails import SIDE

pytestmark = pytest.mark.usefixtures("here")

NAMES = [
    "plain.jpg", "a b.jpg", "it's \"quoted\".jpg", "<img src=x onerror=alert(1)>.jpg",
    "<_figcaption><script>alert(2)<_script>.jpg",
    "&lt;&amp;.jpg", "naïve 🏖️👨‍👩‍👧.jpg", "line\nbreak.jpg", "{{ 7 * 7 }}.jpg",
    "javascript:alert(3).jpg", os.fsdecode(b"\xff\xfe.jpg"),
]  # fmt: skip


class Page(HTMLParser):
    """The tags of a page with their attributes, its text, and what stands in its scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.hidden = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        last = self.tags[-1][0] if self.tags else ""
        (self.hidden if last in ("script", "style") and data.strip() else self.text).append(data)

    def data(self, key):
        """What a script element holds as data."""
        scripts = [attributes.get("id") for tag, attributes in self.tags if tag in ("script", "style")]
        return json.loads(self.hidden[scripts.index(key)])


def page_of(found, tmp_path):
    Run(found.task.config)
    path = save_report(found)
    assert path == tmp_path / "outputs/mini/search_photos/report.html"
    return path, path.read_text(encoding="utf-8")


def test_every_name_is_shown_and_none_is_more_than_text(found, tmp_path):
    left_out = {f"/x/{name}": "the file is <b>empty</b>" for name in NAMES}
    result = found(NAMES, groups=[range(len(NAMES))], left_out=left_out, others={".<i>": 2})
    path, text = page_of(result, tmp_path)
    page = Page(text)
    assert {tag for tag, _ in page.tags} == {
        "html", "head", "meta", "title", "style", "body", "a", "header", "h1", "h2", "h3", "table", "tr",
        "th", "td", "p", "details", "summary", "nav", "ul", "li", "div", "label", "input", "output", "span",
        "main", "section", "figure", "button", "img", "figcaption", "bdi", "br", "noscript", "canvas",
        "script",
    }  # fmt: skip
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    shown = "".join(page.text)
    for name in NAMES:
        assert result.name([os.path.basename(p) for p in result.images.paths].index(name)) in shown
    assert r"\xff\xfe.jpg" in shown and r"line\nbreak.jpg" in shown and "{{ 7 * 7 }}.jpg" in shown
    assert "<b>empty</b>" in shown and "class <0>" in shown and ".<i> 2" in shown
    alts = {attributes["alt"] for tag, attributes in page.tags if tag == "img"}
    assert "<img src=x onerror=alert(1)>.jpg" in alts
    assert page.data("names-data")["names"] == [result.name(i) for i in range(len(NAMES))]


def test_nothing_is_loaded_from_anywhere(found, tmp_path):
    _, text = page_of(found(NAMES, groups=[range(4)]), tmp_path)
    page = Page(text)
    sources = [
        attributes.get(key)
        for _, attributes in page.tags
        for key in ("src", "href", "data", "action", "srcset")
    ]
    sources = [source for source in sources if source]
    assert sources and all(source.startswith(("data:image/jpeg;base64,", "#")) for source in sources)
    assert "url(" not in text and "@import" not in text and "://" not in text
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    [policy] = [
        a["content"]
        for tag, a in page.tags
        if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; img-src data:; ") and "unsafe" not in policy
    style, script = page.hidden[0], page.hidden[-1]
    for content in (style, script):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_thumbnails_are_the_pictures_and_small(found, tmp_path):
    result = found(["a.jpg", "b.jpg"], groups=[(0, 1)])
    _, text = page_of(result, tmp_path)
    page = Page(text)
    uris = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    small = Image.open(BytesIO(base64.b64decode(uris[0].partition(",")[2])))
    assert small.format == "JPEG" and max(small.size) <= SIDE
    assert np.abs(np.asarray(small, float) - np.asarray(result.images.load(0, least=128), float)).mean() < 25


def test_the_size_is_bounded_and_counts_are_complete(found, tmp_path):
    names = [f"{i:04}.jpg" for i in range(600)]
    groups = [range(10 * g, 10 * g + 10) for g in range(58)] + [range(580, 600)]
    left_out = {f"/x/{i}.jpg": "the file is empty" for i in range(3000)}
    result = found(names, groups=groups, left_out=left_out, labels=np.arange(600) % 30, queries=600, k=50)
    path, text = page_of(result, tmp_path)
    pictures = sum(tag == "img" for tag, _ in Page(text).tags)
    most = 2 * MOST_GROUPS * MOST_MEMBERS + MOST_CLASSES * MOST_PER_CLASS
    most += MOST_QUERIES * (1 + MOST_NEIGHBOURS)
    assert pictures <= most and path.stat().st_size < 6e6
    assert "There are 59 groups, of which 40 are shown; all of them are in near_duplicates.csv" in text
    assert "There are 3,000 files and folders that were left out, of which 500 are shown" in text
    assert "There are 30 classes, of which 12 are shown" in text and text.count("<bdi>/x/") == 500
    assert "1.0 MB" in summary(path).replace(f"{path.stat().st_size / 1e6:.1f}", "1.0") and str(
        path
    ) in summary(path)


def test_pairs_that_were_not_all_counted_are_said_to_be_at_least_so_many(found, tmp_path):
    result = replace(found(["a.jpg", "b.jpg"], groups=[(0, 1)], queries=0), more_pairs=True)
    _, text = page_of(result, tmp_path)
    assert "in 1 groups joined by at least 1 pairs" in text


def test_a_picture_that_has_gone_is_named_without_a_thumbnail(found, tmp_path):
    result = found(["a.jpg", "b.jpg"], groups=[(0, 1)])
    Path(result.images.paths[1]).unlink()
    _, text = page_of(result, tmp_path)
    assert "b.jpg" in text and '<span class="gone">' in text and "<br>gone" in text


def test_one_picture_makes_a_report(found, tmp_path):
    _, text = page_of(found(["a.jpg"]), tmp_path)
    assert text.count("There are 0 groups.") == 2 and "too few different pictures for a map" in text
    assert "1 pictures below &lt;my&gt; pictures" in text


def test_a_report_that_fails_leaves_the_old_one_and_nothing_half_written(found, tmp_path, monkeypatch):
    result = found(["a.jpg", "b.jpg"])
    path, before = page_of(result, tmp_path)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        save_report(result)
    assert path.read_text(encoding="utf-8") == before
    assert {p.name for p in path.parent.iterdir()} == {"config.yaml", "provenance.yaml", "report.html"}


def test_a_map_that_makes_the_file_too_large_is_left_out(found, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    _, text = page_of(found([f"{i}.jpg" for i in range(12)]), tmp_path)
    assert "The map is left out: the file would be too large with it." in text and "<canvas" not in text
    assert '<button type="button" class="look"' not in text


def test_a_second_report_decodes_no_picture(found, tmp_path, monkeypatch):
    result = found([f"{i}.jpg" for i in range(12)], groups=[(0, 1)])
    _, before = page_of(result, tmp_path)
    monkeypatch.setattr(type(result.images), "load", lambda *_, **__: pytest.fail("decoded again"))
    assert page_of(result, tmp_path)[1] == before
