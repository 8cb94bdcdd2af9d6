"""Clusters: labels partition the ids, by every method; each method is what it is called."""

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage

from gentok.generators import clusters
from gentok.generators.clusters import CLUSTERINGS, cluster
from gentok.rng import RowRNG


def table(rows=60, dim=3, seed=0):
    return RowRNG([seed]).normal(rows, dim)[0].float()


def means(rows, labels, count):
    return torch.stack([rows[labels == c].double().mean(0) for c in range(count)])


def spread(rows, labels, count):
    """The summed squared distance to the means."""
    return float((rows.double() - means(rows, labels, count)[labels]).square().sum())


@pytest.mark.parametrize("method", CLUSTERINGS)
@pytest.mark.parametrize(
    "rows",
    [table(), table(61), table(7, 1), torch.zeros(9, 2), table(4, 2).repeat(5, 1)],
    ids=["even", "odd", "scalars", "all alike", "four"],
)
def test_labels_partition_the_ids_and_are_numbered_by_the_first(method, rows):
    for count in {1, 2, min(5, len(rows)), len(rows) - 1, len(rows)}:
        labels = cluster(rows, count, method, seed=3)
        assert labels.dtype == torch.int64 and labels.unique().tolist() == list(range(count))
        first = [int((labels == c).nonzero()[0]) for c in range(count)]
        assert first == sorted(first)
        assert torch.equal(labels, cluster(rows, count, method, seed=3)), "deterministic by the seed"
        if method in ("balanced", "random"):
            sizes = labels.bincount()
            assert int(sizes.max() - sizes.min()) <= (len(rows) % count > 0)
    assert cluster(rows, len(rows), method).tolist() == list(range(len(rows))), "a label is an id"


def test_the_seed_decides_what_is_random():
    for method in ("kmeans", "balanced", "random"):
        assert len({tuple(cluster(table(), 12, method, seed).tolist()) for seed in range(6)}) > 1, method


def test_k_means_ends_where_every_row_is_nearest_to_its_own_mean_and_is_better_than_chance():
    rows = table(300)
    labels = cluster(rows, 20, "kmeans")
    assert torch.equal(torch.cdist(rows.double(), means(rows, labels, 20)).argmin(1), labels)
    assert spread(rows, labels, 20) < spread(rows, cluster(rows, 20, "balanced"), 20) < 0.5 * spread(rows, cluster(rows, 20, "random"), 20)
    wrong = labels.clone()
    wrong[0] = (wrong[0] + 1) % 20
    assert not torch.equal(torch.cdist(rows.double(), means(rows, wrong, 20)).argmin(1), wrong)


def blocking(distance, labels):
    """Pairs of a row and a centre that both would rather have each other: none in a stable matching."""
    own = distance.gather(1, labels[:, None])
    farthest = torch.stack([distance[labels == c, c].max() for c in range(distance.shape[1])])
    return int(((distance < own) & (distance < farthest)).sum())


@pytest.mark.parametrize("rows, count", [(40, 5), (41, 5), (30, 30), (64, 2), (200, 23)])
def test_rows_and_centres_are_matched_stably(rows, count):
    distance = RowRNG([rows]).uniform(rows, count)[0]
    places = torch.full((count,), rows // count) + (torch.arange(count) < rows % count)
    labels = clusters._stable_match(distance, places)
    assert torch.equal(labels.bincount(minlength=count), places) and blocking(distance, labels) == 0
    other = labels.clone()
    a, b = 0, int((labels != labels[0]).nonzero()[0])
    other[a], other[b] = labels[b], labels[a]
    assert blocking(distance, other) > 0


@pytest.mark.parametrize("rows, count", [(40, 5), (200, 31), (50, 49), (33, 2)])
def test_agglomerative_is_scipys_ward(rows, count):
    vectors = table(rows, 4, seed=rows)
    ours = cluster(vectors, count, "agglomerative")
    theirs = fcluster(linkage(vectors.double().numpy(), "ward"), count, "maxclust")
    assert len(set(zip(ours.tolist(), theirs.tolist()))) == count == len(set(theirs.tolist()))
    single = fcluster(linkage(vectors.double().numpy(), "single"), count, "maxclust")
    assert count > 40 or len(set(zip(ours.tolist(), single.tolist()))) > count


def test_wrong_requests_are_one_line():
    for arguments, line in (
        ((table(), 61), "61 clusters of 60 ids: choose 1 to 60"),
        ((table(), 0), "0 clusters"),
        ((table(), 3, "meanshift"), "kmeans, balanced, agglomerative, random; got 'meanshift'"),
        ((torch.full((4, 2), np.nan), 2), "NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            cluster(*arguments)
        assert "\n" not in str(error.value)
