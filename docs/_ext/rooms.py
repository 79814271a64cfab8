"""Draws the rooms of the house from the code: folders and modules, and which imports which.

A room is a module or a folder of modules; it stands one floor above the highest room that it
imports, so that every arrow points down. The picture is made anew at each build.
"""

import ast
from collections import defaultdict
from pathlib import Path

import matplotlib
import networkx

matplotlib.use("svg")

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "visreg_core": ROOT / "visreg_core",
    "visreg_torch": ROOT / "adapters" / "visreg_torch",
    "visreg_jax": ROOT / "adapters" / "visreg_jax",
    "reference_train": ROOT / "reference_train",
}
COLORS = dict(zip(PACKAGES, ("#4477aa", "#cc6677", "#228833", "#aa8833"), strict=True))


def room_of(module):
    """visreg_core.losses.visreg -> visreg_core.losses; modules of the first level are rooms."""
    parts = module.split(".")
    if parts[0] in ("visreg_torch", "visreg_jax", "reference_train"):
        inner = parts[1] if len(parts) > 2 else ""
        return f"{parts[0]}.{inner}" if inner else parts[0]
    return ".".join(parts[:2])


def imports(path):
    """Modules of the house that a file imports at run time."""
    skipped = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped |= set(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def modules():
    """{module: file} of all packages."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] in ("__init__", "__main__") else parts
            found.setdefault(".".join((package, *parts)), path)
    return found


def graph():
    """Rooms, with their lines of code, and arrows to the rooms that they import."""
    known, rooms = modules(), networkx.DiGraph()
    for module, path in known.items():
        room = room_of(module)
        if module in PACKAGES:
            continue  # a package's own file gathers what the rooms below offer
        rooms.add_node(room)
        lines = len(path.read_text().splitlines())
        rooms.nodes[room]["lines"] = rooms.nodes[room].get("lines", 0) + lines
        for name in imports(path):
            target = name if name in known else None
            if target and target not in PACKAGES and room_of(target) != room:
                rooms.add_edge(room, room_of(target))
    return rooms


def floors(rooms):
    """{room: floor}; rooms of a circle share one."""
    condensed = networkx.condensation(rooms)
    floor = {}
    for component in reversed(list(networkx.topological_sort(condensed))):
        below = [floor[c] for c in condensed.successors(component)]
        floor[component] = 1 + max(below, default=0)
    members = networkx.get_node_attributes(condensed, "members")
    return {room: floor[c] for c, rooms_of in members.items() for room in rooms_of}


def draw(target):
    """Write the picture to a file."""
    from matplotlib import pyplot

    rooms = graph()
    by_floor = defaultdict(list)
    for room, floor in floors(rooms).items():
        by_floor[floor].append(room)
    place = {}
    for floor, names in by_floor.items():
        names.sort(key=lambda n: (list(PACKAGES).index(n.split(".")[0]), n))
        for i, name in enumerate(names):
            place[name] = ((i + 0.5) / len(names), floor)
    figure, axes = pyplot.subplots(figsize=(12, 1.1 * len(by_floor) + 0.5))
    for a, b in rooms.edges:
        (xa, ya), (xb, yb) = place[a], place[b]
        axes.annotate(
            "",
            (xb, yb + 0.18),
            (xa, ya - 0.18),
            arrowprops={"arrowstyle": "->", "color": "#999999", "lw": 0.5},
        )
    for name, (x, y) in place.items():
        package, _, rest = name.partition(".")
        text = f"{rest or package}\n{rooms.nodes[name].get('lines', 0)}"
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": COLORS[package]}
        axes.text(x, y, text, ha="center", va="center", fontsize=7, bbox=box)
    handles = [pyplot.Line2D([], [], color=c, label=p) for p, c in COLORS.items()]
    axes.legend(handles=handles, loc="upper right", fontsize=8, frameon=False)
    axes.set_ylim(0.4, len(by_floor) + 0.6)
    axes.axis("off")
    figure.savefig(target, bbox_inches="tight")
    pyplot.close(figure)


def write(app):
    folder = Path(app.srcdir) / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    draw(folder / "rooms.svg")


def setup(app):
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
