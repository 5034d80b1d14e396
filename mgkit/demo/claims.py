"""The claims of the method, checked on the results of the demo."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mgkit.benchmarks.find import find_sets
from mgkit.checkpoints import load_network
from mgkit.config import FinetunePConfig, RetrievalConfig, TrainConfig, WhitenConfig, make
from mgkit.data.layouts import labelled_images
from mgkit.demo.reference import set_name
from mgkit.engine.holding import holding
from mgkit.engine.run import latest_results, stage_folder
from mgkit.features import classify, embed
from mgkit.machine.device import pick_device, place
from mgkit.metrics import topk_accuracy
from mgkit.model import MultiGrain, get_multigrain
from mgkit.retrieval.protocols import Difference, measured_value, shown_difference, shown_value
from mgkit.stages.inputs import data_root
from mgkit.stages.train import run_training

SETS = ("holidays", "ukbench", "copydays")
CROSS_ENTROPY_ALONE = {"lambda_": 1.0, "repetitions": 1}


@dataclass(frozen=True)
class Claim:
    """A statement of the paper and its measurements.

    before, after: measured without and with what is claimed to help.
    holds: None for undecided.
    difference: with its 95 % interval, where both are measured on the same queries.
    """

    text: str
    before: str
    after: str
    holds: bool | None
    difference: str = ""


def measure(net: MultiGrain, data: str, size: int) -> dict[str, float]:
    """Validation top-1 and the measure of each retrieval set, with GeM embeddings at a size (px)."""
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
    """Train with both losses and with cross-entropy alone; measures per seed, and of an untrained network.

    The joint training of seed 0 is that of 01.
    """
    measured: dict[str, list[dict]] = {"joint": [], "cross-entropy": [], "untrained": []}
    for seed in seeds:
        for kind, settings in [("joint", {}), ("cross-entropy", CROSS_ENTROPY_ALONE)]:
            name = experiment if kind == "joint" and seed == 0 else f"{experiment}-{kind}-seed{seed}"
            config = make(TrainConfig, {"experiment": name, "data": data, "seed": seed, **settings})
            with holding(config):
                if name != experiment:
                    print(f"{kind}, seed {seed}", flush=True)
                    run_training(config)
                net = load_network(stage_folder(config) / "checkpoint.pth")[0]
            measured[kind].append(measure(net, data, size))
    classes = len(labelled_images(data_root(data))[1].classes)
    torch.manual_seed(0)
    measured["untrained"] = [measure(get_multigrain(TrainConfig().backbone, num_classes=classes), data, size)]
    return measured


def spread(values: Sequence[float], unit: str) -> str:
    """Mean ± standard deviation over seeds."""
    scale, digits, suffix = (1, 2, " of 4") if unit == "score" else (100, 1, " %")
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{scale * statistics.mean(values):.{digits}f} ± {scale * deviation:.{digits}f}{suffix}"


def ahead(before: Sequence[float], after: Sequence[float]) -> bool | None:
    """Whether all values of `after` are above those of `before`, or below; None if they overlap."""
    return True if min(after) > max(before) else False if max(after) < min(before) else None


def on_same_queries(text: str, before: dict, after: dict) -> Claim:
    """A claim on two rows of 05, of which `after` holds its gain over `before` with a 95 % interval."""
    values = [shown_value(row["measure"], row["value"]) for row in (before, after)]
    gain = Difference(**after["gain"])
    return Claim(text, *values, gain.better, shown_difference(after["measure"], gain))


def claims(experiment: str, measured: dict[str, list[dict]], size: int) -> list[Claim]:
    """The claims, from results.json of the stages and `joint_against_cross_entropy`."""
    found = []
    for key in measured["joint"][0]:
        unit = "score" if key == "ukbench" else "share"
        joint = [m[key] for m in measured["joint"]]
        for kind, text in (
            ("cross-entropy", "joint training outperforms cross-entropy alone"),
            ("untrained", "training outperforms random weights"),
        ):
            other = [m[key] for m in measured[kind]]
            values = spread(other, unit), spread(joint, unit), ahead(other, joint)
            found.append(Claim(f"{text}: {key}, {size} px", *values))
    search = latest_results(FinetunePConfig(experiment=experiment))
    for s, pixels in enumerate(search["sizes"]):
        before, after = search["top1_at_training_p"][s], search["top1_at_p_star"][s]
        gain = Difference(**search["gains"][s])
        if pixels > TrainConfig().size:
            text = (
                f"p* = {search['p_star'][s]:.2f} outperforms p = {search['training_p']:g}: top-1, {pixels} px"
            )
            values = f"{100 * before:.1f} %", f"{100 * after:.1f} %"
            found.append(Claim(text, *values, gain.better, shown_difference("top-1", gain)))
    rows = latest_results(RetrievalConfig(experiment=experiment))["rows"]
    for name in dict.fromkeys(row["set"] for row in rows):
        if set_name(name) not in SETS:  # a level of Copydays
            continue
        of_set = {row["descriptor"]: row for row in rows if row["set"] == name}
        plain, white = of_set.get("GeM, p*", of_set["GeM, training p"]), of_set["GeM, p*, whitened"]
        found.append(on_same_queries(f"whitening improves retrieval: {name}", plain, white))
        several = [row for kind, row in of_set.items() if kind.endswith(" scales")]
        if several:
            found.append(on_same_queries(f"several scales improve retrieval: {name}", white, several[0]))
    folding = latest_results(WhitenConfig(experiment=experiment))
    before, after = folding["top1_before"], folding["top1_after"]
    values = f"{100 * before:.2f} %", f"{100 * after:.2f} %"
    found.append(Claim("folding the whitening leaves top-1 unchanged", *values, before == after))
    return found


def table(found: Sequence[Claim], seeds: int) -> str:
    """The claims as aligned text."""
    width = max(len(claim.text) for claim in found)
    words = {True: "yes", False: "NO", None: "undecided"}
    rows = [(c.text, c.before, c.after, c.difference, words[c.holds]) for c in found]
    lines = [
        f"{text:{width}}  {before:>16}  {after:>16}  {difference:>21}  {holds}"
        for text, before, after, difference, holds in [
            ("claim", "without", "with", "difference (95 %)", "holds?"), *rows,
        ]
    ]  # fmt: skip
    return "\n".join([
        *lines,
        f"±: standard deviation over {seeds} seeds; lines without ± are from seed 0. Undecided: the values",
        "of the seeds overlap, or the 95 % interval of the difference contains 0.",
    ])  # fmt: skip
