"""What a large collection needs in storage, machines and hours, computed from rates that a run measured."""

from dataclasses import dataclass, fields

import numpy as np

from mgkit.retrieval.indices import Measured, compare

GIB = 2**30


@dataclass(frozen=True)
class Rates:
    """What a run measured; no field has a default, so that no figure is made up.

    images_per_second: embedded by one device. dim: of a descriptor. factory: of the index; train_seconds: to train it, once;
    adds_per_second: rows that one machine adds to it; bytes_per_vector: of the index as written. query_ms: a query on one
    machine, measured against so many `vectors`.
    """

    images_per_second: float
    dim: int
    factory: str
    train_seconds: float
    adds_per_second: float
    bytes_per_vector: float
    query_ms: float
    vectors: int

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "factory" and not value > 0:
                raise ValueError(f"rates: {field.name} must be above 0, as measured, got {value}")


@dataclass(frozen=True)
class Plan:
    """What `images` images need: bytes on disk and in memory, machines, hours of work, and milliseconds a query.

    embed_hours: on all devices together; train_hours: on one machine; add_hours: on all machines at once. query_ms: with as
    many rows on each machine as it gets, all machines answering at once.
    """

    images: int
    devices: int
    machines: int
    descriptor_bytes: float
    index_bytes: float
    embed_hours: float
    train_hours: float
    add_hours: float
    query_ms: float


def made_up(
    count: int, dim: int, *, queries: int, clusters: int = 2000, spread: float = 0.6, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Stand-ins for descriptors, L2-normalised: database [count,dim] and queries [queries,dim], float32.

    Neither uniform nor isotropic, for compression lives on that: clusters whose centres and rows both have variances that fall as
    1/i over the principal directions (as the spectra of embeddings do, roughly), rows with `spread` times the centres', and all
    turned so that no direction is a coordinate.
    """
    random = np.random.default_rng(seed)
    spectrum = np.arange(1, dim + 1, dtype=np.float32) ** -0.5
    turned = np.linalg.qr(random.standard_normal((dim, dim)))[0].astype(np.float32)
    centres = random.standard_normal((clusters, dim), dtype=np.float32) * spectrum

    def drawn(n: int) -> np.ndarray:
        rows = random.standard_normal((n, dim), dtype=np.float32) * (spread * spectrum)
        rows += centres[random.integers(0, clusters, n)]
        return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True) @ turned)

    return drawn(count), drawn(queries)


def measured_rates(
    factory: str, *, dim: int, images_per_second: float, count: int = 50_000, queries: int = 200
) -> Rates:
    """The rates of an index over `count` made-up descriptors, measured there and then; images_per_second: of embedding."""
    database, asking = made_up(count, dim, queries=queries)
    return rates_of(compare([factory], database, asking, repeats=1)[-1], images_per_second=images_per_second)


def rates_of(measured: Measured, *, images_per_second: float) -> Rates:
    """The rates of an index that `ann.compare` measured, with those of embedding on one device."""
    return Rates(
        images_per_second, measured.dim, measured.factory, measured.train_seconds,
        measured.count / measured.add_seconds, measured.bytes_per_vector, measured.query_ms, measured.count,
    )  # fmt: skip


def plan(rates: Rates, *, images: int = 100_000_000, devices: int = 1, machine_gib: float = 64.0) -> Plan:
    """Storage, machines and hours for `images` images, everything in proportion to what was measured.

    devices: that embed side by side. machine_gib: memory of a machine for its share of the index. A query's time is taken to
    grow with the rows of a machine, as with the same lists and nprobe: an upper bound, for more lists make it shorter and
    training longer, which is to be measured with their factory string. Raises ValueError for amounts not above 0.
    """
    for name, value in [("images", images), ("devices", devices), ("machine_gib", machine_gib)]:
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    index_bytes = images * rates.bytes_per_vector
    machines = max(1, int(-(-index_bytes // (machine_gib * GIB))))
    share = images / machines
    return Plan(
        images=images,
        devices=devices,
        machines=machines,
        descriptor_bytes=4.0 * rates.dim * images,
        index_bytes=index_bytes,
        embed_hours=images / rates.images_per_second / devices / 3600,
        train_hours=rates.train_seconds / 3600,
        add_hours=share / rates.adds_per_second / 3600,
        query_ms=rates.query_ms * share / rates.vectors,
    )


SHARDING = """\
faiss's own way: train the index once on a sample (ann.trained_index) and give every machine the empty index; each adds its share
with add_with_ids under the images' own numbers (ann.add(..., ids=...)) and writes a shard. Then either every machine keeps its shard
in memory and faiss.IndexShards asks all of them (across machines: faiss.contrib.client_server), which is what the line on
memory counts; or faiss.contrib.ondisk.merge_ondisk joins the shards' lists in one file on one machine's disk."""


def table(rates: Rates, planned: Plan) -> str:
    """The plan as text: each figure with the rate it comes from, and how faiss shares the work."""
    lines = [
        (
            "embedding",
            f"{planned.embed_hours:,.1f} h on {planned.devices} device(s)",
            f"{rates.images_per_second:,.1f} images/s a device",
        ),
        ("descriptors on disk", f"{planned.descriptor_bytes / GIB:,.1f} GiB", f"{rates.dim} × float32"),
        ("training, once", f"{planned.train_hours:,.2f} h on 1 machine", f"{rates.train_seconds:,.1f} s"),
        (
            "adding",
            f"{planned.add_hours:,.2f} h on {planned.machines} machine(s)",
            f"{rates.adds_per_second:,.0f} vectors/s a machine",
        ),
        (
            "index in memory",
            f"{planned.index_bytes / GIB:,.1f} GiB on {planned.machines} machine(s)",
            f"{rates.bytes_per_vector:,.1f} bytes a vector",
        ),
        (
            "a query",
            f"{planned.query_ms:,.1f} ms",
            f"{rates.query_ms:,.3f} ms against {rates.vectors:,} vectors",
        ),
    ]
    head = f"{planned.images:,} images, index {rates.factory}"
    return "\n".join([head, *(f"{what:22}{needs:32}from {rate}" for what, needs, rate in lines), SHARDING])
