"""The refiner that ships with the pack: picture and any mask in, alpha out."""

import json

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mam_model import refiner as refiner_of
from mam_model.checkpoint import CheckpointError
from mam_model.refiner import SHIPPED_WEIGHTS, MaskRefiner, load_refiner, refine_mask
from mam_model.training.render import render

# Training draws its pictures with seeds of the form 1,000,000 + n.
UNSEEN = (("fur", 71), ("hair", 72), ("leaves", 73), ("solid", 74), ("defocus", 75))


@pytest.fixture(scope="module")
def shipped() -> MaskRefiner:
    return load_refiner()


@pytest.fixture(scope="module")
def unseen():
    return [render(seed, 256, 320, kind=kind) for kind, seed in UNSEEN]


def lively(seed: int = 0) -> MaskRefiner:
    """A network of random weights whose heads are not zero and whose normalisation is not the identity."""
    torch.manual_seed(seed)
    network = MaskRefiner()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.8, 1.2)
                module.bias.normal_(0, 0.1)
        for head in (network.os8, network.os4, network.os1):
            head.weight.normal_(0, 0.02)
    return network.eval()


def disc(height: int, width: int, radius_px: float, center: tuple[float, float] | None = None) -> torch.Tensor:
    row, column = center or (height / 2, width / 2)
    y, x = np.mgrid[:height, :width]
    return torch.from_numpy((np.hypot(y - row, x - column) < radius_px).astype(np.float32))


def spoilt(alpha: np.ndarray) -> dict[str, np.ndarray]:
    mask = (alpha > 0.5).astype(np.float32)
    height, width = mask.shape
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (17, 17))
    small = cv2.resize(mask, (width // 12, height // 12), interpolation=cv2.INTER_AREA)
    shift = np.float32([[1, 0, 8], [0, 1, 0]])
    return {
        "exact": mask,
        "eroded": cv2.erode(mask, kernel),
        "dilated": cv2.dilate(mask, kernel),
        "shifted": cv2.warpAffine(mask, shift, (width, height), flags=cv2.INTER_NEAREST),
        "blocky": (cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST) > 0.5).astype(np.float32),
    }


@pytest.mark.parametrize("how", ["exact", "eroded", "dilated", "shifted", "blocky"])
def test_the_matte_is_nearer_to_the_truth_than_the_mask_on_pictures_never_seen(shipped, unseen, how):
    before, after = [], []
    for picture in unseen:
        mask = spoilt(picture.alpha)[how]
        refined = refine_mask(shipped, torch.from_numpy(picture.picture), torch.from_numpy(mask)).numpy()
        before.append(np.abs(mask - picture.alpha).mean())
        after.append(np.abs(refined - picture.alpha).mean())
    assert np.mean(after) < np.mean(before)
    # Hair lost among like colours may cost a little more than leaving it out; nothing may cost much more.
    assert all(refined < 1.1 * mask + 1e-3 for refined, mask in zip(after, before)), (before, after)


def test_a_mask_far_from_its_edge_stays_as_it_is(shipped):
    torch.manual_seed(3)
    mask = disc(600, 400, 60, center=(100, 100))
    alpha = refine_mask(shipped, torch.rand(600, 400, 3), mask)
    assert torch.equal(alpha[300:], mask[300:])


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_a_mask_without_an_edge_comes_back_as_it_is(shipped, value):
    mask = torch.full((70, 90), value)
    assert torch.equal(refine_mask(shipped, torch.rand(70, 90, 3), mask), mask)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 40), (37, 1), (5, 3), (15, 17), (16, 16), (123, 210)])
def test_any_size_is_refined(shipped, height, width):
    torch.manual_seed(1)
    mask = (torch.rand(height, width) > 0.5).float()
    alpha = refine_mask(shipped, torch.rand(height, width, 3), mask)
    assert alpha.shape == mask.shape and alpha.dtype == torch.float32
    assert alpha.min() >= 0 and alpha.max() <= 1


def test_the_network_takes_any_size_and_gives_three_scales_of_it():
    pyramid = lively()(torch.rand(2, 3, 45, 70), torch.rand(2, 1, 45, 70))
    for scale in (pyramid.os8, pyramid.os4, pyramid.os1):
        assert scale.shape == (2, 1, 45, 70)
        assert scale.min() >= 0 and scale.max() <= 1


def test_tiles_give_what_the_whole_picture_gives(shipped, unseen):
    """Within 3 of 255 levels on average. A tile sees 64 pixels around it, the whole picture all."""
    for picture in unseen[:2]:
        shown = torch.from_numpy(picture.picture)
        mask = torch.from_numpy((picture.alpha > 0.5).astype(np.float32))
        whole = refine_mask(shipped, shown, mask)
        tiled = refine_mask(shipped, shown, mask, tile_px=96)
        assert (whole - tiled).abs().mean() < 3 / 255


@pytest.mark.parametrize("height, width", [(37, 64), (128, 48), (300, 65)])
def test_the_finest_scale_in_strips_is_that_of_the_whole(monkeypatch, height, width):
    network = lively().fold()
    picture, mask = torch.rand(2, 3, height, width), (torch.rand(2, 1, height, width) > 0.5).float()
    found = []
    for rows in (2 * height, 128, 16):
        monkeypatch.setattr(refiner_of, "_STRIP_PX", rows)
        with torch.inference_mode():
            found.append(network(picture, mask).os1)
    assert found[0].std() > 0.05
    for in_strips in found[1:]:
        torch.testing.assert_close(in_strips, found[0], atol=1e-6, rtol=0)


def test_tiles_are_computed_only_near_the_edge_and_counted(shipped):
    seen = []
    picture, mask = torch.rand(900, 900, 3), disc(900, 900, 30, center=(60, 60))

    class Counting(MaskRefiner):
        def forward(self, picture, mask):
            seen.append(mask.shape[-2] * mask.shape[-1])
            return shipped(picture, mask)

    told = []
    refine_mask(Counting().eval(), picture, mask, tile_px=128, on_tile=lambda *count: told.append(count))
    assert sum(seen) < 0.25 * 900 * 900
    assert max(seen) <= (128 + 2 * 64) ** 2 * 2
    assert told == [(number, len(seen)) for number in range(1, len(seen) + 1)]


def made_smaller(alpha: np.ndarray, factor: int) -> dict[str, np.ndarray]:
    """Masks of a picture that were found at a smaller size: soft, as by a background remover, and hard, as by SAM."""
    height, width = alpha.shape
    small = cv2.resize(
        (alpha > 0.5).astype(np.float32), (width // factor, height // factor), interpolation=cv2.INTER_AREA
    )
    soft = cv2.resize(cv2.GaussianBlur(small, (0, 0), 1.5), (width, height), interpolation=cv2.INTER_LINEAR)
    return {"soft": soft, "hard": (soft > 0.5).astype(np.float32)}


@pytest.mark.parametrize("how, share", [("soft", 0.95), ("hard", 0.98)])
def test_a_mask_that_was_made_smaller_gains_by_refining_at_half_the_size_first(shipped, how, share):
    alone, together = [], []
    for seed, kind in enumerate(("hair", "grass", "twigs", "defocus", "plush toy", "solid"), start=81):
        picture = render(seed, 512, 512, kind=kind)
        shown, mask = torch.from_numpy(picture.picture), made_smaller(picture.alpha, 4)[how]
        for longest_px, errors in ((512, alone), (256, together)):
            alpha = refine_mask(shipped, shown, torch.from_numpy(mask), longest_px=longest_px).numpy()
            errors.append(np.abs(alpha - picture.alpha).mean())
    assert np.mean(together) < share * np.mean(alone)


def test_what_a_smaller_size_costs_a_hard_and_exact_mask_is_little(shipped, unseen):
    for picture in unseen:
        shown, mask = torch.from_numpy(picture.picture), torch.from_numpy(spoilt(picture.alpha)["exact"])
        alone, together = (refine_mask(shipped, shown, mask, longest_px=side).numpy() for side in (320, 160))
        assert np.abs(together - picture.alpha).mean() < 1.05 * np.abs(alone - picture.alpha).mean() + 1e-4


@pytest.mark.parametrize("height, width", [(1, 700), (301, 37), (123, 210)])
def test_any_size_is_refined_at_smaller_sizes_first(shipped, height, width):
    torch.manual_seed(1)
    mask = (torch.rand(height, width) > 0.5).float()
    alpha = refine_mask(shipped, torch.rand(height, width, 3), mask, longest_px=16)
    assert alpha.shape == mask.shape and alpha.dtype == torch.float32
    assert alpha.min() >= 0 and alpha.max() <= 1


def test_what_is_told_grows_over_all_sizes_and_ends_with_the_last_tile(shipped):
    told = []
    picture, mask = torch.rand(400, 500, 3), disc(400, 500, 120)
    refine_mask(shipped, picture, mask, longest_px=128, tile_px=64, on_tile=lambda *count: told.append(count))
    shares = [done / parts for done, parts in told]
    assert shares == sorted(shares) and shares[0] < 0.05 and shares[-1] == 1


def test_a_run_is_left_in_the_middle_of_a_smaller_size(shipped):
    def cancel(done: int, parts: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refine_mask(shipped, torch.rand(200, 200, 3), disc(200, 200, 60), longest_px=64, on_tile=cancel)


def test_a_network_that_has_learned_nothing_gives_the_mask_at_its_own_scales():
    network = MaskRefiner().eval()
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 16:48] = 1
    pyramid = network(torch.rand(1, 3, 64, 64), mask)
    assert torch.equal(pyramid.os1[..., 22:42, 22:42], torch.ones(1, 1, 20, 20))
    assert torch.equal(pyramid.os1[..., :10, :], torch.zeros(1, 1, 10, 64))


def test_the_folded_network_equals_the_trained_one():
    network = lively()
    picture, mask = torch.rand(1, 3, 64, 48), (torch.rand(1, 1, 64, 48) > 0.5).float()
    with torch.no_grad():
        before = network(picture, mask)
        after = network.fold()(picture, mask)
    for scale in ("os8", "os4", "os1"):
        assert torch.allclose(getattr(before, scale), getattr(after, scale), atol=1e-4)


def test_a_soft_mask_is_taken(shipped, unseen):
    before, after = [], []
    for picture in unseen:
        soft = cv2.GaussianBlur(picture.alpha, (0, 0), 5)
        alpha = refine_mask(shipped, torch.from_numpy(picture.picture), torch.from_numpy(soft)).numpy()
        before.append(np.abs(soft - picture.alpha).mean())
        after.append(np.abs(alpha - picture.alpha).mean())
    assert np.mean(after) < 0.8 * np.mean(before)


def test_the_given_tensors_are_left_alone(shipped):
    picture, mask = torch.rand(60, 60, 3), disc(60, 60, 20)
    kept = picture.clone(), mask.clone()
    refine_mask(shipped, picture, mask)
    assert torch.equal(picture, kept[0]) and torch.equal(mask, kept[1])


@pytest.mark.parametrize("where", ["picture", "mask"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_numbers_are_refused_in_a_sentence(shipped, where, value):
    given = {"picture": torch.rand(20, 20, 3), "mask": disc(20, 20, 6)}
    given[where][3, 3] = value
    with pytest.raises(ValueError, match=f"The {where} holds values that are not numbers"):
        refine_mask(shipped, given["picture"], given["mask"])


def test_sizes_that_do_not_fit_are_refused_in_a_sentence(shipped):
    with pytest.raises(ValueError, match="30 x 20 pixels and the mask 20 x 30"):
        refine_mask(shipped, torch.rand(20, 30, 3), torch.rand(30, 20))
    with pytest.raises(ValueError, match="height x width x 3"):
        refine_mask(shipped, torch.rand(1, 3, 20, 30), torch.rand(20, 30))
    with pytest.raises(ValueError, match="no pixels"):
        refine_mask(shipped, torch.rand(0, 30, 3), torch.rand(0, 30))
    with pytest.raises(ValueError, match="too small"):
        refine_mask(shipped, torch.rand(20, 20, 3), disc(20, 20, 5), tile_px=8)
    with pytest.raises(ValueError, match="too small to begin with"):
        refine_mask(shipped, torch.rand(20, 20, 3), disc(20, 20, 5), longest_px=0)


def test_the_shipped_file_is_small_and_says_where_it_comes_from():
    assert SHIPPED_WEIGHTS.stat().st_size <= 4_000_000
    with safe_open(SHIPPED_WEIGHTS, "pt") as file:
        about = file.metadata()
        assert all(file.get_tensor(name).dtype == torch.float16 for name in file.keys())
    assert json.loads(about["recipe"])["seed"] == int(about["seed"])
    assert int(about["steps"]) > 0
    assert json.loads(about["pictures"])
    first = json.loads(about["before"])
    assert int(first["steps"]) > 0 and json.loads(first["pictures"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="there is no .*nothing.safetensors"):
        load_refiner(tmp_path / "nothing.safetensors")


def test_a_damaged_file_is_refused(tmp_path):
    file = tmp_path / "cut.safetensors"
    file.write_bytes(SHIPPED_WEIGHTS.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_refiner(file)


def test_weights_of_another_network_are_refused(tmp_path):
    file = tmp_path / "other.safetensors"
    save_file({"conv.weight": torch.rand(3, 3)}, file)
    with pytest.raises(CheckpointError, match="another network"):
        load_refiner(file)


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    weights = {name: value for name, value in lively().state_dict().items() if "num_batches" not in name}
    weights["os1.bias"] = torch.full((1,), float("nan"))
    file = tmp_path / "nan.safetensors"
    save_file(weights, file)
    with pytest.raises(CheckpointError, match="not numbers"):
        load_refiner(file)


def test_the_merging_takes_the_finer_scale_only_where_the_coarser_is_unsure():
    from mam_model.m2m import AlphaPyramid

    os8 = torch.zeros(1, 1, 80, 80)
    os8[..., :40] = 1
    os8[..., 38:42] = 0.5
    os4, os1 = torch.full_like(os8, 0.25), torch.full_like(os8, 0.75)
    mask = (os8[0, 0] > 0.4).float().numpy()
    everywhere = np.ones((80, 80), dtype=bool)
    merged = refiner_of._merged(AlphaPyramid(os8, os4, os1), mask, everywhere)
    assert (merged[:, 36:44] == 0.75).all()
    assert (merged[:, :20] == 1).all() and (merged[:, 60:] == 0).all()
    nowhere = np.zeros((80, 80), dtype=bool)
    assert (refiner_of._merged(AlphaPyramid(os8, os4, os1), mask, nowhere) == mask).all()
