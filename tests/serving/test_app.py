"""What is answered over HTTP: the same items as from Python, bad requests by one line, and nothing of the server's files."""

import base64
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
from starlette.testclient import TestClient  # noqa: E402

from gentok.bundle import load  # noqa: E402
from gentok.data.image_files import to_media  # noqa: E402
from gentok.errors import ConfigError  # noqa: E402
from gentok.serving.app import Served, make_app  # noqa: E402
from gentok.serving.server import _listening  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bundle():
    return load("mnist5k_masked")


@pytest.fixture(scope="module")
def client(bundle):
    with TestClient(make_app(Served(bundle, max_items=5, max_bytes=20000)), raise_server_exceptions=False) as made:
        yield made


def pixels(data):
    return to_media(torch.from_numpy(np.array(Image.open(io.BytesIO(data))))[None])


FAST = {"sampler": "maskgit", "settings": {"steps": 3}}


def test_samples_are_those_of_python(client, bundle):
    answer = client.post("/v1/sample", json={"n": 3, "condition": 7, "seed": 5, "guidance": 2, "codes": True, **FAST}).json()
    media = bundle.sample(3, 7, seed=5, guidance=2.0, sampler="maskgit", steps=3)
    assert answer["type"] == "image/png" and answer["sampler"]["steps"] == 3 and answer["seed"] == 5
    for item, own in zip(answer["items"], media, strict=True):
        assert (pixels(base64.b64decode(item["media"])) - own).abs().max() <= 1.01 / 127.5
        assert item["calls"] == 3 and np.shape(item["codes"]) == (1, 64)
    again = client.post("/v1/decode", json={"codes": [item["codes"] for item in answer["items"]]}).json()
    assert [item["media"] for item in again["items"]] == [item["media"] for item in answer["items"]]


def test_a_picture_for_a_browser_is_encoded_again_and_completed(client, bundle):
    answer = client.get("/v1/sample?condition=3&seed=1&sampler=halton")
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    codes = client.post("/v1/encode", content=answer.content).json()["codes"]
    assert codes == bundle.encode(pixels(answer.content)[None]).codes.tolist()
    words = {"known": base64.b64encode(answer.content).decode(), "keep": "top-half", "codes": True, "media": False, **FAST}
    item = client.post("/v1/sample", json=words).json()["items"][0]
    assert "media" not in item and item["codes"][0][:32] == codes[0][0][:32] and item["codes"][0] != codes[0][0]


def test_what_is_painted_is_drawn_anew_and_the_rest_stays(client):
    picture = client.get("/v1/sample?condition=3&seed=1&sampler=halton").content
    codes = np.array(client.post("/v1/encode", content=picture).json()["codes"]).reshape(8, 8)
    mask = np.ones((32, 32))
    mask[5, 9] = 0  # a pixel of cell (1, 2)
    mask[16:, 16:] = 0
    words = {"known": base64.b64encode(picture).decode(), "keep": mask.tolist(), "codes": True, "media": False, "n": 4, **FAST}
    drawn = np.array([item["codes"] for item in client.post("/v1/sample", json=words).json()["items"]]).reshape(4, 8, 8)
    changed = (drawn != codes).any(0)
    assert changed[1, 2] or changed[4:, 4:].any()
    changed[1, 2] = changed[4:, 4:] = False
    assert not changed.any()
    for wrong, says in (([[1, 1], [1]], "same length"), ([[1] * 4] * 4, "8 x 8 cells"), ([], "one at least")):
        answer = client.post("/v1/sample", json={**words, "keep": wrong})
        assert answer.status_code == 400 and says in answer.json()["error"]


def test_the_page_asks_this_server_and_no_other(client):
    page = client.get("/")
    assert page.status_code == 200 and "text/html" in page.headers["content-type"]
    assert not re.search(r"(https?:)?//\w", page.text) and '"v1/sample"' in page.text and "/* page" not in page.text


def test_what_it_is_and_how_it_does(client):
    about = client.get("/v1/model").json()
    assert about["samplers"][0] == "first_hitting" and about["conditions"]["class"][7] == "7" and not about["watermarked"]
    assert client.get("/health").json()["status"] == "ok"
    client.post("/v1/sample", json={"n": 0})
    text = client.get("/metrics").text
    assert 'gentok_requests_total{address="/v1/sample",status="422"}' in text and "gentok_items_drawn" in text


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"n": 0}, 422, "n: Input should be greater"),
        ({"n": 6}, 400, "n=6: this server draws up to 5"),
        ({"seed": -1}, 422, "seed"),
        ({"steps": 3}, 422, "steps: Extra inputs"),
        ({"sampler": "maskgti"}, 400, "did you mean 'maskgit'"),
        ({"sampler": "jacobi"}, 400, "jacobi"),
        ({"sampler": "maskgit", "settings": {"stepz": 3}}, 400, "stepz"),
        ({"sampler": "maskgit", "settings": {"steps": -3}}, 400, "steps"),
        ({"settings": {"ckpt": "x"}}, 400, "files are the server's"),
        ({"settings": {"draft": "/etc/passwd"}}, 400, "files are the server's"),
        ({"condition": 77}, 400, "77"),
        ({"condition": {"text": "a"}}, 400, "condition.text"),
        ({"guidance": -1}, 422, "guidance"),
        ({"known": "!"}, 400, "known: expected a file in base64"),
        ({"known": base64.b64encode(b"no image").decode()}, 400, "the image"),
        ({"keep": "left-half"}, 400, "nothing is known"),
        ({"duration": 1.0}, 400, "duration"),
        ({"known": "A" * 20000}, 413, "takes 20,000"),
    ],
)
def test_a_bad_request_is_a_line(client, body, status, says):
    answer = client.post("/v1/sample", json=body)
    line = answer.json()["error"]
    assert answer.status_code == status and says in line and "\n" not in line, (answer.status_code, line)


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        ([], "expected"), ([[[1, 2], [1]]], "expected"), ([[[0] * 63]], "63"), ([[[9999] * 64]], "9999"), ([[[2**70] * 64]], "64 bits"),
        ([[[0] * 64]] * 6, "up to 5"),
    ],
)
def test_codes_that_are_none_are_a_line(client, codes, says):
    answer = client.post("/v1/decode", json={"codes": codes})
    assert answer.status_code == 400 and says in answer.json()["error"], answer.text


def test_a_body_without_a_length_or_that_is_no_json_is_a_line(client):
    assert client.post("/v1/encode", content=iter([b"a", b"b"])).status_code == 411
    answer = client.post("/v1/sample", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 422 and answer.json()["error"].startswith("1: JSON decode error")
    assert client.post("/v1/encode", content=b"").status_code == 400 and client.get("/v1/nothing").status_code == 404


def test_over_the_limit_is_429_and_the_others_are_answered(bundle):
    app = make_app(Served(bundle, batch_size=2, max_waiting=4))
    with TestClient(app, raise_server_exceptions=False) as client, ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda seed: client.post("/v1/sample", json={"n": 2, "seed": seed, **FAST}), range(24)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused and all("items are waiting" in answer.json()["error"] and answer.headers["retry-after"] == "1" for answer in refused)
    served = [answer for answer in answers if answer.status_code == 200]
    assert len(served) + len(refused) == 24 and served and all(len(answer.json()["items"]) == 2 for answer in served)


def test_sounds_have_a_longest():
    soundfile = pytest.importorskip("soundfile")
    bundle, files = load("fsdd_codec"), {}
    for seconds in (0.5, 0.6):
        soundfile.write(file := io.BytesIO(), np.zeros(int(16000 * seconds)), 16000, format="wav")
        files[seconds] = file.getvalue()
    with TestClient(make_app(Served(bundle, max_seconds=0.5))) as client:
        codes = client.post("/v1/encode", content=files[0.5]).json()["codes"]
        assert np.shape(codes) == (1, 8, 25) and client.post("/v1/decode", json={"codes": codes}).json()["type"] == "audio/wav"
        for answer in (client.post("/v1/encode", content=files[0.6]), client.post("/v1/decode", json={"codes": [[[0] * 26] * 8]})):
            assert answer.status_code == 400 and "0.5 s that this server takes" in answer.json()["error"]


def test_a_tokenizer_alone_encodes_and_decodes():
    with TestClient(make_app(Served(load("mnist5k_vq")))) as client:
        assert client.get("/v1/model").json()["generator"] is None
        assert "a tokenizer alone" in client.post("/v1/sample", json={}).json()["error"]
        assert len(client.post("/v1/decode", json={"codes": [[[0] * 64]]}).json()["items"]) == 1


@pytest.mark.parametrize(("port", "says"), [(99999, "65535"), (None, "in use")])
def test_an_address_that_cannot_be_had_is_a_line(port, says):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match=says) as error:
        _listening("127.0.0.1", port or taken.getsockname()[1])
    assert "\n" not in str(error.value)


@pytest.fixture
def server(request):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-c", "from gentok.cli import main; main()", "serve", *request.param, f"port={port}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    url = f"http://127.0.0.1:{port}"
    while True:  # ends with the process, where it does not come up
        assert process.poll() is None, process.stdout.read()
        try:
            httpx.get(f"{url}/health")
            break
        except httpx.TransportError:
            time.sleep(0.1)
    yield process, url
    process.kill()


def stopped(process, by):
    """Whether the server ends by a signal without a word."""
    process.send_signal(by)
    return process.wait(120) == 0 and "Traceback" not in process.stdout.read()


@pytest.mark.parametrize("server", [["ckpt=mnist5k_masked"]], indirect=True)
def test_who_waits_when_it_is_told_to_stop_is_answered(server):
    process, url = server
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(httpx.post, f"{url}/v1/sample", json={"settings": {"steps": 64}, "sampler": "maskgit", "n": 8}, timeout=120)
        while "gentok_batches_drawn 1.0" not in httpx.get(f"{url}/metrics").text:  # until it is drawn
            time.sleep(0.05)
        assert stopped(process, signal.SIGTERM)
    assert late.result().status_code == 200 and len(late.result().json()["items"]) == 8


@pytest.mark.slow
@pytest.mark.parametrize("server", [["ckpt=mnist5k_ar", "guidance=1.5", "max_waiting=4000"]], indirect=True)
def test_a_thousand_requests_are_answered_each_as_it_is_alone_and_it_stops_cleanly(server):
    process, url = server

    def ask(seed):
        body = {"seed": seed, "condition": seed % 10, "codes": True, "media": False}
        return httpx.post(f"{url}/v1/sample", json=body, timeout=600).json()

    alone = [ask(seed)["items"][0]["codes"] for seed in range(3)]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(1000)))
    assert all(len(answer["items"]) == 1 for answer in answers) and [answers[seed]["items"][0]["codes"] for seed in range(3)] == alone
    counts = httpx.get(f"{url}/metrics").text
    batches, items = (float(re.search(rf"^gentok_{name}_drawn (\S+)", counts, re.M)[1]) for name in ("batches", "items"))
    assert items == 1003 and batches < 500
    assert stopped(process, signal.SIGINT)
