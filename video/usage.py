"""The code of a video model's card: a file is seen at the frames and in the size of the run, in plain transformers.

The processors choose frames by rules of their own, which differ (Qwen2.5-VL starts each share of the file, Qwen3-VL may
take an odd number), and limit pixels of a frame or of all frames together. So the code chooses and resizes as
`video.reading` does, and the processor does neither. It counts frames where that looks at their times: the same for an
mp4 file of constant frame rate.
"""

from __future__ import annotations

from mmrl.data.records import Record
from mmrl.vlm.config import Model
from mmrl.vlm.usage import answering, asking, opening, question
from video.config import Inputs
from video.frames import times_of

IMPORTS = (
    "import numpy as np",
    "from torchvision.transforms.v2 import InterpolationMode",
    "from torchvision.transforms.v2.functional import resize",
    "from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize",
    "from transformers.video_utils import load_video",
)


def usage(options: Model, inputs: Inputs, record: Record, *, adapter_only: bool) -> str:
    """Code that loads the folder and asks about clip.mp4: the record's question, if that is about one video alone."""
    alone = len(record.videos) == 1 and not record.images
    lines = [
        *opening(options, IMPORTS, adapter_only=adapter_only),
        "factor = processor.video_processor.patch_size * processor.video_processor.merge_size",
        "",
        *_chosen(inputs, record),
        "",
        *asking(inputs, "video", question(record.prompt if alone else None, "What happens in the video?")),
        'frames, seen = load_video("clip.mp4", sample_indices_fn=chosen)  # PyAV reads it',
        *_resized(inputs),
        'ready = {"do_sample_frames": False, "do_resize": False, "video_metadata": [seen]}',
        'batch = processor(text=[text], videos=[frames], videos_kwargs=ready, return_tensors="pt")',
        *answering(),
    ]
    return "\n".join(lines)


def note(inputs: Inputs) -> str:
    """A sentence on what the model was shown in training and where the code of the card shows the same."""
    even = ", an even number" if inputs.even_frames and inputs.frames != "times" else ""
    frames = {
        "fps": f"{inputs.fps:g} frames a second ({inputs.min_frames} to {inputs.max_frames}{even}) spread evenly",
        "count": f"{inputs.count} frames{even} spread evenly",
        "times": "the frames at the seconds that each record names",
    }[inputs.frames]
    budget = "" if inputs.video_max_pixels is None else f", at most {inputs.video_max_pixels} in all"
    least, most = inputs.frame_min_pixels, inputs.frame_max_pixels
    pixels = f"about {most}" if least == most else f"{least} to {most}"
    return (
        f"Training showed of each video {frames}, with {pixels} pixels a frame{budget}. The code above does the same "
        "with mp4 files of a constant frame rate that are stored upright; what the processor itself samples may be "
        "other frames."
    )


def _chosen(inputs: Inputs, record: Record) -> list[str]:
    """A function `chosen` that gives the indices of frames: `video.frames.frame_count` and `evenly`, or `on_screen`."""
    if inputs.frames == "times":
        times = list(next(iter(times_of(record)), (0.0,)))
        return [
            "def chosen(metadata, **_):  # the frames on the screen at these seconds",
            f"    found = ((np.array({times}) + 1e-6) * metadata.fps).astype(int)",
            "    return np.unique(found.clip(0, metadata.total_num_frames - 1))",
        ]
    if inputs.frames == "count":
        told, n = "so many", f"min({inputs.count}, metadata.total_num_frames)"
    else:
        wanted = f"metadata.duration * {inputs.fps!r}"
        if inputs.video_max_pixels is not None:
            wanted = f"min({wanted}, {inputs.video_max_pixels} // factor**2)"
        lowest = inputs.min_frames + (inputs.min_frames % 2 if inputs.even_frames else 0)
        told = f"{inputs.fps:g} a second"
        n = f"int(min(max({wanted}, {lowest}), {inputs.max_frames}, metadata.total_num_frames) + 1e-6)"
    return [
        f"def chosen(metadata, **_):  # the frames that training would look at: {told}, from the first to the last",
        f"    n = {n}",
        *(["    n = max(n - n % 2, 1)  # two become one position in time"] if inputs.even_frames else []),
        "    return np.linspace(0, metadata.total_num_frames - 1, n).round().astype(int)",
    ]


def _resized(inputs: Inputs) -> list[str]:
    """`frames` [n, 3, H, W] of the size that `video.frames.frame_size` gives, and the seconds between them."""
    n = "len(frames) + len(frames) % 2" if inputs.even_frames else "len(frames)"
    lines, least, most = [], f"{inputs.frame_min_pixels}", f"{inputs.frame_max_pixels}"
    if inputs.video_max_pixels is not None:
        lines = [f"most = min({most}, {inputs.video_max_pixels} // ({n}))  # pixels of a frame"]
        least, most = f"min({least}, most)", "most"
    if inputs.frames == "times":
        gaps = f"max({n} - 1, 1)"
        lines += [
            f"gap = np.ptp(seen.frames_indices) / {gaps}  # some models tell time by the mean distance of frames",
            "seen.total_num_frames = len(frames) * gap if len(frames) > 1 else seen.total_num_frames",
        ]
    return [
        *lines,
        f"size = smart_resize(*frames.shape[1:3], factor, min_pixels={least}, max_pixels={most})",
        "frames = torch.from_numpy(frames).permute(0, 3, 1, 2)",
        "frames = resize(frames, size, InterpolationMode.BICUBIC, antialias=True)",
    ]
