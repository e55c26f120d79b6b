"""The named tasks of lm-evaluation-harness, with Tunesmith as the model."""
