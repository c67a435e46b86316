"""VLM-R1's detection rewards, and average precision against pycocotools."""

import contextlib
import io
import random

import numpy as np
import pytest

from mmrl.data.boxtext import Detection
from mmrl.data.records import Record
from mmrl.rewards.average_precision import average_precision
from mmrl.rewards.detection_peers import ap_reward, od_length_reward, weighted_sum_reward

BUS = {"bbox_2d": [0, 0, 100, 100], "label": "bus"}
CAT = {"bbox_2d": [200, 200, 300, 300], "label": "cat"}


def one(reward, said, answer, **options):
    output = said if isinstance(said, str) else f"<answer>{said}</answer>"
    return reward([output], [Record("r", "detection", "p", answer=answer)], [{}], **options)[0]


def test_weighted_sum_literals():
    assert one(weighted_sum_reward, [BUS, CAT], [BUS, CAT]) == pytest.approx(1.0)
    # one of two found: position 0.5, completeness 1 - (1/2 + 0)/2
    assert one(weighted_sum_reward, [BUS], [BUS, CAT]) == pytest.approx(0.7 * 0.5 + 0.3 * 0.75)
    # the wrong label keeps the match and loses the IoU
    assert one(weighted_sum_reward, [{**BUS, "label": "cat"}], [BUS]) == pytest.approx(0.3)
    assert one(weighted_sum_reward, [{**BUS, "label": " Bus"}], [BUS]) == pytest.approx(1.0)
    # a miss: nothing matched on either side
    assert one(weighted_sum_reward, [BUS], [CAT]) == pytest.approx(0.0)
    # IoU exactly 0.5 still matches here
    assert one(weighted_sum_reward, [[0, 0, 100, 50]], [BUS]) == 0.0
    half = [{"bbox_2d": [0, 0, 100, 50], "label": "bus"}]
    assert one(weighted_sum_reward, half, [BUS]) == pytest.approx(0.7 * 0.5 + 0.3)


def test_weighted_sum_takes_the_best_pair_first():
    said = [{"bbox_2d": [0, 0, 100, 90]}, {"bbox_2d": [0, 0, 100, 100]}]
    assert one(weighted_sum_reward, said, [[0, 0, 100, 100]]) == pytest.approx(0.7 + 0.3 * 0.75)


@pytest.mark.parametrize("reward", [weighted_sum_reward, ap_reward, od_length_reward])
def test_nothing_there(reward):
    assert one(reward, "<answer>None</answer>", "None") == one(reward, [], []) == 1.0
    assert one(reward, [BUS], []) == one(reward, [], [BUS]) == one(reward, "", [BUS]) == 0.0
    assert one(reward, "unreadable", []) == 0.0


def test_ap_literals():
    assert one(ap_reward, [BUS, CAT], [BUS, CAT]) == pytest.approx(1.0)
    assert one(ap_reward, [BUS], [BUS, CAT]) == pytest.approx(0.5)
    # IoU 0.8: right at 0.50 .. 0.80, seven of ten thresholds
    close = [{"bbox_2d": [0, 0, 100, 80], "label": "bus"}]
    assert one(ap_reward, close, [BUS]) == pytest.approx(0.7)
    assert one(ap_reward, close, [BUS], thresholds=(0.5,)) == pytest.approx(1.0)


def test_od_length_punishes_extra_boxes():
    extra = {"bbox_2d": [500, 500, 600, 600], "label": "bus"}
    assert one(ap_reward, [BUS, extra], [BUS]) == pytest.approx(1.0)  # COCO: a false alarm after full recall is free
    assert one(od_length_reward, [BUS, extra], [BUS]) == pytest.approx(0.5)
    assert one(od_length_reward, [BUS], [BUS, {**BUS, "bbox_2d": [300, 0, 400, 100]}]) == pytest.approx(51 / 101)


def coco_ap(predictions, truth):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    labels = sorted({d.label for d in [*predictions, *truth]})

    def row(i, d):
        x1, y1, x2, y2 = d.box
        box = [x1, y1, x2 - x1, y2 - y1]
        return {"id": i + 1, "image_id": 1, "category_id": labels.index(d.label), "bbox": box, "area": box[2] * box[3]}

    coco = COCO()
    coco.dataset = {
        "images": [{"id": 1}],
        "categories": [{"id": i} for i in range(len(labels))],
        "annotations": [{**row(i, d), "iscrowd": 0} for i, d in enumerate(truth)],
        "info": {},
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        said = coco.loadRes([{**row(i, d), "score": 1.0} for i, d in enumerate(predictions)])
        run = COCOeval(coco, said, "bbox")
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][:, :, :, 0, -1]
    return float(np.mean(precision[precision > -1]))


def test_ap_is_pycocotools():
    pytest.importorskip("pycocotools")
    rng = random.Random(1)
    seen = set()
    for _ in range(60):

        def boxes(n, rng=rng):
            out = []
            for _ in range(n):
                x, y = 40 * rng.randrange(5), 40 * rng.randrange(5)
                shift = [rng.randrange(-6, 7) for _ in range(4)]
                box = tuple(float(v + s) for v, s in zip((x, y, x + 40, y + 40), shift, strict=True))
                out.append(Detection(box, 1.0, rng.choice(["a", "b", "c"])))
            return out

        truth = boxes(rng.randrange(1, 8))
        predictions = boxes(rng.randrange(1, 6)) + [Detection(d.box, 1.0, d.label) for d in truth if rng.random() < 0.5]
        rng.shuffle(predictions)
        value = average_precision(predictions, truth)
        assert value == pytest.approx(coco_ap(predictions, truth), abs=1e-9)
        seen.add(round(value, 3))
    assert len(seen) > 10  # the cases differ


def test_at_most_a_hundred_boxes_a_class_count():
    far = [Detection((500.0 + i, 500, 510.0 + i, 510), 1.0, "a") for i in range(100)]
    right = Detection((0, 0, 10, 10), 1.0, "a")
    assert average_precision([*far, right], [right]) == 0.0
    assert average_precision([*far[:99], right], [right]) > 0.0
