"""The claims of the method, checked on the demo's results."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mgkit.benchmarks.find import find_sets
from mgkit.checkpoints import load_network
from mgkit.config import FinetunePConfig, RetrievalConfig, TrainConfig, WhitenConfig, make
from mgkit.data.layouts import labelled_images
from mgkit.demo.reference import set_name
from mgkit.engine.run import read_results, stage_folder
from mgkit.features import classify, embed
from mgkit.machine.device import pick_device, place
from mgkit.metrics import topk_accuracy
from mgkit.model import MultiGrain, get_multigrain
from mgkit.retrieval.protocols import Difference, measured_value, shown_value
from mgkit.stages.inputs import data_root
from mgkit.stages.train import run_training

SETS = ("holidays", "ukbench", "copydays")
CROSS_ENTROPY_ALONE = {"lambda_": 1.0, "repetitions": 1}


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, what was measured on both sides, and whether the second side is ahead; None: undecided."""

    text: str
    before: str
    after: str
    holds: bool | None


def measure(net: MultiGrain, data: str, size: int) -> dict[str, float]:
    """top-1 on the validation images, and each retrieval set's measure with plain GeM embeddings, at one size (px)."""
    root = data_root(data)
    net = place(net, pick_device())
    logits, labels = classify(net, labelled_images(root)[1], size=size, crop="rect", workers=2)
    values = {"top-1": topk_accuracy(logits, labels, ks=(1,))[0]}
    for each in find_sets(root, names=SETS):
        values[each.name] = measured_value(each, embed(net, each.images, size=size, workers=2))
    return values


def joint_against_cross_entropy(
    experiment: str, data: str, seeds: Sequence[int], size: int
) -> dict[str, list[dict]]:
    """Measures of both trainings for each seed, and of an untrained network; seed 0's joint training is 01's own."""
    measured: dict[str, list[dict]] = {"joint": [], "cross-entropy": [], "untrained": []}
    for seed in seeds:
        for kind, settings in [("joint", {}), ("cross-entropy", CROSS_ENTROPY_ALONE)]:
            name = experiment if kind == "joint" and seed == 0 else f"{experiment}-{kind}-seed{seed}"
            checkpoint = stage_folder(TrainConfig(experiment=name)) / "checkpoint.pth"
            if name != experiment:
                print(f"{kind}, seed {seed}", flush=True)
                run_training(make(TrainConfig, {"experiment": name, "data": data, "seed": seed, **settings}))
            measured[kind].append(measure(load_network(checkpoint)[0], data, size))
    classes = len(labelled_images(data_root(data))[1].classes)
    torch.manual_seed(0)
    measured["untrained"] = [measure(get_multigrain(TrainConfig().backbone, num_classes=classes), data, size)]
    return measured


def spread(values: Sequence[float], unit: str) -> str:
    """Mean ± standard deviation over the seeds."""
    scale, digits, suffix = (1, 2, " of 4") if unit == "score" else (100, 1, " %")
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{scale * statistics.mean(values):.{digits}f} ± {scale * deviation:.{digits}f}{suffix}"


def ahead(before: Sequence[float], after: Sequence[float]) -> bool | None:
    """Whether all runs of one kind are above all of another, or below; None where they overlap."""
    return True if min(after) > max(before) else False if max(after) < min(before) else None


def gained(row: dict) -> bool | None:
    """Whether a row of 05 is better or worse than the one it is compared with on the same queries; None where these do not say."""
    return Difference(**row["gain"]).better


def claims(experiment: str, measured: dict[str, list[dict]], size: int) -> list[Claim]:
    """What the paper says, held against what the runs left in results.json."""
    found = []
    for key in measured["joint"][0]:
        unit = "score" if key == "ukbench" else "share"
        joint, alone, untrained = (
            [m[key] for m in measured[kind]] for kind in ("joint", "cross-entropy", "untrained")
        )
        found += [
            Claim(f"joint training beats cross-entropy alone: {key}, {size} px", spread(alone, unit), spread(joint, unit),
                  ahead(alone, joint)),
            Claim(f"training beats random weights: {key}, {size} px", spread(untrained, unit), spread(joint, unit),
                  ahead(untrained, joint)),
        ]  # fmt: skip
    search = read_results(FinetunePConfig(experiment=experiment))
    for s, pixels in enumerate(search["sizes"]):
        before, after = search["top1_at_training_p"][s], search["top1_at_p_star"][s]
        if pixels > TrainConfig().size:
            text = f"p* = {search['p_star'][s]:.2f} beats p = {search['training_p']:g} at {pixels} px: top-1"
            found.append(
                Claim(text, f"{100 * before:.1f} %", f"{100 * after:.1f} %", ahead([before], [after]))
            )
    rows = read_results(RetrievalConfig(experiment=experiment))["rows"]
    for name in dict.fromkeys(row["set"] for row in rows):
        if set_name(name) not in SETS:  # a level of Copydays
            continue
        of_set = {row["descriptor"]: row for row in rows if row["set"] == name}
        plain, white = of_set.get("GeM, p*", of_set["GeM, training p"]), of_set["GeM, p*, whitened"]
        values = [shown_value(row["measure"], row["value"]) for row in (plain, white)]
        found.append(Claim(f"whitening improves retrieval: {name}", *values, gained(white)))
        several = [row for kind, row in of_set.items() if kind.endswith(" scales")]
        if several:
            values = [shown_value(row["measure"], row["value"]) for row in (white, several[0])]
            found.append(Claim(f"several scales improve retrieval: {name}", *values, gained(several[0])))
    folding = read_results(WhitenConfig(experiment=experiment))
    before, after = folding["top1_before"], folding["top1_after"]
    found.append(
        Claim(
            "folding leaves top-1 as it was", f"{100 * before:.2f} %", f"{100 * after:.2f} %", before == after
        )
    )
    return found


def table(found: Sequence[Claim], seeds: int) -> str:
    """The claims as aligned text."""
    width = max(len(claim.text) for claim in found)
    lines = [f"{'claim':{width}}  {'without':>16}  {'with':>16}  holds?"]
    words = {True: "yes", False: "NO", None: "undecided"}
    lines += [f"{c.text:{width}}  {c.before:>16}  {c.after:>16}  {words[c.holds]}" for c in found]
    return "\n".join([
        *lines,
        f"± is the standard deviation over {seeds} seeds; the other lines are from seed 0. Undecided: the seeds of both sides overlap,",
        "the 95 % interval of the difference over the same queries holds zero, or, for p*, as many images are right.",
    ])  # fmt: skip
