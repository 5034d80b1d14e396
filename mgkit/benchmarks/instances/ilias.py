"""ILIAS: 1,000 objects on clean ground, to be found in cluttered scenes among millions of photographs."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from mgkit.benchmarks.published import Archive, Benchmark, Images, kept_from
from mgkit.benchmarks.retrieval_set import RetrievalSet, files_below, files_of, unlabelled

CORE, MINI = "ilias_core", "mini"
KINDS = {"query": 1_232, "pos": 4_715}
OBJECTS = 1_000
CUTOFF = 1000  # of mAP@1k
ILIAS_URL = f"https://vrg.fel.cvut.cz/ilias_data/{CORE}.tar"


def check_objects(folder: Path, images: Images) -> Iterator[str]:
    """Yield findings on the numbers of objects, queries and positives."""
    objects, of_kind = set(), dict.fromkeys(KINDS, 0)
    for name in images[CORE]:
        parts = name.split("/")
        objects.add(parts[0])
        if parts[1:-1] and parts[1] in of_kind:
            of_kind[parts[1]] += 1
    if images[CORE] and len(objects) != OBJECTS:
        yield f"{len(objects):,} objects, published are {OBJECTS:,}"
    for kind, number in of_kind.items():
        if images[CORE] and number != KINDS[kind]:
            yield f"{number:,} images in the folders {kind}/, published are {KINDS[kind]:,}"


ILIAS = Benchmark(
    {CORE: sum(KINDS.values())},
    ("*.jpg",),
    check_objects,
    (Archive((ILIAS_URL,), partial(kept_from, CORE), (CORE,)),),
    depth=2,
    beside=("*.txt", "image_ids", MINI, "yfcc100m"),
)


def ilias(root: str | Path) -> list[RetrievalSet]:
    """Read ILIAS as `ilias core`, and `ilias mini` if there are distractors, by mAP@1k.

    Of an object, `ilias_core/<object>/query/` holds queries, which are used whole, and `pos/` positives.
    Distractors of mini-ILIAS are in `mini/`, in any sub-folders. The sets share their images; rotation tags
    are applied. Queries in words are not used. Raises FileNotFoundError for a missing folder; ValueError for
    an image elsewhere, or an object without queries or positives.
    """
    root = Path(root)
    asked, answers = objects(root)
    extra = files_of(root / MINI, "ilias") if (root / MINI).is_dir() else []
    positives, queries, paths = [], [], []
    for one, found in answers.items():
        positives += [np.arange(len(paths), len(paths) + len(found))] * len(asked[one])
        queries += asked[one]
        paths += found
    database = np.arange(len(paths) + len(extra))
    images = unlabelled(root, [*paths, *extra, *queries], exif=True)
    indices = len(database) + np.arange(len(queries))
    core = RetrievalSet(
        "ilias core", images, indices, database[: len(paths)], tuple(positives), "mAP@k", cutoff=CUTOFF
    )
    return [core, replace(core, name="ilias mini", database=database)] if extra else [core]


def objects(root: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the paths of the queries and of the positives by object; raises as `ilias`."""
    paths, index_of = files_below(root, [CORE], "ilias")
    of_kind = {kind: defaultdict(list) for kind in KINDS}
    for name, index in index_of.items():
        _, one, *inside = name.split("/")
        if len(inside) != 2 or inside[0] not in KINDS:
            raise ValueError(f"ilias: {paths[index]} should be in {root / CORE}/<object>/query/ or /pos/")
        of_kind[inside[0]][one].append(paths[index])
    queries, positives = of_kind["query"], of_kind["pos"]
    lacking = sorted(queries.keys() ^ positives.keys())
    if lacking:
        kind = "pos" if lacking[0] in queries else "query"
        raise ValueError(f"ilias: {root / CORE / lacking[0] / kind} holds no images")
    return queries, positives
