"""Evaluation: what a model can do, with intervals."""
