"""Fit the whitening of a trained network, fold it into the classifier, and check that (03, section 3.6)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mgkit.checkpoints import load_network, save_checkpoint
from mgkit.config import NetworkConfig, WhitenConfig
from mgkit.data.images import ImageList
from mgkit.data.layouts import plain_images
from mgkit.engine.feature_store import features_folder, stored_features
from mgkit.engine.holding import holding
from mgkit.engine.launch import on_all_devices
from mgkit.engine.run import Run, opened_folder, results_of_machines, run_folder
from mgkit.features import Passes, pooled
from mgkit.finetune import set_p
from mgkit.machine.device import pick_device, place
from mgkit.machine.distributed import barrier, is_main, main_first
from mgkit.machine.files import find_path
from mgkit.metrics import topk_accuracy
from mgkit.model import MultiGrain, append_one
from mgkit.stages.finetune_p import p_star
from mgkit.stages.inputs import data_root, in_classes_of, network_left_by, training_data, validation_data
from mgkit.stages.train import trained_network
from mgkit.whitening import fit_pca_whitening, moments, whiten

FOLDING = (
    "top1_before",
    "top1_after",
    "same_class",
    "relative_difference",
    "val_images",
)  # of `check_folding`


@dataclass(frozen=True)
class Whitened:
    """Result of 03: the whitened network and how it was made.

    size: resolution (px)
    images: number of images used
    variances: of the principal components [D]
    folding: of `check_folding`; empty if data has no labelled images
    """

    net: MultiGrain
    size: int
    crop: str
    p: float
    images: int
    variances: np.ndarray
    folding: dict
    checkpoint: Path


def whiten_network(config: WhitenConfig) -> Whitened:
    """Fit and fold the whitening at the config's size and p, on all devices.

    Raises as `holding` and `on_all_devices`.
    """
    with holding(config) as joined:
        if not joined:
            on_all_devices(config, run_whitening)
        results = results_of_machines(config)
        path = run_folder(config) / "checkpoint.pth"
        net = place(load_network(path)[0], pick_device())
    variances = np.array(results.pop("variances"))
    folding = {key: results[key] for key in FOLDING if key in results}
    kept = {key: results[key] for key in ("size", "crop", "p", "images")}
    return Whitened(net=net, variances=variances, folding=folding, checkpoint=path, **kept)


def run_whitening(config: WhitenConfig) -> None:
    """`whiten_network` in this process, or in each of several; writes checkpoint.pth and results.json."""
    net, checkpoint = trained_network(config)
    images = whitening_images(config)
    if len(images) > config.images:
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: config.images]
        images = images.subset(chosen.sort().values.tolist())
    training_p = net.pool.p.item()
    p = p_star(config, net, size=config.size, crop=config.crop) if config.p is None else config.p
    run = Run(config, checkpoint=net.source, sha256=net.source_sha256) if is_main() else None
    set_p(net, p)
    passes = Passes.of(config, description=f"whitening, {config.crop} {config.size} px")
    [rows] = stored_features(
        net, images, size=config.size, ps=[p], folder=features_folder(config.experiment), passes=passes
    )
    passes.unreadable.report()
    rows = torch.from_numpy(rows[np.isfinite(rows[:, 0])])
    descriptors = append_one(rows)  # [N,C] -> [N,C+1]
    mean, projection = fit_pca_whitening(descriptors, shrinkage=config.shrinkage)
    after = whiten(net, mean, projection)
    if run:
        kept = {key: checkpoint[key] for key in ("extra",) if key in checkpoint}
        kept |= {"size": config.size, "crop": config.crop, "p": p, "training_p": training_p}
        kept["learned_p"] = config.p is None
        with opened_folder(config) as folder:
            save_checkpoint(folder / "checkpoint.pth", after, classes=list(net.classes), **kept)
    folding = check_folding(config, net, after)
    if run:
        variances = torch.linalg.eigvalsh(moments(descriptors)[1]).flip(0).clamp(min=0)
        run.results({
            "size": config.size, "crop": config.crop, "p": p, "images": len(rows), "dimensions": len(mean),
            "variances": variances.tolist(), **folding,
        })  # fmt: skip
    barrier()


def check_folding(config: WhitenConfig, before: MultiGrain, after: MultiGrain) -> dict:
    """Compare the classes of the validation images before and after whitening, from the same pooled features.

    Returns top1_before, top1_after and same_class, the share of images with an unchanged class, in 0..1;
    relative_difference of the logits, after the best factor per image; val_images, their number. If data has
    no images of the network's classes, prints the reason and returns an empty dict.
    """
    try:
        images = in_classes_of(before, validation_data(config))
    except (OSError, ValueError) as error:
        print(f"not checked whether folding keeps the classes: {error}")
        return {}
    passes = Passes.of(config, description=f"folding, {config.crop} {config.size} px")
    [rows] = pooled(before, images, size=config.size, ps=[before.pool.p.item()], passes=passes)
    readable = np.isfinite(rows[:, 0])
    rows = torch.from_numpy(rows[readable]).to(before.classifier.weight.device)
    labels = torch.from_numpy(images.labels[readable])
    with torch.no_grad():
        before, after = (net.head(rows)["classifier_output"].cpu() for net in (before, after))
    factor = (before * after).sum(1, keepdim=True) / after.square().sum(1, keepdim=True)
    return {
        "top1_before": topk_accuracy(before, labels, ks=(1,))[0],
        "top1_after": topk_accuracy(after, labels, ks=(1,))[0],
        "same_class": float((before.argmax(1) == after.argmax(1)).double().mean()),
        "relative_difference": float((factor * after - before).norm() / before.norm()),
        "val_images": len(labels),
    }


def whitening_images(config: WhitenConfig) -> ImageList:
    """The images of `config.unlabelled`, or of data's unlabelled/whiten, or data's training images."""
    if config.unlabelled:
        return plain_images(find_path(config.unlabelled), purpose="unlabelled").with_exif(config.exif)
    root = main_first(lambda: data_root(config.data))
    beside = root / "unlabelled" / "whiten"
    if beside.is_dir():
        return plain_images(beside, purpose="unlabelled").with_exif(config.exif)
    return training_data(config)[0]


def whitened_network(config: NetworkConfig) -> tuple[MultiGrain, dict]:
    """The network of `config.checkpoint` or of 03, and its checkpoint; see `network_left_by`."""
    return network_left_by(WhitenConfig, config, run=run_whitening)
