"""Models: load, attend, score, adapt."""
