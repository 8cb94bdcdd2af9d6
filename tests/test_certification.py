"""What certify says of samplers and models of gentok's, of transformers', of diffusers' and of a user's own."""

import subprocess
import sys
import textwrap

import pytest
import torch
from certified_others import (
    BEGIN,
    CAUSAL,
    OFFSET,
    POSITIONS,
    SPEC,
    VOCAB,
    Joint,
    amused,
    causal,
    function_of,
    generate,
    language_model,
    masked,
)  # fmt: skip

import gentok
from gentok.certification import causal_log_p, draws_of
from gentok.generators.functions import CausalFunction, MaskedFunction
from gentok.rng import RowRNG
from gentok.samplers.autoregressive import AutoregressiveSampler
from gentok.samplers.guided import guided
from gentok.samplers.halton import Halton
from gentok.samplers.jacobi import Jacobi
from gentok.samplers.maskgit import MaskGIT
from gentok.samplers.speculative import Speculative
from gentok.types import Class, ClassSpec, Condition, ConditionSpec, Line, Tokens, TokenSpec


@pytest.fixture(scope="module")
def lm():
    pytest.importorskip("transformers")
    return language_model()


@pytest.fixture(scope="module")
def model(lm):
    return function_of(lm)


@pytest.mark.parametrize("sampler", CAUSAL.values(), ids=CAUSAL)
def test_every_causal_sampler_is_exact_on_a_model_of_transformers(lm, model, sampler):
    found = causal(draws_of(sampler, model), lm)
    assert found.agrees and found.sequences == 64 and abs(found.total - 1) < 1e-9, str(found)
    assert found.distance < 2 * found.floor and str(found).startswith("exact to the floor")


def test_drafts_of_another_function_leave_the_distribution_as_it_is(model):
    drafts = CausalFunction(lambda ids: torch.nn.functional.one_hot((ids + 1) % 7, 7).float(), SPEC, BEGIN, OFFSET)
    sampler = Speculative(ckpt=drafts, window=3, branches=2)
    assert gentok.certify(draws_of(sampler, model), causal_log_p(model), VOCAB, POSITIONS, n=3000).agrees


def test_the_generate_of_transformers_is_exact_where_its_filters_are_off_and_certify_notices_them(lm):
    assert causal(generate(lm), lm).agrees
    biased = causal(generate(lm, temperature=0.8), lm)
    assert not biased.agrees and biased.distance > 2 * biased.floor and str(biased).startswith("not the model's distribution")
    assert not causal(generate(lm, top_k=2), lm, 1000).agrees


def test_masked_samplers_and_that_of_diffusers_at_their_distance():
    pytest.importorskip("diffusers")
    joint = Joint()
    model = MaskedFunction(joint.logits, SPEC, mask=VOCAB)
    exact, maskgit = (masked(draws_of(sampler, model), joint) for sampler in (Halton(steps=3), MaskGIT(steps=2)))
    theirs = masked(amused(joint), joint)
    assert exact.agrees and not maskgit.agrees and not theirs.agrees
    assert min(maskgit.distance, theirs.distance) > 2 * exact.distance, (maskgit, theirs)


def test_a_function_with_conditions_is_guided_and_its_rows_join_and_leave():
    classes = ConditionSpec((("class", ClassSpec(("a", "b"))),))
    table = torch.randn(3, VOCAB + 1, VOCAB, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def logits(ids, condition):
        return table[condition.parts["class"].ids[:, None], ids]

    model = CausalFunction(logits, SPEC, begin=VOCAB, condition_spec=classes)
    condition = Condition({"class": Class(torch.tensor([1]))})
    wanted = CausalFunction(lambda ids: (table[-1, ids] + 2 * (table[1, ids] - table[-1, ids])), SPEC, begin=VOCAB)
    sampler = Jacobi(window=2)
    found = gentok.certify(draws_of(sampler, guided(model, 2.0), condition), causal_log_p(wanted), VOCAB, POSITIONS, n=3000)
    assert found.agrees, str(found)
    both = Condition({"class": Class(torch.tensor([0, 1, 0]))})
    cache = model.init_cache(both, 3, 4)
    ids, start = torch.tensor([[VOCAB], [VOCAB], [VOCAB]])[..., None], torch.zeros(3, dtype=torch.int64)
    first = model.logits(ids, cache, start)
    other = model.take(cache, torch.tensor([1]))
    model.put(cache, torch.tensor([0]), other)
    assert torch.equal(model.logits(ids, cache, start)[0], first[1]) and torch.equal(first[0], first[2])


def test_what_cannot_be_certified_is_said_in_a_line():
    uniform = lambda ids: torch.full((len(ids),), -3 * torch.tensor(4.0).log())  # noqa: E731
    draw = lambda n, seed: torch.randint(0, 4, (n, 3), generator=torch.Generator().manual_seed(seed))  # noqa: E731
    assert gentok.certify(draw, uniform, 4, 3, n=2000).agrees
    with pytest.raises(ValueError, match="more than 1,000,000"):
        gentok.certify(draw, uniform, 1000, 3)
    with pytest.raises(ValueError, match="sum to 1.37.*log_p is no distribution"):
        gentok.certify(draw, lambda ids: uniform(ids) + 0.32, 4, 3)
    with pytest.raises(ValueError, match=r"should give int64 \[50, 3\]; it gave torch.int64 \[50, 2\]"):
        gentok.certify(lambda n, seed: draw(n, seed)[:, :2], uniform, 4, 3, n=50)
    with pytest.raises(ValueError, match="ids in 0 .. 3; they have"):
        gentok.certify(lambda n, seed: draw(n, seed) + 1, uniform, 4, 3, n=50)
    with pytest.raises(ValueError, match="models one level"):
        CausalFunction(lambda ids: ids, TokenSpec((4, 4), Line(3)), 0)
    short = CausalFunction(lambda ids: torch.zeros(*ids.shape, 3), SPEC, BEGIN, OFFSET)
    with pytest.raises(ValueError, match=r"should give logits \[1, 1, 6 or more\]; it gave \[1, 1, 3\]"):
        AutoregressiveSampler()(short, Condition(), rng=RowRNG.of(0, range(2)), known=Tokens.unknown(SPEC, 2))


def test_the_command_reads_a_file_of_the_users(tmp_path):
    text = """
        import torch
        VOCAB, POSITIONS = 3, 2
        def log_p(ids):
            return torch.full((len(ids),), 1 / 9).log()
        def draw(n, seed):
            return torch.randint(0, 3, (n, 2), generator=torch.Generator().manual_seed(seed)){}
    """
    (tmp_path / "good.py").write_text(textwrap.dedent(text.format("")))
    (tmp_path / "biased.py").write_text(textwrap.dedent(text.format(".clamp(max=1)")))
    (tmp_path / "half.py").write_text("VOCAB = 3\n")
    code = "from gentok.certification import main\nfor words in (%s):\n    try: main(words)\n    except SystemExit as e: print(e.code)"
    runs = [["good.py", "n=2000"], ["biased.py", "n=2000"], ["half.py"], ["nothing.py"], [], ["good.py", "n=many"], ["good.py", "steps=3"]]
    done = subprocess.run([sys.executable, "-c", code % str(runs)[1:-1]], cwd=tmp_path, capture_output=True, text=True)
    said = done.stdout.splitlines()
    assert said[0].startswith("exact to the floor") and said[1].startswith("not the model's distribution") and said[2] == "1"
    assert "it has no draw and no log_p and no POSITIONS" in said[3] and "there is no file nothing.py" in said[4]
    assert "takes one Python file" in said[5] and "got n=many" in said[6] and "got steps=3" in said[7] and len(said) == 8, done.stderr
