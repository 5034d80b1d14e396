"""Shared fixtures: reference values, photos, the reduced mini set, a small network and small images."""

import atexit
import gc
import os
import shutil

gc.disable()  # until all tests are collected: before, nothing is garbage, and looking for it takes a third
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; also for the processes that tests start
os.environ["no_proxy"] = "localhost,127.0.0.1"  # the servers of tests are asked directly

import importlib.util
import signal
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings
from PIL import Image
from support import stand_in_for_timm, training_config
from torch import nn

from mgkit.backbones.backbone import Backbone
from mgkit.benchmarks.retrieval_set import RetrievalSet
from mgkit.checkpoints import load_network
from mgkit.config import NetworkConfig, RetrievalConfig, make
from mgkit.data import loader
from mgkit.data.decoding import image_shape
from mgkit.data.layouts import class_folders
from mgkit.engine import feature_store as store
from mgkit.engine.launch import AGENT, FOLDER, LAUNCHER
from mgkit.engine.stopping import StopRequest
from mgkit.mini.make import MiniSizes, make_mini
from mgkit.model import MultiGrain, get_multigrain
from mgkit.stages.evaluate_retrieval import evaluate_reranking, evaluate_retrieval
from mgkit.stages.retrieval_task import retrieval_task
from mgkit.stages.whiten import whitened_network

# Beside other work, neither an example nor its making has a time limit.
settings.register_profile("loaded", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loaded")

# Files that take minutes are started first: a file runs in one process (--dist loadfile).
LONG_FILES = (
    "test_launch.py", "test_runs.py", "test_notebooks.py", "test_browser.py", "test_evaluate_imagenet.py",
    "test_hostile.py", "test_loop.py", "test_several_machines.py", "test_readme.py", "test_two_runs.py",
    "test_machines.py", "test_extremes.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Put the long files first, in the order of `LONG_FILES`."""
    order = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    gc.enable()
    gc.freeze()
    atexit.register(gc.unfreeze)  # or libraries complain, at the end, about what is left


def pytest_runtest_setup(item):
    """Skip what is marked `gpu` on a machine without one."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


def pytest_terminal_summary(terminalreporter):
    """Print what the tests have measured of timm's models (their recorded properties), a line a model."""
    measured = {}
    for report in terminalreporter.getreports("passed"):
        for model, found in report.user_properties:
            measured.setdefault(model, []).append(found)
    if measured:
        terminalreporter.section("timm's families: maps, logits, sizes")
    for model, found in measured.items():
        terminalreporter.line(f"{model:32} {'; '.join(found)}")


def folder_of(variable):
    """The folder that an environment variable names; skips the test when it is unset."""
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set")
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def reference():
    return folder_of("MGKIT_REFERENCE")


@pytest.fixture(scope="session")
def photos():
    return folder_of("MGKIT_PHOTOS")


@pytest.fixture(scope="session")
def real():
    """Photographs in the layouts of ImageNet, Holidays and UKBench."""
    return folder_of("MGKIT_REAL")


@pytest.fixture(scope="session")
def pieces(reference):
    """The reference values of single pieces, as a dict of arrays."""
    with np.load(reference / "expected" / "pieces.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def make_checkpoint(reference):
    """The module of the reference folder that rebuilds checkpoints and inputs."""
    spec = importlib.util.spec_from_file_location("make_checkpoint", reference / "make_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """A function (name, make) -> folder, which `make(folder)` fills in one process of tests for all."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root

    def made(name, make):
        with FileLock(root / f"{name}.lock"):
            if not (root / name).exists():
                make(root / f"{name}.partial")
                (root / f"{name}.partial").rename(root / name)
        return root / name

    return made


@pytest.fixture(scope="session")
def mini_root(made_once):
    """A reduced mini set, drawn once a session. It is not to be changed."""
    sizes = MiniSizes(
        train_per_class=6,
        val_per_class=3,
        holidays_groups=4,
        ukbench_objects=3,
        copydays_originals=3,
        whiten=40,
        distractors=6,
    )
    return made_once("mini", partial(make_mini, seed=0, sizes=sizes, workers=1))


@pytest.fixture(scope="session")
def tiny_root(made_once):
    """An embedded set of 52 pictures. It is not to be changed."""
    sizes = MiniSizes(
        train_per_class=2, val_per_class=2, holidays_groups=2, ukbench_objects=1, copydays_originals=1,
        whiten=10, distractors=2,
    )  # fmt: skip
    return made_once("tiny", partial(make_mini, seed=0, sizes=sizes, workers=1))


@pytest.fixture(scope="session")
def relative():
    """‖ours - theirs‖ / ‖theirs‖ of two arrays or tensors."""

    def of(ours, theirs):
        ours, theirs = (
            np.asarray(x.detach() if isinstance(x, torch.Tensor) else x, dtype=np.float64)
            for x in (ours, theirs)
        )
        assert ours.shape == theirs.shape
        return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)

    return of


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, which is the working directory and the project's root."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bare_project(tmp_path, monkeypatch):
    """A project without content, whose notebooks/ is the working directory."""
    for name in ("notebooks", "mgkit"):
        (tmp_path / "project" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project" / "notebooks")
    return tmp_path / "project"


@pytest.fixture
def tiny_net():
    """A MultiGrain in eval mode, 8 channels and 3 classes: two convolutions, a non-trivial batch norm."""
    torch.manual_seed(0)
    features = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4, padding=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
    )
    features[1].running_mean.uniform_(-0.1, 0.1)
    features[1].running_var.uniform_(0.5, 1.5)
    net = MultiGrain(Backbone("tiny", features, 8), p=3.0, num_classes=3)
    nn.init.normal_(net.classifier.weight)
    return net.eval()


@pytest.fixture
def pretrained_timm(monkeypatch):
    """timm as with a network; see `stand_in_for_timm`."""
    return stand_in_for_timm(monkeypatch)


@pytest.fixture(
    params=[
        ("test_convnext", "patches"),
        ("test_vit2", "patches"),
        ("test_vit", "class"),
        ("test_vit", "both"),
        ("beit_base_patch16_224", "both"),
    ],
    ids=" ".join,
)
def signed_net(request, monkeypatch):
    """A network in eval mode whose maps have negative values, of 3 classes; all but test_vit with a neck."""
    model, tokens = request.param
    stand_in_for_timm(monkeypatch, {"beit_base_patch16_224": dict(embed_dim=96, depth=2, num_heads=3)})
    options = dict(num_classes=3, pretrained_backbone=True, tokens=tokens)
    net = get_multigrain(f"timm/{model}", **options).eval()
    assert net.pool.signed and (net.neck is not None) == (model != "test_vit")
    nn.init.normal_(net.classifier.weight, generator=torch.Generator().manual_seed(0))
    return net


@pytest.fixture(scope="session")
def image_folders(tmp_path_factory):
    """A function (sides, a class) -> ImageList: noise in three classes, one image per (width, height)."""

    def write(sides):
        root = tmp_path_factory.mktemp("folders")
        random = np.random.default_rng(0)
        for name in ("bark", "moss", "sand"):
            (root / name).mkdir()
            for i, (width, height) in enumerate(sides):
                coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
                image.save(root / name / f"{i}.{'png' if i % 2 else 'jpg'}")
        return class_folders(root)

    return write


@pytest.fixture(scope="session")
def uneven_images(image_folders):
    """24 images of three shapes, shapes mixed within each class."""
    return image_folders([(40, 30), (30, 40), (40, 30), (33, 33), (30, 40), (40, 30), (33, 33), (30, 40)])


@pytest.fixture
def searched_set(uneven_images):
    """Two images of each class ask, the others of the class answer; the third's last image is junk."""
    labels = uneven_images.labels
    queries = np.concatenate([np.flatnonzero(labels == label)[:2] for label in range(3)])
    same = [np.setdiff1d(np.flatnonzero(labels == labels[q]), [q]) for q in queries]
    junk = [
        of_query[-1:] if labels[q] == 2 else of_query[:0] for q, of_query in zip(queries, same, strict=True)
    ]
    positives = tuple(np.setdiff1d(*pair) for pair in zip(same, junk, strict=True))
    return RetrievalSet(
        "classes", uneven_images, queries, np.arange(len(uneven_images)), positives, junk=tuple(junk)
    )


class Chain:
    """What whitened_network leaves when nothing was run before, and what it printed."""

    def __init__(self, folder, config):
        self.folder, self.config = folder, config
        self.printed = (folder / "printed.txt").read_text(encoding="utf-8").splitlines()
        self.whitened = folder / "outputs" / "t" / "whiten" / "checkpoint.pth"
        self.net, _ = load_network(self.whitened)


def run_chain(config, folder):
    printed = []
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("builtins.print", lambda *args, **_: printed.append(" ".join(map(str, args))))
        whitened_network(config)
    (folder / "printed.txt").write_text("\n".join(printed), encoding="utf-8")


@pytest.fixture(scope="session")
def chain(mini_root, made_once, tmp_path_factory):
    """A copy of what is run once; its folder may be worked in."""
    config = make(NetworkConfig, {"experiment": "t", "data": str(mini_root), "workers": 0})
    whole = made_once("chain", partial(run_chain, config))
    return Chain(shutil.copytree(whole, tmp_path_factory.mktemp("chain") / "copy"), config)


@pytest.fixture
def after_chain(chain, monkeypatch):
    monkeypatch.chdir(chain.folder)
    return chain


@pytest.fixture(scope="session")
def retrieved(chain, mini_root):
    """The task of 05 on the reduced set, and what it found."""
    values = {"experiment": "t", "data": str(mini_root), "workers": 0, "size": 48, "resolutions": [32, 64]}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(chain.folder)
        task = retrieval_task(make(RetrievalConfig, values | {"indices": ["IVF4,Flat"]}))
        return task, evaluate_retrieval(task)


@pytest.fixture(scope="session")
def reranked(chain, retrieved):
    """The sets of that task after query expansion and re-ranking."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(chain.folder)
        return evaluate_reranking(retrieved[0])


@pytest.fixture(scope="session")
def strangers_root(mini_root, tmp_path_factory):
    """gallery/ with scenes of Holidays, queries/ with a view of each and the objects of UKBench."""
    root = tmp_path_factory.mktemp("own")
    for path in (mini_root / "holidays" / "jpg").iterdir():
        copy_to(root / ("queries" if path.stem.endswith("00") else "gallery") / path.stem[:4], path)
    for path in (mini_root / "ukbench" / "full").iterdir():
        copy_to(root / "queries" / f"object {int(path.stem[-5:]) // 4}", path)
    return root


def copy_to(folder, path):
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, folder)


@pytest.fixture(scope="session")
def with_strangers(chain, strangers_root):
    """What 05 found of these queries."""
    values = {"experiment": "own", "checkpoint": str(chain.whitened), "workers": 0, "size": 48}
    values |= {"data": str(strangers_root / "gallery"), "queries": str(strangers_root / "queries")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(chain.folder)
        return evaluate_retrieval(retrieval_task(make(RetrievalConfig, values | {"scales": [1.0]})))


@pytest.fixture
def opened(monkeypatch):
    """The paths of the images that are decoded from here on."""
    paths, decode = [], loader.ImageDataset.decode

    def noted(self, index):
        paths.append(self.images.paths[index])
        return decode(self, index)

    monkeypatch.setattr(loader.ImageDataset, "decode", noted)
    return paths


@pytest.fixture
def four_threads():
    """torch has four threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_shards(monkeypatch):
    """Stored features have five images a shard."""
    monkeypatch.setattr(store, "SHARD", 5)


@pytest.fixture
def signals():
    """What was done at a signal is done again after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def launch_folder(tmp_path, monkeypatch):
    """The launcher's folder, and this process as the launcher's."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "launch"))
    monkeypatch.setenv(LAUNCHER, str(os.getpid()))
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / AGENT).write_text(str(os.getppid()))
    return tmp_path / "launch"


@pytest.fixture
def watch(monkeypatch):
    """The watch over the parents, which would end the process of the tests; not begun by itself."""
    watch = StopRequest.watch
    monkeypatch.setattr(StopRequest, "watch", lambda stop: None)
    return watch


@pytest.fixture
def headers():
    """What counts the file headers that are read."""
    with patch("mgkit.data.images.image_shape", wraps=image_shape) as read:
        yield read


@pytest.fixture
def config(mini_root):
    """A function that makes a config of three batches, but for the values given."""
    return partial(training_config, mini_root, epochs=1, len_factor=0.5)
