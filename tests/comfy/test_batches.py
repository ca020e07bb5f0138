"""The batch contract: as many mattes as pictures, in order; nothing found is an empty matte and not a missing one."""

from __future__ import annotations

import json

import pytest
import torch
from live_memory import LiveMemory

from .graphs import boxes, disc, disc_picture, loaders, node, pictures, points, steps, whole, without_models

KINDS = pytest.mark.parametrize("kind", [whole, steps, without_models])


def result_of(kind) -> str:
    return "merged" if kind is steps else "mattes"


@pytest.fixture
def graph(tiny_sam, tiny_m2m, tensors):
    """`graph(kind, pictures, prompt, ...)`: a workflow with the all-in-one node, with the steps, or without models."""

    def build(kind, images: torch.Tensor, prompt: dict, **settings) -> dict:
        if kind is without_models:
            settings["prompt"] = ("prompt", 0)
            return {"image": node(tensors(images)), "prompt": prompt, **kind(**settings)}
        return {"image": node(tensors(images)), "prompt": prompt, **loaders(tiny_sam, tiny_m2m), **kind(**settings)}

    return build


def per_frame(*frames) -> dict:
    """A prompt node with boxes [x0, y0, x1, y1] for each frame."""
    return boxes(json.dumps(frames))


@KINDS
@pytest.mark.parametrize("count", [1, 7])
def test_every_picture_of_a_batch_gets_the_matte_it_would_get_alone(comfy, graph, kind, count):
    images = pictures(count, 32, 48, seed=5)
    prompt = boxes("6 5 30 25")
    run = comfy.run(graph(kind, images, prompt))
    assert run.ok, run.error
    alphas, instances = run.output(result_of(kind), 0).clone(), run.output(result_of(kind), 1)
    assert alphas.shape == (count, 32, 48)
    assert torch.equal(instances, alphas)
    for index in {0, count // 2, count - 1}:
        alone = comfy.run(graph(kind, images[index : index + 1].clone(), prompt))
        torch.testing.assert_close(alphas[index], alone.output(result_of(kind))[0], atol=2e-3, rtol=0)
    if count > 1:
        assert not torch.equal(alphas[0], alphas[-1])


@pytest.mark.parametrize("kind", [whole, without_models])
def test_a_picture_that_serves_a_clip_of_prompts_is_looked_through_once(comfy, graph, kind, monkeypatch):
    looked_through, isfinite = [], torch.isfinite

    def counted(tensor):
        looked_through.append(tensor.shape)
        return isfinite(tensor)

    monkeypatch.setattr(torch, "isfinite", counted)
    run = comfy.run(graph(kind, pictures(1, 32, 48), per_frame([[6, 5, 30, 25]], [[2, 2, 20, 20]], [[9, 9, 40, 30]])))
    assert run.ok, run.error
    assert len(run.output("mattes")) == 3 and looked_through.count((32, 48, 3)) == 1


@KINDS
def test_a_batch_without_pictures_is_refused(comfy, graph, kind):
    run = comfy.run(graph(kind, torch.zeros(0, 32, 48, 3), boxes("1 1 20 20")))
    assert not run.ok
    assert "0 x 32 x 48 x 3" in run.error and "at least one picture" in run.error


@KINDS
def test_every_frame_has_its_own_boxes_when_they_are_given_as_a_list_of_lists(comfy, graph, kind):
    images = pictures(1, 32, 48).expand(3, -1, -1, -1).clone()
    frames = [[[2, 2, 20, 20]], [[20, 10, 46, 30]], [[2, 2, 20, 20]]]
    alphas = comfy.run(graph(kind, images, per_frame(*frames))).output(result_of(kind)).clone()
    assert torch.equal(alphas[0], alphas[2])
    assert not torch.equal(alphas[0], alphas[1])
    alone = comfy.run(graph(kind, images[:1].clone(), per_frame(frames[1]))).output(result_of(kind))
    torch.testing.assert_close(alphas[1], alone[0], atol=2e-3, rtol=0)


@KINDS
def test_a_frame_in_which_nothing_was_found_is_an_empty_matte_and_never_dropped(comfy, graph, kind):
    prompt = per_frame([[2, 2, 20, 20]], [], [[20, 10, 46, 30], [2, 2, 12, 30]])
    run = comfy.run(graph(kind, pictures(3, 32, 48), prompt))
    assert run.ok, run.error
    alphas, per_target, index = (run.output(result_of(kind), slot) for slot in range(3))
    assert alphas.shape == (3, 32, 48) and per_target.shape == (4, 32, 48)
    assert alphas[1].max() == 0 and per_target[1].max() == 0
    assert [(entry.frame, entry.index) for entry in index.entries] == [(0, 0), (1, 0), (2, 0), (2, 1)]
    assert [entry.frame for entry in index.entries if not entry.found] == [1]
    assert index.entries[1].score == 0 and index.entries[1].box_xyxy_px is None
    assert index.frame_count == 3


@KINDS
def test_a_batch_in_which_nothing_was_found_at_all_is_all_empty(comfy, graph, kind):
    run = comfy.run(graph(kind, pictures(2, 32, 48), boxes("")))
    assert run.ok, run.error
    alphas, per_target, index = (run.output(result_of(kind), slot) for slot in range(3))
    assert alphas.shape == per_target.shape == (2, 32, 48)
    assert alphas.max() == per_target.max() == 0
    assert [entry.found for entry in index.entries] == [False, False]


@KINDS
def test_targets_share_pixels_and_the_frame_is_their_sum(comfy, graph, kind):
    prompt = boxes("2 2 30 28\n14 6 46 30\n4 10 40 20")
    run = comfy.run(graph(kind, pictures(2, 32, 48), prompt))
    assert run.ok, run.error
    alphas, per_target, index = (run.output(result_of(kind), slot) for slot in range(3))
    assert [(entry.frame, entry.index) for entry in index.entries] == [(f, i) for f in range(2) for i in range(3)]
    assert per_target.shape == (6, 32, 48)
    total = per_target.reshape(2, 3, 32, 48).sum(dim=1)
    assert total.max() <= 1 + 1e-5
    torch.testing.assert_close(alphas, total.clamp(0, 1), atol=1e-5, rtol=0)
    assert (per_target.amax(dim=(1, 2)) > 0).any()


def test_an_instance_carries_its_label_score_and_box(comfy, tensors):
    alphas = [disc(60, 100, 25, 30, 15), disc(60, 100, 75, 30, 15)]
    found = '[{"x": 8, "y": 12, "width": 34, "height": 36, "label": "sun", "score": 0.5}, [58, 12, 92, 48]]'
    graph = {"image": node(tensors(disc_picture(alphas[0] + alphas[1]))), "prompt": boxes(found)}
    run = comfy.run({**graph, **without_models(prompt=("prompt", 0))})
    sun, other = run.output("mattes", 2).entries
    assert (sun.label, sun.score, sun.found) == ("sun", 0.5, True)
    assert (other.label, other.score, other.found) == ("", 1.0, True)
    for entry, expected in ((sun, (10, 15, 40, 45)), (other, (60, 15, 90, 45))):
        assert all(abs(side - wanted) <= 1 for side, wanted in zip(entry.box_xyxy_px, expected))
    per_target = run.output("mattes", 1)
    for matte, alpha in zip(per_target, alphas):
        assert (matte - alpha).abs().mean() < 0.02


@KINDS
def test_one_mask_serves_seven_pictures(comfy, graph, tensors, kind):
    mask = torch.zeros(1, 32, 48)
    mask[:, 8:24, 10:30] = 1
    workflow = graph(kind, pictures(7, 32, 48), node("MAM_PromptMask", mask=("mask", 0)))
    run = comfy.run({**workflow, "mask": node(tensors(mask))})
    assert run.ok, run.error
    assert run.output(result_of(kind)).shape == (7, 32, 48)
    assert (run.output(result_of(kind)).amax(dim=(1, 2)) > 0.5).all()


@KINDS
def test_seven_masks_on_one_picture_give_seven_mattes(comfy, graph, tensors, kind):
    masks = torch.zeros(7, 32, 48)
    for index in range(7):
        masks[index, 8:24, 4 + 4 * index : 18 + 4 * index] = 1
    workflow = graph(kind, pictures(1, 32, 48), node("MAM_PromptMask", mask=("mask", 0)))
    run = comfy.run({**workflow, "mask": node(tensors(masks))})
    assert run.ok, run.error
    alphas = run.output(result_of(kind))
    assert alphas.shape == (7, 32, 48)
    for alpha, mask in zip(alphas, masks):
        assert alpha[mask > 0].mean() > 0.5 > alpha[mask == 0].mean()


@KINDS
def test_two_masks_do_not_fit_seven_pictures(comfy, graph, tensors, kind):
    workflow = graph(kind, pictures(7, 32, 48), node("MAM_PromptMask", mask=("mask", 0)))
    run = comfy.run({**workflow, "mask": node(tensors(torch.ones(2, 32, 48)))})
    assert not run.ok
    assert "There are 7 frames of" in run.error and "but 2 of prompt" in run.error


@pytest.mark.parametrize("node_id", ["MAM_MaskToMatte", "MAM_SemanticMatte"])
def test_the_guidance_of_one_picture_serves_three_and_that_of_two_does_not_fit(
    comfy, tensors, tiny_sam, tiny_m2m, node_id
):
    def guided_by(count: int):
        guided = node(node_id, m2m=("m2m", 0), embedding=("three", 0), guidance=("guidance", 0))
        graph = {
            "image": node(tensors(pictures(count, 32, 48))),
            "pictures": node(tensors(pictures(3, 32, 48))),
            "prompt": boxes("6 5 30 25"),
            **loaders(tiny_sam, tiny_m2m),
            **steps(),
            "three": node("MAM_EncodeImage", sam=("sam", 0), image=("pictures", 0)),
            "guided": guided,
            "seen": node("PreviewAny", source=("guided", 0)),
        }
        return comfy.run(graph)

    assert len(guided_by(1).output("guided")) == 3
    refused = guided_by(2)
    assert refused.failed_node == "guided" and "3 frames of embedding but 2 of guidance" in refused.error


def test_masks_that_stand_in_for_a_prompt_follow_the_same_rules(comfy, tensors):
    mask = torch.zeros(7, 32, 48)
    mask[:, 8:24, 10:30] = 1

    def mattes(picture_count: int, mask_count: int):
        images = {"image": node(tensors(pictures(picture_count, 32, 48)))}
        return comfy.run({**images, "mask": node(tensors(mask[:mask_count])), **without_models(mask=("mask", 0))})

    for counts in ((1, 7), (7, 1), (7, 7)):
        assert mattes(*counts).output("mattes").shape == (7, 32, 48)
    refused = mattes(7, 2)
    assert not refused.ok and "There are 7 frames of image but 2 of mask" in refused.error


@pytest.mark.parametrize("node_id", ["MAM_Composite", "MAM_PreviewMatte"])
def test_pictures_and_mattes_pair_up_after_the_matting_too(comfy, tensors, node_id):
    def paired(picture_count: int, matte_count: int):
        graph = {
            "image": node(tensors(pictures(picture_count, 20, 30))),
            "alpha": node(tensors(torch.rand(matte_count, 20, 30))),
            "result": node(node_id, image=("image", 0), alpha=("alpha", 0)),
            "shown": node("PreviewImage", images=("result", 0)),
        }
        return comfy.run(graph)

    for counts in ((1, 7), (7, 1), (7, 7)):
        assert paired(*counts).output("result").shape[0] == 7
    refused = paired(7, 2)
    assert not refused.ok and "There are 7 frames of image but 2 of alpha" in refused.error
    assert not paired(0, 1).ok and not paired(1, 0).ok


def test_results_lie_on_the_device_that_comfyui_wants(comfyui, monkeypatch):
    """With --gpu-only it is the graphics card."""
    batch = comfyui.module("nodes.batch")
    monkeypatch.setattr("comfy.model_management.intermediate_device", lambda: torch.device("meta"))
    assert batch.as_output(torch.zeros(2)).device.type == batch.room_for(2).device.type == "meta"


@pytest.mark.parametrize(
    ("node_id", "mask", "settings"),
    [
        ("MAM_Composite", "alpha", {"edge_color": "as photographed"}),
        ("MAM_ForegroundColor", "alpha", {}),
        ("MAM_Trimap", "mask", {}),
        ("MAM_PreviewMatte", "alpha", {}),
        ("MAM_PreviewMatte", "alpha", {"view": "side by side"}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_memory_grows_with_the_batch_by_the_results_alone(comfy, monkeypatch, node_id, mask, settings, dtype):
    monkeypatch.setattr("comfy.model_management.intermediate_dtype", lambda: dtype)
    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", None)
    monkeypatch.setattr(comfy.module("nodes.previews"), "MOST_FRAMES", 0)
    matte = (disc(32, 48, 24, 16, 10) * 1.4 - 0.2).clamp(0, 1)
    few, many = 1, 33

    def peak_and_results(count: int) -> tuple[int, int]:
        inputs = {mask: matte.repeat(count, 1, 1)}
        if node_id != "MAM_Trimap":
            inputs["image"] = pictures(count, 32, 48)
        with torch.inference_mode(), LiveMemory() as memory:
            results = comfy.node(node_id).execute(**inputs, **settings).result
            return memory.peak_bytes, sum(result.nbytes for result in results)

    peak_and_results(few)
    (peak_few, results_few), (peak_many, results_many) = (peak_and_results(count) for count in (few, many))
    assert peak_many - peak_few < 1.3 * (results_many - results_few)


@pytest.mark.parametrize(("targets", "mattes_per_frame"), [(0, 1), (1, 1), (3, 4)])
def test_mattes_take_the_memory_of_the_results_alone(comfy, monkeypatch, targets, mattes_per_frame):
    """With one matte per frame both outputs are one tensor; with three targets a frame has theirs and its own."""
    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", None)
    monkeypatch.setattr(comfy.module("nodes.previews"), "MOST_FRAMES", 0)
    prompt = comfy.module("mam_model.prompt")
    sides = [(2, 2, 20, 20), (20, 10, 46, 30), (2, 20, 12, 30)][:targets]
    frame = tuple(prompt.Prompt(box_xyxy_px=box) for box in sides)

    def peak(count: int) -> int:
        image = pictures(count, 32, 48)
        with torch.inference_mode(), LiveMemory() as memory:
            result = comfy.node("MAM_MatteWithoutModels").execute(image, prompt.PromptSet((frame,)), method="none")
            assert (result.args[0] is result.args[1]) == (mattes_per_frame == 1)
            return memory.peak_bytes

    peak(1)
    assert peak(33) - peak(1) < 1.3 * 32 * mattes_per_frame * 32 * 48 * 4


def test_rough_masks_in_half_precision_take_no_memory_for_others(comfy, monkeypatch):
    monkeypatch.setattr("comfy.model_management.intermediate_dtype", lambda: torch.float16)
    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", None)
    monkeypatch.setattr(comfy.module("nodes.previews"), "MOST_FRAMES", 0)
    clip = pictures(17, 32, 48), disc(32, 48, 24, 16, 10).half().repeat(17, 1, 1)

    def matte(count: int):
        image, mask = (batch[:count] for batch in clip)
        return comfy.node("MAM_MatteWithoutModels").execute(image, mask=mask, method="none").result

    assert growth_per_frame(matte) < 1.3 * 32 * 48 * 2
    whole = comfy.node("MAM_MatteWithoutModels").execute(clip[0], mask=clip[1].float(), method="none").result[0]
    assert torch.equal(matte(17)[0], whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_clip_of_masks_is_looked_through_without_memory_for_another_one(comfyui, value, dtype):
    masks = comfyui.module("nodes.batch").masks
    clip = torch.rand(40, 32, 48).to(dtype)
    with LiveMemory() as memory:
        assert torch.equal(masks(clip), clip)
    assert memory.peak_bytes < 0.01 * clip.nbytes
    clip[30, 20, 10] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        masks(clip)


def growth_per_frame(work) -> float:
    """By how many bytes the memory that `work(count)` takes grows with each frame."""

    def peak(count: int) -> int:
        with torch.inference_mode(), LiveMemory() as memory:
            # Held until it was counted.
            made = work(count)
        del made
        return memory.peak_bytes

    peak(1)
    return (peak(17) - peak(1)) / 16


def test_a_contact_sheet_takes_the_memory_of_the_sheet_alone(comfy, monkeypatch):
    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", None)
    height, width = 200, 1200
    image, alpha = pictures(1, height, width), disc(height, width, 600, 100, 80)[None]
    node = comfy.node("MAM_PreviewMatte")

    def sheet(count: int):
        clip = image.expand(count, -1, -1, -1), alpha.expand(count, -1, -1)
        return node.execute(*clip, layout="contact sheet")

    # Each frame is shown in less than a ninth of its pixels, and with a caption.
    assert growth_per_frame(sheet) < 0.25 * height * width * 3 * 4


def test_the_masks_of_a_clip_take_the_memory_of_the_result_alone(comfy, warm_models, monkeypatch):
    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", None)
    monkeypatch.setattr(comfy.module("nodes.previews"), "MOST_FRAMES", 0)
    prompt, sam = comfy.module("mam_model.prompt"), warm_models[0]
    (embedding,) = comfy.node("MAM_EncodeImage").execute(sam, pictures(1, 320, 480)).result
    frame = (prompt.Prompt(box_xyxy_px=(20, 20, 300, 200)),)
    node = comfy.node("MAM_Segment")
    grown = growth_per_frame(lambda count: node.execute(sam, embedding, prompt.PromptSet((frame,) * count)))
    assert grown < 1.3 * 320 * 480 * 4


def test_the_prompt_editor_takes_the_memory_of_its_mattes_alone(comfy, monkeypatch):
    monkeypatch.setattr("comfy.model_management.intermediate_dtype", lambda: torch.float16)
    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", None)
    # A drawing for one frame alone, and so many frames that they weigh more than the matting of this one.
    box = {"box": {"x": 6, "y": 5, "width": 24, "height": 20}}
    drawing = json.dumps({"width": 48, "height": 32, "targets": [{"prompts": {"0": box}}]})
    picture, node = pictures(1, 32, 48), comfy.node("MAM_PromptEditor")
    node.execute(picture, prompts=drawing)

    def peak(count: int) -> int:
        image = picture.expand(count, -1, -1, -1)
        with torch.inference_mode(), LiveMemory() as memory:
            alpha = node.execute(image, prompts=drawing).result[2]
            assert alpha.shape == (count, 32, 48) and alpha.dtype == torch.float16 and alpha[0].max() > 0.5
        return memory.peak_bytes

    assert peak(6000) - peak(3000) < 1.3 * 3000 * 32 * 48 * 2


def test_strokes_take_the_memory_of_the_prompts_alone(comfy, monkeypatch):
    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", None)
    on, beside = (disc(320, 480, x_px, 160, 40)[None].half() for x_px in (100, 300))
    node = comfy.node("MAM_PromptMask")

    def prompts(count: int):
        strokes = (area.expand(count, -1, -1) for area in (on, beside))
        return node.execute(**dict(zip(("foreground_strokes", "background_strokes"), strokes)))

    # A scribble map takes a byte for each pixel; the strokes themselves would take eight more in float32.
    assert growth_per_frame(prompts) < 2 * 320 * 480


@pytest.mark.parametrize(("merge", "mattes_per_frame"), [("all of a frame", 1), ("same label", 3)])
def test_merged_instances_take_the_memory_of_the_results_alone(comfy, monkeypatch, merge, mattes_per_frame):
    monkeypatch.setattr(comfy.module("nodes.previews"), "MOST_FRAMES", 0)
    instances = comfy.module("mam_model.instances")

    def merged(count: int):
        entries = [
            instances.Instance(frame, index, "ab"[index], 1.0, True, None) for frame in range(count) for index in (0, 1)
        ]
        index = instances.Instances(tuple(entries), count)
        return comfy.node("MAM_MergeInstances").execute(torch.full((2 * count, 64, 96), 0.5), index, merge)

    # What the node is given is counted too: two mattes a frame.
    assert growth_per_frame(merged) < (2 + 1.3 * mattes_per_frame) * 64 * 96 * 4


def test_embeddings_and_guidance_of_different_pictures_are_not_mixed(comfy, graph, tensors):
    workflow = graph(steps, pictures(1, 32, 48), points("20 15"))
    workflow["other image"] = node(tensors(pictures(1, 40, 30)))
    workflow["other"] = node("MAM_EncodeImage", sam=("sam", 0), image=("other image", 0))
    workflow["pyramid"]["inputs"]["embedding"] = ("other", 0)
    run = comfy.run(workflow)
    assert run.failed_node == "pyramid"
    assert "30 x 40" in run.error and "48 x 32" in run.error
