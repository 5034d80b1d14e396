"""Models of timm, one of each family: maps, class scores, sizes, what is saved, which tokens are read."""

import numpy as np
import pytest
import timm
import torch
from support import one_line_error, stand_in_for_timm
from torch import nn

from mgkit import get_multigrain
from mgkit.backbones.build import build_backbone
from mgkit.checkpoints import load_network, save_checkpoint
from mgkit.data.images import ImageList
from mgkit.explore.browse import likely_classes
from mgkit.machine.printable import say_once
from mgkit.model import with_tokens
from mgkit.pooling import gem
from mgkit.stages.inputs import in_classes_of
from mgkit.whitening import whiten

# Options that leave a model few layers and channels.
VIT = dict(embed_dim=96, depth=2, num_heads=3)
SHALLOW, NARROW = dict(depths=(1, 1, 1, 1)), dict(depths=(1, 1, 1, 1), dims=(16, 32, 64, 128))
NO_WEIGHTS, ANOTHER = "the weights have none", "it does more than average and classify"

# {model: (its options, the tokens that its classifier reads or why it has none)}
FAMILIES = {
    "resnet10t": ({}, "patches"),
    "resnetv2_18": (dict(layers=(1, 1, 1, 1), channels=(16, 32, 64, 128)), "patches"),
    "regnety_002": ({}, "patches"),
    "efficientnet_b0": ({}, "patches"),
    "mobilenetv3_small_050": ({}, "patches"),
    "mobilenetv4_conv_small_035": ({}, "patches"),
    "ghostnet_050": ({}, "patches"),
    "vgg11": (dict(mlp_ratio=0.02), "patches"),
    "convnext_atto": (SHALLOW, "patches"),
    "convnextv2_atto": (SHALLOW, "patches"),
    "convnext_tiny.dinov3_lvd1689m": (NARROW, NO_WEIGHTS),
    "test_nfnet": ({}, "patches"),
    "edgenext_xx_small": ({}, "patches"),
    "poolformer_s12": ({}, "patches"),
    "caformer_s18": ({}, "patches"),
    "mambaout_femto": (SHALLOW, "patches"),
    "efficientformerv2_s0": ({}, "patches"),
    "levit_128s": ({}, "patches"),
    "test_maxvit": ({}, "patches"),
    "test_coatnet": ({}, "patches"),
    "swin_tiny_patch4_window7_224": (dict(embed_dim=24, depths=(1, 1, 2, 1)), "patches"),
    "swinv2_tiny_window8_256": (
        dict(embed_dim=24, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8)), "patches",
    ),
    "hiera_tiny_224": (dict(embed_dim=24, stages=(1, 1, 1, 1), num_heads=1), "patches"),
    "vit_tiny_patch16_224": (VIT, "class"),
    "vit_wee_patch16_reg1_gap_256": (VIT, "patches"),
    "deit3_small_patch16_224": (VIT, "class"),
    "deit_tiny_distilled_patch16_224": (VIT, ANOTHER),
    "vit_small_patch14_dinov2": (VIT, NO_WEIGHTS),
    "vit_small_patch14_reg4_dinov2": (VIT, NO_WEIGHTS),
    "vit_small_patch16_dinov3": (VIT, NO_WEIGHTS),
    "eva02_tiny_patch14_224": (VIT, NO_WEIGHTS),
    "vit_base_patch32_siglip_256": (VIT, NO_WEIGHTS),
    "vit_so400m_patch14_siglip_384": (VIT, NO_WEIGHTS),  # whose patches do not fill its own size
    "vit_xsmall_patch16_clip_224": (VIT, "class"),
    "beit_base_patch16_224": (VIT, "patches"),
}  # fmt: skip
SIZES = [(96, 96), (192, 192), (128, 100)]  # (height, width), beside the own one


class Family:
    """A model of timm as the kit has it, as timm has it, and as timm has it for images of any size."""

    def __init__(self, model: str):
        self.model, self.tokens = model, FAMILIES[model][1]
        self.own = timm.create_model(model, pretrained=True).eval()
        try:
            self.any_size = timm.create_model(model, pretrained=True, dynamic_img_size=True).eval()
        except TypeError:
            self.any_size = self.own
        self.size = self.own.pretrained_cfg["input_size"][1:]
        self.of_patches = self.network("patches")
        self.net = self.network("class") if self.tokens == "class" else self.of_patches

    def network(self, tokens: str):
        classes = self.own.num_classes or 1000
        options = dict(p=1.0, pretrained_backbone=True, num_classes=classes, tokens=tokens)
        return get_multigrain(f"timm/{self.model}", **options).eval()

    def own_maps(self, images):
        """The maps that timm gives, of the middle of images where it takes whole patches only."""
        net = self.own
        if self.any_size is not self.own and images.shape[2:] != self.size:
            net, images = self.any_size, middle(images, self.own.patch_embed.patch_size)
        maps = net.forward_features(images)
        if maps.ndim == 3:
            norm = not self.model.startswith("hiera")  # whose tokens are not normalised
            options = dict(indices=1, norm=norm, output_fmt="NCHW", intermediates_only=True)
            return net.forward_intermediates(images, **options)[-1]
        if self.model.startswith(("swin", "mambaout")):  # channels last
            return maps.permute(0, 3, 1, 2)
        return self.own.pre_logits(maps) if self.model.startswith("vgg") else maps


def middle(images, patch):
    """Images [B,3,H,W] without the borders that do not fill a patch."""
    rest = [side % of_patch for side, of_patch in zip(images.shape[-2:], patch, strict=True)]
    (top, left), (height, width) = [side // 2 for side in rest], images.shape[-2:]
    return images[..., top : height - (rest[0] - top), left : width - (rest[1] - left)]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    with pytest.MonkeyPatch.context() as patch:
        stand_in_for_timm(patch, {model: options for model, (options, _) in FAMILIES.items()})
        yield Family(request.param)


@pytest.fixture
def note(family, record_property):
    """What is printed of the model at the end."""
    return lambda text: record_property(family.model, text)


def random_images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def difference(found, expected):
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def test_maps_are_those_of_timm(family, note):
    net, images = family.of_patches, random_images(2, 3, *family.size)
    maps = net.features(images)
    off = difference(maps, family.own_maps(images))
    note(f"{' x '.join(map(str, maps.shape[1:]))} maps{', signed' * net.pool.signed} ± {off:.0e}")
    assert off < 1e-5 and maps.std() > 1e-3
    assert net.pool.signed == bool((maps < 0).any())
    without_padding = 6 if family.model == "vgg11" else 0  # positions that a convolution takes off
    assert maps.shape[2] == round(family.size[0] / net.stride) - without_padding


@torch.no_grad()
def test_logits_with_p_1_are_those_of_timm_or_the_reason_is_said(family, note):
    net = family.net
    if family.tokens not in ("patches", "class"):
        note(f"no classifier: {net.unclassified}")
        assert net.unclassified == family.tokens and not net.classifies and net.classes == ()
        return
    images = random_images(2, 3, *family.size)
    expected = family.own(images)
    off = difference(net(images)["classifier_output"], expected)
    note(f"logits of {net.tokens} ± {off:.0e}{', behind a neck' * (net.neck is not None)}")
    assert off < 1e-4 < difference(expected[:1], expected[1:])
    assert net.classifies and len(net.classes) == (1000 if family.own.num_classes == 1000 else 0)


@torch.no_grad()
def test_other_sizes_are_taken_or_refused_in_one_line(family, note):
    net, taken = family.of_patches, []
    for size in SIZES:
        images = random_images(1, 3, *size)
        try:
            maps = net.features(images)
        except ValueError as refusal:
            own = " x ".join(map(str, family.size))
            assert str(refusal).startswith(f"{net.name} takes images of {own} px only, got {size[0]} x ")
            continue
        if family.model != "hiera_tiny_224":  # timm's takes no other size: see test_hiera
            assert difference(maps, family.own_maps(images)) < 1e-5
        assert net(images)["classifier_output"].isfinite().all()
        taken.append(size)
    note("sizes " + (", ".join(f"{h} x {w}" for h, w in taken) or "its own alone"))
    assert taken in ([], SIZES)


@torch.no_grad()
def test_a_list_of_unequal_images_is_each_alone(family):
    features = family.net.features
    shapes = [features.own_size] * 3 if features.is_fixed else [(96, 130), (130, 97), (96, 130)]
    images = [random_images(3, *shape, seed=seed) for seed, shape in enumerate(shapes)]
    together = family.net(images)
    alone = torch.cat([family.net(image[None])["embedding"] for image in images])
    assert difference(together["embedding"], alone) < 1e-4 < difference(alone[:1], alone[2:])


@torch.no_grad()
def test_it_is_saved_loaded_and_whitened(family, tmp_path):
    net, images = family.net, random_images(1, 3, *family.size)
    output = net(images)
    size = net.width + 1
    projection = torch.eye(size) + random_images(size, size) / (2 * size**0.5)
    whitened = whiten(net, random_images(size) / size, projection)
    for path, one in ((tmp_path / "net.pth", net), (tmp_path / "whitened.pth", whitened)):
        save_checkpoint(path, one)
        loaded, _ = load_network(path)
        assert torch.equal(loaded(images)["classifier_output"], one(images)["classifier_output"])
        assert loaded.pool.signed == net.pool.signed and loaded.tokens == net.tokens
        assert loaded.classifies == net.classifies
    factor = (output["embedding"].square().sum() + 1).sqrt()
    assert difference(whitened(images)["classifier_output"] * factor, output["classifier_output"]) < 1e-3


def test_training_reaches_every_weight(family):
    has_class = getattr(family.of_patches.features, "has_class", False)
    for tokens in ("patches", "class", "both") if has_class else ("patches",):
        net = get_multigrain(f"timm/{family.model}", num_classes=3, tokens=tokens)
        assert net.training and net.features.net.training
        images = random_images(2, 3, *(net.features.own_size if net.features.is_fixed else (96, 96)))
        net(images)["classifier_output"].square().sum().backward()
        assert [name for name, w in net.named_parameters() if w.requires_grad and w.grad is None] == []


# --- Which tokens are read


@pytest.fixture
def smaller(monkeypatch):
    """timm's models as in `family`."""
    return stand_in_for_timm(monkeypatch, {model: options for model, (options, _) in FAMILIES.items()})


def published(model, tokens="patches", **options):
    return get_multigrain(f"timm/{model}", p=1.0, pretrained_backbone=True, tokens=tokens, **options).eval()


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "test_vit", "test_vit2", "test_vit3"])
def test_the_classifier_goes_with_the_tokens_that_it_reads(smaller, model):
    original = smaller(model, pretrained=True).eval()
    reads = {"token": "class", "avg": "patches"}.get(original.global_pool, "")
    for tokens in ("patches", "class", "both") if original.has_class_token else ("patches",):
        net = published(model, tokens)
        if tokens == reads:
            images = random_images(2, 3, *original.pretrained_cfg["input_size"][1:])
            with torch.no_grad():
                assert difference(net(images)["classifier_output"], original(images)) < 1e-4
        reason = f"it reads the {'class token' if reads == 'class' else reads}: tokens={reads} has it"
        assert net.unclassified == ("" if tokens == reads else reason if reads else ANOTHER)
        assert net.classifies == (tokens == reads) == bool(net.classes) and net.tokens == tokens


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("test_vit4", "class"),  # registers, no class token
        ("vit_base_patch32_siglip_256", "both"),
        ("test_convnext", "class"),
        ("test_maxvit", "both"),
    ],
)
def test_tokens_that_a_model_does_not_have_are_refused(smaller, model, tokens):
    with one_line_error(ValueError, "tokens:", f"timm/{model} has no class token"):
        get_multigrain(f"timm/{model}", tokens=tokens)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "nasnetamobile"])
def test_tokens_of_other_backbones_are_refused(name):
    with one_line_error(ValueError, "tokens:", f"{name} has no class token"):
        get_multigrain(name, tokens="class")
    with one_line_error(ValueError, "tokens: one of patches, class, both", "'cls'"):
        get_multigrain(name, tokens="cls")


def test_other_tokens_of_a_network_without_a_class_token_are_refused():
    with one_line_error(ValueError, "tokens: resnet8 has no class token"):
        with_tokens(get_multigrain("resnet8"), "both")


def test_clip_s_projection_is_no_classifier(monkeypatch):
    """It has no biases, and as many outputs as the embedding of texts has dimensions."""
    create_model = stand_in_for_timm(monkeypatch, {"vit_xsmall_patch16_clip_224": {"depth": 1}})

    def without_biases(name, pretrained=False, **options):
        net = create_model(name, pretrained, **options)
        nn.init.zeros_(net.head.bias)
        return net

    monkeypatch.setattr(timm, "create_model", without_biases)
    net = published("vit_xsmall_patch16_clip_224", "class")
    assert net.unclassified == "it is a projection, which knows no classes"


def test_a_classifier_of_one_s_own_classes_counts_as_one(pretrained_timm):
    """It is random at first, as a line says, and trained by whoever asked for its classes."""
    net = get_multigrain("timm/test_resnet", pretrained_backbone=True, num_classes=3)
    assert net.classifies and not published("test_vit", "patches").classifies
    net = published("test_vit", "patches")
    net.load_state_dict(net.state_dict())
    assert net.classifies


def test_a_model_that_must_keep_a_pooling_loses_its_classifier_only():
    net = get_multigrain("timm/coat_lite_tiny", num_classes=3).eval()
    assert net.features(random_images(1, 3, 224, 224)).shape[1] == net.width


def test_a_fixed_size_is_measured_not_believed():
    net = get_multigrain("timm/xcit_nano_12_p16_224", num_classes=3).eval()
    with torch.no_grad():
        assert net.features(random_images(1, 3, 128, 96)).shape[2:] == (8, 6)


@torch.no_grad()
@pytest.mark.parametrize("p", [1.0, 2.5])
@pytest.mark.parametrize(
    ("model", "neck"),  # what stands before the classifier: a norm that the kit has as the neck, or nothing
    [("vit_tiny_patch16_224", None), ("test_vit", None), ("beit_base_patch16_224", "fc_norm")],
)
def test_both_are_the_class_token_and_pooled_patches_each_through_the_neck(smaller, model, neck, p):
    net, original = published(model, "both"), smaller(model, pretrained=True).eval()
    net.pool.p.fill_(p)
    images = random_images(2, 3, *original.pretrained_cfg["input_size"][1:])
    tokens = original.forward_features(images).transpose(1, 2)  # [B,C,N]
    halves = tokens[:, :, 0], gem(tokens[:, :, None, original.num_prefix_tokens :], p, signed=True)
    expected = torch.cat([getattr(original, neck)(half) if neck else half for half in halves], dim=1)
    output = net(images)
    assert net.width == expected.shape[1] == 2 * original.num_features
    assert difference(output["embedding"], expected) < 1e-5
    assert difference(output["normalized_embedding"], nn.functional.normalize(expected)) < 1e-5


@torch.no_grad()
def test_the_class_token_is_the_same_with_any_p(smaller):
    net = published("vit_tiny_patch16_224", "class")
    images = random_images(2, 3, 96, 128)
    maps = net.features(images)
    assert maps.shape == (2, 96, 1, 1)
    for p in (1.0, 4.0, float("inf")):
        torch.testing.assert_close(net.pooled_maps(maps, p), maps.flatten(1), rtol=1e-5, atol=1e-5)


# --- Sizes


@torch.no_grad()
@pytest.mark.parametrize(
    ("model", "kept"), [("vit_tiny_patch16_224", (96, 96)), ("vit_small_patch14_dinov2", (98, 98))]
)
def test_images_that_patches_do_not_fill_are_cut_to_their_middle(smaller, model, kept):
    net, images = published(model), random_images(2, 3, 100, 110)
    top, left = (100 - kept[0]) // 2, (110 - kept[1]) // 2
    part = images[..., top : top + kept[0], left : left + kept[1]]
    assert torch.equal(net.features(images), net.features(part))
    assert not torch.equal(net.features(images), net.features(images[..., : kept[0], : kept[1]]))
    mixed = [images[0], random_images(3, kept[1], kept[0], seed=3), part[1]]  # each is cut for itself
    alone = torch.cat([net(image[None])["embedding"] for image in mixed])
    assert difference(net(mixed)["embedding"], alone) < 1e-5
    torch.testing.assert_close(alone[2], net(images)["embedding"][1])


def test_an_image_smaller_than_a_patch_is_refused(smaller):
    net = published("vit_tiny_patch16_224")
    for size in ((15, 64), (64, 15), (3, 3)):
        with one_line_error(ValueError, "timm/vit_tiny", "at least 16 x 16 px", f"got {size[0]} x {size[1]}"):
            net(random_images(1, 3, *size))


def test_a_size_that_a_model_refuses_is_named_with_its_own(smaller):
    with one_line_error(ValueError, "timm/levit_128s takes images of 224 x 224 px only, got 96 x 128 px"):
        published("levit_128s").features(random_images(1, 3, 96, 128))
    with one_line_error(ValueError, "timm/halonet26t", "96 x 128 px", "256 x 256"):
        published("halonet26t").features(random_images(1, 3, 96, 128))


@torch.no_grad()
@pytest.mark.parametrize("model", ["vitamin_small_224", "vit_tiny_r_s16_p8_224"])
def test_tokens_behind_convolutions_are_maps_of_any_size(smaller, model):
    net = published(model)
    for height, width in ((96, 96), (120, 200)):
        maps = net.features(random_images(1, 3, height, width))
        assert maps.shape[2:] == (height // net.stride, width // net.stride)


# --- The head


def test_a_head_that_does_more_than_average_is_refused_with_the_reason(smaller, capsys, tmp_path):
    say_once.cache_clear()
    net = published("test_vit3")
    said = [line for line in capsys.readouterr().out.splitlines() if "classifier" in line]
    assert said == [f"timm/test_vit3: no published classifier is used: {ANOTHER}"]
    assert net.classes == () and likely_classes(net, torch.zeros(net.width), ()) == []
    save_checkpoint(tmp_path / "net.pth", net)
    loaded, _ = load_network(tmp_path / "net.pth")
    for one, reason in ((net, ANOTHER), (loaded, ANOTHER)):
        with one_line_error(ValueError, "timm/test_vit3", "no classifier (", reason, "01"):
            in_classes_of(one, ImageList(tmp_path, (), np.zeros(0, dtype=np.int64), ("cat",)))


@pytest.mark.parametrize("model", ["crossvit_9_240", "pit_ti_224"])
def test_a_model_without_maps_is_refused(model):
    with one_line_error(ValueError, f"timm/{model}", "gives no maps"):
        get_multigrain(f"timm/{model}")


@pytest.mark.parametrize(
    ("model", "tokens", "classes"),
    [("convnext_tiny.fb_in22k", "patches", 21841), ("vit_tiny_patch16_224.augreg_in21k", "class", 21843)],
)
def test_weights_of_other_classes_have_a_classifier_for_these_alone(
    monkeypatch, model, tokens, classes, capsys
):
    options = dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)) if tokens == "patches" else dict(depth=1)
    create_model = stand_in_for_timm(monkeypatch, {model: options})
    say_once.cache_clear()
    net = published(model, tokens)
    assert net.unclassified == f"it has {classes} classes, not 1000" and net.classes == ()
    assert f"timm/{model}: no published classifier is used: {net.unclassified}\n" in capsys.readouterr().out
    net = published(model, tokens, num_classes=classes)
    assert net.classifies and net.classes == () and capsys.readouterr().out == ""
    images = random_images(1, 3, 224, 224)
    with torch.no_grad():
        original = create_model(model, pretrained=True).eval()
        assert difference(net(images)["classifier_output"], original(images)) < 1e-4


# --- As the other backbones


def test_input_is_normalised_as_timm_says():
    config = timm.get_pretrained_cfg("test_resnet")
    backbone = build_backbone("timm/test_resnet")
    assert (backbone.mean, backbone.std) == (config.mean, config.std)
