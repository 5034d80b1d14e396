"""p* and the sweep over p for every evaluation resolution (02)."""

from dataclasses import asdict, fields

import numpy as np

from mgkit.config import FinetunePConfig, NetworkConfig
from mgkit.data.images import ImageList
from mgkit.engine.launch import on_all_devices
from mgkit.engine.run import Run, read_results, stage_folder
from mgkit.features import Passes, frozen_backbone, whole_shapes
from mgkit.finetune import finetune_p, set_p, sweep_hits
from mgkit.machine.distributed import barrier, is_main
from mgkit.model import MultiGrain
from mgkit.retrieval.protocols import Difference, accuracy_difference
from mgkit.stages.inputs import in_classes_of, is_mini, training_data
from mgkit.stages.results import PSearch
from mgkit.stages.train import trained_network


def find_p(config: FinetunePConfig) -> PSearch:
    """p* and the sweep over p for the experiment's network, on all devices; raises as `on_all_devices`."""
    on_all_devices(config, run_finetune_p)
    return read_search(config)


def run_finetune_p(config: FinetunePConfig) -> PSearch:
    """`find_p` in this process, or in each of several."""
    return search_p(config, trained_network(config)[0])


def search_p(config: FinetunePConfig, net: MultiGrain) -> PSearch:
    """p* by SGD on training images and the sweep on validation images, at every size; writes results.json."""
    train_images, val_images = training_data(config)
    subset = in_classes_of(net, train_images.first_per_class(config.images_per_class))
    val_images = in_classes_of(net, val_images)
    run = Run(config, checkpoint=net.source) if is_main() else None
    passes = Passes.of(config, backbone=frozen_backbone(net, config.precision))
    training_p = net.pool.p.item()
    paths = descents(config, net, subset, passes)
    p_star = [float(path[-1, 1]) for path in paths]
    ps = [*config.ps, training_p, *p_star]
    hits = sweep_hits(net, val_images, sizes=config.sizes, ps=ps, passes=passes)  # [S,P+1+S,2,N]
    passes.unreadable.report()
    accuracy, count = np.nanmean(hits, axis=-1), len(config.ps)
    gains = [
        accuracy_difference(of_size[count, 0], of_size[count + 1 + s, 0]) for s, of_size in enumerate(hits)
    ]
    found = PSearch(
        sizes=config.sizes, ps=config.ps, p_star=p_star, paths=paths, training_p=training_p, crop=config.crop,
        top1=accuracy[:, :count, 0], top5=accuracy[:, :count, 1],
        top1_at_training_p=accuracy[:, count, 0].tolist(),
        top1_at_p_star=accuracy[:, count + 1 :, 0].diagonal().tolist(),  # each size with its p*
        gains=gains,
    )  # fmt: skip
    if run:
        results = {key: as_plain(value) for key, value in vars(found).items()}
        run.results(results | {"gains": [asdict(gain) for gain in gains], "val_images": len(val_images)})
    barrier()
    return found


def descents(config: FinetunePConfig, net: MultiGrain, images: ImageList, passes: Passes) -> list[np.ndarray]:
    """The path of `finetune_p` for each size, each from the network's own p, which is restored."""
    training_p = net.pool.p.item()
    shapes = whole_shapes(images, config.crop)
    paths = []
    for size in config.sizes:
        path = finetune_p(
            net, images, size=size, step_size=config.step_size, lr=config.lr, momentum=config.momentum,
            seed=config.seed, shapes=shapes, passes=passes,
        )  # fmt: skip
        set_p(net, training_p)
        paths.append(path)
        print(f"{config.crop} {size} px: p* = {path[-1, 1]:.2f} in {len(path)} steps on {len(images)} images")
    return paths


def read_search(config: FinetunePConfig) -> PSearch:
    """The findings of `search_p`, read from results.json."""
    results = read_results(config)
    values = {field.name: results[field.name] for field in fields(PSearch)}
    arrays = {key: np.array(values[key]) for key in ("top1", "top5")}
    arrays["paths"] = [np.array(path) for path in values["paths"]]
    return PSearch(**values | arrays | {"gains": [Difference(**gain) for gain in values["gains"]]})


def as_plain(value):
    """Convert arrays, and lists of arrays, to lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [as_plain(item) for item in value] if isinstance(value, list) else value


def p_star(config: NetworkConfig, net: MultiGrain, *, size: int, crop: str) -> float:
    """p* of the experiment's 02 for a resolution, or for the nearest one of 02.

    On the embedded set a missing 02 is run first; on other data, or for a published network, which has other
    classes than that set, a message is printed and the network's p returned.
    """
    earlier = FinetunePConfig(experiment=config.experiment, data=config.data, checkpoint=config.checkpoint)
    results = read_results(earlier)
    if results is None and is_mini(config.data) and not config.pretrained_backbone:
        print("p* has not been learned yet: running 02_finetune_p first")
        search_p(earlier, net)
        results = read_results(earlier)
    if results is None:
        p = net.pool.p.item()
        print(f"no p* in {stage_folder(earlier)}: pooling with the training exponent {p:g}")
        return p
    sizes, crop_of_02 = results["sizes"], results["crop"]
    nearest = int(np.argmin(np.abs(np.array(sizes) - size)))
    if sizes[nearest] != size or crop_of_02 != crop:
        print(f"p* was learned at {crop_of_02} {sizes} px: taking that of {sizes[nearest]} px")
    return results["p_star"][nearest]
