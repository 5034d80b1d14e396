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


@pytest.fixture(
    scope="module",
    params=["resnet18", "resnet50", "resnet50-whitened", "senet154", "nasnetamobile", "pnasnet5large"],
)
def released(request, reference, make_checkpoint):
    """A rebuilt checkpoint loaded into a fresh network, and what the original computes from it."""
    with np.load(reference / "expected" / f"{request.param}.npz") as arrays:
        expected = dict(arrays)
    name, _, kind = request.param.partition("-")
    state = make_checkpoint.checkpoint(name, 0, float(expected["p"]), bool(kind))["model_state"]
    with torch.device("meta"):  # random weights, to be replaced at once, would take longer than all the rest
        net = get_multigrain(name)
    net.load_state_dict(state, assign=True)
    return net.eval(), expected


def reference_input(make_checkpoint, name):
    """The images that the reference values of that name are for."""
    if name == "list0":
        shapes = [(64, 48), (50, 80)]
        return [make_checkpoint.image_batch(2 + i, 1, h, w)[0] for i, (h, w) in enumerate(shapes)]
    return make_checkpoint.image_batch(1, *map(int, name.split("x")))


def test_network_matches_the_reference_on_batches_and_lists(released, make_checkpoint, relative):
    net, expected = released
    inputs = {key.split("__")[0] for key in expected if "__" in key}
    assert len(inputs) >= 2
    for name in sorted(inputs):
        with torch.no_grad():
            output = net(reference_input(make_checkpoint, name))
        for key in (key for key in expected if key.startswith(f"{name}__")):
            assert relative(output[key.removeprefix(f"{name}__")], expected[key]) < 1e-4, key


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
    check_rejected(whitened(tiny_net), tiny_net.state_dict(), "the network is whitened, the state is not")


def test_the_state_of_another_backbone_is_rejected():
    net, other = get_multigrain("resnet8", num_classes=3), get_multigrain("resnet18", num_classes=3)
    check_rejected(net, other.state_dict(), "not that of a resnet8: it has")
    check_rejected(other, net.state_dict(), "not that of a resnet18: it lacks")
    with pytest.raises(ValueError, match="not that of a resnet8"):
        net.load_state_dict(other.state_dict(), strict=False)


def test_an_own_state_loads_exactly(tiny_net):
    state = {k: v + 1 for k, v in tiny_net.state_dict().items()}
    tiny_net.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in tiny_net.state_dict().items())


def test_get_multigrain_takes_backbone_p_and_classes():
    net = get_multigrain("resnet8", p=2.0, num_classes=7, learn_p=True)
    assert isinstance(net, MultiGrain) and net.name == "resnet8" and net.width == 256
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
        get_multigrain(**(dict(backbone="resnet8") | arguments))


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


# The NASNets' files hold the classifier twice

TWIN = "features.0.base_net.last_linear"


@pytest.fixture
def nasnet():
    torch.manual_seed(0)
    return get_multigrain("nasnetamobile", num_classes=3).eval()


def check_twins(net):
    """One classifier under two names: the same parameters, listed once."""
    state = net.state_dict()
    for kind in ("weight", "bias"):
        assert torch.equal(state[f"{TWIN}.{kind}"], state[f"classifier.{kind}"])
    assert net.get_submodule(TWIN) is net.classifier
    assert sum(w is net.classifier.weight for w in net.parameters()) == 1


@pytest.mark.parametrize("whitening", [False, True])
def test_the_twins_stay_one_through_copies_whitening_and_loading(nasnet, whitening):
    net = whitened(nasnet) if whitening else nasnet
    check_twins(net)
    assert net.classifier.weight.shape == (3, 1057 if whitening else 1056)
    twin = copy.deepcopy(net)
    check_twins(twin)
    assert twin.classifier is not net.classifier
    fresh = get_multigrain("nasnetamobile", num_classes=3)
    fresh.load_state_dict(net.state_dict())
    check_twins(fresh)
    assert torch.equal(fresh.classifier.weight, net.classifier.weight)
    fresh.load_state_dict({k: v.clone() for k, v in net.state_dict().items()}, assign=True)
    check_twins(fresh)


def test_training_changes_both_twins(nasnet):
    before = nasnet.state_dict()[f"{TWIN}.weight"].clone()
    optimizer = torch.optim.SGD(nasnet.parameters(), lr=0.1)
    nasnet(torch.stack(random_images((40, 40))))["classifier_output"].square().sum().backward()
    optimizer.step()
    check_twins(nasnet)
    assert not torch.equal(nasnet.state_dict()[f"{TWIN}.weight"], before)


@pytest.mark.parametrize("key", ["weight", "bias"])
def test_a_state_whose_twins_differ_is_rejected(nasnet, key):
    state = {k: v.clone() for k, v in nasnet.state_dict().items()}
    state[f"{TWIN}.{key}"] += 1
    check_rejected(nasnet, state, f"twice, but {TWIN}.{key} differs from classifier.{key}")


def test_a_state_without_the_twin_is_rejected(nasnet):
    check_rejected(nasnet, without(nasnet.state_dict(), f"{TWIN}.weight"), f"lacks 1 keys .{TWIN}.weight")


def test_dropout_hides_part_of_the_embedding_from_the_classifier_in_training_alone(nasnet):
    with torch.no_grad():
        nasnet.classifier.weight.fill_(1.0)
        nasnet.classifier.bias.zero_()
        pooled = torch.ones(200, 1056)
        still, moving = nasnet.head(pooled), nasnet.train().head(pooled)
    assert torch.equal(still["embedding"], moving["embedding"])
    assert (still["classifier_output"] == 1056).all()
    kept = moving["classifier_output"][:, 0] / 2  # what is kept counts double
    assert 500 < kept.mean() < 556 and kept.std() > 5
