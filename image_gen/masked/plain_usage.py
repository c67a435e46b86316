"""Code for the card of an exported masked-image model: a short loop in plain diffusers, or this package.

diffusers' own AmusedPipeline takes one guidance scale, a line of re-mask temperatures and the cosine table of its
scheduler: it cannot take a learned schedule, so the loop is written out.
"""

from __future__ import annotations

from torch import Tensor

from image_gen import mmrl_usage
from image_gen.masked.config import Sampling
from image_gen.masked.decoding import hand_made
from image_gen.masked.models.amused import AESTHETIC, CROP, Amused
from image_gen.masked.models.base import TokenModel
from image_gen.masked.schedule.acting import mean_values
from image_gen.masked.schedule.base import Schedule
from mmrl.training.exported import public_name

#: What of the section says how a picture is drawn.
DRAWN = ("mask_schedule", "remask_temperature", "sample_temperature", "guidance", "confidence")


def steps_of(sampling: Sampling) -> int:
    """Decoding steps of the evaluation."""
    return sampling.eval_steps or sampling.steps


def values(model: TokenModel, schedule: Schedule, sampling: Sampling) -> Tensor | None:
    """The schedule's values in the evaluation, [T, V] float32; None where they depend on the canvas."""
    if schedule.reads_features and not schedule.at_base:
        return None
    base = hand_made(model, sampling, schedule, steps_of(sampling))
    return mean_values(schedule, base.base_tv, guidance_base=base.guidance_base)


def is_plain(model: TokenModel, schedule: Schedule) -> bool:
    """The folder draws without this package."""
    return isinstance(model, Amused) and (schedule.at_base or not schedule.reads_features)


def remarks(model: TokenModel, schedule: Schedule) -> list[str]:
    """What a user of plain diffusers has to know."""
    if not isinstance(model, Amused):
        name = type(model.transformer).__name__
        return [f"This model is no pipeline of diffusers: its {name} is a class of mmrl, which the code needs."]
    if not is_plain(model, schedule):
        return [
            "The learned schedule is a network that reads the canvas before each step; no table of numbers stands for "
            "it, so the code draws with mmrl. Weights and schedule/ load without it."
        ]
    if schedule.at_base:
        return ["The schedule is the hand-made one of the evaluation; schedule/ holds no learned means."]
    return [
        "The learned schedule gives every step its own mask ratio, temperatures and guidance. AmusedPipeline takes one "
        "guidance scale and its scheduler's own table only, so the loop is written out; the numbers are those of "
        "schedule/ at the step count of the evaluation."
    ]


def code(
    model: TokenModel,
    schedule: Schedule,
    sampling: Sampling,
    *,
    prompt: str,
    base: str | None,
    height: int,
    width: int,
) -> str:
    """Python that loads the folder and draws a prompt. `base`: of an adapter."""
    table = values(model, schedule, sampling)
    if table is None or not isinstance(model, Amused):
        asked = {
            name: getattr(sampling, name) for name in DRAWN if getattr(sampling, name) != getattr(Sampling(), name)
        }
        asked |= {"eval_steps": steps_of(sampling)}
        return mmrl_usage.code("masked", prompt, alone=base is not None, sampling=asked, height=height, width=width)
    rows, columns = model.grid(height, width)
    vq = model.pipe.vqvae.config
    score = "logp" if sampling.confidence == "tempered" else "logits.log_softmax(-1)"
    return "\n".join(
        [
            *_loading(base),
            "# a row a step: share of masks left after it, noise on the confidence, temperature, guidance",
            "schedule = [",
            *(f"    ({', '.join(f'{v:.9g}' for v in row)})," for row in table.tolist()),
            "]",
            f"height, width, rows, columns, mask = {height}, {width}, {rows}, {columns}, {model.mask_id}",
            f'settings = {{"padding": "max_length", "truncation": True, "max_length": {model.reads}}}',
            f'prompts = ["", {mmrl_usage.literal(prompt)}]',
            'ids = tokenizer(prompts, return_tensors="pt", **settings).input_ids.to(device)',
            "torch.manual_seed(0)",
            "with torch.no_grad():",
            "    told = encoder(ids, output_hidden_states=True)",
            f"    micro = torch.tensor([[width, height, {CROP[0]}, {CROP[1]}, {AESTHETIC}.0]] * 2, device=device)",
            '    condition = {"encoder_hidden_states": told.hidden_states[-2], "pooled_text_emb": told.text_embeds}',
            "    canvas = torch.full((rows * columns,), mask, device=device)",
            "    for step, (left, noise, temperature, guidance) in enumerate(torch.tensor(schedule, device=device)):",
            "        both = canvas.view(1, rows, columns).repeat(2, 1, 1)",
            "        uncond, cond = net(both, micro_conds=micro, **condition).flatten(2).transpose(1, 2)",
            "        logits = uncond + guidance * (cond - uncond)",
            "        logp = (logits / temperature).log_softmax(-1)",
            "        drawn = torch.multinomial(logp.exp(), 1)",
            "        gumbel = -(-torch.rand(len(canvas), device=device).clamp(1e-20).log()).clamp(1e-20).log()",
            f"        score = {score}.gather(1, drawn)[:, 0] + noise * gumbel",
            "        open_before = canvas == mask",
            "        canvas = torch.where(open_before, drawn[:, 0], canvas)",
            "        if step < len(schedule) - 1:  # the least certain become masks again",
            "            masks = max(1, min(int(len(canvas) * left), int(open_before.sum()) - 1))",
            '            canvas[score.masked_fill(~open_before, float("inf")).argsort()[:masks]] = mask',
            f"    shape = (1, rows, columns, {vq.vq_embed_dim or vq.latent_channels})",
            "    picture = vq.decode(canvas[None], force_not_quantize=True, shape=shape).sample[0].clip(0, 1)",
            'to_pil_image(picture.cpu()).save("picture.png")',
        ]
    )


def _loading(base: str | None) -> list[str]:
    lines = [
        "import torch",
        "from diffusers import UVit2DModel, VQModel",
        "from torchvision.transforms.functional import to_pil_image",
        "from transformers import CLIPTextModelWithProjection, CLIPTokenizer",
        "",
        'folder = "."  # this folder',
        'device = "cuda" if torch.cuda.is_available() else "cpu"',
    ]
    where = "folder"
    if base is not None:
        lines += [f"base = {ascii(public_name(base))}  # the model it was trained on"]
        where = "base"
    lines += [
        f'tokenizer = CLIPTokenizer.from_pretrained({where}, subfolder="tokenizer")',
        f'encoder = CLIPTextModelWithProjection.from_pretrained({where}, subfolder="text_encoder").to(device)',
        f'net = UVit2DModel.from_pretrained({where}, subfolder="transformer").to(device)',
        f'vq = VQModel.from_pretrained({where}, subfolder="vqvae").to(device)',
    ]
    if base is not None:
        lines += ['net.load_lora_adapter(folder, weight_name="pytorch_lora_weights.safetensors")']
    return lines
