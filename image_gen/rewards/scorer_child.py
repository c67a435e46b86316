"""The far end of the `scorer_process` reward, under another Python that has Pillow and the scorer's packages.

    PYTHON scorer_child.py TARGET OPTIONS_JSON

TARGET is `file.py:function` or `module:function`, function(images: list of PIL, prompts, metadata, **options) -> list
of numbers or None. Lines of JSON: first {"ready": true} or {"error": text}, then one answer {"scores": [...]} or
{"error": text} for each {"images": [base64 PNG], "prompts": [...], "metadata": [...]}, until the input closes.
This file imports nothing of the package, and runs on Python 3.8.
"""

from __future__ import annotations

import base64
import importlib
import importlib.util
import io
import json
import os
import sys
from typing import Any, Callable  # noqa: UP035  (Python 3.8)


def die_with_parent() -> None:
    """Linux ends this process with its parent's, even while the scorer hangs."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL


def load(target: str) -> Callable[..., Any]:
    place, _, name = target.rpartition(":")
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location("scorer", place)
        if spec is None or spec.loader is None or not os.path.isfile(place):
            raise FileNotFoundError(place)
        module = importlib.util.module_from_spec(spec)
        sys.modules["scorer"] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    function: Callable[..., Any] = getattr(module, name)
    return function


def answer(function: Callable[..., Any], request: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    from PIL import Image

    images = [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in request["images"]]
    scores = function(images, request["prompts"], request["metadata"], **options)
    if hasattr(scores, "tolist"):
        scores = scores.tolist()
    return {"scores": [None if score is None else float(score) for score in scores]}


def main() -> None:
    die_with_parent()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the scorer prints goes to stderr, not between the answers

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    sys.path[0] = os.getcwd()  # not this folder, whose file names would hide the scorer's modules
    target, options = sys.argv[1], json.loads(sys.argv[2])
    try:
        function = load(target)
    except BaseException as error:  # told to the parent, which raises
        say({"error": f"{type(error).__name__}: {error}"})
        return
    say({"ready": True})
    for line in sys.stdin.buffer:
        try:
            say(answer(function, json.loads(line), options))
        except Exception as error:  # told to the parent, which raises
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
