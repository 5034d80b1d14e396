"""Made-up results of 02 to 05, in the form of their results.json, and a description of data."""

from mgkit.demo.real_results import CLASSIFY, PSTAR, RETRIEVE, WHITEN

GAIN = {"value": 0.02, "low": 0.01, "high": 0.03}


def accuracy(crop, size, exponent, top1):
    interval = [top1 - 0.02, top1 + 0.02]
    return {
        "crop": crop, "size": size, "exponent": exponent, "p": 1.0, "top1": top1, "top5": 0.97,
        "interval": interval,
    }  # fmt: skip


RESULTS = {
    PSTAR: {
        "sizes": [224, 320], "ps": [1.0, 2.0], "p_star": [1.14, 1.744444444], "training_p": 1.0,
        "top1": [[0.764, 0.7], [0.86, 0.87]],
        "intervals": [[[0.74, 0.79], [0.67, 0.73]], [[0.84, 0.88], [0.85, 0.89]]],
        "top1_at_training_p": [0.764, 0.86], "top1_at_p_star": [0.769, 0.88],
        "gains": [{"value": 0.005, "low": -0.01, "high": 0.02}, GAIN], "val_images": 1000,
        "paths": [[[1.0, 1.0]]],
    },
    WHITEN: {
        "size": 320, "crop": "rect", "p": 1.74, "images": 1000, "dimensions": 1281,
        "variances": [0.123456789, 0.01], "same_class": 1.0, "val_images": 1000,
    },
    CLASSIFY: {
        "rows": [accuracy("square", 224, "trained", 0.861), accuracy("square", 224, "p*", 0.862)],
    },
    RETRIEVE: {
        "rows": [
            {"set": "holidays", "descriptor": "GeM, training p", "p": 1.0, "measure": "mAP", "value": 0.73,
             "interval": [0.69, 0.77]},
            {"set": "holidays", "descriptor": "GeM, p*", "p": 1.74, "measure": "mAP", "value": 0.75,
             "interval": [0.71, 0.79], "over": "GeM, training p", "gain": GAIN},
            {"set": "ukbench", "descriptor": "GeM, training p", "p": 1.0, "measure": "score", "value": 3.91,
             "interval": [3.88, 3.94]},
            {"set": "own", "descriptor": "GeM, training p", "p": 1.0, "measure": "none", "value": None},
        ],
        "figure_4": {
            "sizes": [224, 320], "exponents": {"training p = 1": 1.0},
            "values": {"top-1": [[0.764], [0.86]], "ukbench": [[3.9], [3.8]]},
        },
    },
}  # fmt: skip
SIDES = {"least": 75, "median": 448, "most": 448}
DESCRIPTION = {
    "imagenet/val": {"folder": "sample/val", "images": 1000, "longest_side": SIDES, "sha256": "a"},
    "holidays": {"folder": "holidays", "images": 525, "longest_side": SIDES, "sha256": "b"},
}
