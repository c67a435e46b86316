"""Detectors and colours by their real classes with random weights, and what is kept of their answers."""

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from image_gen.rewards import composition as module
from image_gen.rewards.clip_towers import towers
from image_gen.rewards.colours import TEMPLATES, colour_classifier, colours_by_clip, colours_by_pixels, crop
from image_gen.rewards.composition import composition
from image_gen.rewards.composition_rules import COLOURS, Found
from image_gen.rewards.detectors import Detector, kept, spans
from image_gen.rewards.models import in_use
from image_gen.rewards.pictures import to_image
from mmrl.errors import UserError

CLASSES = ("dog", "red car", "tree")


def test_owl_equals_transformers_own_post_processing(owl_folder, images):
    from transformers import Owlv2ForObjectDetection, Owlv2Processor

    detector = Detector(owl_folder)
    model, processor = Owlv2ForObjectDetection.from_pretrained(owl_folder), Owlv2Processor.from_pretrained(owl_folder)
    for image in map(to_image, images):
        with torch.no_grad():
            boxes, scores = detector(image, CLASSES, None)
            inputs = processor(text=[[f"a photo of a {c}" for c in CLASSES]], images=image, return_tensors="pt")
            plain = processor.post_process_grounded_object_detection(
                model(**inputs), threshold=0.0, target_sizes=[image.size[::-1]]
            )[0]
        assert scores.shape == (16, 3)
        torch.testing.assert_close(boxes, plain["boxes"])
        torch.testing.assert_close(scores.max(dim=1).values, plain["scores"])
        assert scores.argmax(dim=1).tolist() == plain["labels"].tolist()


def test_the_query_is_an_option(owl_folder, images):
    detector, image = Detector(owl_folder), to_image(images[0])
    with torch.no_grad():
        named = detector(image, ("a photo of a dog",), "{}")[1]
        assert torch.equal(named, detector(image, ("dog",), None)[1])
        assert not torch.equal(named, detector(image, ("dog",), "{}")[1])


def test_grounding_dino_scores_a_class_by_its_best_token(dino_folder, images):
    from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

    detector, image = Detector(dino_folder), to_image(images[1])
    model = GroundingDinoForObjectDetection.from_pretrained(dino_folder)
    processor = GroundingDinoProcessor.from_pretrained(dino_folder)
    with torch.no_grad():
        boxes, scores = detector(image, CLASSES, None)
        inputs = processor(images=image, text="dog. red car. tree.", return_tensors="pt")
        out = model(**inputs)
    assert scores.shape == (20, 3) and boxes.shape == (20, 4)
    # letters are tokens: [CLS] d o g . r e d c a r . t r e e . [SEP]
    token = out.logits[0].sigmoid()
    plain = torch.stack([token[:, 1:4].amax(1), token[:, 5:11].amax(1), token[:, 12:16].amax(1)], 1)
    torch.testing.assert_close(scores, plain)
    cx, cy, w, h = out.pred_boxes[0].unbind(-1)
    torch.testing.assert_close(
        boxes,
        torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1) * torch.tensor([48.0, 32.0, 48.0, 32.0]),
    )


def test_tokens_of_phrases():
    offsets = [(0, 0), (0, 3), (3, 4), (5, 8), (9, 12), (12, 13), (0, 0)]  # "dog. red car."
    assert spans(["dog", "red car"], offsets) == [[1], [3, 4]]
    with pytest.raises(UserError, match="knows no part of 'red car'"):
        spans(["dog", "red car"], offsets[:3])


def test_threshold_limit_and_suppression():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 10, 10], [50, 50, 60, 60]]).float()
    scores = torch.tensor([[0.5, 0.1], [0.6, 0.2], [0.4, 0.1], [0.2, 0.8], [0.3, 0.1]])
    found = kept(boxes, scores, ("a", "b"), threshold=0.3, nms=0.5, max_objects=16)
    assert [(one.box[2], round(one.score, 3)) for one in found["a"]] == [(10, 0.6), (30, 0.4)]  # 0.3 is not above
    assert found["a"][0].box == (0, 0, 10, 9) and [one.score for one in found["b"]] == pytest.approx([0.8])
    every = kept(boxes, scores, ("a", "b"), threshold=0.0, nms=1.0, max_objects=16)
    assert [round(one.score, 3) for one in every["a"]] == [0.6, 0.5, 0.4, 0.3]
    first = kept(boxes, scores, ("a", "b"), threshold=0.0, nms=0.5, max_objects=2)
    assert [round(one.score, 3) for one in first["a"]] == [0.6]  # limited before boxes are suppressed, as GenEval
    assert kept(boxes, scores, ("a", "b"), threshold=0.9, nms=0.5, max_objects=2) == {}


def test_colours_by_pixels():
    image = Image.new("RGB", (40, 20), (250, 10, 5))
    image.paste((20, 30, 240), (20, 0, 40, 20))
    image.paste((255, 255, 255), (24, 4, 26, 6))  # outside the middle half
    objects = [Found((0, 0, 20, 20), 0.9), Found((20, 0, 40, 20), 0.8)]
    assert colours_by_pixels(image, objects) == ["red", "blue"]
    assert crop(image, Found((-9, -9, 99, 99), 1.0)).size == (40, 20)
    assert crop(image, Found((39.5, 3, 39.6, 3.1), 1.0)).size == (1, 1)
    assert crop(image, Found((0, 0, 20, 20), 1.0), middle=0.5).size == (10, 10)


def test_colours_by_clip_equal_a_plain_computation(clip_folder, images):
    image = to_image(images[0])
    objects = [Found((0, 0, 20, 20), 0.9), Found((5, 10, 40, 40), 0.8)]
    with in_use(towers(clip_folder, device="cpu"), offload=False) as model:
        classifier = colour_classifier(model, "dog")
        plain = []
        for colour in COLOURS:
            texts = [t.format(colour=colour, name="dog") for t in TEMPLATES]
            assert texts[1] == f"a photo of a {colour}-colored dog"
            plain.append(normalize(normalize(model.text_features(texts), dim=-1).mean(0), dim=-1))
        torch.testing.assert_close(classifier, torch.stack(plain))
        eye = normalize(model.image_features([image.crop((0, 0, 20, 20)), image.crop((5, 10, 40, 40))]), dim=-1)
        wanted = [COLOURS[int(i)] for i in (eye @ torch.stack(plain).T).argmax(1)]
        assert colours_by_clip(model, image, "dog", objects, batch_size=1) == wanted
        assert colours_by_clip(model, image, "dog", [], batch_size=1) == []


@pytest.mark.parametrize("kind", ["owl_folder", "dino_folder"])
def test_the_reward_runs_from_weights_to_score(kind, request, records, images, clip_folder):
    """All boxes of random weights count; the reward is that of the rules on them, each picture alone."""
    folder = request.getfixturevalue(kind)
    meta = {"tag": "colors", "include": [{"class": "dog", "count": 2, "color": "red"}, {"class": "tree", "count": 1}]}
    rows = [*records("x", "y", meta=meta), *records("z")]
    options = {"path": folder, "threshold": 0.0, "colour_path": clip_folder, "device": "cpu", "mode": "shaped"}
    values = composition(images, rows, [{}] * 3, **options)
    assert values[2] is None and all(0 <= value <= 1 for value in values[:2])
    assert composition(images[:1], rows[:1], [{}], **options) == values[:1]
    assert composition(images, rows, [{}] * 3, **options | {"threshold": 1.0, "mode": "strict"}) == [0.0, 0.0, None]


def test_the_reward_uses_the_rules_and_the_counting_threshold(records, monkeypatch, owl_folder):
    boxes = torch.tensor([[0, 0, 8, 8], [12, 0, 20, 8], [24, 0, 32, 8]]).float()
    scores = torch.tensor([[0.95], [0.6], [0.35]])
    monkeypatch.setattr("image_gen.rewards.detectors.Detector.forward", lambda *_: (boxes, scores))
    picture = torch.zeros(3, 8, 32)
    picture[0, :, :10] = 1.0
    picture[2, :, 10:22] = 1.0

    def value(clause, tag="", **options):
        row = records("p", meta={"tag": tag, "include": [{"class": "dog", **clause}]})
        return composition([picture], row, [{}], path=owl_folder, device="cpu", colour="pixels", **options)[0]

    assert value({"count": 3}, mode="shaped") == 1.0
    assert value({"count": 3}, mode="shaped", threshold=0.5) == pytest.approx(2 / 3)
    assert value({"count": 1}, "counting", mode="shaped", counting_threshold=0.9) == 1.0
    assert value({"count": 1}, "position", mode="shaped", counting_threshold=0.9) == 0.0
    assert value({"count": 1, "color": "red"}) == 1.0 and value({"count": 1, "color": "blue"}) == 0.0
    assert value({"count": 3, "color": "black"}, mode="shaped") == pytest.approx((1 + 1 / 3) / 2)


def test_missing_weights_are_told(records, images, owl_folder, clip_folder):
    meta = {"include": [{"class": "dog", "color": "red"}]}
    with pytest.raises(UserError, match="google/owlv2-base-patch16-ensemble"):
        composition([images[0]], records("a", meta={"include": [{"class": "dog"}]}), [{}])
    with pytest.raises(UserError, match="colour_path .*|colour: pixels"):
        composition([images[0]], records("a", meta=meta), [{}], path=owl_folder, device="cpu")
    with pytest.raises(UserError, match="holds a 'clip' model; zero-shot detectors: owlv2"):
        composition([images[0]], records("a", meta={"include": [{"class": "dog"}]}), [{}], path=clip_folder)
    assert composition([images[0]], records("a"), [{}]) == [None]  # nothing asked: nothing loaded
    assert module.GET
