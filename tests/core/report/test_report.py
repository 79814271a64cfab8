"""Reports: the numbers are the public functions', however the file is cut into blocks."""

import json
import re
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import ml_dtypes
import numpy as np
import pytest

from visreg_core import _xp, metrics, report
from visreg_core import losses as public
from visreg_core.embeddings import EmbeddingsError, _source, load
from visreg_core.gaussian import normal_quantiles
from visreg_core.report import _conditions, _figures, _html, _json, _model, _streaming, _tables
from visreg_core.slices import random_slices
from visreg_core.statistics import _moments

K = 24


def embedding(n, d, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) / np.sqrt(d)
    return (mixed * np.linspace(0.5, 2, d) + rng.standard_normal(d)).astype(dtype)


@pytest.fixture
def saved(tmp_path):
    def save(z, name="z.npy"):
        np.save(tmp_path / name, z)
        return load(tmp_path / name)

    return save


@pytest.fixture(params=["whole", "folded"])
def cut(request, monkeypatch):
    """Everything in one block, or blocks of a few rows and a folded scatter."""
    if request.param == "folded":
        monkeypatch.setattr(_source, "BLOCK_VALUES", 100)
        monkeypatch.setattr(_moments, "KEPT_VALUES", 0)


def expected_losses(z, slices):
    terms = public.visreg_loss(z, slices)
    return {
        "visreg_loss": terms.total,
        "scale_loss": terms.scale,
        "shape_loss": terms.shape,
        "center_loss": terms.center,
        "gaussian_sliced_wasserstein": public.gaussian_sliced_wasserstein(z, slices),
        "sigreg_loss": public.sigreg_loss(z, slices),
        "variance_loss": public.variance_loss(z),
        "covariance_loss": public.covariance_loss(z),
    }


@pytest.mark.parametrize(("n", "d"), [(300, 12), (7, 40), (13, 12), (2, 5), (50, 1)])
@pytest.mark.usefixtures("cut")
def test_losses_are_the_public_ones(saved, n, d):
    z = embedding(n, d)
    found = report.report(saved(z), n_slices=K, seed=3).losses
    assert tuple(found) == _model.LOSSES
    for name, expected in expected_losses(z, random_slices(d, K, seed=3)).items():
        rel = 1e-8 if name == "sigreg_loss" else 1e-11  # its sums are good to 1e-8
        assert found[name].value == pytest.approx(float(expected), rel=rel, abs=1e-20), name


@pytest.mark.parametrize(("n", "d"), [(300, 12), (9, 30), (50, 1)])
@pytest.mark.usefixtures("cut")
def test_spectrum_is_the_public_one(saved, n, d):
    z = embedding(n, d)
    found = report.report(saved(z), n_slices=2).dimensions
    assert tuple(found) == _model.DIMENSIONS
    for name, value in found.items():
        if name == "alpha_req_r_squared":
            expected = metrics.power_law_fit(metrics.singular_values(z, center=True)).r_squared
        else:
            expected = getattr(metrics, name)(z)
        assert value == pytest.approx(expected, rel=1e-8, nan_ok=True), name


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_narrow_files(saved, dtype):
    z = embedding(400, 16, dtype)
    found = report.report(saved(z), n_slices=K)
    assert found.dtype == np.dtype(dtype).name
    wide = z.astype(np.float32)
    for name, expected in expected_losses(wide, random_slices(16, K, dtype=np.float32)).items():
        assert found.losses[name].value == pytest.approx(float(expected), rel=1e-5), name


def test_a_small_deviation_beside_a_large_mean(saved):
    """A float32 mean of 100 is off by up to 4e-6, a good part of these deviations."""
    z = (100.1 + 1e-4 * embedding(500, 6)).astype(np.float32)
    found = report.report(saved(z), n_slices=K).losses["shape_loss"].value
    expected = public.shape_loss(z.astype(np.float64), random_slices(6, K))
    assert found == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("shape_loss", public.shape_loss),
        ("gaussian_sliced_wasserstein", public.gaussian_sliced_wasserstein),
        ("sigreg_loss", public.sigreg_loss),
    ],
)
def test_standard_errors(saved, name, loss):
    z = embedding(100, 6)
    slices = random_slices(6, K)
    single = [float(loss(z, slices[:, k : k + 1])) for k in range(K)]
    found = report.report(saved(z), n_slices=K).losses[name]
    assert found.standard_error == pytest.approx(np.std(single, ddof=1) / np.sqrt(K))


def test_standard_error_is_that_of_repeated_draws(saved):
    z = saved(embedding(200, 8))
    draws = [report.report(z, n_slices=K, seed=s).losses["shape_loss"] for s in range(60)]
    spread = np.std([e.value for e in draws], ddof=1)
    assert np.mean([e.standard_error for e in draws]) == pytest.approx(spread, rel=0.35)


@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_a_device_gives_the_same(saved, monkeypatch, budget, library):
    """A library's arithmetic on the CPU stands for a GPU's: no report asks for it."""
    files = [saved(embedding(n, 8, np.float32, seed=n), f"{n}.npy") for n in (200, 150)]
    if budget is not None:
        monkeypatch.setattr(_streaming, "PROJECTION_BYTES", budget)
    host = report.compare(files, n_slices=K)
    monkeypatch.setattr(_streaming.Place, "is_cpu", False)
    place = _streaming.Place(*_xp.open_backend(library, "cpu"))
    device = report.compare(files, n_slices=K, place=place)
    for mine, its in zip(host.reports, device.reports, strict=True):
        for name, e in mine.losses.items():
            assert its.losses[name].value == pytest.approx(e.value, rel=1e-4), name
        np.testing.assert_allclose(its.pictures.worst, mine.pictures.worst, rtol=1e-5, atol=1e-5)
    distances = [c.pairs[0].sliced_wasserstein.value for c in (host, device)]
    assert distances[1] == pytest.approx(distances[0], rel=1e-5)


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_on_a_cpu_numpy_computes(saved, library):
    z = saved(embedding(200, 8, np.float32))
    place = _streaming.Place(*_xp.open_backend(library, "cpu"))
    assert place.fastest().xp.__name__ == "array_api_compat.numpy"
    found = report.report(z, n_slices=K, place=place)
    assert found.losses == report.report(z, n_slices=K).losses


def test_collapse(saved):
    z = np.full((49, 4), 0.1)
    assert z.mean() != 0.1  # the rounded mean of equal numbers
    found = report.report(saved(z), n_slices=4)
    assert found.losses["scale_loss"].value == 1
    assert found.losses["covariance_loss"].value == 0
    assert found.dimensions["participation_ratio"] == 0
    assert np.isinf(found.dimensions["condition_number"])


def test_rows_are_drawn(saved):
    z = embedding(300, 5)
    stored = saved(z)
    found = report.report(stored, rows=100, n_slices=K, seed=2)
    chosen = stored.sample(100, seed=2).to_numpy()
    assert found.shape == (300, 5)
    assert found.rows_read == 100
    assert found.losses["center_loss"].value == pytest.approx(float(public.center_loss(chosen)))


def test_bad_rows_are_counted_and_named(saved):
    z = embedding(300, 5)
    z[[3, 7, 9, 100, 101, 102, 299], 2] = np.nan, np.inf, -np.inf, np.nan, np.nan, 1e200, np.nan
    with pytest.raises(EmbeddingsError, match=r"in 7 of 300 rows \(3, 7, 9, 100, 101, …\)"):
        report.report(saved(z))
    z[:200], z[250] = 0, np.inf
    chosen = saved(z).select(np.arange(240, 260))
    with pytest.raises(EmbeddingsError, match=r"in 1 of 20 rows \(250\)"):
        report.report(chosen)


# --- pairs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [200, 130])
@pytest.mark.usefixtures("cut")
def test_pairs_are_the_public_functions(saved, m):
    a, b = embedding(200, 6), embedding(m, 6, seed=1)
    found = report.compare(
        [saved(a, "a.npy"), saved(b, "b.npy")], paired=m == 200, n_slices=K, seed=4
    )
    assert [r.name.split("/")[-1] for r in found.reports] == ["a.npy", "b.npy"]
    (pair,) = found.pairs
    slices = random_slices(6, K, seed=4)
    assert pair.sliced_wasserstein.value == pytest.approx(
        float(public.sliced_wasserstein(a, b, slices)), rel=1e-12
    )
    powers = [
        float(public.sliced_wasserstein(a, b, slices[:, k : k + 1], power=True)) for k in range(K)
    ]
    error = np.std(powers, ddof=1) / np.sqrt(K) / (2 * pair.sliced_wasserstein.value)
    assert pair.sliced_wasserstein.standard_error == pytest.approx(error)
    if m == 200:
        assert pair.linear_cka == pytest.approx(metrics.linear_cka(a, b), rel=1e-10)
    else:
        assert pair.linear_cka is None


def test_pairs_of_different_widths(saved):
    a, b, c = embedding(90, 6), embedding(90, 9), embedding(90, 6)
    stored = [saved(z, f"{i}.npy") for i, z in enumerate((a, b, c))]
    found = report.compare(stored, paired=True, n_slices=2)
    assert [(p.first[-5], p.second[-5]) for p in found.pairs] == [
        ("0", "1"),
        ("0", "2"),
        ("1", "2"),
    ]
    assert [p.sliced_wasserstein is None for p in found.pairs] == [True, False, True]
    assert found.pairs[1].sliced_wasserstein[:2] == (0, 0)
    assert found.pairs[1].linear_cka == pytest.approx(1)
    assert found.pairs[0].linear_cka == pytest.approx(metrics.linear_cka(a, b))


def test_drawn_pairs_keep_the_same_items(saved):
    a = embedding(500, 6)
    found = report.compare(
        [saved(a, "a.npy"), saved(-3 * a, "b.npy")], paired=True, rows=50, n_slices=2
    )
    assert found.pairs[0].linear_cka == pytest.approx(1)


# --- pictures and pages ---------------------------------------------------------------------------


def test_pictures(saved):
    z = embedding(300, 17)
    p = report.report(saved(z), n_slices=K).pictures
    assert np.allclose(p.eigenvalues, np.linalg.eigvalsh(np.cov(z.T))[::-1])
    assert np.allclose(p.sigma, z.std(axis=0))
    assert np.allclose(p.correlation, np.corrcoef(z.T))
    assert p.fit.alpha == metrics.power_law_fit(np.sqrt(p.eigenvalues), rtol=17 * 2.0**-52).alpha
    single = [float(public.shape_loss(z, random_slices(17, K)[:, k : k + 1])) for k in range(K)]
    assert p.worst_slice == (np.argmax(single), pytest.approx(max(single)))
    assert p.median_slice == (np.argsort(single)[K // 2], pytest.approx(np.sort(single)[K // 2]))
    normalised = (z - z.mean(0)) / (z.std(0) + 1e-6)
    for points, (index, _) in ((p.worst, p.worst_slice), (p.median, p.median_slice)):
        every = np.sort(normalised @ random_slices(17, K)[:, index])
        assert np.allclose(points, every[np.isin(normal_quantiles(300), p.quantiles)])
    assert p.quantiles[[0, -1]].tolist() == normal_quantiles(300)[[0, -1]].tolist()


@pytest.mark.parametrize(
    "z",
    [embedding(40, 6), embedding(40, 1), embedding(2, 9), np.full((9, 3), 0.1), embedding(90, 300)],
)
def test_figures_of_every_kind_of_data(saved, z):
    p = report.report(saved(z), n_slices=2).pictures
    for drawn in (_figures.figures([p], ["a"]), _figures.figures([p] * 4, list("abcd"))):
        assert len(drawn) == 5
        assert all(ElementTree.fromstring(svg).tag.endswith("svg") for svg in drawn.values())
    assert _figures.figures([p], ["a"]) == _figures.figures([p], ["a"])


@pytest.fixture
def comparison(saved):
    names = ["<script>alert(1)</script>.npy", "[red]$x_1$ & “b”.npy"]
    stored = [saved(embedding(50, 4, seed=i), n.replace("/", "")) for i, n in enumerate(names)]
    return report.compare(stored, paired=True, n_slices=2)


def without_scripts(page):
    return re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def numbered(page):
    """With Bokeh's models, which it counts in each process, counted from 0."""
    known = {}
    return re.sub(r"\bp\d{4,}\b", lambda m: f"p{known.setdefault(m[0], len(known))}", page)


def test_a_page_of_five_files_is_small():
    """As many rows are drawn of these as of larger files, and as much is said of them."""
    rng = np.random.default_rng(0)
    classes = rng.integers(100, size=2100)
    centres = (
        rng.standard_normal((100, 128)) + 2 * rng.standard_normal((24, 128))[np.arange(100) % 24]
    )
    files = [
        (centres[classes] + (2 - step / 4) * rng.standard_normal((2100, 128))).astype(np.float32)
        for step in range(5)
    ]
    found = report.compare(
        files, paired=True, labels=np.stack([classes % 24, classes], axis=1), steps=range(5)
    )
    assert len(_html.to_html(found, {}).encode()) < 4.5e6


def test_html_is_self_contained_and_escaped(comparison):
    page = _html.to_html(comparison, {"seed": 0, "device": None})
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, attributes))
    parser.feed(page)
    assert [tag for tag in tags if tag[0] == "script"] == 3 * [("script", [])]  # nothing fetched
    html = without_scripts(page)
    assert "&lt;script&gt;alert(1)&lt;script&gt;.npy" in html
    assert "[red]$x_1$ &amp; “b”.npy" in html
    shown = re.sub(r'src="data:[^"]*"', "", html)  # with the namespaces of SVG
    assert "http" not in shown.replace("http-equiv", "")
    assert html.count("<img") == 9  # a dendrogram each, a tanglegram, branches that differ
    for name in _conditions.known_names(pairs=True):
        if name not in _model.LABELLED:
            assert f"<th>{name}<small>" in html.replace("\u200b", "")


def test_a_notebook_shows_the_page(comparison, monkeypatch):
    """In a frame's attribute, which Python's own parser reads back."""
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(comparison._repr_html_())
    ((tag, attributes),) = found
    shown, page = (numbered(p) for p in (attributes["srcdoc"], _html.to_html(comparison, {})))
    assert tag == "iframe" and shown == page
    one = comparison.reports[0]._repr_html_()
    assert "Pairs of files" not in one and "scale_loss" in one.replace("\u200b", "")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert comparison._repr_html_() is None


def test_json_has_every_number(comparison):
    text = _json.to_json(comparison, {"seed": 0})
    read = json.loads(text)
    assert [e["file"] for e in read["embeddings"]] == [r.name for r in comparison.reports]
    first = comparison.reports[0]
    assert {k: v["value"] for k, v in read["embeddings"][0]["losses"].items()} == {
        k: v.value for k, v in first.losses.items()
    }
    assert read["embeddings"][0]["dimensions"].keys() == first.dimensions.keys()
    assert read["pairs"][0]["linear_cka"] == comparison.pairs[0].linear_cka


def test_json_has_no_bare_nan(saved):
    found = report.report(saved(np.zeros((9, 3))), n_slices=2)
    read = json.loads(_json.to_json(report.Comparison([found], []), {}), parse_constant=pytest.fail)
    assert read["embeddings"][0]["dimensions"]["alpha_req"] == "NaN"
    assert np.isnan(float("NaN"))


def test_every_name_has_a_meaning():
    assert set(_tables.MEANINGS) == {*_conditions.known_names(pairs=True), "by_chance"}


# --- conditions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("rankme<50", ("rankme", "<", 50)),
        (" rankme >= 5e1 ", ("rankme", ">=", 50)),
        ("alpha_req!=-1", ("alpha_req", "!=", -1)),
    ],
)
def test_conditions(text, parsed):
    assert _conditions.parse(text, _conditions.known_names(pairs=False)) == parsed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rankme", "expected NAME"),
        ("rankme<", "expected NAME"),
        ("rankme<x", "expected a number after rankme<; found 'x'"),
        ("rank<5", "expected one of .*, condition_number, .*, visreg_loss, .*; found 'rank'"),
        ("linear_cka<5", "found 'linear_cka'"),
        ("rankme=<5", "expected NAME"),
        ("__import__('os')", "expected NAME"),
    ],
)
def test_wrong_conditions(text, message):
    with pytest.raises(ValueError, match=message):
        _conditions.parse(text, _conditions.known_names(pairs=False))


@pytest.mark.parametrize(
    ("sign", "met"), [("<", 0), ("<=", 1), (">", 0), (">=", 1), ("==", 1), ("!=", 0)]
)
def test_signs(saved, sign, met):
    found = report.Comparison([report.report(saved(np.zeros((9, 3))), n_slices=2)], [])
    assert len(_conditions.met([_conditions.Condition("scale_loss", sign, 1.0)], found)) == met


def test_what_is_not_defined_does_not_pass(saved):
    a, b = saved(np.zeros((9, 3)), "a.npy"), saved(np.ones((8, 2)), "b.npy")
    found = report.compare([a, b], n_slices=2)
    for name, count in (("alpha_req", 2), ("linear_cka", 1), ("sliced_wasserstein", 1)):
        lines = _conditions.met([_conditions.Condition(name, "<", -1e9)], found)
        assert len(lines) == count


# --- passes over the file -------------------------------------------------------------------------


class Counted:
    """Embeddings that count how often each of their rows is read."""

    def __init__(self, z, name):
        self.reads = np.zeros(len(z), int)
        self.stored = _source.embeddings(name, z.shape, z.dtype, lambda rows: self.pieces(z, rows))

    def pieces(self, z, rows):
        for start in range(0, len(z), rows):
            self.reads[start : start + rows] += 1
            yield z[start : start + rows]


@pytest.mark.parametrize("budget", [None, 0])
def test_each_row_is_read_twice_at_most(monkeypatch, budget):
    if budget is not None:
        monkeypatch.setattr(_streaming, "PROJECTION_BYTES", budget)
    monkeypatch.setattr(_source, "BLOCK_VALUES", 1000)
    z = embedding(1500, 6)
    z[7] = np.nan
    labels = np.arange(1500) % 5
    files = [Counted(a, name) for a, name in ((z, "a"), (2 * z, "b"), (z[:900], "c"))]
    a, b, c = (f.stored for f in files)
    options = {"n_slices": 4, "drop_bad_rows": True, "tree": _model.TreeOptions(rows=40)}
    report.report(a, labels=labels, **options)
    assert files[0].reads.max() == 2
    report.report(b, rows=300, label_rows=20, labels=labels, **options)
    report.compare([a, c], **options)
    report.compare([a, b], paired=True, labels=labels, **options)
    assert [f.reads.max() for f in files] == [6, 4, 2]


def test_histograms_say_how_far_they_may_be_off(monkeypatch, saved):
    files = [saved(embedding(2000, 6, seed=s), f"{s}.npy") for s in (0, 1)]
    exact = report.compare(files, n_slices=K)
    monkeypatch.setattr(_streaming, "PROJECTION_BYTES", 0)
    counted = report.compare(files, n_slices=K)
    for one, other in zip(exact.reports, counted.reports, strict=True):
        for name in ("visreg_loss", "shape_loss", "gaussian_sliced_wasserstein"):
            (value, error, bound), known = other.losses[name], one.losses[name]
            assert known.bound is None
            assert 0 <= known.value - value <= bound < 0.01 * value
            assert error == pytest.approx(known.standard_error, rel=1e-3)
        assert other.losses["sigreg_loss"] == one.losses["sigreg_loss"]
        assert np.allclose(other.pictures.worst, one.pictures.worst, atol=0.1)
        assert np.array_equal(other.pictures.quantiles, one.pictures.quantiles)
    value, _, bound = counted.pairs[0].sliced_wasserstein
    known = exact.pairs[0].sliced_wasserstein.value
    assert abs(value - known) <= bound
    assert value == pytest.approx(known, rel=1e-3)
    said = "exact ones are larger by at most"
    assert said in _html.to_html(counted, {})
    assert said not in _html.to_html(exact, {})
    bound = exact.reports[0].losses["shape_loss"].value
    line = _conditions.met([_conditions.Condition("shape_loss", ">=", bound)], counted)[0]
    assert "may meet shape_loss>=" in line


def test_blas_is_on_one_thread_while_a_report_is_made():
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def blas():
        known = threadpoolctl.threadpool_info()
        return {one["num_threads"] for one in known if one["user_api"] == "blas"}

    before, seen = blas(), set()
    report.report(np.random.default_rng(0).standard_normal((50, 4)), n_slices=2,
                  tick=lambda *_: seen.update(blas()))  # fmt: skip
    assert seen == {1} and blas() == before
