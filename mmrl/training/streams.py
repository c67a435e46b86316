"""Random streams live in the core; this name is kept for policies."""

from mmrl.core.streams import Streams, stream_seed

__all__ = ["Streams", "stream_seed"]
