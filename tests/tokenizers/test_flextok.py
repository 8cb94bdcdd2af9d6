"""What FlexTok promises: who sees whom, prefixes, the null condition, the flow, tokenizers inside, and what a bundle holds."""

import copy

import pytest
import torch
from tokenizer_kit import batch_of, make, media, noise_of

from gentok.build import build
from gentok.bundle import build_generator, load, save, stamp
from gentok.cli import compose
from gentok.flow.path import interpolate
from gentok.flow.projected import Projected
from gentok.flow.solvers import EulerMaruyama, Heun
from gentok.metrics.image import psnr
from gentok.nn.patches import patchify, positions_2d, unpatchify
from gentok.nn.registers import KEEP_MODES, RegisterDecoder, RegisterEncoder, causal_last, draw_keep
from gentok.nn.transformer import Transformer
from gentok.rng import RowRNG
from gentok.samplers.base import fitting
from gentok.sampling import pick_sampler, sample_tokens
from gentok.types import ABSENT, Class, ClassSpec, Condition, ConditionSpec, Line, Raster, Tokens, TokenSpec

FSQ = {"_target_": "gentok.codebooks.fsq.FSQ", "values": [8, 5, 5, 5], "width": None}
SHAPE = (1, 16, 16)
N = 8


def stirred(**overrides):
    """A small model in eval mode none of whose layers is zero."""
    model = make("flextok", FSQ, decoder_depth=2, encoder_depth=2, **overrides).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.copy_(torch.randn(p.shape, generator=generator) * p.shape[1] ** -0.5)
    return model


# ------------------------------------------------------------------------------------------------------------ who sees whom


def earlier_registers_change(encoder: RegisterEncoder) -> bool:
    """Whether a register's embedding has an effect on the registers before it."""
    x = patchify(media(2), 4)
    n, before = N // 2, encoder(x, (4, 4))
    changed = copy.deepcopy(encoder)
    with torch.no_grad():
        changed.registers[n] += 1.0
    after = changed(x, (4, 4))
    assert not torch.allclose(before[:, n:], after[:, n:], atol=1e-3)
    return not torch.equal(before[:, :n], after[:, :n])


def test_a_register_depends_on_no_later_one():
    assert not earlier_registers_change(stirred().encoder)


def test_patches_that_see_registers_are_found_out():
    encoder = stirred().encoder
    patches = 16
    see = causal_last(patches, N)
    see[:patches, patches:] = True
    encoder.mask = lambda patches, device: see[None, None]
    x = patchify(media(2), 4)
    before = encoder(x, (4, 4))
    with torch.no_grad():
        encoder.registers[N // 2] += 1.0
    assert not torch.allclose(before[:, : N // 2], encoder(x, (4, 4))[:, : N // 2], atol=1e-4)


def test_the_mask_is_causal_last():
    see = causal_last(3, 2).int().tolist()
    assert see == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


# ----------------------------------------------------------------------------------------------------------------- prefixes


def leak(model, k: int) -> float:
    """By how much a picture that is made of the first k tokens changes with the others."""
    tokens = model.encode(media())
    other = tokens.codes.clone()
    other[:, :, k:] = (other[:, :, k:] + 317) % model.spec.vocab
    rng = lambda: RowRNG.of(1, torch.arange(4))  # noqa: E731
    a, b = (model.decode(Tokens(codes, tokens.spec), rng(), keep=k) for codes in (tokens.codes, other))
    return float((a - b).abs().max())


@pytest.mark.parametrize("decoder", ["flow", "regression"])
def test_a_prefix_decides_the_picture_alone(decoder):
    model = stirred(decoder=decoder)
    assert all(leak(model, k) == 0.0 for k in (1, 3, N - 1))
    assert leak(model, 0) == 0.0


def test_tokens_that_are_left_unmasked_are_found_out(monkeypatch):
    model = stirred()
    registers = RegisterDecoder.registers
    monkeypatch.setattr(RegisterDecoder, "registers", lambda self, v, kept, null=None: registers(self, v, torch.ones_like(kept), null))
    assert leak(model, 3) > 1e-3


@pytest.mark.parametrize("decoder", ["flow", "regression"])
def test_absent_positions_are_positions_that_are_not_kept(decoder):
    model = stirred(decoder=decoder)
    tokens = model.encode(media())
    for k in (1, 5):
        assert torch.equal(model.decode(tokens, keep=k), model.decode(tokens.truncate(positions=k)))
    mixed = model.decode(tokens, keep=torch.tensor([1, 8, 3, 5]))
    for row, k in enumerate((1, 8, 3, 5)):
        alone = model.decode(tokens.rows([row]), keep=k)
        torch.testing.assert_close(mixed[row : row + 1], alone, atol=2e-4, rtol=0)


def test_dropped_registers_are_all_one_learned_vector_and_stay():
    decoder = stirred().decoder
    vectors = torch.randn(2, N, 4)
    out = decoder.registers(vectors, torch.arange(N).expand(2, -1) < 3)
    assert out.shape[1] == N and torch.equal(out[:, 3:], decoder.dropped.expand(2, N - 3, -1))
    assert not torch.allclose(out[:, 1], out[:, 2])


def test_training_drops_what_it_says():
    """The gradient with respect to a register is zero where no row kept it, and the rows keep what draw_keep drew."""
    model = stirred()
    x, rng = media(3), noise_of(media(3), 4)
    keep = draw_keep("uniform", N, noise_of(media(3), 4).fork("flow"))
    seen = {}
    registers = model.decoder.registers
    model.decoder.registers = lambda v, kept, null=None: seen.update(kept=kept) or registers(v, kept, null)
    model(batch_of(x), rng)
    assert torch.equal(seen["kept"].sum(1), keep)
    model(batch_of(x))
    assert seen["kept"].all()
    whole = stirred(nested=None)
    assert whole.spec.grid == Line(N) and model.spec.grid == Line(N, nested=True)


@pytest.mark.parametrize("mode", KEEP_MODES)
@pytest.mark.parametrize("registers", [8, 12])
def test_how_many_are_kept_follows_the_law(mode, registers):
    rows = 12_000
    keep = draw_keep(mode, registers, RowRNG.of(3, torch.arange(rows)))
    powers = [2**i for i in range(4)] + ([12] if registers == 12 else [])
    distribution = torch.zeros(registers + 1)
    for k in range(1, registers + 1):
        distribution[{"uniform": k, "rounded": min(p for p in powers if p >= k)}.get(mode, 0)] += 1 / registers
    if mode == "powers":
        distribution = torch.zeros(registers + 1)
        distribution[powers] = 1 / len(powers)
    found = torch.bincount(keep, minlength=registers + 1) / rows
    assert keep.min() >= 1 and keep.max() <= registers
    assert (found - distribution).abs().max() < 5 * (0.25 / rows) ** 0.5
    assert (found[distribution == 0] == 0).all()


# ----------------------------------------------------------------------------------------- the null condition and guidance


def test_the_null_condition_replaces_all_tokens_after_nested_dropout():
    decoder = stirred().decoder
    vectors = torch.randn(2, N, 4)
    out = decoder.registers(vectors, torch.arange(N).expand(2, -1) < 3, torch.tensor([True, False]))
    assert torch.equal(out[0], decoder.null.expand(N, -1))
    assert torch.equal(out[1, 3:], decoder.dropped.expand(N - 3, -1))


def test_guidance_zero_knows_nothing_of_the_tokens_and_one_is_no_guidance():
    model = stirred()
    a, b = model.encode(media(seed=1)), model.encode(media(seed=2))
    rng = lambda: RowRNG.of(1, torch.arange(4))  # noqa: E731
    torch.testing.assert_close(model.decode(a, rng(), guidance=0.0), model.decode(b, rng(), guidance=0.0))
    assert not torch.allclose(model.decode(a, rng()), model.decode(b, rng()), atol=1e-3)
    torch.testing.assert_close(model.decode(a, rng(), guidance=1.0 + 1e-7, apg=False), model.decode(a, rng()), atol=1e-4, rtol=0)


def test_projected_guidance_without_its_parts_decodes_as_plain_guidance():
    model = stirred()
    tokens = model.encode(media())
    plain = model.decode(tokens, guidance=2.0, apg=False)
    torch.testing.assert_close(model.decode(tokens, guidance=2.0, apg=Projected(0.0, float("inf"), 1.0)), plain, atol=1e-4, rtol=0)
    assert not torch.allclose(model.decode(tokens, guidance=2.0, apg=True), plain, atol=1e-3)


# ----------------------------------------------------------------------------------------------------------------- the flow


def test_a_decoder_that_knows_the_truth_has_no_loss_and_gives_the_picture(monkeypatch):
    """Every part around the network is exact: with the velocity towards a known picture, any solver lands on it in any number of steps."""
    model = stirred()
    x = media()

    def truth(noised, t, registers, grid, tap=None):
        return (noised - x) / t.view(-1, 1, 1, 1).to(noised)

    monkeypatch.setattr(model, "_velocity", truth)
    assert float(model(batch_of(x), noise_of(x)).losses["flow"].detach()) < 1e-10
    tokens = model.encode(x)
    for options in ({"steps": 1}, {"steps": 7}):
        torch.testing.assert_close(model.decode(tokens, **options), x, atol=1e-5, rtol=0)


def test_the_loss_is_the_mean_squared_error_of_the_velocity_at_the_drawn_time():
    model = stirred()
    x = media()
    seen = {}
    velocity = model._velocity

    def spy(noised, t, registers, grid, tap=None):
        seen.update(noised=noised, t=t, v=velocity(noised, t, registers, grid, tap))
        return seen["v"]

    model._velocity = spy
    loss = model(batch_of(x), noise_of(x)).losses["flow"]
    t = seen["t"].view(-1, 1, 1, 1).float()
    eps = (seen["noised"] - (1 - t) * x) / t
    torch.testing.assert_close(loss, ((seen["v"] - (eps - x)) ** 2).mean(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(interpolate(x, eps, seen["t"]), seen["noised"], atol=1e-5, rtol=0)


def test_decoding_repeats_from_the_same_noise_and_is_a_function_of_tokens_without():
    model = stirred()
    tokens = model.encode(media())
    rng = lambda seed: RowRNG.of(seed, torch.arange(4))  # noqa: E731
    for options in ({}, {"solver": Heun()}, {"solver": EulerMaruyama(), "steps": 5}):
        assert torch.equal(model.decode(tokens, rng(1), **options), model.decode(tokens, rng(1), **options))
    assert not torch.allclose(model.decode(tokens, rng(1)), model.decode(tokens, rng(2)), atol=1e-2)
    assert torch.equal(model.decode(tokens), model.decode(tokens))


def test_a_row_alone_is_the_row_in_a_batch_also_where_nothing_is_zero():
    model = stirred().double()
    tokens = model.encode(media().double())
    for options in ({}, {"guidance": 3.0, "apg": True}, {"keep": 2}):
        torch.testing.assert_close(model.decode(tokens, **options)[1:2], model.decode(tokens.rows([1]), **options), atol=1e-11, rtol=0)


def test_kinds_of_tokens_are_modulated_by_weights_of_their_own():
    torch.manual_seed(0)
    two, one = Transformer(16, 2, 2, causal=False, adaln=2), Transformer(16, 2, 2, causal=False, adaln=True)
    state = one.state_dict()
    with torch.no_grad():
        for block in one.blocks:
            block.modulation.weight.normal_()
    for key, value in state.items():
        target = two.state_dict()[key]
        target.copy_(value if "modulation" not in key else value.unflatten(0, (6, 1, 16)).expand(6, 2, 16, *value.shape[1:]).flatten(0, 2))
    x, vector = torch.randn(2, 5, 16), torch.randn(2, 16)
    together = two(x, vector=vector, kinds=(3, 2))
    torch.testing.assert_close(together, one(x, vector=vector))
    with torch.no_grad():  # the gate of the last block's second branch, of the second kind
        two.blocks[-1].modulation.bias.view(6, 2, 16)[5, 1] += 1.0
    after = two(x, vector=vector, kinds=(3, 2))
    torch.testing.assert_close(after[:, :3], together[:, :3])
    assert not torch.allclose(after[:, 3:], together[:, 3:], atol=1e-2)


# ------------------------------------------------------------------------------------------------------------ codes and sizes


def test_bfloat16_uses_as_many_codes_as_float32():
    model = make("flextok", FSQ).eval()
    x = media(256)
    plain = model.encode(x).codes.unique().numel()
    with torch.autocast("cpu", torch.bfloat16):
        half = model.encode(x).codes.unique().numel()
    assert plain > 40 and half > 0.9 * plain


def test_patches_come_back_and_positions_are_interpolated():
    x = torch.randn(2, 3, 8, 12)
    assert torch.equal(unpatchify(patchify(x, 4), 4, (2, 3)), x)
    assert torch.equal(patchify(x, 4)[:, 1], x[:, :, :4, 4:8].flatten(1))
    home = positions_2d((4, 4), (4, 4), 16).unflatten(0, (4, 4))
    torch.testing.assert_close(home[1, 2, :4], torch.sin(1.0 * 10000.0 ** (-torch.arange(4) / 4)))  # row 1
    torch.testing.assert_close(home[1, 2, 8:12], torch.sin(2.0 * 10000.0 ** (-torch.arange(4) / 4)))  # column 2
    tall = positions_2d((12, 4), (4, 4), 16).unflatten(0, (12, 4))
    torch.testing.assert_close(tall[1::3], home)  # the middle of three rows stands where the one row stood


def test_sizes_and_settings_that_do_not_fit_are_refused_in_one_line():
    for words, overrides in {
        "decoder=diffusion": {"decoder": "diffusion"},
        "nested=half": {"nested": "half"},
        "multiple of head_width=64": {"head_width": 64},
        "that 5 divides": {"patch": 5},
        "latents must be": {"latents": {"ckpt": "somewhere"}},
    }.items():
        with pytest.raises(ValueError, match=words):
            make("flextok", FSQ, **overrides)
    model = make("flextok", FSQ)
    with pytest.raises(ValueError, match="of a line"):
        model.decode(Tokens(torch.zeros(1, 1, 16, dtype=torch.int64), TokenSpec((1000,), Raster(4, 4))))
    with pytest.raises(ValueError, match="another tokenizer"):
        model.decode(Tokens(torch.zeros(1, 1, N, dtype=torch.int64), TokenSpec((99,), Line(N))))


@pytest.mark.parametrize("name, encoder, decoder", [("d12_d12", 12, 12), ("d18_d18", 18, 18), ("d18_d28", 18, 28)])
def test_published_sizes(name, encoder, decoder):
    """Blocks of width D = 64 depth: 4 D^2 of attention and 8 D^2 of SwiGLU; adaLN adds 6 D^2 for each of two kinds of tokens."""
    config = compose("config", [f"experiment=imagenet256/flextok_{name}"])["tokenizer"]
    with torch.device("meta"):
        model = build(config, media_shape=(3, 256, 256))
    count = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in ("encoder", "decoder")}
    assert count["encoder"] == pytest.approx(encoder * 12 * (64 * encoder) ** 2, rel=0.03)
    assert count["decoder"] == pytest.approx(decoder * 24 * (64 * decoder) ** 2, rel=0.03)
    assert model.spec.vocab_sizes == (64000,) and model.spec.grid == Line(256, nested=True) and model.stride == 16
    tokens = model.encode(torch.empty(1, 3, 256, 256, device="meta"))
    assert model.decode(tokens, steps=1).shape == (1, 3, 256, 256)


# -------------------------------------------------------------------------------------------- tokenizers inside, and teachers


def nested(**overrides):
    inner = {"_target_": "toy_latents.TurnedPatches", "media_shape": list(SHAPE)}
    config = {"_target_": "gentok.tokenizers.flextok.FlexTok", "codebook": FSQ, "latents": inner, "patch": 2, "registers": N,
              "media_shape": list(SHAPE), "encoder_width": 32, "encoder_depth": 1, "decoder_width": 32, "decoder_depth": 2,
              "head_width": 32, "steps": 2, **overrides}  # fmt: skip
    torch.manual_seed(1)
    return config, build(config, trust=("toy_latents",))


def test_a_flow_on_latents_reaches_the_pixels_and_leaves_the_tokenizer_inside_alone(monkeypatch):
    _, model = nested()
    x = media()
    inside = {k: v.clone() for k, v in model.latents.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sum(model.train()(batch_of(x), noise_of(x)).losses.values()).backward()
    optimizer.step()
    assert not model.latents.training and all(torch.equal(v, inside[k]) for k, v in model.latents.state_dict().items())
    z = model.latents.encode(x).values.unflatten(2, (8, 8))
    monkeypatch.setattr(model, "_velocity", lambda noised, t, *rest: (noised - z) / t.view(-1, 1, 1, 1).to(noised))
    torch.testing.assert_close(model.decode(model.encode(x)), x, atol=1e-4, rtol=0)
    assert model.stride == 4 and model.encode(media(1, (1, 8, 24))).spec.media_shape == (1, 8, 24)


def test_a_tokenizer_inside_must_make_latents():
    config, _ = nested()
    with pytest.raises(ValueError, match="makes 16 positions x 1 level"):
        build({**config, "latents": {"_target_": "gentok.tokenizers.flextok.FlexTok", "codebook": FSQ, "media_shape": list(SHAPE),
                                     "encoder_width": 32, "encoder_depth": 1, "decoder_width": 32, "decoder_depth": 1, "head_width": 32,
                                     "registers": 16}}, trust=("toy_latents",))  # fmt: skip


def test_a_bundle_holds_the_tokenizer_inside_and_no_teacher(tmp_path):
    teacher = Teacher()
    config, model = nested(align=0.5, teacher=teacher, teacher_width=3, align_hidden=16)
    del config["teacher"]
    model.eval()
    with torch.no_grad():
        model.latents.rotation.copy_(model.latents.rotation.flip(0))  # not what its constructor makes
    stamp(model, config)
    save(tmp_path / "bundle", tokenizer=model, tokenizer_config=config)
    again = load(tmp_path / "bundle", trust=["toy_latents"]).tokenizer
    tokens = model.encode(media())
    assert torch.equal(tokens.codes, again.encode(media()).codes) and torch.equal(model.decode(tokens), again.decode(tokens))
    assert again.spec == model.spec and not any("teacher" in key for key in model.state_dict())
    out = model(batch_of(media()))
    assert out.losses["align"].requires_grad and "align" not in again(batch_of(media())).losses


class Teacher:
    """A map that depends on the picture: three channels of its means."""

    def __call__(self, x, grid):
        mean = torch.nn.functional.adaptive_avg_pool2d(x, grid)
        return torch.cat((mean, mean**2, 1 - mean), 1)


def test_alignment_pulls_the_decoders_block_towards_the_teacher():
    torch.manual_seed(0)
    model = make("flextok", FSQ, decoder_depth=2, align=1.0, teacher=None, teacher_width=3, align_hidden=16)
    model._teacher.value = Teacher()
    x = media()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    found = []
    for _ in range(15):
        loss = model(batch_of(x), noise_of(x)).losses["align"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    assert found[-1] < found[0] - 0.1 and found[-1] >= -1
    assert model.decoder.transformer.blocks[1].mlp.out.weight.grad.abs().sum() > 0  # not in the first step, whose gates are zero
    assert sum(p.grad.abs().sum() for p in model.encoder.parameters() if p.grad is not None) > 0


# ----------------------------------------------------------------------------------------------------------------- pairing


@pytest.mark.parametrize("name", ["autoregressive", "masked"])
def test_its_tokens_feed_every_generator_and_sampler(name):
    tokenizer = stirred()
    classes = ConditionSpec((("class", ClassSpec(("a", "b"))),))
    config = {**compose("config", [f"generator={name}"])["generator"], "width": 16, "depth": 1, "heads": 2}
    generator = build_generator(config, tokenizer, classes).eval()
    condition = Condition({"class": Class(torch.tensor([0, 1, 0, 1]))})
    tokens = tokenizer.encode(media())
    assert generator.loss(tokens, condition, noise_of(media())).loss.isfinite()
    for cls in fitting(generator):
        sampler = pick_sampler({"_target_": f"{cls.__module__}.{cls.__name__}"}, type(generator))
        drawn = sample_tokens(generator, condition, sampler, rng=noise_of(media())).tokens.validate()
        assert tokenizer.decode(drawn).shape == (4, *SHAPE) and tokenizer.decode(drawn, keep=2).isfinite().all()
    # an autoregressive model may stop at any prefix: the rest is ABSENT
    short = tokens.truncate(positions=3)
    assert (short.codes[:, :, 3:] == ABSENT).all() and tokenizer.decode(short).isfinite().all()


def test_a_regression_decoder_learns_a_batch_by_heart():
    torch.manual_seed(0)
    model = make("flextok", FSQ, decoder="regression")
    x = media()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(150):
        optimizer.zero_grad()
        sum(model(batch_of(x), noise_of(x, step)).losses.values()).backward()
        optimizer.step()
    tokens = model.eval().encode(x)
    by_keep = [float(psnr(model.decode(tokens, keep=k), x).mean()) for k in (1, N)]
    assert by_keep[1] > 13 and by_keep[1] > by_keep[0]
