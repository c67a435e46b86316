"""What the diffusers pipelines share: encoding once, padding, sizes, the table of noise levels, decoding, storing."""

from __future__ import annotations

import copy
import math
import shutil
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from image_gen.flow.sigmas import resolution_shift
from image_gen.pipelines import lora
from image_gen.pipelines.base import Batch, Condition, ImageModel
from mmrl.data.images import open_image
from mmrl.errors import UserError

_CHUNK = 16  # prompts that the text encoders read at once

#: A text encoder's tokenizer, the tokens it reads at most, and what is written around a prompt.
Reader = tuple[Any, int, str]
#: One noise level, or one a row [N].
Level = float | Tensor


class DiffusersModel(ImageModel):
    """A diffusers pipeline; one subclass an architecture.

    pipe is the loaded pipeline (its own `__call__` is never used), source the local folder it came from. The keys of a
    condition are the arguments of the transformer's forward.
    """

    #: The schedulers whose tables and steps are known here, by class name.
    schedulers: ClassVar[tuple[str, ...]] = ("FlowMatchEulerDiscreteScheduler",)

    def __init__(self, pipe: Any, *, source: Path, device: torch.device) -> None:
        self.pipe, self.source, self.device = pipe, source, device
        self.transformer: Any = pipe.transformer
        self.config: Any = pipe.transformer.config  # kept: the transformer may be wrapped later
        self._encoders = [name for name in pipe.components if name.startswith("text_encoder")]
        self._freed = False
        self.check_scheduler()

    # prompts

    @abstractmethod
    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """The pipeline's own encoding of a few prompts; batched tensors."""

    @abstractmethod
    def _readers(self) -> list[Reader]:
        """The tokenizers of the text encoders that the pipeline has."""

    def encode(self, prompts: Sequence[str]) -> list[Condition]:
        if self._freed:
            raise RuntimeError("the text encoders have been freed; encode every prompt before free_encoders()")
        for name in self._encoders:
            if getattr(self.pipe, name) is not None:
                getattr(self.pipe, name).to(self.device)
        found: list[Condition] = []
        for start in range(0, len(prompts), _CHUNK):
            with torch.no_grad(), quiet():
                batch = self._encode(list(prompts[start : start + _CHUNK]))
            found += [self._row({key: value[n] for key, value in batch.items()}) for n in range(len(_first(batch)))]
        return found

    def rest_encoders(self) -> None:
        for name in self._encoders:
            if getattr(self.pipe, name, None) is not None:
                getattr(self.pipe, name).to("cpu")

    def _row(self, condition: Condition) -> Condition:
        """Floats in the dtype of the transformer; on the CPU; a copy, so that the batch can go."""
        dtype = self.transformer.dtype
        return {k: v.to("cpu", dtype if v.is_floating_point() else None, copy=True) for k, v in condition.items()}

    def overlong(self, prompts: Sequence[str]) -> list[int]:
        """A prompt counts as read if one of the text encoders reads all of it (SD3 and FLUX: T5, not CLIP)."""
        with quiet():
            return [
                max(0, min(len(tok(around.format(p)).input_ids) - limit for tok, limit, around in self._readers()))
                for p in prompts
            ]

    def free_encoders(self) -> None:
        for name in self._encoders:
            setattr(self.pipe, name, None)
        self._freed = True
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def collate(self, conditions: Sequence[Condition]) -> Batch:
        return {key: torch.stack([c[key] for c in conditions]).to(self.device) for key in conditions[0]}

    # sampling

    def _multiple(self) -> int:
        """Sides of a picture are whole multiples of this."""
        return int(self.pipe.vae_scale_factor) * int(self.config.patch_size)

    def _largest(self) -> int | None:
        """The longest side, where position embeddings end."""
        return None

    def check_size(self, height: int, width: int) -> None:
        unit, top = self._multiple(), self._largest()
        for name, side in (("height", height), ("width", width)):
            below = min(side // unit * unit, top or side)
            near = sorted({max(unit, below), max(unit, min(below + unit, top or side + unit))})
            if side < 1 or side % unit or (top is not None and side > top):
                limit = "" if top is None else f", at most {top}"
                raise UserError(
                    f"picture size {height}x{width}: {type(self.pipe).__name__} takes a {name} in steps of {unit}"
                    f"{limit}, got {side}; nearest: {' or '.join(map(str, near))}"
                )

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        self.check_size(height, width)
        factor = int(self.pipe.vae_scale_factor)
        return int(self.config.in_channels), height // factor, width // factor

    def check_scheduler(self) -> None:
        """Raises UserError for a scheduler whose noise levels are not those of flow matching."""
        scheduler = self.pipe.scheduler
        name = type(scheduler).__name__
        if name not in self.schedulers or scheduler.config.get("invert_sigmas"):
            raise UserError(
                f"{self.source}: scheduler {name} with these settings is not a flow-matching one; "
                f"use {' or '.join(self.schedulers)}"
            )

    def _timetable(self, steps: int, height: int, width: int) -> dict[str, Any]:
        """The arguments with which the pipeline calls `set_timesteps`."""
        return {"num_inference_steps": steps}

    def _mu(self, tokens: int, *, top: float) -> float:
        """The resolution-dependent shift; `top` is the pipeline's default of max_shift."""
        get = self.pipe.scheduler.config.get
        low = (get("base_image_seq_len", 256), get("base_shift", 0.5))
        high = (get("max_image_seq_len", 4096), get("max_shift", top))
        return math.log(resolution_shift(tokens=tokens, low=low, high=high))

    def sigmas(self, steps: int, height: int, width: int) -> Tensor:
        """Read off a copy of the pipeline's scheduler, which rounds them to float32; here as float64 [S+1]."""
        if steps < 1:
            raise UserError(f"sigmas: steps must be at least 1, got {steps}")
        self.check_size(height, width)
        scheduler = copy.deepcopy(self.pipe.scheduler)
        with np.errstate(all="ignore"):  # what cannot be divided is refused below
            scheduler.set_timesteps(device="cpu", **self._timetable(steps, height, width))
        level_s: Tensor = scheduler.sigmas.double()
        if len(level_s) != steps + 1 or not bool((level_s[1:] < level_s[:-1]).all()):  # NaN is refused as well
            raise UserError(f"sigmas: the scheduler of {self.source} has no falling table of {steps} steps; take more")
        return level_s

    def _timestep(self, sigma: Level, x_n: Tensor) -> Tensor:
        """What the pipeline's scheduler calls a timestep; float32 [N]."""
        level_n = torch.as_tensor(sigma, dtype=torch.float32, device=x_n.device).expand(len(x_n))
        return level_n * self.pipe.scheduler.config.num_train_timesteps

    @abstractmethod
    def _forward(
        self, x_n: Tensor, sigma: Level, batch: Mapping[str, Tensor], *, height: int, width: int, scale: float | None
    ) -> Tensor:
        """The transformer's answer to x_n in the transformer's dtype."""

    def velocity(
        self, x_n: Tensor, sigma: Level, batch: Mapping[str, Tensor], *, height: int, width: int, scale: float | None
    ) -> Tensor:
        """In the dtype of x_n. Raises ValueError for a scale that is missing or that the network does not take."""
        if (scale is not None) != (self.guidance == "embedded"):
            raise ValueError(f"guidance {self.guidance}: scale must be {'a number' if scale is None else 'None'}")
        x = x_n.to(_dtype(self.transformer))
        return self._forward(x, sigma, batch, height=height, width=width, scale=scale).to(x_n.dtype)

    def _unscaled(self, x_n: Tensor, *, height: int, width: int) -> Tensor:
        """Latents as the decoder takes them."""
        config = self.pipe.vae.config
        return x_n / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)

    @torch.no_grad()
    def decode(self, x_n: Tensor, *, height: int, width: int) -> Tensor:
        """NaN in the decoder's answer becomes 0; count non-finite latents before."""
        vae = self.pipe.vae
        latent = self._unscaled(x_n.to(self.device, torch.float32), height=height, width=width)
        picture = vae.decode(latent.to(_dtype(vae)), return_dict=False)[0].float()
        if picture.dim() == 5:  # a video decoder: one frame
            picture = picture[:, :, 0]
        return (picture / 2 + 0.5).clamp(0, 1).nan_to_num(nan=0.0)

    def _scaled(self, latent: Tensor) -> Tensor:
        """Latents of the encoder as the transformer takes them."""
        config = self.pipe.vae.config
        return (latent - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor

    @torch.no_grad()
    def from_picture(self, picture: Any, *, height: int, width: int) -> Tensor:
        """The most likely latent (no noise is drawn); float32, on the CPU. Raises UserError for another size."""
        self.check_size(height, width)
        pixels = picture if isinstance(picture, Tensor) else _pixels(picture)
        if pixels.shape != (3, height, width):
            shape = f"{list(pixels.shape)}" if pixels.dim() != 3 else f"{pixels.shape[1]}x{pixels.shape[2]}"
            raise UserError(f"picture: the size is {shape}, the model is trained at {height}x{width}; resize it")
        vae = self.pipe.vae
        found = vae.encode(self._frames(pixels[None].to(self.device, vae.dtype) * 2 - 1))
        latent = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latent
        return self._scaled(latent.float())[0].cpu()

    def _frames(self, picture_n: Tensor) -> Tensor:
        """Pictures as the VAE takes them."""
        return picture_n

    # weights

    def save_lora(self, path: Path) -> None:
        lora.save(self.transformer, type(self.pipe), path)

    def load_lora(self, path: Path) -> None:
        lora.load(self.transformer, self.pipe, path)

    def save(self, path: Path, *, max_shard_size: str = "10GB") -> None:
        """The transformer by its `save_pretrained`, everything else copied from the folder it was loaded from: text
        encoders may have been freed, and their files stay as they were published. Refused with an adapter attached:
        `save_lora` it, or `lora.merge` it first."""
        if lora.attached(self.transformer):
            raise ValueError("a LoRA is attached: save_lora stores it alone, lora.merge makes it part of the weights")
        path.mkdir(parents=True, exist_ok=True)
        with quiet():
            self.transformer.save_pretrained(path / "transformer", max_shard_size=max_shard_size)
        shutil.copyfile(self.source / "model_index.json", path / "model_index.json")
        for name in self.pipe.components:
            if name != "transformer" and (self.source / name).is_dir():
                shutil.copytree(self.source / name, path / name, dirs_exist_ok=True)


def _dtype(network: torch.nn.Module) -> torch.dtype:
    """Of its first floating parameter; diffusers' own `.dtype` says the same after a walk over all modules."""
    return next(p.dtype for p in network.parameters() if p.is_floating_point())


def _pixels(picture: Any) -> Tensor:
    """A PIL picture or a file as [3, H, W] in [0, 1]."""
    array = np.asarray(open_image(picture), dtype=np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1)


def _first(batch: Mapping[str, Tensor]) -> Tensor:
    return next(iter(batch.values()))


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of diffusers and transformers: what matters is reported by the caller."""
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    levels, bars = [m.get_verbosity() for m in (ours, theirs)], theirs.is_progress_bar_enabled()
    diffusers_bars = ours.is_progress_bar_enabled()
    for module in (ours, theirs):
        module.set_verbosity_error()
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module, level in zip((ours, theirs), levels):
            module.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()
        if diffusers_bars:
            ours.enable_progress_bar()
