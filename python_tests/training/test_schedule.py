import pytest

from s3h_ext.runs.config import OptimConfig
from s3h_ext.training.optimizer import learning_rate


def test_step_schedule_changes_after_the_milestone_epoch():
    # LDAM-DRW: x0.01 from the first step after 160 epochs, x0.0001 after 180.
    optim = OptimConfig(lr=0.1, warmup_epochs=5, milestones=[0.8, 0.9], gamma=0.01)
    # 160.0 is the last step of epoch 160.
    rates = [learning_rate(optim, e, 200) for e in (160.0, 160.01, 180.0, 180.01)]
    assert rates == pytest.approx([0.1, 0.001, 0.001, 1e-5])


def test_milestones_scale_with_the_length_of_the_training():
    optim = OptimConfig(lr=1.0, warmup_epochs=0, milestones=[0.6], gamma=0.1)
    assert learning_rate(optim, 24.0, 40) == 1.0
    assert learning_rate(optim, 24.1, 40) == pytest.approx(0.1)


def test_a_milestone_inside_an_epoch_takes_effect_at_its_end():
    optim = OptimConfig(lr=1.0, warmup_epochs=0, milestones=[0.5], gamma=0.1)
    assert learning_rate(optim, 2.0, 3) == 1.0
    assert learning_rate(optim, 2.1, 3) == pytest.approx(0.1)


def test_warmup_is_linear_and_reaches_the_peak():
    optim = OptimConfig(lr=0.5, warmup_epochs=5)
    rates = [learning_rate(optim, e, 200) for e in (0.5, 1, 2.5, 5)]
    assert rates == pytest.approx([0.05, 0.1, 0.25, 0.5])


def test_cosine_falls_from_the_peak_to_zero():
    optim = OptimConfig(lr=0.2, warmup_epochs=0, schedule="cosine")
    rates = [learning_rate(optim, e, 100) for e in (0, 50, 100)]
    assert rates == pytest.approx([0.2, 0.1, 0.0])
    assert learning_rate(optim, 30, 100) > learning_rate(optim, 31, 100)


def test_constant_stays():
    optim = OptimConfig(lr=0.3, warmup_epochs=0, schedule="constant")
    assert learning_rate(optim, 199, 200) == 0.3
