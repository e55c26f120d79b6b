"""Rooms of the plan: the machine, memory, time, data counts, problems and how they are shown."""
