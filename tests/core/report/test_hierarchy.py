"""The hierarchy in reports: public functions' numbers, intervals, labels, pictures, conditions."""

import json
import math
import re

import numpy as np
import pytest
import scipy.cluster.hierarchy as sch
from scipy.cluster.hierarchy import leaves_list
from scipy.spatial.distance import squareform
from sklearn.neighbors import NearestNeighbors

from visreg_core import metrics, report
from visreg_core.cli import main
from visreg_core.embeddings import EmbeddingsError, load
from visreg_core.gaussian import normal_quantiles
from visreg_core.losses import epps_pulley
from visreg_core.metrics.gaussianity import mean_z_scores
from visreg_core.metrics.trees import _tree
from visreg_core.report import (
    TreeOptions,
    _conditions,
    _html,
    _json,
    _model,
    _tables,
    _tree_figures,
)
from visreg_core.report._labels import load_labels
from visreg_core.report._trees import TreeRows, tree_pair
from visreg_core.slices import random_slices

LEVELS = 3


def clusters(n, seed=0, d=5):
    """Rows of a tree of 8 clusters, and their classes on three levels."""
    rng = np.random.default_rng(seed)
    tree = np.random.default_rng(99)
    leaf = rng.integers(0, 8, n)
    labels = np.stack([leaf // 4, leaf // 2, leaf], axis=1)
    x = 0.3 * rng.standard_normal((n, d))
    for level, size in enumerate((2.0, 1.0, 0.6)):
        x += size * tree.standard_normal((8, d))[labels[:, level]]
    return x, labels


@pytest.fixture
def saved(tmp_path):
    def save(z, name="z.npy"):
        np.save(tmp_path / name, z)
        return load(tmp_path / name)

    return save


@pytest.fixture
def pair(saved):
    x, labels = clusters(150)
    y = x + 0.5 * np.random.default_rng(1).standard_normal(x.shape)
    return saved(x, "a.npy"), saved(y.astype(np.float32), "b.npy"), labels


TREES = [
    TreeOptions(),
    TreeOptions(method="ward", metric="euclidean"),
    TreeOptions(method="complete", metric="sqeuclidean"),
]


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_pairs_are_the_public_functions(pair, tree):
    a, b, _ = pair
    x, y = a.to_numpy(), b.to_numpy().astype(np.float64)
    found = report.compare([a, b], paired=True, n_slices=2, tree=tree)
    measures = found.pairs[0].trees.measures
    how = {"method": tree.method, "metric": tree.metric}
    lca = metrics.lca_similarity(x, y, **how)
    cophenetic = metrics.cophenetic_similarity(x, y, **how)
    drawn = metrics.tanglegram(metrics.linkage(x, **how), metrics.linkage(y, **how))
    expected = [*lca, *cophenetic, drawn.entanglement]
    assert tuple(measures) == _model.PAIR_OF_TREES
    assert [m.value for m in measures.values()] == pytest.approx(expected, rel=1e-9)
    for r, z in zip(found.reports, (x, y), strict=True):
        expected = metrics.cophenetic_correlation(z, **how)
        assert r.hierarchy.measures["cophenetic_correlation"] == pytest.approx(expected, rel=1e-9)
        assert r.hierarchy.rows == 150
    assert found.tree == tree


@pytest.mark.filterwarnings("ignore:Graph is not fully connected")  # of the public function
@pytest.mark.parametrize("clustering", _model.CLUSTERINGS)
def test_labelled_measures_are_the_public_functions(pair, clustering):
    a, _, labels = pair
    x = a.to_numpy()
    tree = TreeOptions(clustering=clustering)
    found = report.report(a, n_slices=2, labels=labels, tree=tree, seed=3)
    rand = metrics.hierarchical_rand_index(x, labels, clustering=clustering, seed=3)
    assert found.hierarchy.n_classes == found.labelled.n_classes == rand.n_clusters == (2, 4, 8)
    measures = found.labelled.measures
    assert tuple(measures) == _model.LABELLED
    expected = {
        "hierarchical_knn_accuracy": metrics.hierarchical_knn_accuracy(x, labels),
        "hierarchical_linear_accuracy": metrics.hierarchical_linear_accuracy(
            x, labels, solver="discriminant"
        ),
        "lidar": tuple(metrics.lidar(x, c) for c in labels.T),
        "hierarchical_rand_index": rand.rand,
        "hierarchical_adjusted_rand_index": rand.adjusted,
        "triplet_accuracy": metrics.triplet_accuracy(found.hierarchy.linkage, labels),
    }
    for name, values in expected.items():
        assert [m.value for m in measures[name]] == pytest.approx(values, rel=1e-9), name
        assert all(m.low is None for m in measures[name])  # all rows were asked
    logistic = report.report(a, n_slices=2, labels=labels, probe="logistic", seed=3).labelled
    assert [m.value for m in logistic.measures["hierarchical_linear_accuracy"]] == list(
        metrics.hierarchical_linear_accuracy(x, labels, seed=3)
    )
    none = report.report(a, n_slices=2, labels=labels, probe="none").labelled
    assert none.measures["hierarchical_linear_accuracy"] == (None,) * LEVELS


def test_gaussianity_is_the_public_one(saved):
    x = 1.1 * np.random.default_rng(0).standard_normal((90, 6))
    slices = random_slices(6, 16, seed=5)
    found = report.report(saved(x), n_slices=16, seed=5).gaussianity
    tests = metrics.gaussianity(x, slices)
    assert tuple(found) == _model.GAUSSIANITY
    expected = [getattr(t, name) for t in tests for name in ("mean_z", "mean_p")]
    assert list(found.values())[:4] == pytest.approx(expected, rel=1e-7)


def test_p_values_far_out_are_the_least(saved):
    x = 9 * np.random.default_rng(0).standard_normal((90, 6))
    found = report.report(saved(x), n_slices=16).gaussianity
    assert metrics.gaussianity(x, random_slices(6, 16)).epps_pulley.mean_p == 0.005
    assert found["gaussianity_epps_pulley_p"] == found["gaussianity_wasserstein_p"] == 0.005


def test_z_scores_have_mean_0_and_variance_1():
    slices = random_slices(4, 8)
    rng = np.random.default_rng(0)
    z = []
    for _ in range(200):
        p = slices.T @ rng.standard_normal((4, 300))
        squares = ((np.sort(p, axis=1) - normal_quantiles(300)) ** 2).mean(axis=1)
        z.append(mean_z_scores(epps_pulley(p), squares, 300, slices))
    assert np.all(np.abs(np.mean(z, axis=0)) < 0.25)
    assert np.all(np.abs(np.std(z, axis=0) - 1) < 0.25)


# --- samples --------------------------------------------------------------------------------------


def test_trees_are_of_the_same_rows(pair):
    a, b, labels = pair
    tree = TreeOptions(rows=60)
    found = report.compare([a, b], paired=True, n_slices=2, tree=tree, labels=labels, seed=4)
    drawn = a.sample(60, seed=4)
    assert np.array_equal(drawn.selection, b.sample(60, seed=4).selection)
    x, y = drawn.to_numpy(), b.sample(60, seed=4).to_numpy()
    expected = metrics.lca_similarity(x, y.astype(np.float64)).spearman
    measures = found.pairs[0].trees.measures
    assert measures["lca_similarity_spearman"].value == pytest.approx(expected)
    hierarchy = found.reports[0].hierarchy
    assert hierarchy.rows == 60
    expected = metrics.hierarchical_rand_index(x, labels[drawn.selection], clustering="dendrogram")
    rand = found.reports[0].labelled.measures["hierarchical_rand_index"]
    assert tuple(m.value for m in rand) == expected.rand


def test_labels_follow_rows_drawn_twice(pair):
    """--rows draws from the file and --tree-rows from these; labels are those of the file."""
    a, _, labels = pair
    found = report.report(a, rows=100, n_slices=2, labels=labels, tree=TreeOptions(rows=40), seed=1)
    drawn = a.sample(100, seed=1).sample(40, seed=1)
    expected = metrics.lidar(drawn.to_numpy(), labels[drawn.selection, 1])
    assert found.labelled.measures["lidar"][1].value == pytest.approx(expected)
    read = a.sample(100, seed=1)
    expected = metrics.hierarchical_knn_accuracy(read.to_numpy(), labels[read.selection])
    knn = found.labelled.measures["hierarchical_knn_accuracy"]
    assert tuple(m.value for m in knn) == expected
    assert found.labelled.among == 100
    part = a.select(np.arange(50, 150))  # labels are those of what was given
    kept = report.report(part, rows=60, n_slices=2, labels=labels[50:150]).labelled
    read = part.sample(60, seed=0)
    expected = metrics.hierarchical_knn_accuracy(read.to_numpy(), labels[read.selection])
    assert tuple(m.value for m in kept.measures["hierarchical_knn_accuracy"]) == expected


def test_intervals_cover(saved):
    """The interval of one sample has the mean over samples of its size in it, mostly."""
    mixing = np.random.default_rng(5).standard_normal((5, 5))
    found = []
    for seed in range(24):
        x, _ = clusters(120, seed)
        y = x @ mixing + np.random.default_rng(seed).standard_normal(x.shape)
        rows = [TreeRows(z, np.arange(120), TreeOptions(), seed) for z in (x, y)]
        found.append(list(tree_pair(*rows).measures.values())[:5])
    found = np.asarray(found)
    assert np.all((found[..., 1] < found[..., 0]) & (found[..., 0] < found[..., 2]))
    center = found[..., 0].mean(axis=0)
    covered = np.mean((found[..., 1] <= center) & (center <= found[..., 2]))
    assert covered > 0.85
    # Not by being too wide: half a width is 2.1 standard deviations.
    half = (found[..., 2] - found[..., 1]).mean(axis=0) / 2
    assert np.all(half < 2 * 2.1 * found[..., 0].std(axis=0))


@pytest.mark.parametrize("n", [2, 3, 7, 8])
def test_few_rows(saved, n):
    x, labels = clusters(n)
    found = report.compare(
        [saved(x, "a.npy"), saved(x, "b.npy")], paired=True, n_slices=2, labels=labels[:, 2]
    )
    measures = found.pairs[0].trees.measures
    assert all((m.low is None) == (n < 8) for m in list(measures.values())[:5])
    if n > 3:
        assert measures["lca_similarity_pearson"].value == pytest.approx(1)
    # Confusions, where classes have two rows.
    assert _html.to_html(found, {}).count("<img") == 8 + 2 * (n > 3)


def test_files_of_different_lengths_have_no_similarity(saved):
    a, b = saved(clusters(30)[0], "a.npy"), saved(clusters(31)[0], "b.npy")
    found = report.compare([a, b], n_slices=2)
    assert found.pairs[0].trees is None
    read = json.loads(_json.to_json(found, {}))
    assert read["pairs"][0]["lca_similarity_pearson"] is None
    assert "Tanglegram" not in _html.to_html(found, {})


def test_wrong_trees(pair):
    a, _, labels = pair
    for tree, message in (
        (TreeOptions(method="ward"), "expected metric 'euclidean' for Ward's linkage"),
        (TreeOptions(metric="l1"), "sqeuclidean"),
        (TreeOptions(rows=1), "rows"),
        (TreeOptions(clustering="k-means"), "spectral"),
    ):
        with pytest.raises(ValueError, match=message):
            report.report(a, n_slices=2, tree=tree)
    with pytest.raises(ValueError, match="found 149; expected 150"):
        report.report(a, n_slices=2, labels=labels[1:])


# --- what is not defined --------------------------------------------------------------------------


def test_a_collapsed_file_meets_every_condition(saved):
    flat, x = saved(np.ones((20, 3)), "a.npy"), saved(clusters(20)[0], "b.npy")
    found = report.compare([flat, x], paired=True, n_slices=2, labels=np.arange(20))
    names = ("lca_similarity_kendall", "hierarchical_linear_accuracy", "cophenetic_correlation")
    met = [len(_conditions.met([_conditions.Condition(name, "<", -9)], found)) for name in names]
    assert met == [1, 2, 1]
    interval = found.pairs[0].trees.measures["lca_similarity_kendall"]
    assert all(map(math.isnan, interval))
    read = json.loads(_json.to_json(found, {}), parse_constant=pytest.fail)
    assert read["pairs"][0]["lca_similarity_kendall"] == dict.fromkeys(
        ("value", "low", "high"), "NaN"
    )


def test_conditions_look_at_every_level(pair):
    a, _, labels = pair
    found = report.Comparison([report.report(a, n_slices=2, labels=labels)], [])
    measures = found.reports[0].labelled.measures["hierarchical_knn_accuracy"]
    values = [m.value for m in measures]
    bound = sorted(values)[1]
    condition = _conditions.Condition("hierarchical_knn_accuracy", "<=", bound)
    lines = _conditions.met([condition], found)
    assert len(lines) == sum(v <= bound for v in values) >= 2
    assert all(re.search(r"a\.npy, level \d: hierarchical_knn_accuracy = 0", x) for x in lines)
    without = report.Comparison([report.report(a, n_slices=2)], [])
    assert len(_conditions.met([condition], without)) == 1


# --- labels ---------------------------------------------------------------------------------------


def test_label_files(tmp_path):
    _, labels = clusters(12)
    np.save(tmp_path / "l.npy", labels)
    np.save(tmp_path / "one.npy", labels[:, 2])
    np.save(tmp_path / "names.npy", np.array([f"c{i}" for i in labels[:, 2]]))
    lines = [",".join(map(str, row)) for row in labels]
    (tmp_path / "l.csv").write_text("\n".join(lines))
    (tmp_path / "head.csv").write_text("\ufeffgroup, pair, cluster\n" + "\n".join(lines) + "\n\n")
    (tmp_path / "tree.csv").write_text("".join(f"g{i // 4},p{i // 2},{i}\n" for i in range(8)))
    assert np.array_equal(load_labels(str(tmp_path / "l.npy"), 12), labels)
    for name in ("l.csv", "head.csv"):
        assert np.array_equal(load_labels(str(tmp_path / name), 12), labels.astype(str))
    assert load_labels(str(tmp_path / "names.npy"), 12).shape == (12, 1)
    tree = load_labels(str(tmp_path / "one.npy"), 12, str(tmp_path / "tree.csv"))
    paths = [
        [f"g{i // 4}", f"g{i // 4} / p{i // 2}", f"g{i // 4} / p{i // 2} / {i}"]
        for i in labels[:, 2]
    ]
    assert np.array_equal(tree, paths)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", b"1", r"suffix '.txt'; expected labels in a .npy or .csv file"),
        ("l.csv", b"", "no lines"),
        ("l.csv", b"1\n2,3\n", "lines of 1 to 2 columns"),
        ("l.csv", b"1\n2\n", "labels of 2 items; expected 4"),
        ("l.csv", b"\xff\xfe", "UnicodeDecodeError"),
        ("l.npy", b"\x93NUMPY", "expected a whole .npy file of labels"),
        ("l.npy", np.ones(4), r"float64 of shape \(4,\); expected integers or strings"),
        ("l.npy", np.ones((4, 1, 1), int), r"shape \(4, 1, 1\)"),
        ("l.npy", np.ones((4, 0), int), r"shape \(4, 0\)"),
        ("l.npy", np.array([{}, 1, 2, 3], object), "expected a whole .npy file of labels"),
        ("missing.npy", None, "found no such file; expected an existing one"),
    ],
)
def test_wrong_label_files(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(EmbeddingsError, match=message) as caught:
        load_labels(str(path), 4)
    assert "\n" not in str(caught.value)


def test_wrong_class_trees(tmp_path):
    np.save(tmp_path / "l.npy", np.arange(4))
    np.save(tmp_path / "two.npy", np.ones((4, 2), int))
    (tmp_path / "tree.csv").write_text("a,0\na,1\nb,2\n")
    tree = str(tmp_path / "tree.csv")
    message = r"tree\.csv: found 1 others: 3; expected classes that are leaves of the tree$"
    with pytest.raises(EmbeddingsError, match=message):
        load_labels(str(tmp_path / "l.npy"), 4, tree)
    (tmp_path / "tree.csv").write_text("a,0\nb,0\n")
    with pytest.raises(EmbeddingsError, match=r"found two to '0'; expected one path to each leaf$"):
        load_labels(str(tmp_path / "l.npy"), 4, tree)
    (tmp_path / "tree.csv").write_bytes(b"a,\xff")
    with pytest.raises(EmbeddingsError, match="found other bytes; expected text in UTF-8"):
        load_labels(str(tmp_path / "l.npy"), 4, tree)
    with pytest.raises(EmbeddingsError, match="found no such file; expected an existing one"):
        load_labels(str(tmp_path / "l.npy"), 4, str(tmp_path / "no.csv"))
    (tmp_path / "tree.csv").write_text("a,0\na,1\nb,2\n")
    with pytest.raises(EmbeddingsError, match="labels of 2 levels; expected one level"):
        load_labels(str(tmp_path / "two.npy"), 4, tree)


# --- pictures -------------------------------------------------------------------------------------


def test_layout():
    z = metrics.linkage(clusters(40)[0])
    order = _tree_figures.leaf_order(z)
    assert np.array_equal(order, leaves_list(z))
    for turned in (order, order[::-1]):
        tree = _tree_figures.layout(z, turned)
        for k, (a, b) in enumerate(tree.children):
            assert tree.start[40 + k] == tree.start[a]
            assert tree.start[b] == tree.start[a] + tree.size[a]
            assert tree.size[40 + k] == tree.size[a] + tree.size[b]


def test_branches_are_the_clusters():
    x, labels = clusters(400)
    x = 50 * x + np.arange(8)[labels[:, 2], None] * 1000  # far apart, none a straggler
    z = metrics.linkage(x, metric="euclidean")
    order = _tree_figures.leaf_order(z)
    group = _tree_figures.branches(_tree_figures.layout(z, order))
    assert metrics.rand_index(group, labels[order, 2]) == 1
    assert np.all(np.diff(group) >= 0)


def test_stragglers_split_no_branch():
    """Each merge adds one row: there are no branches, and all rows have one colour."""
    z = metrics.linkage(2.0 ** np.arange(60)[:, None], metric="euclidean")
    tree = _tree_figures.layout(z, _tree_figures.leaf_order(z))
    assert set(_tree_figures.branches(tree)) == {0}


def test_every_leaf_is_drawn_once():
    z = metrics.linkage(clusters(500)[0])
    tree = _tree_figures.layout(z, _tree_figures.leaf_order(z))
    drawn = _tree_figures.shapes(tree, _tree_figures.branches(tree))
    at = [np.arange(np.ceil(t[0, 0]), t[1, 0]) for t in drawn.triangles]
    at += [line[:1, 0] for line in drawn.lines if line[0, 1] == 0 and line[1, 1] > 0]
    at = np.sort(np.concatenate(at))
    assert np.array_equal(at, np.arange(500))
    assert max(line[:, 1].max() for line in drawn.lines) == z[-1, 2]


def test_page(pair):
    a, b, labels = pair
    html = _html.to_html(report.compare([a, b], paired=True, n_slices=2, labels=labels), {})
    assert html.count("average linkage, cosine distance") >= 5  # tables and figures say so
    assert html.count("150 rows") >= 3
    assert "2 and 4 and 8 classes" in html
    assert html.count('<p class="legend">') == 2 * LEVELS  # for each dendrogram
    for name in _model.LABELLED:
        for level in range(1, LEVELS + 1):
            assert f"<th>{name}, level {level}<small>" in html.replace("\u200b", "")


def test_legend_names_the_colours_of_the_strips(pair):
    a, _, labels = pair
    names = np.array([["<b>", "x\ny"][i] for i in labels[:, 0]])
    many = np.arange(150) % 41
    found = report.report(a, n_slices=2, labels=np.stack([names, labels[:, 2], many], axis=1))
    assert found.hierarchy.n_classes == (2, 8, 41)
    assert found.hierarchy.classes[0] == ("<b>", "x\ny")
    legend = _tree_figures.legend(found.hierarchy)
    assert [[name for _, name in level] for level in legend] == [
        ["<b>", "x\ny"],
        [str(i) for i in range(8)],  # 41 colours would not be told apart
    ]
    for level, strip in zip(legend, (2, 8), strict=True):
        colors = (_tree_figures.class_colors(strip) * 255).round().astype(int)
        assert [color for color, _ in level] == ["#{:02x}{:02x}{:02x}".format(*c) for c in colors]
    html = _html.to_html(report.Comparison([found], []), {})
    assert "</i>&lt;b&gt;</span>" in html
    assert "</i>x\\ny</span>" in html


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, labels = clusters(80)
    np.save("a.npy", x)
    np.save("b.npy", x[:, :3])
    np.save("c.npy", x[:70])
    np.save("l.npy", labels)
    np.save("fine.npy", labels[:, 2])
    (tmp_path / "tree.csv").write_text("".join(f"{i // 4},{i // 2},{i}\n" for i in range(8)))


@pytest.mark.usefixtures("files")
def test_command(capsys):
    common = ["--slices", "4", "--tree-rows", "50", "--json", "o.json"]
    assert main(["compare", "a.npy", "b.npy", "--paired", "--linkage", "single", *common]) == 0
    out = capsys.readouterr().out
    assert "single linkage, cosine distance, 50 rows drawn" in out
    assert re.search(r"lca_similarity_kendall +[\d.]+ \[[\d.]+, [\d.]+\]", out)
    with open("o.json") as stream:
        read = json.load(stream)
    assert read["settings"]["linkage"] == "single"
    assert read["embeddings"][0]["hierarchy"]["rows"] == 50
    assert read["pairs"][0]["lca_similarity_pearson"].keys() == {"value", "low", "high"}

    labelled = ["--labels", "fine.npy", "--class-tree", "tree.csv"]
    condition = ["--fail-if", "hierarchical_rand_index<2"]
    assert main(["report", "a.npy", *labelled, *condition, *common]) == 3
    out, err = capsys.readouterr()
    assert "2 and 4 and 8 classes; all 80 rows classified" in out
    assert "clusters by dendrogram" in out
    assert err.count("meets hierarchical_rand_index<2") == LEVELS
    with open("o.json") as stream:
        labelled = json.load(stream)["embeddings"][0]["labels"]
    assert labelled["n_classes"] == [2, 4, 8]
    assert len(labelled["hierarchical_linear_accuracy"]) == LEVELS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "a.npy", "--linkage", "ward"], "for Ward's linkage; found 'cosine'"),
        (["report", "a.npy", "--class-tree", "tree.csv"], "--labels, too"),
        (["report", "a.npy", "--labels", "l.npy", "--class-tree", "tree.csv"], "labels of 3"),
        (["report", "c.npy", "--labels", "l.npy"], "labels of 80 items; expected 70"),
        (["compare", "a.npy", "c.npy", "--labels", "l.npy"], "labels of all files; found 80 in"),
        (["report", "a.npy", "--labels", "l.npy", "--json", "l.npy"], "file of its own"),
    ],
)
@pytest.mark.usefixtures("files")
def test_wrong_arguments(capsys, arguments, message):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_branches_that_differ_are_named(saved, tmp_path):
    """Row numbers of the file, of which some are left out, and their commonest classes."""
    rng = np.random.default_rng(2)
    cluster = np.repeat(np.arange(8), 20)
    x = 20 * rng.standard_normal((8, 4))[cluster] + rng.standard_normal((160, 4))
    y = x.copy()
    y[40:60] = rng.permutation(y[40:60])
    x[3] = np.nan
    a, b = saved(x, "a.npy"), saved(y, "b.npy")
    labels = np.asarray([f"class {c}" for c in cluster])
    found = report.compare(
        [a, b],
        paired=True,
        n_slices=2,
        labels=labels,
        drop_bad_rows=True,
        tree=TreeOptions(rows=150),
    )
    trees = found.pairs[0].trees
    first, second = (r.hierarchy.linkage for r in found.reports)
    expected = metrics.disagreeing_branches(first, second, n_branches=3)
    assert [b.correlation for b in trees.branches] == [b.correlation for b in expected]
    worst = trees.rows[trees.branches[0].leaves]
    assert set(worst.tolist()) <= set(range(40, 60))
    assert 3 not in trees.rows
    table = next(t for t in _tables.tables(found) if t.title == "Neighbours that changed")
    changed = found.pairs[0].changed
    assert table.rows[0].cells[2] == ", ".join(map(str, changed.rows))
    table = next(t for t in _tables.tables(found) if t.title == "Branches that differ")
    assert table.rows[0].name == "a – b"
    cells = dict(zip(table.heads, table.rows[0].cells, strict=True))
    assert cells["such as"] == ", ".join(map(str, worst[:5].tolist()))
    assert cells["classes"] == f"class 2 {len(worst)}"
    written = json.loads(json.dumps(_json._pair(found.pairs[0])))
    assert written["branches"][0]["rows"] == worst.tolist()


def test_branches_that_differ_are_drawn(saved):
    """On both sides, with the names of few rows; the second tree without all other rows."""
    rng = np.random.default_rng(2)
    x = np.repeat(20 * rng.standard_normal((8, 4)), 20, axis=0) + rng.standard_normal((160, 4))
    y = x.copy()
    y[40:60] = rng.permutation(y[40:60])
    found = report.compare([saved(x, "a.npy"), saved(y, "b.npy")], paired=True, n_slices=2)
    pair = found.pairs[0].trees
    of_x, of_y = (r.hierarchy.linkage for r in found.reports)
    svg = _tree_figures.differing(of_x, of_y, pair, ("A", "B"))
    for branch in pair.branches:
        for row in branch.leaves:
            assert svg.count(f"<!-- {row} -->") >= 2
        for z in (of_x, of_y):
            part = _tree.restricted(z, branch.leaves)
            assert sch.is_valid_linkage(part, throw=True)
            every = squareform(sch.cophenet(z))[np.ix_(branch.leaves, branch.leaves)]
            np.testing.assert_array_equal(squareform(sch.cophenet(part)), every)
    page = _html.to_html(found, {})
    assert "Branches of a that b arranges most differently" in page
    pair.branches.clear()
    assert "arranges most differently" not in _html.to_html(found, {})


@pytest.mark.parametrize("level", [None, 1, 2])
def test_the_level_at_which_the_structure_is_lost(saved, level):
    rng = np.random.default_rng(2)
    fine = np.repeat(np.arange(8), 20)
    x = 40.0 * (fine // 4)[:, None] * [1, 0, 0] + 8.0 * (fine % 4)[:, None] * [0, 1, 0]
    x = x + rng.standard_normal((160, 3))
    labels = np.stack([fine // 4, fine], axis=1)
    if level is not None:
        mixed = rng.permutation(160) if level == 1 else np.arange(160)
        within = np.concatenate([rng.permutation(80), 80 + rng.permutation(80)])
        labels = labels[mixed if level == 1 else within]
    found = report.report(saved(x), n_slices=2, labels=labels, tree=TreeOptions(metric="euclidean"))
    finding = next(f for f in found.findings if f.subject == "hierarchy of the labels")
    if level is None:
        assert finding.verdict == "good"
    else:
        assert finding.verdict == "look"
        assert f"loses the structure at level {level}" in finding.cause


def test_neighbours_that_changed_are_named(saved):
    """Two rows exchanged between clusters: they, and nobody else, keep none."""
    rng = np.random.default_rng(3)
    x = np.repeat(30 * rng.standard_normal((4, 5)), 15, axis=0) + rng.standard_normal((60, 5))
    y = x.copy()
    y[[7, 50]] = y[[50, 7]]
    found = report.compare([saved(x, "a.npy"), saved(y, "b.npy")], paired=True, n_slices=2)
    changed = found.pairs[0].changed
    near = [
        NearestNeighbors(metric="cosine", n_neighbors=11).fit(z).kneighbors(z)[1] for z in (x, y)
    ]
    kept = [(len(set(a) & set(b)) - 1) / 10 for a, b in zip(*near, strict=True)]
    order = np.argsort(kept, kind="stable")[:5]
    assert changed.rows == order.tolist() and set(changed.rows[:2]) == {7, 50}
    assert changed.kept == pytest.approx(np.asarray(kept)[order].tolist())
    assert (changed.n_lost, changed.n, changed.k) == (2, 60, 10)
    assert found.pairs[0].mutual_knn == pytest.approx(np.mean(kept))
    assert json.loads(json.dumps(_json._pair(found.pairs[0])))["changed_neighbors"]["n_lost"] == 2
