"""Saved embeddings: one `(N, D)` array in a file, read lazily by blocks of rows.

Formats: ``.npy`` and ``.npz``, ``.safetensors``, ``.pt`` and ``.pth`` (weights only), ``.parquet``,
``.arrow`` and ``.feather``, ``.h5`` and ``.hdf5``, ``.zarr``, ``.csv``. Nothing is ever unpickled,
and no declared size is trusted before it has been checked against the size of the file.
"""

from visreg_core.embeddings._load import FORMATS, load
from visreg_core.embeddings._source import Embeddings, EmbeddingsError, EmbeddingsWarning

__all__ = ["FORMATS", "Embeddings", "EmbeddingsError", "EmbeddingsWarning", "load"]
