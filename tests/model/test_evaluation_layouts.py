"""Test sets in the folders in which they are published, built small, and what is said of folders that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mam_model.evaluation.layouts import LAYOUTS, EvaluationError, open_test_set


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3), 255).save(path)


def ppm_100(folder: Path) -> Path:
    write(*(folder / "PPM-100" / part for part in ("image/1_a.jpg", "image/2_b.jpg", "matte/1_a.jpg", "matte/2_b.jpg")))
    return folder / "PPM-100"


def am_2k(folder: Path) -> Path:
    inside = folder / "AM-2k" / "validation"
    for name in ("m_1", "m_2"):
        write(inside / "original" / f"{name}.jpg", inside / "mask" / f"{name}.png", inside / "trimap" / f"{name}.png")
    write(folder / "AM-2k" / "train" / "original" / "m_9.jpg", folder / "AM-2k" / "train" / "mask" / "m_9.png")
    return folder / "AM-2k"


def pm_10k(folder: Path) -> Path:
    for part, pictures in (("P3M-500-P", "blurred_image"), ("P3M-500-NP", "original_image")):
        inside = folder / "P3M-10k" / "validation" / part
        write(inside / pictures / f"{part}.jpg", inside / "mask" / f"{part}.png", inside / "trimap" / f"{part}.png")
    return folder / "P3M-10k"


def rwp_636(folder: Path) -> Path:
    inside = folder / "RealWorldPortrait-636"
    write(inside / "image" / "p.jpg", inside / "alpha" / "p.png", inside / "mask" / "p.png")
    return inside


def him2k(folder: Path, *parts: str) -> Path:
    for part in parts:
        write(folder / "HIM2K" / "images" / part / "two.jpg")
        write(*(folder / "HIM2K" / "alphas" / part / "two" / f"{number:02}.png" for number in (1, 0)))
    return folder / "HIM2K"


def refmatte(folder: Path) -> Path:
    inside = folder / "RefMatte_RW_100"
    write(inside / "image" / "street.jpg", inside / "mask" / "street_0.png", inside / "mask" / "street_1.png")
    labels = {
        f"street_{k}": {"image_name": "street", "expressions": [f"the {k} dog", f"dog number {k}"]} for k in range(2)
    }
    (inside / "refmatte_rw100_label.json").write_text(json.dumps(labels))
    return inside


def alphamatting(folder: Path) -> Path:
    write(folder / "am" / "input_training_lowres" / "GT01.png", folder / "am" / "gt_training_lowres" / "GT01.png")
    write(*(folder / "am" / "trimap_training_lowres" / f"Trimap{number}" / "GT01.png" for number in (1, 2)))
    return folder / "am"


def own_folders(folder: Path) -> Path:
    write(*(folder / "mine" / part / "dog.png" for part in ("image", "alpha", "trimap", "mask")))
    return folder / "mine"


BUILT = {
    "ppm-100": ppm_100,
    "am-2k": am_2k,
    "pm-10k": pm_10k,
    "rwp-636": rwp_636,
    "him2k-natural": lambda folder: him2k(folder, "natural"),
    "him2k-synthetic": lambda folder: him2k(folder, "comp"),
    "refmatte-rw100": refmatte,
    "alphamatting": alphamatting,
    "pictures": own_folders,
}
# Of the first sample its picture, true matte, trimap and mask, in the folder that is built.
FIRST = {
    "ppm-100": ("image/1_a.jpg", "matte/1_a.jpg", None, None),
    "am-2k": ("original/m_1.jpg", "mask/m_1.png", "trimap/m_1.png", None),
    "pm-10k": ("original_image/P3M-500-NP.jpg", "mask/P3M-500-NP.png", "trimap/P3M-500-NP.png", None),
    "rwp-636": ("image/p.jpg", "alpha/p.png", None, "mask/p.png"),
    "him2k-natural": ("natural/two.jpg", "two/00.png", None, None),
    "him2k-synthetic": ("comp/two.jpg", "two/00.png", None, None),
    "refmatte-rw100": ("image/street.jpg", "mask/street_0.png", None, None),
    "alphamatting": ("input_training_lowres/GT01.png", "gt_training_lowres/GT01.png", "Trimap1/GT01.png", None),
    "pictures": ("image/dog.png", "alpha/dog.png", "trimap/dog.png", "mask/dog.png"),
}
by_benchmark = pytest.mark.parametrize("benchmark", BUILT)


def test_every_layout_is_built_here():
    assert [layout.name for layout in LAYOUTS] != [] and {layout.name for layout in LAYOUTS} == set(BUILT)


@by_benchmark
def test_a_published_layout_is_recognised_and_found_by_its_name(benchmark, tmp_path):
    folder = BUILT[benchmark](tmp_path)
    recognised = open_test_set(folder)
    assert recognised.layout.name == benchmark
    assert recognised.samples == open_test_set(folder, benchmark).samples
    assert recognised.left_out == ()
    for sample in recognised.samples:
        files = (sample.picture, *sample.truths, sample.trimap, sample.mask)
        assert all(path.is_file() for path in files if path)
    first = recognised.samples[0]
    files = (first.picture, first.truths[0], first.trimap, first.mask)
    assert tuple(path and f"{path.parent.name}/{path.name}" for path in files) == FIRST[benchmark]


@by_benchmark
def test_a_folder_of_another_layout_is_refused_with_what_was_expected(benchmark, tmp_path):
    write(tmp_path / "holiday" / "beach.jpg")
    with pytest.raises(EvaluationError) as refusal:
        open_test_set(tmp_path / "holiday", benchmark)
    layout = next(layout for layout in LAYOUTS if layout.name == benchmark)
    assert layout.title in str(refusal.value)
    assert all(line in str(refusal.value) for line in layout.tree)


def test_an_unrecognised_folder_is_told_all_layouts(tmp_path):
    with pytest.raises(EvaluationError) as refusal:
        open_test_set(tmp_path)
    assert all(layout.name in str(refusal.value) for layout in LAYOUTS)


def test_the_published_protocol_of_each_set():
    by_guidance = {
        guidance: {layout.name for layout in LAYOUTS if layout.guidance == guidance} for guidance in ("alpha", "mask")
    }
    assert by_guidance == {
        "alpha": {"ppm-100", "am-2k", "pm-10k", "rwp-636", "alphamatting"},
        "mask": {"refmatte-rw100", "him2k-natural", "him2k-synthetic", "pictures"},
    }
    assert {layout.name for layout in LAYOUTS if layout.instances} == {"him2k-natural", "him2k-synthetic", "rwp-636"}
    to_the_nearest = {layout.name for layout in LAYOUTS if layout.levels == "nearest"}
    assert (
        to_the_nearest == {layout.name for layout in LAYOUTS if layout.levels != "down"} == {"alphamatting", "pictures"}
    )
    assert {layout.name: layout.pictures for layout in LAYOUTS if layout.pictures} == {
        "ppm-100": 100,
        "am-2k": 200,
        "pm-10k": 500,
        "rwp-636": 636,
        "alphamatting": 27,
    }


def test_mattes_lie_beside_pictures_of_other_suffixes_and_trimaps_with_them(tmp_path):
    samples = open_test_set(am_2k(tmp_path)).samples
    assert [(s.picture.name, s.truths[0].name, s.trimap.name) for s in samples] == [
        ("m_1.jpg", "m_1.png", "m_1.png"),
        ("m_2.jpg", "m_2.png", "m_2.png"),
    ]
    assert samples[0].trimap.parent.name == "trimap"


def test_the_validation_folder_alone_is_am_2k_too(tmp_path):
    folder = am_2k(tmp_path) / "validation"
    assert open_test_set(folder).layout.name == "am-2k"
    # AIM-500 has the same three folders.
    folder.rename(tmp_path / "AIM-500")
    with pytest.raises(EvaluationError, match="No known test set"):
        open_test_set(tmp_path / "AIM-500")


def test_portraits_with_blurred_faces_are_not_evaluated(tmp_path):
    folder = pm_10k(tmp_path)
    for given in (folder, folder / "validation", folder / "validation" / "P3M-500-NP"):
        assert [sample.name for sample in open_test_set(given).samples] == ["P3M-500-NP"]


def test_the_people_of_a_picture_are_its_targets_in_the_order_of_their_files(tmp_path):
    (sample,) = open_test_set(him2k(tmp_path, "natural")).samples
    assert [path.name for path in sample.truths] == ["00.png", "01.png"]


def test_the_two_parts_of_him2k_are_never_mixed(tmp_path):
    folder = him2k(tmp_path, "natural", "comp")
    with pytest.raises(EvaluationError, match="him2k-natural or --benchmark him2k-synthetic"):
        open_test_set(folder)
    (sample,) = open_test_set(folder, "him2k-synthetic").samples
    assert sample.picture.parent.name == "comp"


def test_the_targets_of_a_described_picture_share_it_and_have_a_text_each(tmp_path):
    folder = refmatte(tmp_path)
    samples = open_test_set(folder).samples
    assert [(s.name, s.picture.name, s.text) for s in samples] == [
        ("street_0", "street.jpg", "the 0 dog"),
        ("street_1", "street.jpg", "the 1 dog"),
    ]
    (folder / "eval_index_expression.json").write_text(json.dumps({"street": 1}))
    assert [s.text for s in open_test_set(folder).samples] == ["dog number 0", "dog number 1"]


@pytest.mark.parametrize("number", [2, -1, "1", None])
def test_a_number_of_an_expression_that_there_is_not_gives_no_text(number, tmp_path):
    folder = refmatte(tmp_path)
    (folder / "eval_index_expression.json").write_text(json.dumps({"street": number}))
    assert [s.text for s in open_test_set(folder).samples] == [None, None]


def test_a_picture_whose_name_the_labels_give_as_a_number_has_its_text(tmp_path):
    write(tmp_path / "image" / "12.jpg", tmp_path / "mask" / "12_0.png")
    label = {"image_name": 12, "expressions": ["the dog", "dog number 1"]}
    (tmp_path / "refmatte_rw100_label.json").write_text(json.dumps({"12_0": label}))
    (tmp_path / "eval_index_expression.json").write_text(json.dumps({"12": 1}))
    assert [s.text for s in open_test_set(tmp_path).samples] == ["dog number 1"]


def test_a_copy_with_a_picture_for_each_target_serves_too(tmp_path):
    folder = refmatte(tmp_path)
    for number in (0, 1):
        write(folder / "image_all" / f"street_{number}.jpg")
    (folder / "image" / "street.jpg").unlink()
    (folder / "image").rmdir()
    test_set = open_test_set(folder)
    assert [s.picture.name for s in test_set.samples] == ["street_0.jpg", "street_1.jpg"]
    assert test_set.left_out == ()


@pytest.mark.parametrize("content", ["{", "[1]", '{"street_0": 3}', '{"street_0": {"expressions": "a dog"}}'])
def test_labels_that_are_damaged_are_refused_or_say_nothing(content, tmp_path):
    folder = refmatte(tmp_path)
    (folder / "refmatte_rw100_label.json").write_text(content)
    if content in ("{", "[1]"):
        with pytest.raises(EvaluationError, match="refmatte_rw100_label.json"):
            open_test_set(folder)
    else:
        assert [s.text for s in open_test_set(folder).samples] == [None, None]


def test_the_resolution_of_which_both_pictures_and_mattes_are_there_is_taken(tmp_path):
    folder = alphamatting(tmp_path)
    for part in ("input_training", "gt_training"):
        write(folder / f"{part}_highres" / "GT01.png")
    assert open_test_set(folder, "alphamatting").samples[0].picture.parent.name == "input_training_lowres"
    (folder / "gt_training_lowres" / "GT01.png").unlink()
    (folder / "gt_training_lowres").rmdir()
    assert open_test_set(folder, "alphamatting").samples[0].picture.parent.name == "input_training_highres"


def test_own_pictures_lie_in_two_folders_or_in_one_each_or_side_by_side(tmp_path):
    write(*(tmp_path / "each" / name / part for name in ("cat", "dog") for part in ("image.jpg", "alpha.png")))
    write(tmp_path / "each" / "dog" / "trimap.png", tmp_path / "each" / "dog" / "inst0.png")
    write(*(tmp_path / "beside" / name for name in ("dog.jpg", "dog_alpha.png", "dog_mask.png", "cat.jpg")))
    assert [s.name for s in open_test_set(own_folders(tmp_path)).samples] == ["dog"]
    cat, dog = open_test_set(tmp_path / "each").samples
    assert (cat.trimap, dog.trimap.name) == (None, "trimap.png")
    (beside,) = open_test_set(tmp_path / "beside").samples
    assert (beside.picture.name, beside.truths[0].name, beside.mask.name) == (
        "dog.jpg",
        "dog_alpha.png",
        "dog_mask.png",
    )


def test_own_pictures_are_not_taken_for_portraits_unless_that_is_said(tmp_path):
    folder = own_folders(tmp_path)
    assert open_test_set(folder).layout.name == "pictures"
    assert open_test_set(folder, "rwp-636").layout.name == "rwp-636"


def test_own_pictures_may_have_texts(tmp_path):
    folder = own_folders(tmp_path)
    (folder / "text.json").write_text(json.dumps({"dog": "the dog", "cat": 3}))
    assert open_test_set(folder).samples[0].text == "the dog"
    # As Windows editors save it, with a mark before the first letter.
    (folder / "text.json").write_text("\ufeff" + json.dumps({"dog": "the hound"}), encoding="utf-8")
    assert open_test_set(folder).samples[0].text == "the hound"


def test_what_has_no_partner_is_left_out_by_name(tmp_path):
    folder = ppm_100(tmp_path)
    write(folder / "image" / "3_c.jpg", folder / "matte" / "4_d.jpg")
    write(folder / "matte" / ".5_e.jpg")
    test_set = open_test_set(folder)
    assert [s.name for s in test_set.samples] == ["1_a", "2_b"]
    assert test_set.left_out == ("3_c", "4_d")


def test_people_without_a_picture_or_without_mattes_are_left_out_by_name(tmp_path):
    folder = him2k(tmp_path, "natural")
    write(folder / "images" / "natural" / "alone.jpg", folder / "images" / "natural" / "nobody.jpg")
    write(folder / "alphas" / "natural" / "unseen" / "00.png")
    (folder / "alphas" / "natural" / "nobody").mkdir()
    test_set = open_test_set(folder)
    assert [s.name for s in test_set.samples] == ["two"]
    assert test_set.left_out == ("alone", "nobody", "unseen")


def test_of_folders_with_a_picture_each_those_that_lack_a_part_are_left_out_by_name(tmp_path):
    write(tmp_path / "dog" / "image.jpg", tmp_path / "dog" / "alpha.png", tmp_path / "notes" / "page.png")
    write(tmp_path / "cat" / "image.jpg", tmp_path / "cat" / "trimap.png", tmp_path / "cow" / "alpha.png")
    test_set = open_test_set(tmp_path)
    assert [s.name for s in test_set.samples] == ["dog"]
    assert test_set.left_out == ("cat", "cow")


def test_pictures_side_by_side_without_a_partner_are_left_out_by_name_too(tmp_path):
    names = ("dog.jpg", "dog_alpha.png", "dog_trimap.png", "dog_mask.png", "cat.jpg", "cow_alpha.png")
    write(*(tmp_path / "beside" / name for name in names))
    test_set = open_test_set(tmp_path / "beside")
    assert [s.name for s in test_set.samples] == ["dog"]
    assert test_set.left_out == ("cat", "cow_alpha")


def test_folders_without_any_pair_are_refused(tmp_path):
    write(tmp_path / "PPM-100" / "image" / "a.jpg", tmp_path / "PPM-100" / "matte" / "b.jpg")
    with pytest.raises(EvaluationError, match="no picture in them has a true matte of its name"):
        open_test_set(tmp_path / "PPM-100")


def test_two_files_for_one_picture_are_refused(tmp_path):
    folder = ppm_100(tmp_path)
    write(folder / "matte" / "1_a.png")
    with pytest.raises(EvaluationError, match=r"1_a.jpg and 1_a.png are two files for one picture"):
        open_test_set(folder)


def test_a_folder_or_a_benchmark_that_is_not_there(tmp_path):
    with pytest.raises(EvaluationError, match="There is no folder"):
        open_test_set(tmp_path / "nowhere")
    with pytest.raises(EvaluationError, match="'adobe' is no known benchmark. Known are: ppm-100"):
        open_test_set(tmp_path, "adobe")
