"""Classification: top-1 and top-5 for every crop and resolution, with the training exponent and with p* (04, section 4.2)."""

from dataclasses import asdict, dataclass

from mgkit.config import ClassifyConfig
from mgkit.datasets import UnreadableImages, validation_images
from mgkit.experiment import Run, data_root
from mgkit.finetune import in_classes_of, p_star, sweep_p
from mgkit.train import trained_network


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 in 0..1 of one crop, size (px) and pooling exponent; `exponent` says whether p is `trained` or `p*`."""

    crop: str
    size: int
    exponent: str
    p: float
    top1: float
    top5: float


def evaluate_classification(config: ClassifyConfig) -> list[Accuracy]:
    """Top-1/top-5 of the experiment's network for every crop and size, with the training exponent and with p*.

    Both exponents come from one backbone pass. Writes outputs/<experiment>/evaluate_imagenet/results.json.
    """
    net, _ = trained_network(config)
    images = validation_images(data_root(config.data), val_fraction=config.val_fraction)
    images = in_classes_of(net, images.with_exif(config.exif))
    training_p = net.pool.p.item()
    best = {size: p_star(config, net, size=size, crop="rect") for size in config.sizes}
    run = Run("evaluate_imagenet", config, checkpoint=net.source)
    unreadable = UnreadableImages(config.on_unreadable)
    rows = []
    for crop in config.crops:
        for size in config.sizes:
            exponents = {"trained": training_p, "p*": best[size]}
            accuracy = sweep_p(
                net, images, sizes=[size], ps=list(exponents.values()), crop=crop, batch_size=config.batch_size,
                workers=config.workers, precision=config.precision, unreadable=unreadable,
            )[0]  # fmt: skip
            rows += [
                Accuracy(crop, size, name, p, *map(float, of_p))
                for (name, p), of_p in zip(exponents.items(), accuracy, strict=True)
            ]
    unreadable.report()
    run.results({"images": len(images), "rows": [asdict(row) for row in rows]})
    return rows
