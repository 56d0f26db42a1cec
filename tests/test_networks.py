"""The networks with convolutions, and the patch discriminator."""

import math

import pytest
import torch
from torch.func import jacfwd, vmap

from ngvae_pyro.data import as_images
from ngvae_pyro.errors import UserError
from ngvae_pyro.guide import load_guide
from ngvae_pyro.model import load_model
from ngvae_pyro.nn import (
    Decoder,
    Encoder,
    FromPatches,
    PatchDiscriminator,
    PreActivationBlock,
    Products,
    ResidualConvolution,
    SequenceBlock,
    SumOfProducts,
    ToPatches,
    activations,
)
from ngvae_pyro.specs import (
    Conv1dSpec,
    MLPSpec,
    ResidualConvSpec,
    ResNetV2Spec,
    ScheduleSpec,
    SeparableSpec,
)
from ngvae_pyro.training import steps
from ngvae_pyro.training.trainer import fit

SMALL = ResNetV2Spec(channels=4, width=16)
PATCHED = ResidualConvSpec(channels=4, width=16)
CURVES = Conv1dSpec(channels=4, width=16)
# With the number of patches along both sides, and the sides of a patch.
SIZES = {
    (1, 1, 1): ((1, 1), (1, 1)),
    (2, 9, 13): ((9, 13), (1, 1)),
    (1, 28, 28): ((14, 14), (2, 2)),
    (3, 30, 45): ((15, 15), (2, 3)),
    (3, 17, 33): ((9, 11), (2, 3)),
    (1, 1, 40): ((1, 14), (1, 3)),
    (3, 64, 64): ((16, 16), (4, 4)),
    (3, 128, 128): ((16, 16), (8, 8)),
}


def check_shapes(spec, shape):
    encoder = Encoder(spec, shape, 6, 2)
    assert [o.shape for o in encoder(torch.rand(3, *shape))] == [(3, 6), (3, 6)]
    decoder = Decoder(spec, shape, 6)
    assert decoder(torch.zeros(2, 3, 6)).shape == (2, 3, *shape)
    for layer, inputs, outputs in ((encoder.head, 16, 12), (decoder.stem, 6, 16)):
        assert isinstance(layer, torch.nn.Linear)
        assert (layer.in_features, layer.out_features) == (inputs, outputs)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (5, 64, 64)])
def test_shapes(shape):
    check_shapes(SMALL, shape)


@pytest.mark.parametrize("shape", SIZES)
def test_patches_take_any_size(shape):
    check_shapes(PATCHED, shape)
    x, (to, back) = torch.rand(2, *shape), (ToPatches(shape), FromPatches(shape))
    grid, patch = SIZES[shape]
    assert (tuple(to.grid), tuple(to.patch)) == (grid, patch)
    patches = to(x)
    assert patches.shape == (2, *grid, shape[0] * patch[0] * patch[1])
    assert torch.equal(back(patches), x)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(to(last), patches)
    # The first patch is the upper left corner, pixel by pixel.
    corner = x[:, :, : patch[0], : patch[1]].permute(0, 2, 3, 1).flatten(1)
    assert torch.equal(patches[:, 0, 0], corner)


def test_a_residual_convolution_sees_the_neighbours_and_begins_with_the_cell_itself():
    block, h = ResidualConvolution(4), torch.randn(1, 5, 6, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(h)[0, 2, 3].sum(), h)
    seen = gradient[0].abs().sum(-1) > 0
    expected = torch.zeros(5, 6, dtype=torch.bool)
    expected[1:4, 2:5] = True
    assert torch.equal(seen, expected)
    torch.nn.init.zeros_(block.conv.weight)
    torch.nn.init.zeros_(block.conv.bias)
    assert torch.equal(block(h), h)


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 28, 28), (2, 1, 9)])
def test_an_image_is_a_sum_of_products(shape):
    part, h = SumOfProducts(6, shape, 4).double(), torch.randn(2, 6, dtype=torch.float64)
    torch.nn.init.normal_(part.bias)
    rows = part.rows(h).reshape(2, shape[1], 4)
    columns = part.columns(h).reshape(2, 4, shape[2])
    channels = torch.ones(2, 1, 4) if shape[0] == 1 else part.channels(h).reshape(2, shape[0], 4)
    expected = torch.einsum("bir,brj,bcr->bcij", rows, columns, channels.double()) / 2.0
    assert (part(h) - expected - part.bias).abs().max() < 1e-12
    assert (part.channels is None) is (shape[0] == 1)
    # Without the bias each channel has the rank that is declared.
    image = torch.linalg.svdvals((part(h) - part.bias)[0, 0])
    assert (image > 1e-9).sum() == min(4, *shape[1:])


@pytest.mark.parametrize("shape", [(3, 20, 33), (1, 28, 28), (2, 5, 9)])
def test_patches_are_what_a_convolution_makes_of_products(shape):
    part, h = Products(6, shape, 4, 5).double(), torch.randn(2, 6, dtype=torch.float64)
    assert torch.equal(part(h), part.whole(h))
    torch.nn.init.normal_(part.out.weight)
    torch.nn.init.normal_(part.out.bias)
    (rows, columns), (high, wide) = part.patches.grid, part.patches.patch
    along, across = part.rows(h).reshape(2, rows, 5), part.columns(h).reshape(2, columns, 5)
    channels = part.channels(h).reshape(2, 5, 5)
    f = torch.einsum("bir,bjr,brc->bcij", along, across, channels) / math.sqrt(5)
    silu = torch.nn.functional.silu
    g = silu(f + torch.nn.functional.conv2d(silu(f), part.conv.weight, part.conv.bias, padding=1))
    cells = torch.einsum("bcij,oc->bijo", g, part.out.weight) + part.out.bias
    expected = part.whole(h)
    for i in range(shape[1]):
        for j in range(shape[2]):
            cell = cells[:, i // high, j // wide].reshape(2, high, wide, shape[0])
            expected[:, :, i, j] += cell[:, i % high, j % wide]
    assert (part(h) - expected).abs().max() < 1e-12


def test_without_channels_products_alone_draw():
    without = Decoder(SeparableSpec(width=16, depth=2, channels=0), (3, 12, 12), 4)
    assert isinstance(without.trunk[-1], SumOfProducts)
    assert isinstance(Decoder(SeparableSpec(width=16), (3, 12, 12), 4).trunk[-1], Products)


def test_data_of_one_row_are_drawn_by_the_perceptron_alone():
    torch.manual_seed(0)
    separable = Decoder(SeparableSpec(width=16, depth=3), (1, 1, 40), 5)
    torch.manual_seed(0)
    perceptron = Decoder(MLPSpec(width=16, depth=3), (1, 1, 40), 5)
    z = torch.randn(3, 5)
    assert torch.equal(separable(z), perceptron(z))
    found = [activations(spec(width=16, depth=3), (1, 1, 40)) for spec in (SeparableSpec, MLPSpec)]
    assert found[0] == found[1]


# With the lengths in between.
LENGTHS = {1: [1], 7: [7], 9: [9, 5], 30: [30, 15, 8], 128: [128, 64, 32, 16, 8]}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("channels", [1, 3])
def test_sequences_of_any_length_are_halved(length, channels):
    shape = (channels, 1, length)
    check_shapes(CURVES, shape)
    spec = Conv1dSpec(channels=4, blocks=3, width=16)
    seen = []
    for network in (Encoder(spec, shape, 6, 2), Decoder(spec, shape, 6)):
        blocks = [part for part in network.modules() if isinstance(part, SequenceBlock)]
        assert len(blocks) == 3 * len(LENGTHS[length]) - 3
        for block in blocks[::3]:
            block.register_forward_hook(lambda block, inputs, out: seen.append(out.shape[2]))
        network(torch.rand(2, *(shape if isinstance(network, Encoder) else (6,))))
    down = LENGTHS[length][1:]
    assert seen == down + LENGTHS[length][-2::-1]


def test_a_recorded_training_on_sequences_is_the_literal_one(monkeypatch):
    monkeypatch.setattr(steps, "WARM_UP", 2)
    monkeypatch.setattr(steps, "PAYS_FROM", 0)
    data, found = as_images(torch.randn(40, 19)), []
    for fast in (False, True):
        torch.manual_seed(0)
        model = load_model("normal_gamma", data, latent_size=2, decoder=CURVES)
        guide = load_guide("relaxed", model, encoder=CURVES)
        how = {"steps": 8, "batch_size": 8, "device": "cpu", "fast": fast, "progress": False}
        fit(model, guide, data, schedule=ScheduleSpec(), **how)
        found.append(model.state_dict() | guide.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-3, rtol=1e-3)


def test_what_is_no_sequence_is_one_line():
    line = (
        r"the conv1d network takes data of one row \(C, 1, L\), got 8 rows; set model.decoder.kind"
    )
    for network in (
        lambda: Encoder(CURVES, (1, 8, 8), 6, 2),
        lambda: Decoder(CURVES, (1, 8, 8), 6),
    ):
        with pytest.raises(UserError, match=line):
            network()


@pytest.mark.parametrize(("resize", "length"), [("keep", 9), ("down", 5), (17, 17)])
def test_a_block_of_sequences_without_a_residual_is_its_skip(resize, length):
    block = SequenceBlock(4, resize)
    torch.nn.init.zeros_(block.residual[-1].weight)
    torch.nn.init.zeros_(block.residual[-1].bias)
    h = torch.rand(2, 4, 9)
    out = block(h)
    assert out.shape == (2, 4, length)
    # Averages at the border are of what is there.
    expected = {5: h[..., -1], 9: h[..., -1], 17: h[..., -1]}[length]
    torch.testing.assert_close(out[..., -1], expected)
    assert out.min() >= h.min() and out.max() <= h.max()


@pytest.mark.parametrize("shape", [(1, 1, 128), (3, 1, 61)])
@pytest.mark.parametrize("changes", [{}, {"blocks": 3}, {"channels": 8}])
def test_sequences_keep_about_the_numbers_that_memory_is_checked_for(shape, changes):
    spec, x = Conv1dSpec(**changes), torch.rand(4, *shape)
    both = torch.nn.ModuleList([Encoder(spec, shape, 6, 1), Decoder(spec, shape, 6)])
    numbers = numbers_kept(both, lambda: both[1](both[0](x)[0]), x)
    assert 0.5 < numbers / (2 * len(x) * activations(spec, shape)) < 1.0


def numbers_kept(module, decode, x):
    """Numbers that are kept for the gradients of a squared error, weights left out."""
    weights = [p.untyped_storage().data_ptr() for p in module.parameters()]
    # By their memory, which views share.
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = torch.nn.functional.mse_loss(decode(), x)
    loss.backward()
    return sum(size for memory, size in kept.items() if memory not in weights) / 4


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 28, 28), (2, 30, 45)])
@pytest.mark.parametrize("changes", [{}, {"channels": 0}, {"rank": 8, "depth": 1, "channels": 40}])
def test_products_keep_about_the_numbers_that_memory_is_checked_for(shape, changes):
    spec = SeparableSpec(**changes)
    decoder, x = Decoder(spec, shape, 6), torch.rand(4, *shape)
    kept = numbers_kept(decoder, lambda: decoder(torch.randn(4, 6)), x)
    assert 0.5 < kept / (len(x) * activations(spec, shape)) < 1.0


def test_a_decoder_of_patches_is_deep_unless_its_depth_is_declared():
    kind = {"kind": "residual_conv"}
    assert load_model(decoder=kind).spec.decoder == ResidualConvSpec(depth=8)
    assert load_model(decoder={**kind, "depth": 2}).spec.decoder.depth == 2
    guide = load_guide("relaxed", load_model(), encoder=kind)
    assert guide.spec.encoder == ResidualConvSpec(depth=3)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 28, 28), (2, 30, 45)])
@pytest.mark.parametrize("changes", [{}, {"blocks": 5, "depth": 1}, {"channels": 8}])
def test_patches_keep_about_the_numbers_that_memory_is_checked_for(shape, changes):
    spec, x = ResidualConvSpec(**changes), torch.rand(4, *shape)
    both = torch.nn.ModuleList([Encoder(spec, shape, 6, 1), Decoder(spec, shape, 6)])
    numbers = numbers_kept(both, lambda: both[1](both[0](x)[0]), x)
    assert 0.5 < numbers / (2 * len(x) * activations(spec, shape)) < 1.0


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
    encoders = [Encoder(spec, (3, 32, 32), 6, 1) for spec in (SMALL, PATCHED)]
    discriminator = PatchDiscriminator((3, 32, 32))
    for network in (*(lambda x, e=e: e(x)[0] for e in encoders), discriminator):
        torch.testing.assert_close(network(x)[:1], network(x[:1]), atol=1e-5, rtol=1e-4)
    encoder, x = Encoder(CURVES, (3, 1, 40), 6, 1), torch.rand(4, 3, 1, 40)
    torch.testing.assert_close(encoder(x)[0][:1], encoder(x[:1])[0], atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("spec", [SMALL, PATCHED, CURVES])
def test_the_decoder_has_a_jacobian_under_vmap(spec):
    shape = (1, 1, 784) if spec is CURVES else (1, 28, 28)
    decoder, z = Decoder(spec, shape, 3), torch.randn(2, 3)
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
