"""Every stage beside its floor: one table, outputs/bench/bench.json and bench.png.

    python tests/bench/run.py                      # all, in about an hour on two cores
    python tests/bench/run.py --only losses start  # some, nothing is written
    python tests/bench/run.py --full               # the index on as many files as ImageNet has

Run by `make bench`. A floor is the stage's network or arithmetic alone, as a plain loop in this folder; both
run in turn in this process on made-up images or photos in memory, and a ratio is the median of the ratios of
all rounds; `of rounds` are the least and the largest of these. `of CPU time` is the same ratio of processor
time, more reliable on a busy machine. Memory growth is measured in a process of its own.
"""

import argparse
import os
from collections.abc import Sequence
from functools import partial
from time import perf_counter

import bench_contention  # first: it imports the kit before torch, so that all threads wait as the kit's do
import bench_export
import bench_growth
import bench_loader
import bench_losses
import bench_passes
import bench_photos
import bench_rerank
import bench_search
import bench_start
import bench_step
import bench_whitening
import bench_widgets
import matplotlib.pyplot as plt
import torch
from measuring import OUTPUT, Row, table, write_json

from mgkit.machine.device import describe
from mgkit.machine.files import atomic_write

SUBJECTS = {
    "step": bench_step.rows,
    "losses": bench_losses.rows,
    "passes": bench_passes.rows,
    "photos": bench_photos.rows,
    "export": bench_export.rows,
    "whitening": bench_whitening.rows,
    "loader": bench_loader.rows,
    "start": bench_start.rows,
    "growth": bench_growth.rows,
    "contention": bench_contention.rows,
    "search": bench_search.rows,
    "rerank": bench_rerank.rows,
    "widgets": bench_widgets.rows,
}
MET, MISSED = "#0072B2", "#D55E00"  # told apart by every kind of colour vision
LONGEST = 4.0  # of a bar: what is better yet, is cut


def figure(rows: Sequence[Row]) -> plt.Figure:
    """A bar a row: how good it is relative to what is wanted, 1 and more being met."""
    drawn, axes = plt.subplots(figsize=(11, 1.2 + 0.3 * len(rows)), layout="constrained")
    labels = [row.stage for row in rows]
    lengths = [min(max(row.margin, 0.0), LONGEST) for row in rows]
    bars = axes.barh(labels, lengths, color=[MET if row.met else MISSED for row in rows])
    values = [f"{row.cells()[3]} (wanted {row.cells()[6]})" for row in rows]
    axes.axvline(1, color="black", linewidth=1)
    legible = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # also where the line passes
    axes.bar_label(bars, values, padding=5, fontsize=8, bbox=legible)
    axes.set_xlim(0, LONGEST * 1.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(
        f"relative to what is wanted (1 = just met, blue = met, orange = missed; cut at {LONGEST:g})"
    )
    axes.set_ylabel("stage")
    axes.tick_params(axis="y", labelsize=8)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument(
        "--full", action="store_true", help="the index on 1,281,167 files: minutes to make them"
    )
    options = parser.parse_args()
    subjects = SUBJECTS | {"start": partial(bench_start.rows, full=options.full)}
    machine = describe(torch.device("cpu"))
    began, rows, load = perf_counter(), [], [os.getloadavg()]
    for name in options.only:
        print(f"{name} ...", flush=True)
        found = subjects[name]()
        print(table(found), flush=True)
        rows += found
        load.append(os.getloadavg())
    minutes = (perf_counter() - began) / 60
    print(f"\n{table(rows)}")
    loads = f"load {load[0][0]:.1f} to {load[-1][0]:.1f}"
    met = sum(row.met for row in rows)
    print(f"\n{met} of {len(rows)} as wanted; {machine}; {minutes:.1f} minutes; {loads}")
    if len(options.only) < len(SUBJECTS):
        return
    plain = [row.plain() for row in rows]
    write_json("bench.json", {"machine": machine, "load": load, "minutes": minutes, "rows": plain})
    drawn = figure(rows)
    with atomic_write(OUTPUT / "bench.png") as path:
        drawn.savefig(path, dpi=120, format="png")


if __name__ == "__main__":
    main()
