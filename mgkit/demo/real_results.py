"""What `make real` measured, from results.json of its stages: measures with tolerances, curves, one table.

The network is frozen, so only rounding depends on the machine, in bf16 or float32: it changes the predicted
class of single images in 1,000, and p* in its second digit."""

from collections.abc import Mapping, Sequence

from mgkit.demo.reference import EXACT, Measure
from mgkit.explore.tables import VERDICT, aligned
from mgkit.retrieval.protocols import Difference, shown_difference, shown_interval, shown_value

TOLERANCES = {"p*": 0.1, "top-1": 0.015, "mAP": 0.015, "score": 0.03}  # p*, shares, shares, of 4
DIGITS = 5  # of the numbers in curves.json

Results = Mapping[str, dict]  # {notebook: its results.json}
PSTAR, WHITEN, CLASSIFY, RETRIEVE = (
    "02_finetune_p", "03_whiten", "04_evaluate_imagenet", "05_evaluate_retrieval",
)  # fmt: skip


def real_measures(results: Results) -> dict[str, Measure]:
    """The measures of a run by name, of the stages that were run."""
    found = {}
    if search := results.get(PSTAR):
        found["validation images"] = Measure(search["val_images"], EXACT)
        for s, size in enumerate(search["sizes"]):
            found[f"p* at {size} px"] = Measure(search["p_star"][s], TOLERANCES["p*"])
    for row in results.get(CLASSIFY, {}).get("rows", []):
        name = f"top-1, {row['crop']} {row['size']} px, {exponent_name(row['exponent'])}"
        found[name] = Measure(row["top1"], TOLERANCES["top-1"])
    if whitening := results.get(WHITEN):
        found["images that whitening was fitted to"] = Measure(whitening["images"], EXACT)
        if "same_class" in whitening:
            found["images whose class folding keeps, share"] = Measure(whitening["same_class"], EXACT)
    for row in results.get(RETRIEVE, {}).get("rows", []):
        if row["measure"] in TOLERANCES:
            name = f"{row['set']}, {row['descriptor']}"
            found[name] = Measure(row["value"], TOLERANCES[row["measure"]])
    return found


def exponent_name(exponent: str) -> str:
    return "p*" if exponent == "p*" else "training p"


# --- Curves


def real_curves(results: Results) -> dict:
    """The curves of the figures as numbers, with 95 % intervals where they were measured."""
    found = {}
    if search := results.get(PSTAR):
        keys = (
            "sizes", "ps", "top1", "intervals", "training_p", "top1_at_training_p", "p_star",
            "top1_at_p_star", "gains",
        )  # fmt: skip
        found["accuracy_against_p"] = {key: search[key] for key in keys}
    if CLASSIFY in results:
        found["accuracy_against_resolution"] = results[CLASSIFY]["rows"]
    if WHITEN in results:
        found["spectrum"] = results[WHITEN]["variances"]
    if RETRIEVE in results:
        found["retrieval"] = results[RETRIEVE]["rows"]
        reranked = results[RETRIEVE].get("reranked", [])
        found["reranked"] = [{k: row[k] for k in row if k != "others"} for row in reranked]
        found["figure_4"] = results[RETRIEVE].get("figure_4", {})
    return shortened_numbers(found)


def shortened_numbers(value):
    """The same with floats of DIGITS digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list):
        return [shortened_numbers(item) for item in value]
    if isinstance(value, dict):
        return {key: shortened_numbers(item) for key, item in value.items()}
    return value


# --- The table


def real_table(results: Results, description: Mapping[str, dict]) -> str:
    """All that a run measured, as aligned text."""
    parts = [data_lines(description)]
    if PSTAR in results:
        parts.append(search_lines(results[PSTAR]))
    if CLASSIFY in results:
        parts.append(classify_lines(results[CLASSIFY]["rows"]))
    if WHITEN in results:
        parts.append(whitening_lines(results[WHITEN]))
    if RETRIEVE in results:
        found = results[RETRIEVE]
        parts += [
            retrieval_lines(found["rows"]), retrieval_lines(found.get("reranked", []), "05, re-ranked"),
            figure_4_lines(found),
        ]  # fmt: skip
    notes = [
        "Intervals: 95 %, by bootstrap over images or queries; undecided: that of the difference contains 0."
    ]
    return "\n\n".join("\n".join(part) for part in [*parts, notes] if part)


def data_lines(description: Mapping[str, dict]) -> list[str]:
    """The images of each folder, with the names of the sets that are linked to it."""
    names: dict[str, list[str]] = {}
    for name, values in description.items():
        names.setdefault(values["sha256"], []).append(name)
    lines = ["EfficientNet-Lite0, trained on ImageNet with p = 1, without further training"]
    for of_folder in names.values():
        values = description[of_folder[0]]
        side = values["longest_side"]
        sides = f"longest side {side['least']} to {side['most']} px, median {side['median']} px"
        lines.append(f"  {', '.join(of_folder)}: {values['images']} images, {sides}")
    return lines


def search_lines(search: dict) -> list[str]:
    """02: p* and top-1 without and with it, one line per size."""
    rows = [("02, whole images", "p*", "best p swept", f"top-1, p = {search['training_p']:g}", "top-1, p*",
             "difference (95 %)", "")]  # fmt: skip
    for s, size in enumerate(search["sizes"]):
        before, after, gain = (
            search["top1_at_training_p"][s], search["top1_at_p_star"][s], Difference(**search["gains"][s]),
        )  # fmt: skip
        best = max(range(len(search["ps"])), key=lambda j: search["top1"][s][j])
        rows.append((
            f"{size} px", f"{search['p_star'][s]:.2f}", f"{search['ps'][best]:g}", f"{100 * before:.1f} %",
            f"{100 * after:.1f} %", shown_difference("top-1", gain), VERDICT[gain.better],
        ))  # fmt: skip
    return aligned(rows)


def classify_lines(rows: Sequence[dict]) -> list[str]:
    """04: top-1 with its interval, one line per crop and exponent, one column per size."""
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    lines = [("04, top-1 (%)", *(f"{size} px" for size in sizes))]
    for crop, exponent in dict.fromkeys((row["crop"], row["exponent"]) for row in rows):
        of_line = {row["size"]: row for row in rows if (row["crop"], row["exponent"]) == (crop, exponent)}
        cells = [
            f"{100 * row['top1']:.1f} ({shown_interval('top-1', *row['interval'])})"
            for row in of_line.values()
        ]
        lines.append((f"{crop}, {exponent_name(exponent)}", *cells))
    return aligned(lines)


def whitening_lines(whitening: dict) -> list[str]:
    """03: what the whitening was fitted to, and whether the classifier predicts the same."""
    what = (
        f"{whitening['images']} images, {whitening['crop']} {whitening['size']} px, p = {whitening['p']:.2f}"
    )
    lines = [f"03, whitening: {what}, {whitening['dimensions']} components"]
    if "same_class" in whitening:
        share = f"{100 * whitening['same_class']:.2f} % of {whitening['val_images']} images"
        lines.append(f"  folded into the classifier, it keeps the predicted class of {share}")
    return lines


def retrieval_lines(rows: Sequence[dict], title: str = "05") -> list[str]:
    """05: the measure of each set with each descriptor, and its gain over the one before."""
    if not rows:
        return []
    lines = [(title, "p", "value", "95 % interval", "difference (95 %)", "")]
    for row in rows:
        measure = row["measure"]
        if measure not in TOLERANCES:
            continue
        gained = ("", "")
        if "gain" in row:
            gain = Difference(**row["gain"])
            gained = (shown_difference(measure, gain), f"{VERDICT[gain.better]}, over {row['over']}")
        value, interval = shown_value(measure, row["value"]), shown_interval(measure, *row["interval"])
        lines.append((f"{row['set']}: {row['descriptor']}", f"{row['p']:.2f}", value, interval, *gained))
    return aligned(lines, left=(0, 5))


def figure_4_lines(retrieval: dict) -> list[str]:
    """Figure 4: each measure against resolution, one line per exponent."""
    curves = retrieval.get("figure_4")
    if not curves or not curves["sizes"]:
        return []
    lines = [("figure 4, GeM without whitening", *(f"{size} px" for size in curves["sizes"]))]
    for name, values in curves["values"].items():  # values: [S,P]
        for j, label in enumerate(curves["exponents"]):
            measure = "score" if name == "ukbench" else "mAP"
            lines.append((f"{name}: {label}", *(shown_value(measure, of_size[j]) for of_size in values)))
    return aligned(lines)
