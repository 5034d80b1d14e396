"""The board: every printed figure is there; what runs measured is found, and said to be what it is."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from mgkit.board import board, elsewhere, table
from mgkit.board.entries import PAPER, WHITENED, Elsewhere
from mgkit.config import ClassifyConfig, make
from mgkit.engine.run import Run
from mgkit.stages.descriptor_kinds import own_names

RECIPES = Path(__file__).parents[2] / "notebooks" / "recipes"
DISC21_KIND = "GeM, p = 7, whitened, 1500 d"


@pytest.fixture
def outputs(tmp_path):
    return tmp_path / "outputs"


def leave(outputs, experiment, stage, results, *, time=0, **provenance):
    folder = outputs / experiment / stage
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "provenance.yaml").write_text(yaml.safe_dump(provenance))
    os.utime(folder / "results.json", (time, time))
    return folder


def classification(top1, *, images=50_000, crop="rect", size=500, exponent="p*", p=4.0):
    row = {"crop": crop, "size": size, "exponent": exponent, "p": p, "top1": top1, "top5": 0.9}
    return {"images": images, "rows": [row]}


def entries_of(outputs, table, row, size):
    found = [e for e in board(outputs) if (e.table, e.row, e.size) == (table, row, size)]
    return {entry.measure: entry for entry in found}


def test_nothing_is_measured_where_nothing_was_run(outputs):
    entries = board(outputs)
    assert len(entries) > 120 and all(e.measured is None and e.difference is None for e in entries)
    text = table(entries)
    assert text.count("not measured") == len({(e.table, e.row, e.size) for e in entries})
    assert "Nothing has been measured yet" in text


def test_the_figures_are_those_that_the_paper_prints(reference):
    """Each number of the published tables, in whatever order, and none besides."""
    paper = yaml.safe_load((reference.parent / "paper_results.yaml").read_text())
    ours = {}
    for e in board(reference / "no outputs here"):
        ours.setdefault(e.table, []).append(e.paper)
    theirs = {
        "table 2": [v for row in paper["table_2_imagenet_top1_top5"] for p in ("p1", "p3") for v in row[p]],
        "table E.1": [
            v for row in paper["table_E1_finetuned_p_star"]
            for key in ("original", "s350", "s400", "s450", "s500") for v in row[key]
        ],
        "released": [
            row[key] for row in paper["released_checkpoints"] for key in ("top1_at_224", "top1", "p")
            if key in row and (key != "p" or "s" in row)
        ],
        "section 3.5": [row[key] for row in paper["section_3_5_p_star"] for key in ("s224", "s500", "s800")],
        "table D.1": [
            v
            for row in paper["table_D1_retrieval"]
            for key in ("holidays", "ukbench", "cd10k")
            for v in row[key]
        ],
        "DISC21": [100 * paper["isc2021_baseline"][k] for k in ("micro_ap", "micro_ap_score_normalised")],
        "DISC21, 10k images": [56.3, 41.4, 61.0, 70.8],  # isc2021, docs/4: 0.56314, 0.41374, 0.60970, 0.70827
    }  # fmt: skip
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert sorted(ours[name]) == pytest.approx(sorted(theirs[name])), name


def test_accuracy_is_set_beside_the_paper_s(outputs):
    folder = leave(
        outputs, "joint_3B_0.5", "evaluate_imagenet", classification(0.79),
        command="papermill notebooks/04_evaluate_imagenet.ipynb …", checkpoint={"sha256": "ab" * 32},
    )  # fmt: skip
    found = entries_of(outputs, "table 2", "MultiGrain, λ=0.5, p=3", 500)
    top1 = found["top-1"]
    assert top1.paper == 78.6 and top1.measured.value == pytest.approx(79.0)
    assert top1.difference == pytest.approx(0.4) and top1.measured.complete
    assert (top1.measured.folder, top1.measured.checkpoint) == (folder, "ab" * 32)
    text = table(board(outputs))
    [line] = [line for line in text.splitlines() if line.startswith("MultiGrain, λ=0.5, p=3, 500 px  ")][:1]
    assert "78.6 / 94.4" in line and "79.0 / 90.0" in line and "+0.4 / -4.4" in line and line.endswith("[1]")
    assert "[1] papermill notebooks/04_evaluate_imagenet.ipynb" in text and "checkpoint " + "ab" * 6 in text
    assert str(folder) in text


@pytest.mark.parametrize("other", [{"crop": "square"}, {"size": 480}, {"exponent": "trained"}])
def test_another_measurement_of_the_run_is_not_taken_for_it(outputs, other):
    leave(outputs, "joint_3B_0.5", "evaluate_imagenet", classification(0.79, **other))
    assert all(
        e.measured is None for e in entries_of(outputs, "table 2", "MultiGrain, λ=0.5, p=3", 500).values()
    )


def test_other_images_than_the_paper_s_are_marked(outputs):
    leave(outputs, "joint_3B_0.5", "evaluate_imagenet", classification(0.79, images=300))
    assert not entries_of(outputs, "table 2", "MultiGrain, λ=0.5, p=3", 500)["top-1"].measured.complete
    assert "on 300 images only, not the paper's" in table(board(outputs))


def test_the_latest_run_counts_also_where_an_earlier_one_was_set_aside(outputs):
    leave(outputs, "joint_3B_0.5", "evaluate_imagenet.1", classification(0.70), time=100)
    leave(outputs, "joint_3B_0.5", "evaluate_imagenet", classification(0.71, size=224), time=200)
    leave(outputs, "joint_3B_0.5", "evaluate_imagenet.2", classification(0.72), time=150)
    top1 = entries_of(outputs, "table 2", "MultiGrain, λ=0.5, p=3", 500)["top-1"]
    assert top1.measured.value == pytest.approx(72.0)


def test_p_star_of_a_size(outputs):
    results = {"sizes": [224, 500], "p_star": [3.1, 4.2], "val_images": 50_000}
    leave(outputs, "joint_3B_0.5", "finetune_p", results)
    assert entries_of(outputs, "section 3.5", "MultiGrain, λ=0.5, p=3", 500)["p*"].measured.value == 4.2
    assert entries_of(outputs, "section 3.5", "MultiGrain, λ=0.5, p=3", 800)["p*"].measured is None


def test_the_exponent_that_04_pooled_with(outputs):
    leave(outputs, "senet154", "evaluate_imagenet", classification(0.8, size=350, p=1.63))
    found = entries_of(outputs, "table E.1", "SENet154", 350)
    assert found["p*"].difference == pytest.approx(0.03) and found["top-1"].measured.value == 80.0


def test_retrieval_with_whitened_descriptors(outputs):
    rows = [
        {"set": "holidays", "descriptor": "GeM, p*", "measure": "mAP", "value": 0.5, "queries": 500},
        {"set": "holidays", "descriptor": WHITENED, "measure": "mAP", "value": 0.9, "queries": 500},
        {"set": "ukbench", "descriptor": WHITENED, "measure": "score", "value": 3.5, "queries": 12},
        {
            "set": "copydays + 300 distractors", "descriptor": WHITENED, "measure": "mAP", "value": 0.7,
            "queries": 229,
        },
    ]  # fmt: skip
    leave(outputs, "joint_3B_0.5", "evaluate_retrieval", {"size": 500, "rows": rows})
    found = entries_of(outputs, "table D.1", "MultiGrain, λ=0.5, p=3", 500)
    assert [found[name].measured.value for name in found] == pytest.approx([90.0, 3.5, 70.0])
    assert [found[name].measured.complete for name in found] == [True, False, False]
    assert "-1.5 / -0.40 / -10.7" in table(board(outputs))


def test_a_level_of_copydays_is_not_taken_for_copydays(outputs):
    rows = [
        {"set": "copydays crops 10", "descriptor": WHITENED, "measure": "mAP", "value": 1.0, "queries": 157}
    ]
    leave(outputs, "joint_3B_0.5", "evaluate_retrieval", {"size": 500, "rows": rows})
    assert entries_of(outputs, "table D.1", "MultiGrain, λ=0.5, p=3", 500)["copydays"].measured is None


def test_copy_detection_on_disc(outputs):
    rows = [
        {"set": "disc21", "descriptor": DISC21_KIND, "measure": "micro-AP", "value": 0.16, "queries": 25_000},
        {
            "set": "disc21", "descriptor": f"{DISC21_KIND}, scores normalised", "measure": "micro-AP",
            "value": 0.35, "queries": 900,
        },
    ]  # fmt: skip
    leave(outputs, "disc21_joint_3B_0.5", "evaluate_retrieval", {"size": 512, "rows": rows})
    found = [e for e in board(outputs) if e.table == "DISC21"]
    assert [e.difference for e in found] == pytest.approx([0.6, -1.5])
    assert [e.measured.complete for e in found] == [True, False]
    assert not any(e.measured for e in board(outputs) if e.table != "DISC21")


@pytest.mark.parametrize(
    "others", [{}, {"recall at precision 90 %": 0.4, "Recall@1": 0.62, "Recall@10": 0.7}]
)
def test_the_10k_subset_of_disc_with_its_further_measures(outputs, others):
    row = {"set": "disc21_10k", "descriptor": DISC21_KIND, "measure": "micro-AP", "value": 0.57}
    rows = [row | {"queries": 4_991, "others": others}]
    leave(outputs, "disc21_joint_3B_0.5", "evaluate_retrieval", {"size": 512, "rows": rows})
    found = {e.measure: e for e in board(outputs) if e.table == "DISC21, 10k images"}
    assert found["micro-AP"].difference == pytest.approx(0.7) and found["micro-AP"].measured.complete
    measured = {name: e.measured.value for name, e in found.items() if e.measured}
    assert measured == pytest.approx({"micro-AP": 57.0} | {name: 100 * x for name, x in others.items()})
    assert len(found) == 4 and not any(e.measured for e in board(outputs) if e.table == "DISC21")


def test_the_descriptors_on_disc_have_the_names_that_05_gives_them():
    """03 is given p, so the names are not those of a p* that 02 found."""
    for line in yaml.safe_load(PAPER.read_text())["copy_detection"]:
        evaluated = yaml.safe_load((RECIPES / f"{line['recipe']}.yaml").read_text())
        whitened = yaml.safe_load((RECIPES / f"whiten_{line['experiment']}.yaml").read_text())
        net = SimpleNamespace(tokens="patches")
        *_, name = own_names(SimpleNamespace(net=net, learned_p=False, p=whitened["p"]))
        ends = ("", ", scores normalised")
        assert line["descriptor"] in [f"{name}, {evaluated['dims']} d{end}" for end in ends]
        assert evaluated["sets"] == [line["set"]] and evaluated["experiment"] == whitened["experiment"]


def test_newer_figures_name_their_source_and_are_compared_with_nothing():
    figures = elsewhere()
    assert {figure.set for figure in figures} >= {"DISC21", "ImageNet", "revisited Oxford"}
    for figure in figures:
        assert isinstance(figure, Elsewhere) and figure.source and 0 < figure.value < 100
        assert not {"recipe", "measured", "difference"} & set(dir(figure))
    assert len({(f.set, f.row, f.size, f.measure) for f in figures}) == len(figures)


def test_newer_figures_are_a_block_of_their_own(outputs):
    text = table([], elsewhere())
    assert text.strip().startswith("Elsewhere (newer, other training or data; not comparable)")
    assert "difference" not in text and "measured" not in text
    [line] = [line for line in text.splitlines() if line.startswith("SSCD") and "normalised" in line]
    assert "micro-AP / scores normalised" in line and "61.5 / 72.5" in line and line.endswith("[a]")
    cited = text.partition("[a] ")[2]
    assert all(figure.source in f"{cited}" for figure in elsewhere())
    leave(outputs, "joint_3B_0.5", "evaluate_imagenet", classification(0.79))
    whole = table(board(outputs), elsewhere())
    assert whole == table(board(outputs)) + "\n" + text


def test_a_real_run_leaves_what_the_board_shows(outputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "checkpoint.pth"
    checkpoint.write_bytes(b"weights")
    config = make(ClassifyConfig, {"experiment": "joint_3B_0.5", "data": "data", "sizes": [500]})
    Run(config, checkpoint=str(checkpoint)).results(classification(0.79))
    measured = entries_of(outputs, "table 2", "MultiGrain, λ=0.5, p=3", 500)["top-1"].measured
    assert measured.command.startswith(
        "papermill notebooks/04_evaluate_imagenet.ipynb outputs/joint_3B_0.5-04_"
    )
    assert "-p experiment joint_3B_0.5 -p data data -p sizes '[500]'" in measured.command
    assert len(measured.checkpoint) == 64


@pytest.mark.parametrize("name", ["results.json", "provenance.yaml"])
@pytest.mark.parametrize("content", ["{", "3"])
def test_a_damaged_run_is_left_out_in_a_line(outputs, name, content, capsys):
    leave(outputs, "joint_3B_0.5", "evaluate_imagenet", classification(0.5))
    path = outputs / "joint_3B_0.5" / "evaluate_imagenet" / name
    path.write_text(content)
    assert not any(each.measured for each in board(outputs))
    assert f"{path} is damaged" in capsys.readouterr().out
