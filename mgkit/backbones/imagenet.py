"""The classes of ImageNet (ILSVRC 2012), of which published classifiers give the scores."""

from functools import cache


@cache
def imagenet_names() -> dict[str, str]:
    """WordNet id -> readable name of the 1000 classes, in the order of published classifiers: by id."""
    from timm.data import ImageNetInfo  # takes seconds
    from torchvision.models import ResNet50_Weights

    # timm's names list synonyms, and some of them twice; torchvision's are short and distinct.
    ids, names = ImageNetInfo("imagenet-1k").label_names(), ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    return dict(zip(ids, names, strict=True))
