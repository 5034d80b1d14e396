"""A network exported to ONNX, run by ONNX Runtime, beside the kit's passes on the same images."""

import tempfile
from pathlib import Path

import onnxruntime
import torch
from bench_passes import CPU, NETWORKS, network
from measuring import Row, compared
from torch import Tensor

from mgkit.export import to_onnx
from mgkit.features import frozen_backbone
from mgkit.machine.device import to_device
from mgkit.model import MultiGrain

IMAGES, SIZE = 16, 224  # px


def row(net: MultiGrain, folder: Path, rounds: int) -> Row:
    """The embedding of square uint8 images, from pixels to L2-normalised vectors."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (IMAGES, 3, SIZE, SIZE), generator=random, dtype=torch.uint8)
    path = folder / "net.onnx"
    to_onnx(net, path)
    session = onnxruntime.InferenceSession(str(path))
    backbone = frozen_backbone(net, "float32")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (net.mean, net.std))

    def exported() -> None:
        session.run(["embedding"], {"images": images.numpy()})

    def ours() -> Tensor:
        with torch.no_grad():
            inputs = to_device((images / 255 - mean) / std, CPU)
            return net.head(net.pooled_maps(backbone(inputs)))["normalized_embedding"]

    stage = f"exported to ONNX, {SIZE} px: the kit, {net.name}, float32"
    return compared(stage, exported, ours, rounds=rounds, wanted=0.85, work=IMAGES)


def rows(rounds: int = 5) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        return [row(network(name), Path(folder), rounds) for name in NETWORKS]
