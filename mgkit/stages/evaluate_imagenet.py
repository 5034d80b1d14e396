"""Classification: top-1 and top-5 for every crop and resolution, with the training exponent and with p* (04, section 4.2)."""

from dataclasses import asdict

from mgkit.config import ClassifyConfig
from mgkit.data.loader import UnreadableImages
from mgkit.engine.launch import on_all_devices
from mgkit.engine.run import Run, read_results
from mgkit.features import frozen_backbone, whole_shapes
from mgkit.finetune import sweep_p
from mgkit.machine.distributed import is_main
from mgkit.stages.finetune_p import p_star
from mgkit.stages.inputs import in_classes_of, validation_data
from mgkit.stages.results import Accuracy
from mgkit.stages.train import trained_network


def evaluate_classification(config: ClassifyConfig) -> list[Accuracy]:
    """Top-1/top-5 of the experiment's network for every crop and size, with the training exponent and with p*.

    On all devices; both exponents come from one backbone pass. Raises as `on_all_devices`.
    """
    on_all_devices(config, run_classification)
    return [Accuracy(**row) for row in read_results(config)["rows"]]


def run_classification(config: ClassifyConfig) -> None:
    """The same in this process, or in each of those that are joined; outputs/<experiment>/evaluate_imagenet/results.json."""
    net, _ = trained_network(config)
    images = in_classes_of(net, validation_data(config))
    training_p = net.pool.p.item()
    best = {size: p_star(config, net, size=size, crop="rect") for size in config.sizes}
    run = Run(config, checkpoint=net.source) if is_main() else None
    unreadable = UnreadableImages(config.on_unreadable)
    backbone = frozen_backbone(net, config.precision)
    rows = []
    for crop in config.crops:
        shapes = whole_shapes(images, crop)
        for size in config.sizes:
            exponents = {"trained": training_p, "p*": best[size]}
            accuracy = sweep_p(
                net, images, sizes=[size], ps=list(exponents.values()), crop=crop, batch_size=config.batch_size,
                workers=config.workers, precision=config.precision, unreadable=unreadable,
                backbone=backbone, shapes=shapes,
            )[0]  # fmt: skip
            rows += [
                Accuracy(crop, size, name, p, *map(float, of_p))
                for (name, p), of_p in zip(exponents.items(), accuracy, strict=True)
            ]
    unreadable.report()
    if run:
        run.results({"images": len(images), "rows": [asdict(row) for row in rows]})
