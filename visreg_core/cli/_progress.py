"""How far a command is: a bar on a terminal after a second, else a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from visreg_core.optional import require

_PATIENCE = 1.0  # seconds before the bar appears
_PERIOD = 15.0  # seconds between two lines where there is no terminal


class ProgressBar:
    """Context manager, called with what is being done, how far it is and how far it goes."""

    def __init__(self) -> None:
        self._started = self._said = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> ProgressBar:
        return self

    def __call__(self, doing: str, done: int, total: int) -> None:
        """Show how far it is."""
        now = time.monotonic()
        if not sys.stderr.isatty():
            if now - self._said >= _PERIOD:
                self._said = now
                so_far = f"{now - self._started:.0f} s: {doing}, {done / total:.0%}"
                sys.stderr.write(f"visreg: {so_far}\n")
            return
        if now - self._started < _PATIENCE:
            return
        if self._bar is None:
            progress = require("rich.progress", extra="report", purpose="a progress bar")
            console = require("rich.console", extra="report", purpose="a progress bar")
            self._bar = progress.Progress(console=console.Console(stderr=True), transient=True)
            self._task = self._bar.add_task(doing)
            self._bar.start()
        self._bar.update(self._task, description=doing, completed=done, total=total)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
