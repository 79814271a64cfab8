"""One declaration per public loss, from which tests are parametrised and tables are written.

``FUNCTIONS`` says what each declared loss takes; ``CASES`` are the ways the tests call it, each
with its float64 transcription: the first of a loss is the function of the same name in
`tests.core.reference`, its variants are listed here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

import visreg_core
from tests.core import reference
from visreg_core.losses.declaration import declared


@dataclass(frozen=True)
class Loss:
    """What a public loss takes.

    ``arrays`` maps the positional array arguments to their number of axes in one batch, ``wrt``
    names the differentiated ones, ``rows`` those with one row a sample (``row_mask`` drops them).
    """

    name: str
    arrays: Mapping[str, int]
    wrt: tuple[str, ...]
    row_mask: bool = True
    leading: bool = True
    fields: tuple[str, ...] = ("value",)

    @property
    def function(self):
        return getattr(visreg_core, self.name)

    @property
    def sliced(self):
        return "slices" in self.arrays

    @property
    def chunked(self):
        return "chunk_size" in self.function.declaration.signature.parameters

    @property
    def rows(self):
        return tuple(a for a in self.arrays if a not in ("slices", "affinity"))

    def row_axis(self, array):
        return -1 if self.arrays[array] == 1 else -2


_NDIM = {"slices": 2, "affinity": 2, "views": 3}


def _declared(declaration):
    """A loss as its declaration describes it."""
    taken = declaration.examples[0].arrays
    arrays = {}
    for name in dict.fromkeys((*declaration.differentiated, *declaration.required)):
        ndim = 2 if declaration.row_axes.get(name) == -2 else 1
        arrays[name] = _NDIM.get(taken.get(name, name), ndim)
    return Loss(
        declaration.name,
        arrays,
        declaration.differentiated,
        # Masked rows of an affinity are columns, too: it has a test of its own.
        row_mask="row_mask" in declaration.signature.parameters and "affinity" not in arrays,
        leading=next(iter(arrays.values())) == 2,
        fields=declaration.fields,
    )


FUNCTIONS = {
    d.name: _declared(d) for d in declared() if d.forward.__module__.startswith("visreg_core")
}

# Public functions of arrays that are not losses of embeddings: they have tests of their own.
OTHER_FUNCTIONS = (
    "joint_objective",
    "declare_loss",
    "normal_quantiles",
    "orthonormalize",
    "random_slices",
    "random_walk_affinity",
    "random_walk_pairs",
    "rectified_generalized_gaussian",
    "sample_random_walk",
    "slices_for",
    "structured_slices",
    "subspace_slices",
    "transition_matrix",
    "value_and_grad",
    "value_and_vjp",
)


@dataclass(frozen=True)
class Case:
    """A way to call a loss, and the formula it must agree with.

    ``held`` computes, at the point of differentiation, what a stop-gradient holds fixed there;
    the transcription takes it as keyword arguments.
    """

    loss: Loss
    reference: Callable
    variant: str = ""
    options: Mapping = field(default_factory=dict)
    arrays: Mapping[str, int] | None = None  # where they are not the loss's own
    wrt: tuple[str, ...] | None = None
    held: Callable | None = None
    unequal: bool = False
    weighted: bool = False

    @property
    def id(self):
        return self.loss.name + (f"-{self.variant}" if self.variant else "")

    def __str__(self):
        return self.id

    @property
    def array_ndims(self):
        return dict(self.loss.arrays if self.arrays is None else self.arrays)

    @property
    def differentiated(self):
        return self.loss.wrt if self.wrt is None else self.wrt

    @property
    def leading(self):
        return self.loss.leading and self.arrays is None

    def draw(self, rng, n=12, d=5, k=7, leading=()):
        """Float64 NumPy arrays by argument name, in the order of the positional arguments.

        Embeddings are correlated, off centre and of uneven scale. Leading axes go to the
        embeddings only.
        """
        mix = np.eye(d) + 0.4 * rng.normal(size=(d, d))

        def embeddings(rows, *axes):
            z = rng.normal(size=(*leading, *axes, rows, d)) @ mix
            return z * rng.uniform(0.4, 1.6, size=d) + 0.3 * rng.normal(size=d)

        arrays = {}
        for name, ndim in self.array_ndims.items():
            if name == "slices":
                w = rng.normal(size=(d, k))
                arrays[name] = w / np.linalg.norm(w, axis=0)
            elif name == "affinity":
                w = np.exp(-rng.uniform(0, 3, size=(n, n)))
                arrays[name] = w + w.T
            elif name == "pairs":
                arrays[name] = rng.integers(0, n, size=n)
            elif name == "pair_weights":
                arrays[name] = rng.uniform(0.1, 1.0, size=n)
            elif name.endswith("_weights"):
                w = rng.uniform(0.1, 1.0, size=arrays[name[0]].shape[-2])
                arrays[name] = w / w.sum()
            elif ndim == 1:
                arrays[name] = 0.3 + 1.2 * rng.normal(size=n)
            elif ndim == 3:
                shared = embeddings(n)
                arrays[name] = shared + 0.5 * rng.normal(size=(3, n, d))
            elif name == "b":
                arrays[name] = arrays["a"] + 0.5 * rng.normal(size=arrays["a"].shape)
            elif name == "y" and self.unequal:
                arrays[name] = embeddings(n + 5)
            else:
                arrays[name] = embeddings(n)
        return arrays

    def split(self, arrays):
        """Positional and keyword arguments of a call (JAX sorts dictionaries by key)."""
        keyword = {n: a for n, a in arrays.items() if n in ("x_weights", "y_weights")}
        return [arrays[n] for n in self.array_ndims if n not in keyword], {
            **self.options,
            **keyword,
        }

    @property
    def function(self):
        return self.loss.function

    def call(self, arrays, **extra):
        positional, keyword = self.split(arrays)
        return self.function(*positional, **keyword, **extra)

    def value_and_grad(self, arrays, **extra):
        """``(result, gradients)`` with gradients as a tuple, one per differentiated argument."""
        positional, keyword = self.split(arrays)
        result, gradient = visreg_core.value_and_grad(self.function)(
            *positional, **keyword, **extra
        )
        return result, self.as_tuple(gradient)

    def value_and_vjp(self, arrays, **extra):
        positional, keyword = self.split(arrays)
        result, vjp = visreg_core.value_and_vjp(self.function)(*positional, **keyword, **extra)
        return result, lambda *cotangents: self.as_tuple(vjp(*cotangents))

    def as_tuple(self, gradient):
        if len(self.differentiated) == 1:
            assert not isinstance(gradient, tuple), "one embedding has one gradient"
            return (gradient,)
        assert isinstance(gradient, tuple) and len(gradient) == len(self.differentiated)
        return gradient

    def fields(self, result):
        """Fields of a result by name: a scalar has the one field ``value``."""
        if isinstance(result, tuple):
            assert result._fields == self.loss.fields
            return result._asdict()
        assert self.loss.fields == ("value",)
        return {"value": result}

    def scalar(self, result):
        return result.total if isinstance(result, tuple) else result

    def expected(self, arrays, **held):
        """``{field: Term}`` from the transcription, averaged over leading axes."""
        return reference.over_leading(
            self.reference, arrays, self.array_ndims, **{**self.options, **held}
        )

    def hold(self, arrays):
        return {} if self.held is None else self.held(arrays, self.options)


def _hold_sigma(arrays, options):
    return {"sigma": reference.biased_std(arrays["z"])}


def _hold_center(arrays, options):
    return {"center": reference.global_center(arrays["z"], options.get("n_global"))}


def _hold_assignments(arrays, options):
    found = [reference.assignment(arrays[name]) for name in ("a", "b")]
    return {"assignments": found}


_HELD = {"shape_loss": _hold_sigma, "visreg_loss": _hold_sigma, "swav_loss": _hold_assignments}
_SW_WEIGHTED = {"x": 2, "y": 2, "slices": 2, "x_weights": 1, "y_weights": 1}
_VIEWS = {"views": 3}


def _cases():
    def add(name, variant="", options=None, **fields):
        of = fields.pop("of", getattr(reference, name))
        cases.append(Case(FUNCTIONS[name], of, variant, options or {}, **fields))

    cases = []
    for name in FUNCTIONS:
        add(name, held=_HELD.get(name))
    add("center_loss", "sum", {"reduction": "sum"})
    add("shape_loss", "attached", {"detach_scale": False})
    add("shape_loss", "sum", {"reduction": "sum"}, held=_hold_sigma)
    add("shape_loss", "eps", {"eps": 0.1, "detach_scale": False})
    add("visreg_loss", "weights", {"weights": (0.5, 2, 3)}, held=_hold_sigma)
    add("visreg_loss", "attached", {"weights": (0.5, 2, 3), "detach_scale": False, "eps": 1e-4})
    add("invariance_loss", "global", {"n_global": 2})
    add("invariance_loss", "detached", {"n_global": 2, "detach_center": True}, held=_hold_center)
    add("invariance_loss", "sum", {"reduction": "sum", "n_global": 1})
    add("gaussian_sliced_wasserstein", "sum", {"reduction": "sum"})
    for name in ("sliced_wasserstein", "max_sliced_wasserstein"):
        add(name, "unequal", unequal=True)
        add(name, "weights", arrays=_SW_WEIGHTED, unequal=True)
        add(name, "p1", {"p": 1}, unequal=True)
        add(name, "p3", {"p": 3}, arrays=_SW_WEIGHTED)
        add(name, "p1.5-power", {"p": 1.5, "power": True}, arrays=_SW_WEIGHTED, unequal=True)
        add(name, "power", {"power": True})
    for statistic in ("cramer_von_mises", "watson", "jarque_bera"):
        add("sliced_statistic", statistic, {"statistic": statistic})
    add("gaussian_mmd", "imq", {"kernel": "imq", "bandwidth": 0.8})
    add("gaussian_mmd", "laplace", {"kernel": "laplace"})
    add("gaussian_ksd", "imq", {"kernel": "imq", "bandwidth": 1.5})
    add("spherical_mmd", "wide", {"t": 0.5})
    add("sigreg_limit", "unscaled", {"scale_by_n": False})
    add("epps_pulley", "knots", {"t_max": 5.0, "n_knots": 40})
    add("sigreg_loss", "unscaled", {"scale_by_n": False})
    add("sigreg_loss", "knots", {"t_max": 4.0, "n_knots": 8})
    add("variance_loss", "gamma", {"gamma": 1.5, "eps": 0.01})
    for convention in ("solo-learn", "paper", "visreg"):
        add("vicreg_loss", convention, {"convention": convention})
    add("vicreg_loss", "weights", {"weights": (2, 3, 5), "gamma": 1.4, "eps": 1e-2})
    add(
        "vicreg_loss",
        "views",
        arrays=_VIEWS,
        wrt=("views",),
        of=reference.over_pairs_of_views(reference.vicreg_loss),
    )
    add("barlow_twins_loss", "batchnorm", {"eps": 1e-5})
    add("barlow_twins_loss", "weight", {"off_diagonal_weight": 0.3, "eps": 1e-2})
    add(
        "barlow_twins_loss",
        "views",
        {"off_diagonal_weight": 0.1},
        arrays=_VIEWS,
        wrt=("views",),
        of=reference.over_pairs_of_views(reference.barlow_twins_loss),
    )
    add("wmse_loss", "eps", {"eps": 0.1})
    add(
        "wmse_loss",
        "views",
        arrays=_VIEWS,
        wrt=("views",),
        of=reference.over_pairs_of_views(reference.wmse_loss),
    )
    add("sag_vicreg_loss", "weights", {"weights": (2, 3, 5), "gamma": 1.4, "eps": 1e-2})
    return cases


CASES = tuple(_cases())

# The first case of each loss: what costs much is run on these.
PRIMARY = tuple(next(c for c in CASES if c.loss.name == name) for name in FUNCTIONS)

# And those whose options take another path through the code: what is compiled is compiled on these.
_OTHER_PATHS = (
    "shape_loss-attached",
    "invariance_loss-global",
    "sliced_wasserstein-unequal",
    "sliced_wasserstein-p1.5-power",
    "max_sliced_wasserstein-weights",
    "vicreg_loss-visreg",
    "vicreg_loss-views",
    "barlow_twins_loss-views",
)
PATHS = tuple(c for c in CASES if c in PRIMARY or c.id in _OTHER_PATHS)


def named(*names):
    """The first cases of these losses."""
    return tuple(c for c in PRIMARY if c.loss.name in names)


def each(cases):
    return pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in cases])
