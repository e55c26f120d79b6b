"""A conversation with one model, or with two whose answers a person compares without knowing which is whose."""
