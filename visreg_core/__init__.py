"""Losses and metrics of self-supervised representations, on any array library."""

__version__ = "0.1.0"
