"""Hiera at sizes that are not its own."""

import pytest
import timm
import torch
from support import one_line_error, with_noise
from timm.layers import resample_abs_pos_embed

from mgkit import get_multigrain
from mgkit.checkpoints import load_network, save_checkpoint

SMALL = {"embed_dim": 32, "stages": (1, 1, 2, 1), "num_heads": 1}


@pytest.fixture(params=["hiera_tiny_224", "hiera_small_abswin_256"])
def net(request, monkeypatch):
    """With positions of one kind, or of windows and of the image."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **SMALL, **options))
    torch.manual_seed(0)
    return with_noise(get_multigrain(f"timm/{request.param}", num_classes=3, p=1.0)).eval()


@torch.no_grad()
@pytest.mark.parametrize("shape", [(320, 224), (96, 96), (64, 160)])
def test_it_is_the_model_that_timm_builds_for_that_size(net, shape):
    """Positions are interpolated: by timm itself for those of windows and image, here for the others."""
    theirs = net.features.net
    model = net.name.removeprefix("timm/")
    built = timm.create_model(model, img_size=shape, num_classes=0).eval()
    state = theirs.state_dict()
    if theirs.pos_embed_win is None:
        grid = [side // 4 for side in shape]
        state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], grid, (56, 56), num_prefix_tokens=0)
    built.load_state_dict(state, strict=False)
    images = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(1))
    grid = [side // 32 for side in shape]
    expected = built.forward_features(images).transpose(1, 2).unflatten(2, grid)
    found = net.features(images)
    assert found.shape == expected.shape and expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_images_are_cut_to_whole_windows_and_lists_are_as_one_by_one(net, tmp_path):
    images = [torch.randn(3, *shape) for shape in ((100, 130), (96, 96), (130, 70))]
    rows = net(images)["embedding"]
    for image, row in zip(images, rows, strict=True):
        torch.testing.assert_close(net(image[None])["embedding"][0], row, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net(images[0][None, :, 2:98, 1:129])["embedding"][0], rows[0])
    save_checkpoint(tmp_path / "net.pth", net)
    loaded, _ = load_network(tmp_path / "net.pth")
    torch.testing.assert_close(loaded(images)["embedding"], rows)
    with one_line_error(ValueError, net.name, "at least 32 x 32 px, got 31 x 64 px"):
        net(torch.zeros(1, 3, 31, 64))
