"""Frozen weights held in few bits: how they are made, read, loaded and expanded again."""
