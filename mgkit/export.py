"""The network as a file that runs without the kit: ONNX, or an exported program of torch."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mgkit.exportable import exportable, takes_one_size
from mgkit.machine.files import atomic_write
from mgkit.machine.frozen import frozen
from mgkit.machine.printable import say_once, shortened
from mgkit.model import MultiGrain

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TYPES = {torch.uint8: "0 to 255", torch.float32: "0 to 1"}
EXAMPLE = (2, 3, 96, 165)  # that is traced
CHECKED = ((1, 3, 128, 128), (1, 3, 101, 195), (3, 3, 167, 98))  # sizes at which the file must be right
FIXED = 224  # px, a side, for a backbone that does not tell its own and cannot be exported for all
TOLERANCE = 1e-4
MOST_BYTES = 2**31 - 2**20  # of an ONNX file: a protocol buffer ends at 2 GiB


class Exported(nn.Module):
    """A copy of a network in eval mode, from images as they are to its outputs.

    dtype: of the images [B,3,H,W]: uint8 with 0 to 255, or float32 with 0 to 1

    Batch norms are folded into convolutions. The outputs are `embedding` (L2-normalised, [B,D]) and `scores`
    of the classes ([B,K]), which is left out for a network that does not classify.
    """

    def __init__(self, net: MultiGrain, dtype: torch.dtype):
        super().__init__()
        net = deepcopy(net).cpu().float().eval()
        net.features = exportable(frozen(net.features, torch.device("cpu"), "float32"))
        if net.neck is not None:
            net.neck = net.features.neck
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.data = tensor.data.contiguous()
        self.net, self.p, self.dtype = net.requires_grad_(False), net.pool.p.item(), dtype
        scale = 255 if dtype == torch.uint8 else 1
        self.register_buffer("mean", torch.tensor(net.mean)[:, None, None] * scale)  # [3,1,1]
        self.register_buffer("std", torch.tensor(net.std)[:, None, None] * scale)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        normalised = (images.float() - self.mean) / self.std
        outputs = self.net.head(self.net.pooled_maps(self.net.features(normalised), self.p))
        found = {"embedding": outputs["normalized_embedding"]}
        return found | {"scores": outputs["classifier_output"]} if self.net.classifies else found

    def example(self, shape: tuple[int, ...]) -> Tensor:
        """Random images of a shape."""
        levels = torch.randint(256, shape, generator=torch.Generator().manual_seed(0))
        return levels.to(self.dtype) if self.dtype == torch.uint8 else levels / 255


@dataclass(frozen=True)
class Traced:
    """A program, the network it was made from, and the height and width that it takes; None: any."""

    program: ExportedProgram
    network: Exported
    size: tuple[int, int] | None


def to_onnx(net: MultiGrain, path: str | Path, *, dtype: torch.dtype = torch.uint8) -> None:
    """Write the network as an ONNX file, atomically; its results in onnxruntime are checked before.

    net: network, whitened or not; it is not changed
    path: file, ending in .onnx, in a folder that exists
    dtype: of the input `images` [B,3,H,W], RGB: uint8 with 0 to 255, or float32 with 0 to 1

    Normalisation, GeM at the network's p, whitening and L2 normalisation are inside. Outputs are `embedding`
    [B,D] and `scores` [B,K]; a network that does not classify has no scores. The metadata tell backbone, p,
    classes and size in JSON. Raises ValueError for another suffix or dtype and for a network that cannot be
    exported, FileNotFoundError without the folder, ImportError without the packages of the extra.
    """
    path = checked(path, ".onnx", dtype)
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ImportError(f'to_onnx needs {", ".join(missing)}: pip install "mgkit[export]"')
    if sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values()) > MOST_BYTES:
        raise ValueError(f"{net.name} is larger than an ONNX file may be, 2 GiB: use to_exported_program")
    traced = trace(net, dtype)
    names = [*traced.network(traced.network.example(shapes(traced)[0]))]
    with refusing(net, "ONNX"), quiet():
        converted = torch.onnx.export(
            traced.program, (), input_names=["images"], output_names=names, dynamo=True, verbose=False
        )
        converted.model.metadata_props.update(
            {key: json.dumps(value) for key, value in facts(traced, net).items()}
        )
    with atomic_write(path) as temporary:
        converted.save(str(temporary), external_data=False)
        run = onnx_runner(temporary)
        check(traced, lambda images: run(images.numpy()), "onnxruntime")


def to_exported_program(net: MultiGrain, path: str | Path, *, dtype: torch.dtype = torch.uint8) -> None:
    """Write the network as an exported program, which `torch.export.load(path).module()` runs; atomically.

    net, dtype, outputs, errors: as for `to_onnx`; the packages of the extra are not needed
    path: file, ending in .pt2, in a folder that exists

    The facts are JSON in the file's extra file `mgkit.json`.
    """
    path = checked(path, ".pt2", dtype)
    traced = trace(net, dtype)
    with atomic_write(path) as temporary:
        content = io.BytesIO()
        with quiet():
            torch.export.save(
                traced.program, content, extra_files={"mgkit.json": json.dumps(facts(traced, net))}
            )
        temporary.write_bytes(content.getbuffer())


def checked(path: str | Path, suffix: str, dtype: torch.dtype) -> Path:
    """The path; raises ValueError for another suffix or dtype, FileNotFoundError without its folder."""
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f"{path} must end in {suffix}")
    if dtype not in TYPES:
        raise ValueError(f"dtype must be torch.uint8 or torch.float32, got {dtype}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} does not exist: make the folder of {path.name} first")
    return path


# --- Tracing


def trace(net: MultiGrain, dtype: torch.dtype) -> Traced:
    """Trace the network for images of any size; where that fails, for one size, and a line says so."""
    network = Exported(net, dtype)
    own = getattr(net.features, "own_size", (FIXED, FIXED))
    why = "it takes no other size"
    if not takes_one_size(net.features):
        try:
            return traced_for(network, None)
        except Exception as error:  # torch.export raises errors of any type
            why = first_line(error)
    with refusing(net, "torch.export"):
        traced = traced_for(network, tuple(own))
    say_once(f"{net.name} is exported for images of {own[0]} x {own[1]} px only: {why}")
    return traced


@torch.no_grad()
def traced_for(network: Exported, size: tuple[int, int] | None) -> Traced:
    """Trace a network for one height and width, or any; raises ValueError if the program computes another."""
    example = network.example(EXAMPLE if size is None else (2, 3, *size))
    free = Dim.DYNAMIC
    axes = {0: free} if size else {0: free, 2: free, 3: free}
    with quiet(), torch.fx.experimental._config.patch(backed_size_oblivious=True):
        # Else sizes of 1, and comparisons of sizes, would be taken from the example.
        program = torch.export.export(
            network,
            (example,),
            dynamic_shapes={"images": axes},
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        module = program.module()
    traced = Traced(program, network, size)
    check(traced, module, "torch.export")
    return traced


def shapes(traced: Traced) -> list[tuple[int, ...]]:
    """Shapes of batches at which a file is checked."""
    return [(shape[0], 3, *(traced.size or shape[2:])) for shape in CHECKED[: 1 if traced.size else None]]


@torch.no_grad()
def check(traced: Traced, run, by: str) -> None:
    """Raise ValueError unless `run` gives the network's outputs, up to rounding."""
    for shape in shapes(traced):
        images = traced.network.example(shape)
        expected, found = traced.network(images), run(images)
        for name, value in expected.items():
            difference = (torch.as_tensor(found[name]) - value).abs().max()
            if not difference <= TOLERANCE * max(1, value.abs().max()):
                height, width = shape[2:]
                raise ValueError(
                    f"{traced.network.net.name} cannot be exported: at {height} x {width} px, {name} by {by} "
                    f"differs by {difference:.1e}"
                )


def onnx_runner(path: Path):
    """A function images [B,3,H,W] -> outputs by name, by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(None, {"images": images}), strict=True))


def facts(traced: Traced, net: MultiGrain) -> dict:
    """What a file tells of its network."""
    return {
        "backbone": net.name,
        "p": net.pool.p.item(),
        "whitened": net.whitening is not None,
        "classes": net.classes if net.classifies else (),
        "images": f"RGB, {str(traced.network.dtype).removeprefix('torch.')}, {TYPES[traced.network.dtype]}",
        "size": traced.size or "any",
    }


# --- What torch says


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what torch prints, warns and logs while it exports from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def refusing(net: MultiGrain, by: str) -> Iterator[None]:
    """Turn any error of the block into a ValueError of one line."""
    try:
        yield
    except Exception as error:  # torch.export and torch.onnx raise errors of any type
        raise ValueError(f"{net.name} cannot be exported by {by}: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """The first line of an error's message, shortened; the name of its type if it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shortened(lines[0], 200)
