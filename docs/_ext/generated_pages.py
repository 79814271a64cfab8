"""Writes the parts of the manual that are facts about the code: support, times."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # for the declarations in tests/

DTYPES = ("float64", "float32", "bfloat16", "float16")


def markdown_table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def mark(holds):
    return "✓" if holds else "–"


def backends_page():
    """What the tests are parametrised by: libraries and dtypes, losses and their options."""
    from tests.backends import OPTIONAL, REQUIRED
    from tests.cases import CASES, FUNCTIONS

    dtypes = markdown_table(
        ["library", "tested", *DTYPES],
        [
            [f"`{b}`", when, *(mark(b.supports(d)) for d in DTYPES)]
            for when, backends in (("always", REQUIRED), ("on request", OPTIONAL))
            for b in backends
        ],
    )
    functions = markdown_table(
        ["loss", "differentiated", "leading axes", "`row_mask`", "cases"],
        [
            [
                f"`{name}({', '.join(loss.arrays)})`",
                ", ".join(f"`{a}`" for a in loss.wrt),
                mark(loss.leading),
                mark(loss.row_mask),
                sum(case.loss is loss for case in CASES),
            ]
            for name, loss in FUNCTIONS.items()
        ],
    )
    return (
        f"{dtypes}\n\nEvery loss is tested on every library, by value and by gradient, in each of "
        "its cases: a case is a set of options with a float64 transcription of its formula. "
        "JAX compiles every call, so that there some further tests take a loss's first case only."
        "\n\n"
        f"{functions}\n"
    )


def stored_runs(folder):
    """Every stored run: a file ``{"title", "about", "machine", "columns", "rows"}``."""
    parts = []
    for path in sorted((ROOT / "docs" / folder).glob("*.json")):
        run = json.loads(path.read_text())
        parts.append(
            f"## {run['title']}\n\n{run['about']}\n\n"
            + markdown_table(run["columns"], run["rows"])
            + "\n\n"
            + ", ".join(f"{key} {value}" for key, value in run["machine"].items())
            + "\n"
        )
    return "\n".join(parts) or "No run is stored.\n"


def write_pages(app):
    folder = Path(app.srcdir) / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in {
        "backends": backends_page,
        "benchmarks": lambda: stored_runs("benchmarks"),
        "results": lambda: stored_runs("results"),
    }.items():
        target, text = folder / f"{name}.md", page()
        if not target.exists() or target.read_text() != text:
            target.write_text(text)


def setup(app):
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True}
