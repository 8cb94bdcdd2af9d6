"""consistency=reencoding in a run: it acts on what is trained, frozen parts stay, held-out ids that come back are counted, and what it does
not fit is refused before anything is built."""

import pytest
import torch
from adversarial_kit import config, fit

from gentok.cli import compose
from gentok.errors import ConfigError
from gentok.training.config_check import check_config

TERM = ["consistency=reencoding", "consistency.weight=5", "consistency.damage.noise=0.1"]


def run(folder, *words):
    return fit({**config(folder, "callbacks.ema=null", "trainer.validate_every=2", "steps=4", *words), "discriminator": None})


def same(part, other):
    return all(torch.equal(a, b) for a, b in zip(part.state_dict().values(), other.state_dict().values(), strict=True))


def test_it_acts_on_the_decoder_alone_where_encoder_and_codebook_are_frozen(tmp_path):
    frozen = "freeze=[encoder,codebook]"
    (with_it, trainer), (without, _) = run(tmp_path / "a", frozen, *TERM), run(tmp_path / "b", frozen)
    assert same(with_it.tokenizer.encoder, without.tokenizer.encoder) and same(with_it.tokenizer.codebook, without.tokenizer.codebook)
    assert not same(with_it.tokenizer.decoder, without.tokenizer.decoder)
    assert 0 <= float(trainer.callback_metrics["ids_given_back"]) <= 1 and without.consistency is None
    (again, _) = run(tmp_path / "c", frozen, *TERM)
    assert same(with_it.tokenizer, again.tokenizer), "the same seed, the same damage"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["experiment=mnist5k/vq", "trainer=fsdp_sim"], "consistency makes two"),
        (["experiment=mnist5k/ar", "tokenizer.ckpt=docs/zoo/mnist5k_vq"], "consistency belongs to task=tokenizer"),
        (["experiment=mnist5k/vq", "consistency.damage.blur=2"], "blur"),
    ],
)
def test_what_it_does_not_fit_is_one_line(words, line):
    with pytest.raises(ConfigError, match=line) as error:
        check_config(compose("config", ["consistency=reencoding", *words]))
    assert "\n" not in str(error.value)
