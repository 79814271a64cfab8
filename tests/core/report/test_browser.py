"""The HTML report in a browser, where Chromium is installed: nothing breaks, nothing is cut off."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from visreg_core import report
from visreg_core.report import _html

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium, which is not installed")

# Put before the page's own policy, which forbids what is not in the page. The pointer is moved to
# the first row of the first map, and what it is told is read.
PROBE = """<script>
const wrong = [];
addEventListener("error", e => wrong.push(e.message || "a resource: " + e.target.src), true);
for (const level of ["error", "warn"]) console[level] = (...said) => wrong.push(said.join(" "));
const inside = (root, name) => [...root.querySelectorAll("*")].flatMap(e => [
  ...(e.matches(name) ? [e] : []), ...(e.shadowRoot ? inside(e.shadowRoot, name) : [])]);
const wait = ms => new Promise(done => setTimeout(done, ms));
addEventListener("load", async () => {
  while (Bokeh.documents.some(d => !d.is_idle)) await wait(20);
  await wait(200);
  const view = Bokeh.index.roots[0], data = view.model.renderers[0].data_source.data;
  const events = inside(document, ".bk-Canvas .bk-events, .bk-events")[0];
  const box = events.getBoundingClientRect(), frame = view.frame;
  const at = {clientX: box.left + frame.x_scale.compute(data.x[0]),
              clientY: box.top + frame.y_scale.compute(data.y[0])};
  for (const kind of ["pointerenter", "pointermove", "mousemove"])
    events.dispatchEvent(new PointerEvent(kind, {...at, bubbles: true, composed: true,
                                                 pointerType: "mouse", isPrimary: true}));
  await wait(300);
  const told = inside(document, ".bk-tooltip-row-value").map(e => e.textContent.trim());
  const style = getComputedStyle(document.body);
  const page = document.documentElement;
  const cut = [...document.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth);
  const blank = [...document.images].filter(i => !i.complete || !i.naturalWidth);
  document.title = JSON.stringify({
    wrong, told, first: data.row[0],
    ink: style.color, page: style.backgroundColor, width: page.clientWidth,
    beyond: page.scrollWidth - page.clientWidth, cut: cut.length, blank: blank.length,
    key: [...document.querySelectorAll(".legend span")].map(e => e.textContent),
  });
});
</script>"""


FINE = np.random.default_rng(0).integers(0, 24, 600)
LABELS = np.stack([FINE // 6, FINE], axis=1)
HOSTILE = "</script><img src=x>&quot;"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report with 24 classes, and a comparison of five files."""
    folder = tmp_path_factory.mktemp("pages")
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((24, 16))[LABELS[:, 1]]
    files = [centres + s * rng.standard_normal((600, 16)) for s in (1, 2, 3, 4, 5)]
    ids = [f"{HOSTILE}{i}" for i in range(600)]
    one = report.Comparison([report.report(files[0], labels=LABELS, ids=ids, n_slices=16)], [])
    five = report.compare(files, labels=LABELS, n_slices=16, paired=True)
    for name, result in (("one", one), ("five", five)):
        text = _html.to_html(result, {})
        (folder / f"{name}.html").write_text(text.replace("<head>", "<head>" + PROBE), "utf-8")
    return folder


def opened(page, width, *, dark=False):
    """What the probe says of a page in a window of this width."""
    done = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            "--virtual-time-budget=20000",
            f"--user-data-dir={page.parent / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            *(f"--window-size={width},900", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout, re.S)[1]))


@pytest.mark.parametrize("name", ["one", "five"])
def test_nothing_breaks_or_is_cut_off(pages, name):
    seen = opened(pages / f"{name}.html", 1280)
    assert not seen["wrong"] and not seen["blank"]
    assert seen["beyond"] == 0 and seen["cut"] == 0


def test_the_map_tells_a_row_and_its_classes(pages):
    seen = opened(pages / "one.html", 1280)
    rows = {told[0]: told[1:] for told in np.reshape(seen["told"], (-1, 3)).tolist()}
    assert seen["first"] in rows
    for row, classes in rows.items():
        assert classes == list(map(str, LABELS[int(row.removeprefix(HOSTILE))].tolist()))


def test_every_class_has_a_key(pages):
    assert len(opened(pages / "one.html", 1280)["key"]) == 4 + 24


@pytest.mark.parametrize("name", ["one", "five"])
def test_a_phone_does_not_scroll_the_page_sideways(pages, name):
    seen = opened(pages / f"{name}.html", 500)
    assert seen["width"] <= 500 and seen["beyond"] == 0


def test_it_follows_the_readers_colours(pages):
    light, dark = (opened(pages / "one.html", 800, dark=dark) for dark in (False, True))
    assert light["page"] == "rgb(255, 255, 255)"
    assert dark["page"] == "rgb(20, 24, 29)" and dark["ink"] == "rgb(228, 232, 238)"
