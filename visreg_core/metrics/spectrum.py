"""How many directions an embedding uses: rank measures of its spectrum.

Every measure exists twice: of embeddings ``(N, D)`` and, with the suffix ``_from_singular_values``,
of their singular values, so that a program that streams over a file can use the eigenvalues of a
covariance (`singular_values_from_gram`). None depends on the scale of the embeddings.

A matrix of zeros (a collapsed embedding, where it is centred) has rank 0 by every measure of
rank; its condition number and its power law are NaN.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core.metrics._inputs import centred, matrix, numbers, spectrum
from visreg_core.typing import Array


class PowerLaw(NamedTuple):
    """Fit λ_j ≈ exp(`log_amplitude`) · j^(−`alpha`) over the ranks `first` … `last` (from 1)."""

    alpha: float
    log_amplitude: float
    r_squared: float
    first: int
    last: int


class _RankMe(NamedTuple):
    power: int  # 1: singular values; 2: their squares, the covariance's eigenvalues
    center: bool
    eps: float  # added to every normalised value, without renormalising


RANKME = {
    "exact": _RankMe(1, False, 0.0),
    "paper": _RankMe(1, False, 1e-7),
    "stable-pretraining": _RankMe(1, False, 1e-5),
    "eigenvalues": _RankMe(2, False, 0.0),
    "reptrix": _RankMe(2, True, 1e-7),
}

# Power of the singular values, centring.
EFFECTIVE_RANK = {"roy-vetterli": (1, False), "covariance": (2, True)}

# Power of the singular values, centring, floor of the smallest.
_CONDITION_NUMBER = {
    "exact": (1, False, 0.0),
    "covariance": (2, True, 0.0),
    "stable-pretraining": (1, False, 1e-10),
}

# First and last rank of the fit (None: all), exponent of the weight 1/j.
_ALPHA_REQ: dict[str, tuple[int, int | None, int]] = {
    "reptrix": (11, 100, 1),
    "stringer": (11, 500, 1),
    "ols": (1, None, 0),
}


# --- the spectrum ---------------------------------------------------------------------------------


def singular_values(x: Array, *, center: bool = False) -> np.ndarray:
    """Singular values of an embedding matrix.

    Parameters
    ----------
    x : array (N, D)
        Embeddings of any namespace; the decomposition runs there, in float64 for float64 input
        and in float32 otherwise.
    center : bool
        Subtract the column means first. Squares divided by N − 1 are then the eigenvalues of the
        covariance.

    Returns
    -------
    numpy.ndarray (min(N, D),)
        float64, descending. Where centring removes a rank (N ≤ D), the last is exactly 0.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import singular_values
    >>> singular_values(np.asarray([[3.0, 0.0], [0.0, 4.0]]))
    array([4., 3.])
    """
    xp, x = matrix("x", x)
    n, d = x.shape
    if center:
        x = centred(xp, x)
    s = np.array(_xp.to_numpy(xp.linalg.svdvals(x)), dtype=np.float64)
    if center and n <= d:
        s[-1] = 0.0
    return s


def singular_values_from_gram(gram: Any, n_samples: int, *, eps: float = 2.0**-52) -> np.ndarray:
    """Singular values of N samples from the sum of their outer products, XᵀX.

    Parameters
    ----------
    gram : array_like (D, D)
        XᵀX, or XᵀX − N μ μᵀ for the singular values of the centred matrix: N − 1 times the
        unbiased covariance. Works on the host in float64.
    n_samples : int
        N; at most that many singular values exist.
    eps : float
        Rounding unit of the sums in `gram`. Eigenvalues within D·eps of the largest are
        rounding and come out as exactly 0, so that the singular values resolved this way are
        those above √(D·eps) of the largest (1e-7 in float64).

    Returns
    -------
    numpy.ndarray (min(N, D),)
        float64, descending.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import singular_values_from_gram
    >>> x = np.asarray([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
    >>> singular_values_from_gram(x.T @ x, 3)
    array([4., 3.])
    """
    checks.positive_int("n_samples", n_samples)
    g = numbers("gram", gram)
    if g.ndim != 2 or g.shape[0] != g.shape[1] or g.shape[0] == 0:
        raise ValueError(f"expected gram of shape (D, D); found shape {g.shape}")
    if not np.isfinite(g).all():
        raise ValueError("expected finite gram; found NaN or infinity")
    values = np.linalg.eigvalsh(g)[::-1]
    values = np.where(values > g.shape[0] * eps * values[0], values, 0.0)
    return np.sqrt(values[: min(n_samples, g.shape[0])])


# --- ranks ----------------------------------------------------------------------------------------


def rankme(x: Array, *, convention: str = "exact") -> float:
    """RankMe, the exponential of the entropy of the normalised singular values.

    exp(−Σ_k p_k log p_k), p_k = σ_k / Σσ + ε, over the min(N, D) values (Garrido et al. 2023).
    The published code and texts differ in spectrum, centring and ε ("stable-pretraining" is that
    of release 0.1.8, "reptrix" of 0.1.0):

    ==================== ================= ======== ==== ====================
    convention           spectrum          centred  ε    1000×512 Gaussian
    ==================== ================= ======== ==== ====================
    "exact"              singular values   no       0    472.8
    "paper"              singular values   no       1e-7 472.9
    "stable-pretraining" singular values   no       1e-5 485.8
    "eigenvalues"        eigenvalues σ²    no       0    395.9
    "reptrix"            eigenvalues σ²    yes      1e-7 396.0
    ==================== ================= ======== ==== ====================

    A non-zero ε is added after normalising and not normalised again, as published; it exceeds D
    for a flat spectrum.

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace, N ≥ 2.
    convention : str
        A row of the table.

    Returns
    -------
    float
        Between 1 and min(N, D) for ε = 0; 0 for a matrix of zeros.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import rankme
    >>> round(rankme(np.eye(8)), 9)
    8.0
    """
    checks.choice("convention", convention, RANKME)
    s = singular_values(x, center=RANKME[convention].center)
    return rankme_from_singular_values(s, convention=convention)


def rankme_from_singular_values(s: Any, *, convention: str = "exact") -> float:
    """`rankme` from singular values: of the centred matrix where the convention centres."""
    checks.choice("convention", convention, RANKME)
    power, _, eps = RANKME[convention]
    return _exp_entropy(_normalised(spectrum("s", s), power), eps)


def effective_rank(x: Array, *, convention: str = "roy-vetterli") -> float:
    """Effective rank, the exponential of the entropy of the normalised spectrum, without ε.

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace, N ≥ 2.
    convention : str
        "roy-vetterli": singular values of the matrix as it is (Roy and Vetterli 2007; `rankme`'s
        "exact"). "covariance": eigenvalues of the covariance of the centred embeddings, as in
        the von Neumann entropy.

    Returns
    -------
    float
        Between 1 and min(N, D); 0 for a matrix of zeros.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import effective_rank
    >>> round(effective_rank(np.asarray([[3.0, 0.0], [0.0, 1.0]])), 4)
    1.7548
    """
    checks.choice("convention", convention, EFFECTIVE_RANK)
    s = singular_values(x, center=EFFECTIVE_RANK[convention][1])
    return effective_rank_from_singular_values(s, convention=convention)


def effective_rank_from_singular_values(s: Any, *, convention: str = "roy-vetterli") -> float:
    """`effective_rank` from singular values: of the centred matrix for "covariance"."""
    checks.choice("convention", convention, EFFECTIVE_RANK)
    return _exp_entropy(_normalised(spectrum("s", s), EFFECTIVE_RANK[convention][0]), 0.0)


def stable_rank(x: Array, *, center: bool = False) -> float:
    """Stable rank ‖X‖_F² / ‖X‖₂² = Σσ² / σ_max² (Rudelson and Vershynin 2007).

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace, N ≥ 2.
    center : bool
        Subtract the column means first. Without it a large mean drives the value to 1.

    Returns
    -------
    float
        Between 1 and min(N, D); 0 for a matrix of zeros.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import stable_rank
    >>> stable_rank(np.asarray([[2.0, 0.0], [0.0, 1.0]]))
    1.25
    """
    return stable_rank_from_singular_values(singular_values(x, center=center))


def stable_rank_from_singular_values(s: Any) -> float:
    """`stable_rank` from singular values."""
    s = spectrum("s", s)
    return 0.0 if s[0] == 0 else math.fsum((s / s[0]) ** 2)


def participation_ratio(x: Array, *, center: bool = True) -> float:
    """Participation ratio (Σλ)² / Σλ² of the eigenvalues λ = σ² of the covariance.

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace, N ≥ 2.
    center : bool
        Subtract the column means first (the covariance); otherwise the second moments are used.

    Returns
    -------
    float
        Between 1 and min(N, D); 0 for a matrix of zeros.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import participation_ratio
    >>> participation_ratio(np.asarray([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]))
    2.0
    """
    return participation_ratio_from_singular_values(singular_values(x, center=center))


def participation_ratio_from_singular_values(s: Any) -> float:
    """`participation_ratio` from the singular values of the centred matrix."""
    p = _normalised(spectrum("s", s), 2)
    return 0.0 if p[0] == 0 else 1.0 / math.fsum(p**2)


def condition_number(x: Array, *, convention: str = "exact") -> float:
    """Largest over smallest value of the spectrum.

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace, N ≥ 2. In float32 values above about 1e7 cannot be distinguished
        from ∞.
    convention : str
        "exact": σ_max/σ_min of the matrix as it is. "covariance": λ_max/λ_min = (σ_max/σ_min)²
        of the centred embeddings. "stable-pretraining", release 0.1.8: as "exact" with σ_min at
        least 1e-10.

    Returns
    -------
    float
        At least 1; ∞ where the smallest value is 0, NaN where the largest is, too.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import condition_number
    >>> condition_number(np.asarray([[4.0, 0.0], [0.0, 2.0]]))
    2.0
    """
    checks.choice("convention", convention, _CONDITION_NUMBER)
    s = singular_values(x, center=_CONDITION_NUMBER[convention][1])
    return condition_number_from_singular_values(s, convention=convention)


def condition_number_from_singular_values(s: Any, *, convention: str = "exact") -> float:
    """`condition_number` from singular values: of the centred matrix for "covariance"."""
    checks.choice("convention", convention, _CONDITION_NUMBER)
    power, _, floor = _CONDITION_NUMBER[convention]
    s = spectrum("s", s)
    smallest = max(float(s[-1]), floor)
    if smallest == 0:
        return math.nan if s[0] == 0 else math.inf
    return (float(s[0]) / smallest) ** power


# --- power law ------------------------------------------------------------------------------------


def alpha_req(
    x: Array, *, convention: str = "reptrix", fit_range: tuple[int, int] | None = None
) -> float:
    """α-ReQ: exponent of the power law λ_j ∝ j^(−α) of the covariance's eigenvalues.

    A straight line through log λ_j over log j by least squares (Agrawal et al. 2022), on the
    eigenvalues of the centred embeddings. Published fits differ in range and weights:

    ========== ============ ======== ====================================================
    convention ranks j      weight
    ========== ============ ======== ====================================================
    "reptrix"  11 … 100     1/j      library of the measure's authors, reptrix 0.1.0
    "stringer" 11 … 500     1/j      Stringer et al. 2019, where the fit comes from
    "ols"      all          1        what most re-implementations do
    ========== ============ ======== ====================================================

    `fit_range` takes any other, such as (6, 100).

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace, N ≥ 2.
    convention : str
        A row of the table. Ranges end at the last eigenvalue above rounding
        (σ_j > min(N, D)·ε·σ_1, ε of the dtype computed in).
    fit_range : (int, int), optional
        First and last rank, from 1, both included, instead of the convention's.

    Returns
    -------
    float
        α; NaN where fewer than two eigenvalues fall in the range. 0 is a flat spectrum.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import alpha_req_from_singular_values
    >>> round(alpha_req_from_singular_values(np.arange(1, 200) ** -0.5), 12)
    1.0
    """
    checks.choice("convention", convention, _ALPHA_REQ)
    s = singular_values(x, center=True)
    rtol = min(x.shape) * (2.0**-52 if _xp.dtype_name(x) == "float64" else 2.0**-23)
    return power_law_fit(s, convention=convention, fit_range=fit_range, rtol=rtol).alpha


def alpha_req_from_singular_values(
    s: Any,
    *,
    convention: str = "reptrix",
    fit_range: tuple[int, int] | None = None,
    rtol: float | None = None,
) -> float:
    """`alpha_req` from the singular values of the centred matrix (`power_law_fit`'s exponent)."""
    return power_law_fit(s, convention=convention, fit_range=fit_range, rtol=rtol).alpha


def power_law_fit(
    s: Any,
    *,
    convention: str = "reptrix",
    fit_range: tuple[int, int] | None = None,
    rtol: float | None = None,
) -> PowerLaw:
    """The line behind `alpha_req`, for a plot of the spectrum.

    Parameters
    ----------
    s : array_like (R,)
        Singular values of the centred embeddings.
    convention, fit_range
        As for `alpha_req`.
    rtol : float, optional
        Singular values at or below rtol times the largest are rounding and not fitted; by
        default R·2⁻⁵².

    Returns
    -------
    PowerLaw
        ``(alpha, log_amplitude, r_squared, first, last)`` for λ_j = σ_j²; `first` and `last` are
        the ranks used. NaN where fewer than two eigenvalues fall in the range. R² is weighted as
        the fit is; NaN for a flat spectrum.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import power_law_fit
    >>> fit = power_law_fit(3.0 * np.arange(1, 200) ** -0.5, fit_range=(10, 50))
    >>> round(fit.alpha, 9), round(float(np.exp(fit.log_amplitude)), 9), fit.first, fit.last
    (1.0, 9.0, 10, 50)
    """
    checks.choice("convention", convention, _ALPHA_REQ)
    s = spectrum("s", s)
    first, last, exponent = _ALPHA_REQ[convention]
    if fit_range is not None:
        first, last = fit_range
        if not 1 <= first < last <= s.size:
            raise ValueError(
                f"expected fit_range = (first, last) with 1 <= first < last <= {s.size}; "
                f"found {fit_range!r}"
            )
    rank = int(np.sum(s > (s.size * 2.0**-52 if rtol is None else rtol) * s[0]))
    last = rank if last is None else min(last, rank)
    if last <= first:
        return PowerLaw(math.nan, math.nan, math.nan, first, last)
    j = np.arange(first, last + 1)
    u, v = np.log(j), 2.0 * np.log(s[first - 1 : last])
    w = 1.0 / j**exponent
    w /= w.sum()
    u_mean, v_mean = w @ u, w @ v
    slope = (w @ ((u - u_mean) * (v - v_mean))) / (w @ (u - u_mean) ** 2)
    residual = v - v_mean - slope * (u - u_mean)
    spread = float(w @ (v - v_mean) ** 2)
    r_squared = 1.0 - float(w @ residual**2) / spread if spread > 0 else math.nan
    return PowerLaw(-float(slope), float(v_mean - slope * u_mean), r_squared, first, last)


# --- shared ---------------------------------------------------------------------------------------


def _normalised(s: np.ndarray, power: int) -> np.ndarray:
    """s^power divided by its sum, all zero if s is; scaled first, so that nothing overflows."""
    if s[0] == 0:
        return np.zeros_like(s)
    values = (s / s[0]) ** power
    return values / math.fsum(values)


def _exp_entropy(p: np.ndarray, eps: float) -> float:
    if p[0] == 0:
        return 0.0
    p = p + eps
    p = p[p > 0]  # 0 log 0 = 0
    return math.exp(-math.fsum(p * np.log(p)))
