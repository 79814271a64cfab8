"""Labels of a hierarchy as integer codes, level by level."""

from __future__ import annotations

from typing import Any

import numpy as np

from visreg_core.metrics._inputs import labels as host_labels


def numbered(values: np.ndarray) -> np.ndarray:
    """Codes 0, 1, … of labels (N,), in their order."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def level_columns(labels: Any, n: int) -> list[np.ndarray]:
    """Columns of labels (N, L) as integer codes, coarsest first."""
    values = host_labels("labels", labels)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or values.shape[0] != n or values.shape[1] == 0:
        raise ValueError(
            f"expected labels of shape ({n}, L), one row for each of the embeddings; "
            f"found shape {values.shape}"
        )
    return [numbered(c) for c in values.T]
