"""What a sampler reports while it draws: cells that are final, from which sound is played before all of it is drawn."""

from dataclasses import replace

import torch
from kit import SPECS, TabularCausal, TabularMasked, batch_of, cases_of

from gentok.codebooks.residual import ResidualCodebook
from gentok.codebooks.vq import VQ
from gentok.generators.autoregressive import Autoregressive
from gentok.generators.base import Causal, Masked
from gentok.nn.seanet import SEANetDecoder, SEANetEncoder
from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.base import every_sampler, fitting
from gentok.sampling import sample_tokens
from gentok.tokenizers.codec import Codec
from gentok.types import ABSENT, UNKNOWN, Condition, Line, Tokens, TokenSpec


def changed(sampler, model):
    """Whether a cell that was reported changes in a later report or in the result."""
    _, condition, codes, lengths = batch_of(cases_of(model), 4)
    seen = []
    out = sampler(
        model, condition, rng=RowRNG.of(0, range(len(codes))), known=Tokens(codes, model.spec), lengths=lengths,
        on_step=lambda tokens, *_: seen.append(tokens.codes),
    )  # fmt: skip
    after = [*seen[1:], out.tokens.codes]
    return any(bool((then[now != UNKNOWN] != now[now != UNKNOWN]).any()) for now, then in zip(seen, after))


def test_what_is_reported_is_final_unless_the_sampler_revises():
    models = {Causal: TabularCausal(SPECS["k2"]), Masked: TabularMasked(SPECS["k1"])}
    checked = {}
    for capability, model in models.items():
        for cls in fitting(model):
            if cls.requires is capability:
                checked[cls.__name__] = changed(cls(), model), cls.revises
    assert len(checked) >= 5
    assert all(revises for was_changed, revises in checked.values() if was_changed), checked
    assert {name for name, (_, revises) in checked.items() if revises} <= {name for name, (was, _) in checked.items() if was}, checked
    assert any(revises for _, revises in checked.values()) and any(cls.revises for cls in every_sampler())


def test_finished_counts_whole_positions_from_the_left():
    spec = TokenSpec((3, 3), Line(4))
    codes = torch.tensor([[[0, 1, -2, 2], [0, 1, 2, 2]], [[0, 1, 2, ABSENT], [0, 1, 2, ABSENT]], [[UNKNOWN] * 4, [1] * 4]])
    assert Tokens(codes, spec).finished.tolist() == [2, 4, 0]


def causal_codec():
    """A small codec without look-ahead, of hop 6, three levels and 100 frames a second, with a delayed model of 12 of its frames."""
    torch.manual_seed(0)
    parts = {"channels": 1, "width": 8, "filters": 4, "ratios": (3, 2), "memory_layers": 1}
    codec = Codec(SEANetEncoder(**parts), ResidualCodebook(VQ(32, 8), 3), SEANetDecoder(**parts), 600).eval().double()
    spec = replace(codec.spec, grid=replace(codec.spec.grid, n=12))
    model = Autoregressive(spec, layout="delayed", width=16, depth=1, heads=2).eval().double()
    return codec, model


def test_sound_is_decoded_while_the_rest_is_drawn():
    """The example of docs/decisions/samplers.md."""
    codec, model = causal_codec()
    stream, played, heard = codec.stream(batch=2), 0, []

    def play(tokens, step, steps):
        nonlocal played
        ready = int(tokens.finished.min())
        if ready > played:
            heard.append((step, stream.decode(Tokens(tokens.codes[:, :, played:ready], codec.spec))))
            played = ready

    out = sample_tokens(model, Condition(), AutoregressiveSampler(), rng=RowRNG.of(0, [0, 1]), on_step=play)
    heard.append((None, stream.flush()[1]))
    assert [step for step, _ in heard[:3]] == [3, 4, 5]  # the first frame is whole once its third level was drawn
    whole = codec.decode(Tokens(out.tokens.codes, codec.spec))
    sound = torch.cat([part for _, part in heard], 2)
    assert whole.shape[2] == 12 * 6 and torch.allclose(sound[..., : whole.shape[2]], whole, atol=1e-10)
