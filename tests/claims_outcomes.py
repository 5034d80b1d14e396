"""Outcomes of 07 made of given means, without a training."""

from collections.abc import Mapping, Sequence

import numpy as np

from mgkit.claims.measures import Measured
from mgkit.claims.plan import Training, grid, samples
from mgkit.claims.run import Outcome, Trained
from mgkit.config import ClaimsConfig, make

IMAGES = 100  # of the training
AROUND = np.array([-0.02, -0.01, 0.01, 0.02])  # of the queries, whose mean is that of the training
DIAGNOSIS = {
    "positive distance": 0.5, "negative distance": 1.2, "distance": 1.1, "effective rank": 30.0,
    "drawn uniformly": 0.0, "validation top-1": 0.5,
}  # fmt: skip
OF_MARGIN = {"beta": 1.0, "positives that cost": 0.25, "negatives that cost": 0.5}
SECONDS = 1800.0
QUERIES = {"top-1": 60, "holidays": 20, "ukbench": 24, "copies": 30}  # of a noisy outcome


def measured(training: Training, config: ClaimsConfig, means: Mapping[str, float], **found) -> Measured:
    """What is measured of a training: {measure: mean}, and values of the diagnosis."""
    return Measured(
        training={}, train_images="", evaluation={}, samples=samples(training, config, IMAGES),
        values={name: (mean + AROUND).tolist() for name, mean in means.items()},
        diagnosis=DIAGNOSIS | found, seconds=SECONDS,
    )  # fmt: skip


def outcome(
    means: Mapping[str, Mapping[int, Sequence[float]]], *, measures: Sequence[str] = ("top-1", "copies"),
    rates: Mapping[str, Mapping[float, float]] | None = None, diagnosis: Mapping[str, float] | None = None,
    **values,
) -> Outcome:  # fmt: skip
    """An outcome by means, {arm: {budget: one a seed}}, in 0..1, the same of all measures.

    rates: {arm: {learning rate of the grid: validation top-1}}
    values: further parameters
    """
    budgets = sorted({budget for of_arm in means.values() for budget in of_arm})
    seeds = range(max(len(of_seeds) for of_arm in means.values() for of_seeds in of_arm.values()))
    config = make(
        ClaimsConfig,
        {"arms": list(means), "budgets": budgets, "seeds": list(seeds), "len_factor": 1.0} | values,
    )
    trained = []
    for arm, of_arm in means.items():
        found = dict(OF_MARGIN if arm.startswith("joint") else {}) | dict(diagnosis or {})
        for budget, of_seeds in of_arm.items():
            for seed, mean in enumerate(of_seeds):
                training = Training(arm, budget, seed, config.lrs[0])
                values = measured(training, config, dict.fromkeys(measures, mean), **found)
                trained.append(Trained(training, values))
    chosen = []
    for training in grid(config):
        top1 = (rates or {}).get(training.arm, {}).get(training.lr)
        if top1 is not None:
            kept = measured(training, config, {"top-1": top1}, **{"validation top-1": top1})
            chosen.append(Trained(training, kept))
    taken = {arm: max(of_arm, key=of_arm.get) for arm, of_arm in (rates or {}).items()}
    groups = {name: np.arange(len(AROUND)) for name in measures}
    return Outcome(config, chosen, taken or dict.fromkeys(means, config.lrs[0]), trained, groups)


def noisy_outcome(arms, *, budgets=(1, 4), seeds=(0, 1, 2), gains=None) -> Outcome:
    """An outcome of these arms, whose values differ little between seeds.

    gains: {(arm, budget): what is added to the mean of every measure}
    """
    config = make(ClaimsConfig, {"experiment": "t", "arms": arms, "budgets": budgets, "seeds": seeds})
    rng = np.random.default_rng(0)
    base = {name: rng.uniform(0.2, 0.6, count) for name, count in QUERIES.items()}
    trained = []
    for budget in budgets:
        for seed in seeds:
            for arm in arms:
                gain = (gains or {}).get((arm, budget), 0.0)
                values = {
                    name: (of_name + gain + rng.normal(0, 0.01, len(of_name))).tolist()
                    for name, of_name in base.items()
                }
                kept = Measured(
                    training={}, train_images="", evaluation={}, samples=1000 * budget, values=values,
                    diagnosis=DIAGNOSIS, seconds=SECONDS,
                )  # fmt: skip
                trained.append(Trained(Training(arm, budget, seed, 0.02), kept))
    groups = {name: np.arange(count) for name, count in QUERIES.items()}
    return Outcome(config, [], dict.fromkeys(arms, 0.02), trained, groups)
