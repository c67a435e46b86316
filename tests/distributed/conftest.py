"""The launcher, the toy family and the plug-ins of other tests, by name."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / name) for name in ("distributed", "training", "vlm", "image_flow")]
