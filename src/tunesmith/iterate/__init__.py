"""Iterate: rounds of answers, marks and training, one directory for all of them."""
