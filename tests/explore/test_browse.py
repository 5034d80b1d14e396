"""Collections, readable names of classes, uploaded pictures."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from support import noise, one_line_error, with_malformed_tag

from mgkit.data.decoding import UnreadableImageError
from mgkit.explore.browse import (
    Collection,
    describe_with,
    judged_collection,
    likely_classes,
    read_picture,
    set_collection,
)
from mgkit.features import classify, embed, pooled
from mgkit.model import append_one
from mgkit.retrieval.search import top_k
from mgkit.whitening import fit_pca_whitening, whiten


def unit_rows(count, dim=6, seed=0):
    rows = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# --- Collections


def test_answers_are_the_nearest_without_the_query(uneven_images):
    rows = unit_rows(24)
    collection = Collection(uneven_images, rows)
    assert collection.queries.tolist() == list(range(24))
    scores, found = top_k(rows, rows, k=24)
    for query in (0, 13):
        answers = collection.answers(query, 5)
        kept = found[query] != query
        assert answers.neighbours == found[query][kept][:5].tolist()
        assert answers.scores == pytest.approx(scores[query][kept][:5].tolist())
        assert answers.right == [None] * 5 and answers.classes == []


def test_a_twin_of_the_query_is_an_answer(uneven_images):
    rows = unit_rows(24)
    rows[3] = rows[9]
    assert Collection(uneven_images, rows).answers(9, 1).neighbours == [3]
    assert Collection(uneven_images, rows).answers(3, 1).neighbours == [9]


def test_queries_database_truth_and_classes(uneven_images):
    rows = unit_rows(24)
    collection = Collection(
        uneven_images, rows, queries=[20, 2], database=[0, 5, 7, 20], titles={20: "AP 3 %"},
        truth=lambda i, j: None if j == 5 else j == 7, classes=lambda i: [("moss", i / 100)],
    )  # fmt: skip
    answers = collection.answers(20, 10)
    assert sorted(answers.neighbours) == [0, 5, 7]  # fewer than asked for: there are no more
    assert dict(zip(answers.neighbours, answers.right, strict=True)) == {0: False, 5: None, 7: True}
    assert answers.classes == [("moss", 0.2)] and collection.queries.tolist() == [20, 2]


def test_unreadable_images_neither_ask_nor_answer(uneven_images):
    rows = unit_rows(24)
    rows[[2, 4]] = np.nan
    collection = Collection(uneven_images, rows, queries=[4, 5])
    assert collection.queries.tolist() == [5]
    answers = collection.answers(5, 24)
    assert len(answers.neighbours) == 21 and not {2, 4, 5} & set(answers.neighbours)


def test_collections_that_cannot_be(uneven_images):
    rows = unit_rows(24)
    with one_line_error(ValueError, "descriptors", 23, 24):
        Collection(uneven_images, rows[:23])
    with one_line_error(ValueError, "queries", 24):
        Collection(uneven_images, rows, queries=[0, 24])
    with one_line_error(ValueError, "database", "-1"):
        Collection(uneven_images, rows, database=[-1])
    with one_line_error(ValueError, "queries", "readable"):
        Collection(uneven_images, np.full_like(rows, np.nan))
    with one_line_error(ValueError, "queries"):
        Collection(uneven_images, rows, queries=[])


def test_a_set_of_05_failures_first(retrieved, chain, monkeypatch):
    monkeypatch.chdir(chain.folder)  # whose features are read
    task, found = retrieved
    for each in [each for each in task.sets if each.level is None]:
        collection = set_collection(task, found, each.name)
        own = [r for r in found if r.result.name == each.name and r.descriptor == "GeM, p*, whitened"][-1]
        assert sorted(collection.queries) == sorted(each.queries)
        values = own.result.per_query[[list(each.queries).index(i) for i in collection.queries]]
        assert (np.diff(values[np.isfinite(values)]) >= 0).all()
        examples = list(collection.examples(3))
        assert examples[0] == collection.queries[0] and examples[-1] in collection.titles
        assert list(collection.examples(3).values())[0].startswith("worst: ")
        first = int(collection.queries[0])
        q = list(each.queries).index(first)
        answers = collection.answers(first, 3)
        assert set(answers.neighbours) <= set(each.database.tolist())
        assert answers.right == [j in each.positives[q] for j in answers.neighbours]
        assert collection.titles[first].startswith("score" if each.measure == "score" else "AP")
        assert len(answers.classes) == 5 and 0 < sum(share for _, share in answers.classes) <= 1
    with one_line_error(ValueError, "nowhere", task.sets[0].name):
        set_collection(task, found, "nowhere")


def test_examples_go_from_the_worst_to_the_best_query_with_answers(searched_set, uneven_images):
    values = np.random.default_rng(0).permutation(len(searched_set.queries)) / 10
    values[0] = np.nan
    collection = judged_collection(searched_set, unit_rows(len(searched_set.images)), values)
    ranked = [int(searched_set.queries[q]) for q in np.argsort(values)[: len(values) - 1]]
    middle = ranked[(len(ranked) - 1) // 2]
    assert list(collection.examples(3)) == [ranked[0], middle, ranked[-1]]
    assert collection.examples(1) == {ranked[0]: f"worst: {collection.titles[ranked[0]]}"}
    unjudged = Collection(uneven_images, unit_rows(24), queries=[4, 5, 7], titles={5: "(group 1)"})
    assert unjudged.examples(3) == {4: "query", 5: "query (group 1)", 7: "query"}


# --- Classes and descriptors


def test_a_picture_is_described_as_its_file_is(tiny_net, uneven_images):
    tiny_net.classes = uneven_images.classes
    describe = describe_with(tiny_net, size=32, p=2.0)
    exact = {"size": 32, "precision": "float32", "description": None}
    rows = embed(tiny_net, uneven_images, ps=[2.0], **exact)[0]
    logits, _ = classify(tiny_net, uneven_images, crop="rect", p=2.0, **exact)
    for i in (0, 7):
        descriptor, classes = describe(uneven_images.load(i))
        np.testing.assert_allclose(descriptor, rows[i], atol=1e-5)
        best = logits[i].softmax(0).sort(descending=True)
        assert [name for name, _ in classes] == [uneven_images.classes[label] for label in best.indices]
        assert [share for _, share in classes] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_whitening_leaves_the_probabilities_as_they_were(tiny_net, uneven_images):
    rows = torch.from_numpy(pooled(tiny_net, uneven_images, size=32, ps=[3.0], description=None)[0])
    whitened = whiten(tiny_net, *fit_pca_whitening(append_one(rows), shrinkage=0.1))
    for row in rows[:5]:
        before, after = likely_classes(tiny_net, row, ()), likely_classes(whitened, row, ())
        assert [name for name, _ in before] == [name for name, _ in after] and before[0][0].startswith(
            "class "
        )
        assert [share for _, share in after] == pytest.approx([share for _, share in before], abs=1e-4)


# --- Pictures that are brought along


def as_file(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "I;16"])
def test_pictures_of_every_mode(mode):
    image = noise(0) if mode == "RGB" else Image.new(mode, (24, 16))
    picture = read_picture("x.png", as_file(image))
    assert picture.mode == "RGB" and picture.size == (24, 16)
    if mode == "RGB":
        assert np.array_equal(picture, image)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_pictures_of_every_kind(kind):
    assert read_picture("x", as_file(noise(0), kind)).size == (24, 16)


def test_the_cameras_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_picture("x.jpg", as_file(noise(0), "JPEG", exif=exif)).size == (16, 24)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_malformed_tag_beside_the_rotation_does_no_harm(kind):
    content = with_malformed_tag(noise(0), kind)
    plain = Image.open(io.BytesIO(content)).convert("RGB")
    picture = read_picture("x", content)
    assert np.array_equal(picture, np.rot90(np.asarray(plain), -1)) and 0x0112 not in picture.getexif()


@pytest.mark.filterwarnings("ignore")  # PIL warns of damage
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
def test_a_damaged_picture_is_read_or_refused_in_one_line(kind):
    tagged = kind in ("JPEG", "PNG", "WEBP")
    whole = with_malformed_tag(noise(0), kind) if tagged else as_file(noise(0), kind)
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 150), 3):
            damaged[place] = rng.integers(256)
        try:
            read_picture("x", bytes(damaged))
        except UnreadableImageError as error:
            assert str(error).startswith("cannot read the image x: ") and "\n" not in str(error)


NAMES = ["a b.jpg", "<b>&\"'.png", "😀.gif", "..\\..\\x.tif"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "the file is empty"),
        (b"hello", "not an image in one of the formats BMP, GIF, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (as_file(noise(0), "JPEG")[:200], ""),
        (as_file(noise(0, (200, 200)), "JPEG")[:9000], "truncated"),
        (as_file(noise(0), "PNG")[:100], ""),
    ],
)
def test_what_is_no_whole_picture_is_refused_in_one_line(name, content, why):
    with one_line_error(UnreadableImageError, name, why):
        read_picture(name, content)


@pytest.mark.parametrize(
    ("side", "size"),
    [(10_000, "100 megapixels, at most 50"), (20_000, "more than 179 megapixels, at most 50")],
)
def test_a_huge_picture_is_refused_without_decoding_it(side, size, recwarn):
    content = as_file(Image.new("1", (side, side)))
    assert len(content) < 10**6
    with one_line_error(UnreadableImageError, "bomb.png", size):
        read_picture("bomb.png", content)
    assert not recwarn.list
