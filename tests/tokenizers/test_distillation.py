"""A semantic branch that is taught by a frozen speech network: rates, what the loss reaches, and that nothing of it is left in a bundle."""

import pytest
import torch
from test_mimi import HOP, config, sound
from tokenizer_kit import noise_of
from torch import nn

from gentok.build import build
from gentok.bundle import build_tokenizer, load, save, stamp
from gentok.nn.audio_map import AudioMap
from gentok.tokenizers.distillation import Distillation, to_rate
from gentok.types import Batch


class Loudness(nn.Module):
    """A teacher of 3 channels at four times the codes' rate: loudness, its negative and 1."""

    width, rate_hz = 3, 4 * 2000 / HOP

    def forward(self, media, lengths=None):
        loud = media.abs().unfold(2, HOP // 4, HOP // 4).mean(3)
        return torch.cat([loud, -loud, torch.ones_like(loud)], 1)


def test_frames_are_means_over_windows_of_two_frames_one_apart():
    x = torch.arange(16.0).view(1, 1, 16)
    inside = to_rate(x, 50.0, 12.5, 4)[0, 0]
    assert inside.tolist() == [2.5, 5.5, 9.5, 12.5]  # the first and last windows are cut by the sound's ends: 0..5 and 10..15
    assert to_rate(x, 50.0, 50.0, 18)[0, 0, -3:].tolist() == [15, 15, 15]
    assert to_rate(x[..., :1], 50.0, 12.5, 2).tolist() == [[[0, 0]]]
    with pytest.raises(ValueError, match="teacher of 50 frames per second cannot teach codes of 15: a whole multiple"):
        to_rate(x, 50.0, 15.0, 4)


def test_the_loss_is_zero_for_what_the_teacher_says_and_ignores_what_is_behind_an_end():
    teacher, rate = Loudness(), 2000 / HOP
    distillation = Distillation(3, 3, rate, weight=2.0, teacher=teacher)
    with torch.no_grad():
        distillation.head.weight.copy_(torch.eye(3)[..., None])
        distillation.head.bias.zero_()
    x = sound(2, 8 * HOP)
    said = to_rate(teacher(x), teacher.rate_hz, rate, 8)
    assert distillation(said, x, None, None)["distill"].item() == pytest.approx(0, abs=1e-6)
    assert distillation(-said, x, None, None)["distill"].item() == pytest.approx(4, abs=1e-5)
    wrong = said.clone()
    wrong[1, :, 5:] *= -1
    frames = torch.tensor([8, 5])
    assert distillation(wrong, x, frames * HOP, frames)["distill"].item() == pytest.approx(0, abs=1e-6)
    assert distillation(wrong, x, None, None)["distill"].item() > 0.1


def test_it_teaches_the_semantic_branch_and_the_encoder_alone():
    torch.manual_seed(0)
    model = build({**config(), "teacher_width": 3}, media_shape=(1,), teacher=Loudness()).train()
    x = sound(2, 20 * HOP)
    batch = Batch(x, torch.arange(2))
    losses = model(batch, noise_of(x)).losses
    losses["distill"].backward()

    def reached(name):
        return sum(p.grad.abs().sum().item() for p in model.get_submodule(name).parameters() if p.grad is not None) > 0

    assert reached("encoder") and reached("codebook.semantic") and reached("distillation")
    assert not reached("codebook.acoustic") and not reached("decoder")


def test_a_bundle_holds_no_teacher_and_gives_the_same_codes(tmp_path):
    torch.manual_seed(0)
    settings = {**config(), "media_shape": [1], "teacher_width": 3}
    model = build({**settings}, teacher=Loudness()).eval()
    stamp(model, settings)
    loaded = load(save(tmp_path / "bundle", tokenizer=model, tokenizer_config=settings)).tokenizer
    x = sound(2, 6 * HOP)
    assert torch.equal(loaded.encode(x).codes, model.encode(x).codes)
    assert "distill" not in loaded.train()(Batch(x, torch.arange(2)), noise_of(x)).losses


def test_mistakes_are_one_line():
    for change, given, words in (
        ({}, {"teacher": Loudness()}, "set teacher_width=3"),
        ({"teacher_width": 4}, {"teacher": Loudness()}, "3 channels.*teacher_width=4: set tokenizer.teacher_width=3"),
        ({"teacher_width": 3, "codebook": config()["codebook"]["acoustic"]}, {}, "no semantic branch to distil"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            build_tokenizer({**config(), **change}, training=True, media_shape=(1,), **given)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="no folder nowhere of a speech model"):
        AudioMap("nowhere", 16000).width  # noqa: B018


def test_a_speech_network_is_read_from_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    settings = transformers.WavLMConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8, 8), conv_kernel=(10, 8, 4),
        conv_stride=(5, 8, 8), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, num_feat_extract_layers=3,
        feat_extract_norm="layer", do_stable_layer_norm=True, num_buckets=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.WavLMModel(settings).eval()
    model.save_pretrained(tmp_path)
    heard = AudioMap(str(tmp_path), 16000, layer=-2)
    assert (heard.width, heard.rate_hz) == (16, 50.0) and not list(heard.parameters()) and not heard.state_dict()
    x = sound(2, 3200)
    wave = (x[:, 0] - x[:, 0].mean(1, keepdim=True)) / (x[:, 0].var(1, keepdim=True, correction=0) + 1e-7).sqrt()
    expected = model(wave, output_hidden_states=True).hidden_states[-2].transpose(1, 2)
    torch.testing.assert_close(heard(x), expected, atol=1e-5, rtol=1e-5)
    assert AudioMap(str(tmp_path), 24000)(sound(1, 4800)).shape == AudioMap(str(tmp_path), 16000)(sound(1, 3200)).shape
    alone = heard(x[1:, :, :1600])
    padded = heard(torch.cat([x[:1], torch.nn.functional.pad(x[1:, :, :1600], (0, 1600))]), torch.tensor([3200, 1600]))
    torch.testing.assert_close(padded[1:, :, : alone.shape[2]], alone, atol=1e-4, rtol=1e-4)
