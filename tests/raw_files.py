"""DNG files written by hand: a plain mosaic of a camera, with an embedded preview or without."""

import struct

import numpy as np

BYTE, TEXT, SHORT, LONG, RATIO, SIGNED_RATIO = 1, 2, 3, 4, 5, 10
PACKED = {BYTE: "B", SHORT: "H", LONG: "I", RATIO: "2I", SIGNED_RATIO: "2i"}
MOSAIC = (64, 48)  # width, height


def directory(tags: dict, start: int) -> bytes:
    """A TIFF's directory {tag: (kind, values)} for byte `start`, with what its entries point to."""
    after = start + 2 + 12 * len(tags) + 4
    entries, far = struct.pack("<H", len(tags)), b""
    for tag, (kind, values) in sorted(tags.items()):
        if kind == TEXT:
            content, count = values + b"\0", len(values) + 1
        else:
            rows = [value if isinstance(value, tuple) else (value,) for value in values]
            content, count = b"".join(struct.pack("<" + PACKED[kind], *row) for row in rows), len(rows)
        entries += struct.pack("<HHI", tag, kind, count)
        if len(content) <= 4:
            entries += content.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", after + len(far))
            far += content + bytes(len(content) % 2)
    return entries + bytes(4) + far


def dng(preview: bytes | None = None, size=(0, 0), *, orientation: int = 1) -> bytes:
    """A DNG file.

    preview: of that (width, height): a JPEG file, or the RGB values; None leaves it out.
    """
    width, height = MOSAIC
    mosaic = np.full((height, width), 1000, "<u2").tobytes()
    pixels = mosaic + (preview or b"")
    pixels += bytes(len(pixels) % 2)
    raw = {
        254: (LONG, [0]), 256: (LONG, [width]), 257: (LONG, [height]), 258: (SHORT, [16]), 259: (SHORT, [1]),
        262: (SHORT, [32803]), 273: (LONG, [8]), 277: (SHORT, [1]), 278: (LONG, [height]),
        279: (LONG, [len(mosaic)]), 284: (SHORT, [1]), 33421: (SHORT, [2, 2]), 33422: (BYTE, [0, 1, 1, 2]),
        50714: (SHORT, [0]), 50717: (SHORT, [4095]),
    }  # fmt: skip
    camera = {
        271: (TEXT, b"Kit"), 272: (TEXT, b"Test"), 274: (SHORT, [orientation]), 50706: (BYTE, [1, 4, 0, 0]),
        50708: (TEXT, b"Kit Test"), 50721: (SIGNED_RATIO, [(v, 1) for v in (1, 0, 0, 0, 1, 0, 0, 0, 1)]),
        50728: (RATIO, [(1, 1)] * 3),
    }  # fmt: skip
    start = 8 + len(pixels)
    if preview is None:
        return b"II*\0" + struct.pack("<I", start) + pixels + directory(raw | camera, start)
    jpeg = preview[:2] == b"\xff\xd8"
    shown = {
        254: (LONG, [1]), 256: (LONG, [size[0]]), 257: (LONG, [size[1]]), 258: (SHORT, [8, 8, 8]),
        259: (SHORT, [7 if jpeg else 1]), 262: (SHORT, [6 if jpeg else 2]), 273: (LONG, [8 + len(mosaic)]),
        277: (SHORT, [3]), 278: (LONG, [size[1]]), 279: (LONG, [len(preview)]), 284: (SHORT, [1]),
        330: (LONG, [start]),
    }  # fmt: skip
    mosaics = directory(raw, start)
    first = start + len(mosaics)
    return b"II*\0" + struct.pack("<I", first) + pixels + mosaics + directory(shown | camera, first)
