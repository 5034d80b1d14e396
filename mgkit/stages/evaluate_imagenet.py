"""Classification accuracy by crop and resolution, with the training p and with p* (04, section 4.2)."""

from dataclasses import asdict

import numpy as np

from mgkit.config import ClassifyConfig
from mgkit.engine.holding import holding
from mgkit.engine.launch import on_all_devices
from mgkit.engine.run import Run, results_of_machines
from mgkit.features import Passes, frozen_backbone, whole_shapes
from mgkit.finetune import sweep_hits
from mgkit.machine.distributed import is_main
from mgkit.metrics import bootstrap_mean
from mgkit.stages.finetune_p import p_star
from mgkit.stages.inputs import in_classes_of, validation_data
from mgkit.stages.results import Accuracy
from mgkit.stages.train import trained_network


def evaluate_classification(config: ClassifyConfig) -> list[Accuracy]:
    """Top-1 and top-5 accuracy for every crop and size, with the training p and with p*, on all devices.

    Raises as `holding` and `on_all_devices`.
    """
    with holding(config) as joined:
        if not joined:
            on_all_devices(config, run_classification)
        return [Accuracy(**row) for row in results_of_machines(config)["rows"]]


def run_classification(config: ClassifyConfig) -> None:
    """`evaluate_classification` in this process, or in each of several; writes results.json."""
    net, _ = trained_network(config)
    images = in_classes_of(net, validation_data(config))
    training_p = net.pool.p.item()
    best = [p_star(config, net, size=size, crop="rect") for size in config.sizes]
    run = Run(config, checkpoint=net.source, sha256=net.source_sha256) if is_main() else None
    passes = Passes.of(config, backbone=frozen_backbone(net, config.precision))
    rows = []
    for crop in config.crops:
        shapes = whole_shapes(images, crop)
        for size, p_of_size in zip(config.sizes, best, strict=True):
            exponents = {"trained": training_p, "p*": p_of_size}
            [hits] = sweep_hits(
                net,
                images,
                sizes=[size],
                ps=list(exponents.values()),
                shapes=shapes,
                passes=passes,
                crop=crop,
            )  # [1,2,2,N] -> [2,2,N]
            for (exponent, p), of_images in zip(exponents.items(), hits, strict=True):
                top1, top5 = np.nanmean(of_images, axis=-1).tolist()
                rows.append(Accuracy(crop, size, exponent, p, top1, top5, bootstrap_mean(of_images[0])))
    passes.unreadable.report()
    if run:
        run.results({"images": len(images), "rows": [asdict(row) for row in rows]})
