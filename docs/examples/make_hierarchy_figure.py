"""Draw the figure of docs/hierarchy.md: run the page's own code and keep what it draws.

    python docs/examples/make_hierarchy_figure.py

writes ``docs/_static/hierarchy.png``.
"""

import contextlib
import re
import shutil
import tempfile
from pathlib import Path

DOCS = Path(__file__).parents[1]


def main():
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "hierarchy.md").read_text(), re.M | re.S)
    names = {"__name__": "example"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for block in blocks:
            exec(compile(block, "hierarchy.md", "exec"), names)
        shutil.copy("hierarchy.png", DOCS / "_static" / "hierarchy.png")


if __name__ == "__main__":
    main()
