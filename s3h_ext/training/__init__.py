"""The trainer: configuration, loop, schedule, checkpoints, metrics, logs."""
