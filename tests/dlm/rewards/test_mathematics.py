"""GSM8K and MATH answers; math-verify behind its guard."""

import os
import subprocess
import sys
import threading
import time

import pytest

from dlm.rewards import latex
from dlm.rewards.correct import is_correct
from dlm.rewards.verifier import Verifier, same_value
from mmrl.data.records import Record
from mmrl.errors import UserError


def tags(answer):
    return f"<reasoning>\n6+6\n</reasoning>\n<answer>\n{answer}\n</answer>\n"


@pytest.mark.parametrize(
    ("text", "answer", "as_text", "verified"),
    [
        (tags("12"), "12", 2.0, 2.0),
        (tags(" 12 "), "12", 2.0, 2.0),
        ("12", "12", 2.0, 2.0),  # no tags: the whole text
        (tags("13"), "12", 0.0, 0.0),
        (tags("12.0"), "12", 0.0, 2.0),
        (tags("$12"), "12", 0.0, 2.0),
        (tags("1,200"), "1200", 0.0, 2.0),
        (tags("12 apples or 13"), "12", 0.0, 0.0),
        (tags("13") + tags("12"), "12", 2.0, 2.0),
        (tags("12") + tags("13"), "12", 0.0, 0.0),
        ("The answer is 12.", "12", 0.0, 2.0),
        ("#### 12", "12", 0.0, 2.0),
        ("", "12", 0.0, 0.0),
        ("<answer></answer>", "12", 0.0, 0.0),
        (tags("12"), "so 6+6.\n#### 12", 2.0, 2.0),
        (tags("12"), 12, 2.0, 2.0),
    ],
)
def test_gsm8k(one, text, answer, as_text, verified):
    assert one("gsm8k", text, answer) == as_text
    assert one("gsm8k", text, answer, match="verify") == verified
    assert one("gsm8k", text, answer, value=1.0) == as_text / 2


def test_gsm8k_of_the_plain_style_stands_behind_the_mark(one):
    assert one("gsm8k", "6+6 = 12\n#### 12", "12", style="plain") == 2.0
    assert one("gsm8k", "6+6 = 12\n#### 12\n#### 13", "12", style="plain") == 0.0


@pytest.mark.parametrize(
    ("said", "answer", "as_text", "verified"),
    [
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}", 2.0, 2.0),
        ("\\boxed{\\dfrac12}", "\\frac{1}{2}", 2.0, 2.0),
        ("\\boxed{0.5}", "\\frac{1}{2}", 2.0, 2.0),
        ("\\boxed{0.25}", "\\frac{1}{4}", 0.0, 2.0),
        ("\\boxed{2/4}", "\\frac12", 0.0, 2.0),
        ("\\boxed{x=5}", "5", 2.0, 2.0),
        ("\\boxed{5\\text{ cm}}", "5", 2.0, 2.0),
        ("\\boxed{90^\\circ}", "90", 2.0, 2.0),
        ("\\boxed{1+x^2}", "x^2+1", 0.0, 2.0),
        ("\\boxed{(2,1)}", "(1,2)", 0.0, 0.0),
        ("\\boxed{4} and \\boxed{5}", "5", 2.0, 2.0),
        ("\\boxed{5} and \\boxed{4}", "5", 0.0, 0.0),
        ("\\boxed{5", "5", 0.0, 0.0),
        ("\\boxed{5 <answer>5</answer>", "5", 0.0, 0.0),  # the box was never closed
        ("5", "5", 2.0, 2.0),
        ("it is 5, not 4", "4", 0.0, 0.0),
        ("5", "so \\boxed{5}", 2.0, 2.0),
        ("", "5", 0.0, 0.0),
        ("\\boxed{}", "5", 0.0, 0.0),
    ],
)
def test_math(one, said, answer, as_text, verified):
    for text in (said, tags(said)):
        assert one("math", text, answer, task="math", match="text") == as_text
        assert one("math", text, answer, task="math") == verified


@pytest.mark.parametrize("answer", [None, "", "\\boxed{5", ["5"]])
def test_an_answer_that_is_none(one, answer):
    for task in ("math", "gsm8k"):
        with pytest.raises(UserError, match="record 'r'"):
            one(task, "5", answer, task=task)


def test_correct_looks_at_the_value():
    assert is_correct(tags("12.0"), Record("r", "gsm8k", "p", answer="12"))
    assert is_correct("\\boxed{0.25}", Record("r", "math", "p", answer="\\frac14"))
    assert not is_correct("\\boxed{0.2}", Record("r", "math", "p", answer="\\frac14"))


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\\dfrac12", "\\frac{1}{2}"),
        ("\\frac1{72}", "\\frac{1}{72}"),
        ("\\tfrac{a}b", "\\frac{a}b"),
        ("0.5", "\\frac{1}{2}"),
        (".5", "\\frac{1}{2}"),
        ("3/4", "\\frac{3}{4}"),
        ("-3/4", "\\frac{-3}{4}"),
        ("x/2", "x/2"),
        ("k = 7", "7"),
        ("abc=3", "abc=3"),
        ("10\\%", "10"),
        ("5\\text{ cm}", "5"),
        ("\\sqrt2+\\sqrt{3}", "\\sqrt{2}+\\sqrt{3}"),
        ("\\left(1, 2\\right)", "(1,2)"),
        ("90^{\\circ}", "90"),
        ("\\$12", "12"),
        ("1\\!000", "1000"),
        ("a\\\\b", "a\\b"),
        ("", ""),
    ],
)
def test_one_spelling(text, plain):
    """Values of the released function, run once; it raises for x/2 and compares the raw texts then."""
    assert latex.normal(text) == plain


def test_nothing_is_not_equal_to_nothing():
    assert not latex.same("", "") and not latex.same("\\%", "")


@pytest.fixture(scope="module")
def verifier():
    one = Verifier(limit_s=1.0)
    yield one
    one.close()


def test_what_hangs_is_killed_and_replaced(verifier):
    assert verifier.same("5", "5.0")
    for text in ("9^{9^{9^{9}}}",):
        before, start = verifier.restarts, time.monotonic()
        assert not verifier.same("5", text)
        assert verifier.restarts == before + 1 and time.monotonic() - start < 20
    assert verifier.same("\\frac{1}{2}", "0.5")


def test_odd_texts_are_wrong(verifier):
    before = verifier.restarts
    for text in (
        "",
        " ",
        "\ud800",
        "\x00",
        "{" * 50,
        "\\frac{" * 20,
        "a\nb",
        "$",
        "5" * 500,
        '"]\n["5", "5',
        "5\n6",
        "6$ $5",
    ):
        assert not verifier.same("5", text) and not verifier.same(text, "5"), text
    assert verifier.restarts == before and verifier.same("5", "5.0")


def test_threads_may_ask(verifier):
    """Signals would raise outside the main thread."""
    found = {}

    def ask(i):
        found[i] = verifier.same(str(i), f"{i}.0")

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(8), True)


def test_a_dead_child_is_replaced(verifier):
    assert verifier.same("1", "1.0")
    verifier._child.kill()
    verifier._child.wait()
    assert verifier.same("2", "2.0")
    verifier._child.stdin.close()  # it reads the end of its input and leaves
    verifier._child.wait(timeout=20)
    assert verifier.same("3", "3.0")


def test_the_child_leaves_with_its_parent():
    code = (
        "import os; from dlm.rewards import verifier as v; assert v.same_value('5', '5.0');"
        "print(v._SHARED._child.pid, flush=True); os._exit(1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pid = int(done.stdout)
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the child is still there")


def test_a_child_that_cannot_start_is_told(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('No module named math_verify')")
    monkeypatch.syspath_prepend(str(tmp_path))
    one = Verifier()
    with pytest.raises(UserError, match="math-verify cannot be used: No module named math_verify; pip install"):
        one.same("5", "6")
    one.close()


def test_answers_are_remembered():
    assert same_value("7", "7.0")
    hits = same_value.cache_info().hits
    assert same_value("7", "7.0") and same_value.cache_info().hits == hits + 1
