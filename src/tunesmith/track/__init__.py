"""The run directory: everything that a run writes about itself, and everything that reads it."""

from tunesmith.track.index import find_run, scan
from tunesmith.track.run_dir import RunDir
from tunesmith.track.tracker import NullTracker, Tracker, Tracking, open_tracker

__all__ = ["NullTracker", "RunDir", "Tracker", "Tracking", "find_run", "open_tracker", "scan"]
