"""A pass beside other work on the same cores: how much slower than the same pass alone.

Part of `make bench` (`rows`). The passes run in processes that are started as anyone starts them, without an
environment variable for OpenMP, so that what `import mgkit` sets is what is measured. EfficientNet-Lite0 at
224 px with two loader workers. Beside it runs a plain loop, or two, or a second pass that starts with it.

With two threads on two cores, one loop leaves one of them half a core, and the other waits for it: 2 times as
slow. Two loops leave both of them half a core, and so does a second pass.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median

from measuring import Row, photo_folder

IMAGES = 32
OPENMP = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # how its threads wait
BUSY = "while True: pass"
# Imports the kit first, as the notebooks do. Each line that it reads is answered with the seconds of a pass.
PASSES = """
import sys
from time import perf_counter
from mgkit.data.layouts import class_folders
from mgkit.features import Passes, feature_maps, frozen_backbone
from mgkit.model import get_multigrain

folder, count = sys.argv[1], int(sys.argv[2])
net = get_multigrain("efficientnet_lite0").eval()
whole = class_folders(folder)
images = whole.subset([k % len(whole) for k in range(count)])
backbone = frozen_backbone(net)
passes = Passes(crop="square", batch_size=8, workers=2, description=None, backbone=backbone)

def seconds():
    start = perf_counter()
    for _ in feature_maps(net, images, size=224, passes=passes):
        pass
    return perf_counter() - start

seconds()
print("ready", flush=True)
for _ in sys.stdin:
    print(seconds(), flush=True)
"""
BESIDE = {  # name: loops, passes, how many times as slow is allowed
    "one busy process": (1, 0, 2.1),
    "two busy processes": (2, 0, 2.5),
    "a second pass": (0, 1, 2.2),
}


@contextmanager
def python(code: str, *arguments: str) -> Iterator[subprocess.Popen]:
    """A process of this Python that runs the code; it ends with the block."""
    environment = {name: value for name, value in os.environ.items() if name not in OPENMP}
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def slowest(passing: Sequence[subprocess.Popen], loops: int = 0) -> float:
    """Seconds of one pass in each of these processes at once, beside so many busy processes."""
    with ExitStack() as stack:
        for _ in range(loops):
            stack.enter_context(python(BUSY))
        for process in passing:
            print(file=process.stdin, flush=True)
        return max(float(process.stdout.readline()) for process in passing)


def rows(rounds: int = 5, images: int = IMAGES) -> list[Row]:
    """A row for each kind of other work; in each round, all follow one pass alone."""
    taken = {name: [] for name in ("alone", *BESIDE)}
    given = str(photo_folder().resolve()), str(images)
    with python(PASSES, *given) as ours, python(PASSES, *given) as second:
        for process in (ours, second):
            process.stdout.readline()  # ready
        for _ in range(rounds):
            taken["alone"].append(slowest([ours]))
            for name, (loops, passes, _) in BESIDE.items():
                taken[name].append(slowest([ours, second][: 1 + passes], loops))
    return [row(name, taken, wanted) for name, (*_, wanted) in BESIDE.items()]


def row(name: str, taken: dict[str, list[float]], wanted: float) -> Row:
    """How many times as slow as alone, the median over the rounds."""
    slower = median(beside / alone for beside, alone in zip(taken[name], taken["alone"], strict=True))
    raw = {"seconds": taken[name], "floor_seconds": taken["alone"]}
    stage = f"contention: a pass beside {name}, alone"
    return Row(stage, median(taken[name]), median(taken["alone"]), "s", slower, wanted, True, raw=raw)
