"""Tiny pipelines with random weights, written by `save_pretrained`: real classes, real file formats, seconds to use.

A folder written here loads in plain diffusers (`DiffusionPipeline.from_pretrained`) and through
`image_gen.pipelines.loading`. Pictures are 32x32 or any size that `check_size` takes. For tests and benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from image_gen.pipelines import tiny_text as text


def _vae(*, channels: int, scaling: float, shift: float) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),  # pictures are twice as large as their latents
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        scaling_factor=scaling,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _euler(**options: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def sd3(*, blocks: int = 2, heads: int = 2, dual: bool = True) -> Any:
    """StableDiffusion3Pipeline; `dual` gives the first block SD3.5-Medium's second attention."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    clip, t5 = text.clip_tokenizer(), text.t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=blocks,
        attention_head_dim=16,
        num_attention_heads=heads,
        joint_attention_dim=64,
        caption_projection_dim=16 * heads,
        pooled_projection_dim=64,
        pos_embed_max_size=24,
        dual_attention_layers=(0,) if dual else (),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=_euler(shift=3.0),
        vae=_vae(channels=4, scaling=1.5305, shift=0.0609),
        text_encoder=text.clip_encoder(clip, projection=True),
        tokenizer=clip,
        text_encoder_2=text.clip_encoder(clip, projection=True),
        tokenizer_2=text.clip_tokenizer(),
        text_encoder_3=text.t5_encoder(t5, width=64),
        tokenizer_3=t5,
    )


def flux(*, blocks: int = 1, heads: int = 2, guidance_embeds: bool = True) -> Any:
    """FluxPipeline like FLUX.1-dev; without guidance_embeds and without shift like FLUX.1-schnell."""
    from diffusers import FluxPipeline, FluxTransformer2DModel

    clip, t5 = text.clip_tokenizer(), text.t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=blocks,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=heads,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = _euler(shift=3.0, use_dynamic_shifting=True) if guidance_embeds else _euler(shift=1.0)
    return FluxPipeline(
        scheduler=scheduler,
        vae=_vae(channels=4, scaling=0.3611, shift=0.1159),
        text_encoder=text.clip_encoder(clip),
        tokenizer=clip,
        text_encoder_2=text.t5_encoder(t5),
        tokenizer_2=t5,
        transformer=transformer,
    )


def sana(*, blocks: int = 2, heads: int = 2) -> Any:
    """SanaPipeline with its second-order DPM-Solver++ over flow sigmas."""
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    gemma = text.gemma_tokenizer()
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=heads,
        attention_head_dim=8,
        num_layers=blocks,
        num_cross_attention_heads=heads,
        cross_attention_head_dim=8,
        cross_attention_dim=8 * heads,
        caption_channels=16,
        sample_size=8,
        patch_size=1,
    )
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
        solver_order=2,
        final_sigmas_type="zero",
    )
    return SanaPipeline(
        tokenizer=gemma, text_encoder=text.gemma_encoder(gemma), vae=vae, transformer=transformer, scheduler=scheduler
    )


def qwen_image(*, blocks: int = 2, heads: int = 2) -> Any:
    """QwenImagePipeline."""
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel

    qwen = text.qwen_tokenizer()
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=blocks,
        attention_head_dim=16,
        num_attention_heads=heads,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 2.0, 0.5, 1.0],
    )
    scheduler = _euler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        max_image_seq_len=8192,
        shift_terminal=0.02,
        time_shift_type="exponential",
    )
    return QwenImagePipeline(
        scheduler=scheduler, vae=vae, text_encoder=text.qwen_encoder(qwen), tokenizer=qwen, transformer=transformer
    )


#: Tiny pipelines by the class that they are of.
TINY: dict[str, Callable[..., Any]] = {
    "StableDiffusion3Pipeline": sd3,
    "FluxPipeline": flux,
    "SanaPipeline": sana,
    "QwenImagePipeline": qwen_image,
}


def write(kind: str, folder: Path, *, seed: int = 0, **sizes: Any) -> Path:
    """The tiny pipeline `kind` (a key of TINY) with random float32 weights of `seed`, saved into `folder`.

    Layers that such models start at zero get random weights too, so that the timestep, the prompt and every block
    matter. The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = TINY[kind](**sizes)
        with torch.no_grad():
            for parameter in pipeline.transformer.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.05)
    pipeline.save_pretrained(folder)
    return folder
