"""The trainer's slow tests (twenty kills, further losses on two processes) run when asked for.

``make test ARGS="-m slow"`` runs them.
"""

from pathlib import Path

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(config, items):
    if config.option.markexpr:
        return
    slow = [i for i in items if FOLDER in i.path.parents and i.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]
