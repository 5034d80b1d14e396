"""The report in a real browser, opened as a file: search, keys, map, dark mode, a phone, 20,000 pictures.

Without a browser the tests are skipped; with MGKIT_BROWSER=required they fail.
"""

import os
import time
from dataclasses import replace

import numpy as np
import pytest
from browsers import chromium

from mgkit.engine.run import Run
from mgkit.photos.copies.groups import Group
from mgkit.photos.copies.pairs import SAME_FILE, SAME_MOMENT
from mgkit.photos.report.page import report_text, save_report

pytestmark = pytest.mark.usefixtures("here")

CLOSING = "x</script><script>alert(3)</script>.jpg"  # folders x<, script><script>alert(3)<
NAMES = [
    "Käse.jpg", "<img src=x onerror=alert(1)>.jpg", "<_script><script>alert(2)<_script>.jpg", "a b.jpg",
    "naïve 🏖️.jpg", "{{ 7 * 7 }}.jpg", CLOSING, "line\nbreak.jpg", *(f"IMG_{n:02}.jpg" for n in range(13)),
]  # fmt: skip
# By path: the script, the img, IMG_00 to IMG_12, Käse, a b, line, naïve, x<, {{.
COPIES = Group((1, 2, 15), (0.9,) * 3, SAME_FILE, turns=(1,) * 3, kept=1, reason="most pixels", going=(1, 15))
FRAMES = Group((16, 18), (0.7,) * 2, SAME_MOMENT, turns=(1,) * 2)
SECONDS_TO_OPEN = 10


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A function: the file of the report on NAMES, which is written once."""
    path = tmp_path_factory.mktemp("report") / "report.html"

    def of(found):
        if not path.exists():
            result = found(NAMES, groups=[COPIES, FRAMES], queries=3)
            path.write_text(report_text(result, path.parent), encoding="utf-8")
        return path

    return of


@pytest.fixture
def opened(found, written, browser):
    """A function: the page of a report, opened. Afterwards: nothing was loaded, nothing went wrong."""
    pages, wrong = [], []

    def of(result=None, **options):
        path = written(found) if result is None else saved(result)
        page = browser.new_context(**options).new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda request: pages.append(request.url))
        page.goto(path.as_uri())
        return page

    yield of
    assert not wrong
    assert all(url.startswith(("file:", "data:")) for url in pages)
    for context in browser.contexts:
        context.close()


def saved(result):
    Run(result.task.config)
    return save_report(result)


def drawing(page):
    """The canvas of the map as text, once it is drawn."""
    page.wait_for_timeout(150)
    return page.evaluate("document.getElementById('plane').toDataURL()")


def focused(page):
    return page.evaluate("document.activeElement.closest('.picture')?.querySelector('bdi').textContent")


# --- Search


def test_typing_filters_the_rows_and_counts_the_pictures(opened):
    page = opened()
    page.get_by_label("Search by name").fill("KASE")
    assert page.locator("#count").inner_text() == "1 of 21 pictures"
    assert page.locator("#hits li bdi").all_inner_texts() == ["Käse.jpg"]
    shown = page.locator("#same-file .group:visible, #same-moment .group:visible")
    assert shown.count() == 1 and "Käse.jpg" in shown.inner_text()
    assert page.locator("#same-file .hit").count() == 1
    assert "No picture here" in page.evaluate(
        "getComputedStyle(document.getElementById('same-moment'), '::after').content"
    )


def test_a_picture_that_is_not_shown_is_found_with_its_group(opened, found, monkeypatch):
    monkeypatch.setattr("mgkit.photos.report.sections.MOST_GROUPS", 0)
    page = opened(found(NAMES, groups=[COPIES, FRAMES], queries=0))
    page.get_by_label("Search by name").fill("kase")
    assert "Käse.jpg group 1 of near_duplicates.csv" in page.locator("#hits li").inner_text()


def test_a_hit_leads_to_its_group_and_to_its_place_on_the_map(opened):
    page = opened()
    page.get_by_label("Search by name").fill("käse")
    page.locator("#hits a").click()
    assert page.evaluate("document.activeElement.id") == "group-1"
    top, bar = (page.locator(each).bounding_box() for each in ("#group-1", "#search"))
    assert top["y"] >= bar["y"] + bar["height"] - 2
    page.locator("#hits button").click()
    assert page.evaluate("document.activeElement.id") == "plane"
    assert page.locator("#details-name").inner_text() == "Käse.jpg"


# --- Keys


def test_slash_searches_and_escape_clears(opened):
    page = opened()
    page.keyboard.press("/")
    page.keyboard.type("img")
    assert page.get_by_label("Search by name").input_value() == "img"
    assert page.locator("#count").inner_text().startswith("14 of 21 pictures")
    page.keyboard.press("Escape")
    assert page.get_by_label("Search by name").input_value() == "" and not page.locator(".hit").count()
    assert page.locator(".group:visible").count() == page.locator(".group").count()


def test_arrows_move_within_a_row_and_between_rows(opened):
    page = opened()
    page.locator(".look").first.focus()
    first = focused(page)
    for key, place in (("ArrowRight", (0, 1)), ("ArrowDown", (1, 1)), ("ArrowUp", (0, 1)), ("End", (0, 2))):
        page.keyboard.press(key)
        row, column = place
        expected = page.locator(".group").nth(row).locator("bdi").nth(column).inner_text()
        assert focused(page) == expected
    page.keyboard.press("ArrowRight")  # there is none
    page.keyboard.press("Home")
    assert focused(page) == first


def test_tab_reaches_everything_and_the_focus_is_seen(opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.locator(".skip").bounding_box()["x"] >= 0  # it is hidden until it has the focus
    while page.evaluate("document.activeElement !== document.body"):
        page.evaluate(
            "each = document.activeElement; each.dataset.reached = getComputedStyle(each).outlineStyle"
        )
        page.keyboard.press("Tab")
    assert page.locator("[data-reached=none]").count() == 0
    wanted = "a[href], input, button, canvas, summary"
    for each in page.locator(wanted).filter(visible=True).all():
        assert each.get_attribute("data-reached"), each.evaluate("each => each.outerHTML")


# --- The map


def test_the_keys_of_the_map_select_zoom_and_move_and_tab_leaves_it(opened):
    page = opened()
    page.locator("#plane").focus()
    whole = drawing(page)
    page.keyboard.press("ArrowRight")
    first = page.locator("#details-name").inner_text()
    names = set()
    for key in ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
        names.add(page.locator("#details-name").inner_text())
    assert first and len(names) > 1
    assert page.locator("#details-near canvas").count() == 4
    page.keyboard.press("Escape")
    assert page.locator("#details").is_hidden()
    page.keyboard.press("+")
    near = drawing(page)
    page.keyboard.press("Shift+ArrowRight")
    assert len({whole, near, drawing(page)}) == 3
    page.keyboard.press("0")
    assert drawing(page) == whole
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "zoom-in"


def test_the_mouse_names_selects_zooms_and_drags(opened):
    page = opened()
    plane = page.locator("#plane")
    plane.scroll_into_view_if_needed()
    x, y = page.evaluate("plane.middle(map.tiles[0])")
    whole = drawing(page)
    plane.hover(position={"x": x, "y": y})
    tip = page.locator("#tip").inner_text()
    assert "class <0>" in tip
    plane.click(position={"x": x, "y": y})
    assert page.locator("#details-name").inner_text() == tip.split("\n")[0]
    assert "class <0>" in page.locator("#details-text").inner_text()
    plane.focus()
    page.mouse.wheel(0, -600)
    zoomed = drawing(page)
    box = plane.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 120, box["y"] + 140, steps=3)
    page.mouse.up()
    assert len({whole, zoomed, drawing(page)}) == 3


def test_the_wheel_scrolls_the_page_until_the_map_is_used(opened):
    page = opened()
    page.locator("#plane").scroll_into_view_if_needed()
    page.locator("#plane").hover(position={"x": 5, "y": 60})
    before, scrolled = drawing(page), page.evaluate("scrollY")
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(300)
    assert page.evaluate("plane.scale") == 1 and page.evaluate("scrollY") < scrolled and before


def test_two_fingers_zoom(opened):
    page = opened(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page.locator("#plane").scroll_into_view_if_needed()
    page.evaluate("""() => {
        const finger = (type, pointerId, x, y) => Object.defineProperties(
            new PointerEvent(type, { pointerId }), { offsetX: { value: x }, offsetY: { value: y } });
        plane.canvas.setPointerCapture = () => {};
        const send = (...event) => plane.canvas.dispatchEvent(finger(...event));
        send("pointerdown", 1, 100, 100); send("pointerdown", 2, 120, 100); send("pointermove", 2, 160, 100);
        send("pointerup", 1, 100, 100); send("pointerup", 2, 160, 100);
    }""")
    assert page.evaluate("plane.scale") == pytest.approx(3)
    assert page.evaluate("plane.selected") is None


def test_a_picture_of_a_row_is_shown_on_the_map_and_leads_back_to_its_group(opened):
    page = opened()
    page.locator("#same-moment .look").first.click()
    assert page.evaluate("document.activeElement.id") == "plane"
    assert page.locator("#details-name").inner_text() == page.locator("#group-2 bdi").first.inner_text()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "group-2"


# --- Looks


CONTRAST = """() => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
    const behind = (each) => {
        for (; each; each = each.parentElement) {
            const colour = numbers(getComputedStyle(each).backgroundColor);
            if (colour.length < 4 || colour[3] > 0) return colour;
        }
        return [255, 255, 255];
    };
    const hasText = (each) => [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const texts = [...document.querySelectorAll("body *:not(script)")]
        .filter((each) => each.checkVisibility() && hasText(each));
    return texts.map((each) => {
        const [a, b] = [light(numbers(getComputedStyle(each).color)), light(behind(each))];
        return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), each.tagName, each.className];
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_readable_in_both_schemes(opened, scheme):
    page = opened(color_scheme=scheme)
    page.locator("summary").click()
    page.get_by_label("Search by name").fill("jpg")
    page.locator("#same-file .look").first.click()
    red, green, blue = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)"
    )
    assert (red + green + blue < 150) == (scheme == "dark")
    ratios = page.evaluate(CONTRAST)
    assert len(ratios) > 50 and min(ratios)[0] >= 4.5, min(ratios)


def test_the_one_to_keep_is_marked_in_words(opened):
    page = opened()
    marked = page.locator("#group-1 .picture.keep")
    assert marked.count() == 1 and "✓ keep" in marked.inner_text() and "most pixels" in marked.inner_text()


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen(opened, found, width):
    long = ["x" * 200 + ".jpg", *NAMES]
    left_out = {f"/{'y' * 300}.jpg": "the file is empty"}
    page = opened(found(long, groups=[range(6)], left_out=left_out), viewport={"width": width, "height": 740})
    page.get_by_label("Search by name").fill("x")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_odd_names_stay_text_wherever_they_are_shown(opened):
    page = opened()
    page.get_by_label("Search by name").fill("<")
    listed = page.locator("#hits li bdi").all_inner_texts()
    assert listed == [r"<_script><script>alert(2)<_script>.jpg", "<img src=x onerror=alert(1)>.jpg", CLOSING]
    page.locator("#hits button").nth(1).click()
    assert page.locator("#details-name").inner_text() == "<img src=x onerror=alert(1)>.jpg"
    assert page.locator("img[src='x']").count() == 0 and page.evaluate("document.scripts.length") == 3


def test_without_scripts_the_page_shows_all_but_search_and_map(opened):
    page = opened(java_script_enabled=False)
    assert page.locator(".picture").count() > 5 and not page.get_by_role("search").is_visible()
    assert not page.locator("#plane").is_visible()


def test_a_report_of_twenty_thousand_pictures_opens_and_searches_within_seconds(opened, found):
    result = of_many(found, 20_000)
    page = opened(result)
    size = os.path.getsize(page.url.removeprefix("file://"))
    assert size < 20e6
    start = time.monotonic()
    page.reload()
    assert time.monotonic() - start < SECONDS_TO_OPEN
    page.get_by_label("Search by name").fill("19998")
    assert page.locator("#count").inner_text() == "1 of 20,000 pictures"
    page.locator("#hits button").click()
    assert page.locator("#details-name").inner_text() == "19998.jpg"


def of_many(found, count):
    """What was found in `count` pictures, which are 20 files under many names."""
    result = found([f"{i}.jpg" for i in range(20)], groups=[])
    folder, files = result.images.root, result.images.paths
    paths = [str(folder / f"{i:05}.jpg") for i in range(count)]
    for i, path in enumerate(paths):
        os.symlink(files[i % 20], path)
    images = replace(result.images, paths=tuple(paths), labels=np.full(count, -1))
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 16))[np.arange(count) % 50] + 0.3 * rng.normal(size=(count, 16))
    groups = [Group(tuple(range(g, g + 4)), (0.9,) * 4, SAME_FILE, turns=(1,) * 4) for g in range(0, 8000, 4)]
    return replace(
        result, task=replace(result.task, folder=replace(result.task.folder, images=images)), groups=groups,
        descriptors=(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32),
        labels=np.arange(count)[:, None] % 30, probabilities=rng.uniform(size=(count, 1)),
        facts=lambda i: result.facts(i % 20),
    )  # fmt: skip
