"""Backends, devices and dtypes of the tests.

``backend`` runs a test on every selected backend (JAX with 64-bit types on); ``where`` on every
selected (backend, dtype), with JAX's 64-bit types on for float64 only, so that what holds in
float32 holds without them. ``pytest --backend torch`` restricts the list; optional backends
(cupy, torch-cuda) run only when named.

JAX compiles every operation for every shape, which is most of the suite's time. So there the
variants of a loss (``Case.variant``) run only in tests marked ``variants_on_jax``, which compile a
case once as a whole; all other tests run the first case of each loss. A test marked
``lean_on_jax(name=[...])`` runs there for these values of its parameter only.
"""

import gc
import os
import sys
from typing import NamedTuple

import numpy as np
import pytest

from tests.backends import OPTIONAL, REQUIRED, Backend
from visreg_core.losses import declaration

FLOATS = ("float64", "float32")
# Files of few, long tests come first: at the end, one would keep a single worker busy.
LONG = ("test_kernels_interpreted", "test_kernels_compiled", "test_sharded", "test_compile")

QUICK_TO_COMPILE = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
}


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        action="append",
        choices=[b.value for b in Backend],
        help="run on this backend only; may be repeated (default: all required backends)",
    )


def pytest_configure(config):
    # What JAX compiled in an earlier run is read from disk, which halves the time of its tests; on
    # a clean checkout, as CI's is, writing it costs a tenth more. By the environment, because JAX
    # is not imported yet, and for the processes that tests start.
    if "CI" not in os.environ:
        folder = str(config.rootpath / ".pytest_cache/jax")
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", folder)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    # Programs run once: one that is hardly optimised is compiled in a fifth of the time. `test_jit`
    # compiles as users do.
    for name, value in QUICK_TO_COMPILE.items():
        os.environ.setdefault(name, value)
    for backend in OPTIONAL:
        config.addinivalue_line("markers", f"{backend.name.lower()}: needs {backend.value}")
    config.addinivalue_line("markers", "variants_on_jax: runs a loss's variants on JAX too")
    config.addinivalue_line("markers", "lean_on_jax(**values): parameters to keep on JAX")
    config.addinivalue_line("markers", "dtypes(*names): dtypes of the `where` fixture")
    config.addinivalue_line("markers", "backends(*names): backends a test is meant for")


def selected(config):
    chosen = config.getoption("--backend")
    return [b for b in Backend if b.value in chosen] if chosen else list(REQUIRED)


class Where(NamedTuple):
    """A backend and the dtype of its arrays."""

    backend: Backend
    dtype: str

    def __str__(self):
        return f"{self.backend}-{self.dtype}"

    def asarray(self, a, dtype=None):
        """``a`` as this backend's array; floats in this dtype, other kinds as they are."""
        a = np.asarray(a)
        return self.backend.asarray(a, dtype or (self.dtype if a.dtype.kind == "f" else None))

    def to_numpy(self, x):
        return self.backend.to_numpy(x)


def _marks(backend):
    return [getattr(pytest.mark, backend.name.lower())] if backend in OPTIONAL else []


def pytest_generate_tests(metafunc):
    wanted = metafunc.definition.get_closest_marker("backends")
    backends = [b for b in selected(metafunc.config) if wanted is None or b.value in wanted.args]
    if "backend" in metafunc.fixturenames:
        params = [pytest.param(b, marks=_marks(b), id=str(b)) for b in backends]
        metafunc.parametrize("backend", params, indirect=True)
    if "where" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("dtypes")
        dtypes = marker.args if marker else FLOATS
        params = [
            pytest.param(Where(b, d), marks=_marks(b), id=f"{b}-{d}")
            for b in backends
            for d in dtypes
            if b.supports(d)
        ]
        metafunc.parametrize("where", params, indirect=True)


def _worth_compiling(item):
    """Whether JAX's compile time is spent on this item (always on other backends)."""
    parameters = dict(item.callspec.params) if hasattr(item, "callspec") else {}
    where = parameters.get("where", parameters.get("backend"))
    if Backend.JAX not in (where, getattr(where, "backend", None)):
        return True
    if isinstance(where, Where):
        parameters["dtype"] = where.dtype
    variant = getattr(parameters.get("case"), "variant", "")
    if variant and item.get_closest_marker("variants_on_jax") is None:
        return False
    return all(
        parameters.get(name) in values
        for marker in item.iter_markers("lean_on_jax")
        for name, values in marker.kwargs.items()
    )


def pytest_collection_modifyitems(config, items):
    skipped = [item for item in items if not _worth_compiling(item)]
    config.hook.pytest_deselected(items=skipped)
    items[:] = [item for item in items if _worth_compiling(item)]
    items.sort(key=lambda item: item.path.stem not in LONG)  # which leaves the rest in order


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session):
    """What is imported stays: a look for garbage, which takes a second by now, leaves it out."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def backend(request):
    with request.param.precision("float64"):
        yield request.param


@pytest.fixture
def where(request):
    with request.param.backend.precision(request.param.dtype):
        yield request.param


@pytest.fixture
def rng():
    return np.random.default_rng(20261123)


@pytest.fixture(autouse=True)
def declared_before():
    """Losses that an example or a test declares are removed before the next."""
    before = dict(declaration._DECLARED)
    yield
    declaration._DECLARED.clear()
    declaration._DECLARED.update(before)


@pytest.fixture(autouse=True)
def _types_of_before():
    """Commands switch on JAX's 64-bit types for good; the next test starts without."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_enable_x64", False)


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled():
    """JAX keeps every compiled operation: gigabytes by the end of the suite."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session", autouse=True)
def _strictest_array_api():
    """array-api-strict at its strictest: no boolean indexing, no data-dependent shapes."""
    import array_api_strict

    array_api_strict.set_array_api_strict_flags(boolean_indexing=False, data_dependent_shapes=False)
    yield
    array_api_strict.reset_array_api_strict_flags()
