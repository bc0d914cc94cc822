"""All options of a training run and their defaults."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal

from s3h_ext.checks import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    ZERO_OR_MORE,
    check,
    number_in,
)
from s3h_ext.data.source.decode import UnreadablePolicy
from s3h_ext.data.source.feed import SourceName
from s3h_ext.methods import Baseline, Method
from s3h_ext.models import BackboneName, ClassifierName

PrecisionName = Literal["auto", "fp32", "bf16"]
GraphsName = Literal["auto", "on", "off"]


@dataclass
class DataConfig:
    """The data set and its long-tailed subsampling.

    Args:
        name: data set: ``digits-lt`` (built in), ``cifar10-lt``, ``cifar100-lt``,
            ``octmnist-lt``; a set of MedMNIST, such as ``dermamnist``; ``arrays`` for
            an ``.npz`` file; ``imagenet-lt``, ``inat18``, ``places-lt`` with their
            standard lists; ``folder`` for any image files.
        root: folder of the unpacked archives or the photographs, or the file of
            ``arrays``; defaults to the environment variable ``S3H_DATA_ROOT``.
            ``digits-lt`` needs none.
        lists: folder of the list files of photographs, if it is not ``root``. For
            ``folder``: the folder of ``train.csv`` etc., or one such file.
        imbalance: largest class size divided by the smallest, >= 1. Not set: 20 for
            ``digits-lt``, 100 for CIFAR and ``octmnist-lt``; the others keep their
            class sizes. Not for ``imagenet-lt``, ``inat18`` and ``places-lt``.
        size: image side in pixels: for MedMNIST 28 (the default), 64, 128 or 224; for
            views of photographs 224 (the default) or any other.
        profile: class sizes fall exponentially (``exp``) or in one step (``step``).
        val_fraction: fraction of the training images of each class, in [0, 1), to hold
            out for model selection, which never uses test images.
        split_seed: seed for choosing the held-out images. The long-tailed subset itself
            is fixed, as in the published tables.
        test_fraction: for ``folder`` without test images: fraction of each class, in
            (0, 1), to hold out for testing, always the same images. Not set: 0.2.
        label_pattern: for ``folder``: regular expression whose group ``label``, or
            first group, matches the class in the path of an image below its split.
        source: how to load images: ``resident`` keeps them in memory; ``pil`` or
            ``dali`` decodes photographs. ``auto``: ``resident`` or ``pil``.
        workers: number of threads that read and decode photographs; 0: one per CPU.
        unreadable: ``error`` stops the run at the first photograph that cannot be read;
            ``skip`` reads every file before the run starts, and reports and leaves out
            those that cannot be read.
    """

    name: Literal[
        "digits-lt",
        "cifar10-lt",
        "cifar100-lt",
        "octmnist-lt",
        "pathmnist",
        "dermamnist",
        "octmnist",
        "pneumoniamnist",
        "retinamnist",
        "breastmnist",
        "bloodmnist",
        "tissuemnist",
        "organamnist",
        "organcmnist",
        "organsmnist",
        "arrays",
        "imagenet-lt",
        "inat18",
        "places-lt",
        "folder",
    ] = "digits-lt"
    root: str | None = None
    lists: str | None = None
    imbalance: float | None = None
    size: int | None = None
    profile: Literal["exp", "step"] = "exp"
    val_fraction: float = 0.0
    split_seed: int = 0
    test_fraction: float | None = None
    label_pattern: str | None = None
    source: SourceName = "auto"
    workers: int = 0
    unreadable: UnreadablePolicy = "error"

    def __post_init__(self) -> None:
        factor = ("a finite number >= 1", lambda v: math.isfinite(v) and v >= 1)
        check(factor, "data.", imbalance=self.imbalance)
        share, part = (number_in(i, "a share") for i in ("[0, 1)", "(0, 1)"))
        check(share, "data.", val_fraction=self.val_fraction)
        check(part, "data.", test_fraction=self.test_fraction)
        check(NOT_NEGATIVE, "data.", workers=self.workers)
        check(SEED, "data.", split_seed=self.split_seed)


@dataclass
class ModelConfig:
    """The network.

    Args:
        backbone: ``resnet32`` is the network of the published CIFAR-LT tables;
            ``resnet50`` and ``resnext50-32x4d`` are for photographs.
        weights: file of initial backbone weights with torchvision's parameter names; a
            classifier in it is ignored.
        classifier: ``linear``, or ``cosine`` (unit features and unit weights).
        scale: factor of the cosine classifier's logits, > 0.
    """

    backbone: BackboneName = "resnet32"
    weights: str | None = None
    classifier: ClassifierName = "linear"
    scale: float = 30.0

    def __post_init__(self) -> None:
        check(POSITIVE, "model.", scale=self.scale)


@dataclass
class OptimConfig:
    """SGD with momentum and its learning-rate schedule.

    Args:
        lr: peak learning rate, > 0.
        momentum: momentum of SGD, in [0, 1).
        nesterov: use Nesterov momentum.
        weight_decay: factor of the L2 penalty, >= 0.
        decay_norm_and_bias: apply weight decay to batch-norm parameters and biases too,
            as the CIFAR-LT codebases do.
        warmup_epochs: epochs over which the learning rate rises linearly from 0 to
            ``lr``; must be shorter than the run. A preset's warm-up shrinks in
            proportion if the run is too short for it.
        schedule: learning-rate schedule: ``step``, ``cosine`` (falls to 0) or
            ``constant``.
        milestones: for ``step``: fractions of the training at which the learning rate
            is multiplied by ``gamma``; 0.8 is epoch 160 of 200.
        gamma: factor of the learning rate at each milestone.
        ema_decay: decay per step, in (0, 1), of an exponential moving average of
            weights and batch-norm statistics, which is then evaluated, exported and
            passed to a second stage. Not set: the last weights are used.
    """

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 2e-4
    decay_norm_and_bias: bool = True
    warmup_epochs: float = 5.0
    schedule: Literal["step", "cosine", "constant"] = "step"
    milestones: list[float] = field(default_factory=lambda: [0.8, 0.9])
    gamma: float = 0.01
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        check(POSITIVE, "optim.", lr=self.lr, gamma=self.gamma)
        rest = {"weight_decay": self.weight_decay, "warmup_epochs": self.warmup_epochs}
        check(ZERO_OR_MORE, "optim.", **rest)
        check(number_in("[0, 1)"), "optim.", momentum=self.momentum)
        check(number_in("(0, 1)"), "optim.", ema_decay=self.ema_decay)
        if self.nesterov and self.momentum == 0:
            raise ValueError(
                "optim.nesterov: expected false where optim.momentum is 0, got True"
            )
        shares = self.milestones
        if shares != sorted(shares) or not all(0 < share < 1 for share in shares):
            raise ValueError(
                "optim.milestones: expected rising shares of the training, each in "
                f"(0, 1), got {shares!r}"
            )


@dataclass
class DistributedConfig:
    """A run in several processes, started by ``torchrun``; see docs/distributed.md.

    Args:
        gather: compute losses over the joint batch; otherwise each process uses its own
            part, and gradients are averaged.
        sync_batch_norm: normalise by the statistics of the joint batch instead of each
            process's part.
        timeout: seconds after which an unresponsive process counts as lost, > 0.
    """

    gather: bool = True
    sync_batch_norm: bool = False
    timeout: float = 600.0

    def __post_init__(self) -> None:
        check(POSITIVE, "distributed.", timeout=self.timeout)


@dataclass
class TrainConfig:
    """One training run.

    Args:
        data: the data set.
        model: the network.
        method: training method: the name of a class in ``s3h_ext.methods``, or the
            import path of any subclass of ``s3h_ext.methods.Method``.
        optim: optimiser and schedule.
        distributed: options for several processes.
        init_from: folder of a finished run whose network to start from; required by
            second-stage methods.
        epochs: number of passes over the method's first stream of images.
        batch_size: images per step and stream, summed over all processes.
        seed: seed of initial weights and all random draws.
        device: ``auto`` (CUDA if available), ``cpu``, ``cuda``, ``cuda:1`` ...
        precision: ``auto`` uses bfloat16 autocast on GPUs from sm_80 and on CPUs with
            AVX512_BF16 or AMX, otherwise float32.
        graphs: record steps and evaluation as CUDA graphs; ``auto`` does so if one
            process trains on images resident on a GPU.
        output: folder of the run. Not set: ``runs/NAME-seedN``, numbered if taken.
        checkpoint_every: epochs between checkpoints; the last epoch always has one.
        eval_every: epochs between evaluations; the last epoch always has one.
        eval_batch_size: images per evaluation batch.
        report: draw ``report.html`` at the end.
        preset: options to start from, such as ``cifar100-lt/hybrid-psc``: one of the
            DATASET/METHOD names listed below. Without this and ``--config``:
            ``digits-lt/hybrid-psc``.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: Method = field(default_factory=Baseline)
    optim: OptimConfig = field(default_factory=OptimConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    init_from: str | None = None
    epochs: int = 200
    batch_size: int = 128
    seed: int = 0
    device: str = "auto"
    precision: PrecisionName = "auto"
    graphs: GraphsName = "auto"
    output: str | None = None
    checkpoint_every: int = 1
    eval_every: int = 1
    eval_batch_size: int = 1000
    report: bool = True
    preset: str | None = None

    def __post_init__(self) -> None:
        counts = ("epochs", "batch_size", "checkpoint_every", "eval_every")
        for name in (*counts, "eval_batch_size"):
            check(COUNT, **{name: getattr(self, name)})
        check(SEED, seed=self.seed)

    def dump(self) -> dict[str, Any]:
        """Return the options as plain values, as written to ``config.yaml``.

        Example:
            >>> TrainConfig(epochs=3).dump()["method"]["class_path"]
            's3h_ext.methods.Baseline'
        """
        options: dict[str, Any] = _plain(vars(self))
        return options


def _plain(value: Any) -> Any:
    if isinstance(value, Method):
        own = type(value)
        path = next(import_paths(own), f"{own.__module__}.{own.__qualname__}")
        return {"class_path": path, "init_args": _plain(value.init_args)}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if is_dataclass(value):
        return _plain(vars(value))
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    known = value is None or isinstance(value, (bool, int, float, str))
    return value if known else str(value)


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested options to dotted names, as typed on the command line.

    Example:
        >>> flatten({"method": {"class_path": "S3H", "init_args": {"heads": 2}}})
        {'method.class_path': 'S3H', 'method.heads': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in record.items():
        name = prefix.rstrip(".") if key == "init_args" else f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def import_paths(each: type) -> Iterator[str]:
    """Yield the import paths of a class, shortest first.

    There are several if a package re-exports it.
    """
    parts = each.__module__.split(".")
    for length in range(1, len(parts) + 1):
        module = ".".join(parts[:length])
        if getattr(sys.modules.get(module), each.__qualname__, None) is each:
            yield f"{module}.{each.__qualname__}"
