"""Distributed: ranks and what they share."""
