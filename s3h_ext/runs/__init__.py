"""A run's folder: options, checkpoints, and the network that is loaded from it."""
