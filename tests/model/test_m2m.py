"""Mask-to-Matte: the published network, its training form and its folded form."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F

from mam_model.m2m import FlatBlock, MaskToMatte, Sides, SpectralNormConv, UpBlock
from mam_model.regions import Window
from tests.references import chain

SCALES = ("os8", "os4", "os1")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks of this size are slower on several threads."""
    with chain.single_thread():
        yield


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return chain.reference_m2m().state_dict()


@pytest.fixture(scope="module")
def m2m(weights) -> MaskToMatte:
    """In eval mode and shared: a test that changes the network takes `own_m2m`."""
    return _with(weights)


@pytest.fixture
def own_m2m(weights) -> MaskToMatte:
    """In eval mode, for one test alone."""
    return _with(weights)


def _with(weights) -> MaskToMatte:
    m2m = MaskToMatte().eval()
    m2m.load_state_dict(weights)
    return m2m


def shown(side: int = 64, count: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, picture and mask for a square of `side` pixels."""
    generator = torch.Generator().manual_seed(side)
    features = torch.randn(count, 256, side // 16, side // 16, generator=generator)
    image = torch.randn(count, 3, side, side, generator=generator)
    mask = (torch.randn(count, 1, side // 4, side // 4, generator=generator) > 0).float()
    return features, image, mask


def scales(pyramid) -> list[torch.Tensor]:
    return [getattr(pyramid, scale) for scale in SCALES]


def test_it_has_the_published_number_of_entries_and_parameters(m2m):
    assert len(m2m.state_dict()) == 184
    assert sum(p.numel() for p in m2m.parameters() if p.requires_grad) == 2_714_619
    assert sum(p.numel() for p in m2m.parameters()) == 2_736_351


def test_its_keys_are_the_published_ones(m2m):
    """A sample of every kind of key, as facts about the released checkpoints give them."""
    keys = set(m2m.state_dict())
    assert {
        "layer2.0.conv1.module.weight_bar",
        "layer2.0.conv1.module.weight_u",
        "layer2.0.conv1.module.weight_v",
        "layer2.0.bn1.running_var",
        "layer2.0.upsample.1.module.weight_bar",
        "layer2.0.upsample.2.num_batches_tracked",
        "layer2.2.conv2.module.weight_u",
        "layer3.2.bn2.weight",
        "layer4.1.conv1.module.weight_v",
        "conv1.module.weight_bar",
        "bn1.bias",
        "refine_OS8.0.weight",
        "refine_OS4.1.running_mean",
        "refine_OS1.3.weight",
        "refine_OS1.3.bias",
    } <= keys
    assert not any(key.endswith("conv1.weight") or key.endswith("conv2.weight") for key in keys)


def test_alpha_comes_at_three_scales_between_0_and_1(m2m):
    with torch.inference_mode():
        pyramid = m2m(*shown(64, 2))
    assert len(pyramid) == 2
    for alpha in scales(pyramid):
        assert alpha.shape == (2, 1, 64, 64)
        assert alpha.min() >= 0
        assert alpha.max() <= 1
        assert alpha.std() > 0.05


def test_features_picture_and_mask_all_reach_every_scale(m2m):
    inputs = [tensor.requires_grad_() for tensor in shown(64, 1)]
    for alpha in scales(m2m(*inputs)):
        for given in torch.autograd.grad(alpha.sum(), inputs, retain_graph=True):
            assert given.abs().max() > 0


def test_picture_and_mask_are_shown_to_each_stage_anew(own_m2m):
    """With both hidden from the first stages, the later ones still answer to them."""
    features, image, mask = shown(64, 1)
    for stage, deaf in ((own_m2m.layer2, 0), (own_m2m.layer3, 1), (own_m2m.layer4, 2)):
        with torch.inference_mode():
            usual = scales(own_m2m(features, image, mask))
            for other in (own_m2m(features, -image, mask), own_m2m(features, image, 1 - mask)):
                changed = [not torch.equal(alpha, before) for alpha, before in zip(scales(other), usual)]
                assert changed == [False] * deaf + [True] * (3 - deaf)
            stage[0].conv1.module.weight_bar[-4:] = 0
            stage[0].upsample[1].module.weight_bar[:, -4:] = 0
    with torch.inference_mode():
        for alpha, before in zip(scales(own_m2m(features, -image, 1 - mask)), scales(own_m2m(features, image, mask))):
            assert torch.equal(alpha, before)


@pytest.mark.parametrize(("kernel_size", "transposed"), [(3, False), (4, True)])
def test_training_brings_the_largest_singular_value_of_a_weight_to_one(kernel_size, transposed):
    # The closer the two largest values of a random weight, the more steps it takes; so it is always the same weight.
    torch.manual_seed(0)
    conv = SpectralNormConv(12, 20, kernel_size, transposed=transposed).train()
    for _ in range(300):
        weight = conv.normalised_weight()
    assert torch.linalg.svdvals(weight.detach().flatten(1))[0] == pytest.approx(1, abs=1e-3)
    assert conv.module.weight_u.norm() == pytest.approx(1, abs=1e-5)
    assert conv.module.weight_v.norm() == pytest.approx(1, abs=1e-5)


def test_inference_divides_by_what_the_stored_vectors_give():
    """Not by the true singular value: published checkpoints were scored with their stored vectors."""
    conv = SpectralNormConv(12, 20, 3).eval()
    matrix = conv.module.weight_bar.detach().flatten(1)
    sigma = conv.module.weight_u @ matrix @ conv.module.weight_v
    assert torch.allclose(conv.normalised_weight(), conv.module.weight_bar / sigma)


def singular_vectors(m2m: MaskToMatte) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in m2m.state_dict().items() if k.endswith(("weight_u", "weight_v"))}


def test_the_power_iteration_goes_on_while_training_only(own_m2m):
    m2m = own_m2m
    before = singular_vectors(m2m)
    m2m(*shown())
    assert all(torch.equal(value, before[key]) for key, value in singular_vectors(m2m).items())
    m2m.train()
    m2m(*shown())
    after = singular_vectors(m2m)
    assert len(after) == 2 * sum(isinstance(module, SpectralNormConv) for module in m2m.modules())
    assert not any(torch.equal(value, before[key]) for key, value in after.items())


def test_every_trainable_parameter_learns(own_m2m):
    m2m = own_m2m.train()
    sum(alpha.square().mean() for alpha in scales(m2m(*shown()))).backward()
    for name, parameter in m2m.named_parameters():
        if name.endswith(("weight_u", "weight_v")):
            assert parameter.grad is None, name
        else:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


def test_steps_against_the_gradient_lower_the_loss(own_m2m):
    m2m = own_m2m.train()
    inputs, target = shown(64, 4), (torch.rand(4, 1, 64, 64) > 0.5).float()
    optimizer = torch.optim.Adam(m2m.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        loss = sum((alpha - target).abs().mean() for alpha in scales(m2m(*inputs)))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_the_folded_network_is_the_same_function(own_m2m):
    """Folding and both forwards are computed in float64, so that nothing but a mistake could make a difference."""
    trained = own_m2m.double()
    inputs = [tensor.double() for tensor in shown()]
    with torch.inference_mode(), chain.in_float64():
        folded = trained.fold().double()
        for ours, theirs in zip(scales(folded(*inputs)), scales(trained(*inputs))):
            assert ours.dtype == torch.float64
            assert (ours - theirs).abs().max() < 1e-12


@pytest.mark.parametrize("sides", [Sides(*cut) for cut in itertools.product((True, False), repeat=4)])
def test_a_piece_is_upsampled_as_it_is_in_the_whole(own_m2m, sides):
    """At every side of a piece that lies on the edge of the square or was cut, and for the mask's channel apart."""
    upsampling = own_m2m.fold().layer3[0].conv1.double()
    x = torch.randn(2, 132, 9, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    piece = Window(0 if sides.top else 2, 0 if sides.left else 1, 9 if sides.bottom else 6, 7 if sides.right else 5)
    whole, last = upsampling(x), x[:, -1:]
    expected = sides.narrowed(piece.finer(2).of(whole))
    assert (upsampling(piece.of(x), sides) - expected).abs().max() < 1e-12
    of_last = F.conv_transpose2d(last, upsampling.weight[-1:], stride=2, padding=1)
    others = sides.narrowed(piece.finer(2).of(whole - of_last))
    assert (upsampling.of_last_channel(piece.of(last), others, sides) - expected).abs().max() < 1e-12


def test_rounding_the_folded_weights_to_float32_moves_alpha_by_less_than_1e_5(own_m2m):
    inputs = [tensor.double() for tensor in shown()]
    folded = own_m2m.fold().double()
    with torch.inference_mode(), chain.in_float64():
        for ours, theirs in zip(scales(folded(*inputs)), scales(own_m2m.double()(*inputs))):
            assert 0 < (ours - theirs).abs().max() < 1e-5


def test_in_float32_the_folded_network_agrees_with_the_trained_one(m2m):
    """Two ways of rounding the same sums: measured 6e-6 at the worst pixel, 7e-7 on average."""
    inputs = shown(128, 1)
    with torch.inference_mode():
        for ours, theirs in zip(scales(m2m.fold()(*inputs)), scales(m2m(*inputs))):
            assert (ours - theirs).abs().max() < 2e-5
            assert (ours - theirs).square().mean().sqrt() < 2e-6


def test_folding_leaves_the_trained_network_alone(own_m2m):
    before = copy.deepcopy(own_m2m.state_dict())
    folded = own_m2m.fold()
    for parameter in folded.parameters():
        parameter.zero_()
    after = own_m2m.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(parameter.requires_grad for name, parameter in own_m2m.named_parameters() if "weight_bar" in name)


def test_a_network_without_weights_is_folded_to_one_that_takes_the_weights_of_another(own_m2m):
    with torch.device("meta"):
        shell = MaskToMatte().fold()
    assert all(tensor.is_meta for tensor in shell.state_dict().values())
    shell.load_state_dict(own_m2m.fold().state_dict(), assign=True)
    for ours, theirs in zip(scales(shell(*shown())), scales(own_m2m.fold()(*shown()))):
        assert torch.equal(ours, theirs)


def test_the_folded_network_does_not_follow_further_training(own_m2m):
    folded = own_m2m.fold()
    with torch.inference_mode():
        before = scales(folded(*shown()))
        for tensor in own_m2m.state_dict().values():
            tensor.zero_()
        for earlier, later in zip(before, scales(folded(*shown()))):
            assert torch.equal(earlier, later)


def test_folding_takes_the_inference_form_even_while_training(m2m, own_m2m):
    folded = own_m2m.train().fold()
    with torch.inference_mode():
        for ours, theirs in zip(scales(folded(*shown())), scales(m2m.fold()(*shown()))):
            assert torch.equal(ours, theirs)


def test_nothing_is_left_to_normalise_or_to_train_after_folding(m2m):
    folded = m2m.fold()
    forbidden = (torch.nn.BatchNorm2d, SpectralNormConv, UpBlock, FlatBlock)
    assert not any(isinstance(module, forbidden) for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_half_precision_keeps_alpha_within_a_hundredth_on_average(m2m):
    """bfloat16 has 8 bits of precision. Measured here: 0.004 on average, 0.07 at the worst pixel."""
    inputs = shown(128, 1)
    with torch.inference_mode():
        whole = m2m.fold()(*inputs)
        half = m2m.fold().to(torch.bfloat16)(inputs[0].bfloat16(), inputs[1].bfloat16(), inputs[2].bfloat16())
    for exact, rounded in zip(scales(whole), scales(half)):
        assert rounded.dtype == torch.float32
        assert (exact - rounded).abs().mean() < 0.01
        assert (exact - rounded).abs().max() < 0.15


def test_a_targets_matte_does_not_depend_on_its_neighbours_in_the_batch(m2m):
    features, image, mask = shown(64, 3)
    folded = m2m.fold()
    with torch.inference_mode():
        together = scales(folded(features, image, mask))
        alone = scales(folded(features[1:2], image[1:2], mask[1:2]))
    for batch, single in zip(together, alone):
        assert torch.allclose(batch[1:2], single, atol=1e-5, rtol=0)
