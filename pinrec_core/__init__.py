"""PinRec in the open: outcome-conditioned, windowed multi-token generative retrieval (arXiv 2504.10507)."""

__version__ = "0.1.0"
