"""The video-language policy: the vision-language policy with clips among its inputs.

Axes: N rollouts, T decisions (tokens).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training.rollouts import Request, Rollouts
from mmrl.vlm.encode import Prompt
from mmrl.vlm.policy import VlmPolicy
from video.encode import Noise, VideoEncoder, VideoPrompt
from video.show import strip


class VideoPolicy(VlmPolicy):
    """A request may ask for noise on its frames: sampling `frame_noise`, the standard deviation in pixel values of
    0..255. The rows of a request share one draw, which depends on seed, step and record; the update sees it too."""

    ENCODER = VideoEncoder
    INPUT_OPTIONS = ("frame_noise",)
    encoder: VideoEncoder
    _reading: Future[None] | None = None  # the next step's clips, in another thread

    def look_ahead(self, requests: Sequence[Request]) -> None:
        """Reads and encodes the clips of plain requests in a thread of its own; nothing else may use the encoder until
        `_settle` has waited for it."""
        self._settle()
        plain = [r.record for r in requests if r.record.videos and r.prompt_edit is None and not r.sampling]
        if plain and self.encoder.inputs.read_ahead:
            pool = ThreadPoolExecutor(1, thread_name_prefix="clips")
            self._reading = pool.submit(self.encoder.get_ready, plain)
            pool.shutdown(wait=False)

    def _settle(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.result()

    def save(self, path: Path) -> None:
        self._settle()  # its tokenizer can serve one thread at a time
        super().save(path)

    def demonstrations(self, records: Sequence[Record], streams: Streams) -> Rollouts:
        self._settle()
        return super().demonstrations(records, streams)

    def _prompt_of(self, request: Request, streams: Streams) -> Prompt:
        return self.encoder(request.record, request.prompt_edit, noise=noise_of(request, streams))

    def rollout(self, requests: Sequence[Request], streams: Streams, *, greedy: bool = False) -> Rollouts:
        """As the vision-language policy; `info` has "videos" beside it: of each clip its length in seconds, the moments
        of its frames, and the size of a frame in the file and as the model sees it."""
        self._settle()
        rollouts = super().rollout(requests, streams, greedy=greedy)
        for info, row in zip(rollouts.info, rollouts.rows, strict=True):
            if isinstance(row.prompt, VideoPrompt):
                info["videos"] = row.prompt.clips
        return rollouts

    def describe(self, rollouts: Rollouts, rows: Iterable[int]) -> list[dict[str, Any]]:
        """Prompt, output and pictures: a strip of frames for each clip, then the record's pictures. Boxes are drawn on
        pictures only, where there is no clip before them."""
        self._settle()
        wanted = list(rows)
        found = super().describe(rollouts, wanted)
        for i, shown in zip(wanted, found, strict=True):
            record = rollouts.records[i]
            if strips := [strip(clip) for clip in self.encoder.clips_of(record)]:
                shown["images"] = [*strips, *shown["images"]]
                for boxes in ("boxes", "gold"):
                    shown.pop(boxes, None)
            if record.answer is not None:
                shown["answer"] = record.answer
        return found


def noise_of(request: Request, streams: Streams) -> Noise | None:
    """The noise that the request asks for. Raises UserError for a deviation that is negative or no number."""
    sd = request.sampling.get("frame_noise", 0.0)
    if isinstance(sd, bool) or not isinstance(sd, (int, float)) or not math.isfinite(sd) or sd < 0:
        raise UserError(f"sampling override frame_noise: {sd!r:.60} is no deviation; give 0 or more, of 0..255")
    if sd == 0:
        return None
    seed = streams.generator(request.record.id, 0, use="frame_noise").initial_seed()
    return Noise(float(sd), seed)
