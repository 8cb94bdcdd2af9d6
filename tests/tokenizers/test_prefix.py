"""A prefix is the first part of the whole's code, decodes as the whole decodes it, and its codebook is that of the first levels."""

import math

import pytest
import torch
from tokenizer_kit import make, media_of, read

from gentok.build import build
from gentok.bundle import build_generator, load, pretrained, save
from gentok.rng import RowRNG
from gentok.sampling import pick_sampler, sample_tokens
from gentok.tokenizers.prefix import FirstLevels, Prefix
from gentok.types import UNKNOWN, Condition, ConditionSpec, Line, Tokens

RESIDUAL = {"_target_": "gentok.codebooks.residual.ResidualCodebook", "levels": 3, "level_dropout": 0.0,
            "codebook": {"_target_": "gentok.codebooks.vq.VQ", "vocab_size": 16, "dim": 8, "normalize": False}}  # fmt: skip
PROJECTED = {**read("codebook", "residual_factorized"), "levels": 3}
WHOLES = {
    "pictures": ("vqgan", RESIDUAL), "sounds": ("codec", RESIDUAL),
    "projections by level": ("codec", PROJECTED), "registers": ("flextok", None),
}  # fmt: skip


def whole_of(name):
    tokenizer, codebook = WHOLES[name]
    model = make(tokenizer, codebook=codebook).eval()
    with torch.no_grad():  # rows of untrained books lie too near to each other to be told apart
        for p in model.codebook.parameters():
            p.normal_(generator=torch.Generator().manual_seed(p.numel()))
    return model


@pytest.mark.parametrize("name", sorted(WHOLES))
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_it_is_the_first_part_of_the_code_and_decodes_as_the_whole_decodes_that(name, keep):
    whole = whole_of(name)
    part, media = Prefix(whole, keep), media_of(whole)
    mine, theirs = part.encode(media).validate(), whole.encode(media)
    line = isinstance(whole.spec.grid, Line)
    assert torch.equal(mine.codes, theirs.codes[:, :, :keep] if line else theirs.codes[:, :keep])
    assert mine.spec.vocab_sizes == part.spec.vocab_sizes
    assert math.isclose(part.spec.bits, whole.spec.bits * keep / whole.spec.prefixes)  # levels, and tokens, are of one size here
    rng = RowRNG.of(0, torch.arange(len(media)))
    assert torch.equal(part.decode(mine, rng), whole.decode(theirs.prefix(keep), RowRNG.of(0, torch.arange(len(media)))))
    assert part.spec.prefixes == keep and part.generative == getattr(whole, "generative", False)


def test_rows_that_differ_in_length_keep_their_ends():
    whole = whole_of("sounds")
    media, lengths = media_of(whole), torch.tensor([0, 3, 17, 64])
    mine, theirs = Prefix(whole, 2).encode(media, lengths), whole.encode(media, lengths)
    assert torch.equal(mine.codes, theirs.codes[:, :2]) and torch.equal(mine.lengths, theirs.lengths)
    assert torch.equal(Prefix(whole, 2).decode(mine), whole.decode(theirs, keep=2))


@pytest.mark.parametrize("name", ["pictures", "projections by level"])
def test_its_codebook_is_that_of_the_first_levels(name):
    whole = whole_of(name)
    book = Prefix(whole, 2).codebook
    codes = torch.randint(16, (3, 2, 5), generator=torch.Generator().manual_seed(0))
    vectors = book.lookup(codes)
    tables = [book.table(k) for k in range(2)]
    added = sum(table[codes[:, k]] for k, table in enumerate(tables)).transpose(1, 2)
    assert vectors.shape == (3, book.width, 5) and torch.allclose(added, vectors, atol=1e-4)
    assert torch.equal(book.nearest(vectors), whole.codebook.nearest(vectors)[:, :2])
    given = codes.clone()
    given[:, 1] = UNKNOWN
    filled = book.nearest(vectors, given)
    assert torch.equal(filled[:, 0], codes[:, 0])
    again = (book.lookup(filled) - vectors).square().sum(1)
    others = torch.stack(
        [(book.lookup(torch.stack((codes[:, 0], torch.full_like(codes[:, 0], v)), 1)) - vectors).square().sum(1) for v in range(16)]
    )
    assert torch.allclose(again, others.min(0).values, atol=1e-4)  # the second level's nearest row, whatever the third would add
    with pytest.raises(ValueError, match="first 2 levels"):
        book.table(2)


def test_a_bundle_gives_the_prefix_and_every_keep_is_a_tokenizer_of_its_own(tmp_path):
    config = {**read("tokenizer", "vqgan"), "codebook": RESIDUAL, "media_shape": [1, 16, 16], "losses": None, "width": 8}
    torch.manual_seed(0)
    save(tmp_path / "whole", tokenizer=build(config).eval(), tokenizer_config=config)
    settings = {**read("tokenizer", "prefix"), "whole": {"ckpt": str(tmp_path / "whole")}}
    cut = {keep: pretrained({**settings, "keep": keep}, (1, 16, 16)) for keep in (1, 2, 3)}
    prints = {bundle.spec.encode_fingerprint for bundle in cut.values()} | {load(tmp_path / "whole").spec.encode_fingerprint}
    assert len(prints) == 4
    cut[2].save(tmp_path / "cut")
    again, media = load(tmp_path / "cut"), torch.rand(2, 1, 16, 16)
    assert again.spec == cut[2].spec and again.spec.levels == 2
    tokens = again.tokenizer.encode(media)
    assert torch.equal(tokens.codes, load(tmp_path / "whole").tokenizer.encode(media).codes[:, :2])


@pytest.mark.parametrize("tokenizer, codebook, keep, says", [
    ("vqgan", RESIDUAL, 4, "has levels 1 to 3"),
    ("vqgan", RESIDUAL, 0, "expected a number above 0"),
    ("vqgan", None, 1, "no prefix that is a code"),
    ("flextok", None, 9, "has tokens 1 to 8"),
])  # fmt: skip
def test_what_is_no_prefix_is_refused_in_one_line(tokenizer, codebook, keep, says):
    with pytest.raises(ValueError, match=says) as error:
        Prefix(make(tokenizer, codebook=codebook), keep)
    assert "\n" not in str(error.value)


def test_tokens_of_another_tokenizer_are_refused_and_so_is_a_configuration_without_a_bundle():
    whole = whole_of("pictures")
    tokens = whole.encode(media_of(whole))
    with pytest.raises(ValueError, match="of another tokenizer"):
        Prefix(whole, 2).decode(tokens)
    line = Prefix(whole_of("registers"), 3)
    longer = line.whole.encode(media_of(line.whole))
    with pytest.raises(ValueError, match="has 3 tokens on its line; got 8"):
        line.decode(longer)
    with pytest.raises(ValueError, match="tokenizer.whole.ckpt=BUNDLE"):
        Prefix({"ckpt": None}, 2)
    with pytest.raises(ValueError, match="channel"):
        Prefix(whole, 2, (3, 16, 16))


def test_a_prefix_that_forgets_to_leave_levels_out_is_found_out():
    """The mutant of the first property: decoding with the last level's first row in place of nothing."""
    whole = whole_of("sounds")
    part, media = Prefix(whole, 2), media_of(whole)
    tokens = part.encode(media)
    filled = torch.cat((tokens.codes, torch.zeros_like(tokens.codes[:, :1])), 1)
    wrong = whole.decode(Tokens(filled, whole.spec))
    assert not torch.allclose(wrong, whole.decode(whole.encode(media), keep=2), atol=1e-4)
    assert isinstance(part.codebook, FirstLevels)


def test_a_generator_of_code_vectors_takes_its_codebook():
    whole = whole_of("pictures")
    part = Prefix(whole, 2)
    config = {**read("generator", "resgen"), "width": 16, "depth": 1, "heads": 2, "components": 4, "rank": 2}
    generator = build_generator(config, part, ConditionSpec())
    tokens = part.encode(media_of(whole))
    loss = generator.loss(tokens, Condition({}), RowRNG.of(0, torch.arange(tokens.batch))).loss
    assert loss.isfinite()
    sampler = pick_sampler({"_target_": "gentok.samplers.resgen.ResGenSampler", "steps": 2}, type(generator))
    output = sample_tokens(generator, Condition({}), sampler, rng=RowRNG.of(1, torch.arange(2)))
    assert output.tokens.validate().codes.shape == (2, 2, whole.spec.positions)
