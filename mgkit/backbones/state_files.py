"""Files of tensors, `torch.save`'s and safetensors: read without running code from them."""

import argparse
import os
import re
import tarfile
import warnings
import zipfile
from pathlib import Path, PosixPath, PurePosixPath

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mgkit.machine.download import is_web_page
from mgkit.machine.printable import shown_name

# What torch.compile, FSDP and checkpointed activations put into the keys, of the network or a part of it.
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
DTYPES = frozenset(
    {
        torch.float16, torch.bfloat16, torch.float32, torch.float64,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    }
)  # fmt: skip
MOST_INFLATED = 100  # times the size of the file


# What trainings write beside tensors, none of which runs code: options, paths, measures.
PLAIN = [
    argparse.Namespace, PosixPath, PurePosixPath, np.dtype, np.float64(0).__reduce__()[0],
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
]  # fmt: skip


def existing_file(path: Path) -> Path:
    """Return the path; raise FileNotFoundError unless it is a file."""
    if os.path.isdir(path):  # Path's methods raise for a name that is too long
        raise FileNotFoundError(f"{shown_name(path)} is a folder: a .pth or .safetensors file is expected")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the file {shown_name(path)} does not exist")
    return path


def read_torch(path: Path) -> object:
    """Load a file of `torch.save`; raise ValueError for other files."""
    found = other_format(path)
    if found:
        raise ValueError(f"{path} is {found}, not a checkpoint written by torch.save")
    try:
        torch.serialization.add_safe_globals(PLAIN)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path} is not a checkpoint: {refusal(error)}") from None


def other_format(path: Path) -> str | None:
    """Describe a file that torch.save did not write; return None if it may have written it."""
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "empty"
    if is_web_page(head):
        return "a web page (a failed download?)"
    if head.startswith(b"PK"):
        return zip_content(path)
    if head[8:10] == b'{"':  # a header after its length
        return "a safetensors file (rename it to .safetensors)"
    if tarfile.is_tarfile(path):  # also torch's format before 0.1.10, which cannot be read safely
        return "a tar archive"
    if not head.startswith(b"\x80"):  # pickles of torch.save start with their protocol
        return "a text file" if is_text(head) else "of an unknown format"
    return None


def zip_content(path: Path) -> str | None:
    """Describe a zip file that torch.save did not write; return None if it may have written it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names, inflated = archive.namelist(), sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, EOFError):
        return "damaged or truncated (a zip file without its end)"
    if inflated > MOST_INFLATED * path.stat().st_size:
        return f"a zip file that would become {inflated:,} bytes"
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript program, which is not run (save its state_dict() where it comes from)"
    return None if any(name.endswith("/data.pkl") for name in names) else "a zip file of something else"


def is_text(head: bytes) -> bool:
    """Return whether the first bytes of a file are UTF-8 text."""
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else the last character is truncated
            return False
    return b"\0" not in head


def refusal(error: Exception) -> str:
    """Describe in one line why torch could not read a file, without its advice to disable weights_only."""
    message = str(error).strip()
    name = re.search(r"GLOBAL ([\w.]+)", message)
    if name:
        only = "only tensors and plain values are read, such as a state_dict()"
        return f"it contains code or objects ({name[1]}), which are not run; {only}"
    unsupported = re.search(r"Unsupported operand \d+", message)
    reason = unsupported[0] if unsupported else message.split("\n")[0] or type(error).__name__
    return f"damaged, truncated or not written by torch.save ({reason})"


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Load the tensors and the metadata of a `.safetensors` file; raise ValueError for other files."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is not iterable
            return state, file.metadata() or {}
    except (SafetensorError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is damaged, truncated or not a safetensors file ({reason})") from None


def wrong_tensor(key: str, value: Tensor) -> str:
    """What is wrong with a tensor of a state, as the end of a sentence; empty for a sound one."""
    if wrong := wrong_kind(value):
        return wrong
    if key.endswith("running_var") and (value < 0).any():
        return "is negative, which no variance is: the file is damaged"
    return "" if value.float().isfinite().all() else "is not finite: the training that left it diverged"


def wrong_kind(value: Tensor) -> str:
    """What is wrong with a tensor, whatever its values; see `wrong_tensor`."""
    if value.layout != torch.strided or value.is_nested or value.is_quantized:
        return "is sparse, nested or quantized: a plain tensor is wanted"
    if value.device.type != "cpu":
        return f"has no values, it is on the device {value.device}"
    if value.dtype not in DTYPES:
        return f"is of type {str(value.dtype).removeprefix('torch.')}: float32 or such is wanted"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"is declared as {tuple(value.shape)}, larger than what is stored"
    return ""
