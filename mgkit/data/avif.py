"""Mend AVIF files of an early encoder, which browsers show and libavif, Pillow's reader, refuses."""

import struct
from collections.abc import Iterator


def with_one_association(content: bytes) -> bytes | None:
    """An AVIF file with its boxes `ipma` joined to one; None for one that has no two of them, or is damaged.

    The boxes say which properties, as size and depth, an image has. cavif wrote one for the image and one for
    its alpha until 2022; ISO 23008-12, 9.3.1 wants one in all, and libavif insists on it.
    """
    found = {kind: (start, end) for kind, start, end in boxes(content, 0, len(content))}
    meta, meta_end = found.get(b"meta", (0, 0))
    inner = {kind: (start, end) for kind, start, end in boxes(content, meta + 12, meta_end)}
    iprp, iprp_end = inner.get(b"iprp", (0, 0))
    parts = [(kind, content[start:end]) for kind, start, end in boxes(content, iprp + 8, iprp_end)]
    associations = [part for kind, part in parts if kind == b"ipma" and len(part) >= 16]
    if len(associations) < 2 or len({part[8:12] for part in associations}) > 1:  # version and flags
        return None
    count = sum(struct.unpack_from(">I", part, 12)[0] for part in associations)
    entries = b"".join(part[16:] for part in associations)
    others = b"".join(part for kind, part in parts if kind != b"ipma")
    head = associations[0][8:12] + struct.pack(">I", count & 0xFFFFFFFF)
    properties = box(b"iprp", others + box(b"ipma", head + entries))
    mended = box(b"meta", content[meta + 8 : iprp] + properties + content[iprp_end:meta_end])
    freed = meta_end - meta - len(mended)  # filled, as the file says where its pixels start
    return content[:meta] + mended + box(b"free", bytes(max(freed - 8, 0))) + content[meta_end:]


def boxes(content: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start, end) of the boxes that fill a part of a file, as far as they make sense."""
    while start + 8 <= end:
        length, kind = struct.unpack_from(">I4s", content, start)
        if not 8 <= length <= end - start:
            return
        yield kind, start, start + length
        start += length


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content
