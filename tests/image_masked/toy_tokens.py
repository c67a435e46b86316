"""A token model in a few lines of torch, with the entry points of a family over it, and rewards for its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AmusedScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from image_gen.masked.check import check as check
from image_gen.masked.config import Inputs, Model, Sampling
from image_gen.masked.evaluate import compared as compared
from image_gen.masked.evaluate import evaluate as evaluate
from image_gen.masked.evaluate import first_look as first_look
from image_gen.masked.models.base import Predicted, TokenModel
from image_gen.masked.policy import MaskedPolicy
from image_gen.masked.schedule import beside, storage
from image_gen.pipelines.base import Batch, Condition
from mmrl.data.records import Record
from mmrl.rewards.registry import reward

WIDTH, LETTERS, CODEBOOK, MASK = 8, "abcdefghijklmnopqrstuvwxyz ", 5, 6
PROMPTS = ("a toe", "one oak", "eel", "a boat", "an ode", "oboe")


class ToyTransformer(nn.Module):
    """Each position sees itself, the mean of the canvas and the prompt; ids 0..5 and the mask 6 have vectors."""

    def __init__(self, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.ids = nn.Embedding(MASK + 1, WIDTH, dtype=dtype)
        self.place = nn.Embedding(64, WIDTH, dtype=dtype)
        self.to_q = nn.Linear(2 * WIDTH, WIDTH, dtype=dtype)
        self.head = nn.Linear(WIDTH, MASK + 1, dtype=dtype)

    def forward(self, ids_nl: Tensor, told_nd: Tensor) -> tuple[Tensor, Tensor]:
        x_nld = self.ids(ids_nl) + self.place.weight[: ids_nl.shape[1]]
        all_nld = (x_nld.mean(1, keepdim=True) + told_nd[:, None]).expand_as(x_nld)
        h_nld = torch.tanh(self.to_q(torch.cat([x_nld, all_nld], -1)))
        return self.head(h_nld), h_nld


class ToyTokens(TokenModel):
    lora_targets = ("to_q",)
    codebook, mask_id, feature_width, guidance = CODEBOOK, MASK, WIDTH, 1.5

    def __init__(self, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.transformer: Any = ToyTransformer(dtype=dtype)
        self.scheduler = AmusedScheduler(mask_token_id=MASK)
        self.calls: list[int] = []

    def encode(self, prompts: Sequence[str]) -> list[Condition]:
        dtype = self.transformer.head.weight.dtype
        found = []
        for prompt in prompts:
            counts = torch.tensor([prompt.count(letter) for letter in LETTERS[:WIDTH]], dtype=dtype)
            found.append({"told": counts / max(1, len(prompt)) * 3})
        return found

    def collate(self, conditions: Sequence[Condition]) -> Batch:
        return {"told": torch.stack([c["told"] for c in conditions])}

    def check_size(self, height: int, width: int) -> None:
        self.grid(height, width)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def predict(
        self, ids_nl: Tensor, batch: Mapping[str, Tensor], *, height: int, width: int, features: bool = False
    ) -> Predicted:
        self.calls.append(len(ids_nl))
        logits_nlv, h_nld = self.transformer(ids_nl, batch["told"])
        return Predicted(logits_nlv[..., :CODEBOOK], h_nld if features else None)

    @torch.no_grad()
    def decode(self, ids_nl: Tensor, *, height: int, width: int) -> Tensor:
        grey = ids_nl.float().view(-1, 1, height, width) / (CODEBOOK - 1)
        return grey.expand(-1, 3, -1, -1).contiguous()

    def tokenise(self, picture: Any, *, height: int, width: int) -> Tensor:
        return (torch.as_tensor(picture)[0] * (CODEBOOK - 1)).round().long().flatten()

    def save(self, path: Path, *, max_shard_size: str = "10GB") -> None:
        path.mkdir(parents=True, exist_ok=True)
        save_file(self.transformer.state_dict(), path / "toy.safetensors")

    def load(self, path: Path) -> None:
        self.transformer.load_state_dict(load_file(path / "toy.safetensors"))


# the family over it

POLICY = MaskedPolicy


@reward("toy-tokens-bright", tasks=("toy-tokens",))
def bright(outputs: Any, records: Any, info: Any) -> list[float]:
    return [float(o.mean()) for o in outputs]


@reward("toy-tokens-half", tasks=("toy-tokens",))
def half(outputs: Any, records: Any, info: Any) -> list[float]:
    return [float(o[:, :, : o.shape[2] // 2].mean()) for o in outputs]


def load_policy(config: Any) -> MaskedPolicy:
    model = ToyTokens(dtype=torch.float64 if config.model.path == "toy64" else torch.float32)
    schedule = None
    if config.model.path not in ("toy", "toy64"):
        model.load(Path(config.model.path))
        schedule = storage.load(Path(config.model.path) / beside.FOLDER)
    return policy_over(model, config.model, config.sampling, config.inputs, schedule)


def policy_over(model: ToyTokens, options: Model, sampling: Sampling, inputs: Inputs, schedule: Any = None) -> Any:
    grid = model.grid(inputs.height, inputs.width)
    own = schedule or storage.make(options.schedule, steps=sampling.steps, feature_width=WIDTH, grid=grid)
    return MaskedPolicy(model, own, options=options, sampling=sampling, inputs=inputs)


def builtin(name: str) -> list[Record]:
    prompts = PROMPTS[:4] if name.endswith("train") else PROMPTS[4:]
    return [Record(f"toy-{p.replace(' ', '-')}", "toy-tokens", p) for p in prompts]


def chance(records: Any, config: Any) -> dict[str, float]:
    return {}


def settings(out: Path, **sections: Any) -> dict[str, Any]:
    """A configuration of this family; mappings are merged into the default ones."""
    base: dict[str, Any] = {
        "family": "toy-masked",
        "recipe": "co-grpo",
        "out": str(out),
        "model": {"path": "toy", "adapter": {"kind": "none"}},
        "sampling": {"steps": 4},
        "inputs": {"height": 4, "width": 4, "eval_images": 3, "curve_steps": [2, 4], "curve_images": 3},
        "data": {"train": "toy:train", "eval": "toy:eval"},
        "rewards": {"components": [{"name": "toy-tokens-bright"}]},
        "eval": {"judges": [{"name": "toy-tokens-half"}]},
        "train": {"steps": 6, "prompts": 4, "group": 4},
        "optimiser": {"lr": 0.01},
        "checkpoint": {"every": 2},
        "log": {"tensorboard": False},
    }
    for key, value in sections.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return base
