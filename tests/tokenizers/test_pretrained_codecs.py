"""Wrapped codecs of encodec and transformers give what the libraries give, on random weights that use their codebooks."""

import copy
import math

import pytest
import torch
from tokenizer_kit import LOSSES, learns, read

from gentok.build import build
from gentok.bundle import load, pretrained
from gentok.interfaces import Codebook, Tokenizer
from gentok.tokenizers.pretrained.levels import Levels
from gentok.types import ABSENT, UNKNOWN, Batch, Frames, Tokens

pytest.importorskip("encodec")
pytest.importorskip("transformers")

ROWS = 32
SEANET = {"num_filters": 4, "hidden_size": 16, "upsampling_ratios": [4, 2], "codebook_size": ROWS}
DAC = {"model_type": "dac", "encoder_hidden_size": 4, "decoder_hidden_size": 16, "hidden_size": 8}
HUBERT = {"model_type": "hubert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
          "conv_dim": [8, 8], "conv_stride": [4, 2], "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}  # fmt: skip
MODELS = {
    "encodec_package": {"dimension": 16, "n_filters": 4, "ratios": [4, 2], "lstm": 1, "n_q": 4, "bins": ROWS, "sample_rate": 2000},
    "transformers_encodec": {**SEANET, "num_lstm_layers": 1, "target_bandwidths": [1.25, 5.0], "sampling_rate": 2000},
    "transformers_dac": {"encoder_hidden_size": 4, "decoder_hidden_size": 16, "downsampling_ratios": [2, 3], "n_codebooks": 4,
                         "codebook_size": ROWS, "codebook_dim": 4, "sampling_rate": 2000},
    "transformers_mimi": {**SEANET, "num_quantizers": 4, "codebook_dim": 8, "vector_quantization_hidden_dimension": 8,
                          "upsample_groups": 16, "num_hidden_layers": 1, "intermediate_size": 32, "num_attention_heads": 2,
                          "num_key_value_heads": 2, "sampling_rate": 2000, "sliding_window": 6},
    "transformers_xcodec": {
        "target_bandwidths": [1.25, 2.5, 3.75, 5.0], "sample_rate": 2000, "codebook_size": ROWS,
        "acoustic_model_config": {**DAC, "downsampling_ratios": [4, 2], "upsampling_ratios": [4, 2]},
        "semantic_model_config": {**HUBERT, "conv_kernel": [5, 2]},
    },
    "transformers_higgs": {
        "target_bandwidths": [0.32, 0.64, 0.95, 1.27], "sample_rate": 2000, "semantic_sample_rate": 1000, "downsample_factor": 8,
        "codebook_size": ROWS, "codebook_dim": 8,
        "acoustic_model_config": {**DAC, "downsampling_ratios": [4, 4, 2], "upsampling_ratios": [4, 4, 2]},
        "semantic_model_config": {**HUBERT, "conv_kernel": [323, 2]},
    },
}  # fmt: skip
HOPS = {"encodec_package": 8, "transformers_encodec": 8, "transformers_dac": 6, "transformers_mimi": 16, "transformers_xcodec": 8,
        "transformers_higgs": 32}  # fmt: skip
LEVELS = 4
every = pytest.mark.parametrize("name", MODELS)


def sound(batch=3, samples=203, seed=0):
    """Float [B, 1, T] in [-1, 1], smooth and rough."""
    x = torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(seed))
    return (x + x.cumsum(2)).div(4).tanh()


def fill(model):
    """Tables normal at the place and scale of what they code: fresh ones are zeros, or use a row or two."""
    generator = torch.Generator().manual_seed(7)
    z = model.encoder(sound(16, 40 * model.hop, seed=5))
    for branch in model.codebook.branches:
        residual = branch.project_in(z)
        for level in branch.levels:
            y = level.inward(residual).transpose(0, 1).flatten(1)
            spread = torch.linalg.cholesky(y.cov() + 1e-6 * torch.eye(len(y)))
            rows = y.mean(1) + torch.randn(ROWS, len(y), generator=generator) @ spread.T
            book = level.layer._codebook if hasattr(level.layer, "_codebook") else level.layer.codebook
            if hasattr(book, "embed_sum"):
                book.embed_sum.copy_(rows), book.cluster_usage.fill_(1.0)
                book._embed = None
            else:
                (book.weight if hasattr(book, "weight") else book.embed).copy_(rows)
            residual = residual - level.outward(level.looked_up(level.found(level.inward(residual))))


def make(name, **overrides):
    torch.manual_seed(0)
    model = build({**read("tokenizer", name), "losses": LOSSES, "config": MODELS[name], **overrides}, media_shape=(1,)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:  # biases, which are zeros in a fresh model and would hide mistakes
                p.add_(0.1 * torch.randn_like(p))
            elif name.endswith(("dac", "xcodec", "higgs")) and p.shape[0] > 1:  # their start of 0.02 silences networks this narrow
                p.normal_(std=0.5 * p[0].numel() ** -0.5)
        fill(model)
    return model


class Library:
    """The library's own model with the wrapper's weights: what it calls codes and sound."""

    def __init__(self, name, model):
        self.name, self.model = name, model
        if name == "encodec_package":
            from gentok.tokenizers.pretrained.encodec_package import _model, _parametrized

            self.own = _parametrized(_model(MODELS[name])).eval()
            self.own.encoder.load_state_dict(model.encoder.model.state_dict())
            self.own.decoder.load_state_dict(model.decoder.model.state_dict())
            for layer, level in zip(self.own.quantizer.vq.layers, model.codebook.branches[0].levels):
                layer.load_state_dict(level.layer.state_dict())
        else:
            import transformers

            cls = getattr(transformers, model.model_name)
            self.own = cls(cls.config_class(**MODELS[name])).eval()
            for theirs, ours in zip(model.parts_of(self.own, None), (model.encoder, model.codebook, model.decoder)):
                theirs.load_state_dict(ours.state_dict())  # which are the library's modules

    @torch.no_grad()
    def encode(self, x, levels):
        if self.name == "encodec_package":
            self.own.bandwidth = levels * math.log2(ROWS) * self.own.frame_rate / 1000
            return self.own.encode(x)[0][0]
        if self.name == "transformers_encodec":
            bandwidth = levels * 1.25
            self.own.config.target_bandwidths = [bandwidth]
            return self.own.encode(x, bandwidth=bandwidth).audio_codes[0]
        whole = torch.nn.functional.pad(x, (0, -x.shape[2] % HOPS[self.name]))
        if self.name == "transformers_dac":
            return self.own.encode(whole, levels).audio_codes
        if self.name in ("transformers_xcodec", "transformers_higgs"):
            return self.own.encode(whole, MODELS[self.name]["target_bandwidths"][levels - 1]).audio_codes
        return self.own.encode(x, num_quantizers=levels).audio_codes

    @torch.no_grad()
    def decode(self, codes):
        if self.name == "encodec_package":
            return self.own.decode([(codes, None)])
        if self.name == "transformers_encodec":
            return self.own.decode(codes[None], [None]).audio_values
        if self.name == "transformers_dac":
            return self.own.decode(audio_codes=codes).audio_values[:, None]
        return self.own.decode(codes).audio_values


@every
def test_codes_and_sound_are_the_library_s_for_every_length_and_number_of_levels(name):
    model, hop = make(name), HOPS[name]
    theirs = Library(name, model)
    all_codes = theirs.encode(sound(16, 40 * hop), LEVELS)
    assert all(level.unique().numel() >= ROWS / 2 for level in all_codes.unbind(1)), "the test would prove nothing"
    for length in (1, hop - 1, hop, hop + 1, 203):
        x = sound(3, length)
        ours, want = model.encode(x), theirs.encode(x, LEVELS)
        assert ours.codes.shape == want.shape == (3, LEVELS, math.ceil(length / hop)) and torch.equal(ours.codes, want)
        for levels in range(2, LEVELS + 1):
            cut = theirs.encode(x, levels)
            assert torch.equal(ours.codes[:, :levels], cut)
            wave, heard = model.decode(ours, keep=levels, samples=length), theirs.decode(cut)
            silent = length - min(length, heard.shape[2])  # DAC stops short where a ratio is odd
            assert wave.shape == (3, 1, length) and not wave[..., length - silent :].any()
            heard = heard[..., :length].clamp(-1, 1)
            assert (wave[..., : length - silent] - heard).norm() <= 1e-4 * heard.norm()
    assert heard.std() > 1e-3
    assert (all_codes != model.encode(sound(16, 40 * hop)).codes.roll(1, 2)).float().mean() > 0.2  # a mutant


class PartOfTheResidual(Levels):
    def remainder(self, residual, value):
        return super().remainder(residual, 0.7 * value)


class FirstLevelAlone(Levels):
    def lookup(self, codes):
        return super().lookup(codes.masked_fill(torch.arange(codes.shape[1])[:, None] > 0, ABSENT))


class AfterTheFirst(torch.nn.Module):
    """A projection in front of a branch that sees what the branch before it left over: in series, not in parallel."""

    def __init__(self, first, project_in, width):
        super().__init__()
        self.first, self.project_in = Levels([first], width), project_in

    def forward(self, z):
        return self.project_in(z - self.first(z).vectors)


def no_projection_out(model):
    for level in model.codebook.branches[0].levels:
        level.projected = False


def not_in_parallel(model):
    first, second = model.codebook.branches
    second.project_in = AfterTheFirst(first, second.project_in, model.codebook.width)


def last_state_alone(model):
    semantic = model.encoder.model["semantic"]
    model.encoder.states = lambda x, side: semantic(torch.nn.functional.pad(x[:, 0], (side, side))).last_hidden_state


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("transformers_encodec", lambda model: setattr(model.codebook, "__class__", PartOfTheResidual)),
        ("transformers_dac", no_projection_out),
        ("transformers_mimi", not_in_parallel),
        ("encodec_package", lambda model: setattr(model.codebook, "__class__", FirstLevelAlone)),
        ("transformers_xcodec", last_state_alone),
        ("transformers_higgs", lambda model: setattr(model.encoder, "step", 1)),
    ],
    ids=["part_of_the_residual", "no_projection", "not_in_parallel", "first_level_alone", "last_state_alone", "every_frame"],
)
def test_codes_other_than_the_library_s_are_found(name, spoil, monkeypatch):
    model = make(name)
    theirs = Library(name, model)
    spoil(model)
    monkeypatch.setattr("test_pretrained_codecs.make", lambda name: model)
    monkeypatch.setattr("test_pretrained_codecs.Library", lambda name, model: theirs)
    with pytest.raises((AssertionError, RuntimeError, TypeError)) as error:
        test_codes_and_sound_are_the_library_s_for_every_length_and_number_of_levels(name)
    assert "prove nothing" not in str(error.value)


@every
def test_the_contract(name):
    model, x = make(name), sound(2, 10 * HOPS[name])
    tokens = model.encode(x)
    assert isinstance(model, Tokenizer) and isinstance(model.codebook, Codebook) and tokens.spec == model.spec
    assert model.hop == HOPS[name] and model.spec.modality == "audio" and model.spec.sample_rate == 2000 and model.spec.media_shape == (1,)
    assert model.spec.grid == Frames(2000 / HOPS[name]) and model.spec.nested_levels and model.spec.vocab_sizes == (ROWS,) * LEVELS
    out = model(Batch(x, torch.arange(2)))
    assert torch.equal(tokens.validate().codes, out.tokens.codes)
    torch.testing.assert_close(out.reconstruction.clamp(-1, 1), model.decode(tokens), atol=1e-5, rtol=1e-4)
    fewer = make(name, levels=3)
    assert fewer.spec.vocab_sizes == (ROWS,) * 3 and torch.equal(fewer.encode(x).codes, tokens.codes[:, :3])
    with pytest.raises(ValueError, match="level"):
        make(name, levels=9)
    with pytest.raises(ValueError, match="1 channel"):
        model.encode(torch.zeros(1, 2, 100))


@every
def test_a_row_does_not_depend_on_its_neighbours(name):
    model, hop = make(name), HOPS[name]
    x, lengths = sound(3, 5 * hop + 3), torch.tensor([5 * hop + 3, 2 * hop + 1, hop])
    x = x * (torch.arange(x.shape[2]) < lengths[:, None])[:, None]
    tokens = model.encode(x, lengths)
    assert tokens.lengths.tolist() == [6, 3, 1]
    wave = model.decode(tokens, samples=lengths)
    for row, (length, frames) in enumerate(zip(lengths.tolist(), (6, 3, 1))):
        alone = model.encode(x[row : row + 1, :, :length])
        assert torch.equal(alone.codes[0], tokens.codes[row, :, :frames]) and (tokens.codes[row, :, frames:] == ABSENT).all()
        torch.testing.assert_close(wave[row : row + 1, :, :length], model.decode(alone, samples=length), atol=1e-5, rtol=1e-4)
        assert not wave[row, :, length:].any()


@every
def test_the_codebook_is_a_codebook(name):
    book = make(name).codebook
    z = torch.randn(3, book.in_width, 10)
    q = book(z)
    torch.testing.assert_close(book.lookup(q.codes), q.vectors)
    assert not book.lookup(torch.full_like(q.codes, ABSENT)).any()
    total = sum(book.table(k)[q.codes[:, k]] for k in range(LEVELS))
    torch.testing.assert_close(total.transpose(1, 2), q.vectors, atol=1e-5, rtol=1e-4)
    keep = torch.tensor([4, 2, 0])
    cut = book(z, n_levels=keep)
    present = torch.arange(LEVELS)[:, None] < keep[:, None, None]
    assert torch.equal(cut.codes, torch.where(present, q.codes, ABSENT))
    torch.testing.assert_close(cut.vectors, book.lookup(cut.codes))
    if not book.has_nearest:
        with pytest.raises(TypeError, match="no nearest codes"):
            book.nearest(z)
        return
    # vectors of the table's own space, and of the scale of its rows
    v = book.lookup(torch.randint(ROWS, (3, LEVELS, 10)))
    found = book.nearest(v)
    errors = [(book.lookup(torch.where(torch.arange(LEVELS)[:, None] < k, found, ABSENT)) - v).square().mean() for k in range(LEVELS + 1)]
    assert errors[1] < errors[0] and errors[-1] < errors[1]
    given = q.codes.clone()
    given[:, 1:, ::2] = UNKNOWN
    assert torch.equal(book.nearest(v, given)[given >= 0], given[given >= 0])


@every
def test_it_can_be_fine_tuned_and_copied(name):
    model, x = make(name), sound(4, 12 * HOPS[name])
    assert learns(model, x, steps=12, share=0.95)
    assert next(model.encoder.parameters()).grad.abs().sum() > 0 and model.last_layer.grad.abs().sum() > 0
    twin = copy.deepcopy(model).eval()  # as weight averaging does after a step
    assert torch.equal(twin.encode(x).codes, model.eval().encode(x).codes)
    with torch.no_grad():
        for p in twin.codebook.parameters():
            p.add_(1.0)
        for b in twin.codebook.buffers():
            b.add_(1.0)
    assert not torch.equal(twin.codebook.table(0), model.codebook.table(0))  # a copy's codebook is its own


@every
def test_a_saved_model_is_adopted_and_its_bundle_needs_it_no_more(name, tmp_path):
    config = {**read("tokenizer", name), "losses": LOSSES}
    if name == "encodec_package":
        pytest.skip("its weights are one file of one size: see the slow test")
    model, x = make(name), sound(2, 77)
    Library(name, model).own.save_pretrained(tmp_path / "model")
    found = pretrained({**config, "path": str(tmp_path / "model"), "levels": 3}, (1,))
    path = found.save(tmp_path / "bundle")
    (tmp_path / "model").rename(tmp_path / "gone")
    again = load(path)
    want = model.encode(x)
    for other in (found.tokenizer, again.tokenizer):
        assert torch.equal(other.encode(x).codes, want.codes[:, :3])
        cut = Tokens(want.codes[:, :3], other.spec)
        torch.testing.assert_close(other.decode(cut), model.decode(want, keep=3), atol=1e-5, rtol=1e-4)
    assert again.spec == found.spec and again.spec.encode_fingerprint and str(tmp_path) not in (path / "bundle.json").read_text()


@pytest.mark.slow
def test_a_file_of_encodec_s_weights_is_adopted_and_its_bundle_needs_it_no_more(tmp_path):
    from gentok.tokenizers.pretrained.encodec_package import FILE, _model

    torch.manual_seed(0)
    theirs = _model({}).eval()
    for layer in theirs.quantizer.vq.layers:
        torch.nn.init.normal_(layer._codebook.embed, std=0.1)
    torch.save(theirs.state_dict(), tmp_path / FILE)
    x = sound(1, 2000)
    for path in (tmp_path, tmp_path / FILE):
        found = pretrained({**read("tokenizer", "encodec_package"), "losses": None, "path": str(path), "levels": 8}, (1,))
        theirs.bandwidth = 6.0
        with torch.no_grad():
            assert torch.equal(found.tokenizer.encode(x).codes, theirs.encode(x)[0][0])
    again = load(found.save(tmp_path / "bundle"))
    assert torch.equal(again.tokenizer.encode(x).codes, found.tokenizer.encode(x).codes) and again.spec.grid == Frames(75.0)


@every
def test_it_builds_on_the_meta_device(name):
    with torch.device("meta"):
        model = build({**read("tokenizer", name), "losses": None, "config": MODELS[name]}, media_shape=(1, 2000))
    assert all(p.is_meta for p in model.parameters()) and model.spec.grid.n == math.ceil(2000 / HOPS[name])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("transformers_encodec", {"config": {**MODELS["transformers_encodec"], "normalize": True}}),
        ("transformers_encodec", {"config": {**MODELS["transformers_encodec"], "chunk_length_s": 1.0, "overlap": 0.01}}),
        ("encodec_package", {"config": None, "path": "encodec_48khz"}),
        ("encodec_package", {"config": None, "path": "somewhere/encodec_48khz-7e698e3e.th"}),
    ],
)
def test_encodec_of_48_khz_is_refused_in_one_line(name, change):
    with pytest.raises(ValueError, match="sends the scale of every segment beside its codes") as error:
        build({**read("tokenizer", name), "losses": None, "config": MODELS[name], **change}, media_shape=(1,))
    assert "\n" not in str(error.value)


@every
def test_what_is_not_there_is_said_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def no_connection(*args, **options):
        raise OSError("no connection")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", no_connection)
    config = {**read("tokenizer", name), "losses": None}
    with pytest.raises(ValueError, match="got neither"):
        build(config, media_shape=(1,))
    (tmp_path / "empty").mkdir()
    for path in (str(tmp_path / "empty"), "nobody/no-such-model" if name != "encodec_package" else "encodec_24khz"):
        with pytest.raises(FileNotFoundError, match="works without") as error:
            build({**config, "path": path}, media_shape=(1,))
        assert "\n" not in str(error.value) and path in str(error.value)
