"""The region of interest is what the user marked, and never silently nothing."""

from __future__ import annotations

import pytest
import torch

from mam_model.in_context.errors import InContextError
from mam_model.in_context.fit import Fit, Square
from mam_model.in_context.matching import take_reference, take_taps
from mam_model.in_context.reference import MaskIs, marks_of, region_mask
from mam_model.in_context.taps import Wanted
from mam_model.prompt import Prompt, PromptError, Scribble
from tests.references.in_context import CONFIG, hashed
from tests.references.toy_diffusion import ToyDiffusion

SIDE = CONFIG.side
CELLS = CONFIG.fine_cells
SQUARE = Square(SIDE, SIDE, Fit.PAD, SIDE)


def box_mask(left: int, top: int, right: int, bottom: int, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    mask = torch.zeros(height, width)
    mask[top:bottom, left:right] = 1
    return mask


def cells_of(region: torch.Tensor) -> set[tuple[int, int]]:
    """(column, row) of each cell in a region."""
    return {(column, row) for row, column in region.nonzero().tolist()}


def block(left: int, top: int, right: int, bottom: int) -> set[tuple[int, int]]:
    return {(column, row) for row in range(top, bottom) for column in range(left, right)}


def picture(height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    return (hashed("picture", height, width, 3) / 4 + 0.5).clamp(0, 1)


def attention(target: dict[int, list[int]]) -> torch.Tensor:
    """Self-attention in which a cell attends to the given cells, in descending order."""
    maps = torch.full((CELLS * CELLS, CELLS * CELLS), 1e-6)
    for seed, attended in target.items():
        for rank, cell in enumerate(attended):
            maps[seed, cell] = 1 / (rank + 2)
    return maps


def test_a_cell_counts_only_when_the_mask_covers_it_wholly():
    assert cells_of(marks_of(Prompt(mask=box_mask(16, 32, 80, 96)), SQUARE).region()) == block(1, 2, 5, 6)
    assert cells_of(marks_of(Prompt(mask=box_mask(17, 32, 80, 95)), SQUARE).region()) == block(2, 2, 5, 5)


def test_a_soft_mask_is_cut_at_one_half():
    mask = box_mask(16, 16, 48, 48) * 0.6 + box_mask(64, 16, 96, 48) * 0.4 + box_mask(64, 64, 96, 96) * 0.5
    assert cells_of(marks_of(Prompt(mask=mask), SQUARE).region()) == block(1, 1, 3, 3)


@pytest.mark.parametrize("fit", Fit)
def test_the_region_lies_where_the_mask_lies_in_a_picture_of_another_shape(fit):
    height, width = 300, 500
    mask = box_mask(180, 80, 330, 220, height, width)
    square = Square(height, width, fit, SIDE)
    region = region_mask(marks_of(Prompt(mask=mask), square).region(), square)
    assert region.shape == mask.shape
    assert set(region.unique().tolist()) == {0, 1}
    # Whole cells only, so the region is smaller than the mask, and never leaves it by more than rounding.
    assert region.sum() > 0.3 * mask.sum()
    assert (region * (1 - mask)).sum() < 0.01 * mask.sum()


def test_a_point_marks_its_cell_and_the_cells_it_attends_to_most():
    marks = marks_of(Prompt(points_px=((40.0, 24.0),), labels=(1,)), SQUARE)
    assert cells_of(marks.seeds) == {(2, 1)}
    assert torch.equal(
        marks_of(Prompt(points_px=((40.0, 24.0),), labels=(1,)), SQUARE, MaskIs.STROKES).seeds, marks.seeds
    )
    seed = 1 * CELLS + 2
    maps = attention({seed: [5, 50, 77, 90]})
    assert cells_of(marks.region(maps, reach=0)) == {(2, 1)}
    assert cells_of(marks.region(maps, reach=3)) == {
        (2, 1),
        (5, 0),
        (50 % CELLS, 50 // CELLS),
        (77 % CELLS, 77 // CELLS),
    }
    assert marks.region(maps, reach=CELLS * CELLS + 5).all()


def test_each_seed_brings_its_own_cells():
    marks = marks_of(Prompt(points_px=((8, 8), (100.0, 8.0)), labels=(1, 1)), SQUARE)
    maps = attention({0: [40, 41], 6: [41, 60]})
    assert {row * CELLS + column for column, row in cells_of(marks.region(maps, reach=2))} == {0, 6, 40, 41, 60}


def test_a_thin_stroke_that_no_mask_could_be_marks_every_cell_it_touches():
    scribbles = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    scribbles[70, 20:100] = Scribble.FOREGROUND
    assert cells_of(marks_of(Prompt(scribbles=scribbles), SQUARE).seeds) == block(1, 4, 7, 5)
    along_an_edge = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    along_an_edge[64, 32:48] = Scribble.FOREGROUND
    assert cells_of(marks_of(Prompt(scribbles=along_an_edge), SQUARE).seeds) == {(2, 4)}
    stroke = (scribbles > 0).float()
    assert cells_of(marks_of(Prompt(mask=stroke), SQUARE, MaskIs.STROKES).seeds) == block(1, 4, 7, 5)
    with pytest.raises(InContextError, match="too small or too thin"):
        marks_of(Prompt(mask=stroke), SQUARE)


def test_a_stroke_of_one_pixel_survives_in_a_picture_of_thousands():
    scribbles = torch.zeros(3000, 4000, dtype=torch.uint8)
    scribbles[1500, 2000] = Scribble.FOREGROUND
    assert marks_of(Prompt(scribbles=scribbles), Square(3000, 4000, Fit.PAD, SIDE)).seeds.sum() == 1


def test_points_and_strokes_beside_the_subject_take_their_cells_out():
    scribbles = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    scribbles[20, 20:40] = Scribble.BACKGROUND
    prompt = Prompt(points_px=((70.0, 70.0),), labels=(0,), mask=box_mask(16, 16, 80, 80), scribbles=scribbles)
    assert cells_of(marks_of(prompt, SQUARE).region()) == block(1, 1, 5, 5) - {(4, 4), (1, 1), (2, 1)}


def test_a_point_on_the_subject_outweighs_one_beside_it_in_the_same_cell():
    marks = marks_of(Prompt(points_px=((20.0, 20.0), (28.0, 28.0)), labels=(1, 0)), SQUARE)
    assert cells_of(marks.region(attention({}), reach=0)) == {(1, 1)}


def test_a_box_keeps_the_region_inside_of_it():
    prompt = Prompt(mask=box_mask(0, 0, 96, 96), box_xyxy_px=(32, 32, 300, 300))
    with pytest.raises(PromptError):
        marks_of(Prompt(mask=box_mask(0, 0, 96, 96), box_xyxy_px=(300, 300, 400, 400)), SQUARE)
    assert cells_of(marks_of(prompt, SQUARE).region()) == block(2, 2, 6, 6)
    # A cell of which no more than half lies in the box does not.
    half = Prompt(mask=box_mask(0, 0, 96, 96), box_xyxy_px=(24, 24, 56, 57))
    assert cells_of(marks_of(half, SQUARE).region()) == block(2, 2, 3, 4)
    # The picture is half as high as wide, so it lies between bars of three cells.
    wide = Square(SIDE // 2, SIDE, Fit.PAD, SIDE)
    prompt = Prompt(mask=torch.ones(SIDE // 2, SIDE), box_xyxy_px=(32, 16, 112, 64))
    assert cells_of(marks_of(prompt, wide).region()) == block(2, 1 + CELLS // 4, 7, 4 + CELLS // 4)


NOTHING = {
    "nothing at all": (Prompt(), "what the subject is"),
    "a blank mask": (Prompt(mask=torch.zeros(SIDE, SIDE)), "what the subject is"),
    "a blank scribble map": (Prompt(scribbles=torch.zeros(SIDE, SIDE, dtype=torch.uint8)), "what the subject is"),
    "a box alone": (Prompt(box_xyxy_px=(10, 10, 90, 90)), "a box or points beside it are not enough"),
    "a point beside it": (Prompt(points_px=((9.0, 9.0),), labels=(0,)), "points beside it are not enough"),
    "a mask smaller than a cell": (Prompt(mask=box_mask(10, 10, 30, 30)), "too small or too thin"),
    "a box beside the mask": (
        Prompt(mask=box_mask(16, 16, 64, 64), box_xyxy_px=(100, 100, 150, 150)),
        "leaves nothing of the mask",
    ),
}


@pytest.mark.parametrize("case", NOTHING)
def test_an_empty_region_is_an_error_that_names_the_picture_and_the_way_out(case):
    prompt, words = NOTHING[case]
    good = Prompt(mask=box_mask(16, 16, 96, 96))
    toy = ToyDiffusion()
    with pytest.raises(InContextError, match=f"Reference picture 2 has no region of interest: .*{words}"):
        take_reference(toy.networks(), [picture(), picture()], [good, prompt])
    # Nothing was computed in vain.
    assert toy.encoded == 0


def test_what_lies_beside_the_crop_is_said_to_lie_there():
    for start in (0, 410):
        wide, high = box_mask(start, 0, start + 90, 200, 200, 500), box_mask(0, start, 200, start + 90, 500, 200)
        for mask in (wide, high):
            with pytest.raises(InContextError, match="outside of the middle square.*'pad'"):
                marks_of(Prompt(mask=mask), Square(*mask.shape, Fit.CROP, SIDE))
    thin = Prompt(mask=box_mask(240, 0, 243, 200, 200, 500))
    with pytest.raises(InContextError, match="too small or too thin"):
        marks_of(thin, Square(200, 500, Fit.CROP, SIDE))
    point = Prompt(points_px=((20.0, 100.0),), labels=(1,))
    with pytest.raises(InContextError, match="outside of the middle square.*'pad'"):
        marks_of(point, Square(200, 500, Fit.CROP, SIDE))
    assert marks_of(point, Square(200, 500, Fit.PAD, SIDE)).seeds.sum() == 1


def test_a_mask_of_another_size_than_its_picture_is_refused():
    with pytest.raises(PromptError, match="Resize it to the picture's size"):
        take_reference(ToyDiffusion().networks(), [picture(200, 100)], [Prompt(mask=torch.ones(100, 100))])


@pytest.mark.parametrize("prompts", [0, 2])
def test_every_reference_picture_needs_its_prompt(prompts):
    with pytest.raises(InContextError, match=f"1 reference pictures and {prompts} prompts"):
        take_reference(ToyDiffusion().networks(), [picture()], [Prompt(mask=torch.ones(SIDE, SIDE))] * prompts)


def test_there_is_no_reference_without_a_picture():
    with pytest.raises(InContextError, match="0 reference pictures"):
        take_reference(ToyDiffusion().networks(), [], [])


@pytest.mark.parametrize("wrong", [(SIDE, SIDE), (SIDE, SIDE, 2), (0, SIDE, 3)])
def test_what_is_no_picture_is_refused(wrong):
    with pytest.raises(InContextError, match="height x width x 3"):
        take_reference(ToyDiffusion().networks(), [torch.rand(wrong)], [Prompt(mask=torch.ones(SIDE, SIDE))])


def test_a_picture_of_8_bit_numbers_is_refused_instead_of_taken_for_white():
    levels = torch.full((SIDE, SIDE, 3), 90, dtype=torch.uint8)
    with pytest.raises(InContextError, match="Divide 8-bit values by 255"):
        take_reference(ToyDiffusion().networks(), [levels], [Prompt(mask=torch.ones(SIDE, SIDE))])


def test_a_mask_is_an_area_or_strokes():
    with pytest.raises(InContextError, match='an "area" or "strokes", not "line"'):
        take_reference(ToyDiffusion().networks(), [picture()], [Prompt(mask=torch.ones(SIDE, SIDE))], mask_is="line")


def test_a_picture_with_nan_is_refused():
    broken = picture()
    broken[3, 4, 1] = float("nan")
    with pytest.raises(InContextError, match="A picture holds values that are not numbers"):
        take_reference(ToyDiffusion().networks(), [broken], [Prompt(mask=torch.ones(SIDE, SIDE))])


def test_a_reference_holds_the_features_of_its_region():
    networks = ToyDiffusion().networks()
    reference = take_reference(networks, [picture()], [Prompt(mask=box_mask(16, 32, 80, 96))], ensemble=2, seed=3)
    taps = take_taps(networks, picture()[None], 2, 3, Wanted.REFERENCE)
    assert torch.equal(reference.tokens[0], taps.fine[0][:, 2:6, 1:5].flatten(1).t())
    assert torch.equal(reference.regions[0], box_mask(16, 32, 80, 96))
    assert reference.tokens[0].device.type == "cpu" and reference.tokens[0].dtype == torch.float32


def test_only_points_and_strokes_cost_self_attention():
    toy = ToyDiffusion()
    area = Prompt(mask=box_mask(16, 16, 96, 96))
    point = Prompt(points_px=((50.0, 50.0),), labels=(1,))
    take_reference(toy.networks(), [picture()], [area])
    assert toy.blocks[-1] == ("output", 6)
    take_reference(toy.networks(), [picture()], [point])
    assert toy.blocks[-1] == ("output", 8)
    take_reference(toy.networks(), [picture()], [point], reach=0)
    assert toy.blocks[-1] == ("output", 6)


def test_a_point_reaches_as_far_as_it_is_told():
    networks = ToyDiffusion().networks()
    point = Prompt(points_px=((50.0, 50.0),), labels=(1,))
    sizes = [len(take_reference(networks, [picture()], [point], reach=reach).tokens[0]) for reach in (0, 5, 40)]
    assert sizes[0] == 1
    assert 5 <= sizes[1] <= 6 and 40 <= sizes[2] <= 41
    with pytest.raises(InContextError, match="0 or more"):
        take_reference(networks, [picture()], [point], reach=-1)


def test_a_mask_and_points_on_the_subject_add_up():
    prompt = Prompt(points_px=((150.0, 150.0),), labels=(1,), mask=box_mask(16, 16, 64, 64))
    reference = take_reference(ToyDiffusion().networks(), [picture()], [prompt], reach=0)
    assert torch.equal(reference.regions[0], (box_mask(16, 16, 64, 64) + box_mask(144, 144, 160, 160)))
