"""The parity of EnCodec: the codes and the sound of the `encodec` package and of transformers, and their weights read from files."""

from __future__ import annotations

import pytest
import torch
from tokenizer_kit import read

from gentok.build import build
from gentok.bundle import load, pretrained
from gentok.cli import compose
from gentok.nn import seanet
from gentok.nn.conv1d import Conv, Transposed
from gentok.tokenizers.pretrained.encodec import EnCodec
from gentok.types import Tokens

encodec = pytest.importorskip("encodec")
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")

HOP, LEVELS = 320, 32
LENGTHS = (1, HOP - 1, HOP, HOP + 1, 7 * HOP + 13)


def sound(length: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Sines and noise, float [batch, 1, length]."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(length) / 24000
    pitch = 80 + 800 * torch.rand(batch, 4, 1, generator=generator)
    return (torch.sin(2 * torch.pi * pitch * t).mean(1, keepdim=True) + 0.1 * torch.randn(batch, 1, length, generator=generator)) / 2


def ours(name: str = "encodec_24khz", **changes):
    return build({**read("tokenizer", name), "losses": None, **changes}).eval()


@torch.no_grad()
def fill_books(books: list[torch.Tensor], z: torch.Tensor) -> None:
    """Rows drawn at random at the place and scale of what each level sees: fresh tables are zeros, of which only one row is used."""
    residual = z.transpose(1, 2).reshape(-1, z.shape[1])
    for level, rows in enumerate(books):
        generator = torch.Generator().manual_seed(level)
        rng = torch.randn(rows.shape, generator=generator) * residual.std(0) * 0.7
        rows.copy_(residual[torch.randint(len(residual), (len(rows),), generator=generator)] + rng)
        residual = residual - rows[torch.cdist(residual, rows).argmin(1)]


@pytest.fixture(scope="module")
def reference():
    """The package's model at 24 kHz with random weights, moved away from their start, and books of which more than half is used."""
    torch.manual_seed(0)
    model = encodec.EncodecModel.encodec_model_24khz(pretrained=False)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + 0.1 * torch.randn_like(p))
        fill_books([layer.codebook for layer in model.quantizer.vq.layers], model.encoder(sound(24000, 12, seed=5)))
    return model


@pytest.fixture(scope="module")
def model(reference):
    codec = ours()
    codec.load_state_dict(EnCodec.renamed(reference.state_dict(), LEVELS))
    return codec


@torch.no_grad()
def flips(model, x, mine, theirs) -> int:
    """Frames of which a code differs: at the first level that does (later ones then code another residual), which must be a near-tie."""
    z, tables, found = model.encoder(x)[0].T.double(), [model.codebook.table(k).double() for k in range(mine.shape[1])], 0
    for n in (mine != theirs).any(1)[0].nonzero()[:, 0].tolist():
        first = int((mine[0, :, n] != theirs[0, :, n]).nonzero()[0])
        residual = z[n] - sum(tables[k][mine[0, k, n]] for k in range(first))
        a, b = ((residual - tables[first][codes[0, first, n]]).norm() for codes in (mine, theirs))
        assert abs(a / b - 1) < 1e-3, f"frame {n}, level {first}: distances {a} and {b} are no near-tie"
        found += 1
    return found


@torch.no_grad()
def differences(model, reference, lengths, levels=(1, 2, 8, 32)) -> tuple[float, float]:
    """(first differences of frames as a share of the codes, largest difference of the sound of the reference's codes), over lengths and
    numbers of levels."""
    wrong = total = 0
    worst = 0.0
    for length in lengths:
        x = sound(length, seed=length)
        tokens = model.encode(x)
        for k in levels:
            reference.set_target_bandwidth(0.75 * k)
            ((codes, _),) = reference.encode(x)
            assert codes.shape == (1, k, -(-length // HOP)) and tokens.codes.shape[2] == codes.shape[2]
            wrong, total = wrong + flips(model, x, tokens.codes[:, :k], codes), total + codes.numel()
            full = torch.nn.functional.pad(codes, (0, 0, 0, LEVELS - k), value=-1)
            theirs = reference.decode([(codes, None)])
            mine = model.decode(Tokens(full, tokens.spec), keep=k)
            assert mine.shape == theirs.shape and theirs.abs().max() < 1
            worst = max(worst, float((mine - theirs).abs().max()))
            assert torch.equal(model.decode(Tokens(full, tokens.spec), samples=length), mine[..., :length])
    return wrong / total, worst


def test_codes_and_sound_are_those_of_the_encodec_package(model, reference):
    reference.target_bandwidths = [0.75 * k for k in range(1, LEVELS + 1)]
    used = model.encode(sound(24000, 4, seed=9)).codes
    assert min(len(level.unique()) for level in used.unbind(1)) > 100 and used[:, 0].float().std() > 100, "the test would prove nothing"
    wrong, worst = differences(model, reference, LENGTHS)
    assert wrong < 1e-3 and worst < 1e-5, (wrong, worst)


@pytest.mark.slow
def test_every_number_of_levels(model, reference):
    reference.target_bandwidths = [0.75 * k for k in range(1, LEVELS + 1)]
    wrong, worst = differences(model, reference, (HOP + 1,), levels=range(1, LEVELS + 1))
    assert wrong < 1e-3 and worst < 1e-5, (wrong, worst)
    used = model.encode(sound(24000, 24, seed=11)).codes
    assert min(len(level.unique()) for level in used.unbind(1)) > 300, "too few of the rows are used"


@pytest.mark.slow
def test_ten_seconds(model, reference):
    reference.target_bandwidths = [0.75 * k for k in range(1, LEVELS + 1)]
    wrong, worst = differences(model, reference, (10 * 24000,), levels=(2, 32))
    assert wrong < 1e-3 and worst < 1e-5, (wrong, worst)


class LooksAhead(Conv):
    """All of the padding on the right."""

    def forward(self, x):
        return super().forward(x.roll(-self.around, 2)) if self.causal else super().forward(x)


class UnfilledWindow(Conv):
    """The last window is not filled up."""

    def forward(self, x):
        return super().forward(x[..., : x.shape[2] - x.shape[2] % self.stride])


class LeftTrimmed(Transposed):
    """What is too much is cut on the left."""

    def forward(self, x):
        return super().forward(x).roll(self.over, 2)


def with_class(cls):
    def spoil(codec):
        for module in codec.modules():
            if type(module) is cls.__base__:
                module.__class__ = cls

    return spoil


def zeros(codec):
    for module in codec.modules():
        if isinstance(module, Conv):
            module.padding = "zero"


def identity(codec):
    for module in codec.modules():
        if isinstance(module, seanet.Unit):
            module.shortcut = torch.nn.Identity()


@pytest.mark.parametrize("spoil", [with_class(LooksAhead), with_class(UnfilledWindow), zeros, with_class(LeftTrimmed), identity],
                         ids=["right_padding", "no_extra", "zeros", "left_trim", "identity"])  # fmt: skip
def test_other_networks_are_found(spoil, reference):
    reference.target_bandwidths = [0.75 * k for k in range(1, LEVELS + 1)]
    codec = ours()
    codec.load_state_dict(EnCodec.renamed(reference.state_dict(), LEVELS))
    spoil(codec)
    try:
        wrong, worst = differences(codec, reference, (HOP + 1,), levels=(8,))
    except (AssertionError, RuntimeError):  # of another shape
        return
    assert wrong > 1e-2 or worst > 1e-3, (wrong, worst)


def test_ratios_in_the_wrong_order_are_found(reference):
    encoder = read("tokenizer", "encodec_24khz")["encoder"]
    with pytest.raises(RuntimeError):  # kernels of other sizes
        ours(encoder={**encoder, "ratios": encoder["ratios"][::-1]}).load_state_dict(EnCodec.renamed(reference.state_dict(), LEVELS))


def test_the_parameters_are_as_many_as_published():
    """14.9 M at 24 kHz; at 32 kHz, of which no number is published, as many as in the model of transformers."""
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in ours(name).parameters()) for name in ("encodec_24khz", "encodec_32khz")}
    assert abs(sizes["encodec_24khz"] / 14.9e6 - 1) < 0.005
    transformers = pytest.importorskip("transformers")
    config = transformers.EncodecConfig(
        upsampling_ratios=[8, 5, 4, 4], target_bandwidths=[2.2], num_filters=64, sampling_rate=32000, codebook_size=2048,
        use_causal_conv=False, use_conv_shortcut=False, pad_mode="constant",
    )  # fmt: skip
    with torch.device("meta"):
        assert sizes["encodec_32khz"] == sum(p.numel() for p in transformers.EncodecModel(config).parameters())


def test_the_model_of_musicgen_is_that_of_transformers(tmp_path):
    """Without look-ahead trimmed, identity shortcuts and zeros: at a sixteenth of the width, from a folder of save_pretrained."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.EncodecModel(
        transformers.EncodecConfig(
            upsampling_ratios=[8, 5, 4, 4], target_bandwidths=[2.2], num_filters=4, hidden_size=16, sampling_rate=32000,
            codebook_size=2048, use_causal_conv=False, use_conv_shortcut=False, pad_mode="constant",
        )
    ).eval()  # fmt: skip
    fill_books([layer.codebook.embed for layer in theirs.quantizer.layers], theirs.encoder(sound(64000, 2)))
    theirs.save_pretrained(tmp_path)
    config = read("tokenizer", "encodec_32khz")
    for part in ("encoder", "decoder"):
        config[part] |= {"filters": 4, "width": 16}
    config["codebook"]["codebook"]["dim"] = 16
    mine = build({**config, "losses": None, "weights": str(tmp_path)}).eval()
    for length in (1, 639, 640, 641, 6400):
        x = sound(length)
        with torch.no_grad():
            codes = theirs.encode(x).audio_codes[0]
            media = theirs.decode(codes[None], [None])[0]
        tokens = mine.encode(x)
        assert (tokens.codes != codes).float().mean() < 1e-3 and len(codes.unique()) > 3
        torch.testing.assert_close(mine.decode(Tokens(codes, tokens.spec)), media, atol=1e-5, rtol=0)


# -------------------------------------------------------------------------------------------------------------------- files


def test_a_released_file_becomes_a_bundle(model, reference, tmp_path):
    """As audiocraft wraps it, in a folder; the bundle names no file and gives the same codes. Fewer levels are the first."""
    torch.save({"best_state": reference.state_dict(), "xp.cfg": "a: 1"}, tmp_path / "compression_state_dict.bin")
    config = compose("adopt", ["tokenizer=encodec_24khz", f"tokenizer.weights={tmp_path}", "out=x"])["tokenizer"]
    config["codebook"]["levels"] = 2
    bundle = pretrained(config, [1])
    assert bundle.tokenizer_config["weights"] is None
    bundle.save(tmp_path / "bundle")
    again = load(tmp_path / "bundle")
    x = sound(2000)
    assert torch.equal(again.tokenizer.encode(x).codes, model.encode(x).codes[:, :2])
    assert again.spec.encode_fingerprint and again.spec.sample_rate == 24000 and again.spec.grid.rate_hz == 75


def test_training_goes_on_from_the_rows_as_they_are(reference):
    """Sums are rows * usage, so that a step moves a row by its own hundredth and by nothing else; also where a release knows no usage."""
    state = reference.state_dict()
    z = reference.encoder(sound(4800)).detach()
    for known in (torch.full((1024,), 3.0), torch.zeros(1024)):
        at = "quantizer.vq.layers.0._codebook."
        own = EnCodec.renamed({at + "embed": state[at + "embed"], at + "cluster_size": known}, 1)
        book = ours().codebook.books[0].train()
        book.load_state_dict({key.removeprefix("codebook.books.0."): value for key, value in own.items()})
        codes = book(z).codes.flatten()
        hits, before = torch.bincount(codes, minlength=1024), state[at + "embed"]
        moved = (book.weight - before).norm(dim=1)
        assert moved[hits == 0].max() < 1e-5 * before.norm(dim=1).max() and moved[hits > 0].max() > 0
        share = 0.01 * hits / (0.99 * known.clamp(min=1) + 0.01 * hits)  # of a row that is now the mean of what hit it
        means = torch.zeros_like(before).index_add_(0, codes, z[0].T) / hits.clamp(min=1)[:, None]
        expected = before + share[:, None] * (means - before) * (hits > 0)[:, None]
        torch.testing.assert_close(book.weight, expected, atol=1e-5, rtol=1e-4)


def test_a_wrong_file_is_refused_in_one_line(model, reference, tmp_path):
    codec = ours()
    (tmp_path / "text.th").write_text("not weights")
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.th")
    torch.save(encodec.EncodecModel.encodec_model_48khz(pretrained=False).state_dict(), tmp_path / "48.th")
    state = reference.state_dict()
    torch.save({k: v for k, v in state.items() if ".layers.31." not in k}, tmp_path / "few.th")
    torch.save({k: v[..., :4] if k == "encoder.model.0.conv.conv.weight_v" else v for k, v in state.items()}, tmp_path / "shape.th")
    torch.save({**state, "encoder.model.99.conv.conv.bias": torch.zeros(1)}, tmp_path / "more.th")
    torch.save({**state, "spare": torch.zeros(1)}, tmp_path / "spare.th")
    (tmp_path / "empty").mkdir()
    for name, words in {
        "nowhere.th": "no EnCodec weights at",
        "empty": "holds no EnCodec weights",
        "text.th": "damaged, or something else",
        "other.th": "holds no EnCodec model",
        "48.th": "sends a scale beside the codes",
        "few.th": "lacks 4 tensor.*codebook.books.31",
        "shape.th": r"\(32, 1, 4\) there and \(32, 1, 7\) here",
        "more.th": "has, beyond this codec, 1 tensor",
        "spare.th": "has, beyond this codec, 1 tensor, such as spare",
    }.items():
        with pytest.raises((ValueError, OSError), match=words) as error:
            codec.load_weights(tmp_path / name)
        assert "\n" not in str(error.value)
