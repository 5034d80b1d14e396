"""Which of the two losses pulls the embedding, for several λ: figure 5.

The share itself is `mgkit.losses.gradient_share`, which a training notes every `gradient_share_every` steps. Here are the
trainings to set beside each other: short ones of the embedded set, made when they are asked for; on other data, where they
cost days, those that the experiment holds.
"""

from dataclasses import replace

from mgkit.config import TrainConfig
from mgkit.experiment import is_mini, read_config, read_steps, runs, training_data
from mgkit.objective import SHARE
from mgkit.resume import STAGE, is_finished
from mgkit.train import run_training

LAMBDAS = (0.1, 0.5, 0.9)
Shares = dict[float, list[tuple[int, float]]]  # {λ: [(optimizer step, share in 0..1), …]}


def shares_by_lambda(config: TrainConfig) -> Shares:
    """Shares of the classification gradient against λ, in the order of time, from trainings like `config` (figure 5).

    On the embedded set: of half an epoch at half the size for each of LAMBDAS, kept as outputs/<experiment>-lambda<λ>/. Else: of
    the experiment's own runs, train, train.1, …, as far as they were noted.
    """
    if not is_mini(config.data):
        return shares_of_runs(config.experiment)
    found: Shares = {}
    for lambda_ in LAMBDAS:
        short = short_training(config, lambda_)
        if not is_finished(short, training_data(short)):
            print(f"λ = {lambda_:g}, half an epoch at {short.size} px:")
            run_training(short)
        found[lambda_] = shares_noted(read_steps(short.experiment, STAGE))
    return found


def short_training(config: TrainConfig, lambda_: float) -> TrainConfig:
    """Half an epoch at half the size, from the same first weights, with a line of steps.jsonl every few steps."""
    return replace(
        config, experiment=f"{config.experiment}-lambda{lambda_:g}", lambda_=lambda_, size=max(config.size // 2, 32),
        epochs=1, len_factor=0.5, repetitions=max(config.repetitions, 2), log_every=2, gradient_share_every=1,
    )  # fmt: skip


def shares_of_runs(experiment: str) -> Shares:
    """What the experiment's runs noted; of several with the same λ, the latest."""
    found: Shares = {}
    in_time = sorted(runs(experiment), key=lambda name: name == STAGE)  # train.1, train.2, …, train
    for name in in_time:
        lambda_ = read_config(experiment, name)["lambda_"]
        noted = shares_noted(read_steps(experiment, name))
        if noted:
            found[lambda_] = noted
    return found


def shares_noted(steps: list[dict]) -> list[tuple[int, float]]:
    """(step, share) of the lines of a steps.jsonl that hold one."""
    return [(line["step"], line[SHARE]) for line in steps if SHARE in line]
