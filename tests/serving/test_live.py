"""What is sent while a model works: the steps of the same drawing, and the sound that the whole item has."""

import base64
import json

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
from starlette.testclient import TestClient  # noqa: E402

from gentok.bundle import load  # noqa: E402
from gentok.codebooks.vq import VQ  # noqa: E402
from gentok.nn.seanet import SEANetDecoder, SEANetEncoder  # noqa: E402
from gentok.samplers.base import fitting, sampler_name  # noqa: E402
from gentok.sampling import configured_sampler  # noqa: E402
from gentok.sampling_plan import SamplingPlan, draw_together  # noqa: E402
from gentok.serving.app import Served, make_app  # noqa: E402
from gentok.serving.sound_stream import SoundStream, reach  # noqa: E402
from gentok.serving.watch import Changes, Watch  # noqa: E402
from gentok.tokenizers.codec import Codec  # noqa: E402
from gentok.types import UNKNOWN, Tokens  # noqa: E402

FEW = {"steps": 4}


def watched(bundle, sampler, settings=None, guidance=1.0, rows=(2, 1)):
    """(drawn without a watch, drawn with one, its steps) of two requests in a batch, of which the second is watched."""
    chosen = configured_sampler(sampler, type(bundle.generator), settings or {})
    plans = [SamplingPlan(bundle, chosen, n=n, condition=3 + n, seed=n, guidance=guidance) for n in rows]
    some = [(plan, torch.arange(n)) for plan, n in zip(plans, rows)]
    steps = []
    watch = Watch([(0, rows[0], None), (0, rows[1], steps.append)], chosen, None, bundle.spec)
    return draw_together(some), draw_together(some, options=watch.options), steps


@pytest.mark.parametrize("model, sampler, settings", [
    ("mnist5k_masked", "maskgit", FEW), ("mnist5k_masked", "halton", FEW), ("mnist5k_ar", "autoregressive", {}),
    pytest.param("mnist5k_masked", "remasking", FEW, marks=pytest.mark.slow),
    pytest.param("mnist5k_ar", "jacobi", {}, marks=pytest.mark.slow),
    pytest.param("mnist5k_ar", "jacobi", {"verify": "match", "tail": "gumbel"}, marks=pytest.mark.slow),
])  # fmt: skip
def test_who_is_watched_draws_the_same(model, sampler, settings):
    bundle = load(model)
    alone, seen, steps = watched(bundle, sampler, settings, guidance=1.5)
    assert seen.tokens.codes.equal(alone.tokens.codes) and seen.calls.equal(alone.calls)
    assert steps[-1].tokens.codes.equal(seen.tokens.codes[2:])
    told = []
    changes = Changes(told.append)
    for step in steps:
        changes(step)
    cells = [tuple(cell[:3]) for line in told for cell in line["cells"]]
    taken_back = sum(len(line["back"]) for line in told)
    assert len(set(cells)) == 64 and (len(cells) == 64 + taken_back or sampler == "remasking")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mnist5k_masked", "mnist5k_ar", "docs/zoo/mnist5k_next_scale", "docs/zoo/mnist5k_xar"])
def test_every_sampler_can_be_watched(model):
    bundle = load(model)
    for cls in fitting(bundle.generator):
        name = sampler_name(cls)
        try:
            configured_sampler(name, type(bundle.generator), {})
        except ValueError:  # needs another model beside it
            continue
        alone, seen, steps = watched(bundle, name, rows=(1, 1))
        made = [one.tokens.codes if isinstance(one.tokens, Tokens) else one.tokens.values for one in (alone, seen)]
        assert made[0].equal(made[1]) and steps, name


def test_the_confidences_of_an_items_ids_multiply_to_its_probability():
    bundle = load("mnist5k_ar")
    _, seen, steps = watched(bundle, "autoregressive")
    confidence = steps[-1].confidence[0]
    assert bool(confidence.isfinite().all())
    tokens = Tokens(seen.tokens.codes[2:], bundle.generator.spec)
    with torch.no_grad():
        nll = bundle.generator.eval().loss(tokens, bundle.condition_spec.parse(4, 1)).nll
    assert abs(float(-confidence.log().sum()) - float(nll[0])) < 1e-2


@pytest.fixture(scope="module")
def speech():
    with TestClient(make_app(Served(load("docs/zoo/spoken_digits_ar_delay"))), raise_server_exceptions=False) as client:
        yield client


def samples_of(wav):
    assert wav[:4] == b"RIFF" and wav[36:40] == b"data"
    return np.frombuffer(wav[44:], dtype="<i2").astype(int)


def test_a_streamed_sound_is_the_whole_one(speech):
    words = {"condition": "seven three", "seed": 4, "duration": 0.6}
    whole = speech.post("/v1/sample", json={**words, "codes": True}).json()["items"][0]
    parts = speech.get("/v1/stream", params=words)
    assert parts.status_code == 200 and parts.headers["content-type"] == "audio/wav"
    own = samples_of(base64.b64decode(whole["media"]))
    assert len(own) and np.abs(samples_of(parts.content) - own).max() <= 1
    there = sum(code >= 0 for code in whole["codes"][0])
    codes = [[level[:there] for level in whole["codes"]]]
    assert np.abs(samples_of(speech.post("/v1/decode/stream", json={"codes": codes}).content) - own).max() <= 1


def test_what_cannot_be_streamed_is_said_in_a_line(speech):
    for answer in (speech.post("/v1/stream", json={"n": 2}), speech.post("/v1/decode/stream", json={"codes": []})):
        assert answer.status_code == 400 and "one sound" in answer.json()["error"]
    assert speech.get("/v1/stream?sampler=mask").status_code == 400


def test_watching_over_http_ends_with_the_answer(speech):
    words = {"condition": "two", "duration": 0.2, "seed": 1, "codes": True, "n": 2}
    lines = [json.loads(line) for line in speech.post("/v1/watch", json=words).text.splitlines()]
    own = speech.post("/v1/sample", json=words).json()
    assert {**lines[-1]["done"], "seconds": 0} == {**own, "seconds": 0} and len(lines) > 10
    drawn = {tuple(cell[:3]) for line in lines[:-1] for cell in line["cells"]}
    codes = torch.tensor([item["codes"] for item in own["items"]])
    present = set(map(tuple, (codes >= 0).nonzero().tolist()))
    assert drawn == present
    wrong = speech.post("/v1/watch", json={**words, "sampler": "nothing"})
    assert wrong.status_code == 400 and "error" in wrong.json()


# ------------------------------------------------------------------------------------------------------------ decoding in parts


def heard(tokenizer, codes, reaches, pieces):
    """The sound of a stream that is fed more and more of the codes, and how much of it came before the last."""
    spec, stream, parts = tokenizer.spec, SoundStream(tokenizer, reaches), []
    for end in pieces:
        so_far = torch.full_like(codes, UNKNOWN)
        so_far[:, :, :end] = codes[:, :, :end]
        parts.append(stream.feed(Tokens(so_far, spec)))
    early = stream.sent
    parts.append(stream.feed(Tokens(codes, spec), last=True))
    return torch.cat([part for part in parts if part is not None], -1), early


def test_windows_of_a_codec_that_looks_ahead_give_the_whole_sound_and_too_small_ones_do_not():
    tokenizer = load("docs/zoo/spoken_digits_codec").tokenizer.eval()
    codes = torch.randint(256, (1, 8, 150), generator=torch.Generator().manual_seed(1))
    whole, pieces = tokenizer.decode(Tokens(codes, tokenizer.spec))[0], [1, 2, 40, 41, 90, 149]
    reaches = reach(tokenizer)
    assert reaches is not None and max(reaches) < 40
    sound, early = heard(tokenizer, codes, reaches, pieces)
    assert torch.allclose(sound, whole, atol=1e-5) and early > whole.shape[-1] // 2
    wrong, _ = heard(tokenizer, codes, (0, 0), pieces)
    assert wrong.shape == whole.shape and not torch.allclose(wrong, whole, atol=1e-2)
    at_the_end, early = heard(tokenizer, codes, None, pieces)
    assert torch.allclose(at_the_end, whole, atol=1e-5) and early == 0


def test_a_codec_without_look_ahead_streams_by_itself():
    encoder, decoder = (part(width=8, filters=4, ratios=[4, 2]) for part in (SEANetEncoder, SEANetDecoder))
    tokenizer = Codec(encoder, VQ(32, 8), decoder, 800).eval()
    codes = torch.randint(32, (1, 1, 40), generator=torch.Generator().manual_seed(2))
    whole = tokenizer.decode(Tokens(codes, tokenizer.spec))[0]
    sound, early = heard(tokenizer, codes, None, [3, 17, 39])
    assert tokenizer.latency_samples is not None and early > whole.shape[-1] // 2
    assert torch.allclose(sound.clamp(-1, 1), whole, atol=1e-5)
