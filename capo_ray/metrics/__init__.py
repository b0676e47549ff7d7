"""The metrics room: numbers, transcripts and pictures of a run, for people and for programs.

`register` names every figure. `metrics.jsonl` is the record: one row per update, always there, cut back on resume.
Everything else is optional, and an optional tracker that fails is reported once, counted and left behind: it never ends
a run.
"""

from capo_ray.metrics.build import FanOut, build_trackers
from capo_ray.metrics.plot import plot_learning_curve
from capo_ray.metrics.rows import JsonlTracker, read_rows, write_summary
from capo_ray.metrics.screen import Screen
from capo_ray.metrics.trackers import MlflowTracker, TensorBoardTracker, TrackioTracker, WandbTracker
from capo_ray.metrics.transcripts import TranscriptWriter

__all__ = [
    "FanOut",
    "JsonlTracker",
    "MlflowTracker",
    "Screen",
    "TensorBoardTracker",
    "TrackioTracker",
    "TranscriptWriter",
    "WandbTracker",
    "build_trackers",
    "plot_learning_curve",
    "read_rows",
    "write_summary",
]
