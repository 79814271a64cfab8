"""Every example that a reader can copy runs: docstrings, the README, the pages of the manual."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import visreg_core
import visreg_jax
import visreg_torch

PACKAGES = (visreg_core, visreg_jax, visreg_torch)
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def modules():
    for package in PACKAGES:
        yield package.__name__
        found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        yield from (m.name for m in found if not m.name.endswith("__main__"))


def docstrings_with_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in modules():
        for test in finder.find(importlib.import_module(name), name):
            if test.examples:
                yield pytest.param(test, id=test.name)


@pytest.mark.parametrize("test", list(docstrings_with_examples()))
def test_docstring(test):
    report = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)


@pytest.mark.parametrize("page", [p for p in PAGES if python_blocks(p)], ids=lambda p: p.name)
def test_page(page, tmp_path, monkeypatch):
    """The blocks of a page, one after the other, in one namespace and an empty folder."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "example"}
    for block in python_blocks(page):
        exec(compile(block, page.name, "exec"), names)


def test_readme_has_an_example_of_each_library():
    text = "".join(python_blocks(ROOT / "README.md"))
    for library in ("import numpy", "import torch", "import jax"):
        assert library in text


def test_readme_names_every_loss():
    readme = (ROOT / "README.md").read_text()
    losses = [n for n in visreg_core.__all__ if n.endswith("_loss") or "wasserstein" in n]
    assert losses
    assert [n for n in losses if f"`{n}" not in readme] == []


def test_every_loss_has_an_example():
    """The contract of a public function: a docstring that shows it at work."""
    without = [
        name
        for name in visreg_core.__all__
        if callable(getattr(visreg_core, name))
        and not isinstance(getattr(visreg_core, name), type)
        and ">>>" not in getattr(visreg_core, name).__doc__
    ]
    assert without == []
