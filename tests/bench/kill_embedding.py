"""Embedding that is killed at random moments and continued gives the very bytes of one that was not.

    python tests/bench/kill_embedding.py --images 20000 --kills 3 --seed 0

Draws small JPEGs in a temporary folder and embeds them by `mgkit.engine.feature_store` in a separate process,
once undisturbed and once with SIGKILLs at random moments drawn from the seed; prints what was on disk at each
kill and whether the files are equal.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

PS = [1.0, 3.0, float("inf")]
SIDES = [(48, 32), (32, 48), (40, 40), (44, 33)]  # width, height
READY = "embedding"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the pictures and of the moments of the kills")
    parser.add_argument("--embed", nargs=2, metavar=("IMAGES", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.embed:
        embed(*options.embed)
        return
    with tempfile.TemporaryDirectory() as folder:
        equal = compare(Path(folder), options)
    print("equal, bit for bit" if equal else "DIFFERENT")
    sys.exit(not equal)


def compare(folder: Path, options: argparse.Namespace) -> bool:
    """Whether the arrays of a run that is killed and continued are those of an undisturbed one."""
    random = np.random.default_rng(options.seed)
    began = time.monotonic()
    draw(folder / "images", options.images, random)
    print(f"{options.images} images drawn in {time.monotonic() - began:.1f} s")
    process, began = started(folder / "images", folder / "undisturbed")
    finish(process)
    seconds = time.monotonic() - began
    print(f"undisturbed: {seconds:.1f} s, {options.images / seconds:.0f} images/s, {len(PS)} exponents")
    kills = 0
    while kills < options.kills:
        process, began = started(folder / "images", folder / "killed")
        # On average half of the work is done before the last kill, and never all of it.
        delay = random.uniform(0, seconds / options.kills)
        time.sleep(delay)
        process.kill()
        process.communicate()
        kills += 1
        journals = [
            len(path.read_bytes().splitlines()) for path in (folder / "killed").glob("*/journal.jsonl")
        ]
        print(f"kill {kills} after {delay:.2f} s: shards on disk for each exponent {journals}")
    process, began = started(folder / "images", folder / "killed")
    finish(process)
    print(f"continued to the end: {time.monotonic() - began:.1f} s")
    files, others = (contents(folder / name) for name in ("undisturbed", "killed"))
    print(f"{len(files)} arrays of {', '.join(str(len(content)) for content in files.values())} bytes")
    return len(files) == len(PS) and files == others


def draw(folder: Path, count: int, random: np.random.Generator) -> None:
    """So many JPEGs of coarse noise, of mixed shapes, a thousand a folder."""
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        path = folder / f"{i // 1000:03d}" / f"{i:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize(SIDES[random.integers(len(SIDES))], Image.Resampling.BILINEAR).save(path)


def started(images: Path, folder: Path) -> tuple[subprocess.Popen, float]:
    """A process that embeds, and when it began to: after all imports."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--embed", images, folder], stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.strip() == READY:
            return process, time.monotonic()
    raise RuntimeError("the embedding process ended before it began")


def finish(process: subprocess.Popen) -> None:
    """Wait for a process and show what it has to say; RuntimeError if it failed."""
    print("".join(f"  {line}\n" for line in process.communicate()[0].splitlines()), end="")
    if process.returncode:
        raise RuntimeError(f"the embedding process failed with {process.returncode}")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/features.npy")}


def embed(images: str, folder: str) -> None:
    """Embed the images by an untrained resnet8 at 32 px; in a process of its own."""
    import torch

    from mgkit.data.layouts import plain_images
    from mgkit.engine import feature_store as store
    from mgkit.model import get_multigrain

    torch.manual_seed(0)
    net, found = get_multigrain("resnet8", num_classes=10), plain_images(images)
    store.SHARD = min(store.SHARD, len(found) // 20)  # so many that kills fall between them
    print(READY, flush=True)
    store.stored_features(
        net, found, size=32, ps=PS, folder=folder, batch_size=64, precision="float32", description=None
    )


if __name__ == "__main__":
    main()
