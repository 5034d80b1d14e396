"""The claims on what the demo has measured: of 07 over arms and seeds, of 02, 03 and 05 on one network."""

from collections.abc import Sequence
from dataclasses import dataclass

from mgkit.claims.run import Outcome
from mgkit.claims.verdicts import WORDS, table, verdicts
from mgkit.config import FinetunePConfig, RetrievalConfig, TrainConfig, WhitenConfig
from mgkit.demo.reference import set_name
from mgkit.engine.run import latest_results
from mgkit.explore.tables import aligned
from mgkit.retrieval.protocols import Difference, shown_difference, shown_value

SETS = ("holidays", "ukbench", "copydays")


@dataclass(frozen=True)
class Claim:
    """A statement of the paper and its measurements on one network.

    before, after: measured without and with what is claimed to help.
    holds: None for undecided.
    difference: with its 95 % interval, where both are measured on the same queries.
    """

    text: str
    before: str
    after: str
    holds: bool | None
    difference: str = ""


def on_same_queries(text: str, before: dict, after: dict) -> Claim:
    """A claim on two rows of 05, of which `after` holds its gain over `before` with a 95 % interval."""
    values = [shown_value(row["measure"], row["value"]) for row in (before, after)]
    gain = Difference(**after["gain"])
    return Claim(text, *values, gain.better, shown_difference(after["measure"], gain))


def claims(experiment: str) -> list[Claim]:
    """The claims on one network, from results.json of the stages."""
    found = []
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


def claims_text(outcome: Outcome, found: Sequence[Claim]) -> str:
    """All claims as aligned text: those tried by 07, then those on one network."""
    return "\n".join([
        "Trainings of 07, with equal samples and the same seeds:", table(verdicts(outcome)), "",
        "One network, that of 01:", one_network_table(found), "",
        "Intervals: 95 %, over the seeds and the queries of 07, over the queries of one network. Undecided:",
        "the interval contains 0. What this small run leaves open, outputs/reference/claims tries with more",
        "samples, on photographs.",
    ])  # fmt: skip


def one_network_table(found: Sequence[Claim]) -> str:
    """The claims on one network as aligned text."""
    rows = [(c.text, c.before, c.after, c.difference, WORDS[c.holds]) for c in found]
    heading = ("", "without", "with", "difference (95 %)", "")
    return "\n".join(aligned([heading, *rows], left=(0, 4)))
