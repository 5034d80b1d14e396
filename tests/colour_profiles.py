"""ICC profiles written by hand, and what colours become by them, by the plain formulas."""

import struct

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
# XYZ of red, green and blue, adapted to D50, as the profiles of the two spaces have them
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))


def xyz(values) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * value) for value in values))


def gamma(exponent) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * exponent)) + bytes(2)


def profile(device: bytes, space: bytes, connection: bytes, tags: dict) -> bytes:
    """A profile of version 2 with these tags."""
    table, content = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(content), len(data))
        content += data + bytes(-len(data) % 4)
    head = struct.pack(">4s4s4s", device, space, connection) + bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">3i", *(round(65536 * value) for value in D50))
    body = bytes(4) + b"\x02\x40\0\0" + head
    body = body.ljust(124, b"\0") + table + content
    return struct.pack(">I", 4 + len(body)) + body


def rgb_profile(primaries, exponent=2.2) -> bytes:
    curves = {name: gamma(exponent) for name in (b"rTRC", b"gTRC", b"bTRC")}
    colours = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(xyz, primaries), strict=True))
    return profile(b"mntr", b"RGB ", b"XYZ ", {b"wtpt": xyz(D50), **colours, **curves})


def grey_profile(exponent) -> bytes:
    return profile(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": xyz(D50), b"kTRC": gamma(exponent)})


def cmyk_profile() -> bytes:
    """A profile by which every ink alone is grey: the lightness is that of what the inks leave white."""
    same = bytes(range(256))
    corners = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), axis=-1).reshape(16, 4)  # K is the fastest
    lightness = (255 * (1 - corners.max(1) * (0.5 + corners.mean(1) / 2))).round().astype(np.uint8)  # [16]
    table = np.stack([lightness, np.full(16, 128), np.full(16, 128)], axis=1).astype(np.uint8).tobytes()
    matrix = struct.pack(">9i", *(65536 * value for value in (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + 4 * same + table + 3 * same
    return profile(b"prtr", b"CMYK", b"Lab ", {b"wtpt": xyz(D50), b"A2B0": lut})


def in_srgb(colours, primaries, exponent=2.2):
    """RGB values [...,3] in 0..255 of a profile's colours as sRGB."""
    linear = (np.asarray(colours, float) / 255) ** exponent @ np.array(primaries) @ np.linalg.inv(SRGB)
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
