"""Helpers of these tests are modules beside them; the launcher of several ranks is that of `tests/distributed`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / name) for name in ("video", "distributed")]
