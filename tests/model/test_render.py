"""What rendered training pictures promise: exact alpha, softness where things are soft, repeatability."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from mam_model.__main__ import main
from mam_model.photo import read_mask, read_photo
from mam_model.training.render import KINDS, render
from mam_model.training.rendering import files
from mam_model.training.rendering.camera import disc_kernel, motion_kernel
from mam_model.training.rendering.files import contact_sheet, tile
from mam_model.training.rendering.layers import Canvas, Layer, blurred, coverage, painted
from mam_model.training.rendering.strands import coat, grow
from mam_model.training.rendering.textures import background

SOFT_KINDS = ("fur", "plush toy", "hair", "tuft", "feather", "net", "lace", "smoke", "glass", "plastic", "defocus")


@pytest.fixture(scope="module")
def of_each_kind():
    """Two pictures of each kind, as they are before the camera."""
    return {kind: [render(seed, 96, 96, kind=kind, camera=False) for seed in (3, 4)] for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_before_the_camera_a_picture_is_its_foreground_over_its_background(of_each_kind, kind):
    for rendered in of_each_kind[kind]:
        alpha = rendered.alpha[..., None]
        composite = alpha * rendered.foreground + (1 - alpha) * rendered.background
        np.testing.assert_allclose(rendered.picture, composite, atol=1e-5)
        assert rendered.kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_all_values_are_finite_and_from_0_to_1(of_each_kind, kind):
    for rendered in of_each_kind[kind]:
        for plane in (rendered.picture, rendered.alpha, rendered.foreground, rendered.background):
            assert plane.dtype == np.float32
            assert np.isfinite(plane).all()
            assert plane.min() >= 0
            assert plane.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_a_subject_and_a_background(of_each_kind, kind):
    shares = [float((rendered.alpha > 0.1).mean()) for rendered in of_each_kind[kind]]
    assert max(shares) > 0.003
    assert min(shares) < 0.99


@pytest.mark.parametrize("kind", SOFT_KINDS)
def test_soft_things_have_pixels_that_are_partly_covered(of_each_kind, kind):
    for rendered in of_each_kind[kind]:
        seen = rendered.alpha > 0.02
        partly = seen & (rendered.alpha < 0.98)
        assert partly.sum() > 0.1 * seen.sum()


def test_a_solid_thing_is_soft_at_its_outline_alone():
    alpha = render(3, 256, 256, kind="solid", camera=False).alpha
    partly = ((alpha > 0.1) & (alpha < 0.9)).mean()
    assert 0 < partly < 0.06


def test_the_camera_changes_the_picture_but_not_the_truth():
    seen, drawn = render(11, 96, 96), render(11, 96, 96, camera=False)
    np.testing.assert_array_equal(seen.alpha, drawn.alpha)
    np.testing.assert_array_equal(seen.foreground, drawn.foreground)
    assert not np.array_equal(seen.picture, drawn.picture)
    assert np.abs(seen.picture - drawn.picture).mean() < 0.2


def test_the_same_seed_draws_the_same_picture_and_another_seed_another():
    first, again, other = render(5, 96, 96), render(5, 96, 96), render(6, 96, 96)
    np.testing.assert_array_equal(first.picture, again.picture)
    np.testing.assert_array_equal(first.alpha, again.alpha)
    assert first.kind == again.kind
    assert not np.array_equal(first.picture, other.picture)


def test_rendering_leaves_numpys_own_random_numbers_alone():
    np.random.seed(1)
    expected = np.random.random(3)
    np.random.seed(1)
    render(5, 32, 32)
    np.testing.assert_array_equal(np.random.random(3), expected)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 70), (70, 17)])
@pytest.mark.parametrize("kind", KINDS)
def test_any_size_from_16_pixels_on_can_be_drawn(kind, height, width):
    rendered = render(1, height, width, kind=kind)
    assert rendered.picture.shape == rendered.foreground.shape == rendered.background.shape == (height, width, 3)
    assert rendered.alpha.shape == (height, width)
    assert np.isfinite(rendered.picture).all()


def test_backgrounds_are_cut_from_the_photos_given():
    red = np.zeros((40, 60, 3), np.float32)
    red[..., 0] = 0.8
    reddish = [background(np.random.default_rng(seed), 48, 48, [red]).mean(axis=(0, 1)) for seed in range(40)]
    share = np.mean([mean[1] < 0.01 and mean[2] < 0.01 for mean in reddish])
    assert 0.5 < share < 0.95


def test_subjects_take_colours_from_the_textures_given():
    red = np.zeros((40, 60, 3), np.float32)
    red[..., 0] = 0.9
    plain = [render(seed, 48, 48, kind="solid") for seed in range(10)]
    colored = [render(seed, 48, 48, kind="solid", foreground_textures=[red]) for seed in range(10)]
    redness = [
        np.mean([(one.foreground[..., 0] - one.foreground[..., 1])[one.alpha > 0.5].mean() for one in many])
        for many in (plain, colored)
    ]
    assert redness[1] > redness[0] + 0.1


def test_a_photo_of_a_single_pixel_serves_as_background():
    rendered = render(2, 32, 32, backgrounds=[np.full((1, 1, 3), 0.5)], foreground_textures=[np.zeros((1, 3, 3))])
    assert rendered.picture.shape == (32, 32, 3)


def test_a_hair_thinner_than_a_pixel_covers_part_of_each_pixel():
    canvas = Canvas(40, 40)
    line = np.array([[[5.0, 20.3], [15.0, 20.3], [25.0, 20.3], [35.0, 20.3]]])
    canvas.strands(line, np.ones((1, 3)), np.ones((1, 3)), np.array([0.5]), 1.0)
    hair = canvas.layer().alpha[:, 20]
    assert 0.3 < hair.sum() < 0.9
    assert 0 < hair.max() < 0.9


@pytest.mark.parametrize("angle", [0.0, 0.3, 0.785, 1.2])
def test_a_strand_covers_what_its_width_says(angle):
    along = np.array([np.cos(angle), np.sin(angle)])
    line = 50 + np.linspace(-30, 30, 9)[None, :, None] * along
    for width in (0.8, 1.2, 2.0, 4.0, 8.0):
        canvas = Canvas(100, 100)
        canvas.strands(line, np.ones((1, 3)), np.ones((1, 3)), np.array([width]), 1.0)
        assert abs(float(canvas.layer().alpha.sum()) / 60 - width) < 0.26 + 0.03 * width


def test_an_outline_covers_its_area():
    square = np.array([[10.25, 10.25], [30.75, 10.25], [30.75, 30.75], [10.25, 30.75]])
    alpha = coverage([square], 40, 40)
    assert alpha[20, 20] == 1
    assert alpha[5, 5] == 0
    # The drawn line around the area adds a quarter of a pixel on each side.
    assert abs(np.sqrt(alpha.sum()) - 20.5) < 0.8


def test_crossing_strands_cover_no_more_than_all_of_a_pixel():
    canvas = Canvas(32, 32)
    rng = np.random.default_rng(0)
    points = grow(rng, rng.uniform(0, 32, (300, 2)), rng.uniform(0, 6, 300), np.full(300, 20.0))
    canvas.strands(points, rng.uniform(0, 1, (300, 3)), rng.uniform(0, 1, (300, 3)), np.full(300, 2.0))
    layer = canvas.layer()
    assert layer.alpha.max() <= 1
    assert (layer.color <= layer.alpha[..., None]).all()


def test_a_layer_over_another_is_the_compositing_formula():
    rng = np.random.default_rng(0)
    front, back = (painted(rng.uniform(0, 1, (6, 8)), rng.uniform(0, 1, (6, 8, 3))) for _ in range(2))
    pile = front.over(back)
    np.testing.assert_allclose(pile.alpha, 1 - (1 - front.alpha) * (1 - back.alpha), atol=1e-6)
    np.testing.assert_allclose(pile.color, front.color + (1 - front.alpha)[..., None] * back.color, atol=1e-6)


def test_straight_colours_go_on_where_nothing_is_covered():
    alpha = np.zeros((64, 64), np.float32)
    alpha[24:40, 24:40] = 1
    colors = painted(alpha, np.array([0.2, 0.6, 0.4])).straight()
    np.testing.assert_allclose(colors[32, 32], (0.2, 0.6, 0.4), atol=2e-3)
    np.testing.assert_allclose(colors[20, 32], (0.2, 0.6, 0.4), atol=2e-2)


@pytest.mark.parametrize("kernel", [disc_kernel(0.3), disc_kernel(7.5), motion_kernel(np.random.default_rng(0), 20)])
def test_a_blur_keeps_the_light(kernel):
    assert kernel.min() >= 0
    assert abs(float(kernel.sum()) - 1) < 1e-5
    alpha = np.zeros((65, 65), np.float32)
    alpha[30:36, 30:36] = 1
    blurry = Layer(np.repeat(alpha[..., None], 3, axis=2) * 0.5, alpha).filtered(kernel)
    assert abs(float(blurry.alpha.sum()) - 36) < 0.01
    np.testing.assert_allclose(blurry.color, blurry.alpha[..., None] * np.full(3, 0.5), atol=1e-5)


def test_a_wide_blur_on_a_smaller_picture_is_close_to_the_exact_one():
    picture = np.zeros((128, 96, 4), np.float32)
    picture[40:80, 30:60] = np.random.default_rng(0).uniform(0, 1, (40, 30, 4))
    exact = cv2.GaussianBlur(picture, (0, 0), 9.0, borderType=cv2.BORDER_REPLICATE)
    assert np.abs(blurred(picture, 9.0) - exact).max() < 0.03


def test_hairs_grow_outwards_at_the_outline():
    mask = np.zeros((100, 100), np.float32)
    cv2.circle(mask, (50, 50), 30, 1.0, -1)
    held = coat(np.random.default_rng(0), mask, 500, 6.0, combed=0.0, edge_share=1.0)
    near = held.depth < 2
    outward = held.root[near] - 50
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    along = outward[:, 0] * np.cos(held.angle[near]) + outward[:, 1] * np.sin(held.angle[near])
    assert near.sum() > 50
    assert (along > 0.8).mean() > 0.95


def test_nothing_grows_on_an_empty_body():
    assert len(coat(np.random.default_rng(0), np.zeros((20, 20), np.float32), 50, 5.0, 0.0).root) == 0


def test_strands_are_as_long_as_asked():
    rng = np.random.default_rng(0)
    points = grow(rng, np.zeros((9, 2)), np.linspace(0, 6, 9), np.full(9, 40.0), 12, 0.6, 0.3)
    np.testing.assert_allclose(np.linalg.norm(np.diff(points, axis=1), axis=2).sum(axis=1), 40, rtol=1e-6)
    np.testing.assert_array_equal(points[:, 0], 0)


def test_glass_bends_what_lies_behind_it():
    bent = [render(seed, 96, 96, kind="glass", camera=False) for seed in range(4)]
    clear = [render(seed, 96, 96, kind="solid", camera=False) for seed in range(4)]
    # The background is drawn first, so that the same seed gives both the same.
    inside = [np.abs(one.background - other.background)[one.alpha > 0.05] for one, other in zip(bent, clear)]
    outside = [np.abs(one.background - other.background)[one.alpha == 0] for one, other in zip(bent, clear)]
    assert np.concatenate(inside).max() > 0.02
    assert np.concatenate(outside).max() < 1e-6


@pytest.mark.parametrize(("height", "width"), [(15, 64), (64, 8), (0, 64)])
def test_a_picture_below_16_pixels_is_refused(height, width):
    with pytest.raises(ValueError, match="too small"):
        render(0, height, width)


def test_an_unknown_kind_is_refused_with_the_kinds_there_are():
    with pytest.raises(ValueError, match="'wool' cannot be rendered. Choose one of: fur, plush toy"):
        render(0, kind="wool")


@pytest.mark.parametrize(
    ("photo", "said"),
    [
        (np.zeros((8, 8), np.float32), "Photo 1 is 8 x 8 of type float32"),
        (np.zeros((8, 8, 4), np.float32), "8 x 8 x 4"),
        (np.zeros((8, 8, 3), np.uint8), "type uint8"),
        (np.zeros((0, 8, 3), np.float32), "0 x 8 x 3"),
    ],
)
@pytest.mark.parametrize("use", ["backgrounds", "foreground_textures"])
def test_photos_of_another_form_are_refused(photo, said, use):
    with pytest.raises(ValueError, match=said):
        for seed in range(8):
            render(seed, 32, 32, kind="solid", **{use: [photo]})


def test_a_sheet_stays_small_even_of_noise():
    rng = np.random.default_rng(0)
    tiles = [rng.integers(0, 256, (300, 150, 3), dtype=np.uint8) for _ in range(3)]
    assert contact_sheet(tiles)[:2] == b"\xff\xd8"
    assert len(contact_sheet(tiles)) <= 250_000
    assert tile(render(0, 32, 32)).shape == (300, 150, 3)


def test_the_command_writes_pictures_their_mattes_and_a_sheet(tmp_path, capsys):
    told = ["render", str(tmp_path), "--count", "2", "--seed", "7", "--size", "48", "--kind", "fur", "--sheet"]
    assert main(told) == 0
    assert "[2/2] fur" in capsys.readouterr().err
    expected = render(8, 48, 48, kind="fur")
    np.testing.assert_allclose(read_photo(tmp_path / "image" / "000008.png").image, expected.picture, atol=0.5 / 255)
    np.testing.assert_allclose(read_mask(tmp_path / "alpha" / "000008.png"), expected.alpha, atol=1e-4)
    assert (tmp_path / "foreground" / "000007.png").exists()
    assert (tmp_path / "sheet.jpg").exists()
    assert main(told) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*told, "--overwrite", "--quiet"]) == 0


def test_the_help_names_every_kind(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["render", "--help"])
    listed = capsys.readouterr().out.split("kinds:")[1].split("\n\n")[0]
    assert tuple(kind.strip() for kind in listed.split(",")) == KINDS


def test_a_sheet_of_very_many_keeps_no_more_in_memory_than_it_shows(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(files, "SHEET_TILES", 2)
    monkeypatch.setattr(files, "contact_sheet", lambda tiles: shown.extend(tiles) or b"sheet")
    assert main(["render", str(tmp_path), "--count", "3", "--size", "16", "--kind", "solid", "--sheet", "--quiet"]) == 0
    assert len(shown) == 2 and (tmp_path / "sheet.jpg").read_bytes() == b"sheet"


def test_the_command_takes_backgrounds_from_a_folder_of_photos(tmp_path):
    main(["render", str(tmp_path / "photos"), "--count", "1", "--size", "32", "--quiet"])
    photos = tmp_path / "photos" / "image"
    told = ["render", str(tmp_path / "drawn"), "--count", "1", "--size", "32", "--quiet", "--backgrounds", str(photos)]
    assert main(told) == 0
    photo = read_photo(photos / "000000.png").image.numpy()
    drawn = render(0, 32, 32, backgrounds=[photo], foreground_textures=[photo])
    np.testing.assert_allclose(
        read_photo(tmp_path / "drawn" / "image" / "000000.png").image, drawn.picture, atol=0.5 / 255
    )


def test_a_background_that_cannot_be_read_is_named_and_left_out(tmp_path, capsys):
    main(["render", str(tmp_path / "photos"), "--count", "1", "--size", "32", "--quiet"])
    photos = tmp_path / "photos" / "image"
    (photos / "broken.jpg").write_bytes(b"no picture")
    told = ["render", str(tmp_path / "drawn"), "--count", "1", "--size", "32", "--quiet", "--backgrounds", str(photos)]
    assert main(told) == 0
    assert "Skipped: " in (said := capsys.readouterr().err) and "broken.jpg" in said
    (photos / "000000.png").unlink()
    assert main([*told, "--overwrite"]) == 1
    assert f"None of the 1 pictures beside {photos / 'broken.jpg'} can be used." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--count", "0"], "--count"),
        (["--seed", "-1"], "--seed"),
        (["--size", "8"], "--size 8"),
        (["--size", "99999"], "--size 99999"),
        (["--kind", "wool"], "one of: fur"),
    ],
)
def test_the_command_refuses_what_cannot_be_drawn(tmp_path, capsys, wrong, said):
    with pytest.raises(SystemExit, match="2"):
        main(["render", str(tmp_path / "new"), *wrong])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
