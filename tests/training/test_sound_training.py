"""Sounds through both tasks: a codec, a generator of its tokens of unequal length, and samples that can be heard."""

import csv
import json
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from gentok.bundle import load
from gentok.cli import compose
from gentok.data.sound_files import read_sound
from gentok.data.token_dataset import TokenDataset
from gentok.evaluate import evaluate
from gentok.sample_files import sample_to_folder
from gentok.training.run import train

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
from sound_kit import choir, sing  # noqa: E402

QUIET = ["trainer.progress_bar=false", "print_config=false", "trainer.log_every=2", "trainer.validate_every=3", "steps=3", "budget=null",
         "batch_size=8", "callbacks.ema=null", "trainer.precision=32-true"]  # fmt: skip
CODEC = ["tokenizer=codec", "codebook=residual", "codebook.levels=2", "codebook.codebook.vocab_size=16", "codebook.codebook.dim=8",
         "losses=multi_scale_stft", "losses.distances.stft.windows=[256,64]", "tokenizer.sample_rate=8000", "tokenizer.encoder.width=8",
         "tokenizer.encoder.filters=4", "tokenizer.decoder.filters=4", "tokenizer.encoder.ratios=[10,8]", "task.pictures=2",
         "task.sounds=1"]  # fmt: skip
GENERATOR = ["task=generator", "tokenizer=from_bundle", "generator.width=16", "generator.depth=1", "generator.heads=2", "task.pictures=3",
             "task.sounds=2", "task.encode_batch=4"]  # fmt: skip
OWN = {"depth": ["generator.level_width=8", "generator.level_heads=2", "generator.ends=true"]}
HOP, RATE = 80, 8000


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A corpus of tones of 0.2 to 0.32 s, and name -> the folder of a short run: codec, masked and autoregressive over its tokens;
    strided, a codec whose first level has a code for every two frames, and "strided masked"."""
    root = tmp_path_factory.mktemp("sounds")
    choir(root / "corpus", 10)
    data = ["data=sound_folder", f"data.path={root / 'corpus'}", f"data.sample_rate={RATE}", "data.crop=0.1", "data.held_out=0.2"]
    done: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in done:
            codecs = {"codec": CODEC, "strided": STRIDED}
            over, _, generator = name.rpartition(" ")
            own = [*GENERATOR, *OWN.get(generator, ()), f"generator={generator}"]
            words = codecs.get(name) or [*own, f"tokenizer.ckpt={run(over or 'codec') / 'bundle'}"]
            paths = [f"paths.root={root}", f"paths.run={root / name.replace(' ', '_')}", f"paths.cache={root / (over or 'cache')}"]
            done[name] = train(compose("config", [*words, *data, *QUIET, *paths]))
        return done[name]

    run.root, run.data = root, data
    return run


STRIDED = ["tokenizer=snac_24khz", "tokenizer.sample_rate=8000", "losses=multi_scale_stft", "losses.distances.stft.windows=[256,64]",
           "tokenizer.codebook.codebook.vocab_size=16", "tokenizer.codebook.codebook.width=32", "tokenizer.codebook.strides=[2,1]",
           "tokenizer.encoder.filters=8", "tokenizer.encoder.width=32", "tokenizer.encoder.ratios=[8,5]", "tokenizer.decoder.filters=16",
           "tokenizer.decoder.width=32", "tokenizer.decoder.ratios=[8,5]", "task.pictures=2", "task.sounds=1"]  # fmt: skip


def logged(run):
    with open(run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    return {name for row in rows for name, value in row.items() if value}


def test_a_codec_leaves_spectrograms_sounds_and_its_measures(world):
    run = world("codec")
    assert sorted(p.name for p in (run / "pictures").iterdir()) == ["codes_0000003.png", "reconstructions_0000003.png"]
    heard = {p.name: soundfile.info(str(p)) for p in (run / "sounds" / "reconstructions_0000003").iterdir()}
    assert set(heard) == {"00_original.wav", "00_reconstruction.wav"}
    assert len({(info.frames, info.samplerate, info.subtype) for info in heard.values()}) == 1
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    assert -120 < metrics["si_sdr_db"] < 60 and 0 < metrics["mel_distance"] < 50 and "psnr" not in metrics
    assert {"seconds_of_sound_per_second", "tokens_per_second"} <= logged(run)


def test_the_measures_are_those_of_every_held_out_item_alone(world):
    from gentok.data.sound_folder import SoundFolder
    from gentok.metrics.audio import si_sdr

    run, tokenizer = world("codec"), load(world("codec") / "bundle").tokenizer
    held_out = SoundFolder(world.root / "corpus", sample_rate=RATE, held_out=0.2).held_out
    values = []
    for i in range(len(held_out)):
        media = held_out[i].media
        made = tokenizer.decode(tokenizer.encode(media), samples=media.shape[2])
        values.append(si_sdr(made, media))
    measured = json.loads((run / "metrics.json").read_text())["metrics"]["si_sdr_db"]
    assert abs(float(torch.cat(values).mean()) - measured) < 0.05
    assert abs(float(torch.cat(values[:-1]).mean()) - measured) > 0.5  # a mutant: without the last item


@pytest.mark.parametrize("name", ["masked", "autoregressive"])
def test_a_generator_learns_tokens_of_unequal_length_and_is_heard(world, name):
    run = world(name)
    bundle = load(run / "bundle")
    codec = load(world("codec") / "bundle")
    assert bundle.spec.encode_fingerprint == codec.spec.encode_fingerprint
    longest = round((0.2 + 0.013 * 9) * RATE)
    assert bundle.spec.positions == -(-longest // HOP) == bundle.generator.spec.positions
    assert {"tokens_per_second", "seconds_of_sound_per_second", "held_out_bits_per_token"} <= logged(run)
    sounds = sorted((run / "sounds" / "samples_0000003").iterdir())
    assert [p.name for p in sounds] == ["00_sample.wav", "01_sample.wav"]
    held_out = next(TokenDataset(p) for p in (world.root / "cache").glob("held_out-*"))
    assert [soundfile.info(str(p)).frames for p in sounds] == (held_out.__getitems__([0, 1]).lengths * HOP).tolist()


def test_cached_tokens_are_those_of_whole_items_alone(world):
    from gentok.data.sound_folder import SoundFolder

    world("masked")
    codec = load(world("codec") / "bundle").tokenizer
    train_set = SoundFolder(world.root / "corpus", sample_rate=RATE, held_out=0.2, crop=None).train
    cached = next(TokenDataset(p) for p in (world.root / "cache").glob("train-*"))
    assert len(cached) == len(train_set) and len(cached.__getitems__(range(len(cached))).lengths.unique()) > 3
    for i in range(len(train_set)):
        alone, row = codec.encode(train_set[i].media), cached[i]
        n = alone.codes.shape[2]
        assert row.lengths.tolist() == [n] and bool((row.tokens.codes[..., n:] == -1).all())
        assert float((row.tokens.codes[..., :n] == alone.codes).float().mean()) > 0.95  # near ties


def sampled(world, tmp_path, name, *words):
    out = tmp_path / "out"
    sample_to_folder(compose("sample", [f"ckpt={world(name) / 'bundle'}", f"out={out}", "n=3", *words]))
    return out, json.loads((out / "samples.json").read_text())


@pytest.mark.parametrize("name", ["masked", "autoregressive"])
def test_samples_are_wav_files_with_spectrograms_as_long_as_was_asked(world, tmp_path, name):
    out, report = sampled(world, tmp_path, name, "duration=[0.1,0.25]", "condition=low")
    names = {p.name for p in out.iterdir()}
    assert names == {"grid.png", "codes.safetensors", "samples.json", *(f"{i:04d}.{kind}" for i in range(3) for kind in ("png", "wav"))}
    infos = [soundfile.info(str(out / f"{i:04d}.wav")) for i in range(3)]
    assert [info.frames for info in infos] == [800, 2000, 800] and {(i.samplerate, i.subtype) for i in infos} == {(RATE, "PCM_16")}
    assert report["seconds_of_sound"] == [0.1, 0.25, 0.1] and report["seconds_of_sound_per_second"] > 0
    again, _ = sampled(world, tmp_path / "again", name, "duration=[0.1,0.25]", "condition=low", "batch_size=1")
    for i in range(3):
        one, other = (read_sound(folder / f"{i:04d}.wav") for folder in (out, again))
        assert (one - other).abs().max() < 2 / 32768


def test_a_model_that_ends_items_makes_samples_of_its_own_lengths(world, tmp_path):
    from safetensors.torch import load_file

    out, report = sampled(world, tmp_path, "depth", "n=24")
    stored = load_file(out / "codes.safetensors")
    frames = [soundfile.info(str(out / f"{i:04d}.wav")).frames for i in range(24)]
    assert frames == (stored["lengths"].clamp(min=1) * HOP).tolist() and len(set(frames)) > 3
    assert torch.equal(stored["codes"][:, 0] >= 0, torch.arange(stored["codes"].shape[2]) < stored["lengths"][:, None])
    assert report["seconds_of_sound"] == [round(n * HOP / RATE, 3) for n in stored["lengths"].tolist()]
    short, _ = sampled(world, tmp_path / "short", "depth", "duration=0.05")
    assert int(load_file(short / "codes.safetensors")["lengths"].max()) <= 5


@pytest.mark.parametrize("name", ["masked", "autoregressive"])
def test_the_beginning_of_a_known_sound_is_kept(world, tmp_path, name):
    from safetensors.torch import load_file

    known = sing(tmp_path / "known.flac", 44100, seconds=0.2, seed=9)  # of another rate: it is resampled
    forced = ["sampler=autoregressive", "sampler.forced=true"] if name == "autoregressive" else []
    out, report = sampled(world, tmp_path, name, f"known={known}", "keep=0.1s", "duration=0.25", *forced)
    codes = load_file(out / "codes.safetensors")["codes"]
    tokenizer = load(world("codec") / "bundle").tokenizer
    kept = tokenizer.encode(read_sound(known, RATE, 1)[None]).codes[..., :10]
    assert torch.equal(codes[:, :, :10], kept.expand(3, -1, -1)) and bool((codes[:, :, 25:] == -1).all())
    assert len({tuple(row.flatten().tolist()) for row in codes[:, :, 10:25]}) == 3 and report["keep"] == "0.1s"


@pytest.mark.parametrize(
    "words, line",
    [
        (["duration=9"], "this model makes up to 0.32 s"),
        (["duration=0"], "duration=0: of sounds a time in seconds"),
        (["known={known}", "keep=0.3s"], "keep=0.3s: `known` is 0.20 s long"),
        (["known={known}", "keep=left-half"], "keep=left-half: of sounds a time in seconds"),
        (["known={known}", "keep=0.15", "duration=0.1"], "at least as long as what it keeps"),
        (["known={gone}"], "gone.wav cannot be read as a sound: there is no such file"),
    ],
)
def test_mistakes_with_sounds_are_one_line(world, tmp_path, words, line):
    places = {"known": sing(tmp_path / "known.wav", RATE, seconds=0.2), "gone": tmp_path / "gone.wav"}
    with pytest.raises((ValueError, OSError), match=line) as error:
        sampled(world, tmp_path, "masked", *(word.format(**places) for word in words))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words, line",
    [
        ([*CODEC, "data.sample_rate=16000"], "data.sample_rate=16000, tokenizer.sample_rate=8000: set both to the same rate"),
        (["tokenizer=vqgan"], "VQGAN is a tokenizer of pictures, the data are sounds"),
        ([*CODEC, "data=noise", "data.items=8", "data.held_out=2"], "Codec is a tokenizer of sounds, the data are pictures"),
        ([*CODEC, "task.augment.shift=1"], "shifts and flips are of images"),
        ([*CODEC, "data.channels=2"], "this codec takes sound of 1 channel"),
    ],
)
def test_what_does_not_fit_sounds_is_one_line(world, tmp_path, words, line):
    data = [] if "data=noise" in words else world.data
    with pytest.raises(ValueError, match=line) as error:
        train(compose("config", [*data, *words, *QUIET, f"paths.root={tmp_path}", f"paths.run={tmp_path / 'x'}"]))
    assert "\n" not in str(error.value)


def test_a_generator_refuses_sounds_of_another_rate(world, tmp_path):
    words = [*GENERATOR, "generator=masked", f"tokenizer.ckpt={world('codec') / 'bundle'}", *world.data, "data.sample_rate=16000", *QUIET]
    with pytest.raises(ValueError, match="1 channel at 8000 Hz, the data have 1 at 16000 Hz: set data.sample_rate=8000"):
        train(compose("config", [*words, f"paths.root={tmp_path}", f"paths.run={tmp_path / 'x'}"]))


def evaluated(world, tmp_path, name, *words):
    from gentok.evaluate import evaluate

    own = [f"ckpt={world(name) / 'bundle'}", f"out={tmp_path / 'out'}", "progress=false", "trust=[paths]"]
    return evaluate(compose("evaluate", [*own, *words]))


def test_evaluation_of_a_codec_agrees_with_its_run_and_hears_its_levels(world, tmp_path):
    metrics = evaluated(world, tmp_path, "codec", "batch_size=3")["metrics"]
    run = json.loads((world("codec") / "metrics.json").read_text())["metrics"]
    assert abs(metrics["si_sdr_db"] - run["si_sdr_db"]) < 0.05 and abs(metrics["mel_distance"] - run["mel_distance"]) < 0.01
    assert metrics["items"] == 4 and metrics["mel_distance_of_1_levels"] != metrics["mel_distance"]
    frames, seconds = metrics["nominal_bits_per_second"] / 8, metrics["seconds_of_sound"]
    assert RATE / HOP <= frames <= RATE / HOP + 4 / seconds  # 2 levels of 4 bits; a last frame may be filled up
    assert metrics["entropy_bits_per_second"] <= metrics["nominal_bits_per_second"]
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"reconstruction.json", "reconstructions.png", "02_original.wav", "02_reconstruction.wav"} <= names


def test_the_suite_compares_tokenizers_and_one_bad_checkpoint_does_not_end_it(world, tmp_path):
    paths = [world("codec") / "bundle", tmp_path / "nowhere", world("strided") / "bundle", "docs/zoo/mnist5k_vq"]
    words = ["suite=audio_tokenizers", f"ckpts=[{','.join(map(str, paths))}]", f"out={tmp_path / 'suite'}", "progress=false"]
    data = [word.replace(f"sample_rate={RATE}", "sample_rate=16000") for word in world.data]  # above the codecs' own rate
    report = evaluate(compose("evaluate", [*words, *data]))
    codec, strided = (report["rows"][str(path)] for path in (paths[0], paths[2]))
    assert set(report["failed"]) == {str(paths[1]), "docs/zoo/mnist5k_vq"} and all("\n" not in line for line in report["failed"].values())
    assert abs(codec["frames_per_second"] - RATE / HOP) < 3 and abs(codec["kbit_per_second"] - 2 * 4 * RATE / HOP / 1000) < 0.03
    assert codec["coded_kbit_per_second"] < 1.6 * codec["kbit_per_second"] and codec["latency_ms"] == 1000 * HOP / RATE
    assert strided["latency_ms"] is None and "coded_kbit_per_second" not in strided
    first = report["rows"][f"{paths[0]}, first 1"]
    assert first["kbit_per_second"] == pytest.approx(codec["kbit_per_second"] / 2) and "probe_accuracy" in codec
    assert (codec["few_probe_accuracy"] * 8).is_integer()  # the mean of two probes, on four held-out items
    itself = report["rows"]["the sounds themselves"]
    assert itself["mel_distance"] == 0 and itself["si_sdr_db"] > 60 > 10 > codec["si_sdr_db"]
    table = (tmp_path / "suite" / "audio_tokenizers.md").read_text()
    assert str(paths[1]) in table and "could not be measured" in table and (tmp_path / "suite" / "rates.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="none of 1 tokenizers could be measured"):
        evaluate(compose("evaluate", [*words[:1], f"ckpts=[{paths[1]}]", *words[2:], *data]))
    with pytest.raises(ValueError, match="name them"):
        evaluate(compose("evaluate", [words[0], *words[2:], *data]))
    rows = evaluate(compose("evaluate", [words[0], f"ckpts=[{paths[0]}]", *words[2:], *data, "prefixes=[2,5]"]))["rows"]
    assert set(rows) == {"the sounds themselves", str(paths[0])}  # it has two levels: none is asked for that it has not


def test_evaluation_of_a_generator_of_sounds_is_its_likelihood(world, tmp_path):
    metrics = evaluated(world, tmp_path, "autoregressive", "protocol=nll")["metrics"]
    run = json.loads((world("autoregressive") / "metrics.json").read_text())["metrics"]
    assert abs(metrics["bits_per_token"] - run["held_out_bits_per_token"]) < 0.01
    assert abs(metrics["bits_per_second"] - metrics["bits_per_token"] * 2 * RATE / HOP) < 0.01
    with pytest.raises(ValueError, match="protocol=probe is of images; of sounds there are reconstruction, generation, nll"):
        evaluated(world, tmp_path, "codec", "protocol=probe")
    with pytest.raises(ValueError, match="this model is of sounds at 8000 Hz, the data are images"):
        evaluated(world, tmp_path, "codec", "data=noise", "data.items=8", "data.held_out=2")


def test_a_generator_may_train_from_pieces_encoded_anew(world, tmp_path):
    words = [*GENERATOR, "generator=masked", f"tokenizer.ckpt={world('codec') / 'bundle'}", *world.data, "task.views=0", *QUIET]
    run = train(compose("config", [*words, f"paths.root={tmp_path}", f"paths.run={tmp_path / 'x'}"]))
    assert json.loads((run / "metrics.json").read_text())["metrics"]["held_out_bits_per_token"] > 0


def test_describe_counts_a_second_of_sound_and_needs_no_data(capsys):
    words = ["experiment=spoken_digits/codec", "describe=true"]
    train(compose("config", words))
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 1.2e6 < report["tokenizer"] < 2.1e6 and report["tokens"] == 50 * 8 and report["bits"] == 3200


def test_codes_that_span_several_frames_are_kept_and_drawn_whole(world, tmp_path):
    from safetensors.torch import load_file

    spec = load(world("strided masked") / "bundle").spec
    assert spec.strides == (2, 1) and spec.positions == -(-round((0.2 + 0.013 * 9) * RATE) // 80) * 2 and spec.frame_multiple == 2
    known = sing(tmp_path / "known.wav", RATE, seconds=0.2, seed=9)
    out, report = sampled(world, tmp_path, "strided masked", f"known={known}", "keep=0.055s", "duration=0.101")
    codes = load_file(out / "codes.safetensors")["codes"]  # 5 ms a frame: 10 are kept, and there are 22
    expected = load(world("strided") / "bundle").tokenizer.encode(read_sound(known)[None]).codes[..., :10]
    assert torch.equal(codes[..., :10], expected.expand(3, -1, -1)) and report["seconds_of_sound"] == [0.11] * 3
    assert bool((codes[:, 0, :22:2] >= 0).all() and (codes[:, 0, 1::2] == -1).all() and (codes[:, 1, :22] >= 0).all())
    assert bool((codes[:, :, 22:] == -1).all())


@pytest.mark.parametrize("name", ["masked", "depth"])
def test_what_is_generated_is_measured_against_held_out_sounds(world, tmp_path, name):
    words = [f"ckpt={world(name) / 'bundle'}", f"out={tmp_path}", "n=3", "batch_size=2", "progress=false", *world.data]
    report = evaluate(compose("evaluate", words))
    metrics, rows = report["metrics"], json.loads((tmp_path / "samples.json").read_text())
    assert metrics["samples"] == len(rows) == 3 and metrics["bits_per_token"] > 0 and metrics["mel_frechet"] > 0
    assert metrics["seconds_of_sound"] == pytest.approx(sum(row["seconds"] for row in rows), abs=0.01)
    assert metrics["held_out_nearest_training"] > 0 and min(row["distance"] for row in rows) == pytest.approx(
        metrics["nearest_training_least"], abs=1e-3
    )
    assert "word_error_rate" not in metrics  # tones say nothing
    assert {p.name for p in tmp_path.iterdir()} == {"generation.json", "samples.json", "samples.png", "00.wav", "01.wav", "02.wav"}
    if name == "masked":  # as long as the held-out items, in turn
        assert len({row["seconds"] for row in rows[:2]}) == 2
