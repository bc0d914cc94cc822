"""Long-tailed image classification: native operations, losses and a trainer."""

__version__ = "0.1.0"
