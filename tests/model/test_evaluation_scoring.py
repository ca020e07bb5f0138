"""The figures of one picture: against another implementation, against answers known beforehand, and the protocol."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from mam_model.detections import Detection
from mam_model.evaluation.layouts import EvaluationError, Sample
from mam_model.evaluation.protocol import Settings, band_of, by_box, by_point, by_text, stored, tight_box
from mam_model.evaluation.scoring import found_mattes, score_sample
from mam_model.metrics import KINDS, QUALITY_KINDS, instance_matting_quality, score_matte

SETTINGS = Settings("pictures", "data", "classical")


def save(path: Path, levels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels.astype(np.uint8)).save(path)
    return path


def levels_of_a_head(rng: np.random.Generator, rows: int = 150, columns: int = 190) -> np.ndarray:
    """8-bit levels of a round body with thin strands about it, a detached lock and plain 0 and 255."""
    canvas = np.zeros((rows, columns), np.uint8)
    cv2.circle(canvas, (columns // 2, rows // 2 + 20), 42, 255, -1, cv2.LINE_AA)
    for angle in rng.uniform(0, 2 * math.pi, 60):
        start = (columns / 2 + 38 * math.cos(angle), rows / 2 + 20 + 38 * math.sin(angle))
        end = (start[0] + 26 * math.cos(angle + 0.3), start[1] + 26 * math.sin(angle + 0.3))
        shade = int(rng.integers(60, 256))
        cv2.line(canvas, *(tuple(int(v) for v in place) for place in (start, end)), shade, 1, cv2.LINE_AA)
    cv2.ellipse(canvas, (22, 18), (14, 6), 30, 0, 360, 170, -1, cv2.LINE_AA)
    return cv2.GaussianBlur(canvas, (0, 0), 0.8)


def predicted_levels(rng: np.random.Generator, truth: np.ndarray) -> np.ndarray:
    moved = np.roll(truth, 1, axis=1).astype(int) + rng.integers(-25, 26, truth.shape)
    moved[:, :50] = moved[:, :50] * 3 // 4
    return np.where(moved < 20, 0, moved).clip(0, 255).astype(np.uint8)


def opencv_errors(predicted: np.ndarray, truth: np.ndarray, counted: np.ndarray) -> dict[str, float]:
    """From the definitions of Rhemann et al. 2009, with OpenCV, and with whole numbers where levels are compared."""
    difference = np.abs(predicted.astype(int) - truth)[counted]
    size = np.arange(-4, 5)
    bell = np.exp(-(size**2) / (2 * 1.4**2))
    kernel = np.outer(bell, size * bell)
    kernel /= np.sqrt((kernel**2).sum())
    steepness = []
    for levels in (predicted, truth):
        alpha = levels / 255.0
        across, down = (cv2.filter2D(alpha, -1, k, borderType=cv2.BORDER_REPLICATE) for k in (kernel, kernel.T))
        steepness.append(np.sqrt(across**2 + down**2))
    tenths = np.full(truth.shape, 10)
    lost = np.zeros(truth.shape, bool)
    for i in range(1, 11):
        reached = (10 * np.minimum(predicted, truth).astype(int) >= 255 * i).astype(np.uint8)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(reached, connectivity=4)
        body = labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax() if count > 1 else np.zeros(truth.shape, bool)
        tenths[~lost & ~body] = i - 1
        lost |= ~body
    # In units of 1 / 5100: an alpha of k / 255 is 20 k, a tenth is 510, theta is 765.
    excesses = [20 * levels.astype(int) - 510 * tenths for levels in (predicted, truth)]
    kept = [np.where(excess >= 765, excess, 0) for excess in excesses]
    return {
        "sad": difference.sum() / 255 / 1000,
        "mse": (difference.astype(float) ** 2).mean() / 255**2 * 1000,
        "mad": difference.mean() / 255 * 1000,
        "grad": ((steepness[0] - steepness[1]) ** 2)[counted].sum() / 1000,
        "conn": np.abs(kept[0] - kept[1])[counted].sum() / 5100 / 1000,
    }


@pytest.mark.parametrize("seed", range(3))
def test_the_figures_of_files_agree_with_another_implementation_to_a_millionth(seed, tmp_path):
    rng = np.random.default_rng(seed)
    truth = levels_of_a_head(rng)
    predicted = predicted_levels(rng, truth)
    trimap = np.where((truth > 5) & (truth < 250), 128, truth // 128 * 255)
    trimap[40:60] = 128
    sample = Sample("head", tmp_path / "none.png", (save(tmp_path / "truth.png", truth),), tmp_path / "trimap.png")
    save(sample.trimap, trimap)
    row = score_sample(sample, (save(tmp_path / "matte.png", predicted),), False, SETTINGS)
    for suffix, counted in (("", np.ones(truth.shape, bool)), ("_unknown", trimap == 128)):
        expected = opencv_errors(predicted, truth, counted)
        assert all(expected[kind] > 0 for kind in KINDS)
        assert {kind: row[f"{kind}{suffix}"] for kind in KINDS} == pytest.approx(expected, abs=1e-6, rel=1e-6)
    assert row["unknown_px"] == (trimap == 128).sum()


def known_case(tmp_path, predicted: np.ndarray, truth: np.ndarray, trimap: np.ndarray | None = None):
    sample = Sample("known", tmp_path / "none.png", (save(tmp_path / "t.png", truth),))
    if trimap is not None:
        sample = Sample("known", sample.picture, sample.truths, save(tmp_path / "trimap.png", trimap))
    return score_sample(sample, (save(tmp_path / "p.png", predicted),), False, SETTINGS)


def test_known_answer_a_square_that_is_a_fifth_too_faint(tmp_path):
    truth = np.zeros((40, 50))
    truth[10:30, 20:40] = 255
    row = known_case(tmp_path, truth * 0.8, truth)
    # 400 of 2000 pixels are off by 0.2; connected to 0.8, the truth lies 0.2 above, which is more than 0.15.
    assert (row["sad"], row["mad"], row["mse"]) == pytest.approx((0.08, 40.0, 8.0))
    assert row["conn"] == pytest.approx(0.08)
    assert [row[column] for column in ("name", "width", "height", "targets", "found")] == ["known", 50, 40, 1, 1]


def test_known_answer_an_island_that_was_forgotten(tmp_path):
    truth = np.zeros((40, 50))
    truth[5:25, 5:25] = 255
    predicted = truth.copy()
    truth[30:34, 40:45] = 255
    row = known_case(tmp_path, predicted, truth)
    assert (row["sad"], row["conn"]) == pytest.approx((0.02, 0.02))
    assert (row["mse"], row["mad"]) == pytest.approx((10.0, 10.0))


def test_known_answer_a_wrong_background_is_no_error_of_the_band(tmp_path):
    truth = np.zeros((40, 50))
    truth[:, 25:] = 255
    predicted, trimap = truth.copy(), truth.copy()
    predicted[:, :5] = 255
    trimap[:, 20:30] = 128
    row = known_case(tmp_path, predicted, truth, trimap)
    assert (row["sad"], row["sad_unknown"], row["mse_unknown"]) == (0.2, 0, 0)
    assert row["unknown_px"] == 400


def test_known_answer_one_of_two_people_found_and_faint(tmp_path):
    truths = np.zeros((2, 30, 60))
    truths[0, 5:25, 5:25] = truths[1, 5:25, 35:55] = 255
    sample = Sample(
        "two", tmp_path / "none.png", tuple(save(tmp_path / "t" / f"0{k}.png", truth) for k, truth in enumerate(truths))
    )
    mattes = (save(tmp_path / "p" / "a.png", truths[1] * 0.96), save(tmp_path / "p" / "b.png", np.zeros((30, 60))))
    row = score_sample(sample, mattes[:1], True, SETTINGS)
    # 255 * 0.96 is stored as 244: 11 levels too faint. TP 1, FN 1: the similarity is divided by 1.5.
    assert (row["tp"], row["fp"], row["fn"]) == (1, 0, 1)
    assert row["imq_mad"] == pytest.approx((1 - 10 * 11 / 255) / 1.5)
    assert row["imq_mse"] == pytest.approx((1 - 10 * (11 / 255) ** 2) / 1.5)
    assert row["imq_conn"] == pytest.approx(1 / 1.5)
    assert math.isnan(row["sad"])
    # An empty matte is an invented instance as well as a missed one, and both have a partner for the other errors.
    row = score_sample(sample, mattes[::-1], True, SETTINGS)
    assert (row["tp"], row["fp"], row["fn"], row["found"]) == (1, 1, 1, 1)
    assert row["sad"] == pytest.approx((400 + 400 * 11 / 255) / 1000 / 2)
    # Their names do not tell of whom they are, so their order does not count.
    assert score_sample(sample, mattes, True, SETTINGS) == row
    # These names do: each is held against the other's, and 800 pixels of each are wrong.
    exchanged = tuple(save(tmp_path / "q" / f"0{k}.png", truth) for k, truth in enumerate(truths[::-1]))
    assert score_sample(sample, exchanged, True, SETTINGS)["sad"] == pytest.approx(0.8)
    with pytest.raises(EvaluationError, match="There are 1 mattes for it, and 2 targets"):
        score_sample(sample, mattes[:1], False, SETTINGS)


def test_no_instance_found_is_a_picture_of_quality_0(tmp_path):
    truth = np.full((9, 9), 255)
    row = score_sample(Sample("a", tmp_path / "n.png", (save(tmp_path / "t.png", truth),)), (), True, SETTINGS)
    assert (row["imq_mad"], row["fn"], row["found"]) == (0, 1, 0)


def test_a_picture_without_an_unknown_pixel_has_no_figures_of_the_band(tmp_path):
    truth = np.zeros((9, 9))
    row = known_case(tmp_path, truth, truth, truth)
    assert row["sad"] == 0
    assert math.isnan(row["sad_unknown"]) and row["unknown_px"] == 0


def test_a_quick_run_leaves_grad_and_conn_out_and_the_rest_as_it_is(tmp_path):
    rng = np.random.default_rng(0)
    truth = levels_of_a_head(rng, 60, 70) / 255
    predicted = predicted_levels(rng, (truth * 255).astype(np.uint8)) / 255
    quick = Settings("pictures", "data", "classical", quick=True)
    whole, _ = score_matte(predicted, truth)
    part, _ = score_matte(predicted, truth, kinds=quick.kinds)
    assert (part.sad, part.mse, part.mad) == (whole.sad, whole.mse, whole.mad)
    assert math.isnan(part.grad) and math.isnan(part.conn)
    whole, part = (
        instance_matting_quality(predicted[None], truth[None], kinds=kinds)
        for kinds in (QUALITY_KINDS, quick.quality_kinds)
    )
    assert (part.mad, part.mse, part.tp) == (whole.mad, whole.mse, whole.tp)
    assert math.isnan(part.grad) and math.isnan(part.conn)


def test_a_quick_run_leaves_them_out_of_the_figures_of_a_file_too(tmp_path):
    truth = levels_of_a_head(np.random.default_rng(0), 60, 70)
    sample = Sample("head", tmp_path / "none.png", (save(tmp_path / "truth.png", truth),))
    row = score_sample(sample, sample.truths, True, Settings("pictures", "data", "classical", quick=True))
    for name, is_measured in {"sad": True, "mad": True, "grad": False, "conn": False}.items():
        assert math.isnan(row[name]) != is_measured and math.isnan(row[f"{name}_unknown"]) != is_measured
    assert row["imq_mad"] == 1 and math.isnan(row["imq_grad"]) and math.isnan(row["imq_conn"])


def test_files_of_different_sizes_are_named_with_both_sizes(tmp_path):
    sample = Sample("a", tmp_path / "n.png", (save(tmp_path / "t.png", np.zeros((9, 8))),))
    with pytest.raises(EvaluationError, match=r"p.png is 9 x 9 pixels instead of 8 x 9"):
        score_sample(sample, (save(tmp_path / "p.png", np.zeros((9, 9))),), False, SETTINGS)


def test_predictions_are_found_under_the_names_of_the_pictures(tmp_path):
    plain = Sample("a.b", tmp_path / "a.b.jpg", (tmp_path / "a.b.png",))
    save(tmp_path / "p" / "a.b.webp", np.zeros((3, 3)))
    assert found_mattes(tmp_path / "p", plain, False) == (tmp_path / "p" / "a.b.webp",)
    save(tmp_path / "loud" / "a.b.PNG", np.zeros((3, 3)))
    assert found_mattes(tmp_path / "loud", plain, False)[0].is_file()
    # A folder of the name is looked into only where there may be several.
    save(tmp_path / "p" / "a.b" / "a.b.png", np.zeros((3, 3)))
    assert found_mattes(tmp_path / "p", plain, False) == (tmp_path / "p" / "a.b.webp",)
    assert found_mattes(tmp_path / "p", plain, True) == (tmp_path / "p" / "a.b" / "a.b.png",)
    two = Sample("c", tmp_path / "c.jpg", (tmp_path / "t" / "01.png", tmp_path / "t" / "00.png"))
    with pytest.raises(EvaluationError, match="expected is c.png"):
        found_mattes(tmp_path / "p", two, True)
    for name in ("01", "00", "junk"):
        save(tmp_path / "p" / "c" / f"{name}.png", np.zeros((3, 3)))
    assert len(found_mattes(tmp_path / "p", two, True)) == 3
    (tmp_path / "p" / "c" / "junk.png").unlink()
    for instances in (False, True):
        assert [path.stem for path in found_mattes(tmp_path / "p", two, instances)] == ["01", "00"]


def soft_square() -> torch.Tensor:
    truth = torch.zeros(20, 30)
    truth[4:13, 6:21] = 0.4
    truth[6:11, 9:19] = 1
    return truth


def test_the_prompt_is_the_tight_box_of_the_subject_or_its_centre():
    truth = soft_square()
    assert tight_box(truth) == (9, 6, 18, 10)
    sample = Sample("a", Path("a.png"), (Path("a.png"),))
    (box,), (point,) = by_box(sample, None, truth[None]), by_point(sample, None, truth[None])
    assert box.box_xyxy_px == (9, 6, 18, 10)
    assert (point.points_px, point.labels) == (((13.5, 8.0),), (1,))


def test_faint_thin_and_empty_targets_have_a_prompt_that_can_be_used():
    faint = soft_square().clamp(max=0.4)
    assert tight_box(faint) == (6, 4, 20, 12)
    thin = torch.zeros(8, 9)
    thin[3, 5] = 1
    assert tight_box(thin) == (5, 3, 6, 4)
    corner = torch.zeros(8, 9)
    corner[7, 8] = 1
    sample = Sample("a", Path("a.png"), (Path("a.png"),))
    for truth in (thin, corner):
        assert not by_box(sample, None, truth[None])[0].checked(9, 8).is_empty
    assert by_box(sample, None, torch.zeros(1, 8, 9))[0].is_empty
    assert by_point(sample, None, torch.zeros(1, 8, 9))[0].is_empty


class Detector:
    """Finds two boxes for a dog and nothing else."""

    def detect(self, picture, subjects, box_threshold, text_threshold):
        self.asked = subjects, box_threshold, text_threshold
        return [Detection((1, 2, 3, 4), 0.9), Detection((0, 0, 9, 9), 0.3)] if "dog" in subjects[0] else []


def test_the_text_is_answered_with_the_most_certain_box():
    detector = Detector()
    sample = Sample("a", Path("a.png"), (Path("a.png"),), text="The Dog. On the\tleft.")
    (prompt,) = by_text(detector)(sample, torch.zeros(8, 9, 3), torch.zeros(1, 8, 9))
    assert (prompt.box_xyxy_px, prompt.score) == ((1, 2, 3, 4), 0.9)
    assert detector.asked == (["the dog on the left"], 0.25, 0.0)
    cat = Sample("a", Path("a.png"), (Path("a.png"),), text="a cat")
    assert by_text(detector)(cat, torch.zeros(8, 9, 3), torch.zeros(1, 8, 9))[0].is_empty


def test_the_band_of_a_true_matte_is_its_soft_part_and_some_pixels_around_it():
    truth = torch.zeros(1, 40)
    truth[0, 20:] = 1
    truth[0, 19] = 0.5
    band = band_of(truth, 3)[0]
    assert torch.equal((band == 0.5).nonzero().flatten(), torch.arange(16, 23))
    assert band[15] == 0 and band[23] == 1
    # One or two levels of noise, as JPEG leaves them, are not soft.
    assert not (band_of((truth > 0.6).float() * 0.99 + 0.005, 0) == 0.5).any()


def test_mattes_are_stored_rounded_down_as_the_paper_did_or_to_the_nearest_level():
    alpha = torch.tensor([0.0, 0.9 / 255, 127.6 / 255, 254.9 / 255, 1.0])
    assert (stored(alpha, "down") * 255).tolist() == [0, 0, 127, 254, 255]
    assert (stored(alpha, "nearest") * 255).tolist() == pytest.approx([0, 1, 128, 255, 255], abs=1e-4)
    levels = stored(alpha, "16-bit") * 65535
    # 257 levels of 16 bits are one of 8.
    assert levels.tolist() == pytest.approx([0, 231, 32_793, 65_509, 65_535], abs=0.01)
    assert stored(torch.tensor([-0.2, 1.3]), "nearest").tolist() == [0, 1]
    assert stored(torch.tensor([-0.2, 1.3]), "down").tolist() == [0, 1]
