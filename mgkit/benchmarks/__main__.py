"""Fetch and check published benchmarks: `python -m mgkit.benchmarks fetch holidays --root data`."""

import argparse
import sys
from collections.abc import Sequence

from mgkit.benchmarks.fetch import examine, fetch_benchmark, names_below
from mgkit.benchmarks.find import BENCHMARKS
from mgkit.machine.files import find_path
from mgkit.machine.progress import print_anything


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch or check benchmarks; the exit status is 0 if nothing is missing or unexpected, else 1."""
    print_anything()
    parser = argparse.ArgumentParser(prog="python -m mgkit.benchmarks", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, number, purpose in (
        ("fetch", "+", "download, verify and extract what is missing"),
        ("check", "*", "list what is missing or unexpected; without names, in all benchmarks below root"),
    ):
        options = commands.add_parser(command, help=purpose, description=purpose)
        options.add_argument("names", nargs=number, metavar="NAME", help=", ".join(BENCHMARKS))
        options.add_argument("--root", default="data", help="folder of the benchmarks (default: data)")
        options.add_argument("--hashes", action="store_true", help="compare files with their recorded hashes")
    given = parser.parse_args(arguments)
    root = find_path(given.root)
    names = given.names or names_below(root)
    if not names:
        print(f"{root} holds none of {', '.join(BENCHMARKS)}", file=sys.stderr)
    failed = not names
    for name in names:
        try:
            if given.command == "fetch":
                fetch_benchmark(name, root)
            report = examine(root, name, hashes=given.hashes)
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            failed = True
            continue
        print(report)
        failed = failed or bool(report.findings)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
