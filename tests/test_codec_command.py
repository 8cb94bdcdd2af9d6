"""`python -m gentok.codec`: codes and lengths come back, whatever the file; what is broken is a one-line error."""

import numpy as np
import pytest
import soundfile
import torch

from gentok.bundle import build_tokenizer, load, save, stamp
from gentok.cli import compose
from gentok.codec import compress, decompress, run
from gentok.value_checks import check_values

CODEBOOK = ["codebook=residual", "codebook.levels=3", "codebook.codebook.vocab_size=32", "codebook.codebook.dim=8", "codebook.width=null"]
NETWORKS = ["encoder.width=8", "encoder.filters=4", "encoder.ratios=[4,2]", "decoder.filters=4", "sample_rate=8000"]
SMALL = ["tokenizer=codec", "losses=multi_scale_stft", *CODEBOOK, *(f"tokenizer.{word}" for word in NETWORKS)]


@pytest.fixture(scope="module", params=["causal", "ahead"])
def bundle(request, tmp_path_factory):
    config = compose("config", [*SMALL, f"tokenizer.encoder.causal={str(request.param == 'causal').lower()}"])["tokenizer"]
    config["media_shape"] = [1]
    torch.manual_seed(0)
    model = build_tokenizer(config).eval()
    for codebook in model.codebook.books:  # every row in use: without training all map to one code
        for buffer in codebook.state_dict().values():
            if buffer.dim() == 2 and buffer.shape[0] == 32:
                buffer.normal_(std=0.05)
    stamp(model, config)
    path = tmp_path_factory.mktemp(request.param) / "bundle"
    save(path, tokenizer=model, tokenizer_config=config)
    return path


def sound(path, seconds=1.3, rate=11025, channels=2):
    t = np.arange(round(seconds * rate)) / rate
    wave = 0.4 * np.sin(2 * np.pi * 300 * t * (1 + 0.3 * t))[:, None] * np.linspace(1, 0.5, channels)
    soundfile.write(path, wave, rate)
    return path


def settings(bundle, action, source, target, **more):
    config = {**compose("codec", ["action=x", "input=x", "output=x", "ckpt=x", "progress=false"]), "action": action, "input": str(source),
              "output": str(target), "ckpt": str(bundle)}  # fmt: skip
    check_values(config)  # as the command does
    return {**config, **more}


@pytest.mark.parametrize("chunk", [0.1, 0.37, 10])
def test_a_file_comes_back_with_its_length_and_a_stream_has_the_codes_of_the_whole(bundle, tmp_path, chunk):
    from gentok.data.sound_files import read_sound

    source = sound(tmp_path / "in.wav")
    report = compress(settings(bundle, "compress", source, tmp_path / "x.gtk", chunk=chunk))
    decompress(settings(bundle, "decompress", tmp_path / "x.gtk", tmp_path / "out.wav"))
    made, rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    model, media = load(bundle).tokenizer, read_sound(source, 8000, 1)
    assert rate == 8000 and made.shape == (media.shape[1],)
    tokens = model.encode(media[None])
    assert len(tokens.codes.unique()) > 10, "the codes differ"
    want = model.decode(tokens, samples=media.shape[1])[0, 0].numpy()
    if model.latency_samples is not None or chunk == 10:
        assert np.abs(made - want).max() < 2e-4
        assert report["frames"] == tokens.codes.shape[2]
    assert report["bits_per_second"] < report["of_ids_one_by_one"] + 8 * 8 * 30 / 1.3 + 200


def test_fewer_levels_are_smaller_and_decode_as_they_do(bundle, tmp_path):
    source = sound(tmp_path / "in.wav")
    every = compress(settings(bundle, "compress", source, tmp_path / "3.gtk"))
    one = compress(settings(bundle, "compress", source, tmp_path / "1.gtk", levels=1))
    assert one["bits_per_second"] < 0.5 * every["bits_per_second"]
    decompress(settings(bundle, "decompress", tmp_path / "1.gtk", tmp_path / "out.flac"))
    assert soundfile.info(tmp_path / "out.flac").frames == 8000 * 1.3


def test_what_is_broken_is_an_error_and_leaves_no_file(bundle, tmp_path):
    source, made = sound(tmp_path / "in.wav", 0.5), tmp_path / "x.gtk"
    compress(settings(bundle, "compress", source, made, chunk=0.1))
    data = made.read_bytes()
    broken = {"cut": data[:-20], "head": data[:10], "end": data[:-8], "other": b"RIFF" + data}
    for name, content in broken.items():
        message = "no file of" if name == "other" else "cut short"
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            decompress(settings(bundle, "decompress", tmp_path / name, tmp_path / "out.wav"))
        assert not (tmp_path / "out.wav").exists()
    with pytest.raises(ValueError, match="there is no file"):
        decompress(settings(bundle, "decompress", tmp_path / "nowhere.gtk", tmp_path / "out.wav"))
    with pytest.raises(ValueError, match="1 to 3"):
        compress(settings(bundle, "compress", source, made, levels=4))
    with pytest.raises(ValueError):
        compress(settings(bundle, "compress", tmp_path / "nowhere.wav", made))
    assert made.read_bytes() == data


def test_another_tokenizer_is_refused(bundle, tmp_path):
    made, other = tmp_path / "x.gtk", tmp_path / "other"
    compress(settings(bundle, "compress", sound(tmp_path / "in.wav", 0.5), made))
    loaded = load(bundle)
    with torch.no_grad():
        next(loaded.tokenizer.encoder.parameters()).add_(0.1)
    stamp(loaded.tokenizer, loaded.tokenizer_config)
    loaded.save(other)
    with pytest.raises(ValueError, match="another tokenizer"):
        decompress(settings(other, "decompress", made, tmp_path / "out.wav"))


def test_a_folder_is_resynthesised_by_its_names_with_the_lists_of_benchmarks(bundle, tmp_path, capsys):
    place, out = tmp_path / "sounds", tmp_path / "out"
    (place / "a b").mkdir(parents=True)
    names = ["a b/one.wav", "a b/two.flac", "three.ogg"]
    for name in names:
        sound(place / name, 0.3)
    (place / "wrong.wav").write_bytes(b"no sound")
    report = run(settings(bundle, "resynthesize", place, out))
    assert report["sounds"] == 3 and report["unreadable"] == 1 and "left out: wrong.wav: " in capsys.readouterr().out
    found = {str(path.relative_to(out / "sounds")) for path in (out / "sounds").rglob("*.*")}
    assert found == {"a b/one.wav", "a b/two.flac", "three.ogg.wav"}
    lists = [dict(line.split(maxsplit=1) for line in (out / f"{kind}.scp").read_text().splitlines()) for kind in ("gt", "pred")]
    assert list(lists[0]) == list(lists[1]) == ["a_b/one.wav", "a_b/two.flac", "three.ogg"]
    for reference, made in zip(*(each.values() for each in lists)):
        assert soundfile.info(made).samplerate == 8000
        assert abs(soundfile.info(made).duration - soundfile.info(reference).duration) < 1e-3
    compress(settings(bundle, "compress", place / names[0], tmp_path / "x.gtk"))
    decompress(settings(bundle, "decompress", tmp_path / "x.gtk", tmp_path / "x.wav"))
    assert np.array_equal(soundfile.read(tmp_path / "x.wav")[0], soundfile.read(out / "sounds" / names[0])[0])
    for source, target, says in ((place, out, "not empty"), (tmp_path / "no", out, "no folder"), (place, place / "out", "lies in")):
        with pytest.raises(ValueError, match=says):
            run(settings(bundle, "resynthesize", source, target))
