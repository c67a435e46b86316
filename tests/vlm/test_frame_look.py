"""The evaluation before training tells when answers lie in another frame than the data say."""

from __future__ import annotations

from types import SimpleNamespace

from mmrl.data.records import Record
from mmrl.training.evaluating import measured
from mmrl.vlm.frame_look import frame_advice

SIZES = {"original_size": [200, 100], "model_size": [280, 140]}


def case(n: int, frame: str = "norm1000", task: str = "detection"):
    """n records with one box; answers in pixels of the picture as it was given."""
    box = [100, 200, 300, 600]
    answer = [box] if task == "detection" else box
    records = [Record(id=str(i), task=task, prompt="?", answer=answer, frame=frame) for i in range(n)]
    said = "<answer>[{'Position': [20, 20, 60, 60], 'Confidence': 1.0}]</answer>"
    return [said] * n, records, [dict(SIZES) for _ in range(n)]


def test_pixels_against_thousandths() -> None:
    assert frame_advice(*case(8)) == [
        "warning: mean IoU of 8 answer boxes by assumed frame: norm1000 0.000, norm1 0.000, pixel_original 1.000, "
        "pixel_model_input 0.276; the model seems to answer in pixel_original, the data say norm1000: set `frame` and "
        "the prompt"
    ]
    outputs, records, info = case(8, task="grounding")
    assert len(frame_advice(["<answer>(20,20),(60,60)</answer>"] * 8, records, info)) == 1


def test_silence() -> None:
    assert frame_advice(*case(7)) == []  # too few boxes to say anything
    outputs, records, info = case(8)
    assert frame_advice(["<answer>[{'Position': [100, 200, 300, 600]}]</answer>"] * 8, records, info) == []
    assert frame_advice(["no idea"] * 8, records, info) == []
    assert frame_advice(outputs, records, [{} for _ in info]) == []  # no picture: no sizes to convert with
    assert frame_advice(outputs, [Record(id="a", task="counting", prompt="?", answer="3")] * 8, info) == []


def test_advice_is_told_where_somebody_listens() -> None:
    told: list[str] = []
    family = SimpleNamespace(evaluate=lambda *a: {"m": 1.0}, first_look=lambda *a: ({"m": 2.0}, ["look"]))
    assert measured(family, None, [], None, told.append) == {"m": 2.0} and told == ["look"]
    assert measured(family, None, [], None, None) == {"m": 1.0}
    assert measured(SimpleNamespace(evaluate=lambda *a: {"m": 1.0}), None, [], None, told.append) == {"m": 1.0}
