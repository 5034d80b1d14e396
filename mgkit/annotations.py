"""Ground truth in text files, as benchmarks distribute it or a person writes it: rotations, matching pairs, groups."""

import csv
import os
import re
from pathlib import Path

import yaml

PAIR_COLUMNS = ("query_id", "reference_id")
GROUP_COLUMNS = ("image", "group")


def read_rotations(path: Path) -> dict[int, int]:
    """Holidays' upright list, `"100600.jpg": 90`, as {image number: degrees clockwise}.

    Raises ValueError, naming the file, for one that is no such mapping.
    """
    try:
        listed = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(listed, dict):
        raise ValueError(f'{path} should map file names to degrees ("100600.jpg": 90)')
    rotations = {}
    for name, degrees in listed.items():
        number = re.fullmatch(r"(\d{6})\.jpe?g", str(name), flags=re.IGNORECASE)
        if not number or type(degrees) is not int or degrees not in (90, 180, 270):
            raise ValueError(f"{path}: {name!r}: {degrees!r} is no image turned by 90, 180 or 270 degrees")
        rotations[int(number[1])] = degrees
    return rotations


def read_pairs(path: Path) -> dict[str, set[str]]:
    """DISC's matches, rows of query_id and reference_id, as {query: its references}; a query without any has an empty set.

    The header may be missing, further columns are passed over, a repeated row counts once. Raises ValueError, naming the file,
    for one without rows, and for a row without a query or, where there is no header, without a second column.
    """
    rows = read_rows(path)
    at = columns(rows[0][1], PAIR_COLUMNS)
    query, reference = at or (0, 1)
    pairs = {}
    for number, row in rows[1:] if at else rows:
        if len(row) <= max(query, reference) or not row[query]:
            raise ValueError(f"{path}, line {number}: {','.join(row)!r} should be {','.join(PAIR_COLUMNS)}")
        pairs.setdefault(row[query], set()).update({row[reference]} - {""})
    if not pairs:
        raise ValueError(f"{path} lists no pairs")
    return pairs


def read_groups(path: Path) -> dict[str, str]:
    """The images that a csv lists, `image,group`, as {absolute path: group}; sorted, the group empty where an image has none.

    Paths are relative to the csv's folder; other columns are passed over. Raises FileNotFoundError for absent files (how many
    and the first), ValueError for a missing header, no images, or an image that is listed twice; each names the csv.
    """
    rows = read_rows(path)
    at = columns(rows[0][1], GROUP_COLUMNS)
    if at is None:
        raise ValueError(
            f"{path}: the first line should name the columns {','.join(GROUP_COLUMNS)}, got {','.join(rows[0][1])!r}"
        )
    folder, groups = os.path.realpath(path.parent), {}
    for number, row in rows[1:]:
        name, group = (row[k] if k < len(row) else "" for k in at)
        if not name:
            raise ValueError(f"{path}, line {number}: no image is named")
        image = os.path.normpath(os.path.join(folder, name))
        if image in groups:
            raise ValueError(f"{path}, line {number}: {name!r} is listed twice")
        groups[image] = group
    if not groups:
        raise ValueError(f"{path} lists no images")
    missing = [image for image in groups if not os.path.isfile(image)]
    if missing:
        raise FileNotFoundError(f"{path} lists {len(missing)} missing files, the first is {missing[0]!r}")
    return dict(sorted(groups.items()))


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, cells without spaces around) of a csv's lines that are not blank; ValueError names what is no such file."""
    try:
        with open(
            path, newline="", encoding="utf-8-sig"
        ) as file:  # spreadsheets may put a byte order mark first
            reader = csv.reader(file)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no csv file in UTF-8: {error}") from None
    rows = [(number, row) for number, row in rows if any(row)]
    if not rows:
        raise ValueError(f"{path} is empty")
    return rows


def columns(header: list[str], names: tuple[str, ...]) -> list[int] | None:
    """Where the named columns stand in a header; None where it lacks one."""
    found = [cell.lower() for cell in header]
    return [found.index(name) for name in names] if set(names) <= set(found) else None
