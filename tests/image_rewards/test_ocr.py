"""The OCR formula on literal texts, and the recognisers behind it."""

import sys
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from image_gen.rewards import readers
from image_gen.rewards.ocr import joined, levenshtein, ocr, ocr_value, target_of
from image_gen.rewards.pictures import to_array
from mmrl.errors import UserError


@pytest.mark.parametrize(
    "said, target, value",
    [
        ("0pen", "Open", 0.75),
        ("Open", "Open", 1.0),
        ("O P E N", "open", 1.0),
        ("we are open now", "Open", 1.0),  # part of what was read
        ("openopenopen", "open", 1.0),  # the known way to cheat
        ("", "open", 0.0),
        ("a completely different and much longer text", "open", 0.0),
        ("opn", "open", 0.75),
        ("o", "open", 0.25),
        ("HAPPY BIRTHDAY", "happy  birthday", 1.0),
    ],
)
def test_the_formula(said, target, value):
    assert ocr_value(said, target) == pytest.approx(value)


@pytest.mark.parametrize(
    "prompt, target",
    [
        ('a sign that says "Open Now" today', "opennow"),
        ('"A" and "B"', "a"),
        ("no quotes", None),
        ('only "one', None),
        ('empty "" here', None),
        ('blank "  " here', None),
    ],
)
def test_the_target_is_between_the_first_two_quotes(prompt, target):
    assert target_of(prompt) == target


def test_levenshtein_literals():
    cases = {("kitten", "sitting"): 3, ("", "abc"): 3, ("abc", ""): 3, ("flaw", "lawn"): 2, ("same", "same"): 0}
    assert {pair: levenshtein(*pair) for pair in cases} == cases


@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_levenshtein_is_a_distance(a, b, c):
    assert levenshtein(a, b) == levenshtein(b, a) and (levenshtein(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= levenshtein(a, b) <= max(len(a), len(b))
    assert levenshtein(a, c) <= levenshtein(a, b) + levenshtein(b, c)


@given(st.text(max_size=20), st.text(min_size=1, max_size=8).filter(lambda t: t.replace(" ", "").lower()))
def test_the_reward_is_between_0_and_1_and_takes_no_notice_of_spaces(said, target):
    assert 0.0 <= ocr_value(said, target) <= 1.0
    assert ocr_value(" ".join(said), target) == ocr_value(said, target)
    assert ocr_value(f"x{target}y", target) == 1.0


def test_pieces_without_confidence_are_left_out():
    pieces = [("Op", 0.9), ("noise", 0.0), ("en", 0.2)]
    assert joined(pieces) == "Open" and joined(pieces, min_confidence=0.5) == "Op"


@pytest.fixture
def reading(monkeypatch):
    """A recogniser that says what it is told; an exception is raised."""

    def install(*answers):
        left = iter(answers)

        def read(arrays):
            found = []
            for _ in arrays:
                one = next(left)
                if isinstance(one, Exception):
                    raise one
                found.append(one)
            return found

        monkeypatch.setattr(readers, "reader", lambda engine, **_: read)

    return install


def test_rows_without_quoted_text_have_no_score(reading, records, images):
    reading([("0pen", 1.0)], [("ex", 0.5), ("it", 0.0)])
    rows = records('says "Open"', "nothing", 'says "exit"')
    assert ocr(images, rows, [{}] * 3) == [0.75, None, 0.5]
    reading()
    assert ocr(images[:1], records("nothing"), [{}]) == [None]


def test_a_failing_recogniser_raises_unless_it_may_count_as_nothing_read(reading, records, images):
    rows = records('"ab"', '"ab"', '"ab"')
    reading([("ab", 1.0)], RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        ocr(images, rows, [{}] * 3)
    reading([("ab", 1.0)], RuntimeError("out of memory"), [("ax", 1.0)])
    with pytest.warns(UserWarning, match="the recogniser failed .out of memory"):
        assert ocr(images, rows, [{}] * 3, on_failure="zero") == [1.0, 0.0, 0.5]


def test_trocr_equals_transformers_own_calls(trocr_folder, records, images):
    from transformers import BertTokenizer, VisionEncoderDecoderModel, ViTImageProcessor

    model = VisionEncoderDecoderModel.from_pretrained(trocr_folder)
    pixels = ViTImageProcessor.from_pretrained(trocr_folder)([to_array(x) for x in images], return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(pixels["pixel_values"], do_sample=False)
    plain = BertTokenizer.from_pretrained(trocr_folder).batch_decode(ids, skip_special_tokens=True)
    assert any(plain)
    read = readers.reader("trocr", path=trocr_folder, language="en", device="cpu", offload=False, batch_size=2)
    assert read([to_array(x) for x in images]) == [[(text, 1.0)] for text in plain]
    rows = records('"abc"', "none", '"xyz"')
    values = ocr(images, rows, [{}] * 3, engine="trocr", path=trocr_folder, device="cpu")
    assert values == [ocr_value(plain[0], "abc"), None, ocr_value(plain[2], "xyz")]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"engine": "easyocr"}, r"pip install 'mmrl\[ocr\]'"),
        ({"engine": "paddleocr"}, r"pip install 'mmrl\[paddleocr\]'"),
        ({"engine": "trocr"}, "microsoft/trocr-base-printed"),
        ({"engine": "easyocr", "offload": True}, "easyocr cannot offload"),
        ({"engine": "paddleocr", "path": "x"}, "leave out the option path"),
        ({"engine": "trocr", "language": "de"}, "no option language"),
    ],
)
def test_what_is_missing_or_of_no_use_is_told(monkeypatch, records, images, options, words):
    for name in ("easyocr", "paddleocr"):
        monkeypatch.setitem(sys.modules, name, None)
    readers._easyocr.cache_clear()
    readers._paddleocr.cache_clear()
    with pytest.raises(UserError, match=words):
        ocr(images[:1], records('"a"'), [{}], device="cpu", **options)


def test_easyocr_and_paddleocr_are_called_as_their_packages_want(monkeypatch, records, images):
    """Stand-ins with the call signatures of easyocr 1.7 and paddleocr 3."""
    seen = {}

    class Reader:
        def __init__(self, languages, *, gpu, model_storage_directory, download_enabled, verbose):
            seen["easyocr"] = (languages, gpu, model_storage_directory, download_enabled)

        def readtext(self, array):
            assert array.shape == (40, 40, 3) and array.dtype == "uint8"
            return [([[0, 0]], "Op", 0.5), ([[0, 0]], "en", 0.1)]

    class PaddleOCR:
        def __init__(self, **options):
            seen["paddleocr"] = options["lang"], options["device"]

        def predict(self, arrays):
            assert (arrays[0][..., ::-1] == to_array(images[0])).all()
            return [{"rec_texts": ["0p", "en"], "rec_scores": [0.9, 0.8]} for _ in arrays]

    monkeypatch.setitem(sys.modules, "easyocr", types.SimpleNamespace(Reader=Reader))
    monkeypatch.setitem(sys.modules, "paddleocr", types.SimpleNamespace(PaddleOCR=PaddleOCR))
    readers._easyocr.cache_clear()
    readers._paddleocr.cache_clear()
    rows = records('"Open"')
    assert ocr(images[:1], rows, [{}], path="models", device="cpu") == [1.0]
    assert ocr(images[:1], rows, [{}], engine="paddleocr", device="cpu") == [0.75]
    assert seen == {"easyocr": (["en"], False, "models", False), "paddleocr": ("en", "cpu")}
    readers._easyocr.cache_clear()
    readers._paddleocr.cache_clear()
