"""Every setting of a run, typed and documented: what ``--help`` prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

INF = float("inf")
TAUGHT = ("dino", "byol", "moco")  # by a moving average of the model
METHODS = (
    *("visreg", "sigreg", "swd", "vicreg", "barlow_twins", "sag_vicreg", "simclr"),
    *(*TAUGHT, "simsiam", "nnclr"),
)


def setting(
    default: Any, help: str, *, least: float = -INF, above: float = -INF, most: float = INF
) -> Any:
    """A field with its documentation and range; each instance has a copy of a list."""
    metadata = {"help": help, "least": least, "above": above, "most": most}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Run:
    """Where a run lives and how long it is."""

    folder: str = setting(MISSING, "checkpoints, metrics and results; the same folder resumes")
    seed: int = setting(0, "of weights, data order, augmentation and slices", least=0)
    epochs: float = setting(100, "passes over the training set", above=0)
    max_steps: int | None = setting(
        None, "stop the whole schedule after this many steps instead", least=1
    )
    precision: str = setting("float32", "float32, bfloat16 (mixed) or float64")
    accumulate: int = setting(1, "micro-batches a step", least=1)
    statistics: str = setting(
        "micro", "of the loss: of a micro-batch, or batch: of a step's, by two forward passes"
    )
    clip_norm: float | None = setting(
        None, "largest norm of the gradient, the probe's apart", above=0
    )
    log_every: int = setting(
        50, "steps between readings of the metrics, the only synchronisation", least=1
    )
    checkpoint_every: int | None = setting(500, "steps between checkpoints, or none", least=1)
    checkpoint_minutes: float | None = setting(
        None, "minutes between them, too: at the reading of the metrics after that", above=0
    )
    keep: int = setting(3, "checkpoints kept", least=1)
    evaluate_every: float | None = setting(
        None, "epochs between kNN evaluations; none: at the end", above=0
    )
    validate_every: float | None = setting(
        None,
        "epochs between validations of the online probe; none: with the kNN evaluations",
        above=0,
    )
    compile: str | None = setting(
        None, "compile each block of the backbone with this backend of torch.compile: inductor"
    )
    tf32: bool = setting(False, "float32 products in TF32 on a GPU that has it")
    channels_last: bool = setting(False, "images and convolutions with their channels last")
    recompute: bool = setting(
        False, "blocks compute their activations again in the backward pass, to save memory"
    )
    shard: bool = setting(
        False, "weights and optimiser in shards over the processes (FSDP2); evaluate afterwards"
    )
    cpu: bool = setting(False, "train on the CPU even where there is a GPU")
    threads: int | None = setting(None, "CPU threads of Torch in each process", least=1)
    tensorboard: bool = setting(False, "also write the metrics for TensorBoard")
    wandb: bool = setting(False, "also send the metrics to Weights & Biases, if it is installed")


@dataclass
class Data:
    """Images, with labels for the probes only."""

    source: str = setting("digits", "digits, folder, hf, webdataset or synthetic")
    path: str | None = setting(None, "folder, Hugging Face name, or shards {000..146}.tar")
    train_split: str = setting("train", "sub-folder or split that is trained on")
    test_split: str | None = setting("val", "sub-folder or split for the evaluation, or none")
    file_list: str | None = setting(None, "folder: file of training images, 'PATH LABEL' a line")
    image_key: str = setting("image", "hf: column of the image; webdataset: suffixes, 'jpg;png'")
    label_key: str = setting("label", "hf: column of the label; webdataset: suffix")
    streaming: bool = setting(False, "hf: read in order, with a shuffle buffer, without an index")
    samples: int | None = setting(
        None, "length of an epoch where the source cannot tell (streams)", least=1
    )
    shuffle_buffer: int = setting(2048, "streams: samples that are mixed", least=1)
    classes: list[int] | None = setting(None, "train on these classes; the others stay unseen")
    size: int = setting(
        256, "side of the square that images are resized and cut to on the host", least=1
    )
    whole: int | None = setting(
        None, "train on crops of whole images, their longer side at most this", least=1
    )
    channels: int = setting(3, "1 (grey) or 3")
    mean: list[float] = setting([0.485, 0.456, 0.406], "of the channels, in 0 ... 1")
    std: list[float] = setting([0.229, 0.224, 0.225], "of the channels", above=0)
    batch_size: int = setting(32, "images in a micro-batch of one process", least=1)
    workers: int = setting(0, "loading processes; 0 loads in the training process", least=0)
    prefetch: int = setting(2, "batches that each loading process prepares", least=1)
    unreadable: str = setting("stop", "an image that cannot be read: stop, or skip to the next")
    long_tail: str | None = setting(None, "keep a long-tailed part: pareto or exponential")
    long_tail_max: int = setting(1280, "images of the largest class of the long tail", least=1)
    long_tail_min: int = setting(5, "images of its smallest class", least=1)


@dataclass
class Augment:
    """Multi-crop, on the device. A probability of 0 leaves a transformation out."""

    n_global: int = setting(2, "global crops", least=1)
    n_local: int = setting(0, "local crops", least=0)
    global_size: int = setting(224, "side of a global crop", least=1)
    local_size: int = setting(96, "side of a local crop", least=1)
    global_scale: list[float] = setting(
        [0.3, 1.0], "share of the area in a global crop", above=0, most=1
    )
    local_scale: list[float] = setting(
        [0.05, 0.3], "share of the area in a local crop", above=0, most=1
    )
    ratio: list[float] = setting(
        [0.75, 1.3333], "width / height of a crop before resizing", above=0
    )
    flip: float = setting(0.5, "probability of a horizontal flip", least=0, most=1)
    jitter: float = setting(0.8, "probability of the colour jitter", least=0, most=1)
    brightness: float = setting(0.4, "strength of the jitter", least=0)
    contrast: float = setting(0.4, "strength of the jitter", least=0)
    saturation: float = setting(0.2, "strength of the jitter", least=0)
    hue: float = setting(0.1, "strength of the jitter", least=0, most=0.5)
    grayscale: float = setting(0.2, "probability of grey", least=0, most=1)
    blur: float = setting(0.5, "probability of a Gaussian blur", least=0, most=1)
    blur_sigma: list[float] = setting([0.1, 2.0], "its standard deviation in pixels", above=0)
    solarize: float = setting(
        0.2, "probability of inverting what is brighter than one half", least=0, most=1
    )
    rotate: float = setting(0.0, "largest rotation, in degrees", least=0)
    translate: float = setting(0.0, "largest shift, as a share of the side", least=0, most=1)


@dataclass
class Model:
    """Backbone and projector. Names of backbones: model.py."""

    backbone: str = setting("vit_s_16", "a name of model.py, hf:NAME (AutoModel) or timm:NAME")
    pretrained: bool = setting(False, "hf: and timm: load weights instead of initialising")
    init_from: str | None = setting(
        None, "hf:NAME, timm:NAME, a file of weights or a run: its model with its weights"
    )
    patch: int | None = setting(None, "ViT: side of a patch, instead of the name's", least=1)
    width: int | None = setting(None, "ViT: instead of the name's", least=1)
    depth: int | None = setting(None, "ViT: instead of the name's", least=1)
    heads: int | None = setting(None, "ViT: instead of the name's", least=1)
    drop_path: float = setting(
        0.0,
        "ViT: probability of leaving out a branch of the last block; linear in depth",
        least=0,
        most=0.99,
    )
    small_stem: bool = setting(False, "ResNet: 3x3 stem without pooling, for images of 32 pixels")
    layers: int | None = setting(
        None,
        "ViT: the CLS tokens of this many last layers are the features; none: of two",
        least=1,
    )
    hidden: int = setting(2048, "width of the projector's hidden layers", least=1)
    projector_layers: int = setting(3, "linear layers of the projector", least=1)
    dim: int = setting(256, "width of the projector's output, D", least=1)
    norm: str = setting("batch", "in the projector: batch (over all processes), layer or none")
    activation: str = setting("gelu", "in the projector: gelu or relu")


@dataclass
class Method:
    """The loss. Each setting says which methods read it."""

    name: str = setting("visreg", ", ".join(METHODS) + ", or your own: MODULE:NAME, FILE.py:NAME")
    options: dict[str, Any] = setting({}, "your own loss: the keywords it is made with")
    scope: str = setting("local", "statistics of each process's batch, or of the global one")
    lam: float = setting(
        0.9,
        "visreg, sigreg, swd, your own: (1 - lam) invariance + lam regularizer",
        least=0,
        most=1,
    )
    n_slices: int = setting(
        4096, "K of a process; global scope: all processes together have that many each", least=1
    )
    scale: float = setting(1.0, "visreg: weight of the scale term", least=0)
    shape: float = setting(1.0, "visreg: weight of the shape term", least=0)
    center: float = setting(1.0, "visreg: weight of the centre term", least=0)
    detach_scale: bool = setting(True, "visreg: no gradient of the shape through the deviation")
    invariance: float = setting(25.0, "vicreg, sag_vicreg: weight", least=0)
    variance: float = setting(25.0, "vicreg, sag_vicreg: weight", least=0)
    covariance: float = setting(1.0, "vicreg, sag_vicreg: weight", least=0)
    n_neighbors: int = setting(10, "sag_vicreg: neighbours of a row in the affinity", least=1)
    percentile: float = setting(
        20, "sag_vicreg: of a row's distances, the affinity's scale", least=0, most=100
    )
    walk_steps: int = setting(1, "sag_vicreg: steps of the walk to a row's pair", least=1)
    off_diagonal: float = setting(0.0051, "barlow_twins: weight", least=0)
    temperature: float = setting(0.1, "simclr, moco, nnclr, and dino's student", above=0)
    queue: int = setting(65536, "moco, nnclr: embeddings of earlier batches", least=1)
    prototypes: int = setting(65536, "dino: width of the last layer", least=1)
    teacher_temperature: float = setting(0.04, "dino", above=0)
    teacher_momentum: float = setting(
        0.996, "dino, byol, moco: at the start; it goes to 1 by a cosine", least=0, most=1
    )
    freeze_epochs: float = setting(1, "dino: epochs before the last layer moves", least=0)
    center_momentum: float = setting(0.9, "dino", least=0, most=1)


@dataclass
class Optim:
    """Optimiser and schedule."""

    name: str = setting("adamw", "adamw or lars")
    lr: float = setting(1e-3, "largest learning rate", above=0)
    fused: bool = setting(False, "adamw: one kernel for all weights")
    ema: float | None = setting(
        None,
        "decay of a moving average of the weights, which is then what is evaluated",
        above=0,
        most=0.999999,
    )
    weight_decay: float = setting(0.05, "of matrices; norms and biases have none", least=0)
    betas: list[float] = setting([0.9, 0.999], "adamw", least=0, most=1)
    momentum: float = setting(0.9, "lars", least=0, most=1)
    trust: float = setting(1e-3, "lars: trust coefficient", above=0)
    warmup_epochs: float = setting(5, "linear warm-up", least=0)
    decay: str = setting("cosine", "cosine to lr * final, or constant after the warm-up")
    final: float = setting(1e-3, "last learning rate, as a share of lr", least=0, most=1)


@dataclass
class Probe:
    """How features are measured, while training and at its end."""

    online: bool = setting(True, "train a linear classifier on the detached features")
    online_lr: float = setting(1e-3, "its constant learning rate", least=0)
    k: int = setting(20, "neighbours of the kNN accuracy", least=1)
    layers: int | None = setting(
        None, "last layers whose features are measured; none: those of the training", least=1
    )
    epochs: int = setting(10, "of the linear probe, which is trained after the run", least=1)
    max_rows: int = setting(10_000, "images of each split that the evaluation reads", least=1)
    tree_rows: int = setting(2_000, "images in the dendrograms", least=1)
    batch_size: int = setting(256, "images in a forward pass", least=1)


@dataclass
class Config:
    """All of it."""

    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    method: Method = field(default_factory=Method)
    optim: Optim = field(default_factory=Optim)
    probe: Probe = field(default_factory=Probe)
