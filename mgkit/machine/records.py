"""Values read back from files: JSON and YAML in one piece or refused, and checked by name."""

import json
import re
import reprlib
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from mgkit.machine.files import read_text

Kind = TypeVar("Kind")

TYPES = ("int", "str", "float")
MOST_BYTES = 2**20  # of a YAML file; ours have a few thousand

SHORT = reprlib.Repr()
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother, SHORT.maxlong = 2, 80, 80, 40


def shown(value: object) -> str:
    """A value for a message: one line, cut where it is long or deeply nested."""
    try:
        return SHORT.repr(value)
    except ValueError:  # an integer of thousands of digits, which Python does not print
        return "a number of thousands of digits"


def read_json(path: Path) -> object:
    """The content of a JSON file. Raises ValueError, naming the file, for a damaged one."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, it is not a JSON file ({reason(error)})") from None


def read_yaml(path: Path) -> object:
    """The plain values of a YAML file. Raises ValueError, naming the file, for a damaged or large one."""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} is too large for a file of parameters ({MOST_BYTES:,} bytes at most)")
    try:
        return yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, it is not a YAML file ({reason(error)})") from None


def reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def check_values(source: object, kind: type[Kind], values: object) -> Kind:
    """Values that have the fields of `kind`.

    source: the file that they were read from
    kind: a dataclass or model of pydantic, with the types and ranges of the fields

    Raises ValueError, one line that names the source and the field.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise ValueError(f"{source}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's findings, as `field: what is wanted, got value`."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    # The field, and the place in it; not the names of the types that a union tried, such as list[str].
    parts = map(str, first["loc"])
    field = ".".join(part for part in parts if re.fullmatch(r"\w+", part) and part not in TYPES)
    if first["type"] == "missing":
        return f"{field} is missing"
    return f"{field}: {message}, got {shown(first['input'])}" if field else message
