"""The plan for a large collection against arithmetic by hand."""

from dataclasses import fields, replace

import numpy as np
import pytest

from mgkit.retrieval.indices import Measured
from mgkit.scale import GIB, Plan, Rates, made_up, measured_rates, plan, rates_of, table

RATES = Rates(
    images_per_second=100.0, dim=512, factory="IVF8,PQ4", train_seconds=36.0, adds_per_second=1000.0,
    bytes_per_vector=72.0, query_ms=0.5, vectors=200_000,
)  # fmt: skip


def test_a_plan_is_what_the_rates_say():
    planned = plan(RATES, images=10_000_000, devices=4, machine_gib=0.25)
    assert planned == Plan(
        images=10_000_000,
        devices=4,
        machines=3,  # 720 MB in shares of 268 MB
        descriptor_bytes=20_480_000_000,
        index_bytes=720_000_000,
        embed_hours=pytest.approx(10_000_000 / 100 / 4 / 3600),
        train_hours=pytest.approx(0.01),
        add_hours=pytest.approx(10_000_000 / 3 / 1000 / 3600),
        query_ms=pytest.approx(0.5 * 10_000_000 / 3 / 200_000),
    )


def test_a_collection_that_fills_a_machine_exactly_needs_no_second():
    rates = replace(RATES, bytes_per_vector=64.0)
    images = GIB // 64
    assert plan(rates, images=images, machine_gib=1).machines == 1
    assert plan(rates, images=images + 1, machine_gib=1).machines == 2


def test_every_rate_counts():
    """No figure stays what it was when the rate that it comes from doubles."""
    before = plan(RATES, machine_gib=1)
    for field in fields(Rates):
        if field.name != "factory":
            assert (
                plan(replace(RATES, **{field.name: 2 * getattr(RATES, field.name)}), machine_gib=1) != before
            )


def test_the_table_shows_figures_with_their_rates():
    text = table(RATES, plan(RATES))
    for part in ("100,000,000 images", "IVF8,PQ4", "277.8 h", "190.7 GiB", "6.7 GiB on 1 machine(s)", "250.0 ms",
                 "100.0 images/s", "1,000 vectors/s", "72.0 bytes", "merge_ondisk", "IndexShards"):  # fmt: skip
        assert part in text


def test_rates_come_from_a_comparison():
    measured = Measured("IVF8,PQ4", 0.5, 0.8, 72.0, 4000, 36.0, 200.0, 0.5, 30.0, 200_000, 512)
    assert rates_of(measured, images_per_second=100.0) == RATES


@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_what_was_not_measured_is_refused(value):
    for field in fields(Rates):
        if field.name != "factory":
            with pytest.raises(ValueError, match=f"{field.name} must be above 0"):
                replace(RATES, **{field.name: value})
    for name in ("images", "devices", "machine_gib"):
        with pytest.raises(ValueError, match=f"{name} must be above 0"):
            plan(RATES, **{name: value})


def test_made_up_descriptors_are_unit_vectors_in_clusters():
    database, queries = made_up(600, 24, queries=50, clusters=20)
    assert database.shape == (600, 24) and queries.shape == (50, 24) and database.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(database, axis=1), 1, rtol=1e-5)
    nearest = (queries @ database.T).max(axis=1)
    shuffled = np.random.default_rng(0).permuted(database, axis=1)  # the same numbers, no clusters
    assert np.median(nearest) > np.median((queries @ shuffled.T).max(axis=1)) + 0.1
    again = made_up(600, 24, queries=50, clusters=20)
    np.testing.assert_array_equal(again[0], database)


def test_rates_are_measured_there_and_then():
    rates = measured_rates("IVF8,PQ4", dim=16, count=900, queries=20, images_per_second=7.0)
    assert (rates.dim, rates.vectors, rates.images_per_second, rates.factory) == (16, 900, 7.0, "IVF8,PQ4")
    assert 12 <= rates.bytes_per_vector < 13  # four of codes, eight of an id
