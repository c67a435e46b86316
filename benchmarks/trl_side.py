"""TRL's GRPOTrainer on the same folder: imported only in the processes of the benchmarks that compare with it.

Its ordinary best for this size on CPUs: one batch for all rows, no gradient checkpointing, no reference model (beta 0),
generation aligned with the update (no pass for old log-probs), a cache while generating, fused AdamW, float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.vlm_case import NEW_TOKENS, value


def trainer(
    folder: str,
    *,
    group: int = 8,
    prompts: int = 1,
    rows_at_once: int | None = None,
    head: str = "as released",
    rollout: Callable[..., Any] | None = None,
    rewards: list[float] | None = None,
) -> tuple[Any, list[dict[str, Any]]]:
    """The trainer, with its optimiser, and the examples of one step (each prompt `group` times).

    rows_at_once   rows of a forward and backward pass; None: all. Fewer accumulate gradients.
    head           "as released" scores every position on CPUs; "completions" scores those of the completions only,
                   which it does on GPUs (forced here by replacing its switch).
    """
    import torch
    import transformers
    from datasets import Dataset
    from PIL import Image
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer import utils

    if head == "completions":
        utils._use_triton = lambda device: True
    transformers.logging.set_verbosity_error()
    processor = transformers.AutoProcessor.from_pretrained(f"{folder}/model")
    tokenizer = processor.tokenizer
    placeholders = [i for t, i in tokenizer.get_vocab().items() if t.startswith("<|")]
    rows = group * prompts
    at_once = rows_at_once or rows
    settings = GRPOConfig(
        output_dir=f"{folder}/trl",
        use_cpu=True,
        bf16=False,
        seed=0,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=rows // at_once,
        num_generations=group,
        max_completion_length=NEW_TOKENS,
        generation_kwargs={"suppress_tokens": placeholders},  # picture tokens would break it; no row ends early
        gradient_checkpointing=False,
        beta=0.0,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        model_init_kwargs={"dtype": "float32"},
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_num_workers=0,
    )
    examples = []
    for line in (Path(folder) / "train.jsonl").read_text().splitlines()[:prompts]:
        record = json.loads(line)
        picture = Image.open(Path(folder) / record["images"][0]).convert("RGB")
        picture.load()
        examples += [{"prompt": [{"role": "user", "content": record["prompt"]}], "image": picture}] * group

    def reward(completions: list[Any], **_: Any) -> list[float]:
        return rewards if rewards is not None else [value(c[0]["content"]) for c in completions]

    made = GRPOTrainer(
        model=f"{folder}/model",
        reward_funcs=reward,
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": e["prompt"]} for e in examples[::group]]),
        processing_class=processor,
        **({"rollout_func": rollout} if rollout is not None else {}),
    )
    torch.manual_seed(0)
    made.create_optimizer()
    made.current_gradient_accumulation_steps = rows // at_once
    made.model.train()
    return made, examples


def step(threads: int = 1, **options: Any) -> Callable[[Any], None]:
    """A side of the race: the calls that the loop of `transformers.Trainer` makes in one step, without that loop."""
    import torch

    torch.set_num_threads(threads)
    made, examples = trainer(**options)
    parts = made.current_gradient_accumulation_steps

    def work(clock: Any) -> None:
        with nullcontext() if clock.memory else clock("step"):
            with clock("rollout"):
                batch = made._prepare_inputs(examples)
            with clock("update"):
                for part in range(parts):
                    if part:
                        batch = made._prepare_inputs(examples)
                    with made.compute_loss_context_manager():
                        loss = made.compute_loss(made.model, batch)
                    made.accelerator.backward(loss)
                    made._step += 1
                made.accelerator.clip_grad_norm_(made.model.parameters(), made.args.max_grad_norm)
                made.optimizer.step()
                made.optimizer.zero_grad()

    return work


def compare(folder: str, saved: str, group: int, prompts: int, head: str = "as released") -> dict[str, float]:
    """Loss, advantages' loss and gradients of TRL on the rollouts that mmrl saved; how far mmrl's are from them."""
    import torch

    found = torch.load(saved)

    def fixed(inputs: list[Any], trainer: Any) -> dict[str, Any]:
        return {"prompt_ids": found["prompt_ids"], "completion_ids": found["completion_ids"], "logprobs": None}

    made, examples = trainer(folder, group=group, prompts=prompts, head=head, rollout=fixed, rewards=found["rewards"])
    batch = made._generate_and_score_completions(examples)
    loss = made.compute_loss(made.model, batch)
    loss.backward()
    worst, square, norm = 0.0, 0.0, 0.0
    mine: dict[str, torch.Tensor] = found["gradients"]
    theirs = {n: p.grad for n, p in made.model.named_parameters() if p.grad is not None}
    if set(mine) != set(theirs):
        raise RuntimeError(f"gradients of different tensors: {sorted(set(mine) ^ set(theirs))[:3]}")
    for name, grad in theirs.items():
        gap = mine[name] - grad
        worst = max(worst, float(gap.abs().max() / grad.abs().max().clamp(min=1e-12)))
        square, norm = square + float(gap.square().sum()), norm + float(grad.square().sum())
    advantage_gap = float((batch["advantages"] - found["advantages"]).abs().max())
    return {
        "loss": float(loss.detach()),
        "loss_gap": abs(float(loss.detach()) - found["loss"]),
        "advantage_gap": advantage_gap,
        "gradient_gap": (square / norm) ** 0.5,
        "gradient_gap_worst_tensor": worst,
        "gradient_norm": norm**0.5,
        "completion_tokens": sum(map(len, found["completion_ids"])),
    }
