"""A scorer behind HTTP: JPEG pictures and prompts out, numbers back. Loads no torch.

POST to `url` of JSON {"images": [base64 JPEG], "prompts": [...], "metadata": [...]}; the answer is JSON
{"scores": [number or null, ...]}. JSON and no pickle: a server cannot run code here. A server that fails is raised.
"""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from io import BytesIO
from typing import Annotated, Any

from pydantic import Field

from image_gen.rewards.pictures import chunks, prompts_of, to_image
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.registry import reward

Seconds = Annotated[float, Field(gt=0)]
FIRST_PAUSE_S = 1.0  # doubled after each failure


def jpeg(output: Any, quality: int) -> str:
    stream = BytesIO()
    to_image(output).save(stream, format="JPEG", quality=quality)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def post(url: str, body: bytes, *, timeout_s: float, retries: int) -> dict[str, Any]:
    """One answer; tries again after network errors and 5xx answers. Raises UserError when all tries failed."""
    why = ""
    for attempt in range(retries + 1):
        if attempt:
            time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
        request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as reply:
                answer = json.load(reply)
        except urllib.error.HTTPError as error:
            why = f"HTTP {error.code} {error.reason}"
            if error.code < 500:
                break  # our request is at fault: the same again helps nobody
        except (OSError, ValueError) as error:  # no connection, time-out, no JSON
            why = f"{type(error).__name__}: {error}"
        else:
            if not isinstance(answer, dict) or not isinstance(answer.get("scores"), list):
                raise UserError(f"{url} answered without a list 'scores'")
            return answer
    raise UserError(f"{url} failed ({why})")


@reward("remote", rowwise=False)  # a server that fails, fails all rows: they are not tried one by one
def remote(
    outputs: Sequence[Any],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    url: str,
    timeout_s: Seconds = 120.0,
    retries: Annotated[int, Field(ge=0)] = 3,
    quality: Annotated[int, Field(ge=1, le=100)] = 95,
    batch_size: int = 64,
) -> list[float | None]:
    """What the server at `url` returns: one number (or null: does not apply) a picture.

    retries: further tries of a batch, 1, 2, 4, ... seconds apart. Raises UserError when the server keeps failing.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"url must start with http:// or https://, got {url!r}")
    prompts, values = prompts_of(records), []
    for at in chunks(len(outputs), batch_size):
        request = {
            "images": [jpeg(output, quality) for output in outputs[at]],
            "prompts": prompts[at],
            "metadata": [dict(record.meta) for record in records[at]],
        }
        scores = post(url, json.dumps(request).encode(), timeout_s=timeout_s, retries=retries)["scores"]
        if len(scores) != len(outputs[at]):
            raise UserError(f"{url} gave {len(scores)} scores for {len(outputs[at])} pictures")
        values += scores
    return values
