"""The four steps: together they are the whole node, each can be looked at and overruled, and each can be cancelled."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from .graphs import boxes, count_calls, loaders, node, pictures, points, steps, whole


@pytest.fixture
def workflow(tiny_sam, tiny_m2m, tensors):
    """`workflow(images, prompt)`: the loaders and both ways of matting, side by side."""

    def build(images: torch.Tensor, prompt: dict) -> dict:
        graph = {"image": node(tensors(images)), "prompt": prompt, **loaders(tiny_sam, tiny_m2m), **steps(), **whole()}
        return {**graph, "merged shown": node("MaskPreview", mask=("merged", 0))}

    return build


OTHER_MERGE = {"guidance_mode": "alpha", "sides": "two", "width_os8": 3, "width_os4": 7, "width_os1": 4}


@pytest.mark.parametrize(
    ("prompt", "settings"),
    [
        (boxes("6 5 30 25"), {}),
        (boxes("6 5 30 25\n20 2 46 30"), OTHER_MERGE),
        (boxes(json.dumps([[[6, 5, 30, 25]], []])), OTHER_MERGE),
        (points("20 15\n22 18", "40 28"), {}),
        (points("20 15\n40 10", each_point_is="a target of its own"), {}),
    ],
    ids=["a box", "two targets", "an empty frame", "points", "points of two targets"],
)
def test_the_steps_together_give_what_the_whole_node_gives(comfy, workflow, prompt, settings):
    graph = workflow(pictures(2, 32, 48), prompt)
    graph["mattes"]["inputs"].update(settings)
    graph["merged"]["inputs"].update(settings)
    run = comfy.run(graph)
    assert run.ok, run.error
    for slot in (0, 1):
        # The whole node computes only what the merge reads, which rounds in another order.
        torch.testing.assert_close(run.output("mattes", slot), run.output("merged", slot), atol=2e-5, rtol=0)
    assert run.output("mattes", 2) == run.output("merged", 2)
    assert run.output("mattes").max() > 0.1


@pytest.mark.parametrize(
    "setting", [{"guidance_mode": "alpha"}, {"sides": "two"}, {"width_os8": 0}, {"width_os4": 0}, {"width_os1": 0}]
)
def test_every_merge_setting_changes_the_matte(comfy, workflow, setting):
    graph = workflow(pictures(1, 64, 96), boxes("20 10 70 50"))
    graph["mattes"]["inputs"].update(setting)
    run = comfy.run(graph)
    assert run.ok, run.error
    assert not torch.equal(run.output("mattes"), run.output("merged"))


def test_the_best_of_three_candidates_is_taken_unless_one_is_chosen(comfy, workflow):
    graph = workflow(pictures(1, 32, 48), boxes("6 5 30 25"))
    found = comfy.run(graph).output("guidance")[0]
    best = int(found.predicted_iou[0].argmax())
    masks = {}
    for choice in ("best", "1", "2", "3"):
        graph["guidance"]["inputs"]["candidate"] = choice
        run = comfy.run(graph)
        masks[choice] = run.output("guidance", 1).clone()
        expected = best if choice == "best" else int(choice) - 1
        assert run.output("guidance")[0].chosen.tolist() == [expected]
        wanted = (found.frame.logits_to_original(found.logits[:, expected : expected + 1])[0, 0] > 0).float()
        assert torch.equal(masks[choice][0], wanted)
    assert torch.equal(masks["best"], masks[str(best + 1)])
    assert not torch.equal(masks["1"], masks["2"]) and not torch.equal(masks["2"], masks["3"])


def test_the_mask_output_of_segment_joins_all_targets_of_a_frame(comfy, workflow):
    run = comfy.run(workflow(pictures(1, 32, 48), boxes("6 5 30 25\n20 2 46 30")))
    guidance = run.output("guidance")[0]
    joined = torch.maximum(guidance.post_mask(0), guidance.post_mask(1))
    assert torch.equal(run.output("guidance", 1)[0], joined)
    assert run.output("guidance", 1).shape == (1, 32, 48)


def test_what_segment_puts_out_does_not_stay_on_the_graphics_card(comfy, workflow, monkeypatch):
    guidance = comfy.module("mam_model.sam").Guidance
    usual, moved = guidance.cpu, []

    def cpu(self):
        moved.append(usual(self))
        return moved[-1]

    monkeypatch.setattr(guidance, "cpu", cpu)
    run = comfy.run(workflow(pictures(2, 32, 48), boxes("6 5 30 25")))
    assert [found is kept for found, kept in zip(run.output("guidance"), moved, strict=True)] == [True, True]


def test_the_embedding_of_another_sam_is_refused(comfy, workflow, place, tiny_sam_file):
    twin = place(tiny_sam_file, comfy.models_dir / "sams", "twin_sam.pth")
    graph = workflow(pictures(1, 32, 48), boxes("6 5 30 25"))
    graph["other"] = node("MAM_LoadSAM", sam_name=twin.name)
    graph["guidance"]["inputs"]["sam"] = ("other", 0)
    run = comfy.run(graph)
    assert run.failed_node == "guidance"
    assert "twin_sam.pth" in run.error and "one Load SAM for encoding and segmenting" in run.error


def test_one_sam_in_two_precisions_understands_its_own_embeddings(comfy, workflow, tiny_sam):
    graph = workflow(pictures(1, 32, 48), boxes("6 5 30 25"))
    graph["half"] = node("MAM_LoadSAM", sam_name=tiny_sam, precision="bf16")
    graph["embedding"]["inputs"]["sam"] = ("half", 0)
    assert comfy.run(graph).ok


def shown_by(comfy, run, node_id: str) -> list[np.ndarray]:
    """The pictures that a node showed, as uint8 arrays, from the files in ComfyUI's temp folder."""
    return [
        np.array(Image.open(comfy.base / "temp" / image["subfolder"] / image["filename"]))
        for image in run.ui[node_id]["images"]
        if image["type"] == "temp"
    ]


def test_every_step_shows_a_picture_of_what_it_made(comfy, workflow, comfyui):
    graph = workflow(pictures(2, 64, 96), boxes("20 10 70 50"))
    graph |= {
        "classical": node("MAM_MatteWithoutModels", image=("image", 0), prompt=("prompt", 0), method="none"),
        "classical shown": node("MaskPreview", mask=("classical", 0)),
        "preview": node("MAM_PreviewMatte", image=("image", 0), alpha=("classical", 0)),
    }
    run = comfy.run(graph)
    assert run.ok, run.error
    showing = [name for name, cls in comfyui.our_nodes.items() if cls.GET_SCHEMA().has_intermediate_output]
    in_graph = {facts["class_type"]: name for name, facts in graph.items()}
    steps_and_wholes = [name for name in showing if name in in_graph]
    assert len(steps_and_wholes) == 6
    for class_type in (*steps_and_wholes, "MAM_PreviewMatte"):
        shown = shown_by(comfy, run, in_graph[class_type])
        assert len(shown) == 2, class_type
        for picture in shown:
            assert picture.std() > 3, f"{class_type} shows a blank picture"
        assert (shown[0].shape != shown[1].shape) or (shown[0] != shown[1]).any(), class_type


def test_the_preview_of_the_three_scales_shows_them_in_a_row(comfy, workflow):
    run = comfy.run(workflow(pictures(1, 64, 96), boxes("20 10 70 50")))
    (picture,) = shown_by(comfy, run, "pyramid")
    content = run.output("guidance")[0].frame
    assert picture.shape[0] == content.content_height
    assert picture.shape[1] > 3 * content.content_width
    thirds = np.array_split(picture[..., 0], 3, axis=1)
    assert (thirds[0][:, :200] != thirds[1][:, :200]).any()


def test_what_is_shown_is_small_and_of_the_first_frames_only(comfy, tensors):
    graph = {
        "image": node(tensors(pictures(20, 4, 1500))),
        "alpha": node(tensors(torch.rand(20, 4, 1500))),
        "preview": node("MAM_PreviewMatte", image=("image", 0), alpha=("alpha", 0)),
    }
    run = comfy.run(graph)
    assert run.ok, run.error
    shown = shown_by(comfy, run, "preview")
    assert 1 <= len(shown) <= 16
    assert max(shown[0].shape) <= 1024
    assert run.output("preview").shape == (20, 4, 1500, 3)


def test_progress_moves_once_per_frame(comfy, workflow):
    graph = workflow(pictures(3, 32, 48), boxes("6 5 30 25"))
    graph |= {
        "classical": node("MAM_MatteWithoutModels", image=("image", 0), prompt=("prompt", 0), method="none"),
        "composite": node("MAM_Composite", image=("image", 0), alpha=("classical", 0)),
        "preview": node("MAM_PreviewMatte", image=("composite", 0), alpha=("classical", 0)),
    }
    run = comfy.run(graph)
    assert run.ok, run.error
    working = ["embedding", "guidance", "pyramid", "merged", "mattes", "classical", "composite", "preview"]
    for name in working:
        assert [(value, total) for node_id, value, total in run.progress if node_id == name] == [(1, 3), (2, 3), (3, 3)]


WORK_PER_FRAME = {
    "mattes": ("mam_model.sam", "Sam", "decode"),
    "guidance": ("mam_model.sam", "Sam", "decode"),
    "embedding": ("mam_model.sam", "Sam", "encode_content"),
    "pyramid": ("mam_model.m2m", "FoldedMaskToMatte", "forward"),
    "merged": ("mam_model.matting", None, "merge_targets"),
    "classical": ("mam_model.classical", None, "matte_without_models"),
    "composite": ("nodes.compositing", None, "over"),
    "preview": ("nodes.compositing", None, "_seen"),
}


@pytest.mark.parametrize("name", WORK_PER_FRAME)
def test_cancelling_stops_within_one_step_and_the_next_run_works(comfy, monkeypatch, workflow, tensors, name):
    graph = workflow(pictures(5, 32, 48), boxes("6 5 30 25"))
    graph |= {
        "alpha": node(tensors(torch.rand(1, 32, 48))),
        "classical": node("MAM_MatteWithoutModels", image=("image", 0), prompt=("prompt", 0), method="none"),
        "composite": node("MAM_Composite", image=("image", 0), alpha=("alpha", 0)),
        "preview": node("MAM_PreviewMatte", image=("image", 0), alpha=("alpha", 0)),
    }
    needed = {}

    def need(node_id):
        needed[node_id] = graph[node_id]
        for link in graph[node_id]["inputs"].values():
            if isinstance(link, tuple):
                need(link[0])

    need(name)
    sources = [link for link in needed[name]["inputs"] if link in ("embedding", "guidance", "alphas")]
    if sources:
        # What comes before is done already, so that the steps counted are those of the node alone.
        before = {key: value for key, value in needed.items() if key != name}
        last = needed[name]["inputs"][sources[-1]][0]
        assert comfy.run({**before, "see": node("PreviewAny", source=(last, 0))}).ok
    slot = 1 if name == "guidance" else 0
    sink = node("PreviewAny", source=(name, slot))
    module, owner, function = WORK_PER_FRAME[name]
    owner = getattr(comfy.module(module), owner) if owner else comfy.module(module)
    done = count_calls(monkeypatch, owner, function)
    cancelled = comfy.run({**needed, "see last": sink}, interrupt_after=2)
    assert cancelled.interrupted and cancelled.failed_node == name
    assert len(done) == 2
    again = comfy.run({**needed, "see last": sink})
    assert again.ok and name in again.executed
    assert len(done) >= 5
