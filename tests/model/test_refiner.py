"""The refiner that ships with the pack: picture and any mask in, alpha out."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from mam_model import refiner as refiner_of
from mam_model.__main__ import main
from mam_model.checkpoint import CheckpointError
from mam_model.refiner import SHIPPED_WEIGHTS, MaskRefiner, load_refiner, read_weights, refine_mask
from mam_model.training import refining as recipe_of
from mam_model.training.config import TrainingError
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


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe_of, "GALLERY_PX", 128)
        recipe_of.fill_gallery(folder / "gallery", (), small_recipe(steps=1))
    return folder


def test_a_short_run_lowers_the_loss(rendered, tmp_path):
    """Measured where it cannot be luck: the same samples before and after."""
    work = copied(rendered, tmp_path)
    recipe_of.train_refiner(tmp_path / "refiner.safetensors", work, small_recipe(steps=120), renderers=0)
    gallery = recipe_of.Gallery(work / "gallery", [], [], small_recipe(steps=120))
    gallery.refresh()
    samples = [gallery.sample(np.random.default_rng((9, number)), 64) for number in range(12)]
    picture, alpha, mask = recipe_of._batch(samples)

    def loss(network) -> float:
        with torch.no_grad():
            return recipe_of.refining_loss(network(picture, mask), alpha, mask, focus=False).item()

    assert loss(load_refiner(tmp_path / "refiner.safetensors")) < loss(MaskRefiner().eval())


def test_a_run_goes_on_where_it_was_stopped(rendered, tmp_path):
    work, seen = copied(rendered, tmp_path), []
    output = tmp_path / "refiner.safetensors"

    def told(step: int, cost: float, done: float) -> None:
        seen.append(step)
        if seen == [1, 2, 3]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recipe_of.train_refiner(output, work, small_recipe(steps=5), renderers=0, on_step=told, save_every_s=0)
    assert recipe_of.train_refiner(output, work, small_recipe(steps=5), renderers=0, on_step=told) == 5
    assert seen == [1, 2, 3, 3, 4, 5]
    with safe_open(output, "pt") as file:
        assert file.metadata()["steps"] == "5"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_what_was_learned_and_says_how_to_go_on(rendered, tmp_path, number):
    work, output, seen = copied(rendered, tmp_path), tmp_path / "refiner.safetensors", []

    def told(step: int, cost: float, done: float) -> None:
        seen.append(step)
        if seen == [1, 2]:
            os.kill(os.getpid(), number)

    given = {"renderers": 0, "on_step": told}
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="^Stopped after step 2. The same command goes on from there.$"):
        recipe_of.train_refiner(output, work, small_recipe(steps=4), **given)
    assert signal.getsignal(number) == before
    assert recipe_of.train_refiner(output, work, small_recipe(steps=4), **given) == 4
    assert seen == [1, 2, 3, 4]


def test_ctrl_c_in_the_last_step_ends_a_run_that_is_done(rendered, tmp_path):
    def told(step: int, cost: float, done: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    given = {"renderers": 0, "on_step": told}
    work, output = copied(rendered, tmp_path), tmp_path / "refiner.safetensors"
    assert recipe_of.train_refiner(output, work, small_recipe(steps=1), **given) == 1


@pytest.mark.parametrize("written", ["state.pt", "refiner.safetensors"])
def test_a_second_ctrl_c_while_the_state_is_saved_leaves_the_last_one_whole(rendered, tmp_path, monkeypatch, written):
    work, output, seen = copied(rendered, tmp_path), tmp_path / "refiner.safetensors", []
    replace = os.replace

    def told(step: int, cost: float, done: float) -> None:
        seen.append(step)
        if seen == [1, 2]:
            os.kill(os.getpid(), signal.SIGINT)

    def impatient(part, whole):
        if seen == [1, 2] and Path(whole).name == written:
            os.kill(os.getpid(), signal.SIGINT)
        replace(part, whole)

    monkeypatch.setattr(os, "replace", impatient)
    given = {"renderers": 0, "on_step": told, "save_every_s": 0}
    with pytest.raises(KeyboardInterrupt):
        recipe_of.train_refiner(output, work, small_recipe(steps=3), **given)
    assert not [*tmp_path.rglob("*.part")]
    assert recipe_of.train_refiner(output, work, small_recipe(steps=3), **given) == 3
    assert load_refiner(output)


def test_weights_of_another_run_or_other_files_are_never_replaced(rendered, tmp_path, monkeypatch):
    """And that is said before anything is read, rendered or trained."""
    work, output = copied(rendered, tmp_path), tmp_path / "refiner.safetensors"
    recipe_of.train_refiner(output, work, small_recipe(steps=1), renderers=0)
    copied(rendered, tmp_path / "new")
    shutil.copytree(rendered, tmp_path / "other" / "work")
    another = tmp_path / "another.safetensors"
    recipe_of.train_refiner(another, tmp_path / "other" / "work", small_recipe(steps=1), renderers=0)
    text = tmp_path / "text.safetensors"
    text.write_text("mine")
    monkeypatch.setattr(recipe_of, "_usable", None)
    for file, folder in (
        (output, tmp_path / "new" / "work"),
        (output, tmp_path / "nowhere"),
        (another, work),
        (text, work),
    ):
        kept = file.read_bytes()
        with pytest.raises(TrainingError, match=f"{file.name} exists already.*Name another file"):
            recipe_of.train_refiner(file, folder, small_recipe(steps=2), renderers=0)
        assert file.read_bytes() == kept
        assert not (tmp_path / "nowhere").exists()


def test_the_run_that_wrote_its_weights_replaces_them_and_may_write_others(rendered, tmp_path):
    work, output = copied(rendered, tmp_path), tmp_path / "refiner.safetensors"
    for steps in (1, 2):
        assert recipe_of.train_refiner(output, work, small_recipe(steps=steps), renderers=0) == steps
    assert recipe_of.train_refiner(tmp_path / "b.safetensors", work, small_recipe(steps=3), renderers=0) == 3
    with safe_open(output, "pt") as file:
        assert file.metadata()["steps"] == "2"


def test_a_run_of_an_earlier_version_which_had_no_name_goes_on(rendered, tmp_path):
    work, output = copied(rendered, tmp_path), tmp_path / "refiner.safetensors"
    recipe_of.train_refiner(output, work, small_recipe(steps=1), renderers=0)
    state = torch.load(work / "state.pt", weights_only=True)
    del state["run"]
    torch.save(state, work / "state.pt")
    with safe_open(output, "pt") as file:
        metadata = {name: value for name, value in file.metadata().items() if name != "run"}
    weights = {name: value.half() for name, value in read_weights(output).items()}
    save_file(weights, output, metadata)
    for steps in (2, 3):
        assert recipe_of.train_refiner(output, work, small_recipe(steps=steps), renderers=0) == steps


def test_a_run_of_other_settings_renders_nothing_into_the_folder_of_the_first(rendered, tmp_path):
    work, output = copied(rendered, tmp_path), tmp_path / "refiner.safetensors"
    recipe_of.train_refiner(output, work, small_recipe(steps=1), renderers=0)
    (work / "gallery" / "00003.npy").unlink()
    with pytest.raises(TrainingError, match="begun with another seed"):
        recipe_of.train_refiner(output, work, small_recipe(steps=2, seed=6), renderers=1)
    assert not (work / "gallery" / "00003.npy").exists()


def test_weights_are_written_as_safetensors_alone(tmp_path):
    with pytest.raises(TrainingError, match="holiday.png has to end in .safetensors"):
        recipe_of.train_refiner(tmp_path / "holiday.png", tmp_path / "work", small_recipe(steps=1), renderers=0)


def test_a_run_goes_on_only_with_the_settings_it_was_begun_with(rendered, tmp_path):
    """Or the file would speak of a seed, of photos and of a beginning that are not those of its weights."""
    work, output = copied(rendered, tmp_path), tmp_path / "refiner.safetensors"
    recipe_of.train_refiner(output, work, small_recipe(steps=1), renderers=0)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (200, 200), "teal").save(photo)
    for changed, what in (
        ((small_recipe(steps=2, seed=6), {}), "another seed"),
        ((small_recipe(steps=2, learning_rate=2e-3), {}), "another learning rate"),
        ((small_recipe(steps=2), {"photos": [photo]}), "another set of photos"),
        ((small_recipe(steps=2), {"start": SHIPPED_WEIGHTS}), "another file to begin with"),
    ):
        with pytest.raises(TrainingError, match=f"begun with {what}.*--work folder of its own"):
            recipe_of.train_refiner(output, work, changed[0], renderers=0, **changed[1])
    with safe_open(output, "pt") as file:
        assert file.metadata()["steps"] == "1"
    assert recipe_of.train_refiner(output, work, small_recipe(steps=2), renderers=0) == 2


def test_a_run_begins_with_the_weights_of_an_earlier_one_and_names_it(rendered, tmp_path):
    output = tmp_path / "refiner.safetensors"
    gentle = small_recipe(steps=1, learning_rate=1e-9, average=0.0)
    recipe_of.train_refiner(output, copied(rendered, tmp_path), gentle, start=SHIPPED_WEIGHTS, renderers=0)
    begun, given = read_weights(output), read_weights()
    for name, weight in given.items():
        if "running" not in name:
            # Before a normalisation the scale may be another, and the smallest numbers of float16 are 2 ** -24 apart.
            scale = float(weight.abs().max() / begun[name].abs().max()) if name.endswith("conv.weight") else 1.0
            assert (begun[name] * scale - weight).abs().max() <= (scale > 1) * scale * 2.0**-24, name
    with safe_open(output, "pt") as file:
        before = json.loads(file.metadata()["before"])
    with safe_open(SHIPPED_WEIGHTS, "pt") as file:
        assert before == {**file.metadata(), "sha256": hashlib.sha256(SHIPPED_WEIGHTS.read_bytes()).hexdigest()}


def test_variances_that_float16_cannot_hold_are_written_all_the_same(tmp_path):
    """A convolution before a normalisation may have grown to any scale."""
    torch.manual_seed(0)
    network = MaskRefiner()
    network.load_state_dict(read_weights(), strict=False)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    for block in ("down2.0", "up8.first", "detail"):
        state[f"{block}.conv.weight"] *= 1000
        state[f"{block}.norm.running_mean"] *= 1000
        state[f"{block}.norm.running_var"] *= 1e6
    assert state["up8.first.norm.running_var"].max() > 65504
    recipe_of._write_weights(tmp_path / "large.safetensors", state, recipe_of.Recipe(), 1, (), None, "")
    picture, mask = torch.rand(1, 3, 64, 64), (torch.rand(1, 1, 64, 64) > 0.5).float()
    with torch.inference_mode():
        expected, found = network.fold()(picture, mask), load_refiner(tmp_path / "large.safetensors")(picture, mask)
    assert expected.os1.std() > 0.1
    for scale in ("os8", "os4", "os1"):
        assert (getattr(found, scale) - getattr(expected, scale)).abs().mean() < 2e-3


def test_weights_to_begin_with_that_are_missing_are_named(rendered, tmp_path):
    nothing = tmp_path / "nothing.safetensors"
    with pytest.raises(CheckpointError, match="there is no .*nothing.safetensors"):
        recipe_of.train_refiner(tmp_path / "refiner.safetensors", tmp_path / "work", small_recipe(), start=nothing)


@pytest.mark.parametrize("content", [b"", b"no state at all", "other", "list"])
def test_a_state_that_cannot_be_gone_on_from_is_refused_in_a_sentence(rendered, tmp_path, content):
    work = copied(rendered, tmp_path)
    if content == "other":
        torch.save({"network": {"conv.weight": torch.rand(3)}}, work / "state.pt")
    elif content == "list":
        torch.save([1, 2], work / "state.pt")
    else:
        (work / "state.pt").write_bytes(content)
    with pytest.raises(TrainingError, match="Move it away"):
        recipe_of.train_refiner(tmp_path / "refiner.safetensors", work, small_recipe(steps=1), renderers=0)


def test_too_few_pictures_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(TrainingError, match="fewer than 4 rendered pictures"):
        recipe_of.train_refiner(tmp_path / "refiner.safetensors", tmp_path / "work", small_recipe(steps=1), renderers=0)


def test_rendering_goes_on_where_it_stopped(rendered, tmp_path):
    work = copied(rendered, tmp_path)
    kept = (work / "gallery" / "00001.npy").stat().st_mtime_ns
    recipe_of.fill_gallery(work / "gallery", (), small_recipe(steps=1))
    assert (work / "gallery" / "00001.npy").stat().st_mtime_ns == kept


@pytest.mark.parametrize("named, sentence", [("empty", "There are no pictures in"), ("nowhere", "There is no folder")])
def test_a_folder_without_pictures_is_refused_in_a_sentence(tmp_path, capsys, named, sentence):
    (tmp_path / "empty").mkdir()
    folders = ("--work", str(tmp_path / "work"), "--photos", str(tmp_path / named))
    assert main(["train-refiner", str(tmp_path / "refiner.safetensors"), *folders, "--steps", "1"]) == 1
    assert f"{sentence} {tmp_path / named}" in capsys.readouterr().err


def test_photos_of_every_kind_that_is_read_are_used(rendered, tmp_path):
    work, output = copied(rendered, tmp_path), tmp_path / "refiner.safetensors"
    (tmp_path / "photos").mkdir()
    for name in ("one.webp", "two.tif", "three.bmp", ".hidden.png"):
        Image.new("RGB", (200, 200), "teal").save(tmp_path / "photos" / name)
    folders = ("--work", str(work), "--photos", str(tmp_path / "photos"))
    numbers = ("--steps", "1", "--gallery", "4", "--renderers", "0", "--quiet")
    assert main(["train-refiner", str(output), *folders, *numbers]) == 0
    with safe_open(output, "pt") as file:
        assert json.loads(file.metadata()["pictures"]).keys() == {"one.webp", "two.tif", "three.bmp"}


@pytest.mark.parametrize("content", [b"", b"no picture at all", "half"])
def test_a_rendered_picture_that_is_damaged_is_named(rendered, tmp_path, content):
    work = copied(rendered, tmp_path)
    file = work / "gallery" / "00001.npy"
    file.write_bytes(file.read_bytes()[:9000] if content == "half" else content)
    with pytest.raises(TrainingError, match="00001.npy is damaged. Remove it"):
        recipe_of.train_refiner(tmp_path / "refiner.safetensors", work, small_recipe(steps=1), renderers=0)


def test_a_place_that_takes_no_weights_is_refused_before_the_training(rendered, tmp_path):
    work = copied(rendered, tmp_path)
    (tmp_path / "file").touch()
    for output, error, sentence in (
        (tmp_path, TrainingError, "is a folder. Name the file"),
        (tmp_path / "file" / "refiner.safetensors", OSError, "file"),
    ):
        with pytest.raises(error, match=sentence):
            recipe_of.train_refiner(output, work, small_recipe(steps=1), renderers=0)
        assert not (work / "state.pt").exists()


def test_photos_and_cut_outs_that_cannot_be_used_are_skipped_counted_and_named(rendered, tmp_path, capsys):
    work, output = copied(rendered, tmp_path), tmp_path / "refiner.safetensors"
    photos, true = tmp_path / "photos", tmp_path / "true"
    for folder in (photos, true):
        folder.mkdir()
    colors = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    alpha = np.zeros((90, 120, 1), np.uint8)
    alpha[20:70, 30:90] = 255
    Image.fromarray(colors).save(photos / "whole.png")
    (photos / "half.png").write_bytes((photos / "whole.png").read_bytes()[:9000])
    Image.fromarray(np.dstack([colors, alpha])).save(true / "subject.png")
    Image.fromarray(np.dstack([colors, 0 * alpha])).save(true / "nothing.png")
    Image.fromarray(np.dstack([colors, 0 * alpha + 255])).save(true / "all.png")
    Image.fromarray(colors).save(true / "photo.jpg")
    folders = ("--photos", str(photos), "--true", str(true))
    numbers = ("--steps", "1", "--gallery", "4", "--renderers", "0", "--quiet")
    assert main(["train-refiner", str(output), "--work", str(work), *folders, *numbers]) == 0
    said = capsys.readouterr().err
    for name, what in (("half", "damaged"), ("nothing", "empty"), ("all", "opaque"), ("photo", "no transparency")):
        assert any(name in line and what in line for line in said.splitlines()), name
    assert "4 of 6 photos and cut-outs could not be used." in said
    with safe_open(output, "pt") as file:
        assert json.loads(file.metadata()["pictures"]).keys() == {"whole.png", "subject.png"}
    (true / "subject.png").unlink()
    assert main(["train-refiner", str(output), "--work", str(work), *folders, *numbers]) == 1
    assert "None of the 3 pictures" in capsys.readouterr().err


def test_a_photo_of_16_bits_serves_in_its_own_levels_and_upright(tmp_path):
    ramp = np.linspace(0, 65535, 60 * 90).reshape(60, 90).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert np.abs(recipe_of._read_texture(tmp_path / "ramp.png") - (ramp / 257)[..., None]).max() <= 0.51
    turned = Image.new("RGB", (90, 60))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert recipe_of._read_texture(tmp_path / "turned.jpg").shape == (90, 60, 3)


def test_the_command_line_trains(rendered, tmp_path, capsys):
    work, output = copied(rendered, tmp_path), tmp_path / "refiner.safetensors"
    numbers = ("--steps", "1", "--gallery", "4", "--renderers", "0", "--quiet")
    assert main(["train-refiner", str(output), "--work", str(work), *numbers]) == 0
    assert "1 steps" in capsys.readouterr().out
    assert isinstance(load_refiner(output), MaskRefiner)


@pytest.mark.parametrize(
    "wrong",
    [("--minutes", "-1"), ("--minutes", "nan"), ("--seed", "-1"), ("--gallery", "0"), ("--minutes", "0")]
    + [("--minutes", "inf"), ("--seed", "1" + 20 * "0")]
    + [("--learning-rate", rate) for rate in ("0", "-1", "nan", "inf")],
)
def test_numbers_that_mean_nothing_are_wrong_usage(tmp_path, wrong):
    with pytest.raises(SystemExit) as left:
        main(["train-refiner", str(tmp_path / "refiner.safetensors"), "--work", str(tmp_path), *wrong])
    assert left.value.code == 2


def test_true_pictures_and_photos_take_part(rendered, tmp_path):
    subject = np.zeros((200, 180, 4), np.uint8)
    subject[..., 0] = 255
    subject[60:140, 60:120, 3] = 255
    photo = np.full((150, 150, 3), (0, 255, 0), np.uint8)
    recipe = small_recipe(steps=1, true_share=1.0)
    gallery = recipe_of.Gallery(rendered / "gallery", [photo], [subject], recipe)
    gallery.refresh()
    samples = [gallery.sample(np.random.default_rng(number), 64) for number in range(8)]
    assert any(sample.alpha.max() == 1 and sample.alpha.min() == 0 for sample in samples)
    assert all(sample.picture.shape == (64, 64, 3) and sample.mask.shape == (64, 64) for sample in samples)


def test_pieces_that_become_larger_meanwhile_never_share_a_batch_with_smaller_ones(rendered):
    recipe = small_recipe(batch=2)
    gallery = recipe_of.Gallery(rendered / "gallery", [], [], recipe)
    begun, changed = threading.Event(), threading.Event()

    def sample(rng, crop_px):
        begun.set()
        changed.wait(10)
        return recipe_of.Gallery.sample(gallery, rng, crop_px)

    gallery.sample = sample
    batches = recipe_of._Prefetched(gallery, recipe, 0)
    try:
        begun.wait(10)
        batches.crop_px = 64
        changed.set()
        sides = [batches.next()[0].shape[-1] for _ in range(2)]
    finally:
        batches.close()
    assert sides == [48, 64]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C of a terminal is sent to a group of processes")
@pytest.mark.parametrize("ended_by", ["Ctrl-C", "kill"])
def test_the_processes_that_render_end_with_the_run_and_say_nothing(tmp_path, ended_by):
    gallery = tmp_path / "work" / "gallery"

    def drawn() -> int:
        return len(list(gallery.glob("*.npy")))

    words = (
        sys.executable,
        "-m",
        "mam_model",
        "train-refiner",
        tmp_path / "r.safetensors",
        "--work",
        tmp_path / "work",
    )
    run = subprocess.Popen(
        words,
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while run.poll() is None and not drawn():
        time.sleep(0.05)
    if ended_by == "Ctrl-C":
        os.killpg(run.pid, signal.SIGINT)
        assert run.communicate()[1] == "Stopped.\n"
        assert not list(gallery.glob("*.part"))
    else:
        run.kill()
        run.wait()
        run.stderr.close()
    time.sleep(2)
    left = drawn()
    time.sleep(4)
    assert drawn() == left


def test_a_full_disk_ends_the_rendering_with_a_sentence(tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(recipe_of, "write_atomically", full)
    monkeypatch.setattr(recipe_of, "GALLERY_PX", 32)
    monkeypatch.setattr(recipe_of, "end_with_parent", lambda: None)
    monkeypatch.setattr(os, "nice", lambda steps: None, raising=False)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    with pytest.raises(SystemExit, match="No more pictures could be rendered into .*gallery: No space left on device"):
        recipe_of._fill_aside(tmp_path / "gallery", (), small_recipe())


def small_recipe(**changed) -> recipe_of.Recipe:
    numbers = {"batch": 4, "crop_px": 48, "late_crop_px": 48, "learning_rate": 1e-3, "warm_up_steps": 5}
    numbers |= {"gallery": 4, "seed": 5}
    return recipe_of.Recipe(**{**numbers, **changed})


def copied(work: Path, into: Path) -> Path:
    return Path(shutil.copytree(work, into / "work"))


def test_masks_are_spoilt_but_stay_masks():
    alpha = render(3, 160, 160, kind="fur").alpha
    masks = [recipe_of.degraded_mask(np.random.default_rng(seed), alpha) for seed in range(120)]
    assert all(mask.shape == alpha.shape and mask.dtype == np.float32 for mask in masks)
    assert all(mask.min() >= 0 and mask.max() <= 1 for mask in masks)
    exact = sum(np.array_equal(mask, alpha > 0.5) for mask in masks)
    assert 20 < exact < 80


def test_the_same_seed_draws_the_same_sample(tmp_path):
    np.save(tmp_path / "00000.npy", np.random.default_rng(1).integers(0, 256, (200, 200, 10), dtype=np.uint8))
    gallery = recipe_of.Gallery(tmp_path, [], [], small_recipe(steps=1))
    gallery.refresh()
    first, second = (gallery.sample(np.random.default_rng(4), 64) for _ in range(2))
    assert all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ("picture", "alpha", "mask"))


def test_the_loss_is_nothing_for_the_truth_and_counts_the_edge_more_than_the_rest():
    from mam_model.m2m import AlphaPyramid

    alpha = disc(96, 96, 24)[None, None]
    mask = alpha.clone()
    assert recipe_of.refining_loss(AlphaPyramid(alpha, alpha, alpha), alpha, mask).item() == pytest.approx(0, abs=1e-6)
    at_edge, far = alpha.clone(), alpha.clone()
    mask[..., 48, 70] = 0
    at_edge[..., 48, 74:76] += 0.5
    far[..., 20, 20:22] += 0.5
    losses = [recipe_of.refining_loss(AlphaPyramid(a, a, a), alpha, mask).item() for a in (at_edge, far)]
    assert losses[0] > losses[1] > 0


def test_a_right_mask_costs_more_to_spoil_than_a_wrong_one_to_leave_half_wrong():
    from mam_model.m2m import AlphaPyramid

    alpha = disc(96, 96, 24)[None, None]
    wrong = alpha.clone()
    wrong[..., 44:52, 70:78] = 1 - wrong[..., 44:52, 70:78]
    half = (alpha + wrong) / 2

    def loss(mask) -> float:
        return recipe_of.refining_loss(AlphaPyramid(half, half, half), alpha, mask, focus=False).item()

    assert loss(alpha) > 1.5 * loss(wrong)


@pytest.mark.parametrize("seed", range(6))
def test_a_hidden_subject_has_the_colours_of_what_is_behind_it(seed):
    rng = np.random.default_rng(seed)
    behind = np.full((64, 64, 3), (20, 120, 40), np.float32) + rng.normal(0, 3, (64, 64, 3)).astype(np.float32)
    front = np.full((64, 64, 3), (220, 60, 90), np.float32)
    hidden = recipe_of._hidden(rng, front, behind, behind.clip(0, 255).astype(np.uint8))
    assert np.abs(hidden - behind).mean() < 0.65 * np.abs(front - behind).mean()


def test_the_light_of_the_background_falls_on_the_rim_and_not_on_the_middle():
    alpha = disc(96, 96, 40).numpy()
    front, behind = np.zeros((96, 96, 3), np.float32), np.full((96, 96, 3), 255, np.float32)
    spilt = recipe_of._spilt(np.random.default_rng(3), front, behind, alpha)
    assert spilt[48, 88].min() > spilt[48, 48].max() + 5
    assert spilt[48, 48].max() < 1
