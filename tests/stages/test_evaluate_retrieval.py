"""Retrieval from end to end on the reduced set: every set, every kind of descriptor, figure 4, indices."""

import copy
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from benchmark_trees import holidays_tree, ukbench_files
from PIL import Image
from support import demanding, one_line_error, write_picture, write_tree

from mgkit.benchmarks.find import find_sets
from mgkit.checkpoints import save_checkpoint
from mgkit.config import RetrievalConfig, make
from mgkit.engine.feature_store import stored_features
from mgkit.engine.run import latest_results
from mgkit.explore.browse import set_collection
from mgkit.explore.repooling import set_maps
from mgkit.explore.tables import table
from mgkit.features import Passes, embed
from mgkit.machine.download import file_hash
from mgkit.metrics import average_precision, positive_ranks
from mgkit.mini.make import CROPS, QUALITIES
from mgkit.model import append_one, get_multigrain
from mgkit.retrieval.protocols import measured_value
from mgkit.retrieval.ranking import RERANKED
from mgkit.stages.descriptor_kinds import DescriptorKind
from mgkit.stages.evaluate_retrieval import (
    best_of_each_set,
    embed_here,
    evaluate_retrieval,
    index_table,
    rankings,
)
from mgkit.stages.figure_4 import best_exponents, resolution_curves
from mgkit.stages.retrieval_task import RetrievalTask, retrieval_task
from mgkit.transforms import eval_transform
from mgkit.whitening import fit_pca_whitening, whiten

KINDS = [
    "GeM, training p",
    "GeM, p*",
    "GeM, p*, whitened",
    "GeM, p*, whitened, 64 d",
    "GeM, p*, whitened, 3 scales",
]
SETS = ["holidays", "ukbench", "copydays + 6 distractors"]


def test_retrieval_is_measured_on_every_set_with_every_kind_of_descriptor(after_chain, retrieved):
    found = retrieved[1]
    measured = [(r.result.name, r.descriptor) for r in found if r.retrieval_set.level is None]
    assert measured == [(name, kind) for name in SETS for kind in KINDS]
    assert all(0 <= r.result.value <= (4 if r.result.measure == "score" else 1) for r in found)
    levels = {r.retrieval_set.level for r in found} - {None}
    assert levels == {("crops", n) for n in CROPS} | {("jpegqual", n) for n in QUALITIES}
    rows = latest_results(RetrievalConfig(experiment="t"))["rows"]
    assert [row["value"] for row in rows] == [r.result.value for r in found]
    assert all(row["interval"][0] <= row["value"] <= row["interval"][1] for row in rows)


def test_the_values_are_those_of_descriptors_embedded_there_and_then(after_chain, retrieved):
    task, found = retrieved
    by_kind = {r.descriptor: r for r in found if r.result.name == "holidays"}
    images = task.sets[0].images
    plain, at_p = embed(task.net, images, size=48, ps=[task.training_p, task.p])  # both of a whitened network
    assert by_kind["GeM, p*, whitened"].result.value == measured_value(task.sets[0], at_p)
    sums = sum(
        embed(task.net, images, size=round(48 * scale), ps=[task.p])[0] for scale in task.config.scales
    )
    several = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    assert by_kind["GeM, p*, whitened, 3 scales"].result.value == pytest.approx(
        measured_value(task.sets[0], several)
    )


def test_each_kind_is_held_against_the_one_it_changes(retrieved):
    gains = {r.descriptor: (r.over, r.gain) for r in retrieved[1] if r.result.name == "ukbench"}
    assert [over for over, _ in gains.values()] == ["", KINDS[0], KINDS[1], KINDS[2], KINDS[2]]
    assert gains[KINDS[0]][1] is None
    values = {r.descriptor: r.result.value for r in retrieved[1] if r.result.name == "ukbench"}
    for kind in KINDS[1:]:
        over, gain = gains[kind]
        assert gain.value == pytest.approx(values[kind] - values[over])
        assert gain.low <= gain.value <= gain.high


def test_re_rankings_are_held_against_the_plain_ranking_of_the_same_descriptor(reranked, retrieved):
    bases = KINDS[1:3]
    names = [name for base in bases for name in (base, *(f"{base} + {kind}" for kind in RERANKED.values()))]
    assert [(r.result.name, r.descriptor) for r in reranked] == [(s, name) for s in SETS for name in names]
    plain = {(r.result.name, r.descriptor): r.result.value for r in retrieved[1]}
    values = {(r.result.name, r.descriptor): r.result.value for r in reranked}
    for r in reranked:
        base = r.result.name, r.over or r.descriptor
        assert values[base] == plain[base]
        if r.gain:
            assert r.gain.value == pytest.approx(r.result.value - plain[base])
            assert r.gain.low <= r.gain.value <= r.gain.high


def test_re_ranking_is_left_with_the_results(after_chain, reranked, retrieved):
    written = latest_results(RetrievalConfig(experiment="t"))
    assert [row["value"] for row in written["reranked"]] == [r.result.value for r in reranked]
    assert [row["value"] for row in written["rows"]] == [r.result.value for r in retrieved[1]]


def test_expanded_queries_are_evaluated_without_themselves(after_chain, retrieved):
    """αQE of Holidays, whose queries are in the database, by hand."""
    task = retrieved[0]
    one, rows = task.sets[0], task.descriptors(task.sets[0], size=48)
    scores = rows @ rows.T
    np.fill_diagonal(scores, -1)
    expanded = rows.copy()
    for q in one.queries:
        for i in np.argsort(-scores[q])[:2]:
            expanded[q] += max(scores[q, i], 0) ** 3 * rows[i]
        expanded[q] /= np.linalg.norm(expanded[q])
    products = [
        average_precision(positive_ranks(expanded[q] @ rows.T, found, junk=[q]), len(found))
        for q, found in zip(one.queries, one.positives, strict=True)
    ]
    config = replace(task.config, reranking=["alpha_qe"])
    [_, after] = rankings(config, one, DescriptorKind("plain", 3.0, rows), rows)
    assert after.result.per_query == pytest.approx(products)


def test_queries_without_an_answer_are_rejected_by_a_learned_threshold(after_chain, with_strangers):
    for r in with_strangers:
        one, groups = r.result.rejection, r.retrieval_set.query_groups
        assert len(one.best) == len(groups) and one.answered.sum() == 4
        assert np.isnan(r.result.per_query).tolist() == (~one.answered).tolist()
        assert {"Recall@1", "Recall@5", "mAP@10", "median rank"} <= r.result.others.keys()
    rows = latest_results(RetrievalConfig(experiment="own"))["rows"]
    assert rows[0]["rejection"]["unanswered"] == (~with_strangers[0].result.rejection.answered).sum()
    assert rows[0]["rejection"]["threshold"] == with_strangers[0].result.rejection.threshold


def test_distractors_are_embedded_once_for_all_sets(after_chain, mini_root):
    distractors = mini_root / "unlabelled" / "distractors"
    values = {
        "experiment": "more",
        "data": str(mini_root),
        "checkpoint": str(after_chain.whitened),
        "workers": 0,
    }
    values |= {"sets": ["holidays", "ukbench"], "distractors": str(distractors), "size": 48}
    task = retrieval_task(make(RetrievalConfig, values | {"scales": [1.0], "resolutions": [], "indices": []}))
    with patch("mgkit.stages.retrieval_task.stored_features", wraps=stored_features) as stored:
        found = evaluate_retrieval(task)
    passes = {call.args[1].paths for call in stored.call_args_list}
    assert sorted(map(len, passes)) == sorted(
        [
            len(list(distractors.rglob("*.jpg"))),
            *(len(one.images) - len(one.distractors) for one in task.sets),
        ]
    )
    whole = embed(task.net, task.sets[0].images, size=48, ps=[task.p])[0]
    by_kind = {r.descriptor: r.result for r in found if r.retrieval_set.name == task.sets[0].name}
    [name] = [name for name in by_kind if name.endswith("whitened")]
    assert by_kind[name].value == measured_value(task.sets[0], whole)
    assert "distractors" in task.sets[0].name


def test_the_best_kind_of_each_set(retrieved):
    best = best_of_each_set(retrieved[1])
    assert list(best) == SETS
    for name, chosen in best.items():
        assert chosen.result.value == max(r.result.value for r in retrieved[1] if r.result.name == name)


def test_the_distractors_are_listed_with_their_hashes(after_chain, retrieved, mini_root):
    text = (after_chain.folder / "outputs/t/evaluate_retrieval/distractors.sha256").read_text()
    lines = [line.split("  ", 1) for line in text.splitlines()]
    assert len(lines) == 6
    for digest, name in lines:
        [path] = (mini_root / "unlabelled" / "distractors").rglob(Path(name).name)
        assert file_hash(path) == digest


def test_a_second_evaluation_reads_the_features_from_disk(after_chain, retrieved, monkeypatch):
    monkeypatch.setattr("mgkit.features.image_shapes", lambda images: pytest.fail("an image was opened"))
    again = evaluate_retrieval(retrieved[0])
    assert [r.result.value for r in again] == [r.result.value for r in retrieved[1]]


def test_sizes_of_figure_4_need_no_pass_of_their_own(after_chain, mini_root):
    """Its passes come first, with all exponents that the descriptors of these sizes have."""
    values = {"experiment": "t", "data": str(mini_root), "workers": 0, "sets": ["ukbench"], "size": 96}
    config = make(RetrievalConfig, values | {"scales": [1.0], "resolutions": [96], "indices": []})
    with patch("mgkit.stages.retrieval_task.stored_features", wraps=stored_features) as stored:
        embed_here(retrieval_task(config))
    classes, figure, *others = (set(call.kwargs["ps"]) for call in stored.call_args_list)
    assert others and classes == figure and all(ps <= figure for ps in others)


def test_figure_4_from_one_pass_a_resolution(after_chain, retrieved):
    task = retrieved[0]
    curves = resolution_curves(task)
    assert list(curves.exponents)[0].startswith("training p")
    assert list(curves.values) == ["top-1", *SETS]
    assert all(values.shape == (2, len(curves.exponents)) for values in curves.values.values())
    assert all(np.isfinite(values).all() for values in curves.values.values())
    images = task.sets[0].images
    row = embed(replace_whitening(task.net), images, size=64, ps=[task.training_p])[0]
    assert curves.values["holidays"][1, 0] == pytest.approx(measured_value(task.sets[0], row))
    written = latest_results(RetrievalConfig(experiment="t"))["figure_4"]
    assert written["sizes"] == [32, 64] and written["values"]["top-1"] == curves.values["top-1"].tolist()
    assert best_exponents(curves).count("\n") == 3


def replace_whitening(net):
    """The network's plain embedding, for comparison."""
    plain = copy.deepcopy(net)
    plain.whitening = None
    plain.classifier = torch.nn.Linear(net.width, 2)
    return plain


def test_figure_4_has_no_top1_where_data_holds_retrieval_sets_only(
    after_chain, retrieved, mini_root, tmp_path
):
    (tmp_path / "holidays").symlink_to(mini_root / "holidays")
    values = {"experiment": "t", "data": str(tmp_path), "workers": 0, "size": 48, "resolutions": [32]}
    task = retrieval_task(
        make(
            RetrievalConfig,
            values | {"checkpoint": str(after_chain.folder / "outputs/t/whiten/checkpoint.pth")},
        )
    )
    evaluate_retrieval(task)
    assert list(resolution_curves(task).values) == ["holidays"]


def test_indices_are_compared_on_the_descriptors_of_all_sets(after_chain, retrieved, monkeypatch):
    assert index_table(retrieved[0]).count("\n") == 0  # so few images need none
    monkeypatch.setattr("mgkit.stages.evaluate_retrieval.FEWEST_INDEXED", 50)
    lines = index_table(retrieved[0], queries=20).splitlines()
    assert [line.split()[0] for line in lines] == ["index", "exact", "IVF4,Flat"]
    assert lines[2].split()[1:3] == ["1.000", "1.000"]  # all four lists are looked into


@pytest.mark.parametrize(
    ("values", "culprits"),
    [
        ({"dims": 99999}, ["dims", "257", "99999"]),
        ({"scales": [1e-9]}, ["scales", "8"]),
        ({"scales": [1.0, 1.0]}, ["scales", "distinct"]),
        ({"indices": ["Foo"]}, ["indices", "'Foo'"]),
        ({"indices": ["PQ32"]}, ["indices", "'PQ32'", "257"]),
    ],
)
def test_what_cannot_be_is_said_before_the_work(after_chain, mini_root, values, culprits):
    values = {"experiment": "t", "data": str(mini_root), "workers": 0, "size": 48} | values
    with one_line_error(ValueError, *culprits):
        retrieval_task(make(RetrievalConfig, values))


def test_a_plain_folder_has_neighbours_of_the_last_kind_and_no_measures(after_chain, mini_root, capsys):
    checkpoint = str(after_chain.folder / "outputs/t/whiten/checkpoint.pth")
    values = {
        "experiment": "plain",
        "data": str(mini_root / "unlabelled" / "distractors" / "00"),
        "workers": 0,
    }
    task = retrieval_task(
        make(RetrievalConfig, values | {"checkpoint": checkpoint, "size": 48, "resolutions": []})
    )
    found = evaluate_retrieval(task)
    [best] = best_of_each_set(found).values()
    assert best.descriptor.endswith("3 scales") and best.result.neighbours.shape[0] == 6
    assert resolution_curves(task).values == {}
    assert "none" not in capsys.readouterr().out.split() and "without ground truth" in table(found)


def disc_tree(root, mini_root):
    """DISC21's layout: strong copies and strangers ask, originals are references, unlabelled images train."""
    strong = sorted((mini_root / "copydays" / "strong").iterdir())
    originals = sorted((mini_root / "copydays" / "original").iterdir())
    others = sorted((mini_root / "unlabelled").rglob("*.jpg"))
    parts = {
        "queries": ("Q", strong + others[:3]),
        "references": ("R", originals),
        "train": ("T", others[3:15]),
    }
    for folder, (letter, files) in parts.items():
        (root / "disc21" / folder).mkdir(parents=True)
        for number, path in enumerate(files):
            (root / "disc21" / folder / f"{letter}{number:05d}.jpg").symlink_to(path)
    number_of = {path.name[:4]: number for number, path in enumerate(originals)}
    lines = [f"Q{q:05d},R{number_of[path.name[:4]]:05d}" for q, path in enumerate(strong)]
    lines += [f"Q{len(strong) + stranger:05d}," for stranger in range(3)]
    text = "query_id,reference_id\n" + "\n".join(lines) + "\n"
    (root / "disc21" / "dev_queries_groundtruth.csv").write_text(text)
    return root


def test_copy_detection_as_it_is_and_with_normalised_scores(after_chain, mini_root, tmp_path):
    checkpoint = str(after_chain.folder / "outputs/t/whiten/checkpoint.pth")
    values = {"experiment": "disc", "data": str(disc_tree(tmp_path, mini_root)), "workers": 0, "size": 48}
    values |= {"checkpoint": checkpoint, "scales": [1.0], "dims": 20, "resolutions": [], "indices": []}
    task = retrieval_task(make(RetrievalConfig, values))
    found = {r.descriptor: r for r in evaluate_retrieval(task)}
    assert list(found)[-2:] == ["GeM, p*, whitened, 20 d", "GeM, p*, whitened, 20 d, scores normalised"]
    as_it_is, normalised = (found[kind].result for kind in list(found)[-2:])
    assert {r.result.measure for r in found.values()} == {"micro-AP"}
    assert 0 < as_it_is.value <= 1 and 0 < normalised.value <= 1
    np.testing.assert_array_equal(as_it_is.per_query, normalised.per_query)  # within a query nothing moves
    assert not np.allclose(as_it_is.predictions.scores, normalised.predictions.scores)
    assert list(as_it_is.others) == ["Recall@1", "Recall@10", "recall at precision 90 %"]
    assert as_it_is.others["Recall@1"] == normalised.others["Recall@1"]  # nor does the first of a query


def test_weights_that_are_not_finite_are_an_error(after_chain, mini_root, tmp_path):
    values = {"experiment": "t", "data": str(mini_root), "workers": 0, "size": 48, "sets": ["holidays"]}
    task = retrieval_task(make(RetrievalConfig, values))
    with torch.no_grad():
        next(task.net.features.parameters())[0] = np.nan
    with one_line_error(ValueError, "not finite", "checkpoint", ".jpg"):
        evaluate_retrieval(task)


def test_on_data_of_one_s_own_a_missing_whitening_names_the_command(mini_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make(RetrievalConfig, {"experiment": "t", "data": str(mini_root / "imagenet")})
    with one_line_error(FileNotFoundError, "papermill", "03_whiten.ipynb", mini_root / "imagenet"):
        retrieval_task(config)
    assert not (tmp_path / "outputs").exists()


def test_a_picture_too_narrow_at_one_scale_is_left_out_of_all_descriptors(here, tiny_net, capsys):
    """At 48 px it is 9 px high and passes; at 34 px it is 6 px high."""
    for seed in range(6):
        size = (200, 40) if seed == 4 else (40, 30)
        write_picture(here / "tree" / f"class{seed % 2}" / f"{seed}.png", seed=seed, size=size)
    values = {"experiment": "t", "data": "tree", "size": 48, "resolutions": [], "on_unreadable": "skip"}
    config = make(RetrievalConfig, values | {"workers": 0, "scales": [0.70711, 1.0, 1.41421]})
    [tree] = find_sets(here / "tree")
    task = RetrievalTask(config, demanding(tiny_net), 3.0, 3.0, [tree], Passes.of(config))
    found = evaluate_retrieval(task)
    assert [len(r.retrieval_set.images) for r in found] == [5, 5] and found[1].gain is not None
    assert "4.png: 34 x 6 px at size 34 is too narrow for tiny" in capsys.readouterr().out
    collection = set_collection(task, found, "tree")
    asked = {Path(tree.images.paths[i]).name for i in collection.queries}
    assert asked == {f"{seed}.png" for seed in (0, 1, 2, 3, 5)}


TOKEN_KINDS = {
    "patches": ["GeM, training p", "class token", "class token and GeM", "GeM, p*, whitened"],
    "class": ["class token", "GeM", "class token and GeM", "class token, whitened"],
    "both": ["class token and GeM, training p", "GeM", "class token", "class token and GeM, p = 2, whitened"],
}


@pytest.mark.parametrize("tokens", TOKEN_KINDS)
def test_the_tokens_of_a_transformer_are_compared_on_the_same_images(here, tokens):
    """Also embedded one by one, by plain code: GeM with p = 2 of the patches above their least value."""
    for seed in range(8):
        write_picture(here / "tree" / f"class{seed % 2}" / f"{seed}.png", seed=seed, size=(48 + 2 * seed, 40))
    given = tokens == "both"  # its p was not learned by 02
    net = get_multigrain("timm/test_vit", p=2.0, num_classes=3, tokens=tokens).eval()
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(3 * net.width, net.width, generator=generator)
    whitened_net = whiten(net, *fit_pca_whitening(append_one(embeddings)))
    save_checkpoint("net.pth", whitened_net, learned_p=not given)
    values = {"experiment": "t", "data": "tree", "checkpoint": "net.pth", "size": 48, "ps": [1.0, 3.0]}
    values |= {"scales": [1.0], "dims": None, "indices": [], "workers": 0, "precision": "float32"}
    task = retrieval_task(make(RetrievalConfig, values | {"resolutions": [32, 48]}))
    found = {r.descriptor: r for r in evaluate_retrieval(task)}
    assert list(found) == TOKEN_KINDS[tokens]
    base, *others = found.values()
    assert all(r.over == base.descriptor and r.gain is not None for r in others)
    for name, r in found.items():
        assert r.p == (None if name in ("class token", "class token, whitened") else 2.0)
    by_hand = tokens_by_hand(net, task.sets[0])
    for name, rows in by_hand.items():
        [kind] = [r for kind, r in found.items() if kind.removesuffix(", training p") == name]
        assert kind.result.value == pytest.approx(measured_value(task.sets[0], rows))
    exponents = resolution_curves(task).exponents
    assert exponents == {"class token": 2.0} if tokens == "class" else list(exponents.values()) == [2, 1, 3]
    if tokens == "class":
        with one_line_error(ValueError, "class token has no positions"):
            set_maps(task, "tree")
    else:
        assert set_maps(task, "tree").maps.match(0, 0, 2.0).similarity == pytest.approx(1, abs=1e-4)


@torch.no_grad()
def tokens_by_hand(net, retrieval_set):
    """{kind: unit rows [N,D]} of timm's tokens, an image at a time, cut to the patches of 16 px."""
    rows = {"GeM": [], "class token": [], "class token and GeM": []}
    for path in retrieval_set.images.paths:
        image = eval_transform(48, "rect", mean=net.mean, std=net.std)(Image.open(path))
        top, left = image.shape[1] % 16 // 2, image.shape[2] % 16 // 2
        bottom, right = top + image.shape[1] // 16 * 16, left + image.shape[2] // 16 * 16
        of_class, *patches = net.features.net.forward_features(image[None, :, top:bottom, left:right])[0]
        x = torch.stack(patches)  # [hw,C]
        least = x.amin(0)
        offset = torch.where(least < 0, least - 1e-6, 0)
        gem = (x - offset).square().mean(0).sqrt() + offset
        for kind, row in zip(rows, (gem, of_class, torch.cat([of_class, gem])), strict=True):
            rows[kind].append((row / row.norm()).numpy())
    return {kind: np.stack(of_kind) for kind, of_kind in rows.items()}


def test_incomplete_groups_are_left_out_where_unreadable_images_are(tiny_net, here, monkeypatch):
    monkeypatch.setattr("mgkit.stages.retrieval_task.whitened_network", lambda config: (tiny_net, {}))
    holidays_tree(here / "data/holidays", ["100000", "100001", "100101", "100200", "100201"])
    write_tree(here / "data/ukbench", *ukbench_files([0, 1])[1:])
    values = {"experiment": "t", "data": "data", "dims": 4, "indices": []}
    with one_line_error(ValueError, "holidays", "group 1001 lacks its query", "on_unreadable=skip"):
        retrieval_task(make(RetrievalConfig, values))
    task = retrieval_task(make(RetrievalConfig, values | {"on_unreadable": "skip"}))
    assert [(each.name, len(each.queries), len(each.images)) for each in task.sets] == [
        ("holidays", 2, 4), ("ukbench", 4, 4),
    ]  # fmt: skip
