"""Tunesmith: from raw text to an aligned, exported language model."""

__version__ = "0.1.0"
