"""Stanford Online Products: products of an online shop, in classes of some photographs each."""

from functools import partial
from pathlib import Path

from mgkit.benchmarks.classes.split import (
    TestImages,
    checked_names,
    class_set,
    compare_test,
    spaced_rows,
    whole_number,
)
from mgkit.benchmarks.published import Archive, Benchmark, Companion, check_lists, kept_from
from mgkit.benchmarks.retrieval_set import RetrievalSet

FOLDER = "Stanford_Online_Products"
TEST_LIST = f"{FOLDER}/Ebay_test.txt"
FIELDS = ("image_id", "class_id", "super_class_id", "path")
RECALLS = (1, 10, 100, 1000)
SOP_URL = f"ftp://cs.stanford.edu/cs/cvgl/{FOLDER}.zip"
SOP_SHA256 = "b04fa78210e69fab050ce73939550e1cd0f96890bdd98ec9fee732c3b756ef48"


def sop_test(root: Path) -> TestImages:
    """Read `Ebay_test.txt`: a line of field names, then image, class, kind of product and path."""
    listing = root / TEST_LIST
    rows = [
        (f"{FOLDER}/{path}", whole_number(listing, line, number, "class_id"))
        for line, (_, number, _, path) in spaced_rows(listing, FIELDS, above=1)
    ]
    names = checked_names(listing, [name for name, _ in rows])
    return TestImages(names, tuple(number for _, number in rows), listing)


SOP = Benchmark(
    {FOLDER: 120_053},
    ("*.jpg",),
    partial(check_lists, sop_test, partial(compare_test, 60_502, 11_316)),
    (Archive((SOP_URL,), partial(kept_from, FOLDER), (FOLDER,), SOP_SHA256),),
    (Companion(TEST_LIST, "the test images and their classes"),),
    depth=1,
    beside=("*.txt", "readme*", "license*"),
)


def sop(root: str | Path) -> RetrievalSet:
    """Read the test images of Stanford Online Products: each is a query, without itself in its ranking.

    Recall@1 is measured, and Recall@10, @100 and @1000. Raises FileNotFoundError for a missing list, folder
    or image, ValueError for a wrong line.
    """
    return class_set("sop", Path(root), [FOLDER], sop_test(Path(root)), RECALLS)
