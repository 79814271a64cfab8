"""What the server of `tests.train.runs` imports before it forks."""

import gc

import kornia.augmentation  # noqa: F401
import matplotlib.backends.backend_agg  # noqa: F401
import sklearn.datasets
import sklearn.linear_model  # noqa: F401
from transformers import ViTModel  # noqa: F401

import reference_train.train  # noqa: F401

gc.freeze()  # a run looks for garbage twice
