"""`python -m mgkit.descriptors --data data --sets holidays`: leave descriptors in files."""

import argparse
import dataclasses
import sys
import typing
from collections.abc import Sequence

import yaml

from mgkit.config import DescribeConfig, make
from mgkit.descriptors.out import describe
from mgkit.engine.launch import StoppedError, WorkerError
from mgkit.machine.printable import shown_name
from mgkit.machine.progress import print_anything


def parameters(words: Sequence[str] | None = None) -> dict:
    """The parameters that the command line gives, by name; texts and lists are left to `make`."""
    parser = argparse.ArgumentParser(
        prog="python -m mgkit.descriptors",
        description="Embed images, and leave their descriptors in outputs/<experiment>/descriptors/. "
        "The options are parameters as of notebook 05.",
    )
    for field in dataclasses.fields(DescribeConfig):
        parser.add_argument(f"--{field.name}", metavar="VALUE", help=shown_default(field))
    kinds = typing.get_type_hints(DescribeConfig)
    given = {name: text for name, text in vars(parser.parse_args(words)).items() if text is not None}
    return {name: text if kinds[name] in (str, list[str]) else value_of(text) for name, text in given.items()}


def shown_default(field: dataclasses.Field) -> str:
    default = [] if field.default is dataclasses.MISSING else field.default
    return f"default: {default!r}".replace("%", "%%")


def value_of(text: str) -> object:
    """A number or truth value; any other text as it is."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def main() -> None:
    print_anything()
    try:
        describe(make(DescribeConfig, parameters()))
    except (OSError, ValueError, StoppedError, WorkerError) as error:
        sys.exit(f"{type(error).__name__}: {shown_name(str(error))}")


if __name__ == "__main__":
    main()
