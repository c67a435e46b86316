"""Visual-RFT in one file (arXiv 2503.01785): verifiable rewards for pictures, and GRPO with one update per rollout.

To be read from top to bottom; nothing is imported from the toolkit, whose tests compare it with this file.

  python examples/reference/visual_rft.py      scores four answers to one picture and prints the loss of the group

The recipe is GRPO as it is; what makes it Visual-RFT are the rewards. Each is computed from the text of one completion
and the record's answer, and the rewards of a task are summed into one number before the group is normalised:

  detection        R_iou + R_conf + R_format        each in [0, 1]
  classification   R_acc + R_format
  grounding        (GIoU + 1) + R_format            the first in [0, 2]
"""

from __future__ import annotations

import ast
import json
import re

import torch
from torch import Tensor

Box = tuple[float, float, float, float]

# -------------------------------------------------------------------------------- 1. reading a completion


def inside_answer(text: str) -> str:
    """What stands in the answer tags; the whole text without them."""
    found = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return (found.group(1) if found else text).strip()


def read_boxes(text: str) -> list[tuple[Box, float]]:
    """[{'Position': [x1, y1, x2, y2], 'Confidence': c}, ...] -> [(box, c), ...]; unreadable: no boxes."""
    inner = inside_answer(text).replace("\n", " ")
    if not inner.endswith("]"):  # cut off in the middle of a record: keep the whole ones
        cut = inner.rfind("},")
        if cut < 0:
            return []
        inner = inner[:cut] + "}]"
    try:
        records = ast.literal_eval(inner)
    except (ValueError, SyntaxError):
        try:
            records = json.loads(inner)
        except ValueError:
            return []
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
        return []
    return [(tuple(map(float, r["Position"])), float(r["Confidence"])) for r in records]  # type: ignore[misc]


def read_corners(text: str) -> Box | None:
    """(x1,y1),(x2,y2)"""
    found = re.search(r"\((\d+),\s*(\d+)\),\s*\((\d+),\s*(\d+)\)", inside_answer(text))
    return tuple(map(float, found.groups())) if found else None  # type: ignore[return-value]


# -------------------------------------------------------------------------------- 2. geometry


def area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def overlap(a: Box, b: Box) -> float:
    return area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def iou(a: Box, b: Box) -> float:
    """Continuous areas; 0 without an intersection of positive width and height."""
    common = overlap(a, b)
    return common / (area(a) + area(b) - common) if common > 0 else 0.0


def giou(a: Box, b: Box) -> float:
    """IoU minus the part of the smallest enclosing box that neither covers."""
    common = overlap(a, b)
    union = area(a) + area(b) - common
    around = area((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    plain = common / union if union > 0 else 0.0
    return plain - (around - union) / around if around > 0 else plain


# -------------------------------------------------------------------------------- 3. rewards


def matched(predictions: list[tuple[Box, float]], truth: list[Box], tau: float = 0.5) -> list[tuple[float, float]]:
    """(IoU, confidence) of each prediction; IoU 0 where it takes no answer box.

    The same position twice counts once. In the order of falling confidence each prediction takes the free answer box
    that it overlaps most, if by more than tau.
    """
    once: dict[Box, float] = {}
    for box, confidence in predictions:
        once.setdefault(box, confidence)
    free, out = list(truth), []
    for box, confidence in sorted(once.items(), key=lambda item: -item[1]):
        best = max(free, key=lambda t: iou(box, t), default=None)
        if best is not None and iou(box, best) > tau:
            free.remove(best)
            out.append((iou(box, best), confidence))
        else:
            out.append((0.0, confidence))
    return out


def iou_reward(text: str, truth: list[Box], divisor: str = "max") -> float:
    """divisor `max`: over max(answer boxes, predictions), today's release; `predictions`: paper and first release."""
    if not truth and inside_answer(text).lower() in ("no objects", "[]"):
        return 1.0
    pairs = matched(read_boxes(text), truth)
    n = max(len(truth), len(pairs)) if divisor == "max" else len(pairs)
    return min(1.0, sum(i for i, _ in pairs) / n) if pairs else 0.0


def confidence_reward(text: str, truth: list[Box]) -> float:
    """Be sure of what is right and unsure of what is wrong."""
    if not truth and inside_answer(text).lower() in ("no objects", "[]"):
        return 1.0
    pairs = matched(read_boxes(text), truth)
    if not pairs:
        return 0.0
    return min(1.0, max(0.0, sum(c if i > 0 else 1 - c for i, c in pairs) / len(pairs)))


def format_reward(text: str) -> float:
    return float(re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", text, re.DOTALL) is not None)


def label_reward(text: str, label: str) -> float:
    """Equal after blanks, underscores and capitals are gone. (The released rule lets either contain the other, so an
    empty answer always wins; it is not repeated here.)"""

    def plain(s: str) -> str:
        return "".join(s.split()).replace("_", "").lower()

    return float(plain(inside_answer(text)) == plain(label))


def grounding_reward(text: str, truth: Box) -> float:
    box = read_corners(text)
    return giou(box, truth) + 1 if box is not None else 0.0


def detection_reward(text: str, truth: list[Box]) -> float:
    return iou_reward(text, truth) + confidence_reward(text, truth) + format_reward(text)


# -------------------------------------------------------------------------------- 4. the loss of a group


def group_loss(logp: Tensor, ref_logp: Tensor, rewards: list[float], mask: Tensor, beta: float = 0.04) -> Tensor:
    """One group. logp [G,T] with gradient, ref_logp [G,T], mask [G,T] up to and including the end; float64.

    A = (r - mean) / (unbiased deviation + 1e-4). There is one update per rollout, so the ratio is 1 in value and only
    carries the gradient: exp(logp - sg[logp]). k3 to the initial model in every decision, mean over the row's
    decisions, mean over rows.
    """
    r = torch.tensor(rewards, dtype=torch.float64)
    adv = (r - r.mean()) / (r.std() + 1e-4)
    rows = []
    for i in range(len(rewards)):
        use = mask[i].bool()
        now, ref = logp[i][use], ref_logp[i][use].detach()
        ratio = (now - now.detach()).exp()
        k3 = (ref - now).exp() - (ref - now) - 1
        rows.append((-ratio * adv[i] + beta * k3).mean())
    return torch.stack(rows).mean()


def main() -> None:
    truth: list[Box] = [(0, 0, 100, 100), (200, 200, 300, 300)]
    answers = [
        "[{'Position': [0, 0, 100, 80], 'Confidence': 0.9}, {'Position': [210, 210, 310, 310], 'Confidence': 0.6}, "
        "{'Position': [500, 500, 520, 520], 'Confidence': 0.3}]",
        "[{'Position': [0, 0, 100, 100], 'Confidence': 1.0}, {'Position': [200, 200, 300, 300], 'Confidence': 1.0}]",
        "[{'Position': [700, 700, 800, 800], 'Confidence': 0.9}]",
        "No Objects",
    ]
    rewards = []
    for answer in answers:
        text = f"<think>two boxes</think><answer>{answer}</answer>"
        parts = iou_reward(text, truth), confidence_reward(text, truth), format_reward(text)
        rewards.append(sum(parts))
        print("  ".join(f"{p:.6f}" for p in parts), f" sum {sum(parts):.6f}   {answer[:60]}")
    logp = torch.full((4, 5), -1.0, dtype=torch.float64, requires_grad=True)
    loss = group_loss(logp, logp - 0.1, rewards, torch.ones(4, 5))
    loss.backward()
    print(f"loss {float(loss.detach()):.6f}   gradient by row {[round(float(g), 4) for g in logp.grad.sum(1)]}")  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
