"""Weights of one's own: the tensors of a file, matched by name with those of a backbone."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mgkit.backbones.state_files import (
    WRAPPERS,
    existing_file,
    read_safetensors,
    read_torch,
    wrong_kind,
    wrong_tensor,
)
from mgkit.backbones.timm_names import classifier_names, converted_names, head_parts, is_clip_projection
from mgkit.machine.printable import say_once, shortened

MOST_NESTED = 4  # dicts in each other
AVERAGED = {"teacher", "ema", "swa"}  # words in the names of the weights that a training means for use
MODEL = "model_state."  # of the checkpoints of this kit
COUNTER = "num_batches_tracked"  # of batch norm; added to torch after 2018, and not used
REGISTERS = ("register_tokens", "reg_token", "storage_tokens")  # of DINOv2 and DINOv3, which a variant lacks
POSITIONS = ("pos_embed", "rel_pos", "relative_position")  # tables that timm interpolates to another size


@dataclass(frozen=True)
class OwnWeights:
    """The named tensors of a file; those of dicts in dicts are named with dots, as `teacher.conv1.weight`."""

    path: Path
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Match:
    """The tensors of a file that stand below a prefix, under a network's names.

    prefix: what stands before the names in the file
    tensors: all that stand below it
    converted: whether timm changed names, or interpolated positions
    projects: whether the classifier is a projection, such as CLIP's, which knows no classes
    """

    prefix: str
    tensors: dict[str, Tensor]
    converted: bool = False
    projects: bool = False

    @property
    def place(self) -> str:
        """Where in the file the tensors stand, for messages."""
        return f" below {shortened(self.prefix, 80)!r}" if self.prefix else ""

    def found(self, wanted: Mapping[str, Tensor]) -> int:
        """How many of the wanted tensors are there, in their shape."""
        return sum(
            key in self.tensors and self.tensors[key].shape == wanted[key].shape
            for key in wanted
            if not key.endswith(COUNTER)
        )


def read_weights(path: str | Path) -> OwnWeights:
    """Read the tensors of a `torch.save` or `.safetensors` file, without running code from it.

    Raises FileNotFoundError, or ValueError that names the file: for one of another format, with code, without
    tensors, or a checkpoint of this kit.
    """
    path = existing_file(Path(path))
    content = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_torch(path)
    tensors = named_tensors(content, "", MOST_NESTED, set())
    if not tensors:
        raise ValueError(f"{path} holds no named tensors: a state_dict() is wanted")
    if any({f"{prefix}pool.p", f"{prefix}classifier.weight"} <= tensors.keys() for prefix in ("", MODEL)):
        raise ValueError(
            f"{path} is a checkpoint of this kit: give it as checkpoint (in 01 as init_from), not as weights"
        )
    return OwnWeights(path, tensors)


def named_tensors(content: object, prefix: str, depth: int, seen: set[int]) -> dict[str, Tensor]:
    """The tensors of dicts in dicts, without the parts of their names that wrapping a network adds."""
    found: dict[str, Tensor] = {}
    if not isinstance(content, Mapping) or not depth or id(content) in seen:
        return found
    seen.add(id(content))
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            found[prefix + WRAPPERS.sub("", key)] = value
        elif isinstance(key, str):
            found |= named_tensors(value, f"{prefix}{key}.", depth - 1, seen)
    return found


# --- Loading


def load_plain(
    net: nn.Module, own: OwnWeights, name: str, *, classifier: str, width: int
) -> tuple[Tensor, Tensor] | None:
    """Load a network without its classifier; return the classifier that stands beside it in the file.

    name: of the network, for messages
    classifier: the file's name of the linear layer that is the classifier
    width: number of its inputs

    Raises ValueError, naming the file, unless it holds all of the network.
    """
    wanted = net.state_dict()
    match = best_match(own, wanted)
    check_complete(own, match, wanted, name)
    check_variant(own, match, net, name)
    linear = [f"{classifier}.{kind}" for kind in ("weight", "bias")]
    weight, bias = (match.tensors.get(key) for key in linear)
    fits = weight is not None and bias is not None and bias.ndim == 1 and weight.shape == (len(bias), width)
    used = [key for key in (*wanted, *(linear if fits else ())) if key in match.tensors]
    check_tensors(own, match, used)
    net.load_state_dict({key: match.tensors[key] for key in used if key in wanted}, strict=False)
    say(own, match, used, name, classes=len(bias) if fits else 0)
    return (weight.float().clone(), bias.float().clone()) if fits else None


@dataclass(frozen=True)
class Loaded:
    """What a file had of a timm model's head.

    classes: of its classifier; 0 without one
    missing: the tensors of its other parts that the file lacks
    """

    classes: int
    missing: list[str]


def load_timm(net: nn.Module, own: OwnWeights, name: str) -> Loaded:
    """Load a timm model, its classifier set to the file's number of classes.

    name: of the model, for messages

    Raises ValueError, naming the file, unless it holds all of the model but its head.
    """
    heads = classifier_names(net)
    below = tuple(f"{head}." for head in heads)
    wanted = {key: value for key, value in net.state_dict().items() if not key.startswith(below)}
    match = best_match(own, wanted, net)
    missing = check_complete(own, match, wanted, name, net)
    check_variant(own, match, net, name)
    classes = classes_of(net, match, heads[0]) if heads and not missing else 0
    if classes and classes != net.num_classes:
        net.reset_classifier(classes)
    state = net.state_dict()
    of_head = [key for key in state if key.startswith(below)]
    fits = classes > 0 and all(
        key in match.tensors and match.tensors[key].shape == state[key].shape for key in of_head
    )
    used = [key for key in state if key in match.tensors and (key in wanted or fits)]
    check_tensors(own, match, used)
    net.load_state_dict({key: match.tensors[key] for key in used}, strict=False)
    loaded = Loaded(classes if fits else 0, missing)
    say(own, match, used, name, classes=loaded.classes, missing=missing)
    return loaded


def classes_of(net: nn.Module, match: Match, head: str) -> int:
    """The number of classes of a file's classifier; 0 without one, and for a projection, such as CLIP's."""
    weight, bias = (match.tensors.get(f"{head}.{kind}") for kind in ("weight", "bias"))
    if weight is None or weight.ndim < 2 or match.projects:
        return 0
    projects = bias is not None and not wrong_kind(bias) and is_clip_projection(net, bias)
    return 0 if projects else len(weight)


def check_complete(
    own: OwnWeights, match: Match, wanted: Mapping[str, Tensor], name: str, timm_net: nn.Module | None = None
) -> list[str]:
    """Return the wanted tensors of a timm model's head that are missing.

    Raises ValueError where others are missing, or where any are of another shape.
    """
    needed = [key for key in wanted if not key.endswith(COUNTER)]
    missing = [key for key in needed if key not in match.tensors]
    head = head_parts(timm_net) if missing and timm_net is not None else set()
    lacking = [key for key in missing if key.split(".")[0] not in head]
    if len(lacking) == len(needed):
        raise ValueError(
            f"{own.path} holds nothing of {name}: none of its {len(own.tensors)} tensors "
            f"({shortened(next(iter(own.tensors)), 80)}…) has one of its names ({lacking[0]}…)"
        )
    if lacking:
        raise ValueError(
            f"{own.path} holds less than a whole {name}: {len(lacking)} of {len(needed)} tensors are "
            f"missing{match.place} ({lacking[0]}…)"
        )
    for key in wanted:
        if key in match.tensors and (shape := tuple(match.tensors[key].shape)) != tuple(wanted[key].shape):
            raise ValueError(
                f"{own.path} is of another variant than {name}: {shortened(match.prefix + key, 80)} is "
                f"{shape}, {tuple(wanted[key].shape)} is wanted"
            )
    return missing


def check_variant(own: OwnWeights, match: Match, net: nn.Module, name: str) -> None:
    """Raise ValueError where the file has more blocks than the network, more in a block, or more tokens."""
    known = {*net.state_dict(), *(key for key, _ in net.named_buffers())}  # also buffers that are not saved
    blocks = {block for key in known for block in blocks_of(key)}
    for key in match.tensors:
        if key not in known and (key in REGISTERS or blocks & blocks_of(key)):
            raise ValueError(
                f"{own.path} is of another variant than {name}, which has no "
                f"{shortened(match.prefix + key, 80)}"
            )


def blocks_of(key: str) -> set[str]:
    """The numbered parts that a tensor is in, `#` for each number: `layer1.#` for `layer1.0.bn1.bias`."""
    parts = ["#" if part.isdecimal() else part for part in key.split(".")]
    return {".".join(parts[: k + 1]) for k, part in enumerate(parts) if part == "#"}


def check_tensors(own: OwnWeights, match: Match, keys: Iterable[str]) -> None:
    """Raise ValueError for a tensor whose values cannot be used."""
    for key in keys:
        value = match.tensors[key]
        wrong = wrong_tensor(key, value)
        if not (wrong or value.is_floating_point() or key.endswith(COUNTER)):
            wrong = f"is {value.dtype}, floating-point numbers are wanted".replace("torch.", "")
        if wrong:
            raise ValueError(f"{own.path}: {shortened(match.prefix + key, 80)} {wrong}")


def say(
    own: OwnWeights, match: Match, used: list[str], name: str, *, classes: int, missing: Iterable[str] = ()
) -> None:
    """Print what was loaded, what was left out, what is missing, and which classifier there is."""
    by = ", converted by timm" if match.converted else ""
    memory = memory_of(own.tensors.values())
    if resized := [key for key in used if is_position(key) and not memory & memory_of([match.tensors[key]])]:
        by += f", {resized[0]} interpolated to its size"
    left = ("left out or merged: " if match.converted else "left out: ") + listed(left_out(own, match, used))
    lacks = f"{listed(list(missing))} of the head" if missing else "none"
    of_imagenet = ", taken for ImageNet's" if classes == 1000 else ""
    classifier = f"a classifier of {classes} classes{of_imagenet}" if classes else "no classifier"
    say_once(
        f"{own.path}: {len(used)} tensors loaded{match.place} into {name}{by}; {left}; missing: {lacks}; "
        f"{classifier}"
    )


def is_position(key: str) -> bool:
    """Whether a tensor is a table of positions, which timm interpolates."""
    return any(word in key for word in POSITIONS)


def listed(keys: list[str]) -> str:
    """The number of names, with the first."""
    return f"{len(keys)} ({shortened(keys[0], 80)}…)" if keys else "none"


def left_out(own: OwnWeights, match: Match, used: list[str]) -> list[str]:
    """The names in the file of which nothing was loaded as it is."""
    if match.converted:
        memory = memory_of(match.tensors[key] for key in used)
        return [key for key, value in own.tensors.items() if not memory & memory_of([value])]
    taken = {match.prefix + key for key in used}
    return [key for key in own.tensors if key not in taken]


def memory_of(tensors: Iterable[Tensor]) -> set[int]:
    """Where the values of tensors are, also those of which a tensor is a view."""
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


# --- Matching


def best_match(own: OwnWeights, wanted: Mapping[str, Tensor], timm_net: nn.Module | None = None) -> Match:
    """Find the prefix below which most of the wanted tensors stand; of several, that of averaged weights.

    timm_net: tries also the names that timm converts for this model
    """
    needed = sum(not key.endswith(COUNTER) for key in wanted)
    plain = [Match(prefix, under(own.tensors, prefix)) for prefix in prefixes(own.tensors, wanted)]
    best = max(plain, key=lambda match: match.found(wanted))
    if best.found(wanted) < needed and timm_net is not None:
        best = max([best, *conversions(own, wanted, timm_net)], key=lambda match: match.found(wanted))
    same = [match for match in plain if match.found(wanted) == best.found(wanted)]
    if best in same and len(same) > 1:
        others = [match.place or " without a prefix" for match in same if match is not best]
        say_once(f"{own.path}: the weights{best.place} are taken, not the ones{' or'.join(others[:3])}")
    return best


def prefixes(names: Iterable[str], wanted: Mapping[str, Tensor]) -> list[str]:
    """The prefixes below which most wanted names stand, averaged weights first."""
    counts: Counter[str] = Counter({"": 0})
    needed = {key for key in wanted if not key.endswith(COUNTER)}
    longest = 1 + max((key.count(".") for key in needed), default=0)
    for name in names:
        parts = name.split(".")
        for k in range(max(0, len(parts) - longest), len(parts)):
            if ".".join(parts[k:]) in needed:
                counts["".join(f"{part}." for part in parts[:k])] += 1
    most = max(counts.values())
    return sorted((prefix for prefix in counts if counts[prefix] == most), key=order)


def order(prefix: str) -> tuple[int, int]:
    """Averaged weights come first, a student's last, then the shortest prefix."""
    words = {*re.split(r"[._]", prefix)}
    return (0 if words & AVERAGED else 2 if "student" in words else 1), len(prefix)


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def conversions(own: OwnWeights, wanted: Mapping[str, Tensor], net: nn.Module) -> Iterable[Match]:
    """What timm makes, for one of its models, of the tensors below each prefix that has enough of them."""
    counts: Counter[str] = Counter()
    for name in own.tensors:
        parts = name.split(".")[:MOST_NESTED]
        counts.update("".join(f"{part}." for part in parts[:k]) for k in range(len(parts)))
    heads = classifier_names(net)
    for prefix in sorted((p for p in counts if 2 * counts[p] >= len(wanted)), key=order):
        part = under(own.tensors, prefix)
        tensors = converted_names(part, net)
        if tensors is None:
            continue
        keep_patches(part, tensors)
        weight = tensors.get(f"{heads[0]}.weight") if heads else None
        yield Match(prefix, tensors, converted=True, projects=is_projection(part, weight))


def keep_patches(part: Mapping[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Undo the interpolation of patches of another size, so that the variant is refused."""
    sizes = {value.numel() for value in part.values()}
    for key, value in tensors.items():
        if value.numel() not in sizes and value.ndim == 4 and not is_position(key):
            patches = [old for old in part.values() if old.ndim == 4 and old.shape[:2] == value.shape[:2]]
            tensors[key] = patches[0] if patches else value


def is_projection(part: Mapping[str, Tensor], weight: Tensor | None) -> bool:
    """Whether a classifier's weight is that of a projection in the file."""
    return (
        weight is not None
        and not wrong_kind(weight)
        and any(
            torch.equal(value, weight) or torch.equal(value.T, weight)
            for key, value in part.items()
            if value.ndim == 2 and not wrong_kind(value) and "proj" in key.split(".")[-2:]
        )
    )
