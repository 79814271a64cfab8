"""Writes one page a public module, and fails the build where a public name is on none of them.

A name is documented on the page of the module that defines it, under the shortest path that
exports it: what ``visreg_core.__all__`` lists is ``visreg_core.NAME``, wherever its file is.
"""

import importlib
import inspect
import pkgutil
from pathlib import Path

from sphinx.errors import ExtensionError

import visreg_core


def public_modules():
    """``visreg_core`` and every module below it whose path has no leading underscore."""
    found = [visreg_core]
    for info in pkgutil.walk_packages(visreg_core.__path__, "visreg_core."):
        if not any(part.startswith("_") for part in info.name.split(".")):
            found.append(importlib.import_module(info.name))
    return found


def exported_names(modules):
    """{(defining module, name): shortest public path} over the ``__all__`` of all modules."""
    paths = {}
    for module in sorted(modules, key=lambda m: m.__name__.count(".")):
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if not inspect.ismodule(thing):
                home = getattr(thing, "__module__", module.__name__)
                paths.setdefault((home, name), f"{module.__name__}.{name}")
    return paths


def page(module, paths):
    """reStructuredText of one module's page."""
    title = f"``{module.__name__}``"
    lines = [title, "=" * len(title), "", f".. automodule:: {module.__name__}", ""]
    for path in paths:
        thing = getattr(module, path.rsplit(".", 1)[1])
        kind = "class" if inspect.isclass(thing) else "function"
        if not callable(thing):
            kind = "data"
        lines += [f".. auto{kind}:: {path}", ""]
    return "\n".join(lines)


def write_pages(app):
    folder = Path(app.srcdir) / "generated" / "api"
    folder.mkdir(parents=True, exist_ok=True)
    modules = public_modules()
    paths = exported_names(modules)
    written = set()
    for module in modules:
        own = [key for key in paths if key[0] == module.__name__]
        if own:
            text = page(module, [paths[key] for key in own])
            target = folder / f"{module.__name__}.rst"
            if not target.exists() or target.read_text() != text:
                target.write_text(text)
            written.add(target)
    for stale in set(folder.glob("*.rst")) - written:
        stale.unlink()
    homeless = sorted(p for (home, _), p in paths.items() if folder / f"{home}.rst" not in written)
    if homeless:
        raise ExtensionError(f"public names defined in no public module: {', '.join(homeless)}")


def setup(app):
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True}
