"""GeM against explicit loops and the reference values; its limits and corner cases."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgkit.pooling import FLOOR, GeM, gem, l2_normalize, power


def gem_by_loops(x, p):
    """The formula, one channel of one image at a time, in float64."""
    pooled = np.zeros(x.shape[:2])
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            values = [max(float(v), FLOOR) for v in x[b, c].flatten()]
            if math.isinf(p):
                pooled[b, c] = max(values)
            else:
                pooled[b, c] = (sum(v**p for v in values) / len(values)) ** (1 / p)
    return pooled


def maps(seed, shape=(2, 3, 4, 5)):
    """Feature maps as after a ReLU: half of the values zero."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu()


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.0, 7.3, math.inf])
def test_gem_is_the_formula(p):
    x = maps(0)
    np.testing.assert_allclose(gem(x, p), gem_by_loops(x, p), rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(p=st.floats(0.3, 30), seed=st.integers(0, 1000), h=st.integers(1, 4), w=st.integers(1, 4))
def test_gem_is_the_formula_for_any_exponent_and_map(p, seed, h, w):
    x = maps(seed, (1, 2, h, w))
    np.testing.assert_allclose(gem(x, p), gem_by_loops(x, p), rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(p=st.floats(0.5, 20), more=st.floats(0.1, 20), seed=st.integers(0, 1000))
def test_gem_rises_with_p_between_mean_and_maximum(p, more, seed):
    x = maps(seed) + 0.01
    lower, higher = gem(x, p), gem(x, p + more)
    assert (lower <= higher * (1 + 1e-5)).all()
    assert (higher <= x.amax(dim=(2, 3)) * (1 + 1e-5)).all()


def signed(seed, shape=(2, 3, 4, 5)):
    """Feature maps as after a norm or SiLU, the first channel without negative values."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([x[:, :1].abs(), x[:, 1:]], dim=1)


@settings(max_examples=30, deadline=None)
@given(p=st.floats(0.3, 30), more=st.floats(1.01, 3), seed=st.integers(0, 1000))
def test_signed_maps_are_pooled_between_mean_and_maximum(p, more, seed):
    x = signed(seed)
    least = x.numpy().min((2, 3))
    offset = np.where(least < 0, least - FLOOR, 0)
    expected = gem_by_loops(x - torch.from_numpy(offset)[..., None, None], p) + offset
    pooled = gem(x, p, signed=True)
    np.testing.assert_allclose(pooled, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(gem(x, 1.0, signed=True)[:, 1:], x.mean((2, 3))[:, 1:], rtol=0, atol=1e-12)
    np.testing.assert_allclose(gem(x, math.inf, signed=True), x.amax((2, 3)), rtol=1e-12)
    assert (pooled <= gem(x, p * more, signed=True) + 1e-9).all()
    assert (pooled <= x.amax((2, 3)) + 1e-9).all()


def signed_by_loops(x, p):
    """The formula above the least activation of a channel that has negative ones, in float64."""
    least = x.double().amin((2, 3), keepdim=True)
    offset = torch.where(least < 0, least - FLOOR, 0)
    return gem_by_loops(x.double() - offset, p) + offset.flatten(1).numpy()


SIGNED = dict(
    seed=st.integers(0, 1000), h=st.integers(1, 4), w=st.integers(1, 4), scale=st.sampled_from([1e-3, 1, 1e3])
)


@settings(max_examples=40)
@given(p=st.one_of(st.floats(0.3, 30), st.just(math.inf)), **SIGNED)
def test_signed_maps_of_any_shape_and_scale_are_those_of_the_loops(p, seed, h, w, scale):
    x = (signed(seed, (2, 3, h, w)) * scale).float()
    np.testing.assert_allclose(gem(x, p, signed=True), signed_by_loops(x, p), rtol=1e-4, atol=1e-4 * scale)


@settings(max_examples=30)
@given(**SIGNED)
def test_signed_maps_with_p_1_are_averaged_and_with_p_to_infinity_go_to_the_maximum(seed, h, w, scale):
    x = signed(seed, (2, 3, h, w)).float() * scale
    mean, top = x.mean((2, 3)), x.amax((2, 3))
    # The clamp of 1e-6 is seen in a channel without negative values.
    torch.testing.assert_close(gem(x, 1.0, signed=True), mean, rtol=1e-5, atol=1e-5 * scale + 1e-6)
    torch.testing.assert_close(gem(x, math.inf, signed=True), top, rtol=1e-6, atol=1e-6 * scale)
    torch.testing.assert_close(gem(x, 1e5, signed=True), top, rtol=1e-3, atol=1e-3 * scale)


@settings(max_examples=30)
@given(p=st.floats(0.3, 30), by=st.floats(-5, 5), seed=st.integers(0, 1000))
def test_adding_a_number_to_a_channel_with_negative_values_adds_it_to_what_is_pooled(p, by, seed):
    x = signed(seed)
    both = (x.amin((2, 3)) < 0) & ((x + by).amin((2, 3)) < 0)
    moved = gem(x + by, p, signed=True) - gem(x, p, signed=True)
    torch.testing.assert_close(moved[both], torch.full_like(moved[both], by), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("p", [0.5, 1.0, 3.0, 30.0, 1e4])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4, 1e30])
def test_signed_maps_of_any_scale_have_finite_gradients_and_grow_with_p(p, scale):
    x = (signed(4) * scale).float().requires_grad_()
    slope = torch.autograd.functional.jacobian(lambda q: gem(x.detach(), q, signed=True), torch.tensor(p))
    assert slope.isfinite().all() and (slope >= -1e-5 * scale).all()
    pooled = gem(x, p, signed=True)
    pooled.sum().backward()
    assert pooled.isfinite().all() and x.grad.isfinite().all()
    weights = x.grad.sum((2, 3))  # moving a channel moves what is pooled as far
    torch.testing.assert_close(weights[:, 1:], torch.ones(2, 2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("p", [1.0, 3.0, math.inf])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_signed_maps_in_half_precision_are_pooled_in_float32(p, dtype):
    x = signed(5).to(dtype)
    pooled = gem(x, p, signed=True)
    assert pooled.dtype == torch.float32
    np.testing.assert_allclose(pooled, signed_by_loops(x, p), rtol=1e-4, atol=1e-5)


def test_an_even_channel_of_negative_values_is_pooled_to_its_value():
    x = torch.tensor([-40.0, -1e-3, 0.0])[None, :, None, None].expand(1, 3, 3, 4)
    for p in (0.5, 1.0, 3.0, 100.0, math.inf):
        torch.testing.assert_close(gem(x, p, signed=True)[0], x[0, :, 0, 0], rtol=1e-6, atol=2e-6)


def test_maps_without_negative_values_are_pooled_as_by_the_formula_alone():
    for p in (0.5, 1.0, 2.5, 3.0, 8.0):
        x = maps(3, (4, 8, 7, 9))
        held = x.clamp(min=FLOOR)
        top = held.amax((2, 3), keepdim=True)
        expected = (held / top).pow(p).mean((2, 3)).pow(1 / p) * top.flatten(1)
        torch.testing.assert_close(gem(x, p), expected, rtol=1e-6, atol=0)
        assert torch.equal(gem(x, p, signed=True), gem(x, p))


@pytest.mark.parametrize("p", [0.3, 0.5, 1, 1.5, 2.0, 2.5, 2.7, 3, 3.5, 4, 5, 6.5, 7, 8, 31, 100.5])
def test_powers_and_their_gradients_are_those_of_torch_in_float64(p):
    x = torch.linspace(0.01, 1.0, 2000, dtype=torch.float64).requires_grad_()
    exponent = torch.tensor(float(p), dtype=torch.float64, requires_grad=True)
    expected = x.pow(exponent)
    gradients = torch.autograd.grad(expected.sum(), (x, exponent))
    for own in (p, exponent):
        found = power(x, own)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        wanted = (x, exponent) if own is exponent else (x,)
        for gradient, of_torch in zip(torch.autograd.grad(found.sum(), wanted), gradients, strict=False):
            torch.testing.assert_close(gradient, of_torch, rtol=1e-12, atol=0)
    torch.testing.assert_close(power(x.float(), p).double(), expected, rtol=1e-4, atol=1e-38)


def test_signed_maps_and_p_have_the_gradients_of_finite_differences():
    x, p = (
        signed(5, (1, 3, 2, 3)).requires_grad_(),
        torch.tensor(2.5, dtype=torch.float64, requires_grad=True),
    )
    assert torch.autograd.gradcheck(lambda x, p: gem(x, p, signed=True), (x, p), eps=1e-8, atol=1e-4)


@pytest.mark.parametrize("p", ["1.0", "2.0", "3.0", "4.5"])
def test_gem_and_its_gradients_match_the_reference(pieces, relative, p):
    x = torch.from_numpy(pieces["gem__input"]).requires_grad_()
    exponent = torch.tensor(float(p), requires_grad=True)
    pooled = gem(x, exponent)
    pooled.backward(torch.arange(x.shape[1], dtype=torch.float32).expand_as(pooled))
    assert relative(pooled, pieces[f"gem__p{p}__output"]) < 1e-5
    assert relative(x.grad, pieces[f"gem__p{p}__grad_input"]) < 1e-5
    assert relative(exponent.grad, pieces[f"gem__p{p}__grad_p"]) < 1e-5


def test_max_pooling_matches_the_reference(pieces, relative):
    x = torch.from_numpy(pieces["gem__input"])
    assert relative(gem(x, math.inf), pieces["gem__pinf__output"]) < 1e-5


def test_gradients_match_finite_differences():
    x = maps(3, (1, 2, 2, 3)).double() + 0.1
    p = torch.tensor(2.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gem, (x.requires_grad_(), p))


def slope_by_formula(x, p):
    """d/dp m^(1/p) = m^(1/p) · (m'/(p m) - log m / p²), m = mean of x^p, m' = mean of x^p log x, [B,C]."""
    x = x.double().clamp(min=FLOOR)
    mean, of_mean = x.pow(p).mean((2, 3)), (x.pow(p) * x.log()).mean((2, 3))
    return mean.pow(1 / p) * (of_mean / (p * mean) - mean.log() / p**2)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("p", [0.5, 1.0, 2.5, 3.0, 8.0, 30.0])
def test_the_slope_in_p_is_that_of_the_formula(p, scale):
    x = (maps(7).double() * scale).float()
    slope = torch.autograd.functional.jacobian(lambda q: gem(x, q), torch.tensor(p))  # [B,C]
    torch.testing.assert_close(slope.double(), slope_by_formula(x, p), rtol=1e-4, atol=1e-6 * scale)


def test_the_slope_of_zero_and_of_even_maps_is_zero():
    for x in (torch.zeros(1, 2, 3, 3), torch.full((1, 2, 3, 3), 0.7)):
        slope = torch.autograd.functional.jacobian(lambda q, x=x: gem(x, q), torch.tensor(3.0))
        torch.testing.assert_close(slope, torch.zeros(1, 2), rtol=0, atol=1e-7)


@pytest.mark.parametrize("p", [1.0, 3.0, math.inf])
def test_zero_maps_pool_to_the_floor(p):
    x = torch.zeros(1, 2, 3, 3, requires_grad=True)
    pooled = gem(x, p)
    pooled.sum().backward()
    torch.testing.assert_close(pooled, torch.full((1, 2), FLOOR))
    assert x.grad.isfinite().all()


def test_p_has_a_finite_gradient_at_zero_activations():
    p = torch.tensor(3.0, requires_grad=True)
    gem(maps(1), p).sum().backward()
    assert p.grad.isfinite() and p.grad > 0


@pytest.mark.parametrize("p", [10.0, 100.0, 1e4])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4, 1e30])
def test_large_powers_of_any_activation_stay_finite(p, scale):
    x = ((maps(2).double() + 0.5) * scale).float().requires_grad_()
    exponent = torch.tensor(p, requires_grad=True)
    pooled = gem(x, exponent)
    pooled.sum().backward()
    assert pooled.isfinite().all() and x.grad.isfinite().all() and exponent.grad.isfinite()
    maximum = x.detach().amax(dim=(2, 3))
    assert (pooled <= maximum * (1 + 1e-5)).all()
    assert (pooled >= maximum * 20 ** (-1 / p) * (1 - 1e-4)).all()  # 20 = h·w


def test_large_p_tends_to_the_maximum():
    x = maps(4)
    torch.testing.assert_close(gem(x, 1e5), gem(x, math.inf), rtol=1e-4, atol=0)


@pytest.mark.parametrize("p", [1.0, 3.0, math.inf])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_pool_to_float32(p, dtype):
    x = maps(5).to(dtype)
    pooled = gem(x, p)
    assert pooled.dtype == torch.float32
    np.testing.assert_allclose(pooled, gem_by_loops(x, p), rtol=1e-4)


@pytest.mark.parametrize(
    "p", [0, -1, -math.inf, math.nan, torch.tensor(0.0), torch.tensor(math.nan), torch.tensor([2.0, 3.0])]
)
def test_exponents_that_are_not_one_positive_number_are_rejected(p):
    with pytest.raises(ValueError, match="p must be one number > 0"):
        gem(maps(0), p)


@pytest.mark.parametrize("p", [0.0, -2.0, math.nan])
def test_the_module_rejects_the_same_exponents(p):
    with pytest.raises(ValueError, match="p must be one number > 0"):
        GeM(p)


def test_module_keeps_p_in_its_state_and_freezes_it_by_default():
    pool = GeM(2.5)
    assert list(pool.state_dict()) == ["p"] and not pool.p.requires_grad
    assert GeM(2.5, learn_p=True).p.requires_grad
    torch.testing.assert_close(pool(maps(0)), gem(maps(0), 2.5))
    both = signed(0).float()
    assert torch.equal(GeM(2.5, signed=True)(both), gem(both, 2.5, signed=True))
    assert torch.equal(GeM(2.5, signed=True)(both, 4.0), gem(both, 4.0, signed=True))
    assert copy.deepcopy(pool).p.item() == 2.5
    assert "p=2.5" in repr(pool)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e6))
def test_normalised_rows_divide_by_norm_plus_1e_6(seed, scale):
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)) * scale
    expected = np.stack([row / (math.sqrt(sum(v * v for v in row)) + 1e-6) for row in x.double().numpy()])
    np.testing.assert_allclose(l2_normalize(x), expected, rtol=1e-5)


def test_a_zero_row_normalises_to_zero_with_a_finite_gradient():
    x = torch.zeros(1, 4, requires_grad=True)
    y = l2_normalize(x)
    y.sum().backward()
    assert (y == 0).all() and x.grad.isfinite().all()
