"""Make the embedded image model, its reward network and its judge, from random weights and fixed seeds.

    python scripts/make_flow_start.py [--steps N] [--only PART] [--out DIR] [--work DIR]

The networks first (a minute), then the transformer with its words by the flow-matching loss on real digits of the
training part (minutes on one core), then the numbers that docs/embedded_flow.md prints. Step i draws its batch from
the seed and i alone, and the state is kept in --work every 50 steps: stopped and started again with the same --work,
it ends with the same weights.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from image_gen.diversity import pixel_diversity
from image_gen.embedded import canvas, prompts, starts
from image_gen.embedded.classifiers import CLASSES, FOLDER, NETS
from image_gen.embedded.model import SIZES, TRAIN_STEPS, EmbeddedDigits, load, make_transformer
from image_gen.embedded.rewards import composition_judge, digit, digit_judge, digits_composition
from image_gen.embedded.starts import Loss
from image_gen.embedded.words import WordEncoder
from image_gen.flow.sampler import denoise
from image_gen.flow.steps import Ode, guided_velocity, row_mean
from mmrl.core.streams import stream_seed
from mmrl.data.digits import LEVELS, load_digits
from mmrl.data.records import Record

SEEDS = {"reward": 1, "judge": 2, "flow": 0}
#: compose goes on where flow stops: one run, two points of it are kept.
STEPS = {"reward": 1500, "judge": 1500, "flow": 380, "compose": 560}
KEEP_EVERY = 50
MAX_BYTES = 6_000_000
#: Of the transformer: pictures of one cell and of the wide canvas in a batch, share of prompts dropped for guidance.
NARROW, WIDE, DROPPED = 32, 96, 0.1


# ---- one loop for all three ----------------------------------------------------------------------------------------


def train(name: str, module: nn.Module, loss: Loss, *, steps: int, decay: bool, work: Path, after: str = "") -> None:
    """`starts.train`; what goes on from `after` draws the numbers that `after` would have drawn."""

    def seed(step: int) -> int:
        return stream_seed("make_flow_start", after or name, SEEDS[after or name], step)

    starts.train(name, module, loss, seed=seed, steps=steps, decay=decay, work=work, after=after, keep_every=KEEP_EVERY)


# ---- the two networks ----------------------------------------------------------------------------------------------


def cells(part: str, rows: int) -> tuple[Tensor, Tensor]:
    """Distorted digits of one part, [rows, 8, 8] in [0, 1], and the shares of the classes, [rows, 11].

    Shifts by a pixel, other contrasts, noise; a part of them is two pictures mixed (classes as they are mixed), and a
    part shows nothing that can be read: paper, noise, shuffled or halved digits.
    """
    digits = load_digits(part)
    picture_m = torch.from_numpy(digits.images / np.float32(LEVELS - 1)).float()
    label_m = nn.functional.one_hot(torch.from_numpy(digits.labels.astype(np.int64)), CLASSES).float()
    chosen = torch.randint(len(digits), (2, rows))
    first, second = (shifted(picture_m[c]) for c in chosen)
    share = torch.where(torch.rand(rows) < 0.3, torch.rand(rows), torch.ones(rows))
    picture = share[:, None, None] * first + (1 - share)[:, None, None] * second
    label = share[:, None] * label_m[chosen[0]] + (1 - share)[:, None] * label_m[chosen[1]]
    kind = torch.randint(20, (rows,))
    blank, noise, mixed, halved = (kind == k for k in range(4))
    picture[blank] = 0
    picture[noise] = torch.rand(rows, 8, 8)[noise]
    picture[mixed] = picture.flatten(1)[:, torch.randperm(64)].unflatten(1, (8, 8))[mixed]
    picture[halved] = torch.cat([first[:, :4], second.flip(0)[:, 4:]], 1)[halved]
    label[kind < 4] = nn.functional.one_hot(torch.tensor(canvas.EMPTY), CLASSES).float()
    contrast = 0.7 + 0.6 * torch.rand(rows, 1, 1)
    spread = 0.15 * torch.rand(rows, 1, 1)
    return (contrast * picture + spread * torch.randn(rows, 8, 8)).clamp(0, 1), label


def shifted(picture_m: Tensor) -> Tensor:
    """Each moved by -1, 0 or 1 pixels along both axes, paper coming in."""
    wide = nn.functional.pad(picture_m, (1, 1, 1, 1))
    at = torch.tensor([0, 1, 1, 2])[torch.randint(4, (len(picture_m), 2))]
    return torch.stack([p[y : y + 8, x : x + 8] for p, (y, x) in zip(wide, at.tolist(), strict=True)])


def make_network(name: str, *, steps: int, work: Path, out: Path) -> None:
    torch.manual_seed(SEEDS[name])
    net = NETS[name]()

    def loss(step: int) -> Tensor:
        cell_m, share_mk = cells(name, 128)
        return nn.functional.cross_entropy(net(cell_m), share_mk)

    train(name, net, loss, steps=steps, decay=True, work=work)
    save_file(net.state_dict(), out / f"{name}.safetensors")


# ---- the transformer -----------------------------------------------------------------------------------------------


def demonstrations(step: int) -> list[tuple[list[str], Tensor]]:
    """A batch: (prompts, latents) of the narrow and of the wide canvas. Prompts kept for eval never come."""
    rng = np.random.default_rng(stream_seed("flow start", SEEDS["flow"], step))
    narrow, wide = prompts.class_records(), prompts.composition_records("train")
    tags = sorted({r.meta["tag"] for r in wide})
    found = []
    for many in (NARROW, WIDE):
        texts, pictures = [], []
        for i in range(many):
            if many == NARROW:
                record = narrow[rng.integers(len(narrow))]
                shown = [record.answer]
            else:  # single digits, counts and places alike
                some = [r for r in wide if r.meta["tag"] == tags[i % len(tags)]]
                record = some[rng.integers(len(some))]
                shown = canvas.arrange(record.answer["digits"])
            texts.append("" if rng.random() < DROPPED else record.prompt)
            pictures.append(canvas.draw(shown, part="train", rng=rng))
        found.append((texts, 2 * torch.from_numpy(np.stack(pictures))[:, None] - 1))
    return found


def make_flow(name: str, *, steps: int, work: Path, out: Path) -> None:
    torch.manual_seed(SEEDS["flow"])
    parts = nn.ModuleDict({"transformer": make_transformer(), "words": WordEncoder()})

    def loss(step: int) -> Tensor:
        pairs = demonstrations(step)
        rows = sum(len(texts) for texts, _ in pairs)
        return torch.stack([_flow_loss(parts, *pair).sum() for pair in pairs]).sum() / rows

    train(name, parts, loss, steps=steps, decay=False, work=work, after="" if name == "flow" else "flow")
    EmbeddedDigits(parts["transformer"], parts["words"]).save(out / name)  # type: ignore[arg-type]


def _flow_loss(parts: nn.ModuleDict, texts: list[str], latent_n: Tensor) -> Tensor:
    """Mean over the pixels of (v - (noise - x0))^2, [N]; sigma = sigmoid(z), z ~ N(0, 1) (arXiv 2403.03206)."""
    words: Any = parts["words"]
    sigma_n = torch.sigmoid(torch.randn(len(texts)))
    noise_n = torch.randn(latent_n.shape)
    share = sigma_n[:, None, None, None]
    told, pooled = words(words.ids(texts))
    velocity = parts["transformer"](
        hidden_states=(1 - share) * latent_n + share * noise_n,
        timestep=TRAIN_STEPS * sigma_n,
        encoder_hidden_states=told,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
    return row_mean((velocity - (noise_n - latent_n)).square())


# ---- the numbers ---------------------------------------------------------------------------------------------------

#: Pictures of each prompt, by task; sampler settings of the published numbers.
IMAGES = {"digit": 64, "composition": 24}
SAMPLING_STEPS, SAMPLING_SEEDS = 16, (0, 1, 2)


def draw(
    model: EmbeddedDigits, records: list[Record], *, images: int, steps: int, guidance: float, seed: int
) -> Tensor:
    """`images` pictures of each prompt by the noiseless sampler, [N, 3, H, W]."""
    height, width = SIZES[records[0].task == "composition"]
    texts = [r.prompt for r in records for _ in range(images)]
    generator = torch.Generator().manual_seed(seed)
    x_n = torch.randn(len(texts), *model.latent_shape(height, width), generator=generator)
    found = []
    for part, some in zip(x_n.split(128), (texts[i : i + 128] for i in range(0, len(texts), 128)), strict=True):
        found.append(_denoised(model, part, some, steps=steps, guidance=guidance, size=(height, width)))
    return torch.cat(found)


@torch.no_grad()
def _denoised(
    model: EmbeddedDigits, x_n: Tensor, texts: list[str], *, steps: int, guidance: float, size: tuple[int, int]
) -> Tensor:
    shape: dict[str, Any] = {"height": size[0], "width": size[1], "scale": None}
    told, nothing = (model.collate(model.encode(some)) for some in (texts, [""] * len(texts)))

    def velocity(state_n: Tensor, sigma: float | Tensor) -> Tensor:
        v_n = model.velocity(state_n, sigma, told, **shape)
        if guidance == 1:
            return v_n
        return guided_velocity(v_cond=v_n, v_uncond=model.velocity(state_n, sigma, nothing, **shape), guidance=guidance)

    table = model.sigmas(steps, *size)
    done = denoise(x_n=x_n, velocity=velocity, sigmas=table, rule=Ode(), window=None, generators=[], rows=[])
    return model.decode(done.x_n, height=size[0], width=size[1])


def numbers(model: EmbeddedDigits, records: list[Record], *, seed: int, **how: Any) -> dict[str, float]:
    """reward, judge and diversity of one seed."""
    task = records[0].task
    picture_n = draw(model, records, images=IMAGES[task], seed=seed, **how)
    rows = [r for r in records for _ in range(IMAGES[task])]
    info: list[dict[str, Any]] = [{} for _ in rows]
    scores = {"digit": (digit, digit_judge), "composition": (digits_composition, composition_judge)}[task]
    key_n = torch.arange(len(records)).repeat_interleave(IMAGES[task])
    means = [float(np.mean(score(list(picture_n), rows, info))) for score in scores]
    return {"reward": means[0], "judge": means[1], "diversity": float(pixel_diversity(picture_n, key_n))}


def report(out: Path) -> None:
    """What the shipped model does before any reinforcement: mean over the seeds, and their spread."""
    sets = {
        "digits:class": ("flow", prompts.class_records()),
        "digits:compose": ("compose", prompts.composition_records("train")),
        "digits:compose?split=eval": ("compose", prompts.composition_records("eval")),
    }
    for name, (folder, records) in sets.items():
        model = load(out / folder, dtype=torch.float32, device=torch.device("cpu"))
        every = [numbers(model, records, seed=s, steps=SAMPLING_STEPS, guidance=1.0) for s in SAMPLING_SEEDS]
        print(f"{name}, {SAMPLING_STEPS} steps of the ODE, guidance 1: {starts.spread(every)}")


# ---- all of it -----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, help="of every part, in place of the published numbers")
    parser.add_argument("--only", choices=(*STEPS, "measure"))
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--work", type=Path, help="keep the states here (default: a temporary folder)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.work or Path(temporary)
        for folder in (work, asked.out):
            folder.mkdir(parents=True, exist_ok=True)
        for name, published in STEPS.items():
            steps = asked.steps or published
            if asked.only in (None, name) and name in ("flow", "compose"):
                make_flow(name, steps=steps, work=work, out=asked.out)
            elif asked.only in (None, name):
                make_network(name, steps=steps, work=work, out=asked.out)
    if asked.only in (None, "measure"):
        report(asked.out)
    starts.check_size(asked.out, most=MAX_BYTES)


if __name__ == "__main__":
    main()
