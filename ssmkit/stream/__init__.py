"""Streams: one observation at a time, by the step that the offline filters scan."""

from ssmkit.stream.live import Stream as Stream
from ssmkit.stream.verb import load_stream as load_stream
from ssmkit.stream.verb import stream as stream
