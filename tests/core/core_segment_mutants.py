"""Wrong versions of what looks at segments of a row; continues core_mutants.py."""

from __future__ import annotations

from core_mutants import GSPO, PPO, Mutant, on

from mmrl.core import ratios, reductions

SEGMENT = on("reduce", "seq-mean-segment-mean")

SEGMENT_MUTANTS = [
    Mutant("sum taken as mean", ratios.at_level, 'not level.startswith("segment-sum:")', "True", PPO),
    Mutant("mean taken as sum", ratios.at_level, 'not level.startswith("segment-sum:")', "False", PPO),
    Mutant("sign flipped", ratios.over_segment, "joined.reshape(x_nt.shape)", "-joined.reshape(x_nt.shape)", PPO),
    Mutant("missing gradient", ratios.over_segment, "mask, x_nt, torch", "mask, x_nt.detach(), torch", PPO),
    Mutant("masked decisions summed", ratios.segment_groups, "mask.reshape(-1))", "None)", PPO),
    Mutant("negative numbers meet", ratios.segment_groups, "high - low + 1", "high + 1", SEGMENT),
    Mutant("sum of a row", ratios.level_length, "if level_segment(level):", "if False:", GSPO),
    Mutant("no length of a segment", reductions.seq_mean_segment_mean, ".count()", ".count().clamp(max=1)", SEGMENT),
    Mutant(
        "sum instead of mean",
        reductions.seq_mean_segment_mean,
        'share_nt if inside == "mean" else one',
        "one",
        SEGMENT,
    ),
    Mutant(
        "mean instead of sum",
        reductions.seq_mean_segment_mean,
        'share_nt if inside == "mean" else one',
        "share_nt",
        SEGMENT,
    ),
    Mutant("over every decision", reductions.seq_mean_segment_mean, "share_nt.sum(1)", "one.sum(1)", SEGMENT),
    Mutant("segments not averaged", reductions.seq_mean_segment_mean, 'if over == "mean"', "if False", SEGMENT),
    Mutant("segments always averaged", reductions.seq_mean_segment_mean, 'if over == "mean"', "if True", SEGMENT),
    Mutant(
        "empty segments passed over", reductions.seq_mean_segment_mean, "        if counted:", "        if 0:", SEGMENT
    ),
    Mutant("empty segments counted", reductions.seq_mean_segment_mean, "        if counted:", "        if 1:", SEGMENT),
    Mutant(
        "count of all rows",
        reductions.seq_mean_segment_mean,
        "_row_count(mask, rows)",
        "_row_count(mask, 'all')",
        SEGMENT,
    ),
    Mutant("local count", reductions.seq_mean_segment_mean, "_row_count(mask, rows)", "mask.sum().double()", SEGMENT),
]
