"""ResNetV2 and the patch discriminator."""

import pytest
import torch
from torch.func import jacfwd, vmap

from ngvae_pyro.errors import UserError
from ngvae_pyro.nn import Decoder, Encoder, PatchDiscriminator, PreActivationBlock
from ngvae_pyro.specs import ResNetV2Spec

SMALL = ResNetV2Spec(channels=4, width=16)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (5, 64, 64)])
def test_shapes(shape):
    outputs = Encoder(SMALL, shape, 6, 2)(torch.rand(3, *shape))
    assert [o.shape for o in outputs] == [(3, 6), (3, 6)]
    decoder = Decoder(SMALL, shape, 6)
    assert decoder(torch.zeros(2, 3, 6)).shape == (2, 3, *shape)
    assert isinstance(decoder.stem, torch.nn.Linear) and decoder.stem.in_features == 6


def test_channels_double_up_to_eight_times_and_blocks_are_added():
    encoder = Encoder(ResNetV2Spec(channels=4, blocks=2, width=16), (3, 64, 64), 6, 2)
    blocks = [m for m in encoder.modules() if isinstance(m, PreActivationBlock)]
    assert len(blocks) == 8
    channels = [m.out_channels for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert max(channels) == 32


@pytest.mark.parametrize(("resize", "side"), [("keep", 8), ("down", 4), ("up", 16)])
def test_a_block_without_a_residual_is_its_skip(resize, side):
    block = PreActivationBlock(4, 4, resize)
    torch.nn.init.zeros_(block.residual[-1].weight)
    torch.nn.init.zeros_(block.residual[-1].bias)
    h = torch.rand(2, 4, 8, 8)
    out = block(h)
    assert out.shape == (2, 4, side, side)
    torch.testing.assert_close(out.mean((2, 3)), h.mean((2, 3)))


def test_an_image_is_judged_alone():
    x = torch.rand(4, 3, 32, 32)
    encoder, discriminator = Encoder(SMALL, (3, 32, 32), 6, 2), PatchDiscriminator((3, 32, 32))
    for network in (lambda x: encoder(x)[0], discriminator):
        torch.testing.assert_close(network(x)[:1], network(x[:1]), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_the_decoder_has_a_jacobian_under_vmap():
    decoder, z = Decoder(SMALL, (1, 28, 28), 3), torch.randn(2, 3)
    jacobian = vmap(jacfwd(lambda z: decoder(z).flatten()))(z)
    assert jacobian.shape == (2, 784, 3)
    step = torch.tensor([0.0, 1e-2, 0.0])
    difference = (decoder(z + step) - decoder(z - step)).flatten(1) / 2e-2
    torch.testing.assert_close(jacobian[..., 1], difference, atol=2e-3, rtol=0.05)


@pytest.mark.parametrize(("layers", "patch"), [(1, 10), (2, 22), (3, 46)])
def test_a_logit_sees_one_patch(layers, patch):
    discriminator = PatchDiscriminator((1, 64, 64), channels=4, layers=layers)
    # Without the norms, which see the whole image.
    for index, module in enumerate(discriminator.network):
        if isinstance(module, torch.nn.GroupNorm):
            discriminator.network[index] = torch.nn.Identity()
    x = torch.rand(1, 1, 64, 64, requires_grad=True)
    logits = discriminator(x)
    middle = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], x)
    seen = gradient[0, 0].abs().sum(0).nonzero()
    assert (seen.max() - seen.min() + 1).item() == patch


def test_images_too_small_for_the_patches_are_one_line():
    assert PatchDiscriminator((1, 16, 20), layers=3)(torch.rand(2, 1, 16, 20)).shape[:2] == (2, 1)
    line = "fit.adversarial.layers: 3 layers need images of at least 16x16, got 9x20"
    with pytest.raises(UserError, match=line):
        PatchDiscriminator((1, 9, 20), layers=3)
