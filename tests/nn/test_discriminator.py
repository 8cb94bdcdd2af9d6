"""PatchGAN: the published size and receptive field, and logits that are each image's own."""

import pytest
import torch

from gentok.nn.discriminator import PatchGAN


def test_it_has_the_published_number_of_parameters():
    """pix2pix prints 2.769 M for its discriminator of 6 channels."""
    assert sum(p.numel() for p in PatchGAN(channels=6).parameters()) == 2_768_705


@pytest.mark.parametrize("layers, field", [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_patch_of_the_published_size(layers, field):
    """By the gradient: GroupNorm sees the whole image, so it is taken out here."""
    network = PatchGAN(channels=1, width=2, layers=layers)
    for stage in network.stages[1:]:
        stage[1] = torch.nn.Identity()
    media = torch.randn(1, 1, 128, 128, requires_grad=True)
    logits = network(media)[0]
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    seen = media.grad[0, 0].abs().sum(0).nonzero()
    assert int(seen.max() - seen.min()) + 1 == field


@pytest.mark.parametrize("channels, size, layers", [(1, 32, 2), (3, 24, 3), (2, 50, 3)])
def test_logits_and_features_have_the_promised_shapes(channels, size, layers):
    logits, features = PatchGAN(channels, 8, layers)(torch.randn(2, channels, size, size))
    assert logits.shape == (2, 1, *2 * (size // 2**layers - 2,))
    assert [f.shape[1] for f in features] == [min(8 * 2**i, 64) for i in range(layers + 1)]


def test_an_image_has_the_same_logits_in_any_batch_and_mode():
    network, media = PatchGAN(1, 8, 2).double(), torch.randn(4, 1, 16, 16, dtype=torch.float64)
    whole = network(media)[0]
    assert torch.allclose(network.eval()(media[2:3])[0], whole[2:3], atol=1e-12)
    assert not list(network.buffers())


@pytest.mark.parametrize("media, word", [(torch.zeros(1, 3, 32, 32), "channels"), (torch.zeros(1, 1, 23, 32), "24 x 24")])
def test_what_does_not_fit_is_refused_in_a_line(media, word):
    with pytest.raises(ValueError, match=word) as error:
        PatchGAN(1, 8, 3)(media)
    assert "\n" not in str(error.value)
