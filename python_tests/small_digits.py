"""The digits at their own 8 x 8 pixels: a step of training takes a tenth of the time.

Every test has them. ``python -m python_tests.small_digits`` is the training command.
"""

from s3h_ext.data.sets import digits

FULL_SIDE = digits._SIDE
digits._SIDE = 8

if __name__ == "__main__":
    from s3h_ext.train import main
    from s3h_ext.training.distributed import exit_process

    exit_process(main())
