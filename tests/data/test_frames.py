"""Coordinate frames: conversion, its inverse, and the start-up check."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.data.frames import convert_box
from mmrl.data.records import FRAMES
from mmrl.errors import UserError
from mmrl.rewards.frame_check import frame_report

SIZES = {"original_size": (640, 480), "model_size": (336, 252)}


def test_literals():
    box = (64.0, 48.0, 320.0, 240.0)
    assert convert_box(box, "pixel_original", "norm1000", **SIZES) == pytest.approx((100, 100, 500, 500))
    assert convert_box(box, "pixel_original", "norm1", **SIZES) == pytest.approx((0.1, 0.1, 0.5, 0.5))
    assert convert_box(box, "pixel_original", "pixel_model_input", **SIZES) == pytest.approx((33.6, 25.2, 168, 126))
    assert convert_box((0.1, 0.2, 0.3, 0.4), "norm1", "norm1000") == pytest.approx((100, 200, 300, 400))
    assert convert_box(box, "pixel_original", "pixel_original") == box  # no size needed


@given(st.tuples(*[st.floats(0, 1000)] * 4), st.sampled_from(list(itertools.permutations(FRAMES, 2))))
def test_there_and_back(box, frames):
    there = convert_box(box, frames[0], frames[1], **SIZES)
    assert convert_box(there, frames[1], frames[0], **SIZES) == pytest.approx(box, abs=1e-9)


def test_mistakes():
    box = (0.0, 0.0, 1.0, 1.0)
    with pytest.raises(UserError, match="record 'x': frame pixel_original needs original_size"):
        convert_box(box, "norm1", "pixel_original", where="record 'x'")
    with pytest.raises(UserError, match="pixel_model_input needs model_size"):
        convert_box(box, "pixel_model_input", "norm1", original_size=(3, 3))
    with pytest.raises(UserError, match="unknown frame 'norm'"):
        convert_box(box, "norm", "norm1")
    with pytest.raises(UserError, match="must be positive"):
        convert_box(box, "norm1", "pixel_original", original_size=(0, 3))


def test_the_report_finds_the_frame_the_model_speaks():
    answers = [[(100.0, 100.0, 500.0, 500.0)], [(0.0, 0.0, 200.0, 1000.0), (600.0, 0.0, 900.0, 300.0)]]
    said = [[convert_box(b, "norm1000", "pixel_model_input", **SIZES) for b in boxes] for boxes in answers]
    sizes = {"original_sizes": [(640, 480)] * 2, "model_sizes": [(336, 252)] * 2}
    report = frame_report(said, answers, frame="norm1000", **sizes)
    assert report.best == "pixel_model_input" and report.mean_iou["pixel_model_input"] == pytest.approx(1.0)
    assert report.suspicious and report.n == 3
    assert "seems to answer in pixel_model_input, the data say norm1000" in report.text()
    right = frame_report(answers, answers, frame="norm1000", **sizes)
    assert right.best == "norm1000" and not right.suspicious and "seems" not in right.text()


def test_the_report_of_silence_blames_no_frame():
    report = frame_report([[]], [[(0.0, 0.0, 1.0, 1.0)]], frame="norm1", original_sizes=[(9, 9)], model_sizes=[(9, 9)])
    assert report.best == "norm1" and not report.suspicious and set(report.mean_iou.values()) == {0.0}
