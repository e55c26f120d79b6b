"""Rollout: text from a model."""
