"""Writes one page a public module, and fails the build where a public name is on none of them.

A name is documented once, under the shortest path that exports it (what ``visreg_core.__all__``
lists is ``visreg_core.NAME``), on the page of the module that defines it, or of the one that
exports it where the defining module is private.
"""

import importlib
import inspect
import pkgutil
from pathlib import Path

from docutils.parsers.rst.states import Inliner
from sphinx.errors import ExtensionError

PACKAGES = ("visreg_core", "visreg_jax", "visreg_torch")


def public_modules():
    """The packages and every module below them whose path has no leading underscore."""
    found = []
    for package in map(importlib.import_module, PACKAGES):
        found.append(package)
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not any(part.startswith("_") for part in info.name.split(".")):
                found.append(importlib.import_module(info.name))
    return found


def documented_names(modules):
    """{page's module: [public path of each name on it]} over the ``__all__`` of all modules."""
    by_name = {module.__name__: module for module in modules}
    pages, placed = {}, set()
    for module in sorted(modules, key=lambda m: m.__name__.count(".")):
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            home = getattr(thing, "__module__", module.__name__)
            if name.startswith("_") or inspect.ismodule(thing) or (home, name) in placed:
                continue
            placed.add((home, name))
            path = f"{module.__name__}.{name}"
            pages.setdefault(home if home in by_name else module.__name__, []).append(path)
    return pages


def page(name, paths):
    """reStructuredText of one module's page."""
    title = f"``{name}``"
    # Not in the index: a module and the function it is named for may share a path.
    lines = [title, "=" * len(title), "", f".. automodule:: {name}", "   :no-index:", ""]
    for path in paths:
        module, attribute = path.rsplit(".", 1)
        thing = getattr(importlib.import_module(module), attribute)
        kind = "class" if inspect.isclass(thing) else "function" if callable(thing) else "data"
        lines += [f".. auto{kind}:: {path}", ""]
    return "\n".join(lines)


def write_pages(app):
    folder = Path(app.srcdir) / "generated" / "api"
    folder.mkdir(parents=True, exist_ok=True)
    pages = documented_names(public_modules())
    for stale in {p for p in folder.glob("*.rst") if p.stem not in pages}:
        stale.unlink()
    for name, paths in pages.items():
        target = folder / f"{name}.rst"
        text = page(name, paths)
        if not target.exists() or target.read_text() != text:  # else Sphinx would read it again
            target.write_text(text)


def check_coverage(app, env):
    """Every public name must have become an object of the documentation."""
    documented = set(env.domaindata["py"]["objects"])
    public = {path for paths in documented_names(public_modules()).values() for path in paths}
    if missing := sorted(public - documented):
        raise ExtensionError(f"public names without documentation: {', '.join(missing)}")


def bar_is_text(inliner, match, lineno):
    """In docstrings ``|x|`` is an absolute value; reStructuredText would substitute something."""
    end = match.end("start")
    return match.string[:end], [], match.string[end:], []


def setup(app):
    Inliner.dispatch["|"] = bar_is_text
    app.connect("builder-inited", write_pages)
    app.connect("env-check-consistency", check_coverage)
    return {"parallel_read_safe": True}
