"""Shared by tests: outcomes of 07 that are made up."""

import numpy as np

from mgkit.claims.measures import Measured
from mgkit.claims.plan import Training
from mgkit.claims.run import Outcome, Trained
from mgkit.config import ClaimsConfig, make

QUERIES = {"top-1": 60, "holidays": 20, "ukbench": 24, "copies": 30}


def claims_outcome(arms, *, budgets=(1, 4), seeds=(0, 1, 2), gains=None) -> Outcome:
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
                diagnosis = {"effective rank": 30.0, "positive distance": 0.6, "negative distance": 0.9}
                measured = Measured(
                    training={}, train_images="", evaluation={}, samples=1000 * budget, values=values,
                    diagnosis=diagnosis | {"distance": 1.0, "validation top-1": 0.5}, seconds=60.0 * budget,
                )  # fmt: skip
                trained.append(Trained(Training(arm, budget, seed, 0.02), measured))
    groups = {name: np.arange(count) for name, count in QUERIES.items()}
    return Outcome(config, [], dict.fromkeys(arms, 0.02), trained, groups)
