"""All trainings of 07 in order, each measured as soon as it is finished; what is there already is kept."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mgkit.checkpoints import load_network
from mgkit.claims.arms import ARMS
from mgkit.claims.diagnosis import DrawnBatches, diagnosis
from mgkit.claims.further import FURTHER_ARM, Further, measure_further, read_further
from mgkit.claims.measures import Evaluation, Measured, evaluation, measure, read_measured, write_measured
from mgkit.claims.plan import Training, grid, trainings
from mgkit.config import ClaimsConfig
from mgkit.data.images import ImageList
from mgkit.engine.holding import holding
from mgkit.engine.launch import StoppedError, launch
from mgkit.engine.run import Run, read_results, stage_folder
from mgkit.engine.snapshots import is_finished
from mgkit.machine.device import pick_device, place
from mgkit.machine.distributed import all_gather_object, broadcast_object, from_main, is_main, main_first
from mgkit.model import MultiGrain
from mgkit.stages.inputs import training_data
from mgkit.stages.train import run_training

AskedToStop = Callable[[int], bool]


@dataclass(frozen=True)
class Trained:
    """A training that is finished, with what was measured."""

    training: Training
    measured: Measured


@dataclass(frozen=True)
class Outcome:
    """What 07 has found so far.

    grid: the trainings that chose the learning rates
    rates: the learning rate of each arm
    trained: the others, in order
    groups: what each image or query shows, {measure: [Q]}
    further: of the networks on which further claims are tried, one a seed
    """

    config: ClaimsConfig
    grid: list[Trained]
    rates: dict[str, float]
    trained: list[Trained]
    groups: dict[str, np.ndarray]
    further: list[Further] = field(default_factory=list)


def try_claims(config: ClaimsConfig) -> Outcome:
    """Train and measure what is missing, in worker processes, and return all that is measured.

    A run that was killed or stopped goes on. Raises as `holding` and `launch`.
    """
    with holding(config) as joined:
        if not joined and not is_complete(config):
            launch(config)
        return outcome(config)


def run_claims(config: ClaimsConfig, *, asked_to_stop: AskedToStop = lambda step: False) -> None:
    """`try_claims` in this process, or in each of several.

    asked_to_stop: called before every step, with the number of steps done in the training; if True in any
        process, all save and raise StoppedError
    """
    images = training_data(config)
    on = main_first(lambda: evaluation(config, images[1]))
    run = Run(config, images=images) if is_main() else None
    work = Work(config, images, on, asked_to_stop)
    finished = work.train_all(grid(config))
    if finished:
        rates = from_main(lambda: work.finished()[1])
        finished = work.train_all(list(trainings(config, rates)))
    if config.further:
        work.measure_further()
    if run:
        run.results({"complete": finished})


class Work:
    """What `run_claims` does for a list of trainings.

    images: for training and for validation
    """

    def __init__(
        self, config: ClaimsConfig, images: tuple[ImageList, ImageList], on: Evaluation,
        asked_to_stop: AskedToStop,
    ):  # fmt: skip
        self.config, self.images, self.on, self.asked_to_stop = config, images, on, asked_to_stop
        self.drawn = DrawnBatches(images[0])
        self.began = time.monotonic()

    def train_all(self, wanted: Sequence[Training]) -> bool:
        """Train and measure each that is not measured yet; returns False if the time is over before."""
        for number, training in enumerate(wanted, 1):
            if from_main(lambda one=training: self.read(one)) is not None:
                continue
            if broadcast_object(self.time_is_over()):
                if is_main():
                    print(f"hours: {self.config.hours:g} have passed, so {training.name} is not started")
                return False
            if is_main():
                print(f"--- training {number} of {len(wanted)}: {training.name}", flush=True)
            self.train(training)
        return True

    def train(self, training: Training) -> None:
        """Train, unless that is done, and measure."""
        config = training.config(self.config)
        if not from_main(lambda: is_finished(config, self.images)):
            run_training(config, asked_to_stop=self.asked_to_stop)
        net, beta = self.network(training)
        values = measure(net, self.on, self.config)
        found = diagnosis(net, beta, self.drawn, config)
        if is_main():
            results = read_results(config)
            write_measured(
                training, self.config, self.images[0], self.on, values,
                found | {"validation top-1": results["top1"]}, seconds=results["seconds"],
            )  # fmt: skip
        self.stop_if_asked(training)

    def stop_if_asked(self, training: Training) -> None:
        """Raise StoppedError in all processes, after this training, if one was asked to stop."""
        if any(all_gather_object(self.asked_to_stop(0))):
            raise StoppedError(f"stopped as asked after {training.name}: run the same command again")

    def network(self, training: Training) -> tuple[MultiGrain, float]:
        """The network of a finished training, and its β."""
        path = stage_folder(training.config(self.config)) / "checkpoint.pth"
        net, checkpoint = load_network(path)
        return place(net, pick_device()), float(checkpoint["extra"]["beta"])

    def measure_further(self) -> None:
        """Try the claims on trained networks, see `mgkit.claims.further`, on those of one arm and budget."""
        for training in from_main(lambda: further_trainings(self.finished()[2])):
            measure_further(training, self.config, self.network_if_here, self.images[0], self.on)
            self.stop_if_asked(training)

    def network_if_here(self, training: Training) -> MultiGrain | None:
        """The network of a training; None, said in a line, where only its measured values are."""
        if from_main(lambda: is_finished(training.config(self.config), self.images)):
            return self.network(training)[0]
        if is_main():
            print(
                f"{training.name}: its network is not here, so p*, whitening and scales are not tried on it"
            )
        return None

    def finished(self) -> tuple[list[Trained], dict[str, float], list[Trained]]:
        """The grid, the learning rate of each arm, and the other trainings, as far as they are measured."""
        chosen = self.trained(grid(self.config))
        rates = rates_of(self.config, chosen)
        known = all(arm in rates and arm in ARMS for arm in self.config.arms)
        return chosen, rates, self.trained(list(trainings(self.config, rates))) if known else []

    def read(self, training: Training) -> Measured | None:
        return read_measured(training, self.config, self.images[0], self.on)

    def trained(self, wanted: Sequence[Training]) -> list[Trained]:
        """Those of the trainings that are measured."""
        found = ((training, self.read(training)) for training in wanted)
        return [Trained(training, measured) for training, measured in found if measured is not None]

    def time_is_over(self) -> bool:
        hours = self.config.hours
        return bool(hours) and time.monotonic() - self.began > 3600 * hours


def further_trainings(trained: Sequence[Trained]) -> list[Training]:
    """The trainings whose networks are tried further: of the largest budget with most seeds."""
    of_arm = [one.training for one in trained if one.training.arm == FURTHER_ARM]
    budgets = [training.budget for training in of_arm]
    if not budgets:
        return []
    best = max(set(budgets), key=lambda budget: (budgets.count(budget), budget))
    return [training for training in of_arm if training.budget == best]


def rates_of(config: ClaimsConfig, trained: Sequence[Trained]) -> dict[str, float]:
    """The learning rate of each arm: that of the grid with the best validation top-1."""
    if len(config.lrs) == 1:
        return dict.fromkeys(config.arms, config.lrs[0])
    rates = {}
    for arm in config.arms:
        of_arm = [one for one in trained if one.training.arm == arm]
        if of_arm:
            best = max(of_arm, key=lambda one: one.measured.diagnosis["validation top-1"])
            rates[arm] = best.training.lr
    return rates


def outcome(config: ClaimsConfig) -> Outcome:
    """What has been measured so far. Raises as `evaluation`, ValueError for a damaged file."""
    images = training_data(config)
    on = evaluation(config, images[1])
    work = Work(config, images, on, lambda step: False)
    chosen, rates, trained = work.finished()
    tried = further_trainings(trained) if config.further else []
    further = read_further(tried, config, images[0], on)
    return Outcome(config, chosen, rates, trained, dict(on.groups), further)


def is_complete(config: ClaimsConfig) -> bool:
    """Whether nothing is left to be trained or measured with this config."""
    results = read_results(config)
    return bool(results and results["complete"])
