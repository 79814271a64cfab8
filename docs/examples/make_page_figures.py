"""Draw the figures of the manual's executed pages: run a page's own code and keep what it draws.

    python docs/examples/make_page_figures.py [PAGE ...]

writes ``docs/_static/hierarchy.png`` and ``docs/_static/collapse.png``.
"""

import contextlib
import re
import shutil
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parents[1]
FIGURES = {"hierarchy": "hierarchy.png", "claims": "collapse.png"}


def draw(page):
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / f"{page}.md").read_text(), re.M | re.S)
    names = {"__name__": "example"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for block in blocks:
            exec(compile(block, f"{page}.md", "exec"), names)
        shutil.copy(FIGURES[page], DOCS / "_static" / FIGURES[page])


if __name__ == "__main__":
    for name in sys.argv[1:] or FIGURES:
        draw(name)
