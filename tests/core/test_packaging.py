"""What an installation contains, and what importing it costs and touches."""

import ast
import importlib
import importlib.metadata
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import visreg_core

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "visreg_core"
FRAMEWORKS = {"torch", "jax", "cupy", "tensorflow"}
HEAVY = FRAMEWORKS | {"scipy", "sklearn", "matplotlib", "networkx", "rich", "jinja2", "pyarrow"}
PACKAGES = {"visreg_core", "visreg_jax", "visreg_torch"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def modules():
    names = [info.name for info in pkgutil.walk_packages([str(PACKAGE)], "visreg_core.")]
    return [name for name in names if not name.endswith("__main__")]


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600
    )


def loaded_after(statement):
    done = run_python(f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in json.loads(done.stdout)}


def test_import_loads_no_framework_and_nothing_heavy():
    assert loaded_after("import visreg_core") & HEAVY == set()


def test_no_module_loads_a_framework():
    done = run_python(
        "import importlib, sys\n"
        f"for name in {modules()}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = {FRAMEWORKS} & sys.modules.keys()\n"
        "    assert not loaded, (name, loaded)"
    )
    assert done.returncode == 0, done.stderr


def test_import_has_no_side_effects():
    done = run_python(
        "import logging, os, warnings, random\n"
        "import numpy as np\n"
        "def state():\n"
        "    return (dict(os.environ), list(logging.root.handlers), list(warnings.filters),\n"
        "            random.getstate(), repr(np.random.get_state()), np.geterr())\n"
        "before = state()\n"
        "import visreg_core\n"
        "assert state() == before"
    )
    assert done.returncode == 0, done.stderr


def is_room(path):
    """Whether a file is what one library does differently."""
    return path.parent.name == "_xp" and path.name.startswith("of_")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.name)
def test_only_a_library_s_room_names_a_framework(path):
    tree = ast.parse(path.read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.split(".")[0])
    assert imported & FRAMEWORKS == set() or is_room(path)


@pytest.mark.parametrize("path", sorted((PACKAGE / "_xp").glob("*.py")), ids=lambda p: p.name)
def test_libraries_are_told_apart_by_their_rooms(path):
    """No text of the one door to array libraries is a library's name, but in that one's room."""
    texts = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
    assert texts & (FRAMEWORKS | {"numpy"}) <= {path.stem.removeprefix("of_")}


@pytest.mark.parametrize("package", ["visreg_core", "visreg_core.metrics"])
def test_all_is_sorted_and_is_what_is_public(package):
    module = importlib.import_module(package)
    assert list(module.__all__) == sorted(module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
    public = {
        name
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(thing)
        and getattr(thing, "__module__", "").startswith("visreg_core")
    }
    assert public <= set(module.__all__)
    for name in module.__all__:
        assert getattr(module, name).__doc__, name


def test_version_is_one_number():
    version = visreg_core.__version__
    assert importlib.metadata.version("visreg-core") == version
    assert f"## {version} (" in (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.M)


def test_command_is_installed():
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="visreg")
    assert entry.load() is importlib.import_module("visreg_core.cli").main


def test_wheel_holds_the_packages_alone(tmp_path):
    """Built without isolation: nothing is fetched."""
    build = "from hatchling.build import build_wheel; import sys; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == PACKAGES
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    for package in PACKAGES:
        folder = Path(importlib.import_module(package).__file__).parent
        assert {str(p.relative_to(folder.parent)) for p in folder.rglob("*.py")} <= set(names)


def test_editable_install_exposes_the_packages_alone():
    """From another folder the packages import, and the repository's other folders do not."""
    names = [*sorted(PACKAGES), "tests", "docs", "adapters", "benchmarks", "reference_train"]
    code = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(sorted(PACKAGES))


DISTRIBUTION = {
    "cupyx": "cupy-cuda13x",
    "faiss": "faiss-cpu",
    "lance": "pylance",
    "sklearn": "scikit-learn",
}


def declared(*extras):
    """Distributions that the project itself, or these extras of it, ask for."""
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"]] if not extras else []
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    return {re.match(r"[A-Za-z0-9_-]+", w)[0].lower().replace("_", "-") for w in wanted}


def distribution(module):
    top = module.split(".")[0]
    return DISTRIBUTION.get(top, top).lower().replace("_", "-")


def executed(tree):
    """Nodes of a module, without the imports that only a type checker sees."""
    if isinstance(tree, ast.If) and getattr(tree.test, "id", "") == "TYPE_CHECKING":
        nodes = tree.orelse
    else:
        nodes = ast.iter_child_nodes(tree)
    for node in nodes:
        yield node
        yield from executed(node)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.name)
def test_every_import_is_a_dependency(path):
    """Of the core, or of the extra that `require` names in the same file."""
    imported, required = set(), set()
    for node in executed(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {distribution(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(distribution(node.module))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("require"):
            extra = next(k.value.value for k in node.keywords if k.arg == "extra")
            if isinstance(node.args[0], ast.Constant):
                required.add(distribution(node.args[0].value))
                assert distribution(node.args[0].value) in declared(extra)
    known = {distribution(name) for name in sys.stdlib_module_names} | {"visreg-core"}
    assert imported <= known | declared() | required
