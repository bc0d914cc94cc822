"""Small trainings on the digits: how they begin, stop and are compared."""

import itertools
import json

import torch

from s3h_ext.runs.checkpoint import checkpoint_paths, load_checkpoint
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.options import parse_options
from s3h_ext.training.trainer import Trainer

SMALL = "--model.backbone resnet20 --device cpu --precision fp32 --report false".split()
DIGITS = ["--preset", "digits-lt/ce", *SMALL]
QUICK = [*DIGITS, *"--data.imbalance 100 --batch_size 64 --epochs 2".split()]


def trainer_of(folder, *arguments, quick=QUICK, **more):
    config, _ = parse_options([*quick, *arguments])
    return Trainer(config, folder, **more)


def train(folder, *arguments, **more):
    trainer = trainer_of(folder, *arguments, **more)
    return trainer, trainer.fit()


def newest_state(folder):
    return load_checkpoint(checkpoint_paths(RunFolder(folder))[0])


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def losses_of(trainer):
    return [row["loss"] for row in trainer.state.history]


def assert_same_weights(found, expected):
    """The same bits, where NaN equals NaN."""
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=0, equal_nan=True, msg=name
        )


def after_step(method, number, act):
    """Has ``act`` called behind a step, of which the first is 1."""
    before, steps = method.after_step, itertools.count(1)

    def changed():
        before()
        if next(steps) == number:
            act()

    method.after_step = changed


def interrupt_evaluation(trainer, epochs_done):
    """Raise KeyboardInterrupt at the evaluation after ``epochs_done`` epochs."""
    evaluate = trainer._evaluate_epoch

    def changed(**options):
        if trainer.state.epochs_done == epochs_done:
            raise KeyboardInterrupt
        return evaluate(**options)

    trainer._evaluate_epoch = changed
