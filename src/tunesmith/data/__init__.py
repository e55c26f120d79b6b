"""Data: records from files become packed batches."""
