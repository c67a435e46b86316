"""Scorers elsewhere: in a process with its own Python, and behind HTTP. What fails there is raised here."""

import base64
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest
from PIL import Image

from image_gen.rewards import remote as remote_module
from image_gen.rewards import scorer_process as module
from image_gen.rewards.pictures import to_array
from image_gen.rewards.remote import remote
from image_gen.rewards.scorer_process import scorer_process
from mmrl.errors import UserError

SCORER = """
import os, sys, time
print("loading", flush=True)  # must not get between the answers

def mean(images, prompts, metadata, *, times=1.0):
    print("scoring", len(images), flush=True)
    assert all(i.mode == "RGB" for i in images)
    return [None if p == "none" else times * sum(i.resize((1, 1), 4).getpixel((0, 0))) + m.get("plus", 0)
            for i, p, m in zip(images, prompts, metadata)]

def exact(images, prompts, metadata):
    return [float(sum(i.tobytes())) for i in images]

def few(images, prompts, metadata):
    return [1.0]

def broken(images, prompts, metadata):
    raise ValueError("no such thing")

def hang(images, prompts, metadata):
    time.sleep(60)

def die(images, prompts, metadata):
    os._exit(3)

def process(images, prompts, metadata):
    return [os.getpid() for _ in images]
"""


@pytest.fixture
def target(tmp_path):
    (tmp_path / "my_scorer.py").write_text(SCORER)
    yield lambda name: f"{tmp_path}/my_scorer.py:{name}"
    module.close_all()


def test_pictures_prompts_and_metadata_arrive_and_numbers_return(target, records, images):
    rows = [*records("a", "none"), *records("b", meta={"plus": 1000})]
    plain = [float(to_array(x).astype(float).sum()) for x in images]
    assert scorer_process(images, records("a", "b", "c"), [{}] * 3, target=target("exact")) == plain  # PNG is exact
    values = scorer_process(images, rows, [{}] * 3, target=target("mean"), options={"times": 2.0}, batch_size=2)
    red = sum((200, 30, 60))
    assert values[1] is None and values[2] == 2 * red + 1000 and 0 < values[0] < 2 * 765
    assert scorer_process([], [], [{}], target=target("mean")) == []


def test_one_process_serves_all_calls(target, records, images):
    pids = [scorer_process(images[:2], records("a", "b"), [{}] * 2, target=target("process")) for _ in range(2)]
    assert len({pid for row in pids for pid in row}) == 1


@pytest.mark.parametrize(
    "name, words",
    [("broken", "failed: ValueError: no such thing"), ("few", "gave 1 scores for 2 pictures"), ("die", "exit code 3")],
)
def test_failures_are_raised(target, records, images, name, words):
    with pytest.raises(UserError, match=words) as told:
        scorer_process(images[:2], records("a", "b"), [{}] * 2, target=target(name))
    assert "\n" not in str(told.value)


def test_a_hanging_scorer_is_stopped_and_given_up_after_its_restarts(target, records, images):
    start = time.monotonic()
    options = {"target": target("hang"), "timeout_s": 0.2, "restarts": 1}
    for words in ("no answer within 0.2 s", "no answer within 0.2 s", "given up: no answer"):
        with pytest.raises(UserError, match=words):
            scorer_process(images[:1], records("a"), [{}], **options)
    assert time.monotonic() - start < 20


def test_a_large_request_to_a_process_that_reads_nothing_does_not_block(tmp_path, records, images):
    (tmp_path / "deaf.py").write_text("import time\n\ndef f(images, prompts, metadata):\n    time.sleep(60)\n")
    big = [Image.effect_noise((600, 600), 80.0)] * 3
    one = module.ScorerProcess(sys.executable, f"{tmp_path}/deaf.py:f", "{}", start_timeout_s=30.0, restarts=0)
    request = {"images": [module.png(x) for x in big], "prompts": [""] * 3, "metadata": [{}] * 3}
    for words in ("no answer within 0.2 s", "given up"):
        with pytest.raises(UserError, match=words):
            one.score(request, 3, timeout_s=0.2)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"target": "no_colon"}, "must be file.py:function"),
        ({"target": "/no/such.py:f"}, "there is no file '/no/such.py'"),
        ({"target": "no_such_module_here:f"}, "cannot load: ModuleNotFoundError"),
        ({"target": "json:dumps", "python": "/no/python"}, "cannot start /no/python: No such file"),
    ],
)
def test_what_cannot_start_is_told(records, images, options, words):
    with pytest.raises(UserError, match=words):
        scorer_process(images[:1], records("a"), [{}], **options)
    module.close_all()


@pytest.fixture
def server(monkeypatch):
    """(url, requests seen, queue of status codes to answer first)."""
    monkeypatch.setattr(remote_module, "FIRST_PAUSE_S", 0.01)
    seen, codes = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(body)
            if codes:
                self.send_response(codes.pop(0))
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            sizes = [Image.open(BytesIO(base64.b64decode(x))).size[0] for x in body["images"]]
            scores = [None if p == "none" else float(s) for s, p in zip(sizes, body["prompts"])]
            self.wfile.write(json.dumps({"scores": scores[: body["metadata"][0].get("only", 99)]}).encode())

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/", seen, codes
    http.shutdown()
    http.server_close()


def test_remote_scores_in_batches(server, records, images):
    url, seen, _ = server
    rows = records("a", "none", "c", meta={"tag": "x"})
    assert remote(images, rows, [{}] * 3, url=url, batch_size=2) == [40.0, None, 36.0]
    assert [len(one["images"]) for one in seen] == [2, 1]
    assert seen[0]["prompts"] == ["a", "none"] and seen[0]["metadata"] == [{"tag": "x"}] * 2


def test_remote_tries_again_and_then_raises(server, records, images):
    url, seen, codes = server
    codes[:] = [500, 503]
    assert remote(images[:1], records("a"), [{}], url=url) == [40.0] and len(seen) == 3
    codes[:] = [500] * 9
    with pytest.raises(UserError, match="failed .HTTP 500"):
        remote(images[:1], records("a"), [{}], url=url, retries=2)
    assert len(seen) == 6
    codes[:] = [404]
    with pytest.raises(UserError, match="HTTP 404"):
        remote(images[:1], records("a"), [{}], url=url)
    assert len(seen) == 7  # not tried again
    with pytest.raises(UserError, match="gave 1 scores for 2 pictures"):
        remote(images[:2], records("a", "b", meta={"only": 1}), [{}] * 2, url=url)
    with pytest.raises(UserError, match="URLError"):
        remote(images[:1], records("a"), [{}], url="http://127.0.0.1:9/", retries=0)
    with pytest.raises(UserError, match="must start with http"):
        remote(images[:1], records("a"), [{}], url="file:///etc/passwd")
