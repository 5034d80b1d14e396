"""The arms of 07, and the paper's claims as pairs of them (section 4.2, tables 2 and D.1)."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Arm:
    """A way to train. All arms see equally many samples, with the same augmentation unless they name one.

    label: of its line in figures
    settings: the parameters of 01 that it sets
    """

    label: str
    settings: Mapping[str, object]


ARMS = {
    "plain": Arm("λ=1, N=1", {"lambda_": 1.0, "repetitions": 1}),
    "repeated": Arm("λ=1, N=3", {"lambda_": 1.0, "repetitions": 3}),
    "joint": Arm("λ=0.5, N=3", {"lambda_": 0.5, "repetitions": 3}),
    "joint_p1": Arm("λ=0.5, N=3, p=1", {"lambda_": 0.5, "repetitions": 3, "p": 1.0}),
    "joint_AA": Arm("λ=0.5, N=3, AutoAugment", {"lambda_": 0.5, "repetitions": 3, "augmentation": "AA"}),
}


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: the arm `after` is better than the arm `before`.

    text: what is claimed
    paper: the paper's values of both, {measure: (before, after)}: top-1 in 0..1 at 224 px, Holidays mAP in
        0..1 and UKBench's score at 500 px, Copydays' mAP with 10,000 distractors at 500 px
    """

    text: str
    before: str
    after: str
    paper: Mapping[str, tuple[float, float]] = field(default_factory=dict)


CLAIMS = (
    Claim(
        "repeated augmentation at λ=1 (N=3 against N=1)", "plain", "repeated",
        {
            "top-1": (0.762, 0.769), "holidays": (0.900, 0.918), "ukbench": (3.87, 3.89),
            "copies": (0.789, 0.812),
        },
    ),
    Claim(
        "the margin loss at N=3 (λ=0.5 against λ=1)", "repeated", "joint",
        {
            "top-1": (0.769, 0.774), "holidays": (0.918, 0.915), "ukbench": (3.89, 3.90),
            "copies": (0.812, 0.807),
        },
    ),
    Claim(
        "both together (λ=0.5, N=3 against λ=1, N=1)", "plain", "joint",
        {
            "top-1": (0.762, 0.774), "holidays": (0.900, 0.915), "ukbench": (3.87, 3.90),
            "copies": (0.789, 0.807),
        },
    ),
    Claim("training with p=3 (against p=1)", "joint_p1", "joint", {"top-1": (0.770, 0.774)}),
    Claim(
        "AutoAugment (against the full augmentation)", "joint", "joint_AA",
        {
            "top-1": (0.774, 0.782), "holidays": (0.915, 0.903), "ukbench": (3.90, 3.89),
            "copies": (0.807, 0.778),
        },
    ),
)  # fmt: skip


def claims_of(arms: list[str]) -> list[Claim]:
    """The claims of which both arms are trained."""
    return [claim for claim in CLAIMS if claim.before in arms and claim.after in arms]
