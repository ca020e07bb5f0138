"""What solving a trimap promises: the known stays, the unknown follows the picture, and tiles do not show."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mam_model import trimap_matting
from mam_model.trimap import trimap_from_mask
from mam_model.trimap_matting import PyMattingMissing, TrimapError, solve_trimap

ROOT = Path(__file__).resolve().parents[2]

needs_pymatting = pytest.mark.skipif(importlib.util.find_spec("pymatting") is None, reason="PyMatting is not installed")


def rays(height: int, width: int, softness: float = 3.0) -> torch.Tensor:
    """An exact matte: a star with soft rays, so that its band holds fine and broad structure."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    y, x = y - height / 2, x - width / 2
    size = 0.28 * min(height, width)
    reach = size * (1 + 0.25 * (14 * torch.atan2(y, x)).sin())
    return ((reach - torch.hypot(x, y)) / softness + 0.5).clamp(0, 1)


def picture_of(alpha: torch.Tensor) -> torch.Tensor:
    """Orange on blue with this matte, both textured and gently shaded."""
    height, width = alpha.shape
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    noise = 0.02 * torch.rand(height, width, 3, generator=torch.Generator().manual_seed(3))
    front = torch.stack((0.9 - 0.1 * y, 0.5 + 0.1 * x, 0.1 + 0.05 * y), dim=-1)
    back = torch.stack((0.1 + 0.1 * x, 0.25 + 0.1 * y, 0.6 + 0.2 * x), dim=-1)
    return alpha[..., None] * front + (1 - alpha[..., None]) * back + noise


def case(height: int = 120, width: int = 140) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A picture, its trimap and its true matte."""
    truth = rays(height, width)
    return picture_of(truth), trimap_from_mask(truth, 6, 6), truth


def band_error(alpha: torch.Tensor, truth: torch.Tensor, trimap: torch.Tensor) -> float:
    return float((alpha - truth)[trimap == 0.5].abs().mean())


@needs_pymatting
def test_a_picture_that_fits_into_a_tile_is_solved_as_pymatting_solves_it():
    import pymatting

    image, trimap, _ = case()
    published = pymatting.estimate_alpha_cf(
        image.double().numpy(),
        trimap.double().numpy(),
        laplacian_kwargs={"epsilon": trimap_matting._EPSILON},
        cg_kwargs={"rtol": 1e-9},
    )
    difference = (solve_trimap(image, trimap) - torch.from_numpy(published)).abs()
    assert difference.max() < 5e-3 and difference[trimap == 0.5].mean() < 5e-4


@needs_pymatting
@pytest.mark.parametrize("method, error", [("closed-form", 0.02), ("knn", 0.08)])
def test_the_matte_of_a_star_is_found_in_its_band(method, error):
    image, trimap, truth = case()
    assert band_error(solve_trimap(image, trimap, method=method), truth, trimap) < error < 0.4
    assert band_error(trimap, truth, trimap) > 0.4


@needs_pymatting
def test_outside_the_band_the_matte_is_exactly_the_trimap():
    image, trimap, _ = case()
    for tile_px in (1000, 64):
        alpha = solve_trimap(image, trimap, tile_px=tile_px, overlap_px=16)
        known = trimap != 0.5
        assert torch.equal(alpha[known], trimap[known])
        assert alpha.min() >= 0 and alpha.max() <= 1 and alpha.dtype == torch.float32


@needs_pymatting
def test_tiles_do_not_show():
    image, trimap, truth = case(200, 260)
    whole = solve_trimap(image, trimap)
    tiled = solve_trimap(image, trimap, tile_px=96, overlap_px=24)
    assert band_error(tiled, whole, trimap) < 0.001
    assert band_error(tiled, truth, trimap) < band_error(whole, truth, trimap) + 0.001
    band = trimap == 0.5
    steps = (tiled.diff(dim=1) - whole.diff(dim=1))[band[:, 1:] & band[:, :-1]].abs()
    assert steps.max() < 0.03, "no step between neighbours that the whole solution does not have"


@needs_pymatting
def test_a_tile_in_which_nothing_is_known_follows_the_surroundings():
    y = torch.linspace(0, 1, 96)[:, None].expand(96, 96)
    image = torch.stack((y, 0.5 * y, 1 - y), dim=-1)
    trimap = torch.full((96, 96), 0.5)
    trimap[:4], trimap[-4:] = 0, 1
    tiled = solve_trimap(image, trimap, tile_px=32, overlap_px=8)
    assert (tiled - solve_trimap(image, trimap)).abs().max() < 0.05
    assert (tiled[32:64].mean(dim=1).diff() > 0).all(), "the ramp of colour is a ramp of alpha"


@needs_pymatting
def test_the_native_solution_beats_the_coarse_one_enlarged():
    image, trimap, truth = case(160, 180)
    planes = image.movedim(-1, 0)[None]
    small = torch.nn.functional.interpolate(planes, scale_factor=0.5, mode="area")[0].movedim(0, -1)
    coarse = solve_trimap(small, trimap_from_mask(rays(80, 90, 1.5), 3.5, 3.5))
    enlarged = torch.nn.functional.interpolate(coarse[None, None], (160, 180), mode="bilinear")[0, 0]
    native = solve_trimap(image, trimap, tile_px=96, overlap_px=16)
    assert band_error(native, truth, trimap) < 0.8 * band_error(enlarged, truth, trimap)


@needs_pymatting
def test_only_tiles_with_unknown_pixels_are_solved():
    trimap = torch.zeros(200, 200)
    trimap[10:30, 10:30] = 1
    trimap[14:20, 28:34] = 0.5
    solved = []
    solve_trimap(picture_of(trimap), trimap, tile_px=64, overlap_px=8, before_tile=lambda: solved.append(1))
    assert len(solved) == 3, "one tile at each of the sizes 50, 100 and 200"


@needs_pymatting
def test_work_ends_when_it_is_cancelled_between_tiles():
    image, trimap, _ = case()

    def cancel():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve_trimap(image, trimap, before_tile=cancel)


@needs_pymatting
def test_an_unknown_spot_far_from_the_subject_becomes_background():
    image, trimap, _ = case()
    trimap = trimap.round()
    trimap[trimap == 0.5] = 0
    trimap[4:8, 4:8] = 0.5
    alpha = solve_trimap(image, trimap)
    assert alpha.isfinite().all() and alpha[4:8, 4:8].max() < 0.01


@needs_pymatting
def test_what_does_not_converge_is_still_a_matte(monkeypatch):
    monkeypatch.setattr(trimap_matting, "_MOST_STEPS", 3)
    image, trimap, truth = case()
    alpha = solve_trimap(image, trimap)
    assert alpha.isfinite().all() and band_error(alpha, truth, trimap) < band_error(trimap, truth, trimap)


@needs_pymatting
@pytest.mark.parametrize("size", [(1, 12), (2, 150), (150, 1), (3, 3)])
@pytest.mark.parametrize("method", ["closed-form", "knn"])
def test_strips_and_tiny_pictures_are_solved(size, method):
    trimap = torch.full(size, 0.5).flatten()
    trimap[:2], trimap[-2:] = 0, 1
    noise = torch.rand(*size, 3, generator=torch.Generator().manual_seed(0))
    alpha = solve_trimap(noise, trimap.reshape(size), method=method, tile_px=64, overlap_px=16)
    assert alpha.shape == size and alpha.isfinite().all() and alpha.min() >= 0 and alpha.max() <= 1


@needs_pymatting
def test_a_system_that_is_singular_gives_a_matte_and_not_nan():
    # Of 400 seeds the only one whose KNN graph has a part without any sure pixel.
    noise = torch.rand(2, 150, 3, generator=torch.Generator().manual_seed(94))
    trimap = torch.full((300,), 0.5)
    trimap[:2], trimap[-2:] = 0, 1
    alpha = solve_trimap(noise, trimap.reshape(2, 150), method="knn", tile_px=64, overlap_px=16)
    assert alpha.isfinite().all() and alpha.min() >= 0 and alpha.max() <= 1


@needs_pymatting
def test_plain_pictures_are_solved_without_a_word(capfd):
    trimap = torch.full((60, 60), 0.5)
    trimap[:, :10], trimap[:, -10:] = 0, 1
    alpha = solve_trimap(torch.full((60, 60, 3), 0.4), trimap)
    assert alpha.isfinite().all()
    assert capfd.readouterr().out == ""


@needs_pymatting
def test_picture_and_trimap_are_left_alone():
    image, trimap, _ = case()
    before = image.clone(), trimap.clone()
    solve_trimap(image, trimap, tile_px=64, overlap_px=16)
    assert torch.equal(image, before[0]) and torch.equal(trimap, before[1])


def test_a_trimap_without_unknown_pixels_is_its_own_matte():
    trimap = torch.tensor([[0.0, 0.02, 0.97, 1.0]])
    assert solve_trimap(torch.rand(1, 4, 3), trimap).tolist() == [[0, 0, 1, 1]]
    assert torch.equal(solve_trimap(torch.rand(5, 6, 3), torch.zeros(5, 6)), torch.zeros(5, 6))


@needs_pymatting
def test_128_of_255_is_unknown():
    image, trimap, _ = case()
    bytes_ = torch.tensor([0.0, 128.0, 255.0])[(2 * trimap).long()] / 255
    assert torch.equal(solve_trimap(image, bytes_), solve_trimap(image, trimap))


@pytest.mark.parametrize(
    "sides, sentence",
    [((0.5, 0.0), "no sure subject.*narrower on the inside"), ((0.5, 1.0), "no sure background"), ((0.5,), "neither")],
)
def test_a_one_sided_trimap_is_refused_with_what_to_do(sides, sentence):
    trimap = torch.tensor(sides).repeat(8, 8)
    with pytest.raises(TrimapError, match=sentence):
        solve_trimap(torch.rand(*trimap.shape, 3), trimap)


@pytest.mark.parametrize("method", ["closed-form", "knn"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_picture_with_a_pixel_that_is_no_number_is_refused(value, method):
    """PyMatting's search for like colours would never end."""
    picture, trimap, _ = case()
    picture[3, 4, 1] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        solve_trimap(picture, trimap, method=method)


def test_a_grey_picture_is_refused_with_its_shape():
    picture, trimap, _ = case()
    with pytest.raises(ValueError, match="120 x 140 x 1"):
        solve_trimap(picture[..., :1], trimap)


def test_a_trimap_of_another_size_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match="20 x 10 pixels but the picture is 30 x 40"):
        solve_trimap(torch.rand(40, 30, 3), torch.rand(10, 20))


def test_unknown_methods_and_tiles_within_their_overlap_are_refused():
    with pytest.raises(ValueError, match="'magic'.*closed-form, knn"):
        solve_trimap(torch.rand(4, 4, 3), torch.zeros(4, 4), method="magic")
    with pytest.raises(ValueError, match="Tiles of 64 pixels"):
        solve_trimap(torch.rand(4, 4, 3), torch.zeros(4, 4), tile_px=64, overlap_px=64)


def test_without_pymatting_the_error_names_the_command(monkeypatch):
    image, trimap, _ = case(40, 40)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PyMattingMissing, match="pip install pymatting"):
        solve_trimap(image, trimap)


@needs_pymatting
def test_pytorch_keeps_its_number_of_threads():
    """In a process of its own, where Numba is imported only after PyTorch has begun to compute."""
    program = (
        "import torch; from mam_model.trimap_matting import solve_trimap; "
        "torch.set_num_threads(1); torch.get_num_threads(); "
        "trimap = torch.full((12, 12), 0.5); trimap[:2] = 0; trimap[-2:] = 1; "
        "solve_trimap(torch.rand(12, 12, 3), trimap); print(torch.get_num_threads())"
    )
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert told.stdout.split() == ["1"], told.stderr
