"""Float64 transcriptions of the formulas, one Python loop per sum.

They share nothing with the implementation: no array expressions over N, D or K at once, sums by
``math.fsum``, quantiles from the standard library. Every function takes NumPy arrays of a single
batch ``(N, D)`` and returns ``{field: Term(value, magnitude)}``; ``magnitude`` is the sum of
absolute values before cancellation, which a tolerance in float32 is relative to.
"""

import cmath
import functools
import math
from itertools import combinations
from statistics import NormalDist
from typing import NamedTuple

import mpmath
import numpy as np
from scipy.special import log_ndtr


class Term(NamedTuple):
    value: float
    magnitude: float


def _term(value, magnitude=None):
    return Term(float(value), float(abs(value) if magnitude is None else magnitude))


def _mean(values):
    values = list(values)
    return math.fsum(values) / len(values)


def _mean_term(terms):
    terms = list(terms)
    return Term(_mean(t.value for t in terms), _mean(t.magnitude for t in terms))


def _total(**weighted):
    """``total`` and its parts from ``name=(weight, Term)``."""
    value = math.fsum(w * t.value for w, t in weighted.values())
    magnitude = math.fsum(abs(w) * t.magnitude for w, t in weighted.values())
    return {"total": _term(value, magnitude)} | {name: t for name, (_, t) in weighted.items()}


def over_leading(function, arrays, ndims, **options):
    """Mean of ``function`` over the leading axes of ``arrays``.

    ``ndims[name]`` is the number of axes that belong to one batch; arrays with none to spare are
    shared by all batches.
    """
    leading = np.broadcast_shapes(*(a.shape[: a.ndim - ndims[n]] for n, a in arrays.items()))
    results = []
    for index in np.ndindex(*leading):
        one = {
            name: np.broadcast_to(a, leading + a.shape[a.ndim - ndims[name] :])[index]
            for name, a in arrays.items()
        }
        results.append(function(**one, **options))
    return {name: _mean_term(r[name] for r in results) for name in results[0]}


# Moments -----------------------------------------------------------------------------------------


def column_means(z):
    return np.array([_mean(z[:, j]) for j in range(z.shape[1])])


def column_variances(z, ddof):
    mu = column_means(z)
    n = z.shape[0]
    return np.array(
        [math.fsum((z[i, j] - mu[j]) ** 2 for i in range(n)) / (n - ddof)
         for j in range(z.shape[1])]
    )  # fmt: skip


def biased_std(z):
    return np.sqrt(column_variances(z, 0))


def covariance_matrix(a, b, ddof):
    mu_a, mu_b, n = column_means(a), column_means(b), a.shape[0]
    c = np.empty((a.shape[1], b.shape[1]))
    for i in range(a.shape[1]):
        for j in range(b.shape[1]):
            c[i, j] = math.fsum(
                (a[m, i] - mu_a[i]) * (b[m, j] - mu_b[j]) for m in range(n)
            ) / (n - ddof)  # fmt: skip
    return c


# VISReg ------------------------------------------------------------------------------------------


def normal_quantiles(n):
    return [NormalDist().inv_cdf(i / (n + 1)) for i in range(1, n + 1)]


def center_loss(z, reduction="mean"):
    mu = column_means(z)
    scale = 1 if reduction == "sum" else len(mu)
    value = math.fsum(m * m for m in mu) / scale
    magnitude = math.fsum(_mean(abs(z[:, j])) ** 2 for j in range(len(mu))) / scale
    return {"value": _term(value, magnitude)}


def scale_loss(z):
    sigma = biased_std(z)
    return {"value": _term(_mean((1 - s) ** 2 for s in sigma), _mean((1 + s) ** 2 for s in sigma))}


def _to_quantiles(z, slices, reduction):
    """Mean over slices of the squared distance of sorted projections to normal quantiles."""
    n, k = z.shape[0], slices.shape[1]
    q = normal_quantiles(n)
    values, magnitudes = [], []
    for column in range(k):
        projected = sorted(
            math.fsum(z[i, j] * slices[j, column] for j in range(z.shape[1])) for i in range(n)
        )
        values += [(p - t) ** 2 for p, t in zip(projected, q, strict=True)]
        magnitudes += [(abs(p) + abs(t)) ** 2 for p, t in zip(projected, q, strict=True)]
    count = k if reduction == "sum" else k * n
    return _term(math.fsum(values) / count, math.fsum(magnitudes) / count)


def shape_loss(z, slices, detach_scale=True, eps=1e-6, reduction="mean", sigma=None):
    """``sigma`` holds the divisor fixed, where differences stand for the stop-gradient."""
    mu = column_means(z)
    sigma = biased_std(z) if sigma is None else sigma
    return {"value": _to_quantiles((z - mu) / (sigma + eps), slices, reduction)}


def visreg_loss(z, slices, weights=(1, 1, 1), detach_scale=True, eps=1e-6, sigma=None):
    return _total(
        scale=(weights[0], scale_loss(z)["value"]),
        shape=(weights[1], shape_loss(z, slices, eps=eps, sigma=sigma)["value"]),
        center=(weights[2], center_loss(z)["value"]),
    )


def global_center(z, n_global=None):
    views = z.shape[0] if n_global is None else n_global
    return np.array(
        [[_mean(z[:views, i, j]) for j in range(z.shape[2])] for i in range(z.shape[1])]
    )


def invariance_loss(z, n_global=None, detach_center=False, reduction="mean", center=None):
    center = global_center(z, n_global) if center is None else center
    v, n, d = z.shape
    count = v * n if reduction == "sum" else v * n * d
    cells = list(np.ndindex(v, n, d))
    value = math.fsum((z[c] - center[c[1:]]) ** 2 for c in cells) / count
    magnitude = math.fsum((abs(z[c]) + abs(center[c[1:]])) ** 2 for c in cells) / count
    return {"value": _term(value, magnitude)}


def gaussian_sliced_wasserstein(z, slices, reduction="mean"):
    return {"value": _to_quantiles(z, slices, reduction)}


# Sliced Wasserstein between two samples ----------------------------------------------------------


def wasserstein_power(u, v, p, u_weights=None, v_weights=None):
    """``(W_p^p, sum of (|u| + |v|)^p)`` of two weighted samples on the line, mass by mass."""
    left = _sorted_masses(u, u_weights)
    right = _sorted_masses(v, v_weights)
    value, magnitude = [], []
    i = j = 0
    here, there = left[0][1], right[0][1]
    while i < len(left) and j < len(right):
        mass = min(here, there)
        value.append(mass * abs(left[i][0] - right[j][0]) ** p)
        magnitude.append(mass * (abs(left[i][0]) + abs(right[j][0])) ** p)
        here, there = here - mass, there - mass
        if here <= there:
            i += 1
            here = left[i][1] if i < len(left) else 0.0
        else:
            j += 1
            there = right[j][1] if j < len(right) else 0.0
    return math.fsum(value), math.fsum(magnitude)


def _sorted_masses(x, weights):
    weights = [1.0 / len(x)] * len(x) if weights is None else list(weights)
    total = math.fsum(weights)
    masses = [w / total for w in weights]
    return sorted(zip((float(v) for v in x), masses, strict=True))


def _powers_over_slices(x, y, slices, p, x_weights, y_weights):
    for k in range(slices.shape[1]):
        yield wasserstein_power(x @ slices[:, k], y @ slices[:, k], p, x_weights, y_weights)


def gaussian_sliced_energy_distance(z, slices):
    """By its definition: a sum over pairs, and E|p - X| by the trapezoid rule."""
    step = 0.01
    grid = [step * t for t in range(-1000, 1001)]
    density = [step * NormalDist().pdf(x) for x in grid]
    terms = []
    for k in range(slices.shape[1]):
        p = [math.fsum(z[n, j] * slices[j, k] for j in range(z.shape[1])) for n in range(len(z))]
        # Between the two knots around p the integrand has a kink: the rule is off by step² φ(p)/6
        # at the most, and by the same for x = p on average; E|p - X| in closed form is exact.
        to_normal = _mean(x * (2 * NormalDist().cdf(x) - 1) + 2 * NormalDist().pdf(x) for x in p)
        roughly = _mean(
            math.fsum(w * abs(x - g) for g, w in zip(grid, density, strict=True)) for x in p
        )
        assert abs(to_normal - roughly) < step**2
        between = _mean(abs(x - y) for x in p for y in p)
        value = 2 * to_normal - 2 / math.sqrt(math.pi) - between
        size = 4 * _mean(map(abs, p)) + 2 * math.sqrt(2 / math.pi) + 2 / math.sqrt(math.pi)
        terms.append(Term(value, size))
    return {"value": _mean_term(terms)}


def _statistic_of(x, statistic):
    """(value, magnitude) of samples of one slice, from the textbook formula."""
    n, x = len(x), sorted(x)
    if statistic == "anderson_darling":
        below = [float(log_ndtr(v)) for v in x]
        above = [float(log_ndtr(-v)) for v in x]
        parts = [(2 * i + 1) / n * (below[i] + above[n - 1 - i]) for i in range(n)]
        return -n - math.fsum(parts), n + 2 * math.fsum(map(abs, below + above))
    if statistic in ("cramer_von_mises", "watson"):
        cdf = [0.5 * math.erfc(-v / math.sqrt(2)) for v in x]
        value = 1 / (12 * n) + math.fsum(((2 * i + 1) / (2 * n) - cdf[i]) ** 2 for i in range(n))
        if statistic == "watson":
            value -= n * (_mean(cdf) - 0.5) ** 2
        return value, n
    mean = _mean(x)
    m2, m3, m4 = (_mean((v - mean) ** k for v in x) for k in (2, 3, 4))
    skew, kurtosis = (m3 / m2**1.5, m4 / m2**2) if m2 > 0 else (0.0, 3.0)
    parts = [mean**2, (m2 - 1) ** 2 / 2, skew**2 / 6, (kurtosis - 3) ** 2 / 24]
    size = _mean(v * v for v in x)
    return n * math.fsum(parts), n * (size + (size + 1) ** 2 / 2 + 4)


def sliced_statistic(z, slices, statistic="anderson_darling"):
    terms = []
    for k in range(slices.shape[1]):
        p = [math.fsum(z[n, j] * slices[j, k] for j in range(z.shape[1])) for n in range(len(z))]
        terms.append(Term(*_statistic_of(p, statistic)))
    return {"value": _mean_term(terms)}


def sliced_wasserstein(x, y, slices, p=2, x_weights=None, y_weights=None, power=False):
    powers = list(_powers_over_slices(x, y, slices, p, x_weights, y_weights))
    return _root(_mean(v for v, _ in powers), _mean(m for _, m in powers), p, power)


def max_sliced_wasserstein(x, y, slices, p=2, x_weights=None, y_weights=None, power=False):
    value, magnitude = max(_powers_over_slices(x, y, slices, p, x_weights, y_weights))
    return _root(value, magnitude, p, power)


def _root(value, magnitude, p, power):
    root = 1.0 if power else 1.0 / p
    return {"value": _term(value**root, magnitude**root)}


# Epps-Pulley -------------------------------------------------------------------------------------


def epps_pulley_statistic(x, t_max=3.0, n_knots=17):
    """N times the trapezoid sum over [0, t_max], doubled, of the weighted squared distance of
    characteristic functions."""
    n = len(x)
    step = t_max / (n_knots - 1)
    values, magnitudes = [], []
    for knot in range(n_knots):
        t = knot * step
        gauss = math.exp(-t * t / 2)
        terms = [cmath.exp(1j * t * v) for v in x]
        phi = complex(math.fsum(c.real for c in terms), math.fsum(c.imag for c in terms)) / n
        ends = 0.5 if knot in (0, n_knots - 1) else 1.0
        weight = 2 * ends * step * gauss
        values.append(weight * abs(phi - gauss) ** 2)
        cosines, sines = _mean(abs(c.real) for c in terms), _mean(abs(c.imag) for c in terms)
        magnitudes.append(weight * ((cosines + gauss) ** 2 + sines**2))
    return Term(n * math.fsum(values), n * math.fsum(magnitudes))


def epps_pulley_closed_form(x):
    """The limit of many knots and a large t_max."""
    n = len(x)
    pairs = math.fsum(math.exp(-((u - v) ** 2) / 2) for u in x for v in x)
    single = math.fsum(math.exp(-u * u / 4) for u in x)
    return (
        math.sqrt(2 * math.pi) / n * pairs
        - 2 * math.sqrt(math.pi) * single
        + n * math.sqrt(2 * math.pi / 3)
    )


def epps_pulley(x, t_max=3.0, n_knots=17):
    return {"value": epps_pulley_statistic(list(x), t_max, n_knots)}


def epps_pulley_of_columns(x, t_max=3.0, n_knots=17):
    """Sum over the columns of ``(N, K)``: the scalar whose gradient ``value_and_grad`` is."""
    terms = [epps_pulley_statistic(list(x[:, k]), t_max, n_knots) for k in range(x.shape[1])]
    return {"value": Term(math.fsum(t.value for t in terms), math.fsum(t.magnitude for t in terms))}


def sigreg_loss(z, slices, t_max=3.0, n_knots=17, scale_by_n=True):
    n = 1 if scale_by_n else z.shape[0]
    term = _mean_term(
        epps_pulley_statistic(list(z @ slices[:, k]), t_max, n_knots)
        for k in range(slices.shape[1])
    )
    return {"value": Term(term.value / n, term.magnitude / n)}


# Kernel discrepancies ----------------------------------------------------------------------------


def _squared_distance(x, y):
    return math.fsum((u - v) ** 2 for u, v in zip(x, y, strict=True))


def radial_kernel(kernel, h):
    """k as a function of an array of r²."""
    return {
        "gaussian": lambda r2: np.exp(-r2 / (2 * h * h)),
        "imq": lambda r2: 1 / np.sqrt(1 + r2 / (h * h)),
        "laplace": lambda r2: np.exp(-np.sqrt(r2) / h),
    }[kernel]


def _chi_square(m):
    """Nodes and weights of the law of χ² of m degrees of freedom: the trapezoid rule in log r²."""
    v, step = np.linspace(-80 / m, math.log(m + 12 * math.sqrt(2 * m) + 60), 1200, retstep=True)
    return np.exp(v), step * np.exp(m / 2 * (v - math.log(2)) - np.exp(v) / 2 - math.lgamma(m / 2))


@functools.cache
def _mean_over_chi_square(kernel, h, m, factor=1):
    r2, weights = _chi_square(m)
    return float(weights @ radial_kernel(kernel, h)(factor * r2))


@functools.cache
def mean_to_normal(kernel, h, dim, q):
    """E k(‖z − X‖²) for ‖z‖² = q, X ~ N(0, I): the squared distance is a noncentral χ².

    Of little noncentrality it is a mixture of χ² by Poisson's law; of much, its parts along z and
    across are integrated over.
    """
    if q < 400:
        law = [math.exp(j * math.log(q / 2) - q / 2 - math.lgamma(j + 1)) if q else float(j == 0)
               for j in range(int(q / 2 + 8 * math.sqrt(q)) + 40)]  # fmt: skip
        return math.fsum(
            p * _mean_over_chi_square(kernel, h, dim + 2 * j) for j, p in enumerate(law)
        )
    along, step = np.linspace(-9, 9, 181, retstep=True)
    density = step * np.exp(-along * along / 2) / math.sqrt(2 * math.pi)
    across, weights = _chi_square(dim - 1) if dim > 1 else (np.zeros(1), np.ones(1))
    r2 = (math.sqrt(q) - along[:, None]) ** 2 + across
    return float(density @ radial_kernel(kernel, h)(r2) @ weights)


def gaussian_mmd(z, kernel="gaussian", bandwidth=None):
    d = z.shape[1]
    h = math.sqrt(d) if bandwidth is None else bandwidth
    k = radial_kernel(kernel, h)
    pairs = _mean(float(k(_squared_distance(x, y))) for x in z for y in z)
    prior = _mean(mean_to_normal(kernel, h, d, math.fsum(x * x)) for x in z)
    both = _mean_over_chi_square(kernel, h, d, 2)
    return {"value": _term(pairs - 2 * prior + both, pairs + 2 * prior + both)}


def gaussian_ksd(z, kernel="gaussian", bandwidth=None):
    """From the definition, coordinate by coordinate."""
    d = z.shape[1]
    h2 = d if bandwidth is None else bandwidth**2
    values, sizes = [], []
    for x in z:
        for y in z:
            r2 = _squared_distance(x, y)
            if kernel == "gaussian":
                k = math.exp(-r2 / (2 * h2))
                slope, bend = k / h2, k / h2**2
            else:
                t = 1 + r2 / h2
                k = t**-0.5
                slope, bend = t**-1.5 / h2, 3 * t**-2.5 / h2**2
            for u, v in zip(x, y, strict=True):
                by_x, by_y = -(u - v) * slope, (u - v) * slope
                mixed = slope - (u - v) ** 2 * bend
                values.append((-u) * (-v) * k + (-u) * by_y + (-v) * by_x + mixed)
                sizes.append(abs(u * v) * k + (u - v) ** 2 * (slope + bend) + slope)
    n2 = len(z) ** 2
    return {"value": Term(math.fsum(values) / n2, math.fsum(sizes) / n2)}


@functools.cache
def mean_to_uniform(t, dim):
    """E e^{−t‖x − U‖²} on the sphere: e^{−2t} E e^{2t cos}, a Bessel function."""
    return float(mpmath.exp(-2 * t) * mpmath.hyp0f1(mpmath.mpf(dim) / 2, t * t))


def spherical_mmd(z, t=2.0):
    rows = []
    for x in z:
        size = max(abs(v) for v in x)
        scaled = [v / size if size > 0 else 0.0 for v in x]
        norm = math.sqrt(math.fsum(v * v for v in scaled))
        rows.append([v / norm if norm > 0 else 0.0 for v in scaled])
    pairs = _mean(math.exp(-t * _squared_distance(x, y)) for x in rows for y in rows)
    uniform = mean_to_uniform(t, z.shape[1])
    return {"value": _term(pairs - uniform, pairs + uniform)}


@functools.cache
def mean_over_sphere(dim, s):
    """E e^{−s w_1²} over the unit sphere, a hypergeometric function."""
    return float(mpmath.hyp1f1(0.5, dim / 2, -s))


def sigreg_limit(z, scale_by_n=True):
    """Of `epps_pulley_closed_form`, term by term, the mean over the sphere."""
    n, d = z.shape
    pairs = n + 2 * math.fsum(
        mean_over_sphere(d, _squared_distance(x, y) / 2) for x, y in combinations(z, 2)
    )
    single = math.fsum(mean_over_sphere(d, math.fsum(x * x) / 4) for x in z)
    parts = (
        math.sqrt(2 * math.pi) / n * pairs,
        2 * math.sqrt(math.pi) * single,
        n * math.sqrt(2 * math.pi / 3),
    )
    unit = 1 if scale_by_n else n
    return {"value": Term((parts[0] - parts[1] + parts[2]) / unit, math.fsum(parts) / unit)}


def weak_sigreg_loss(z, slices):
    c = covariance_matrix(z, z, 0)
    mean = column_means(z)
    size = np.array([[_mean(abs((x[i] - mean[i]) * (x[j] - mean[j])) for x in z)
                      for j in range(len(mean))] for i in range(len(mean))])  # fmt: skip
    values, sizes = [], []
    for v in slices.T:
        for w in slices.T:
            pairs = [(i, j) for i in range(len(v)) for j in range(len(w))]
            values.append(math.fsum(v[i] * (c[i, j] - (i == j)) * w[j] for i, j in pairs) ** 2)
            bound = math.fsum(abs(v[i]) * (size[i, j] + (i == j)) * abs(w[j]) for i, j in pairs)
            sizes.append(bound**2)
    return {"value": Term(_mean(values), _mean(sizes))}


# VICReg ------------------------------------------------------------------------------------------


def variance_loss(z, gamma=1.0, eps=1e-4):
    return {"value": _hinge(z, gamma, eps, power=1)}


def _hinge(z, gamma, eps, power):
    stds = [math.sqrt(v + eps) for v in column_variances(z, 1)]
    return _term(
        _mean(max(0.0, gamma - s) ** power for s in stds),
        _mean((gamma + s) ** power for s in stds),
    )


def covariance_loss(z):
    c = covariance_matrix(z, z, 1)
    d = z.shape[1]
    off = math.fsum(c[i, j] ** 2 for i in range(d) for j in range(d) if i != j)
    return {"value": _term(off / d, math.fsum(v * v for v in c.ravel()) / d)}


def _mean_square(a, b, row_weights=None, pairs=None, sum_dims=False):
    n, d = a.shape
    pairs = range(n) if pairs is None else pairs
    w = [1.0] * n if row_weights is None else row_weights
    count = n if sum_dims else n * d
    cells = [(i, j) for i in range(n) for j in range(d)]
    return _term(
        math.fsum(w[i] * (a[i, j] - b[pairs[i], j]) ** 2 for i, j in cells) / count,
        math.fsum(w[i] * (abs(a[i, j]) + abs(b[pairs[i], j])) ** 2 for i, j in cells) / count,
    )


def vicreg_loss(a, b, weights=(25, 25, 1), gamma=1.0, eps=1e-4, convention="vicreg"):
    if convention == "visreg":
        stacked = np.concatenate([a, b])
        variance = _hinge(stacked, gamma, eps, power=2)
        covariance = covariance_loss(stacked)["value"]
    else:
        half = 0.5 if convention == "vicreg" else 1.0
        variances = [variance_loss(z, gamma, eps)["value"] for z in (a, b)]
        variance = Term(*(half * math.fsum(column) for column in zip(*variances, strict=True)))
        covariances = [covariance_loss(z)["value"] for z in (a, b)]
        covariance = Term(*(math.fsum(column) for column in zip(*covariances, strict=True)))
    return _total(
        invariance=(weights[0], _mean_square(a, b, sum_dims=convention == "paper")),
        variance=(weights[1], variance),
        covariance=(weights[2], covariance),
    )


def over_pairs_of_views(loss):
    """A loss of two views as a loss of ``views`` (V, N, D): the mean over pairs of views."""

    def of_views(views, **options):
        results = [loss(views[i], views[j], **options)
                   for i, j in combinations(range(len(views)), 2)]  # fmt: skip
        return {name: _mean_term(r[name] for r in results) for name in results[0]}

    return of_views


def sag_vicreg_loss(a, b, pairs, pair_weights, weights=(25, 25, 1), gamma=1.0, eps=1e-4):
    plain = vicreg_loss(a, b, gamma=gamma, eps=eps)
    pairs = [int(j) for j in pairs]
    return _total(
        invariance=(weights[0], _mean_square(a, b, list(pair_weights), pairs)),
        variance=(weights[1], plain["variance"]),
        covariance=(weights[2], plain["covariance"]),
    )


# Barlow Twins ------------------------------------------------------------------------------------


def standardised(z, eps):
    mu, var = column_means(z), column_variances(z, 0)
    out = np.zeros_like(z)
    for j in range(z.shape[1]):
        divisor = math.sqrt(var[j] + eps)
        if divisor > 0:
            out[:, j] = (z[:, j] - mu[j]) / divisor
    return out


def barlow_twins_loss(a, b, off_diagonal_weight=0.0051, eps=0.0):
    a, b = standardised(a, eps), standardised(b, eps)
    n, d = a.shape
    c = np.empty((d, d))
    size = np.empty((d, d))
    for i in range(d):
        for j in range(d):
            c[i, j] = math.fsum(a[m, i] * b[m, j] for m in range(n)) / n
            size[i, j] = math.fsum(abs(a[m, i] * b[m, j]) for m in range(n)) / n
    on = _term(
        math.fsum((1 - c[i, i]) ** 2 for i in range(d)),
        math.fsum((1 + size[i, i]) ** 2 for i in range(d)),
    )
    off = _term(
        math.fsum(c[i, j] ** 2 for i in range(d) for j in range(d) if i != j),
        math.fsum(size[i, j] ** 2 for i in range(d) for j in range(d)),
    )
    return _total(on_diagonal=(1, on), off_diagonal=(off_diagonal_weight, off))


# Whitening and assignments ------------------------------------------------------------------------


def whitened(z, eps):
    """Gram and Schmidt's Q of the centred rows above a diagonal √ε σ: its first rows."""
    mu, var, (n, d) = column_means(z), column_variances(z, 1), z.shape
    columns = []
    for j in range(d):
        below = [math.sqrt(eps * var[j]) if i == j else 0.0 for i in range(d)]
        column = [(z[i, j] - mu[j]) / math.sqrt(n - 1) for i in range(n)] + below
        for _ in range(2):
            for other in columns:
                along = math.fsum(x * y for x, y in zip(column, other, strict=True))
                column = [x - along * y for x, y in zip(column, other, strict=True)]
        length = math.sqrt(math.fsum(x * x for x in column))
        columns.append([x / length if length > 0 else 0.0 for x in column])
    return np.array(columns).T[:n]


def wmse_loss(a, b, eps=1e-3):
    units = []
    for h in (whitened(a, eps), whitened(b, eps)):
        lengths = [math.sqrt(math.fsum(row**2)) for row in h]
        units.append([row / x if x > 0 else row for row, x in zip(h, lengths, strict=True)])
    return {"value": _term(_mean(
        math.fsum((u - v) ** 2) if any(u) and any(v) else 2.0 for u, v in zip(*units, strict=True)
    ), 4)}  # fmt: skip


def assignment(s, epsilon=0.05, n_iterations=3):
    """Sinkhorn and Knopp's, of exponentials as they are, in mpmath's range of numbers."""
    n, k = s.shape
    q = [[mpmath.exp(mpmath.mpf(float(x)) / epsilon) for x in row] for row in s]
    for _ in range(n_iterations):
        columns = [mpmath.fsum(q[i][j] for i in range(n)) for j in range(k)]
        q = [[x / c for x, c in zip(row, columns, strict=True)] for row in q]
        q = [[x / mpmath.fsum(row) for x in row] for row in q]
    return np.array(q, dtype=float)


def swav_loss(a, b, temperature=0.1, epsilon=0.05, n_iterations=3, assignments=None):
    if assignments is None:
        assignments = [assignment(s, epsilon, n_iterations) for s in (a, b)]
    terms = []
    for s, q in zip((a, b), reversed(assignments), strict=True):
        for x, target in zip(s, q, strict=True):
            top = max(x)
            log_sum = math.log(math.fsum(math.exp((v - top) / temperature) for v in x))
            value = log_sum + math.fsum(t * (top - v) / temperature
                                        for v, t in zip(x, target, strict=True))  # fmt: skip
            terms.append(Term(value, 2 * max(abs(x)) / temperature + math.log(len(x))))
    return {"value": _mean_term(terms)}


# Random-walk affinity and SpectralNet ------------------------------------------------------------


def random_walk_affinity(a, b, n_neighbors=10, percentile=20, scale="local", symmetrize=False):
    n = a.shape[0]
    kept, adjusted = [], []
    for i in range(n):
        d = [
            1 - math.fsum(a[i] * b[j])
            / math.sqrt(math.fsum(a[i] ** 2)) / math.sqrt(math.fsum(b[j] ** 2))
            for j in range(n)
        ]  # fmt: skip
        nearest = sorted(range(n), key=lambda j: (d[j], j))[:n_neighbors]
        kept.append(nearest)
        adjusted.append([d[j] - d[nearest[0]] for j in nearest])
    everything = [v for row in adjusted for v in row]
    w = np.zeros((n, n))
    for i in range(n):
        pool = adjusted[i] if scale == "local" else everything
        sigma = max(_percentile(pool, percentile), 1e-7)
        for j, v in zip(kept[i], adjusted[i], strict=True):
            w[i, j] = math.exp(-(v**2) / sigma**2)
    return (w + w.T) / 2 if symmetrize else w


def _percentile(values, q):
    """Linear interpolation between order statistics."""
    values = sorted(values)
    position = q / 100 * (len(values) - 1)
    low = math.floor(position)
    high = min(low + 1, len(values) - 1)
    return values[low] + (position - low) * (values[high] - values[low])


def spectralnet_loss(y, affinity):
    n = y.shape[0]
    value, magnitude = [], []
    for i in range(n):
        for j in range(n):
            value.append(affinity[i, j] * math.fsum((y[i] - y[j]) ** 2))
            magnitude.append(affinity[i, j] * math.fsum((abs(y[i]) + abs(y[j])) ** 2))
    return {"value": _term(math.fsum(value) / n**2, math.fsum(magnitude) / n**2)}


# Threefry-2x32, 20 rounds ------------------------------------------------------------------------

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
_MASK = 0xFFFFFFFF

# Of Salmon et al.: key and counter, and the two words.
KNOWN_ANSWERS = [
    ((0x00000000, 0x00000000, 0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344, 0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


def threefry2x32(key0, key1, counter0, counter1):
    """Two words from two key words and two counter words, in Python integers (Salmon et al.)."""
    keys = (key0, key1, key0 ^ key1 ^ _PARITY)
    x, y = (counter0 + key0) & _MASK, (counter1 + key1) & _MASK
    for round_ in range(20):
        x = (x + y) & _MASK
        r = _ROTATIONS[round_ % 8]
        y = ((y << r) | (y >> (32 - r))) & _MASK
        y ^= x
        if round_ % 4 == 3:
            s = round_ // 4 + 1
            x = (x + keys[s % 3]) & _MASK
            y = (y + keys[(s + 1) % 3] + s) & _MASK
    return x, y


def direction(dim, k, seed, step):
    """Slice k from the documented layout of the stream, one Python number at a time."""
    normals = []
    for d in range(dim):
        words = threefry2x32(seed, step, k, d // 2)  # domain 0: slices
        u0, u1 = (((w >> 9) + 0.5) / 2**23 for w in words)
        wave = math.sin if d % 2 else math.cos
        normals.append(math.sqrt(-2 * math.log(u0)) * wave(2 * math.pi * u1))
    length = math.sqrt(math.fsum(v * v for v in normals))
    return [v / length for v in normals]


# Differences -------------------------------------------------------------------------------------


def central_difference(scalar, x, step=1e-5):
    """Gradient of ``scalar`` at ``x`` by central differences, element by element."""
    gradient = np.empty_like(x)
    for index in np.ndindex(*x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * step
            ends.append((scalar(moved), moved[index]))
        gradient[index] = (ends[0][0] - ends[1][0]) / (ends[0][1] - ends[1][1])
    return gradient
