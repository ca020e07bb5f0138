"""Everything salient in a picture without a prompt: each filter on scenes whose instances are known."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import checkpoints
import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam as PublishedSam

from mam_model.everything import (
    EverythingOptions,
    find_everything,
    grid_points,
    is_background,
    one_by_one,
    parts_cut_out,
    stability_scores,
)
from mam_model.frame import PIXEL_MEAN, PIXEL_STD, Frame
from mam_model.m2m import MaskToMatte
from mam_model.matting import merge_targets, predict_pyramid
from mam_model.prompt import Prompt
from mam_model.sam import Embedding, Guidance, Sam, SamConfig
from mam_model.view import instance_color, numbered_instances
from tests.references import chain

SIDE = 256
# The picture of all scenes: as large as SAM's square is wide, so that its pixels are the square's.
HEIGHT, WIDTH = 192, 256
ALL = EverythingOptions(
    points_per_side=8,
    smallest_area=0,
    largest_area=1,
    leave_out_background=False,
    mask_nms=1,
    nested="both",
    order="score",
    most=None,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with chain.single_thread():
        yield


@dataclass
class Thing:
    """A rectangle x0, y0, x1, y1 in pixels, and what SAM thinks of its mask.

    Attributes:
        steepness: logits per pixel across its outline; stable from about 1 on.
        candidate: of which rank SAM offers it.
    """

    box: tuple[float, float, float, float]
    predicted_iou: float = 0.95
    steepness: float = 4.0
    candidate: int = 0

    def logits(self, frame: Frame) -> torch.Tensor:
        centres = torch.arange(frame.side // 4) * 4 + 2.0
        x0, y0, x1, y1 = self.box
        across = torch.minimum(centres - x0, x1 - centres)[None, :]
        down = torch.minimum(centres - y0, y1 - centres)[:, None]
        return (torch.minimum(across, down) * self.steepness).clamp(-20, 20)

    def holds(self, point: tuple[float, float]) -> bool:
        x0, y0, x1, y1 = self.box
        return x0 <= point[0] < x1 and y0 <= point[1] < y1


@dataclass
class Scene:
    """Stands in for SAM: at each point it offers the things that are there, up to three, and nothing else."""

    things: list[Thing]
    height: int = HEIGHT
    width: int = WIDTH
    steps: list[int] = field(default_factory=list)

    @property
    def embedding(self) -> Embedding:
        frame = Frame(self.height, self.width, SIDE)
        content = torch.zeros(frame.content_height, frame.content_width, 3, dtype=torch.uint8)
        return Embedding(torch.zeros(1, 256, SIDE // 16, SIDE // 16), content, frame)

    def decode(self, embedding: Embedding, prompts: list[Prompt]) -> Guidance:
        self.steps.append(len(prompts))
        logits = torch.full((len(prompts), 3, SIDE // 4, SIDE // 4), -20.0)
        predicted_iou = torch.zeros(len(prompts), 3)
        for index, prompt in enumerate(prompts):
            for thing in self.things:
                if thing.holds(prompt.points_px[0]):
                    logits[index, thing.candidate] = thing.logits(embedding.frame)
                    predicted_iou[index, thing.candidate] = thing.predicted_iou
        return Guidance(tuple(prompts), logits, predicted_iou, predicted_iou.argmax(dim=1), embedding.frame)

    def find(self, options: EverythingOptions = ALL, **settings) -> Guidance:
        return find_everything(self, self.embedding, options, **settings)


def boxes_of(guidance: Guidance) -> list[tuple[int, int, int, int]]:
    """x0, y0, x1, y1 of each mask at the picture's size, to the nearest 4 pixels: what the logits resolve."""
    found = []
    for target in range(len(guidance)):
        rows, columns = torch.nonzero(guidance.post_mask(target) > 0, as_tuple=True)
        edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        found.append(tuple(round(int(edge) / 4) * 4 for edge in edges))
    return found


LARGE = Thing((20, 40, 120, 160))
SMALL = Thing((160, 60, 220, 120))
PICTURE = (0, 0, WIDTH, HEIGHT)


def test_the_points_are_the_centres_of_equal_parts_of_the_picture():
    assert grid_points(2, Frame(40, 80)) == [(20, 10), (60, 10), (20, 30), (60, 30)]
    assert grid_points(1, Frame(1, 1)) == [(0.5, 0.5)]


def test_every_thing_in_a_picture_is_found_once_however_many_points_lie_on_it():
    found = Scene([LARGE, SMALL]).find()
    assert sorted(boxes_of(found)) == [LARGE.box, SMALL.box]
    assert found.scores == pytest.approx((0.95, 0.95))


def test_a_found_instance_is_the_mask_that_the_decoder_gave_for_its_point():
    scene = Scene([LARGE, replace(SMALL, candidate=2)])
    found = scene.find()
    decoded = scene.decode(scene.embedding, found.prompts)
    assert [prompt.candidate for prompt in found.prompts] == found.chosen.tolist() == decoded.chosen.tolist()
    assert torch.equal(found.network_mask, decoded.network_mask)
    for target in range(2):
        assert found.prompts[target].labels == (1,)
        assert torch.equal(found.post_mask(target), decoded.post_mask(target))


def test_a_picture_without_anything_gives_no_instances_and_an_empty_matte():
    scene = Scene([])
    found = scene.find()
    assert len(found) == 0 and found.scores == ()
    assert found.logits.shape == (0, 3, SIDE // 4, SIDE // 4)
    assert len(found.united()) == len(parts_cut_out(found)) == 0
    assert list(one_by_one(found)) == []
    m2m = MaskToMatte().eval().fold()
    with torch.inference_mode():
        assert merge_targets(predict_pyramid(m2m, scene.embedding, found), found).shape == (0, HEIGHT, WIDTH)


def test_an_empty_mask_is_never_an_instance():
    certain_of_nothing = Thing((70, 70, 70, 70), predicted_iou=1.0)
    certain_of_nothing.holds = lambda point: True
    assert len(Scene([certain_of_nothing]).find(replace(ALL, lowest_predicted_iou=0, lowest_stability=0))) == 0


def test_what_sam_itself_rates_no_better_than_the_threshold_is_dropped():
    scene = Scene([replace(LARGE, predicted_iou=0.9), replace(SMALL, predicted_iou=0.8)])
    assert boxes_of(scene.find(replace(ALL, lowest_predicted_iou=0.85))) == [LARGE.box]
    assert len(scene.find(replace(ALL, lowest_predicted_iou=0.75))) == 2
    assert len(scene.find(replace(ALL, lowest_predicted_iou=0.95))) == 0


def test_a_threshold_of_0_drops_nothing_even_if_sam_estimates_less_than_0():
    doubtful = replace(LARGE, predicted_iou=-0.1)
    assert boxes_of(Scene([doubtful]).find(replace(ALL, lowest_predicted_iou=0))) == [LARGE.box]


def test_a_mask_whose_outline_depends_on_the_threshold_is_dropped():
    vague = replace(LARGE, steepness=0.1)
    assert boxes_of(Scene([vague, SMALL]).find()) == [SMALL.box]
    assert len(Scene([vague, SMALL]).find(replace(ALL, lowest_stability=0.3))) == 2


def test_stability_is_the_share_that_is_left_when_the_threshold_rises_by_two_logits():
    logits = torch.tensor([[[5.0, 0.5, -0.5, -5.0]], [[5.0, 5.0, -5.0, -5.0]], [[-5.0, -5.0, -5.0, -5.0]]])
    assert stability_scores(logits).tolist() == pytest.approx([1 / 3, 1, 0])


def test_what_is_too_small_or_too_large_for_a_subject_is_dropped():
    large, small = (100 * 120) / (HEIGHT * WIDTH), (60 * 60) / (HEIGHT * WIDTH)
    scene = Scene([LARGE, SMALL])
    assert boxes_of(scene.find(replace(ALL, smallest_area=(large + small) / 2))) == [LARGE.box]
    assert boxes_of(scene.find(replace(ALL, largest_area=(large + small) / 2))) == [SMALL.box]


def test_of_two_masks_of_one_thing_the_better_one_is_kept():
    better = Thing((24, 40, 120, 160), predicted_iou=0.97, candidate=1)
    assert boxes_of(Scene([LARGE, better]).find(replace(ALL, mask_nms=0.7))) == [better.box]
    assert boxes_of(Scene([LARGE, better]).find()) == [better.box]
    both = Scene([LARGE, better]).find(replace(ALL, box_nms=0.99))
    assert boxes_of(both)[0] == better.box and set(boxes_of(both)) == {LARGE.box, better.box}


class Cross(Thing):
    """The two diagonal halves of a square: same box, no common pixel."""

    def logits(self, frame: Frame) -> torch.Tensor:
        centres = torch.arange(frame.side // 4) * 4 + 2.0
        side = 1 if self.candidate else -1
        triangle = (centres[None, :] - centres[:, None]) * side * self.steepness
        return torch.minimum(super().logits(frame), triangle)


def test_masks_that_only_share_their_box_are_two_things_when_boxes_are_not_compared():
    halves = [Cross((40, 40, 160, 160), 0.95), Cross((40, 40, 160, 160), 0.9, candidate=1)]
    assert len(Scene(halves).find(replace(ALL, mask_nms=0.7))) == 1
    assert len(Scene(halves).find(replace(ALL, box_nms=1, mask_nms=0.7))) == 2


def test_duplicates_that_are_kept_are_the_same_mask_from_each_point_on_it():
    every_point = Scene([SMALL]).find(replace(ALL, box_nms=1))
    on_it = [point for point in grid_points(8, Frame(HEIGHT, WIDTH, SIDE)) if SMALL.holds(point)]
    assert [prompt.points_px[0] for prompt in every_point.prompts] == on_it and len(on_it) > 1


WHOLE = Thing((20, 20, 140, 180), predicted_iou=0.93)
UPPER = Thing((24, 24, 136, 100), predicted_iou=0.96, candidate=1)
LOWER = Thing((24, 104, 136, 176), predicted_iou=0.95, candidate=1)
BUTTON = Thing((60, 120, 88, 152), predicted_iou=0.94, candidate=2)


@pytest.mark.parametrize(
    "things, nested, expected",
    [
        ([WHOLE, UPPER, LOWER, BUTTON], "whole", [WHOLE]),
        ([WHOLE, UPPER, LOWER, BUTTON], "parts", [UPPER, LOWER, BUTTON]),
        # Which of them SAM is surest of does not matter.
        ([replace(WHOLE, predicted_iou=0.99), UPPER, LOWER, BUTTON], "parts", [UPPER, LOWER, BUTTON]),
        ([WHOLE, UPPER, LOWER, BUTTON], "both", [WHOLE, UPPER, LOWER, BUTTON]),
        # A button covers too little of a coat to stand for it.
        ([WHOLE, BUTTON], "parts", [WHOLE, BUTTON]),
        ([WHOLE, BUTTON], "whole", [WHOLE]),
        ([WHOLE, SMALL], "whole", [WHOLE, SMALL]),
        ([WHOLE, SMALL], "parts", [WHOLE, SMALL]),
    ],
)
def test_of_a_thing_and_its_parts_the_whole_the_parts_or_both_are_kept(things, nested, expected):
    found = Scene(things).find(replace(ALL, nested=nested, points_per_side=16))
    assert sorted(boxes_of(found)) == sorted(thing.box for thing in expected)


def test_a_part_is_cut_out_of_its_whole_and_nothing_else_changes():
    found = Scene([WHOLE, BUTTON, SMALL]).find(replace(ALL, order="area", points_per_side=16))
    cut = parts_cut_out(found)
    whole, small, button = (cut.network_mask[target, 0] for target in range(3))
    before = found.network_mask[:, 0]
    assert torch.equal(whole, before[0] * (1 - before[2]))
    assert torch.equal(small, before[1]) and torch.equal(button, before[2])
    assert (whole + button + small).max() == 1
    assert cut.scores == found.scores


SKY = (0, 0, WIDTH, 60)
FLOOR = (0, 120, WIDTH, HEIGHT)
WALL = (0, 0, 40, HEIGHT)


def mask_of(*boxes: tuple[float, float, float, float], holes=()) -> torch.Tensor:
    mask = torch.zeros(HEIGHT // 4, WIDTH // 4, dtype=torch.bool)
    for value, group in ((True, boxes), (False, holes)):
        for box in group:
            x0, y0, x1, y1 = (int(edge) // 4 for edge in box)
            mask[y0:y1, x0:x1] = value
    return mask


@pytest.mark.parametrize(
    "mask, background",
    [
        (mask_of(SKY), True),
        (mask_of(FLOOR), True),
        (mask_of(WALL), True),
        (mask_of(PICTURE, holes=[(80, 40, 160, HEIGHT)]), True),
        # Somebody who stands, who stands on the border, a bust, and one whose shoulders reach all three borders.
        (mask_of((100, 30, 150, 170)), False),
        (mask_of((100, 30, 150, HEIGHT)), False),
        (mask_of((90, 40, 170, 110), (50, 110, 210, HEIGHT)), False),
        (mask_of((80, 20, 180, 140), (0, 140, WIDTH, HEIGHT)), False),
        # A table along the whole lower border touches one side alone.
        (mask_of((12, 150, 244, HEIGHT)), False),
        # So does a keyboard, which is flat and nearly as long.
        (mask_of((12, 176, 244, HEIGHT)), False),
        (torch.zeros(HEIGHT // 4, WIDTH // 4, dtype=torch.bool), False),
    ],
)
def test_background_lies_along_the_borders_of_the_picture_and_subjects_do_not(mask, background):
    assert is_background(mask[None]).tolist() == [background]


def test_in_a_strip_nothing_is_taken_for_background_because_everything_touches_its_borders():
    assert not is_background(torch.ones(1, 4, 64, dtype=torch.bool)).any()
    assert is_background(torch.ones(1, 8, 64, dtype=torch.bool)).all()


def test_the_background_is_left_out_before_it_can_stand_for_a_subject():
    """Its box is the picture's, and so nearly is that of a subject that fills the picture."""
    backdrop = Thing(PICTURE, predicted_iou=0.99)
    subject = Thing((16, 12, 240, 180), predicted_iou=0.9, candidate=1)
    scene = Scene([backdrop, subject])
    assert boxes_of(scene.find()) == [PICTURE]
    assert boxes_of(scene.find(replace(ALL, leave_out_background=True))) == [subject.box]


def test_instances_come_in_the_order_asked_for_and_no_more_than_asked_for():
    medium = Thing((152, 128, 232, 180), predicted_iou=0.99)
    things = [replace(SMALL, predicted_iou=0.93), replace(LARGE, predicted_iou=0.91), medium]
    scene = Scene(things)
    assert boxes_of(scene.find(replace(ALL, order="area"))) == [LARGE.box, medium.box, SMALL.box]
    assert boxes_of(scene.find()) == [medium.box, SMALL.box, LARGE.box]
    assert boxes_of(scene.find(replace(ALL, order="area", most=2))) == [LARGE.box, medium.box]
    assert boxes_of(scene.find(replace(ALL, most=1))) == [medium.box]


def test_what_is_found_does_not_depend_on_the_points_per_step():
    things = [WHOLE, UPPER, LOWER, BUTTON, SMALL]
    results = []
    for points_per_step in (1, 7, 64, 1000):
        scene = Scene(things)
        results.append(scene.find(points_per_step=points_per_step))
        assert sum(scene.steps) == 64 and max(scene.steps) == min(points_per_step, 64)
    for other in results[1:]:
        assert torch.equal(other.logits, results[0].logits)
        assert other.scores == results[0].scores
        assert [p.points_px for p in other.prompts] == [p.points_px for p in results[0].prompts]


def test_progress_is_shown_after_each_step_and_what_it_raises_ends_the_search():
    seen = []
    Scene([LARGE]).find(points_per_step=24, show=lambda done, total: seen.append((done, total)))
    assert seen == [(24, 64), (48, 64), (64, 64)]

    def cancel(done, total):
        raise InterruptedError

    scene = Scene([LARGE])
    with pytest.raises(InterruptedError):
        scene.find(points_per_step=8, show=cancel)
    assert scene.steps == [8]


@pytest.mark.parametrize("height, width", [(1, 1), (1, 300), (300, 2), (3, 2), (20, 400)])
def test_a_tiny_picture_or_a_strip_is_searched_like_any_other(height, width):
    side = Frame(height, width, SIDE)
    whole = Thing((-10, -10, side.content_width + 10, side.content_height + 10))
    whole.holds = lambda point: True
    found = Scene([whole], height, width).find()
    assert len(found) == 1
    assert torch.equal(found.post_mask(0), torch.ones(height, width))


def test_something_in_the_padding_alone_is_not_in_the_picture():
    below = Thing((20, HEIGHT + 12, 200, 250))
    below.holds = lambda point: True
    assert len(Scene([below]).find(replace(ALL, lowest_stability=0))) == 0


@pytest.mark.parametrize(
    "setting, sentence",
    [
        ({"points_per_side": 0}, "points_per_side is at least 1"),
        ({"nested": "all"}, '"whole", "parts" or "both"'),
        ({"order": "left"}, '"area" or "score"'),
        ({"most": 0}, "most is at least 1"),
        ({"smallest_area": 0.5, "largest_area": 0.1}, "nothing could be found"),
        ({"lowest_predicted_iou": 88}, "lowest_predicted_iou lies between 0 and 1, not at 88"),
        ({"lowest_stability": float("nan")}, "lowest_stability lies between 0 and 1, not at nan"),
        ({"largest_area": 90}, "largest_area lies between 0 and 1, not at 90"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting, sentence):
    with pytest.raises(ValueError, match=sentence):
        EverythingOptions(**setting)


def test_the_preview_tints_each_instance_in_a_colour_of_its_own_and_leaves_the_rest_as_it_is():
    scene = Scene([LARGE, SMALL])
    content = smooth_picture(HEIGHT, WIDTH)
    embedding = replace(scene.embedding, content=content)
    shown = numbered_instances(embedding, scene.find(replace(ALL, order="area")))
    assert shown.shape == (HEIGHT, WIDTH, 3)
    before = content.float() / 255
    for number, (x0, y0, *_) in enumerate((LARGE.box, SMALL.box)):
        expected = 0.5 * before[y0 + 6, x0 + 6] + 0.5 * torch.tensor(instance_color(number))
        torch.testing.assert_close(shown[y0 + 6, x0 + 6], expected, atol=2 / 255, rtol=0)
    torch.testing.assert_close(shown[170:], before[170:], atol=1 / 255, rtol=0)


def test_the_preview_writes_a_number_into_the_middle_of_each_instance():
    scene = Scene([LARGE, SMALL])
    shown = numbered_instances(scene.embedding, scene.find(replace(ALL, order="area")))
    for x0, y0, x1, y1 in (LARGE.box, SMALL.box):
        inside = shown[y0:y1, x0:x1]
        white = (inside > 0.99).all(dim=-1)
        assert white.any() and (inside < 0.2).all(dim=-1).any()
        rows, columns = torch.nonzero(white, as_tuple=True)
        # The middle line of a long thing is deep inside all along.
        assert abs(columns.float().mean() - (x1 - x0) / 2) < 6
        assert (x1 - x0) / 3 < rows.float().mean() < (y1 - y0) - (x1 - x0) / 3


def test_a_hundred_instances_have_a_hundred_colours():
    colors = torch.tensor([instance_color(number) for number in range(100)])
    assert colors.min() >= 0 and colors.max() <= 1
    assert torch.pdist(colors).min() > 0.01


@pytest.mark.parametrize("height, width", [(1, 1), (1, 400)])
def test_a_preview_of_a_tiny_picture_has_the_size_in_which_the_network_saw_it(height, width):
    scene = Scene([], height, width)
    frame = scene.embedding.frame
    shown = numbered_instances(scene.embedding, scene.find())
    assert shown.shape == (frame.content_height, frame.content_width, 3)


def contrasty_sam() -> Sam:
    """The tiny SAM with logits in the tens and predicted IoUs across 0.4..1.2, so that every threshold divides."""
    state_dict = checkpoints.tiny_sam_state_dict()
    for mask in range(4):
        state_dict[f"mask_decoder.output_hypernetworks_mlps.{mask}.layers.2.weight"] *= 200
        state_dict[f"mask_decoder.output_hypernetworks_mlps.{mask}.layers.2.bias"] *= 200
    state_dict["mask_decoder.iou_prediction_head.layers.2.weight"] *= 5
    state_dict["mask_decoder.iou_prediction_head.layers.2.bias"] += 0.5
    sam = Sam(SamConfig.from_state_dict(state_dict)).eval()
    sam.load_state_dict(state_dict)
    return sam


def smooth_picture(height: int, width: int) -> torch.Tensor:
    """uint8 [height, width, 3]"""
    blots = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.interpolate(blots, (height, width), mode="bilinear", align_corners=False)
    return (smooth[0].permute(1, 2, 0) * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def random_sam() -> Sam:
    return contrasty_sam()


def generator_of(sam, **settings) -> SamAutomaticMaskGenerator:
    """segment-anything's own generator on the same three networks."""
    published = PublishedSam(sam.image_encoder, sam.prompt_encoder, sam.mask_decoder, PIXEL_MEAN, PIXEL_STD).eval()
    return SamAutomaticMaskGenerator(published, points_per_side=8, points_per_batch=16, **settings)


def in_one_order(answers: list[tuple]) -> list[tuple]:
    """(point, predicted IoU, mask) of each answer, by point and then by predicted IoU."""
    return sorted(answers, key=lambda answer: (*(round(place, 3) for place in answer[0]), answer[1]))


def assert_same_answers(found: Guidance, generated: list[dict]) -> None:
    ours = [
        (prompt.points_px[0], score, found.post_mask(target).numpy() > 0)
        for target, (prompt, score) in enumerate(zip(found.prompts, found.scores))
    ]
    theirs = [(answer["point_coords"][0], answer["predicted_iou"], answer["segmentation"]) for answer in generated]
    assert len(ours) == len(theirs) > 0
    for (point, score, mask), (their_point, their_score, their_mask) in zip(in_one_order(ours), in_one_order(theirs)):
        assert point == pytest.approx(their_point, abs=1e-3)
        assert score == pytest.approx(their_score, abs=1e-4)
        assert (mask != their_mask).mean() < 1e-3


@pytest.mark.parametrize("pred_iou_thresh, stability_score_thresh", [(0.0, 0.0), (0.7, 0.0), (0.0, 0.9), (0.6, 0.88)])
def test_the_masks_are_those_of_the_published_generator_at_the_same_thresholds(
    random_sam, pred_iou_thresh, stability_score_thresh
):
    picture = smooth_picture(HEIGHT, WIDTH)
    generator = generator_of(
        random_sam,
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=stability_score_thresh,
        box_nms_thresh=1.0,
    )
    with torch.inference_mode():
        embedding = random_sam.encode(picture.float() / 255)
    options = replace(ALL, lowest_predicted_iou=pred_iou_thresh, lowest_stability=stability_score_thresh, box_nms=1)
    assert_same_answers(find_everything(random_sam, embedding, options), generator.generate(picture.numpy()))


@pytest.mark.parametrize("seed", range(6))
def test_duplicates_are_the_ones_that_the_published_generator_drops(random_sam, seed):
    """On scenes of overlapping rectangles, some of them vague or poorly rated, at the published thresholds."""
    random = np.random.default_rng(seed)
    things = []
    for _ in range(24):
        x, y = random.integers(0, 40), random.integers(0, 28)
        width, height = random.integers(6, 24, size=2)
        things.append(
            Thing(
                (4 * x, 4 * y, 4 * min(x + width, WIDTH // 4), 4 * min(y + height, HEIGHT // 4)),
                predicted_iou=random.uniform(0.8, 1.0),
                steepness=random.choice([0.2, 4.0], p=[0.2, 0.8]),
                candidate=int(random.integers(3)),
            )
        )
    scene = Scene(things)
    generator = generator_of(random_sam)

    def predict(points, labels, **_):
        prompts = [Prompt(points_px=(tuple(point.tolist()),), labels=(1,)) for point in points[:, 0]]
        guidance = scene.decode(scene.embedding, prompts)
        return guidance.frame.logits_to_original(guidance.logits), guidance.predicted_iou, guidance.logits

    generator.predictor.predict_torch = predict
    assert_same_answers(scene.find(), generator.generate(np.zeros((HEIGHT, WIDTH, 3), np.uint8)))


def test_with_a_real_decoder_too_the_steps_change_nothing(random_sam):
    with torch.inference_mode():
        embedding = random_sam.encode(smooth_picture(90, 140).float() / 255)
    options = replace(ALL, box_nms=0.999, lowest_predicted_iou=0.5, lowest_stability=0.5)
    few, many, again = (find_everything(random_sam, embedding, options, points_per_step=count) for count in (5, 64, 64))
    assert [prompt.points_px for prompt in few.prompts] == [prompt.points_px for prompt in many.prompts]
    assert (few.network_mask != many.network_mask).float().mean() < 1e-3
    assert torch.equal(many.logits, again.logits) and many.scores == again.scores


def test_mattes_made_one_by_one_are_those_made_together():
    scene = Scene([LARGE, SMALL])
    found = scene.find()
    m2m = MaskToMatte().eval().fold()
    with torch.inference_mode():
        together = merge_targets(predict_pyramid(m2m, scene.embedding, found), found)
        for alpha, target in zip(together, one_by_one(found)):
            alone = merge_targets(predict_pyramid(m2m, scene.embedding, target), target)
            torch.testing.assert_close(alone[0], alpha, atol=1e-5, rtol=0)
    assert len(together) == 2 and together.amax(dim=(1, 2)).min() > 0
