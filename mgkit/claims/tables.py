"""What 07 has found, in words and aligned text."""

from collections.abc import Sequence

import numpy as np

from mgkit.claims.arms import ARMS, claims_of
from mgkit.claims.measures import SETS, TITLES, UNITS
from mgkit.claims.plan import GRID_SEED, grid
from mgkit.claims.run import Outcome, Trained
from mgkit.claims.verdicts import Verdict, crossing_lines, shown_samples, table
from mgkit.config import ClaimsConfig
from mgkit.engine.run import opened_folder
from mgkit.explore.tables import aligned
from mgkit.machine.files import write_text
from mgkit.retrieval.protocols import shown_value

COLLAPSED, FEWEST_DIMENSIONS = 0.1, 2.0  # of a collapsed embedding: median distance, effective rank; below
COLUMNS = {  # of the table of diagnoses: heading, digits, scale
    "beta": ("β", 2, 1), "positives that cost": ("positives cost", 0, 100),
    "negatives that cost": ("negatives cost", 0, 100), "drawn uniformly": ("drawn uniformly", 0, 100),
    "positive distance": ("copies apart", 2, 1), "negative distance": ("negatives apart", 2, 1),
    "distance": ("images apart", 2, 1), "effective rank": ("effective rank", 1, 1),
}  # fmt: skip


# --- What is tried


def claims_table(config: ClaimsConfig) -> str:
    """The claims that the arms try, with the paper's values; a line that says why, if there are none."""
    claims = claims_of(config.arms)
    if not claims:
        names = ", ".join(config.arms)
        return f"arms ({names}): no two make a claim, as plain and repeated do; there are curves only"
    rows = [("", *TITLES.values())]
    for claim in claims:
        cells = [
            " → ".join(shown_value(UNITS[name], value).split()[0] for value in claim.paper[name])
            if name in claim.paper
            else ""
            for name in TITLES
        ]
        rows.append((claim.text, *cells))
    return "\n".join(aligned(rows))


def missing_lines(outcome: Outcome) -> list[str]:
    """A line for everything without which less can be said."""
    config, lines = outcome.config, []
    wanted = len(grid(config)) + len(config.arms) * len(config.budgets) * len(config.seeds)
    there = len(outcome.grid) + len(outcome.trained)
    if there < wanted:
        lines.append(f"{there} of {wanted} trainings are measured: the same command goes on")
    absent = [TITLES[name] for name in SETS if name in TITLES and name not in outcome.groups]
    if absent:
        where = config.benchmarks or config.data
        lines.append(f"{', '.join(absent)}: not in {where} (parameter benchmarks), so not measured")
    if len(config.seeds) < 2:
        lines.append(
            "seeds: with one, every verdict is undecided, as it does not tell what another would give"
        )
    if len(config.budgets) < 2:
        lines.append("budgets: with one, there are points instead of curves, and no crossings")
    return lines


# --- Learning rates


def rate_lines(outcome: Outcome) -> list[str]:
    """The learning rate that each arm takes, and whether the grid should be wider."""
    config = outcome.config
    if len(config.lrs) == 1:
        return [f"every arm has the learning rate {config.lrs[0]:g}: several lrs would give each its own"]
    lines = []
    for arm in config.arms:
        of_arm = {one.training.lr: one.measured for one in outcome.grid if one.training.arm == arm}
        if not of_arm:
            lines.append(f"{ARMS[arm].label}: no learning rate has been tried yet")
            continue
        rate = outcome.rates[arm]
        top1 = 100 * of_arm[rate].diagnosis["validation top-1"]
        line = f"{ARMS[arm].label}: {rate:g} of {', '.join(f'{lr:g}' for lr in sorted(of_arm))}"
        line += f" (validation top-1 {top1:.1f} % after {shown_samples(of_arm[rate].samples)} samples,"
        line += f" seed {GRID_SEED})"
        if rate in (min(config.lrs), max(config.lrs)):
            line += "; it is at an end of the grid, and one beyond may be better"
        lines.append(line)
    return lines


# --- Curves


def curve_lines(outcome: Outcome) -> list[str]:
    """The best arm of each measure at the smallest and at the largest budget that all arms have reached."""
    arms = len(outcome.config.arms)
    budgets = [
        budget for budget in sorted(outcome.config.budgets) if len(arms_at(outcome.trained, budget)) == arms
    ]
    lines = []
    for measure in outcome.groups if budgets else ():
        words = []
        for budget in dict.fromkeys((budgets[0], budgets[-1])):
            means = {
                arm: np.mean([np.nanmean(one.measured.arrays()[measure]) for one in of_arm])
                for arm, of_arm in arms_at(outcome.trained, budget).items()
            }
            best = max(means, key=means.get)
            samples = next(one.measured.samples for one in outcome.trained if one.training.budget == budget)
            value = shown_value(UNITS[measure], means[best])
            words.append(f"{ARMS[best].label} at {shown_samples(samples)} samples ({value})")
        lines.append(f"{TITLES[measure]}: best is {', then '.join(words)}")
    return lines


def arms_at(trained: Sequence[Trained], budget: int) -> dict[str, list[Trained]]:
    """{arm: its trainings of a budget}."""
    found: dict[str, list[Trained]] = {}
    for one in trained:
        if one.training.budget == budget:
            found.setdefault(one.training.arm, []).append(one)
    return found


# --- Diagnoses


def diagnosis_table(outcome: Outcome) -> str:
    """What the embeddings look like by arm and budget, means over the seeds."""
    rows = [("", "samples", "seeds", *(heading for heading, _, _ in COLUMNS.values()))]
    for arm in outcome.config.arms:
        for budget in sorted(outcome.config.budgets):
            of_arm = arms_at(outcome.trained, budget).get(arm)
            if of_arm:
                found = mean_diagnosis(of_arm)
                cells = [
                    f"{scale * found[name]:.{digits}f}{' %' if scale == 100 else ''}" if name in found else ""
                    for name, (_, digits, scale) in COLUMNS.items()
                ]
                samples = shown_samples(of_arm[0].measured.samples)
                rows.append((ARMS[arm].label, samples, str(len(of_arm)), *cells))
    return "\n".join(aligned(rows))


def mean_diagnosis(trained: Sequence[Trained]) -> dict[str, float]:
    """The mean of each value of `mgkit.claims.diagnosis` over trainings of one arm and budget."""
    every = [one.measured.diagnosis for one in trained]
    return {name: float(np.mean([one[name] for one in every])) for name in every[0]}


def diagnosis_lines(outcome: Outcome) -> list[str]:
    """The last row of each arm in `diagnosis_table`, read."""
    lines = []
    for arm in outcome.config.arms:
        budgets = [one.training.budget for one in outcome.trained if one.training.arm == arm]
        if not budgets:
            continue
        of_arm = arms_at(outcome.trained, max(budgets))[arm]
        found, samples = mean_diagnosis(of_arm), shown_samples(of_arm[0].measured.samples)
        lines.append(f"{ARMS[arm].label}, {samples} samples: {embedding_words(found)}")
        if "beta" in found:
            lines.append(f"   {margin_words(found)}")
    return lines


def embedding_words(found: dict[str, float]) -> str:
    """Whether the embedding collapses to a point or a line."""
    apart, rank = found["distance"], found["effective rank"]
    collapsed = apart < COLLAPSED or rank < FEWEST_DIMENSIONS
    word = "it collapses" if collapsed else "no collapse"
    return f"two images are {apart:.2f} apart, in {rank:.1f} effective dimensions: {word}"


def margin_words(found: dict[str, float]) -> str:
    """Whether β is where it separates pairs, and how many pairs still cost."""
    beta, near, far = (found[name] for name in ("beta", "positive distance", "negative distance"))
    place = "lies between" if near < beta < far else "does not lie between"
    costs = [100 * found[f"{kind} that cost"] for kind in ("positives", "negatives")]
    return (
        f"β = {beta:.2f} {place} the median distances of copies ({near:.2f}) and of sampled negatives "
        f"({far:.2f}); {costs[0]:.0f} % of the positives and {costs[1]:.0f} % of the negatives still cost"
    )


# --- Cost, and what is left


def cost_line(outcome: Outcome) -> str:
    """The time that the measured trainings took."""
    every = [*outcome.grid, *outcome.trained]
    hours = sum(one.measured.seconds for one in every) / 3600
    samples = sum(one.measured.samples for one in every)
    time = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    return f"trainings measured: {len(every)}, of {shown_samples(samples)} samples in {time}"


def undecided_lines(found: Sequence[Verdict]) -> list[str]:
    """How many verdicts there are of each kind, and how many seeds would decide those at the most samples."""
    if not found:
        return ["no claim was tried"]
    counts = [sum(one.holds is kind for one in found) for kind in (True, False, None)]
    lines = ["of {} verdicts, {} hold, {} do not, {} are undecided".format(len(found), *counts)]
    most = max(one.samples for one in found)
    left = [one for one in found if one.samples == most and one.holds is None]
    needed = [seeds for one in left if (seeds := one.paired.seeds_needed()) is not None]
    if left and max(one.seeds for one in left) < 2:
        lines.append("a second seed would tell how many are needed")
    elif left:
        line = f"at {shown_samples(most)} samples, {len(left)} are undecided"
        if needed:
            seeds = max(*needed, max(one.seeds for one in left) + 1)
            line += f"; of these, {seeds} seeds would decide {len(needed)}, if the differences stay as large"
        if len(needed) < len(left):
            line += f"; {len(left) - len(needed)} are too small for any number of seeds on these images"
        lines.append(line)
    return lines


def report(outcome: Outcome, found: Sequence[Verdict], further: Sequence[Verdict]) -> str:
    """All of it as one text: claims.txt."""
    parts = [table(found)] if found else []
    parts += ["\n".join(crossing_lines(found))]
    parts += [table(further)] if further else []
    parts += ["\n".join(rate_lines(outcome)), diagnosis_table(outcome), "\n".join(diagnosis_lines(outcome))]
    parts += ["\n".join([*undecided_lines(found), cost_line(outcome), *missing_lines(outcome)])]
    return "\n\n".join(part for part in parts if part) + "\n"


def save_text(text: str, config: ClaimsConfig, name: str) -> None:
    """Write a text into the folder of the config's run; of several machines, the first one does."""
    if not config.node_rank:
        with opened_folder(config) as folder:
            write_text(folder / name, text)
