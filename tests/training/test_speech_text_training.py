"""The experiment of speech and text as one stream, a few steps over a tiny codec: it speaks, writes down, and makes up both."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch

from gentok.build import build
from gentok.bundle import load, save
from gentok.cli import compose
from gentok.data.spoken_digits import WORDS
from gentok.data.token_dataset import TokenDataset
from gentok.evaluate import evaluate
from gentok.sample_files import sample_to_folder
from gentok.sampling import sample
from gentok.training.run import train

HOP, RATE = 1280, 16000
BOTH = {"channels": 1, "width": 8, "filters": 2, "ratios": [16, 20, 4], "memory": None}
CODEC = {
    "_target_": "gentok.tokenizers.codec.Codec",
    "encoder": {"_target_": "gentok.nn.seanet.SEANetEncoder", **BOTH},
    "decoder": {"_target_": "gentok.nn.seanet.SEANetDecoder", **BOTH},
    "codebook": {"_target_": "gentok.codebooks.vq.VQ", "vocab_size": 256, "dim": 8},
    "sample_rate": RATE,
    "media_shape": [1],
}
QUIET = ["trainer.progress_bar=false", "print_config=false", "trainer.log_every=2", "trainer.validate_every=3", "steps=3", "budget=null",
         "batch_size=8", "callbacks.ema=null", "trainer.precision=32-true", "logger.tensorboard=false", "generator.width=16",
         "generator.depth=1", "generator.heads=2", "task.pictures=2", "task.sounds=1", "task.encode_batch=16", "task.views=2"]  # fmt: skip


def voice(text, speed=1.0, seed=0):
    """A tone per word, in the place of hibari's voice."""
    time = np.arange(round(0.2 * 24000 / speed)) / 24000
    return np.concatenate([0.3 * np.sin(2 * np.pi * (200 + 50 * WORDS.index(w)) * time) for w in text[:-1].split()]).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def toned():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gentok.data.spoken_digits._voice", lambda: voice)
        yield


@pytest.fixture(scope="module")
def world(toned, tmp_path_factory):
    """(folder, command line, the run, weights of the tokenizer inside): after the run, the bundle of that one is gone."""
    root = tmp_path_factory.mktemp("streams")
    torch.manual_seed(0)
    save(root / "codec", tokenizer=build(CODEC).eval(), tokenizer_config=CODEC)
    data = ["data.items=24", "data.held_out=6", f"data.cache={root / 'spoken'}", "tokenizer.symbols=null", "tokenizer.longest_text=null"]
    paths = [f"paths.root={root}", f"paths.run={root / 'run'}", f"paths.cache={root / 'cache'}"]
    words = ["experiment=spoken_digits/speech_text", f"tokenizer.speech.ckpt={root / 'codec'}", *data, *QUIET, *paths]
    run = train(compose("config", words))
    inner = load(root / "codec").tokenizer.state_dict()
    shutil.rmtree(root / "codec")
    return root, words, run, inner


def test_the_bundle_holds_the_tokenizer_inside_and_the_cache_every_order(world):
    root, _, run, inner = world
    bundle = load(run / "bundle")
    own = bundle.tokenizer.speech.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in inner.items()) and own.keys() == inner.keys()
    assert bundle.condition_spec.parts == () and bundle.spec.grammar
    cached = [TokenDataset(path, bundle.spec) for path in (root / "cache").glob("*.safetensors")]
    cached = next(c for c in cached if c.views == 2)
    batches = [cached[i] for i in range(2 * len(cached))]
    orders = {int(b.tokens.codes[0, 0, 0]) for b in batches}
    assert len(orders) == 3
    for b in batches[:6]:
        alphabet = dict(cached.condition_spec.parts)["text"].alphabet
        assert bundle.tokenizer.text(b.tokens) == ["".join(alphabet[i] for i in b.condition.parts["text"].ids[0].tolist() if i >= 0)]
    assert {p.suffix for p in (run / "sounds" / "samples_0000003").iterdir()} == {".wav"}


def test_a_text_is_spoken_a_sound_written_down_and_both_made_up(world):
    root, words, run, _ = world
    bundle, text = load(run / "bundle"), "seven three one"

    def command(name, *more):
        config = compose("sample", [f"ckpt={run / 'bundle'}", f"out={root / name}", "n=3", "batch_size=2", *more])
        out = sample_to_folder(config)
        return out, json.loads((out / "samples.json").read_text())

    out, report = command("spoken", f"condition={text}")
    assert report["texts"] == [text] * 3
    waves = [soundfile.info(str(out / f"{i:04d}.wav")).frames for i in range(3)]
    assert all(n % HOP == 0 and n == max(HOP, round(s * RATE)) for n, s in zip(waves, report["seconds_of_sound"]))

    data = build(compose("config", words)["data"])
    item = data.held_out[0]
    soundfile.write(root / "said.wav", item.media[0, 0].numpy(), RATE)
    _, report = command("written", f"known={root / 'said.wav'}")
    frames = -(-item.media.shape[2] // HOP)
    assert report["seconds_of_sound"] == [round(frames * HOP / RATE, 3)] * 3
    made = sample(bundle, n=2, known=item.media[0], seed=3)
    theirs = bundle.tokenizer.speech.encode(item.media)
    codes, count = bundle.tokenizer.speech_codes(made.tokens)
    assert torch.equal(codes, theirs.codes.expand(2, -1, -1)) and count.tolist() == [frames] * 2

    both = sample(bundle, n=2, condition=text, known=item.media[0], keep="0.4s")
    codes, _ = bundle.tokenizer.speech_codes(both.tokens)
    assert both.texts == [text] * 2 and torch.equal(codes[:, :, :5], theirs.codes[:, :, :5].expand(2, -1, -1))

    _, report = command("free")
    assert len(report["texts"]) == 3
    rows = sample(bundle, n=3, condition=["one", None, "two"], seed=1)
    assert (rows.texts[0], rows.texts[2]) == ("one", "two")
    alone = sample(bundle, n=3, condition=["one", None, "two"], seed=1, batch_size=1)
    assert alone.texts == rows.texts and torch.equal(alone.tokens.codes, rows.tokens.codes)
    for words, options in {
        "never saw": {"condition": "7"},
        "has its text among its tokens": {"condition": {"text": "one", "keep_text": "last:1"}},
        "no frames of time": {"duration": 1.0},
        "unconditional": {"guidance": 2.0},
        "s long": {"known": item.media[0], "keep": "9s"},
    }.items():
        with pytest.raises(ValueError, match=words) as error:
            sample(bundle, n=1, **options)
        assert "\n" not in str(error.value)


def test_its_likelihood_is_evaluated_on_the_data_it_was_trained_on(world):
    root, _, run, _ = world
    words = [f"ckpt={run / 'bundle'}", "protocol=nll", f"out={root / 'nll'}", "progress=false", "trust=[paths]"]
    report = evaluate(compose("evaluate", words))
    metrics = report["metrics"]
    assert metrics["items"] == 6 and 0 < metrics["bits_per_token"] < 9 and report["protocol"]["nll"] == "exact"


def test_a_run_without_the_cache_encodes_anew_and_refuses_what_does_not_fit(world):
    root, words, _, inner = world
    model = build(CODEC).eval()
    model.load_state_dict(inner)
    save(root / "codec", tokenizer=model, tokenizer_config=CODEC)
    run = train(compose("config", [*words, "task.views=0", "steps=1", f"paths.run={root / 'anew'}"]))
    assert load(run / "bundle").generator.spec.same_codes(load(root / "run" / "bundle").spec)
    several = {**CODEC, "codebook": {"_target_": "gentok.codebooks.residual.ResidualCodebook", "levels": 2, "codebook": CODEC["codebook"]}}
    save(root / "several", tokenizer=build(several).eval(), tokenizer_config=several)
    for words_of_error, more in {
        "one level": [f"tokenizer.speech.ckpt={root / 'several'}"],
        "hop=640": ["tokenizer.speech.hop=640"],
        "tokenizer.speech.ckpt=BUNDLE": ["tokenizer.speech.ckpt=null"],
        "generator.ends=true": ["generator.ends=false"],
        "set tokenizer.symbols=null": ["tokenizer.symbols=[a,b]"],
        "text_span=0": ["tokenizer.text_span=0"],
    }.items():
        with pytest.raises(ValueError, match=words_of_error) as error:
            train(compose("config", [*words, *more, f"paths.run={root / 'refused'}"]))
        assert "\n" not in str(error.value)


def test_it_is_asked_to_say_what_held_out_items_say(world):
    root, _, run, _ = world
    words = [f"ckpt={run / 'bundle'}", "protocol=generation", "n=3", "max_held_out=4", f"out={root / 'said'}", "progress=false"]
    metrics = evaluate(compose("evaluate", [*words, "trust=[paths]"]))["metrics"]
    assert metrics["samples"] == 3 and np.isfinite(metrics["mel_frechet"]) and metrics["bits_per_token"] > 0
