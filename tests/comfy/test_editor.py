"""What is drawn in the prompt editor is matted as the same prompt from any other node; live mattes leave no trace."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from .graphs import boxes, count_calls, disc, disc_picture, embeddings_in_memory, loaders, node, pictures, points, whole

POINT = {"points": [{"x": 32, "y": 24, "label": 1}]}
BOX = {"box": {"x": 10, "y": 6, "width": 40, "height": 36}}
STROKES = {
    "strokes": [
        {"kind": "foreground", "width": 6, "path": [28, 24, 40, 24]},
        {"kind": "background", "width": 4, "path": [2, 2, 60, 2]},
        {"kind": "unknown", "width": 5, "path": [20, 12, 44, 12]},
        {"kind": "eraser", "width": 3, "path": [30, 24]},
    ]
}


def drawn(*prompts: dict, width: int = 64, height: int = 48) -> str:
    """A drawing with one target per prompt, each for all frames; or, if a prompt has frame keys, for these."""
    targets = []
    for number, prompt in enumerate(prompts):
        per_frame = prompt if not prompt or {"points", "box", "strokes"}.isdisjoint(prompt) else {"all": prompt}
        targets.append({"name": f"Target {number}", "color": "#ff8800", "hidden": False, "prompts": per_frame})
    return json.dumps({"version": 1, "width": width, "height": height, "targets": targets})


@pytest.fixture
def live(comfyui):
    return comfyui.module("nodes.live")


@pytest.fixture
def encoded(comfyui, monkeypatch) -> list:
    """One entry per run of SAM's image encoder."""
    return count_calls(monkeypatch, comfyui.module("mam_model.sam").Sam, "encode_content")


@pytest.fixture
def base(tiny_sam, tiny_m2m, tensors):
    """`base(images)`: the nodes "image", "sam" and "m2m"."""
    return lambda images: {"image": node(tensors(images)), **loaders(tiny_sam, tiny_m2m)}


def editor(prompts: str, models: bool = True, **inputs) -> dict:
    """Node "editor" on the nodes "image", "sam" and "m2m"."""
    links = {"image": ("image", 0)}
    if models:
        links |= {"sam": ("sam", 0), "m2m": ("m2m", 0)}
    return {"editor": node("MAM_PromptEditor", **links, prompts=prompts, **inputs)}


def live_picture(prompts: str = "", models: bool = True, **inputs) -> dict:
    """Node "live", as the page adds it beside the editor."""
    return {"live": {**editor(prompts, models, **inputs)["editor"], "class_type": "MAM_LivePicture"}}


def told(run, name: str = "editor") -> dict:
    (answer,) = run.ui[name]["mam_live"]
    return answer


def shown(matte: dict) -> np.ndarray:
    """The whole matte, uint8 [h, w], of the rectangle that a node told the page."""
    whole_matte = np.zeros((matte["of_height"], matte["of_width"]), dtype=np.uint8)
    part = np.array(Image.open(io.BytesIO(base64.b64decode(matte["png"]))))
    assert part.shape == (matte["height"], matte["width"]) and part.dtype == np.uint8
    whole_matte[matte["y"] : matte["y"] + matte["height"], matte["x"] : matte["x"] + matte["width"]] = part
    return whole_matte


def ask(session, prompt: dict, stage: str = "matte", size: tuple[float, float] = (0, 0)):
    from_json = type(session).ask.__globals__["DrawnPrompt"].read
    return asyncio.run(session.ask(from_json(prompt), size, stage))


# ---- the editor as a matting node


@pytest.mark.parametrize(
    ("prompt", "other"),
    [
        (POINT, points("32 24")),
        ({"points": [{"x": 32, "y": 24, "label": 1}, {"x": 3, "y": 4, "label": 0}]}, points("32 24", "3 4")),
        (BOX, boxes("10 6 50 42")),
    ],
    ids=["point", "points", "box"],
)
@pytest.mark.parametrize(
    "settings", [{}, {"guidance_mode": "alpha", "sides": "two", "width_os8": 4}], ids=["", "alpha"]
)
def test_a_drawn_prompt_gives_the_matte_of_the_same_prompt_from_its_node(comfy, base, prompt, other, settings):
    run = comfy.run({**base(pictures()), **editor(drawn(prompt), **settings), "prompt": other, **whole(**settings)})
    assert run.ok, run.error
    alpha = run.output("editor", 2)
    assert alpha.shape == (1, 48, 64) and alpha.max() > 0.5
    assert torch.equal(alpha, run.output("mattes", 0))


@pytest.mark.parametrize(
    "prompts", [(POINT,), (POINT, BOX), ({**BOX, **STROKES}, STROKES)], ids=["one", "two", "strokes"]
)
def test_its_prompt_gives_the_same_matte_in_another_matting_node(comfy, base, prompts):
    graph = {**base(pictures(2)), **editor(drawn(*prompts)), **whole(prompt=("editor", 0))}
    run = comfy.run(graph)
    assert run.ok, run.error
    assert torch.equal(run.output("editor", 2), run.output("mattes", 0))


@pytest.mark.parametrize("prompts", [(BOX,), (BOX, {**POINT, **STROKES})], ids=["box", "two"])
def test_without_models_the_classical_engine_mattes(comfy, tensors, prompts):
    picture = disc_picture(disc(48, 64, 32, 24, 16))
    classical = node("MAM_MatteWithoutModels", image=("image", 0), prompt=("editor", 0))
    graph = {"image": node(tensors(picture)), **editor(drawn(*prompts), models=False), "mattes": classical}
    run = comfy.run({**graph, "shown": node("MaskPreview", mask=("mattes", 0))})
    assert run.ok, run.error
    assert torch.equal(run.output("editor", 2), run.output("mattes", 0))
    assert (run.output("editor", 2)[0] - disc(48, 64, 32, 24, 16)).abs().mean() < 0.05
    assert told(run)["engine"] == "classical" and told(run)["device"] == "cpu"


@pytest.mark.parametrize(("missing", "says"), [("sam", "Load SAM"), ("m2m", "Load Mask-to-Matte")])
@pytest.mark.parametrize("graph", [editor, live_picture])
def test_one_model_without_the_other_is_refused_with_the_name_of_the_missing_loader(comfy, base, graph, missing, says):
    nodes = graph(drawn(POINT))
    (name,) = nodes
    del nodes[name]["inputs"][missing]
    run = comfy.run({**base(pictures()), **nodes})
    assert run.failed_node == name and f"Connect {says} too" in run.error


@pytest.mark.parametrize("models", [True, False])
@pytest.mark.parametrize("prompts", ["", drawn(), drawn({})])
def test_before_anything_is_drawn_the_matte_is_empty(comfy, base, encoded, prompts, models):
    run = comfy.run({**base(pictures(2)), **editor(prompts, models=models)})
    assert run.ok, run.error
    assert run.output("editor", 2).shape == (2, 48, 64) and not run.output("editor", 2).any()
    assert [run.output("editor", slot) for slot in (3, 4, 5)] == [[], "[]", "[]"]
    assert run.output("editor", 0).frames == ((),)
    assert encoded == []


def test_a_frame_in_which_nothing_is_drawn_has_an_empty_matte_and_is_not_encoded(comfy, base, encoded):
    run = comfy.run({**base(pictures(4)), **editor(drawn({"1": POINT, "3": BOX}))})
    assert run.ok, run.error
    alpha = run.output("editor", 2)
    assert [bool(frame.any()) for frame in alpha] == [False, True, False, True]
    assert len(encoded) == 2
    assert told(run)["frame"] == 1 and told(run)["frames"] == 4


def test_a_frame_with_a_prompt_of_its_own_gets_the_matte_of_that_prompt(comfy, base):
    images = pictures(3)
    run = comfy.run({**base(images), **editor(drawn({"all": POINT, "1": BOX}))})
    own = run.output("editor", 2).clone()
    for index, prompt in enumerate((POINT, BOX, POINT)):
        alone = comfy.run({**base(images[index : index + 1].clone()), **editor(drawn(prompt))})
        assert torch.equal(alone.output("editor", 2)[0], own[index])


def test_a_hidden_target_adds_nothing_to_the_matte(comfy, base):
    value = json.loads(drawn(POINT, BOX))
    value["targets"][1]["hidden"] = True
    graph = base(pictures())
    hidden = comfy.run({**graph, **editor(json.dumps(value))}).output("editor", 2).clone()
    assert torch.equal(comfy.run({**graph, **editor(drawn(POINT))}).output("editor", 2), hidden)


def test_the_picture_comes_out_as_it_came_in(comfy, base):
    with_alpha = torch.cat((pictures(2), torch.full((2, 48, 64, 1), 0.25)), dim=-1)
    run = comfy.run({**base(with_alpha), **editor(drawn(POINT))})
    assert run.ok, run.error
    assert torch.equal(run.output("editor", 1), with_alpha)


def test_boxes_and_points_come_out_in_the_forms_of_core(comfy, base):
    prompts = drawn({**BOX, "points": [{"x": 3, "y": 4, "label": 0}]}, POINT)
    run = comfy.run({**base(pictures(2)), **editor(prompts)})
    (box,) = run.output_list("editor", 3)[0]
    assert {name: box[name] for name in ("x", "y", "width", "height", "label")} == {**BOX["box"], "label": "Target 0"}
    assert json.loads(run.output("editor", 4)) == [{"x": 32, "y": 24}]
    assert json.loads(run.output("editor", 5)) == [{"x": 3, "y": 4}]


def test_boxes_of_single_frames_come_out_per_frame(comfy, base):
    run = comfy.run({**base(pictures(3)), **editor(drawn({"2": BOX}))})
    assert [len(frame) for frame in run.output_list("editor", 3)[0]] == [0, 0, 1]


def test_prompts_drawn_on_a_smaller_copy_give_the_same_prompt(comfy, base):
    half = {"points": [{"x": 16, "y": 12, "label": 1}]}
    graph = base(pictures())
    same = comfy.run({**graph, **editor(drawn(half, width=32, height=24))}).output("editor", 2).clone()
    assert torch.equal(comfy.run({**graph, **editor(drawn(POINT))}).output("editor", 2), same)


def test_prompts_of_a_picture_of_another_shape_are_refused_with_both_sizes(comfy, base):
    run = comfy.run({**base(pictures(1, 48, 48)), **editor(drawn(POINT))})
    assert run.failed_node == "editor"
    assert "64 x 48 pixels, but this one is 48 x 48" in run.error


@pytest.mark.parametrize("graph", [editor, live_picture])
def test_what_is_no_drawing_is_refused_before_anything_runs(comfy, base, graph):
    run = comfy.run({**base(pictures()), **graph('{"version": 7}')})
    assert not run.ok and run.executed == []
    assert "made by a newer version of Matting Anything" in run.error


# ---- what the page is told


@pytest.mark.parametrize("models", [True, False])
def test_the_page_is_told_the_session_and_the_size_of_the_picture(comfy, base, live, models):
    run = comfy.run({**base(pictures(2)), **editor(drawn(BOX), models=models)})
    answer = told(run)
    assert {name: answer[name] for name in ("width", "height", "frame", "frames")} == {
        **{"width": 64, "height": 48},
        **{"frame": 0, "frames": 2},
    }
    assert answer["engine"] == ("sam" if models else "classical") and answer["device"] == "cpu"
    assert answer["matte"] is None and answer["queue_ms"] is None
    assert "images" not in run.ui["editor"]
    picture = np.array(Image.open(io.BytesIO(live.session_of(answer["session"]).jpeg)).resize((64, 48)))
    assert np.abs(picture / 255 - pictures(2)[0].numpy()).mean() < 0.02


def test_a_live_picture_encodes_one_frame_of_a_batch_alone(comfy, base, encoded):
    run = comfy.run({**base(pictures(5)), **live_picture(frame=3)})
    assert run.ok, run.error
    assert len(encoded) == 1
    assert told(run, "live")["frame"] == 3 and told(run, "live")["frames"] == 5
    assert told(run, "live")["matte"] is None


@pytest.mark.parametrize("models", [True, False])
def test_a_live_picture_mattes_the_target_that_is_asked_for(comfy, base, models):
    run = comfy.run({**base(pictures()), **live_picture(drawn(POINT, BOX), models=models, target=1)})
    assert run.ok, run.error
    answer = told(run, "live")
    assert answer["matte"]["target"] == 1 and answer["queue_ms"] > 0
    assert answer["queue_ms"] == pytest.approx(sum(answer["matte"]["timing"].values()), abs=0.1)
    assert shown(answer["matte"]).max() > 128


def test_a_live_matte_is_the_matte_at_the_size_in_which_sam_sees_the_picture(comfy, base):
    # 256 x 192 pixels are the size in which the tiny SAM sees a picture of this shape: nothing is scaled.
    images = pictures(1, 192, 256)
    prompts = drawn({"box": {"x": 40, "y": 24, "width": 160, "height": 144}, **POINT}, width=256, height=192)
    run = comfy.run({**base(images), **editor(prompts), **live_picture(prompts, target=0)})
    assert run.ok, run.error
    expected = (run.output("editor", 2)[0] * 255).round().to(torch.uint8).numpy()
    assert np.array_equal(shown(told(run, "live")["matte"]), expected)


def test_a_live_picture_always_runs_and_nothing_else_does(comfy, base):
    graph = {**base(pictures()), **editor(drawn(POINT)), **live_picture(drawn(POINT), target=0)}
    assert comfy.run(graph).ok
    again = comfy.run(graph)
    assert again.executed == ["live"] and told(again, "live")["matte"] is not None


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"frame": 2}, "There are 2 frames, counted from 0; there is no frame 2"),
        ({"target": 1}, "The drawing has 1 targets, counted from 0; there is no 1"),
    ],
)
def test_a_frame_or_target_that_is_not_there_is_refused_in_words(comfy, base, inputs, says):
    run = comfy.run({**base(pictures(2)), **live_picture(drawn(POINT), **inputs)})
    assert run.failed_node == "live" and says in run.error


# ---- sessions


def opened(comfy, live, graph: dict):
    """The session that a graph's node "live" opens."""
    run = comfy.run(graph)
    assert run.ok, run.error
    return live.session_of(told(run, "live")["session"])


@pytest.mark.parametrize("models", [True, False])
def test_a_session_gives_the_matte_that_the_job_gave(comfy, base, live, models):
    prompt = {**BOX, **STROKES}
    run = comfy.run({**base(pictures()), **live_picture(drawn(prompt), models=models, target=0)})
    session = live.session_of(told(run, "live")["session"])
    matte = ask(session, prompt)
    job = told(run, "live")["matte"]
    names = ("x", "y", "width", "height", "of_width", "of_height")
    answered = dict(zip(names, (*matte.region, *matte.size)), png=base64.b64encode(matte.png))
    difference = np.abs(shown(answered).astype(int) - shown(job))
    # Threads round in different orders, which carries single pixels over a threshold of the merge.
    assert difference.max() <= 1 or (difference > 1).mean() < 1e-3, (difference.max(), (difference > 1).mean())
    assert matte.score == pytest.approx(job["score"], abs=1e-5)


def test_for_mask_and_matte_of_a_prompt_sam_is_asked_once_and_for_another_prompt_again(comfy, base, live, monkeypatch):
    session = opened(comfy, live, {**base(pictures()), **live_picture()})
    decoded = count_calls(monkeypatch, comfy.module("mam_model.sam").Sam, "decode")
    of_point = [ask(session, POINT, stage) for stage in live.STAGES]
    of_box = [ask(session, BOX, stage) for stage in live.STAGES]
    assert len(decoded) == 2
    assert all(point.png != box.png for point, box in zip(of_point, of_box))


@pytest.mark.parametrize("models", [True, False])
def test_the_mask_stage_is_the_hard_mask_without_its_matte(comfy, base, live, models):
    session = opened(comfy, live, {**base(disc_picture(disc(48, 64, 32, 24, 16))), **live_picture(models=models)})
    mask = np.array(Image.open(io.BytesIO(ask(session, BOX, "mask").png)))
    if models:
        assert set(np.unique(mask)) <= {0, 255}
    assert mask.max() == 255 and "m2m" not in ask(session, BOX, "mask").timing


@pytest.mark.parametrize("models", [True, False])
def test_an_empty_prompt_gives_one_black_pixel(comfy, base, live, models):
    session = opened(comfy, live, {**base(pictures()), **live_picture(models=models)})
    for stage in live.STAGES:
        matte = ask(session, {}, stage)
        assert matte.region == (0, 0, 1, 1) and matte.score == 0
        assert np.array(Image.open(io.BytesIO(matte.png))).tolist() == [[0]]


def test_live_coordinates_of_another_size_are_scaled_and_of_another_shape_refused(comfy, base, live):
    session = opened(comfy, live, {**base(pictures()), **live_picture()})
    twice = {"points": [{"x": 64, "y": 48, "label": 1}]}
    assert ask(session, twice, size=(128, 96)).png == ask(session, POINT).png
    assert ask(session, POINT, size=(128, 96)).png != ask(session, POINT).png
    with pytest.raises(comfy.module("mam_model.prompt").PromptError, match="128 x 128 pixels, but this one is 64 x 48"):
        ask(session, twice, size=(128, 128))


def test_a_live_matte_of_a_large_photo_is_made_small(comfy, base, live, monkeypatch):
    matting, bands_px = comfy.module("mam_model.matting"), []
    matte_targets = matting.matte_targets

    def noting_the_bands(network, picture, guidance, options, *rest):
        bands_px.append(options.width_os8)
        return matte_targets(network, picture, guidance, options, *rest)

    monkeypatch.setattr(matting, "matte_targets", noting_the_bands)
    large = pictures(1, 900, 1200)
    for models, size in ((True, (256, 192)), (False, (512, 384))):
        session = opened(comfy, live, {**base(large), **live_picture(models=models, width_os8=30)})
        assert session.size == (1200, 900)
        assert ask(session, {"box": {"x": 300, "y": 200, "width": 600, "height": 500}}).size == size
        assert max(Image.open(io.BytesIO(session.jpeg)).size) == (256 if models else 1024)
    assert bands_px == [round(30 * 256 / 1200)]


def test_a_small_picture_is_shown_as_it_is(live):
    assert live.shrunk(pictures(1, 48, 64)[0]).shape == (48, 64, 3)
    assert live.ClassicalEngine(pictures(1, 48, 64)[0]).matte_size == (64, 48)


def test_without_models_the_live_engine_takes_the_quick_way(comfy, base, live, monkeypatch):
    classical = comfy.module("mam_model.classical")
    matte, asked = classical.matte_without_models, []

    def matte_without_models(*args, method, segment_size_px):
        asked.append((method, segment_size_px))
        return matte(*args, method=method, segment_size_px=segment_size_px)

    monkeypatch.setattr(classical, "matte_without_models", matte_without_models)
    session = opened(comfy, live, {**base(pictures()), **live_picture(models=False)})
    for stage in live.STAGES:
        ask(session, BOX, stage)
    assert asked == [("none", 160), ("none", 256)]


def test_the_same_picture_models_and_settings_are_the_same_session(comfy, base, live):
    images = pictures()
    graph = {**base(images), **editor(drawn(POINT)), **live_picture()}
    run = comfy.run(graph)
    first = told(run, "live")["session"]
    assert told(run)["session"] == first and len(first) == 32 and int(first, 16) >= 0
    assert told(comfy.run(graph), "live")["session"] == first
    others = [live_picture(width_os8=5), live_picture(models=False)]
    ids = {told(comfy.run({**base(images), **other}), "live")["session"] for other in others}
    ids.add(told(comfy.run({**base(pictures(seed=4)), **live_picture()}), "live")["session"])
    assert len(ids) == 3 and first not in ids


def test_sessions_of_one_picture_with_different_models_are_different_ones(comfyui, live, monkeypatch):
    monkeypatch.setattr(live, "_copied", lambda *_: torch.nn.Module())
    frame, options = comfyui.module("mam_model.frame").Frame(8, 8), comfyui.module("mam_model.merge").MergeOptions()
    picture = torch.full((8, 8, 3), 9, dtype=torch.uint8)

    class Model(SimpleNamespace):
        """Of a class of its own, as others cannot be referred to weakly."""

    def session_with(**models) -> str:
        given = {"sam": "a", "sam_in": torch.float32, "m2m": "b", "m2m_in": torch.float32, **models}
        sam, m2m = (
            Model(file=given[name], dtype=given[f"{name}_in"], device=torch.device("cpu")) for name in ("sam", "m2m")
        )
        return live.open_session(picture, (8, 8), live.ModelsEngine(sam, m2m, frame, None, options)).id

    others = {"sam": "c", "sam_in": torch.float16, "m2m": "c", "m2m_in": torch.float16}
    assert session_with() == session_with()
    assert len({session_with(), *(session_with(**{name: other}) for name, other in others.items())}) == 5


def test_pictures_that_are_shown_alike_but_differ_in_size_have_different_sessions(live):
    small = torch.full((8, 8, 3), 9, dtype=torch.uint8)
    engine = live.ClassicalEngine(small / 255)
    first, second = (live.open_session(small, size, engine) for size in ((8, 8), (16, 16)))
    assert first.id != second.id and second.size == (16, 16)


def test_nobody_can_tell_the_session_of_a_picture_that_somebody_else_works_on(live, monkeypatch):
    picture = torch.full((8, 8, 3), 9, dtype=torch.uint8)
    engine = live.ClassicalEngine(picture / 255)
    here = live.open_session(picture, (8, 8), engine).id
    monkeypatch.setattr(live, "_secret", bytes(16))
    assert live.open_session(picture, (8, 8), engine).id != here


def test_at_most_sixteen_sessions_are_kept_and_the_ones_in_use_stay(comfy, live):
    first, *others = pictures(20, 8, 8, seed=7)
    engine = live.ClassicalEngine(first)
    kept = live.open_session(live.shrunk(first), (8, 8), engine).id
    made = []
    for picture in others:
        made.append(live.open_session(live.shrunk(picture), (8, 8), engine).id)
        live.session_of(kept)
    assert len(live._sessions) == 16
    assert live.session_of(kept) and live.session_of(made[-1])
    with pytest.raises(live.SessionGone):
        live.session_of(made[0])


def test_a_session_that_is_opened_again_is_kept_longer_than_those_after_it(live):
    first, second, *others = pictures(17, 8, 8, seed=7)
    engine = live.ClassicalEngine(first)

    def session_of(picture: torch.Tensor) -> str:
        return live.open_session(live.shrunk(picture), (8, 8), engine).id

    again, gone = session_of(first), session_of(second)
    for picture in (*others[:14], first, others[14]):
        session_of(picture)
    assert live.session_of(again)
    with pytest.raises(live.SessionGone):
        live.session_of(gone)


@pytest.mark.parametrize("name", ["sam", "m2m"])
def test_a_session_is_gone_when_one_of_its_models_was_freed(comfy, base, live, name):
    run = comfy.run({**base(pictures()), **live_picture()})
    session = live.session_of(told(run, "live")["session"])
    del live._copies[run.output(name)]
    with pytest.raises(live.SessionGone):
        ask(session, POINT)


def test_freeing_memory_ends_a_session_with_models_and_leaves_nothing_behind(comfy, base, live):
    session = opened(comfy, live, {**base(pictures()), **live_picture()})
    ask(session, POINT)
    assert len(live._copies) == 2 and session.engine._looked
    comfy.reset()
    with pytest.raises(live.SessionGone):
        ask(session, POINT)
    gc.collect()
    assert len(live._copies) == 0 and not session.engine._looked
    assert embeddings_in_memory(comfy) == []


def test_the_session_of_a_long_batch_can_be_asked_afterwards(comfy, base, live, encoded):
    run = comfy.run({**base(pictures(10, 24, 32)), **editor(drawn(POINT, width=0, height=0))})
    assert run.ok and len(encoded) == 10 and told(run)["frame"] == 0
    assert ask(live.session_of(told(run)["session"]), POINT).score != 0


def test_an_editor_with_nothing_drawn_shows_the_picture_and_waits_for_a_live_job(comfy, base, live):
    graph = {**base(pictures()), **editor("")}
    session = live.session_of(told(comfy.run(graph))["session"])
    assert session.jpeg.startswith(b"\xff\xd8")
    with pytest.raises(live.SessionGone):
        ask(session, POINT)
    again = live.session_of(told(comfy.run({**graph, **live_picture()}), "live")["session"])
    assert again.id == session.id and ask(again, POINT).score != 0


def test_a_run_of_the_cleared_editor_does_not_end_the_live_session(comfy, base, live):
    graph = base(pictures())
    session = opened(comfy, live, {**graph, **live_picture()})
    before = ask(session, POINT).png
    looked = session.engine._looked[0]
    again = live.session_of(told(comfy.run({**graph, **editor("")}))["session"])
    assert ask(again, POINT).png == before
    assert again.engine._looked[0] is looked


def test_only_the_session_asked_last_keeps_what_mask_to_matte_makes_of_its_picture(comfy, base, live):
    first, second = (opened(comfy, live, {**base(pictures(seed=n)), **live_picture()}) for n in (1, 2))
    before = ask(first, POINT).png
    ask(second, POINT)
    assert not first.engine._looked and second.engine._looked
    assert ask(first, POINT).png == before


def test_live_mattes_use_copies_that_comfyui_does_not_know(comfy, base, live):
    run = comfy.run({**base(pictures()), **live_picture()})
    for name in ("sam", "m2m"):
        shared = run.output(name)
        copy = live._copies[shared]
        theirs = {tensor.data_ptr() for tensor in shared.network.state_dict().values()}
        for parameter in copy.state_dict().values():
            assert parameter.dtype == torch.float32 and parameter.device.type == "cpu"
            assert parameter.data_ptr() not in theirs
    assert not any(name.startswith("image_encoder") for name in live._copies[run.output("sam")].state_dict())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_models_in_half_precision_give_live_mattes_too(comfy, base, live, precision):
    graph = {**base(pictures()), **live_picture(drawn(BOX), target=0)}
    for name in ("sam", "m2m"):
        graph[name]["inputs"]["precision"] = precision
    run = comfy.run(graph)
    assert run.ok, run.error
    session = live.session_of(told(run, "live")["session"])
    matte = ask(session, BOX)
    assert {p.dtype for p in live._copies[run.output("m2m")].parameters()} == {torch.float32}
    assert abs(matte.score - told(run, "live")["matte"]["score"]) < 1e-4
    # The job computes in half precision; the tiny networks are noise, whose masks flip where they are undecided.
    assert matte.size == (64, 48)


def test_the_page_is_told_how_long_the_live_thread_takes(comfy, base, live, monkeypatch):
    monkeypatch.setitem(live._recent_ms, "sam", type(live._recent_ms["sam"])(maxlen=9))
    graph = {**base(pictures()), **live_picture()}
    run = comfy.run(graph)
    assert told(run, "live")["worker_ms"] is None
    session = live.session_of(told(run, "live")["session"])
    ask(session, POINT, "mask")
    assert told(comfy.run(graph), "live")["worker_ms"] is None
    for _ in range(12):
        ask(session, POINT)
    assert told(comfy.run(graph), "live")["worker_ms"] > 0 and len(live._recent_ms["sam"]) == 9


def test_the_routes_are_there_once_however_often_the_pack_is_asked_for_its_nodes(comfyui):
    routes = comfyui.module("nodes.routes")
    routes.register(comfyui.server, "matting-anything")
    routes.register(None, "matting-anything")
    paths = [getattr(route, "path", "") for route in comfyui.server.routes]
    assert sorted(path for path in paths if path.startswith("/mam/")) == ["/mam/live", "/mam/live/picture"]


@pytest.mark.parametrize(
    "take", [lambda: np.empty(2**58, np.uint8), lambda: torch.empty(2**58, dtype=torch.uint8)], ids=["NumPy", "PyTorch"]
)
def test_a_live_matte_for_which_the_memory_does_not_suffice_is_refused_in_a_sentence_for_the_user(comfyui, take):
    async def wanting(_):
        take()

    refusal = asyncio.run(comfyui.module("nodes.routes")._answering(wanting)(None))
    told = json.loads(refusal.body)
    assert (refusal.status, told["state"], told["code"]) == (500, "failed", "out_of_memory")
    assert told["error"].startswith("There is not enough memory.")


@pytest.mark.parametrize(
    ("error", "reason"), [(OSError("the disk is gone"), "the disk is gone"), (KeyError(), "KeyError")]
)
def test_another_failure_of_a_live_matte_is_told_with_its_reason(comfyui, error, reason):
    async def failing(_):
        raise error

    answer = asyncio.run(comfyui.module("nodes.routes")._answering(failing)(None))
    told = json.loads(answer.body)
    assert (answer.status, told["state"], told["code"]) == (500, "failed", "failed")
    assert told["error"] == f"The live matte failed: {reason}" and told["values"] == {"reason": reason}


# ---- the newest question wins


class Patient:
    """An engine that answers only when it is told to, and notes what it was asked."""

    name = "classical"
    device = "cpu"
    key = ("patient",)
    matte_size = (8, 8)

    def __init__(self):
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.asked = []
        self.at_once = self.most_at_once = 0

    def matte(self, prompt, stage, timing):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.asked.append(prompt.points_px[0][0])
        self.begun.release()
        self.may_end.acquire(timeout=30)
        self.at_once -= 1
        return torch.full((8, 8), prompt.points_px[0][0] / 255), 1.0


def question(live, x: float):
    return live.DrawnPrompt.read({"points": [{"x": x, "y": 1, "label": 1}]})


def grey(matte) -> int:
    return int(np.array(Image.open(io.BytesIO(matte.png))).max())


def test_while_one_question_is_answered_only_the_newest_of_the_others_waits(live):
    engine = Patient()
    session = live.Session("0", (8, 8), b"", engine)

    async def ask_five():
        asked = []
        for x in range(1, 6):
            asked.append(asyncio.create_task(session.ask(question(live, x), (8, 8), "mask")))
            await asyncio.sleep(0)
            if x == 1:
                await asyncio.to_thread(engine.begun.acquire, timeout=30)
        done, _ = await asyncio.wait(asked[1:4], timeout=30)
        superseded = [type(task.exception()) for task in done]
        engine.may_end.release(2)
        return superseded, await asked[0], await asked[4]

    superseded, first, last = asyncio.run(ask_five())
    assert superseded == [live.Superseded] * 3
    assert engine.asked == [1, 5]
    assert (grey(first), grey(last)) == (1, 5)


def test_a_question_whose_page_went_away_holds_up_no_other(live):
    engine = Patient()
    # Who is cancelled late may have begun.
    engine.may_end.release(6)
    session = live.Session("0", (8, 8), b"", engine)

    async def ask_and_leave():
        first = asyncio.create_task(session.ask(question(live, 1), (8, 8), "mask"))
        await asyncio.sleep(0)
        for _ in range(3):
            left = asyncio.create_task(session.ask(question(live, 2), (8, 8), "mask"))
            await asyncio.sleep(0)
            left.cancel()
        await first
        # Cancelled between being told to begin and beginning.
        second = asyncio.create_task(session.ask(question(live, 3), (8, 8), "mask"))
        await asyncio.sleep(0)
        left = asyncio.create_task(session.ask(question(live, 4), (8, 8), "mask"))
        await asyncio.sleep(0)
        second.add_done_callback(lambda _: left.cancel())
        await asyncio.wait([second, left])
        return await asyncio.wait_for(session.ask(question(live, 5), (8, 8), "mask"), 30)

    assert grey(asyncio.run(ask_and_leave())) == 5
    assert engine.asked[0] == 1 and engine.asked[-1] == 5


def test_a_question_whose_page_went_away_when_a_newer_one_came_lets_none_begin_before_its_turn(live):
    engine = Patient()
    session = live.Session("0", (8, 8), b"", engine)

    async def ask_four():
        asked = [asyncio.create_task(session.ask(question(live, 1), (8, 8), "mask"))]
        await asyncio.to_thread(engine.begun.acquire, timeout=30)
        for x in (2, 3, 4):
            asked.append(asyncio.create_task(session.ask(question(live, x), (8, 8), "mask")))
            await asyncio.sleep(0)
            if x == 3:
                asked[1].cancel()
                await asyncio.wait(asked[1:2])
        engine.may_end.release(4)
        return await asyncio.gather(*asked, return_exceptions=True)

    first, left, superseded, last = asyncio.run(ask_four())
    assert isinstance(left, asyncio.CancelledError) and isinstance(superseded, live.Superseded)
    assert (grey(first), grey(last)) == (1, 4)
    assert engine.asked == [1, 4]


def test_after_a_failure_the_session_goes_on_answering(live):
    engine = Patient()
    engine.may_end.release(2)
    session = live.Session("0", (8, 8), b"", engine)
    outside = live.DrawnPrompt.read({})
    with pytest.raises(IndexError):
        asyncio.run(session.ask(outside, (8, 8), "mask"))
    assert grey(asyncio.run(session.ask(question(live, 3), (8, 8), "mask"))) == 3


def test_questions_of_several_sessions_are_answered_one_after_the_other(live):
    engine = Patient()
    engine.may_end.release(6)
    sessions = [live.Session(str(number), (8, 8), b"", engine) for number in range(6)]

    async def ask_all():
        return await asyncio.gather(*(s.ask(question(live, n + 1), (8, 8), "mask") for n, s in enumerate(sessions)))

    assert [grey(matte) for matte in asyncio.run(ask_all())] == [1, 2, 3, 4, 5, 6]
    assert engine.most_at_once == 1


def test_a_matte_begun_ahead_is_made_once_and_given_to_who_asks_for_it(live):
    engine = Patient()
    session = live.Session("0", (8, 8), b"", engine)

    async def ask_both():
        engine.may_end.release()
        await session.ask(question(live, 1), (8, 8), "mask", ahead=True)
        await asyncio.to_thread(engine.begun.acquire, timeout=30)
        # Nobody has asked for the matte yet, and it is under way.
        assert await asyncio.to_thread(engine.begun.acquire, timeout=30)
        engine.may_end.release()
        return await session.ask(question(live, 1), (8, 8), "matte")

    assert grey(asyncio.run(ask_both())) == 1
    assert engine.asked == [1, 1]


def test_mask_and_matte_of_the_same_strokes_are_one_prompt_whose_matte_is_made_once(live):
    asked = []
    engine = Patient()
    engine.matte = lambda prompt, stage, timing: (asked.append((stage, prompt)), (torch.ones(8, 8), 1.0))[1]
    session = live.Session("0", (8, 8), b"", engine)

    async def ask_both(y: int):
        strokes = {"strokes": [{"kind": "foreground", "width": 3, "path": [1, y, 6, y]}]}
        for stage in ("mask", "matte"):
            await session.ask(live.DrawnPrompt.read(strokes), (8, 8), stage, ahead=stage == "mask")

    asyncio.run(ask_both(2))
    asyncio.run(ask_both(5))
    assert [stage for stage, _ in asked] == ["mask", "matte"] * 2
    assert asked[0][1] is asked[1][1] is not asked[2][1]
    assert not asked[2][1].scribbles[2].any() and asked[2][1].scribbles[5].any()


def test_a_matte_begun_ahead_is_not_taken_for_that_of_another_prompt(live):
    engine = Patient()
    engine.may_end.release(4)
    session = live.Session("0", (8, 8), b"", engine)

    async def ask_all():
        await session.ask(question(live, 1), (8, 8), "mask", ahead=True)
        mask = await session.ask(question(live, 2), (8, 8), "mask")
        return mask, await session.ask(question(live, 2), (8, 8), "matte")

    assert [grey(matte) for matte in asyncio.run(ask_all())] == [2, 2]


def test_a_matte_ahead_that_a_newer_question_makes_needless_is_not_begun(live):
    engine = Patient()
    session = live.Session("0", (8, 8), b"", engine)
    other_session = threading.Event()

    async def ask_both():
        first = asyncio.create_task(session.ask(question(live, 1), (8, 8), "mask", ahead=True))
        await asyncio.to_thread(engine.begun.acquire, timeout=30)
        live._thread.submit(other_session.wait, 30)
        engine.may_end.release(3)
        await first
        second = asyncio.create_task(session.ask(question(live, 2), (8, 8), "mask"))
        for _ in range(3):
            await asyncio.sleep(0)
        other_session.set()
        return await second

    assert grey(asyncio.run(ask_both())) == 2
    assert engine.asked == [1, 2]


def test_no_matte_is_begun_ahead_of_a_question_that_waits(live):
    engine = Patient()
    session = live.Session("0", (8, 8), b"", engine)

    async def ask_both():
        first = asyncio.create_task(session.ask(question(live, 1), (8, 8), "mask", ahead=True))
        await asyncio.to_thread(engine.begun.acquire, timeout=30)
        second = asyncio.create_task(session.ask(question(live, 2), (8, 8), "mask"))
        await asyncio.sleep(0)
        engine.may_end.release(3)
        return await asyncio.gather(first, second)

    assert [grey(mask) for mask in asyncio.run(ask_both())] == [1, 2]
    assert engine.asked == [1, 2]


def test_what_goes_wrong_with_a_matte_begun_ahead_is_told_to_who_asks_for_it_and_not_again(live):
    engine = Patient()
    session = live.Session("0", (8, 8), b"", engine)
    failures = [live.SessionGone]

    def fails_once(prompt, stage, timing):
        if stage == "matte" and failures:
            raise failures.pop()
        return torch.ones(8, 8), 1.0

    engine.matte = fails_once

    async def ask_all():
        await session.ask(question(live, 1), (8, 8), "mask", ahead=True)
        with pytest.raises(live.SessionGone):
            await session.ask(question(live, 1), (8, 8), "matte")
        return [await session.ask(question(live, 1), (8, 8), stage) for stage in ("matte", "mask")]

    assert [grey(matte) for matte in asyncio.run(ask_all())] == [255, 255]
