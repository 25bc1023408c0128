"""Millions of images: shards in, Parquet out, exactly once, on one machine or on Ray (docs/scale.md)."""

from sdpl.scale.actor import RecognizerActor
from sdpl.scale.job import Settings
from sdpl.scale.score import OneProcess, Summary, score
from sdpl.scale.worker import Options

__all__ = ["OneProcess", "Options", "RecognizerActor", "Settings", "Summary", "score"]
