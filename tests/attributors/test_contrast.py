"""The regression behind DF-RISE's contrast form: a slow definition, a contrast known in closed form, and its errors."""

from itertools import product

import numpy as np
import pytest

from denoscope.attributors import regression
from denoscope.attributors.estimators import MaskMoments, keep_contrast, regressed_contrast
from denoscope.attributors.masks import GridMasks
from denoscope.attributors.regression import Modes

SHAPE = (8, 12)
COARSE = GridMasks()


def drawn(seed, count, shape=SHAPE, masks=COARSE):
    return next(masks.stream(shape, seed, count, count)).astype(float)


def moments_of(masks, scores, modes):
    return MaskMoments.zero(masks.shape[1:], modes=modes).with_masks(masks, scores)


@pytest.fixture(scope="module")
def modes():
    return Modes.of(GridMasks(), SHAPE)


@pytest.fixture(scope="module")
def curved():
    """A score with linear, pairwise and cubic parts, of pictures or clips."""
    rng = np.random.default_rng(5)
    a, b, c = rng.normal(size=(3, 96)) / 10
    linear = 3 * a + 2 * np.exp(-((np.arange(96) - 40) ** 2) / 200) / 10

    def score(masks):
        m = masks.reshape(len(masks), -1) - 0.5
        return 1 + m @ linear + (m @ a) * (m @ b) + (m @ c) ** 3

    return score


@pytest.mark.parametrize(
    ("masks", "shape"),
    [
        (GridMasks(), SHAPE),
        (GridMasks(3, 0.3), (9, 10)),
        (GridMasks(2), (3, 6, 5)),
        (GridMasks(2), (2, 5, 4)),
    ],
)
def test_the_covariance_is_that_of_every_shift_of_every_cell(masks, shape):
    """Cov(M) = p (1 − p) mean over shifts of Σ_cells W Wᵀ, with W read off masks of one cell, each shift by hand."""
    spans = [-(-side // masks.cells) for side in shape]
    if len(shape) == 3 and shape[0] <= masks.cells:
        spans[0] = 1
    grid, total = masks._grid(shape), 0
    for starts in np.ndindex(*spans):
        for cell in np.ndindex(*grid):
            axes = []
            for side, start, k, count in zip(shape, starts, cell, grid, strict=True):
                places = (start + np.arange(side) + 0.5) * masks.cells / ((masks.cells + 1) * -(-side // masks.cells))
                nodes = np.eye(count)[k]
                whole = len(shape) == 3 and len(axes) == 0 and side <= masks.cells
                axes.append(nodes if whole else np.interp(places - 0.5, np.arange(count), nodes))
            W = axes[0]
            for axis in axes[1:]:
                W = np.multiply.outer(W, axis)
            total = total + np.outer(W, W)
    expected = masks.keep * (1 - masks.keep) * total / np.prod(spans)
    law = masks.law(shape)
    found = law.covariances[0]
    for matrix in law.covariances[1:]:
        found = np.kron(found, matrix)
    assert np.allclose(found, expected, atol=1e-6) and law.keep == masks.keep


def test_modes_are_uncorrelated_and_hold_the_masks(modes):
    masks = drawn(0, 10_000)
    columns = modes(masks)
    k = len(modes.amplitudes)
    psi = columns[:, 1 : k + 1]
    assert np.allclose(psi.T @ psi / len(psi), np.eye(k), atol=0.08)
    pairs = columns[:, k + 1 :] - columns[:, k + 1 :].mean(axis=0)
    assert np.abs(psi.T @ pairs / len(psi)).max() < 0.08  # the products say nothing of the contrast
    left = masks - 0.5 - np.tensordot(psi, modes.amplitudes, 1)
    assert np.allclose((left**2).mean(axis=0), modes.rest, atol=5e-4) and modes.rest.sum() < 0.0011 * 0.25 * 96


def slow_regression(masks, scores, modes):
    """The posterior by the n × n covariance of the scores, each combination of prior variances tried in turn."""
    columns, n, k = modes(masks), len(masks), len(modes.amplitudes)
    Z, best = columns[:, 1:], None
    centring = np.eye(n) - 1 / n
    basis = np.linalg.svd(centring)[0][:, : n - 1]
    for pair, level, strength in product(regression.PAIRWISE, regression.LEVELS, regression.STRENGTHS):
        prior = np.concatenate([modes.weights, pair * modes.pair_weights]) * strength
        prior[0] *= level
        K = basis.T @ (Z * prior) @ Z.T @ basis + np.eye(n - 1)
        y = basis.T @ scores
        noise = y @ np.linalg.solve(K, y) / (n - 1)
        evidence = -0.5 * np.linalg.slogdet(K)[1] - 0.5 * (n - 1) * np.log(noise)
        if best is None or evidence > best[0]:
            best = evidence, prior, K, y, noise
    _, prior, K, y, noise = best
    cross = (prior[:, None] * Z.T @ basis)[:k]
    theta = cross @ np.linalg.solve(K, y)
    covariance = noise * (np.diag(prior[:k]) - cross @ np.linalg.solve(K, cross.T))
    flat = modes.amplitudes.reshape(k, -1).T
    left = masks.reshape(n, -1) - 0.5 - Z[:, :k] @ flat.T
    rest = left.T @ (scores - scores.mean()) / n
    variance = np.diag(flat @ covariance @ flat.T) + modes.rest.ravel() * scores.var(ddof=1) / n
    return 4 * (flat @ theta + rest), 4 * np.sqrt(variance)


def test_against_a_slow_definition(modes, curved, monkeypatch):
    monkeypatch.setattr(regression, "STRENGTHS", np.geomspace(1e-2, 1e4, 13))
    masks = drawn(3, 48)
    scores = curved(masks) + np.random.default_rng(0).normal(0, 0.02, 48)
    saliency, error = regressed_contrast(moments_of(masks, scores, modes))
    expected, expected_error = slow_regression(masks, scores, modes)
    assert np.allclose(saliency.ravel(), expected, rtol=1e-6, atol=1e-9)
    assert np.allclose(error.ravel(), expected_error, rtol=1e-5, atol=1e-9)


def test_sums_add_up_whatever_the_order(modes, curved):
    masks = drawn(1, 96)
    scores, order = curved(masks), np.random.default_rng(0).permutation(96)
    whole = regressed_contrast(moments_of(masks, scores, modes))
    parts = moments_of(masks[order[:31]], scores[order[:31]], modes) + moments_of(
        masks[order[31:]], scores[order[31:]], modes
    )
    assert np.allclose(whole, regressed_contrast(parts), rtol=1e-8, atol=1e-10)


def exact_linear(weights, masks, shape):
    """The contrast of Σ w M is Cov(M) w / (p (1 − p))."""
    law = masks.law(shape)
    axes = "abc"[: len(shape)]
    turned = ",".join(f"{axis}{axis.upper()}" for axis in axes)
    moved = np.einsum(f"{turned},{axes.upper()}->{axes}", *law.covariances, weights.reshape(shape))
    return moved / (law.keep * (1 - law.keep))


@pytest.mark.parametrize(
    ("masks", "shape"), [(GridMasks(), (12, 9)), (GridMasks(3, 0.3), (9, 9)), (GridMasks(), (6, 8, 8))]
)
def test_a_linear_score_has_its_exact_contrast(masks, shape):
    """Cov(M) w / (p (1 − p)) in closed form, at any probability of keeping, in clips too."""
    weights = np.random.default_rng(0).normal(size=np.prod(shape))
    many = drawn(0, 2000, shape, masks)
    saliency, error = regressed_contrast(moments_of(many, many.reshape(2000, -1) @ weights, Modes.of(masks, shape)))
    exact = exact_linear(weights, masks, shape)
    plain, _ = keep_contrast(MaskMoments.zero(shape).with_masks(many, many.reshape(2000, -1) @ weights))
    apart, apart_plain = (np.sqrt(((values - exact) ** 2).mean()) for values in (saliency, plain))
    assert apart < 0.1 * exact.std() and apart < 0.4 * apart_plain
    assert np.mean(np.abs(saliency - exact) <= 2 * error) > 0.9


@pytest.fixture(scope="module")
def runs(modes, curved):
    """Maps and errors of 16 runs of 64, 128 and 512 masks, the exact map, and the plain estimate's maps."""
    many = drawn(99, 20_000)
    m, s = many.reshape(len(many), -1), curved(many)
    # The linear part is known in closed form, so that only the cubic part's mean is left to the 20,000 masks.
    m -= m.mean(axis=0)
    exact = exact_linear(np.linalg.pinv(m.T @ m, rcond=1e-6, hermitian=True) @ (m.T @ s), GridMasks(), SHAPE)
    found = {}
    for count in (64, 128, 512):
        estimates, plain = [], []
        for seed in range(16):
            masks = drawn(seed, count)
            moments = moments_of(masks, curved(masks), modes)
            estimates.append(regressed_contrast(moments))
            plain.append(keep_contrast(moments)[0])
        found[count] = np.array([e[0] for e in estimates]), np.array([e[1] for e in estimates]), np.array(plain)
    return found, exact


@pytest.mark.parametrize("count", [64, 128, 512])
def test_coverage_of_the_standard_error(runs, count):
    found, exact = runs
    saliency, error, _ = found[count]
    assert 0.9 < np.mean(np.abs(saliency - exact) <= 1.96 * error) < 0.995


def test_fewer_masks_and_the_same_limit(runs):
    """Half the error at 128 masks, and at 512 a mean map within its own error of the exact one."""
    found, exact = runs
    apart = {n: [np.sqrt(((values - exact) ** 2).mean()) for values in found[n][::2]] for n in (128, 512)}
    assert apart[128][0] < 0.5 * apart[128][1] and apart[512][0] < 0.5 * apart[512][1]
    saliency = found[512][0]
    bias, error = saliency.mean(axis=0) - exact, saliency.std(axis=0) / np.sqrt(len(saliency))
    assert np.sqrt((bias**2).mean()) < 0.25 * saliency.std(axis=0).mean() + 2 * error.mean()
