"""What the page searches by name and draws as a map, as data for its script.

Names and places of at most 30,000 pictures: those with a thumbnail on the map, those of groups, and others
that are evenly spaced in the folder.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from markupsafe import Markup

from mgkit.photos.found import FoundPhotos
from mgkit.photos.report.map import MOST_TILES, TILE, TILES_PER_SIDE, Places, placed_once, sheets
from mgkit.photos.report.thumbnails import Thumbnails, jpeg_uri

MOST_LISTED = 30_000
MOST_NAME_BYTES = 2_000_000
CLASSES = 2  # of a picture
CELLS = 10_000  # per side of the map: places are whole numbers


@dataclass(frozen=True)
class Listing:
    """The pictures that the page's script knows.

    pictures: their indices, ascending [n].
    tiles: positions in `pictures` of those with a thumbnail on the map [t].
    places: None where there is no map.
    """

    found: FoundPhotos
    pictures: np.ndarray
    tiles: np.ndarray
    places: Places | None
    number: dict[int, int] = field(repr=False)

    @classmethod
    def of(cls, found: FoundPhotos, folder: Path) -> "Listing":
        """Choose the pictures and place them; the places are kept in a folder."""
        sampled = found.sample(MOST_TILES)
        pictures = np.array(listed(found, sampled), dtype=np.int64)
        number = {i: n for n, i in enumerate(pictures.tolist())}
        tiles = np.array([number[i] for i in sampled], dtype=np.int64)
        places = placed_once(found.descriptors[pictures], tiles, folder)
        return cls(found, pictures, tiles, places, number)

    def tile_pictures(self) -> list[int]:
        """Indices of the pictures with a thumbnail on the map."""
        return self.pictures[self.tiles].tolist() if self.places else []

    def names(self) -> dict:
        """Names and groups of the pictures; those of a group by their positions here."""
        groups = [[self.number[i] for i in g.members if i in self.number] for g in self.found.groups]
        return {"names": [self.found.name(i) for i in self.pictures.tolist()], "groups": groups}

    def map(self, thumbnails: Thumbnails) -> dict:
        """Places, classes and thumbnails of the pictures."""
        x, y = (self.places.positions * CELLS).round().astype(int).T.tolist()
        labels, percents, names = self.classes()
        tiles = sheets([thumbnails.jpeg(i) for i in self.tile_pictures()])
        return {
            "x": x, "y": y, "cells": CELLS, "tiles": self.tiles.tolist(), "near": self.places.near.tolist(),
            "labels": labels, "percents": percents, "classes": names,
            "sheets": list(map(jpeg_uri, tiles)), "side": TILE, "across": TILES_PER_SIDE,
        }  # fmt: skip

    def classes(self) -> tuple[list[list[int]], list[list[int]], list[str]]:
        """The most probable classes of each picture [n,2], their probabilities in %, and names of classes.

        A class is given by its position among the names.
        """
        if not self.found.class_names:
            return [], [], []
        best = self.found.labels[self.pictures, :CLASSES]
        percents = (100 * self.found.probabilities[self.pictures, :CLASSES]).round().astype(int)
        labels, inverse = np.unique(best, return_inverse=True)
        names = [self.found.class_names[label] for label in labels]
        return inverse.reshape(best.shape).tolist(), percents.tolist(), names


def listed(found: FoundPhotos, first: list[int]) -> list[int]:
    """At most 30,000 pictures, ascending, whose names need at most 2 MB; `first`, then groups, are kept."""
    of_groups = [i for group in found.groups for i in group.members]
    others = np.random.default_rng(0).permutation(found.sample(MOST_LISTED)).tolist()  # some may not fit
    chosen, left = {}, MOST_NAME_BYTES
    for i in dict.fromkeys([*first, *of_groups, *others]):
        left -= len(json.dumps(found.name(i), ensure_ascii=False).encode())
        if len(chosen) == MOST_LISTED or left < 0 and len(chosen) >= len(first):
            break
        chosen[i] = True
    return sorted(chosen)


def script_data(data: dict) -> Markup:
    """Data as JSON that may stand in a script element: no name in it ends the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
