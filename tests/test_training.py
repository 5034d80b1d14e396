"""The optimizer and its learning rates."""

import pytest

from mgkit.losses import JointLoss
from mgkit.model import get_multigrain
from mgkit.training import build_optimizer, learning_rate, set_learning_rate


def test_the_learning_rate_drops_after_the_epochs_of_the_released_loop(config):
    released = config(lr=0.2, lr_drops=[30, 60, 90])
    expected = {0: 0.2, 30: 0.2, 31: 0.02, 60: 0.02, 61: 0.002, 90: 0.002, 91: 0.0002, 119: 0.0002}
    assert {epoch: learning_rate(released, epoch) for epoch in expected} == pytest.approx(expected)


def test_beta_has_its_own_rate_and_no_weight_decay(config):
    settings = config(lr=0.2, beta_lr=0.1, weight_decay=1e-4, lr_drops=[0])
    net, loss = get_multigrain("resnet8", num_classes=12), JointLoss()
    optimizer = build_optimizer(net, loss, settings)
    [of_beta] = [g for g in optimizer.param_groups if any(w is loss.margin_loss.beta for w in g["params"])]
    [of_net] = [g for g in optimizer.param_groups if g is not of_beta]
    assert len(of_beta["params"]) == 1
    assert (of_beta["weight_decay"], of_net["weight_decay"]) == (0.0, 1e-4)
    trained = {id(w) for w in of_net["params"]}
    assert trained == {id(w) for w in net.parameters() if w is not net.pool.p}
    for epoch, rate in [(0, 0.2), (1, 0.02)]:
        set_learning_rate(optimizer, settings, epoch)
        assert (of_net["lr"], of_beta["lr"]) == pytest.approx((rate, 0.1 * rate))
