"""Query expansion and re-ranking on descriptors: αQE, database augmentation, k-reciprocal sets, diffusion.

Everything rests on the nearest neighbours that `top_k` finds, so memory is bounded by their number, not by
N². Descriptors are L2-normalised, float32, and may be memory-mapped.

A query may be one of the database images: `own` [Q] holds its row, -1 for a query that is not in the database
(None: no query is). The row of a query is not among its neighbours. Queries do not affect each other.
"""

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import cg

from mgkit.retrieval.neighbours import Blocks, check, collected, nearest
from mgkit.retrieval.search import as_float32, inner_products, similarities, slices

GATHERED = 64 * 2**20  # bytes of database rows gathered at a time
ENCODED = 4096  # images encoded at a time
ACCURACY = 1e-6  # of a diffused score, relative to the query's largest


# --- Expansion


def alpha_query_expansion(
    queries: np.ndarray, database: np.ndarray, k: int, alpha: float, *, own: np.ndarray | None = None
) -> np.ndarray:
    """Add to each query its k nearest rows, weighted by similarity^alpha, and L2-normalise: αQE, [Q,D].

    queries, database: descriptors ([Q,D], [N,D])
    k: number of neighbours
    alpha: exponent; negative similarities count as 0. With alpha = 0 all weights are 1: average query
    expansion (Chum et al. 2007)
    own: rows of the queries in the database ([Q]), see above; the query itself has weight 1
    Raises ValueError for a k, alpha or own out of range, unequal D, or non-finite descriptors.
    Radenović et al., arXiv 1711.02512, section 3.4.
    """
    own = check(queries, database, own, k=k)
    if not 0 <= alpha < np.inf:
        raise ValueError(f"alpha must be a finite number of at least 0, got {alpha}")
    near = nearest(queries, database, k, own)
    expanded = np.empty(queries.shape, np.float32)
    for part in slices(len(queries), max(1, GATHERED // (4 * k * database.shape[1]))):
        weights = near.found[part] * np.maximum(near.scores[part], 0) ** np.float32(alpha)  # [q,k]
        rows = as_float32(database[near.rows[part]])  # [q,k,D]
        expanded[part] = queries[part] + np.einsum("qk,qkd->qd", weights, rows)
        norms = np.linalg.norm(expanded[part], axis=1, keepdims=True)
        expanded[part] /= np.where(norms > 0, norms, 1)
    return expanded


def database_augmentation(database: np.ndarray, k: int, alpha: float) -> np.ndarray:
    """Replace each row by the weighted sum of itself and its k nearest others, L2-normalised: DBA, [N,D].

    database, k, alpha: as for `alpha_query_expansion`
    The weights are those of αQE. Arandjelović and Zisserman (CVPR 2012) give all neighbours the same weight,
    as alpha = 0 does; Gordo et al. (arXiv 1610.07940) let it fall with the rank.
    Raises ValueError as `alpha_query_expansion`.
    """
    return alpha_query_expansion(database, database, k, alpha, own=np.arange(len(database)))


# --- k-reciprocal encoding


def k_reciprocal(
    queries: np.ndarray,
    database: np.ndarray,
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
    *,
    own: np.ndarray | None = None,
) -> np.ndarray:
    """Return the distances [Q,N] of `k_reciprocal_blocks` in one array."""
    blocks = k_reciprocal_blocks(queries, database, k1, k2, lambda_, own=own)
    return collected(blocks, np.empty((len(queries), len(database)), np.float32))


def k_reciprocal_blocks(
    queries: np.ndarray,
    database: np.ndarray,
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
    *,
    own: np.ndarray | None = None,
) -> Blocks:
    """Yield k-reciprocal distances by blocks of queries: (slice of queries, distances [q,N] float32).

    It is (1 - lambda_) · the Jaccard distance of k-reciprocal neighbours + lambda_ · (1 - similarity).

    queries, database: descriptors ([Q,D], [N,D])
    k1: number of neighbours among which reciprocal ones are sought
    k2: images over which encodings are averaged, the image itself included; 1: no average
    lambda_: weight of the original distance (0..1)
    own: rows of the queries in the database ([Q]), see above
    Needs the neighbours of all N rows, found before the first block.
    Where the paper is silent, it follows the authors' program: an image is the first of its own neighbours,
    and the weights of its neighbours sum to 1. That program also takes each query for a neighbour of the
    others: so does this, given queries and database as one, with `own`. It divides the distances by each
    row's largest; here they are 1 - similarity, so lambda_ weighs a little differently.
    Raises ValueError for a k1, k2, lambda_ or own out of range, unequal D, or non-finite descriptors.
    Zhong et al., arXiv 1701.08398, section 3.
    """
    own = check(queries, database, own, k1=k1, k2=k2)
    if not 0 <= lambda_ <= 1:
        raise ValueError(f"lambda_ must be between 0 and 1, got {lambda_}")
    of_queries, of_database = encode(queries, database, k1, k2, own)
    inverted = of_database.T.tocsr()  # column -> images
    return (
        (part, jaccard_mixed(scores, of_queries[part], inverted, lambda_))
        for part, scores in similarities(queries, database)
    )


def jaccard_mixed(
    scores: np.ndarray, encoded: sparse.csr_array, inverted: sparse.csr_array, lambda_: float
) -> np.ndarray:
    """Turn similarities [q,N] into final distances, in place; encoded: the queries' rows ([q,N])."""
    scores *= -lambda_
    scores += lambda_
    for q, mixed in enumerate(scores):
        of_query = slice(*encoded.indptr[q : q + 2])
        own, images = encoded.data[of_query], inverted[encoded.indices[of_query]]
        least = np.minimum(images.data, own.repeat(np.diff(images.indptr)))
        common = np.bincount(images.indices, least, minlength=len(mixed))  # Σ min [N]
        # Σ max = Σ of both - Σ min; the weights of a database image sum to 1.
        mixed += (1 - lambda_) * (1 - common / (own.sum() + 1 - common))
    return scores


def encode(
    queries: np.ndarray, database: np.ndarray, k1: int, k2: int, own: np.ndarray
) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Return the averaged weights of k-reciprocal neighbours, of queries [Q,N] and database [N,N]."""
    count, kept = len(database), min(max(k1, k2 - 1), len(database))
    near = nearest(database, database, kept, np.arange(count))
    itself = sparse.eye_array(count, dtype=np.float32, format="csr")
    listed, half, averaged = (itself + near.lists(k, count) for k in (k1, round(k1 / 2), k2 - 1))
    half = half.multiply(half.T).tocsr()
    single = reciprocal_weights(database, database, listed.multiply(listed.T).tocsr(), half)
    encoded = row_means(averaged @ single, averaged.sum(1))

    inside, outside = np.flatnonzero(own >= 0), np.flatnonzero(own < 0)
    others = queries[outside]
    near_others = nearest(others, database, kept, own[outside])
    # The query is among the k1 nearest of an image if it is nearer than the last, or if there are fewer.
    last = np.where(near.found[:, k1 - 1], near.scores[:, k1 - 1], -np.inf)
    reciprocal = near_others.lists(k1, count, kept=near_others.scores > last[near_others.rows])
    averaged = near_others.lists(k2 - 1, count)
    single = averaged @ single + reciprocal_weights(others, database, reciprocal, half)
    joined = sparse.vstack([encoded[own[inside]], row_means(single, 1 + averaged.sum(1))], format="csr")
    return joined[np.argsort(np.concatenate([inside, outside]))], encoded


def reciprocal_weights(
    queries: np.ndarray, database: np.ndarray, reciprocal: sparse.csr_array, half: sparse.csr_array
) -> sparse.csr_array:
    """Return exp(similarity) over the expanded k-reciprocal sets, each row with sum 1: [Q,N].

    reciprocal: k1-reciprocal sets of the queries ([Q,N], 1 or nothing)
    half: those of the database images for half of k1 ([N,N])
    """
    sizes = half.sum(1)
    rows = [sparse.csr_array((0, len(database)), dtype=np.float32)]
    for part in slices(len(queries), ENCODED):
        sets = expanded_sets(reciprocal[part], half, sizes)
        q = np.arange(sets.shape[0]).repeat(np.diff(sets.indptr))
        scores = inner_products(as_float32(queries[part]), database, q, sets.indices)
        sets.data = np.exp(scores - 1).astype(np.float32)
        rows.append(row_means(sets, sets.sum(1)))
    return sparse.vstack(rows, format="csr")


def expanded_sets(
    reciprocal: sparse.csr_array, half: sparse.csr_array, sizes: np.ndarray
) -> sparse.csr_array:
    """Unite each set with the half-sized sets of its members of which it holds two thirds (equation 4)."""
    common = (reciprocal @ half).multiply(reciprocal).tocsr()  # `half` is symmetric
    common.data = (3 * common.data >= 2 * sizes[common.indices]).astype(np.float32)
    common.eliminate_zeros()
    united = (reciprocal + common @ half).tocsr()
    united.sort_indices()
    return united


def row_means(sums: sparse.csr_array, counts: np.ndarray) -> sparse.csr_array:
    """Divide each row [Q,N] by its count [Q], in place."""
    sums.data /= counts.repeat(np.diff(sums.indptr))
    return sums


# --- Diffusion


def diffusion(
    queries: np.ndarray, database: np.ndarray, k: int = 50, *, own: np.ndarray | None = None, **options
) -> np.ndarray:
    """Return the scores [Q,N] of `diffusion_blocks`, which has the options, in one array."""
    blocks = diffusion_blocks(queries, database, k, **options, own=own)
    return collected(blocks, np.empty((len(queries), len(database)), np.float32))


def diffusion_blocks(
    queries: np.ndarray,
    database: np.ndarray,
    k: int = 50,
    *,
    query_k: int = 10,
    gamma: float = 3.0,
    alpha: float = 0.99,
    truncation: int = 1000,
    own: np.ndarray | None = None,
) -> Blocks:
    """Yield diffused scores by blocks of queries: (slice of queries, scores [q,N] float32).

    The database images are nodes of a graph, with an edge of weight similarity^gamma between two images that
    are among each other's k nearest. A query starts at its own node, or, if it is not in the database, at its
    query_k nearest images with similarity^gamma. Diffusion solves (I - alpha S) f = start, where S is the
    graph, cut to the query's nearest images and then normalised symmetrically, D^-1/2 A D^-1/2.

    queries, database: descriptors ([Q,D], [N,D])
    k, query_k: number of neighbours of an image, and of a query that is not in the database
    gamma: exponent > 0; negative similarities count as 0
    alpha: weight of the graph (0 <= alpha < 1)
    truncation: number of images of a query's graph; all N, if there are fewer
    own: rows of the queries in the database ([Q]), see above
    Images that diffusion reaches score 0 to 1 above the query's largest similarity, in the order of f; others
    keep their similarity. Needs the neighbours of all N rows, found before the first block. The defaults are
    the paper's, and that of truncation is of the code by Yang et al. (github.com/fyang93/diffusion). They are
    for sets where a query has tens of answers or more; others want a smaller alpha or k, or a larger gamma.
    Raises ValueError for a parameter out of range, unequal D, or non-finite descriptors.
    Iscen et al., arXiv 1611.05113, sections 3 and 4.
    """
    own = check(queries, database, own, k=k, query_k=query_k)
    if truncation < query_k:
        raise ValueError(f"truncation must be at least query_k = {query_k}, got {truncation}")
    if not 0 < gamma < np.inf or not 0 <= alpha < 1:
        raise ValueError(f"gamma must be above 0 and alpha in 0 <= alpha < 1, got {gamma} and {alpha}")
    graph = affinities(database, k, gamma)

    def diffused(part: slice, scores: np.ndarray) -> np.ndarray:
        for row, place in zip(scores, own[part], strict=True):
            images = shortlist(row, truncation, place)
            start = np.zeros(len(images))
            first = query_k if place < 0 else 1
            start[:first] = np.maximum(row[images[:first]], 0) ** gamma
            f = solved(graph[images][:, images], start, alpha)
            reached = f > ACCURACY * f.max()
            row[images[reached]] = row.max() + f[reached] / f.max()
        return scores

    return ((part, diffused(part, scores)) for part, scores in similarities(queries, database))


def affinities(database: np.ndarray, k: int, gamma: float) -> sparse.csr_array:
    """Return similarity^gamma of images that are among each other's k nearest, [N,N]."""
    near = nearest(database, database, k, np.arange(len(database)))
    powers = np.maximum(near.scores, 0) ** np.float32(gamma)
    graph = near.lists(k, len(database), values=powers)
    return graph.minimum(graph.T).tocsr()


def shortlist(scores: np.ndarray, count: int, own: int) -> np.ndarray:
    """Return the rows of the `count` best scores [N], best first, ties by index; own row first, if any."""
    scores = scores.copy()
    if own >= 0:
        scores[own] = np.inf
    if count < len(scores):
        least = np.partition(scores, -count)[-count]
        above, equal = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
        rows = np.sort(np.concatenate([above, equal[: count - len(above)]]))
    else:
        rows = np.arange(len(scores))
    return rows[np.argsort(-scores[rows], kind="stable")]


def solved(graph: sparse.csr_array, start: np.ndarray, alpha: float) -> np.ndarray:
    """Return f [n] of (I - alpha D^-1/2 A D^-1/2) f = start [n], A being the graph [n,n]."""
    degrees = graph.sum(1, dtype=np.float64)
    scale = np.divide(1, np.sqrt(degrees), out=np.zeros(len(start)), where=degrees > 0)
    normalised = graph.multiply(scale).multiply(scale[:, None])
    f, _ = cg(sparse.eye_array(len(start)) - alpha * normalised, start, rtol=1e-8)
    return f
