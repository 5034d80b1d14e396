"""The network: reference outputs, lists of images, states that do and do not belong to it."""

import copy

import numpy as np
import pytest
import torch

from mgkit import get_multigrain
from mgkit.model import MultiGrain, append_one
from mgkit.pooling import gem
from mgkit.whitening import whiten


def random_images(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, h, w, generator=generator) for h, w in shapes]


def whitened(net, seed=0):
    size = net.width + 1
    generator = torch.Generator().manual_seed(seed)
    projection = torch.eye(size) + 0.1 * torch.randn(size, size, generator=generator)
    return whiten(net, 0.1 * torch.rand(size, generator=generator), projection)


@pytest.fixture(scope="module", params=["resnet18", "resnet50", "resnet50-whitened"])
def released(request, reference, make_checkpoint):
    """A rebuilt checkpoint loaded into a fresh network, and what the original computes from it."""
    with np.load(reference / "expected" / f"{request.param}.npz") as arrays:
        expected = dict(arrays)
    name, _, kind = request.param.partition("-")
    state = make_checkpoint.checkpoint(name, 0, float(expected["p"]), bool(kind))["model_state"]
    net = get_multigrain(name)
    net.load_state_dict(state)
    return net.eval(), expected


def check_outputs(output, expected, prefix, relative):
    keys = [key for key in expected if key.startswith(f"{prefix}__")]
    assert keys
    for key in keys:
        assert relative(output[key.removeprefix(f"{prefix}__")], expected[key]) < 1e-4, key


@pytest.mark.parametrize("shape", ["2x64x64", "1x96x70"])
def test_network_matches_the_reference(released, make_checkpoint, relative, shape):
    net, expected = released
    with torch.no_grad():
        output = net(make_checkpoint.image_batch(1, *map(int, shape.split("x"))))
    check_outputs(output, expected, shape, relative)


def test_network_on_a_list_matches_the_reference(released, make_checkpoint, relative):
    net, expected = released
    images = [make_checkpoint.image_batch(2 + i, 1, h, w)[0] for i, (h, w) in enumerate([(64, 48), (50, 80)])]
    with torch.no_grad():
        output = net(images)
    check_outputs(output, expected, "list0", relative)


@pytest.mark.parametrize("whitening", [False, True])
def test_forward_is_the_arrow_diagram(tiny_net, whitening):
    net = whitened(tiny_net) if whitening else tiny_net
    images = torch.stack(random_images((20, 28), (20, 28)))
    with torch.no_grad():
        output = net(images)
        embedding = gem(net.features(images), 3.0)
        if whitening:
            rows = torch.cat([embedding, torch.ones(2, 1)], dim=1)
            rows = rows / (rows.square().sum(1, keepdim=True).sqrt() + 1e-6)
            embedding = (rows - net.whitening.pca.pca_m) @ net.whitening.pca.pca_P
        norm = embedding.square().sum(1, keepdim=True).sqrt() + 1e-6
        logits = embedding @ net.classifier.weight.T + net.classifier.bias
    torch.testing.assert_close(output["embedding"], embedding)
    torch.testing.assert_close(output["normalized_embedding"], embedding / norm)
    torch.testing.assert_close(output["classifier_output"], logits)


@pytest.mark.parametrize("whitening", [False, True])
def test_a_list_of_unequal_images_gives_what_each_gives_alone(tiny_net, whitening):
    net = whitened(tiny_net) if whitening else tiny_net
    # Shapes repeat and interleave: grouping by shape must not change the order.
    images = random_images((20, 28), (17, 40), (20, 28), (9, 9), (17, 40), (20, 28), (28, 20))
    with torch.no_grad():
        together = net(images)
        alone = [net(image[None]) for image in images]
    for key, rows in together.items():
        torch.testing.assert_close(rows, torch.cat([output[key] for output in alone]))


def test_images_of_one_shape_in_a_list_share_a_pass(tiny_net):
    batches = []
    tiny_net.features.register_forward_hook(lambda module, inputs, maps: batches.append(len(maps)))
    tiny_net(random_images((8, 8), (9, 9), (8, 8), (9, 9), (8, 8)))
    assert batches == [3, 2]


def test_gradients_reach_every_parameter_through_a_list(tiny_net):
    tiny_net.pool.p.requires_grad_(True)
    tiny_net(random_images((16, 16), (16, 24), (16, 16)))["classifier_output"].square().sum().backward()
    for name, parameter in tiny_net.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_append_one_is_a_normalised_row_with_a_constant_channel():
    rows = append_one(torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(rows, torch.tensor([[3.0, 4.0, 1.0]]) / 26**0.5)


@pytest.mark.parametrize("whitening", [False, True])
def test_the_head_runs_in_float32_under_autocast(tiny_net, whitening):
    net = whitened(tiny_net) if whitening else tiny_net
    pooled = torch.rand(4, 8)
    with torch.no_grad():
        expected = net.head(pooled)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = net.head(pooled)
            whole = net(torch.stack(random_images((16, 16))))
    for key, rows in expected.items():
        assert output[key].dtype == whole[key].dtype == torch.float32
        assert torch.equal(output[key], rows)


def test_a_whitened_state_grows_the_network(tiny_net):
    state = whitened(tiny_net).state_dict()
    fresh = copy.deepcopy(tiny_net)
    fresh.load_state_dict(state)
    images = torch.stack(random_images((16, 16)))
    with torch.no_grad():
        expected, output = whitened(tiny_net)(images), fresh.eval()(images)
    assert fresh.state_dict().keys() == state.keys()
    assert output["embedding"].shape == (1, 9)
    for key, rows in expected.items():
        assert torch.equal(output[key], rows)
    fresh.load_state_dict(whitened(tiny_net, seed=1).state_dict())  # and loads another one on top


def test_the_loaded_state_is_a_copy(tiny_net):
    state = whitened(tiny_net).state_dict()
    fresh = copy.deepcopy(tiny_net)
    fresh.load_state_dict(state)
    state["whitening.pca.pca_m"].fill_(7.0)
    assert not (fresh.whitening.pca.pca_m == 7.0).any()


def without(state, key):
    return {k: v for k, v in state.items() if k != key}


def resized(state, key, *shape):
    return state | {key: torch.zeros(shape)}


FOREIGN = {
    "missing key": (lambda s: without(s, "features.0.weight"), "lacks 1 keys .features.0.weight"),
    "missing classifier": (lambda s: without(s, "classifier.weight"), "lacks 1 keys .classifier.weight"),
    "extra key": (lambda s: s | {"features.9.weight": torch.zeros(1)}, "has 1 keys too many"),
    "missing and extra": (
        lambda s: without(s, "pool.p") | {"q": torch.zeros(1)},
        "lacks 1 keys .* and has 1 keys too many",
    ),
    "empty": (lambda s: {}, "lacks"),
    "other classes": (
        lambda s: resized(resized(s, "classifier.weight", 5, 8), "classifier.bias", 5),
        "for 5 classes, the network for 3",
    ),
    "other width": (lambda s: resized(s, "classifier.weight", 3, 16), "classifier.weight is"),
    "other kernel": (lambda s: resized(s, "features.0.weight", 8, 3, 3, 3), "features.0.weight is"),
    "half a whitening": (lambda s: s | {"whitening.pca.pca_m": torch.zeros(9)}, "lacks .*pca_P"),
    "whitening of another width": (
        lambda s: resized(
            s | {"whitening.pca.pca_m": torch.zeros(5), "whitening.pca.pca_P": torch.eye(5)},
            "classifier.weight", 3, 5,
        ),
        "not that of a tiny",
    ),
}  # fmt: skip


def check_rejected(net, state, message):
    """One line, and the network as it was."""
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=message) as caught:
        net.load_state_dict(state)
    assert "\n" not in str(caught.value)
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_state_is_rejected_in_one_line(tiny_net, case):
    spoil, message = FOREIGN[case]
    others = {k: v + 1 for k, v in tiny_net.state_dict().items()}
    check_rejected(tiny_net, spoil(others), message)


def test_a_whitened_network_rejects_an_unwhitened_state(tiny_net):
    check_rejected(whitened(tiny_net), tiny_net.state_dict(), "has no whitening but the network has")


def test_the_state_of_another_backbone_is_rejected():
    net, other = get_multigrain("resnet10", num_classes=3), get_multigrain("resnet18", num_classes=3)
    check_rejected(net, other.state_dict(), "not that of a resnet10: it has")
    check_rejected(other, net.state_dict(), "not that of a resnet18: it lacks")
    with pytest.raises(ValueError, match="not that of a resnet10"):
        net.load_state_dict(other.state_dict(), strict=False)


def test_an_own_state_loads_exactly(tiny_net):
    state = {k: v + 1 for k, v in tiny_net.state_dict().items()}
    tiny_net.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in tiny_net.state_dict().items())


def test_get_multigrain_takes_backbone_p_and_classes():
    net = get_multigrain("resnet10", p=2.0, num_classes=7, learn_p=True)
    assert isinstance(net, MultiGrain) and net.name == "resnet10" and net.width == 512
    assert net.pool.p.item() == 2.0 and net.pool.p.requires_grad
    assert net.classifier.out_features == 7 and net.whitening is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(backbone="resnet51"), "'resnet51' is unknown; one of"),
        (dict(num_classes=0), "num_classes must be at least 1, got 0"),
        (dict(num_classes=-2), "num_classes must be at least 1"),
        (dict(p=0.0), "p must be one number > 0"),
    ],
)
def test_get_multigrain_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        get_multigrain(**(dict(backbone="resnet10") | arguments))


@pytest.mark.parametrize("whitening", [False, True])
def test_a_deep_copy_computes_the_same_and_shares_nothing(tiny_net, whitening):
    net = whitened(tiny_net) if whitening else tiny_net
    images = torch.stack(random_images((16, 16)))
    twin = copy.deepcopy(net)
    with torch.no_grad():
        before = net(images)["classifier_output"]
        assert torch.equal(twin(images)["classifier_output"], before)
        for tensor in [*twin.parameters(), *twin.buffers()]:
            tensor.zero_()
        assert torch.equal(net(images)["classifier_output"], before)
