"""What was drawn in the prompt editor is what is matted; what cannot be a drawing is refused in words."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FOREGROUND, BACKGROUND, UNKNOWN = 1, 2, 3

many = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def drawing(comfyui):
    return comfyui.module("nodes.drawing")


@pytest.fixture(scope="module")
def refused(comfyui):
    return comfyui.module("mam_model.prompt").PromptError


def text_of(*targets, **others) -> str:
    return json.dumps({"version": 1, "width": 64, "height": 48, "targets": list(targets), **others})


def target(all=None, name="Cat", **others) -> dict:
    """A target whose prompt in every frame is `all`."""
    return {"name": name, "color": "#ff8800", "hidden": False, "prompts": {"all": all or {}}, **others}


def point(x: float, y: float, label: int = 1) -> dict:
    return {"x": x, "y": y, "label": label}


def stroke(*path: float, kind: str = "foreground", width: float = 5) -> dict:
    return {"kind": kind, "width": width, "path": list(path)}


def painted(drawing, *strokes, size=(64, 48), drawn_on=(64, 48)) -> torch.Tensor | None:
    return drawing.DrawnPrompt.read({"strokes": list(strokes)}).prompt(drawn_on, size).scribbles


POINT = {"points": [point(10, 20)]}


@pytest.mark.parametrize("text", ["", "  \n", "{}", '{"version": 1}', text_of(), '{"version": 1, "targets": null}'])
def test_an_empty_drawing_asks_for_no_matte(drawing, text):
    assert drawing.Drawing.read(text).prompts(3, 640, 480).frames == ((),)


def test_points_box_strokes_and_name_become_the_targets_prompt(drawing):
    drawn = {
        "points": [point(12.5, 30), point(1, 2, 0)],
        "box": {"x": 5, "y": 6, "width": 30, "height": 20},
        "strokes": [stroke(10, 10, 20, 10)],
    }
    ((prompt,),) = drawing.Drawing.read(text_of(target(drawn))).prompts(1, 64, 48).frames
    assert prompt.points_px == ((12.5, 30), (1, 2)) and prompt.labels == (1, 0)
    assert prompt.box_xyxy_px == (5, 6, 35, 26)
    assert prompt.scribbles.shape == (48, 64) and prompt.scribbles.dtype == torch.uint8
    assert prompt.label == "Cat" and prompt.mask is None


def test_every_target_is_a_prompt_in_the_order_of_the_list(drawing):
    targets = [target(POINT, name) for name in ("Cat", "Dog", "")]
    (frame,) = drawing.Drawing.read(text_of(*targets)).prompts(1, 64, 48).frames
    assert [prompt.label for prompt in frame] == ["Cat", "Dog", ""]


def test_a_hidden_target_is_not_matted(drawing):
    value = drawing.Drawing.read(text_of(target(POINT, "Cat", hidden=True), target(POINT, "Dog")))
    (frame,) = value.prompts(1, 64, 48).frames
    assert [prompt.label for prompt in frame] == ["Dog"]
    assert [shown.name for shown in value.targets] == ["Cat", "Dog"]


def test_a_target_in_which_nothing_was_drawn_is_not_matted(drawing):
    (frame,) = drawing.Drawing.read(text_of(target({}, "Cat"), target(POINT, "Dog"))).prompts(1, 64, 48).frames
    assert [prompt.label for prompt in frame] == ["Dog"]


def test_what_is_drawn_for_all_frames_speaks_for_every_batch(drawing):
    prompts = drawing.Drawing.read(text_of(target(POINT))).prompts(5, 64, 48)
    assert len(prompts.frames) == 1 and len(prompts.for_batch(7)) == 7


def test_what_is_drawn_for_one_frame_replaces_what_is_drawn_for_all_in_that_frame_alone(drawing):
    prompts = {"all": {"points": [point(1, 1)], "strokes": [stroke(5, 5)]}, "2": {"points": [point(9, 9)]}}
    frames = drawing.Drawing.read(text_of(target(prompts=prompts))).prompts(4, 64, 48).frames
    assert [frame[0].points_px for frame in frames] == [((1, 1),), ((1, 1),), ((9, 9),), ((1, 1),)]
    assert frames[2][0].scribbles is None
    assert frames[0][0].scribbles is frames[3][0].scribbles


def test_a_target_drawn_in_one_frame_only_keeps_its_place_in_the_others(drawing):
    here = target(prompts={"1": POINT}, name="Dog")
    frames = drawing.Drawing.read(text_of(here, target(POINT))).prompts(2, 64, 48).frames
    assert [[prompt.label for prompt in frame] for frame in frames] == [["Dog", "Cat"], ["Dog", "Cat"]]
    assert [frame[0].is_empty for frame in frames] == [True, False]


def test_an_empty_prompt_for_one_frame_leaves_that_frame_out(drawing):
    frames = drawing.Drawing.read(text_of(target(prompts={"all": POINT, "0": {}}))).prompts(2, 64, 48).frames
    assert [frame[0].is_empty for frame in frames] == [True, False]


def test_prompts_for_frames_that_the_batch_does_not_have_are_left_out(drawing):
    frames = drawing.Drawing.read(text_of(target(prompts={"1": POINT, "9": POINT}))).prompts(2, 64, 48).frames
    assert [frame[0].is_empty for frame in frames] == [True, False]


# ---- strokes


def test_a_stroke_is_as_wide_as_the_brush_and_ends_round(drawing):
    map_ = painted(drawing, stroke(20, 24, 44, 24, width=10))
    assert set(map_.unique().tolist()) == {0, FOREGROUND}
    rows, columns = torch.nonzero(map_, as_tuple=True)
    assert abs(int((map_[:, 32] > 0).sum()) - 10) <= 1
    assert abs(int(rows.float().mean()) - 24) <= 1
    assert abs(int(columns.min()) - 15) <= 1 and abs(int(columns.max()) - 48) <= 1
    assert map_[20, 15] == 0 and map_[28, 48] == 0


def test_a_single_touch_of_the_brush_is_a_disc(drawing):
    map_ = painted(drawing, stroke(32, 24, width=21))
    area = int((map_ > 0).sum())
    assert abs(area - math.pi * 10.5**2) < 0.1 * area
    assert torch.equal(map_, map_.T.flip(0, 1).T.flip(0, 1))


def test_the_thinnest_brush_touches_a_pixel(drawing):
    assert int((painted(drawing, stroke(10.5, 20.5, width=1)) > 0).sum()) == 1
    assert painted(drawing, stroke(10.5, 20.5, width=1))[20, 10] == FOREGROUND


def test_later_strokes_lie_over_earlier_ones(drawing):
    over = [stroke(10, 24, 50, 24), stroke(30, 10, 30, 40, kind="background"), stroke(30, 24, kind="unknown", width=3)]
    map_ = painted(drawing, *over)
    assert [int(map_[24, x]) for x in (15, 29, 45)] == [FOREGROUND, UNKNOWN, FOREGROUND]
    assert int(map_[15, 30]) == BACKGROUND


def test_the_eraser_takes_away_earlier_strokes_but_not_later_ones(drawing):
    line = stroke(10, 24, 50, 24)
    erased = painted(drawing, line, stroke(30, 10, 30, 40, kind="eraser", width=9))
    assert erased[24, 30] == 0 and erased[24, 15] == FOREGROUND and erased[24, 45] == FOREGROUND
    assert painted(drawing, stroke(30, 24, kind="eraser", width=9), line)[24, 30] == FOREGROUND


def test_what_is_all_erased_says_nothing(drawing):
    drawn = {"strokes": [stroke(30, 24), stroke(30, 24, kind="eraser", width=40)]}
    ((prompt,),) = drawing.Drawing.read(text_of(target(drawn))).prompts(1, 64, 48).frames
    assert prompt.scribbles is None and prompt.is_empty


def test_a_stroke_far_outside_the_picture_paints_nothing_in_it(drawing):
    assert painted(drawing, stroke(1e6, 1e6, 1e6, 9e5, width=2000)) is None


def test_a_stroke_across_the_picture_from_outside_is_cut_at_the_border(drawing):
    map_ = painted(drawing, stroke(-1000, 24, 1000, 24, width=4))
    assert (map_[24] > 0).all() and (map_[:20] == 0).all() and (map_[29:] == 0).all()


# ---- another size


def test_a_drawing_is_scaled_to_the_same_picture_in_another_size(drawing):
    drawn = {"points": [point(64, 48), point(16, 12, 0)], "box": {"x": 8, "y": 8, "width": 16, "height": 16}}
    ((prompt,),) = drawing.Drawing.read(text_of(target(drawn))).prompts(1, 640, 480).frames
    assert prompt.points_px == ((640, 480), (160, 120))
    assert prompt.box_xyxy_px == (80, 80, 240, 240)


def test_strokes_are_scaled_with_their_width(drawing):
    small = painted(drawing, stroke(20, 24, 44, 24, width=8))
    large = painted(drawing, stroke(20, 24, 44, 24, width=8), size=(640, 480))
    assert large.shape == (480, 640)
    assert abs(int((large[:, 320] > 0).sum()) - 80) <= 2
    shrunk = torch.nn.functional.interpolate(large[None, None].float(), (48, 64), mode="area")[0, 0]
    assert (shrunk.round() - small.clamp(max=1)).abs().sum() <= 0.2 * (small > 0).sum()


def test_on_a_picture_of_the_same_size_coordinates_stay_as_they_are(drawing):
    odd = {"points": [point(0.1, 47.93)]}
    ((prompt,),) = drawing.Drawing.read(text_of(target(odd), width=49, height=51)).prompts(1, 49, 51).frames
    assert prompt.points_px == ((0.1, 47.93),)


def test_without_a_size_coordinates_are_taken_as_they_are(drawing):
    for size in ({"width": 0, "height": 0}, {"width": None, "height": None}, {"width": 640, "height": 0}):
        ((prompt,),) = drawing.Drawing.read(text_of(target(POINT), **size)).prompts(1, 640, 100).frames
        assert prompt.points_px == ((10, 20),)


def test_the_rounding_of_a_resized_picture_is_no_other_shape(drawing):
    value = drawing.Drawing.read(text_of(target(POINT), width=1000, height=667))
    assert value.prompts(1, 300, 200).frames[0][0].points_px[0] == pytest.approx((3, 6), rel=0.01)


def test_a_picture_of_another_shape_is_refused_with_both_sizes(drawing, refused):
    with pytest.raises(refused, match=r"64 x 48 pixels, but this one is 64 x 64.*clear the prompts"):
        drawing.Drawing.read(text_of(target(POINT))).prompts(1, 64, 64)


def test_an_empty_drawing_fits_a_picture_of_any_shape(drawing):
    for value in (text_of(), text_of(target({})), text_of(target(POINT, hidden=True))):
        assert drawing.Drawing.read(value).prompts(1, 64, 64).frames == ((),)


# ---- what is refused


def deep(levels: int):
    return [] if levels == 1 else [deep(levels - 1)]


MALFORMED = {
    "no JSON": ("{", r"cannot be read as JSON.*\. Copy it whole, or clear it and draw anew\."),
    "text behind it": (text_of() + "x", "cannot be read as JSON"),
    "nothing but brackets": ("[" * 100_000, "cannot be read as JSON"),
    "a list": ("[]", "is a JSON object, not a list"),
    "a number": ("1", "is a JSON object, not a number"),
    "a number of thousands of digits": ("9" * 5000, "cannot be read as JSON"),
    "version as text": ('{"version": "1"}', "version is a whole number from 1, not a text"),
    "version true": ('{"version": true}', "version is a whole number from 1, not true or false"),
    "version 0": ('{"version": 0}', "version is a whole number from 1, not a number"),
    "a newer version": (text_of(version=2), "made by a newer version"),
    "targets as an object": (text_of().replace("[]", "{}"), "targets are a JSON list"),
    "a target that is a text": (text_of("Cat"), "Target 1 of the drawing is a JSON object, not a text"),
    "a name that is a number": (text_of(target(POINT, 5)), "name of at most 100"),
    "a long name": (text_of(target(POINT, "x" * 101)), "name of at most 100"),
    "a colour by name": (text_of(target(POINT, color="orange")), 'like "#ff8800"'),
    "a short colour": (text_of(target(POINT, color="#f80")), 'like "#ff8800"'),
    "hidden as a number": (text_of(target(POINT, hidden=1)), "true or false, not a number"),
    "points without a target": (text_of(points=[point(1, 2)]), 'The drawing holds "points" itself'),
    "a box beside its prompts": (
        text_of(target({}, box={"x": 1, "y": 2, "width": 3, "height": 4})),
        'Target 1 of the drawing holds "box" itself',
    ),
    "prompts as a list": (text_of(target(prompts=[])), "its prompts is a JSON object, not a list"),
    "a frame by name": (text_of(target(prompts={"first": POINT})), "neither .all. nor the number of a frame"),
    "a negative frame": (text_of(target(prompts={"-1": POINT})), "neither .all. nor the number of a frame"),
    "a frame with a leading zero": (text_of(target(prompts={"01": POINT})), "neither .all. nor the number"),
    "a frame in other digits": (text_of(target(prompts={"\u0663": POINT})), "neither .all. nor the number"),
    "a prompt that is null": (text_of(target(prompts={"all": None})), "is a JSON object, not nothing"),
    "points as text": (text_of(target({"points": "1 2"})), "its points are a JSON list, not a text"),
    "a point as a list": (text_of(target({"points": [[1, 2]]})), "point 1 is a JSON object, not a list"),
    "a point without y": (text_of(target({"points": [{"x": 1, "label": 1}]})), '"y" is a number, not nothing'),
    "a point of text": (text_of(target({"points": [point("1", 2)]})), '"x" is a number, not a text'),
    "a point of truth": (text_of(target({"points": [point(True, 2)]})), '"x" is a number, not true or false'),
    "a point that is no number": (text_of(target({"points": [point(math.nan, 2)]})), "between -1,000,000 and"),
    "a point at infinity": (text_of(target({"points": [point(math.inf, 2)]})), "between -1,000,000 and 1,000,000"),
    "a point far away": (text_of(target({"points": [point(1.1e6, 2)]})), "between -1,000,000 and 1,000,000"),
    "a point farther than any float": (text_of(target({"points": [point(10**400, 2)]})), "between -1,000,000 and"),
    "a point labelled 2": (text_of(target({"points": [point(1, 2, 2)]})), "label is 1"),
    "a point labelled true": (text_of(target({"points": [point(1, 2, True)]})), "label is 1"),
    "a box as a list": (text_of(target({"box": [1, 2, 3, 4]})), "its box is a JSON object, not a list"),
    "a box without a width": (
        text_of(target({"box": {"x": 1, "y": 2, "height": 3}})),
        '"width" is a number, not nothing',
    ),
    "a box from right to left": (
        text_of(target({"box": {"x": 9, "y": 2, "width": -5, "height": 3}})),
        "width and height of its box cannot be negative",
    ),
    "strokes as an object": (text_of(target({"strokes": {}})), "its strokes are a JSON list, not an object"),
    "a stroke of another kind": (text_of(target({"strokes": [stroke(1, 2, kind="spray")]})), "foreground, background"),
    "a stroke whose kind is a list": (text_of(target({"strokes": [stroke(1, 2, kind=[])]})), "foreground, background"),
    "a stroke without a width": (text_of(target({"strokes": [stroke(1, 2, width=None)]})), "its width is a number"),
    "a stroke of no width": (text_of(target({"strokes": [stroke(1, 2, width=0.5)]})), "it can be 1 to 2000 pixels"),
    "a stroke too wide": (text_of(target({"strokes": [stroke(1, 2, width=2001)]})), "it can be 1 to 2000 pixels"),
    "a stroke without a path": (text_of(target({"strokes": [stroke()]})), "x and y in turn"),
    "half a place": (text_of(target({"strokes": [stroke(1, 2, 3)]})), "x and y in turn"),
    "a path of text": (
        text_of(target({"strokes": [stroke("a", "b")]})),
        "a number of its path is a number, not a text",
    ),
    "a negative size": (text_of(target(POINT), width=-64), "cannot be negative"),
    "a size of less than a pixel": (text_of(target(POINT), width=1e-200, height=1e-200), "has at least one pixel"),
    "a size of text": (text_of(target(POINT), width="64"), "width of the picture that was drawn on is a number"),
    "too deep": (text_of(extra=deep(8)), "more than 8 levels deep"),
}


@pytest.mark.parametrize(("text", "says"), MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_drawing_is_refused_in_words(drawing, refused, text, says):
    with pytest.raises(refused, match=says) as error:
        drawing.Drawing.read(text)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


@pytest.mark.parametrize("value", [None, 5, {}, [], b"{}"])
def test_a_drawing_that_is_no_text_is_refused_in_words(drawing, refused, value):
    with pytest.raises(refused, match="is a text of JSON"):
        drawing.Drawing.read(value)


def full(count: int, item) -> list:
    return [item] * count


# The largest drawings that are taken; with one thing more each is refused.
LIMITS = {
    "characters": (lambda n: text_of().replace("}", " " * (n - len(text_of())) + "}"), 1_000_000, "characters"),
    "targets": (lambda n: text_of(*full(n, target())), 64, "65 targets"),
    "frames": (
        lambda n: text_of(target(prompts={"all": POINT, **{str(k): {} for k in range(n)}})),
        512,
        "more than 512 frames",
    ),
    "points": (lambda n: text_of(target({"points": full(n, point(1, 2))})), 1_000, "1,001 points"),
    "strokes": (lambda n: text_of(target({"strokes": full(n, stroke(1, 2))})), 2_000, "2,001 strokes"),
    "places of a stroke": (lambda n: text_of(target({"strokes": [stroke(*full(2 * n, 1))]})), 10_000, "20,002 numbers"),
    "places in all": (
        lambda n: (
            text_of(*full(n // 10_000, target({"strokes": [stroke(*full(20_000, 1))]})))
            if n == 100_000
            else text_of(
                *full(10, target({"strokes": [stroke(*full(20_000, 1))]})), target({"strokes": [stroke(1, 2)]})
            )
        ),
        100_000,
        "more than 200,000 numbers",
    ),
    "levels": (lambda n: text_of(extra=deep(n - 1)), 8, "more than 8 levels"),
    "name": (lambda n: text_of(target(POINT, "x" * n)), 100, "at most 100"),
}


@pytest.mark.parametrize(("build", "most", "says"), LIMITS.values(), ids=LIMITS)
def test_every_bound_is_kept_to_the_last_one(drawing, refused, build, most, says):
    drawing.Drawing.read(build(most))
    with pytest.raises(refused, match=says):
        drawing.Drawing.read(build(most + 1))


def test_a_point_without_a_label_lies_on_the_subject(drawing):
    ((prompt,),) = drawing.Drawing.read(text_of(target({"points": [{"x": 1, "y": 2}]}))).prompts(1, 64, 48).frames
    assert prompt.labels == (1,)


def test_keys_of_later_versions_are_passed_over(drawing):
    more = target({**POINT, "lasso": [1, 2]}, weight=3)
    ((prompt,),) = drawing.Drawing.read(text_of(more, zoom={"x": 1})).prompts(1, 64, 48).frames
    assert prompt.points_px == ((10, 20),)


# ---- whatever is drawn

NUMBERS = st.one_of(st.integers(-(10**6), 10**6), st.floats(-1e6, 1e6), st.floats(0, 64))
POINTS = st.builds(point, NUMBERS, NUMBERS, st.sampled_from([0, 1]))
BOXES = st.builds(
    lambda x, y, width, height: {"x": x, "y": y, "width": abs(width), "height": abs(height)}, *[NUMBERS] * 4
)
STROKES = st.builds(
    lambda path, kind, width: stroke(*(n for place in path for n in place), kind=kind, width=width),
    st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=5),
    st.sampled_from(["foreground", "background", "unknown", "eraser"]),
    st.floats(1, 2000),
)
PROMPTS = st.fixed_dictionaries(
    {},
    optional={
        "points": st.lists(POINTS, max_size=4),
        "box": st.none() | BOXES,
        "strokes": st.lists(STROKES, max_size=4),
    },
)
FRAMES = st.just("all") | st.integers(0, 5).map(str)
TARGETS = st.fixed_dictionaries(
    {"prompts": st.dictionaries(FRAMES, PROMPTS, max_size=3)},
    optional={"name": st.text(max_size=20), "color": st.just("#00ff7f"), "hidden": st.booleans()},
)
SIZES = st.integers(0, 300)


@many
@given(st.lists(TARGETS, max_size=3), SIZES, SIZES, st.integers(1, 3), st.integers(1, 90), st.integers(1, 90))
def test_every_drawing_within_the_bounds_gives_prompts_or_is_refused_in_words(
    drawing, refused, targets, across, down, count, width, height
):
    value = drawing.Drawing.read(json.dumps({"version": 1, "width": across, "height": down, "targets": targets}))
    try:
        frames = value.prompts(count, width, height).for_batch(count)
    except refused:
        assert 0 not in (across, down) and abs(width * down / (height * across) - 1) > 0.019
        return
    shown = [target for target in targets if not target.get("hidden")]
    assert all(len(frame) == len(frames[0]) <= len(shown) for frame in frames)
    for prompt in (prompt for frame in frames for prompt in frame):
        assert len(prompt.points_px) == len(prompt.labels)
        assert all(math.isfinite(n) for place in prompt.points_px for n in place)
        if prompt.scribbles is not None:
            assert prompt.scribbles.shape == (height, width) and int(prompt.scribbles.max()) <= UNKNOWN
        try:
            prompt.checked(width, height)
        except refused:
            pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "version targets prompts all points box strokes x y width height label kind path name".split()
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@many
@given(JSON, st.sampled_from(["text", "targets", "target", "prompts", "prompt"]))
def test_any_json_is_read_or_refused_in_words(drawing, refused, value, place):
    wrapped = {
        "text": value,
        "targets": {"version": 1, "targets": value},
        "target": {"version": 1, "targets": [value]},
        "prompts": {"version": 1, "targets": [{"prompts": value}]},
        "prompt": {"version": 1, "targets": [{"prompts": {"all": value}}]},
    }[place]
    try:
        drawing.Drawing.read(json.dumps(wrapped)).prompts(2, 64, 48)
    except refused as error:
        assert str(error)[0].isupper() and str(error).rstrip().endswith((".", "}"))


@many
@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_in_words(drawing, refused, text):
    try:
        drawing.Drawing.read(text)
    except refused as error:
        assert str(error)
