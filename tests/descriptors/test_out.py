"""Descriptors that leave the kit: read by numpy and faiss alone, and evaluated again by 05."""

import csv
import json
import math
import os
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest
from support import broken_file, one_line_error, write_picture

from mgkit.benchmarks.find import find_sets
from mgkit.checkpoints import save_checkpoint
from mgkit.config import DescribeConfig, RetrievalConfig, make
from mgkit.descriptors import out as module
from mgkit.descriptors.out import describe
from mgkit.explore.browse import describe_for, set_collection
from mgkit.explore.repooling import set_maps
from mgkit.features import embed
from mgkit.machine.download import file_hash
from mgkit.machine.files import RefusedError
from mgkit.model import get_multigrain
from mgkit.stages import evaluate_retrieval as stage
from mgkit.stages.evaluate_retrieval import embed_sets, evaluate_retrieval
from mgkit.stages.figure_4 import resolution_curves
from mgkit.stages.retrieval_task import retrieval_task
from mgkit.stages.whiten import whitened_network

FILES = ["descriptors.npy", "images.csv", "index.faiss", "left_out.csv", "manifest.json"]


@pytest.fixture
def written(after_chain, mini_root):
    """A function: the folders that `describe` writes of the reduced set, by name."""

    def of(**values):
        shared = {"experiment": "t", "data": str(mini_root), "workers": 0, "size": 48}
        return {folder.name: folder for folder in describe(make(DescribeConfig, shared | values))}

    return of


@pytest.fixture
def pictures(here):
    """Four pictures, one of them in a folder, a broken one, and a network without training."""
    for seed in range(3):
        write_picture(here / "in" / f"{seed}.png", seed=seed, size=(40, 30 + seed))
    write_picture(here / "in" / "deep" / "=4.png", seed=4, size=(50, 40))
    broken_file(here / "in" / "broken.png", "truncated")
    save_checkpoint(here / "net.pth", get_multigrain("resnet8", p=2.0, num_classes=2))
    return here / "in"


def of_pictures(pictures, **values):
    shared = {"images": str(pictures), "checkpoint": "net.pth", "workers": 0, "size": 32}
    return make(DescribeConfig, shared | {"on_unreadable": "skip"} | values)


def read(folder):
    """A folder by numpy, faiss, csv and json alone."""
    rows = np.load(folder / "descriptors.npy", allow_pickle=False)
    with open(folder / "images.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return rows, lines, json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def test_a_benchmark_s_descriptors_are_those_of_the_network(written, after_chain, mini_root):
    folders = written(sets=["holidays", "copydays", "copydays_levels"])
    assert list(folders) == ["holidays", "copydays"]  # the levels share their images
    config = make(DescribeConfig, {"experiment": "t", "data": str(mini_root), "workers": 0})
    net, _ = whitened_network(config)
    sets = find_sets(mini_root, names=["holidays", "copydays", "copydays_levels"])
    images_of = {one.name.split()[0]: one.images for one in sets}
    for folder in folders.values():
        assert sorted(path.name for path in folder.iterdir()) == FILES
        rows, lines, manifest = read(folder)
        assert [line["row"] for line in lines] == [str(k) for k in range(len(rows))]
        images = images_of[folder.name]
        assert {line["path"] for line in lines} == {
            os.path.relpath(path, mini_root.resolve()) for path in images.paths
        }
        oracle = embed(net, images, size=48)
        place = {os.path.relpath(path, mini_root.resolve()): i for i, path in enumerate(images.paths)}
        for row, line in zip(rows, lines, strict=True):
            np.testing.assert_allclose(row, oracle[place[line["path"]]], atol=1e-5)
            assert line["bytes"] == str((mini_root / line["path"]).stat().st_size)
        assert (manifest["count"], manifest["dimensions"]) == rows.shape
        assert manifest["network"] == "resnet8" and manifest["whitening"] == "PCA"
        assert manifest["checkpoint_sha256"] == file_hash(Path(net.source)) and manifest["size"] == 48
        assert manifest["p"] == net.pool.p.item() and manifest["made_by"].startswith("mgkit ")
        assert "python -m mgkit.descriptors --experiment t" in manifest["command"]


def test_images_that_answer_each_other_share_a_group(written):
    _, lines, _ = read(written(sets=["ukbench"])["ukbench"])
    groups = {}
    for line in lines:
        groups.setdefault(line["group"], []).append(line["path"])
    assert sorted(map(len, groups.values())) == [4, 4, 4] and "" not in groups
    for of_group in groups.values():
        numbers = {int(Path(path).stem[-5:]) // 4 for path in of_group}
        assert len(numbers) == 1


def test_the_index_answers_as_the_rows_do(written):
    rows, _, _ = read(folder := written(sets=["holidays"])["holidays"])
    index = faiss.read_index(str(folder / "index.faiss"))
    assert (index.ntotal, index.d, index.metric_type) == (*rows.shape, faiss.METRIC_INNER_PRODUCT)
    scores, found = index.search(rows, 3)
    order = np.argsort(-(rows @ rows.T), axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(found, order)
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-5)


def test_another_index_another_type_and_none(pictures):
    [folder] = describe(of_pictures(pictures, dtype="float16", index="HNSW4"))
    rows, _, manifest = read(folder)
    assert rows.dtype == np.float16 and (manifest["dtype"], manifest["index"]) == ("float16", "HNSW4")
    assert isinstance(faiss.read_index(str(folder / "index.faiss")), faiss.IndexHNSWFlat)
    [folder] = describe(of_pictures(pictures, index=""))
    whole, _, _ = read(folder)
    assert not (folder / "index.faiss").exists()
    np.testing.assert_allclose(rows, whole, atol=1e-3)


def test_unreadable_images_have_no_row_and_are_listed(pictures):
    [folder] = describe(of_pictures(pictures))
    assert folder == Path("outputs/mini/descriptors/in").absolute()
    rows, lines, manifest = read(folder)
    shapes = {"0.png": (40, 30), "1.png": (40, 31), "2.png": (40, 32), "deep/=4.png": (50, 40)}
    assert {line["path"]: (int(line["width"]), int(line["height"])) for line in lines} == shapes
    assert len(rows) == 4 and manifest["left_out"] == 1 and {line["group"] for line in lines} == {""}
    with open(folder / "left_out.csv", newline="", encoding="utf-8") as file:
        [left] = csv.DictReader(file)
    assert left["path"] == "broken.png" and "broken.png" in left["why"]
    with one_line_error(OSError, "broken.png", "on_unreadable"):
        describe(of_pictures(pictures, on_unreadable="raise"))


def test_a_list_of_images_will_do_and_max_pooling(pictures):
    (pictures / "list.txt").write_text("2.png\ndeep/=4.png\n")
    [folder] = describe(of_pictures(pictures / "list.txt", p=math.inf))
    rows, lines, manifest = read(folder)
    assert [line["path"] for line in lines] == ["2.png", "deep/=4.png"] and len(rows) == 2
    assert manifest["p"] == "inf" and "NaN" not in (folder / "manifest.json").read_text()


def test_classes_are_the_groups_of_a_class_folder(written, mini_root):
    [folder] = written(data=str(mini_root / "imagenet"), index="").values()
    _, lines, _ = read(folder)
    assert all(line["group"] == Path(line["path"]).parent.name for line in lines)
    assert len({line["group"] for line in lines}) > 2


def test_blocks_do_not_change_the_files(pictures, monkeypatch):
    [folder] = describe(of_pictures(pictures))
    before = {name: (folder / name).read_bytes() for name in FILES[:3]}
    monkeypatch.setattr(module, "ROWS", 3)
    [folder] = describe(of_pictures(pictures))
    assert {name: (folder / name).read_bytes() for name in FILES[:3]} == before


def test_a_second_call_embeds_nothing(pictures, opened):
    describe(of_pictures(pictures))
    assert opened
    opened.clear()
    describe(of_pictures(pictures, dtype="float16"))
    assert not opened


def test_the_folder_appears_whole_or_not_at_all(pictures, monkeypatch):
    def fail(*_):
        assert (beside / ".in.partial/descriptors.npy").exists() and not (beside / "in").exists()
        raise OSError(28, "No space left on device")

    beside = Path("outputs/mini/descriptors")
    monkeypatch.setattr(module, "write_index", fail)
    with one_line_error(RefusedError, "in cannot be written", "full"):
        describe(of_pictures(pictures))
    assert not list(beside.glob("*in*"))
    monkeypatch.undo()
    os.chdir(pictures.parent)
    (beside / ".in.partial").mkdir()  # as a process leaves it that is killed
    (beside / ".in.partial/half.npy").touch()
    [folder] = describe(of_pictures(pictures))
    before = (folder / "manifest.json").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == FILES
    monkeypatch.setattr(
        module, "write_index", fail_again := lambda *_: (_ for _ in ()).throw(ValueError("x"))
    )
    with pytest.raises(ValueError, match="x"):
        describe(of_pictures(pictures))
    assert fail_again and (folder / "manifest.json").read_bytes() == before  # the earlier one stays
    assert not list(beside.glob(".in*"))


def test_an_earlier_folder_with_other_parameters_is_kept(pictures):
    describe(of_pictures(pictures))
    [folder] = describe(of_pictures(pictures, size=40))
    earlier = folder.parent.with_name("descriptors.1") / folder.name
    assert read(earlier)[2]["size"] == 32 and read(folder)[2]["size"] == 40


def test_an_index_that_cannot_be_is_named_before_the_work(pictures, opened):
    with one_line_error(ValueError, "index", "'Foo'"):
        describe(of_pictures(pictures, index="Foo"))
    assert not opened
    with one_line_error(ValueError, "IVF64", "64 descriptors"):
        describe(of_pictures(pictures, index="IVF64,Flat"))
    assert not Path("outputs/mini/descriptors/in").exists()


# --- And in again


def given(mini_root, *folders, **values):
    shared = {"experiment": "given", "data": str(mini_root), "workers": 0, "indices": []}
    return make(RetrievalConfig, shared | {"descriptors": [str(folder) for folder in folders]} | values)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_05_measures_by_the_files_what_it_measures_by_the_network(
    written, retrieved, mini_root, dtype, capsys
):
    sets = ["holidays", "ukbench", "copydays"]
    task = retrieval_task(given(mini_root, *written(sets=sets, dtype=dtype).values(), sets=sets))
    embed_sets(task)
    found = {r.result.name: r for r in evaluate_retrieval(task)}
    by_network = {r.result.name: r.result for r in retrieved[1] if r.descriptor == "GeM, p*, whitened"}
    assert [name.split()[0] for name in found] == sets
    for name, r in found.items():
        assert r.descriptor == "descriptors of resnet8" and r.p is None and r.gain is None
        if dtype == "float32":
            assert r.result.value == pytest.approx(by_network[name].value)
        else:
            assert r.result.value == pytest.approx(by_network[name].value, abs=0.05)
    results = json.loads(Path("outputs/given/evaluate_retrieval/results.json").read_text())
    assert results["made"][0]["network"] == "resnet8" and "size" not in results
    assert "nothing is embedded" in capsys.readouterr().out


def test_queries_and_gallery_may_each_have_a_folder(here):
    """Also where both have files of one name, as here."""
    for seed in range(6):
        write_picture(here / "gallery" / f"class{seed % 2}" / f"{seed // 2}.png", seed=seed)
    for seed in range(2):
        write_picture(here / "asked" / f"class{seed}" / "0.png", seed=10 + seed)
    save_checkpoint(here / "net.pth", get_multigrain("resnet8", p=2.0, num_classes=2))
    folders = [*describe(of_pictures("gallery", experiment="g")), *describe(of_pictures("asked"))]
    shared = {"data": "gallery", "queries": "asked", "size": 32, "workers": 0, "scales": [1.0], "dims": None}
    shared |= {"resolutions": [], "indices": []}
    task = retrieval_task(make(RetrievalConfig, shared | {"descriptors": list(map(str, folders))}))
    by_files = evaluate_retrieval(task)[0]
    task = retrieval_task(make(RetrievalConfig, shared | {"checkpoint": "net.pth", "experiment": "net"}))
    by_network = evaluate_retrieval(task)[-1]
    assert len(by_files.result.per_query) == 2
    np.testing.assert_allclose(by_files.result.per_query, by_network.result.per_query)
    np.testing.assert_allclose(by_files.result.scores, by_network.result.scores, atol=1e-5)
    with one_line_error(ValueError, "cannot be compared", "size is 32 and 40"):
        other = describe(of_pictures("asked", experiment="other", size=40))
        retrieval_task(make(RetrievalConfig, shared | {"descriptors": f"{folders[0]}; {other[0]}"}))


def test_what_needs_a_network_says_so(written, mini_root, capsys, monkeypatch):
    task = retrieval_task(given(mini_root, written(sets=["holidays"])["holidays"], sets=["holidays"]))
    found = evaluate_retrieval(task)
    for section in (lambda: resolution_curves(task), lambda: set_maps(task, "holidays")):
        with one_line_error(ValueError, "descriptors are given", "no network"):
            section()
    assert describe_for(task) is None and "no picture can be uploaded" in capsys.readouterr().out
    collection = set_collection(task, found, "holidays")
    query = next(iter(collection.examples(1)))
    assert len(collection.answers(query, 2).neighbours) == 2 and collection.answers(query, 2).classes == []
    monkeypatch.setattr(stage, "FEWEST_INDEXED", 5)
    assert stage.index_table(task, queries=2).splitlines()[1].startswith("exact")


def test_images_without_a_row_are_an_error_or_left_out(written, mini_root, tmp_path, capsys):
    folder = shutil.copytree(written(sets=["ukbench"])["ukbench"], tmp_path / "part")
    (folder / "index.faiss").unlink()
    (folder / "manifest.json").unlink()
    np.save(folder / "descriptors.npy", np.load(folder / "descriptors.npy")[:-1])
    lines = (folder / "images.csv").read_text().splitlines()
    (folder / "images.csv").write_text("\n".join(lines[:-1]) + "\n")
    last = lines[-1].split(",")[1]
    with one_line_error(ValueError, "1 of 12 images have no row", Path(last).name, "on_unreadable=skip"):
        retrieval_task(given(mini_root, folder, sets=["ukbench"]))
    [r] = evaluate_retrieval(retrieval_task(given(mini_root, folder, sets=["ukbench"], on_unreadable="skip")))
    assert r.descriptor == "descriptors of part" and len(r.retrieval_set.images) == 11
    assert Path(last).name in capsys.readouterr().out


@pytest.mark.parametrize(
    "values", [{"checkpoint": "x.pth"}, {"backbone": "resnet18", "pretrained_backbone": True}]
)
def test_a_network_and_descriptors_are_one_too_many(mini_root, values):
    with one_line_error(ValueError, "descriptors", "leave checkpoint and backbone out"):
        given(mini_root, "x", **values)
