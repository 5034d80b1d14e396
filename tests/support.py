"""What several test modules share: tiny pictures on disk, and what an error for a person must look like."""

import gc
import multiprocessing
import os
import random
import signal
import socket
import struct
import sys
import traceback
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch import nn

from mgkit.config import TrainConfig, make
from mgkit.data import folders
from mgkit.data.images import ImageList
from mgkit.engine.run import json_lines, stage_folder
from mgkit.machine.distributed import process_group
from mgkit.photos.copies.pairs import SAME_MOMENT, Pairs


def noise(seed: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    """A picture of that (width, height) that no other seed gives."""
    width, height = size
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_picture(path: Path, *, seed: int = 0, size: tuple[int, int] = (24, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(seed, size).save(path)
    return path


def write_uneven(path: Path, seed: int) -> Path:
    """A picture of one of three shapes, by its seed."""
    return write_picture(path, seed=seed, size=[(24, 16), (16, 24), (20, 20)][seed % 3])


def write_tree(root: Path, *names: str) -> Path:
    """A picture, each another one, for every name below root."""
    for seed, name in enumerate(names):
        write_picture(root / name, seed=seed)
    return root


def with_malformed_tag(image: Image.Image, kind: str, *, orientation: int = 6) -> bytes:
    """A file with a rotation tag and a resolution that is text instead of a ratio."""
    tags = [
        (0x112, 3, 1, struct.pack("<HH", orientation, 0)),
        (0x11A, 2, 4, b"abc\0"),
    ]  # tag, type, count, value
    directory = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHI", *tag[:3]) + tag[3] for tag in tags
    )
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory + bytes(4)
    file = BytesIO()
    image.save(file, kind, exif=exif)
    return file.getvalue()


def write_empty(root: Path, *names: str) -> Path:
    """An empty file for every name below root: enough where nothing is decoded."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def flat_name(number: int) -> str:
    """The name of an ImageNet validation image."""
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def write_devkit(root: Path, wnids: dict[int, str], truth: list[int]) -> Path:
    """Write ImageNet's devkit: classes {ILSVRC2012_ID: WordNet id} under one parent, and the ground truth."""
    fields = (
        "ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height",
        "num_train_images",
    )  # fmt: skip
    leaf = ("a thing, stuff", "what there is", 0.0, np.zeros((0, 0)), 0.0, 1300.0)
    rows = [(float(number), wnid, *leaf) for number, wnid in wnids.items()]
    parent = (len(rows) + 1.0, "n09999999", "thing", "all", float(len(rows)), [*wnids], 1.0, 0.0)
    synsets = np.array([[row] for row in [*rows, parent]], dtype=[(name, object) for name in fields])  # [n,1]
    data = root / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    savemat(data / "meta.mat", {"synsets": synsets})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in truth))
    return data


def list_backwards(monkeypatch) -> None:
    """From here on, folders are listed in another order than before."""
    forwards = folders.list_folder

    def backwards(folder):
        listing = forwards(folder)
        return listing._replace(folders=listing.folders[::-1], images=listing.images[::-1])

    monkeypatch.setattr(folders, "list_folder", backwards)


@contextmanager
def one_line_error(kind: type[Exception], *names):
    """The block raises `kind`, its message is one line and holds every name; gives what was caught."""
    with pytest.raises(kind) as caught:
        yield caught
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert str(name) in message, message


def file_name(retrieval_set, index):
    return Path(retrieval_set.images.paths[index]).name


def answers(retrieval_set):
    """{query: its positives}, by file name."""
    return {
        file_name(retrieval_set, query): [file_name(retrieval_set, i) for i in positives]
        for query, positives in zip(retrieval_set.queries, retrieval_set.positives, strict=True)
    }


def ranked(retrieval_set):
    return [file_name(retrieval_set, i) for i in retrieval_set.database]


def training_config(root, /, **values) -> TrainConfig:
    """The config of a quick training (32 px, batches of 12, no workers) with the values given."""
    quick = {"experiment": "t", "data": str(root), "size": 32, "batch_size": 12, "workers": 0}
    return make(TrainConfig, quick | values)


def stand_in_for_timm(monkeypatch, smaller=None):
    """Have timm.create_model give random weights, always the same, for published ones; return it.

    smaller: {model: its options} that leave it fewer layers and channels
    """
    import timm  # takes seconds

    create = timm.models.create_model  # which stays as it is

    def create_model(name, pretrained=False, **options):
        torch.manual_seed(7)
        net = create(name, **(smaller or {}).get(name, {}), **options)
        return with_noise(net) if pretrained else net

    monkeypatch.setattr(timm, "create_model", create_model)
    return create_model


@torch.no_grad()
def with_noise(net: nn.Module) -> nn.Module:
    """Add noise to the weights, so that no norm, scale of a layer or classifier is the initial one."""
    generator = torch.Generator().manual_seed(8)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator) * 0.1
            value.add_(noise.abs() if name.endswith("running_var") else noise * value.std(False).clip(0.1, 1))
    return net


# What takes seconds to import. The first test that starts a process decides for all that follow: one list.
IN_PROCESSES = [
    "pytest", "scipy.io", "hypothesis", "mgkit.claims.run", "mgkit.descriptors.out", "mgkit.photos.search",
]  # fmt: skip


def forkserver():
    """The context whose processes come from one server, which has imported `IN_PROCESSES` once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IN_PROCESSES)
    return context


def in_processes(count: int, work, *arguments) -> list:
    """The results of `work(*arguments)` in `count` joined processes, by rank; an error fails the test."""
    context = forkserver()
    port = free_port()
    results = context.SimpleQueue()
    processes = [
        context.Process(target=be_joined, args=(rank, count, port, results, work, arguments), daemon=True)
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    found = {}
    while len(found) < count:
        rank, result, error = results.get()
        if error:
            for process in processes:
                process.kill()
            pytest.fail(f"rank {rank}: {error}")
        found[rank] = result
    for process in processes:
        process.join()
    return [found[rank] for rank in range(count)]


def free_port() -> int:
    """A free port below those that the system gives out, so that no other connection takes it meanwhile."""
    while True:
        with socket.socket() as free:
            port = random.SystemRandom().randrange(15_000, 30_000)
            try:
                free.bind(("localhost", port))
            except OSError:
                continue
            return port


def be_joined(rank: int, count: int, port: int, results, work, arguments) -> None:
    """One of the processes of `in_processes`."""
    gc.freeze()  # what it has from the server is not copied just to look for garbage
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count),
        MASTER_ADDR="localhost", MASTER_PORT=str(port),
    )  # fmt: skip
    try:
        with process_group():
            results.put((rank, work(*arguments), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))


@contextmanager
def alive_in_another_process(work):
    """Run `work(started, end)` in another process for the block; it sets `started` and awaits `end`."""
    context = multiprocessing.get_context("fork")
    started, end = context.Event(), context.Event()
    process = context.Process(target=work, args=(started, end), daemon=True)
    process.start()
    assert started.wait(120)
    yield
    end.set()
    process.join()


def names(images):
    """Paths relative to the list's root, with class names."""
    root = Path(images.root).resolve()
    return [
        (str(Path(path).relative_to(root)), images.classes[label])
        for path, label in zip(images.paths, images.labels, strict=True)
    ]


def made_up_list():
    """200 images of five classes, mixed, of unequal numbers; some have equal hashes."""
    labels = np.random.default_rng(0).choice(5, size=200, p=[0.4, 0.3, 0.2, 0.05, 0.05])
    paths = tuple(f"/photos/{i // 2 if i > 150 else i}é.png" for i in range(200))
    return ImageList(Path("/photos"), paths, labels, tuple("abcde"))


# --- Odd image files

WHITE, RED = (255, 255, 255), (255, 0, 0)


def rotated_file(path, orientation):
    """The left third is red, the rest blue, stored with a rotation tag."""
    image = Image.new("RGB", (24, 16), (0, 0, 255))
    image.paste(RED, (0, 0, 8, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, quality=95)
    return path


def broken_file(path, kind):
    """A file that looks like an image by its name alone."""
    write_picture(path, size=(64, 64))
    content = path.read_bytes()
    path.write_bytes(
        {"truncated": content[: len(content) // 2], "empty": b"", "text": b"<html>\n</html>\n"}[kind]
    )
    return path


def written(folder, content, name="file.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


GONE = 2**22 + 1  # above the largest process id that Linux gives


def train_config(**values):
    return make(TrainConfig, {"experiment": "t", **values})


def left_lines(name):
    """The lines of a file of the latest training, whatever its parameters: metrics.jsonl or steps.jsonl."""
    return json_lines(stage_folder(train_config()) / name)


class Demanding(nn.Module):
    """A backbone for images of at least 9 px a side, and what it does with narrower ones."""

    def __init__(self, features, how):
        super().__init__()
        self.features, self.how = features, how

    def forward(self, images):
        maps = self.features(images)
        if self.how == "always" or (self.how == "whole batch" and len(images) > 1):
            raise RuntimeError("a fault of the device")
        if self.how == "squares" and images.shape[2] != images.shape[3]:
            raise ValueError("takes squares only")
        if min(images.shape[2:]) >= 9 or self.how in ("squares", "whole batch"):
            return maps
        if self.how == "error":
            raise RuntimeError("Calculated output size: (8x0x2). Output size is too small")
        return maps[..., :0] if self.how == "empty" else maps * torch.nan


def demanding(net, how="error"):
    """The network with a backbone that is `Demanding`."""
    net.features = Demanding(net.features, how)
    return net


def pairs_above(scores: np.ndarray, indices: np.ndarray, threshold: float) -> Pairs:
    """The pairs of neighbours [N,k] above a threshold, none of which were laid over each other.

    indices: of the pictures; row i holds the neighbours of picture i.
    """
    i, column = np.nonzero(scores >= threshold)
    ends = np.sort(np.stack([i, indices[i, column]]), axis=0)  # [2,P], with pairs that are there twice
    ends, place = np.unique(ends, axis=1, return_index=True)
    similarity = scores[i, column][place]
    count = len(similarity)
    unknown, unturned = np.full(count, np.nan), np.ones(count, dtype=np.int64)
    return Pairs(*ends, similarity, unknown, unturned, np.full(count, SAME_MOMENT))


def starting(work):
    """A function that starts `work` in a process."""
    context = forkserver()

    def begin(*args, **options):
        process = context.Process(target=work, args=args, kwargs=options)
        process.start()
        return process

    return begin


def die_at(lines, *modules):
    """Die by SIGKILL at so manieth line of these modules."""
    own, left = {module.__file__ for module in modules}, [lines]

    def at_line(frame, event, argument):
        if frame.f_code.co_filename not in own:
            return None
        left[0] -= event == "line"
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return at_line

    sys.settrace(at_line)
