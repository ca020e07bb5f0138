"""Subjects named by text: what the detector finds becomes prompts, frame by frame, and the words choose among it."""

from __future__ import annotations

import builtins
import json
import shutil
import sys
import urllib.request
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import grounding_dino
import numpy as np
import pytest
import torch

from .graphs import boxes, loaders, models_in_memory, named_by_another_node, node, pictures, whole


@pytest.fixture
def models(comfy):
    return comfy.module("nodes.text_detectors")


@pytest.fixture
def place_folder(comfy):
    """`place_folder(source, name)`: copy a detector into models/grounding-dino; removed again after the test."""
    root = comfy.models_dir / "grounding-dino"

    def copy(source: Path, name: str) -> Path:
        return Path(shutil.copytree(source, root / name, dirs_exist_ok=True))

    root.mkdir(exist_ok=True)
    yield copy
    shutil.rmtree(root)


@pytest.fixture
def tiny_detector(place_folder, tiny_text_detector_folder) -> str:
    """Name of a tiny Grounding DINO in models/grounding-dino, for MAM_LoadTextDetector."""
    return place_folder(tiny_text_detector_folder, "tiny").name


def detector(name: str) -> dict:
    return node("MAM_LoadTextDetector", detector_name=name)


def asked(text: str, **settings) -> dict:
    """Node "prompt" on the nodes "detector" and "image"; "seen" makes ComfyUI run it."""
    return {
        "prompt": node("MAM_PromptText", detector=("detector", 0), image=("image", 0), text=text, **settings),
        "area": node("MAM_PromptInfo", prompt=("prompt", 0), frame=0, image=("image", 0)),
        "seen": node("MaskPreview", mask=("area", 3)),
    }


@pytest.fixture
def find(comfy, tensors, tiny_detector):
    """`find(text, image=..., **settings)`: the run of a text prompt."""

    def run(text: str, image: torch.Tensor | None = None, **settings):
        image = pictures(1, 60, 90) if image is None else image
        graph = {"detector": detector(tiny_detector), "image": node(tensors(image)), **asked(text, **settings)}
        return comfy.run(graph)

    return run


def prompts_of(run) -> tuple:
    assert run.ok, run.error
    return run.output("prompt", 0).frames


# The network is random: what matters is that it finds several things of which the tests can choose.
ALL = {"box_threshold": 0.0, "text_threshold": 0.0}


def test_the_prompt_holds_the_detectors_boxes_with_phrase_and_score(find, models):
    image = pictures(1, 60, 90)
    run = find("Red dog, girl", image, overlap=1.0, at_most=100, **ALL)
    (targets,) = prompts_of(run)
    shared = run.output("detector")
    raw = shared.network.detect(image[0], ["red dog", "girl"], 0.0, 0.0)
    expected = [d for subject in (0, 1) for d in raw if d.subject == subject]
    assert len(targets) == len(expected) > 4
    assert [target.box_xyxy_px for target in targets] == [d.box_xyxy_px for d in expected]
    assert [target.score for target in targets] == [d.score for d in expected]
    assert [target.label for target in targets] == [("Red dog", "girl")[d.subject] for d in expected]
    assert run.output("prompt", 1) is True


def test_a_detector_too_large_for_the_graphics_card_finds_the_same_on_the_processor(comfy, find, monkeypatch, said):
    (usual,) = prompts_of(find("dog", at_most=3, **ALL))
    comfy.reset()
    detector = comfy.module("mam_model.text").TextDetector
    detect = detector.detect

    def full(self, *args):
        monkeypatch.setattr(detector, "detect", detect)
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr(detector, "detect", full)
    (targets,) = prompts_of(find("dog", at_most=3, **ALL))
    for target, before in zip(targets, usual, strict=True):
        assert target.box_xyxy_px == pytest.approx(before.box_xyxy_px, abs=0.01)
    assert len(said()) == 1 and "on the processor" in said()[0]


def test_the_words_of_the_text_choose_the_box(find):
    (everything,) = prompts_of(find("dogs", at_most=100, **ALL))
    centers = sorted((target.box_xyxy_px[0] + target.box_xyxy_px[2]) / 2 for target in everything)
    assert len(centers) > 3
    for text, expected in {
        "dogs on the left": centers[:1],
        "second of the dogs from the left": centers[1:2],
        "the two dogs on the right": centers[-2:],
        "dogs, the rightmost": centers[-1:],
        "99th dogs from the left": [],
    }.items():
        (targets,) = prompts_of(find(text, **ALL))
        assert sorted((t.box_xyxy_px[0] + t.box_xyxy_px[2]) / 2 for t in targets) == expected, text


def test_a_picked_number_is_the_one_in_the_nodes_picture(find):
    (everything,) = prompts_of(find("dog", sort_by="left to right", at_most=100, **ALL))
    for pick, expected in {"2": [1], "1, 3": [0, 2], "2-3": [1, 2], "leftmost": [0]}.items():
        (targets,) = prompts_of(find("dog on the right", sort_by="left to right", pick=pick, at_most=1, **ALL))
        assert [t.box_xyxy_px for t in targets] == [everything[place].box_xyxy_px for place in expected]


def test_boxes_can_form_one_target(find):
    (everything,) = prompts_of(find("red dog, girl", at_most=100, **ALL))
    (together,) = prompts_of(find("red dog, girl", at_most=100, each_box_is="part of one target", **ALL))[0]
    assert together.label == "red dog and girl"
    assert together.box_xyxy_px[0] == min(target.box_xyxy_px[0] for target in everything)
    assert together.box_xyxy_px[3] == max(target.box_xyxy_px[3] for target in everything)
    (by_phrase,) = prompts_of(find("red dog, girl", at_most=100, each_box_is="part of its phrase", **ALL))
    assert [target.label for target in by_phrase] == ["red dog", "girl"]


def test_the_node_shows_a_picture_of_each_frame_with_numbered_boxes(find, comfy):
    from PIL import Image

    image = torch.zeros(2, 60, 90, 3)
    run = find("dog", image, **ALL)
    shown = run.ui["prompt"]["images"]
    assert len(shown) == 2
    for picture in shown:
        with Image.open(comfy.base / "temp" / picture["subfolder"] / picture["filename"]) as drawn:
            assert drawn.size == (90, 60)
            assert np.asarray(drawn).max() > 100


def test_a_frame_without_a_match_has_no_target_and_an_empty_matte(comfy, tensors, tiny_detector, tiny_sam, tiny_m2m):
    image = pictures(3, 60, 90)
    graph = {"detector": detector(tiny_detector), "image": node(tensors(image)), **loaders(tiny_sam, tiny_m2m)}
    run = comfy.run({**graph, **asked("dog", box_threshold=0.0, text_threshold=0.0), **whole()})
    scores = sorted(max(target.score for target in targets) for targets in prompts_of(run))
    threshold = (scores[0] + scores[1]) / 2
    run = comfy.run({**graph, **asked("dog", box_threshold=threshold, text_threshold=0.0), **whole()})
    frames = prompts_of(run)
    (empty,) = [index for index, targets in enumerate(frames) if not targets]
    mattes, instances = run.output("mattes", 0), run.output("mattes", 2)
    assert mattes.shape == (3, 60, 90)
    assert mattes[empty].max() == 0
    assert [entry.found for entry in instances.entries if entry.frame == empty] == [False]
    assert any(entry.found and entry.label == "dog" for entry in instances.entries)
    assert run.output("prompt", 1) is True


def test_a_text_without_any_match_finds_nothing_and_says_so(comfy, tensors, tiny_detector, tiny_sam, tiny_m2m):
    graph = {
        "detector": detector(tiny_detector),
        "image": node(tensors(pictures(1, 60, 90))),
        **loaders(tiny_sam, tiny_m2m),
        **asked("dog", box_threshold=1.0),
        **whole(),
    }
    run = comfy.run(graph)
    assert prompts_of(run) == ((),)
    assert run.output("prompt", 1) is False
    assert run.output("mattes").max() == 0
    assert [entry.found for entry in run.output("mattes", 2).entries] == [False]


def test_a_phrase_leads_through_box_and_sam_to_a_matte(comfy, tensors, tiny_detector, tiny_sam, tiny_m2m):
    graph = {
        "detector": detector(tiny_detector),
        "image": node(tensors(pictures(1, 60, 90))),
        **loaders(tiny_sam, tiny_m2m),
        **asked("the largest dog", **ALL),
        **whole(),
    }
    run = comfy.run(graph)
    assert run.ok, run.error
    (entry,) = run.output("mattes", 2).entries
    assert (entry.label, entry.found) == ("the largest dog", True)
    by_hand = run.output("prompt").frames[0][0].box_xyxy_px
    mattes = run.output("mattes").clone()
    graph["prompt"] = boxes(json.dumps([by_hand]))
    assert torch.equal(comfy.run(graph).output("mattes"), mattes)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"text": ""}, 'Write what to look for, such as "dog"'),
        ({"text": "dog " * 300}, "tokens long, and the detector reads 256"),
        ({"text": "😀"}, "reads English"),
        ({"text": "女の子"}, "reads English"),
        ({"text": "on the left"}, "does not say what to look for"),
        ({"text": "dog, zzz"}, 'knows no word of "zzz"'),
        ({"text": "dog", "pick": "cat"}, "is no choice among the boxes"),
        ({"text": "dog", "pick": "99"}, '"pick" asks for box 99, but at most'),
    ],
)
def test_a_text_that_cannot_be_used_is_answered_with_a_sentence(find, settings, said):
    run = find(**settings, **ALL)
    assert run.failed_node == "prompt"
    assert said in run.error and "\n" not in run.error


def test_frames_are_searched_one_by_one_with_progress_until_cancelled(comfy, tensors, tiny_detector):
    graph = {"detector": detector(tiny_detector), "image": node(tensors(pictures(5, 40, 60))), **asked("dog")}
    run = comfy.run(graph)
    assert run.ok, run.error
    assert [value for node_id, value, total in run.progress if node_id == "prompt" and total == 5] == [1, 2, 3, 4, 5]
    assert len(prompts_of(run)) == 5
    comfy.reset()
    run = comfy.run(graph, interrupt_after=2)
    assert run.interrupted and run.failed_node == "prompt"


def test_a_picture_with_broken_pixels_is_refused(find):
    image = pictures(1, 60, 90)
    image[0, 3, 4] = float("nan")
    assert "NaN" in find("dog", image).error


def test_two_workflows_share_one_detector_and_unloading_frees_it(comfy, tensors, tiny_detector):
    graph = {"detector": detector(tiny_detector), "image": node(tensors(pictures(1, 60, 90))), **asked("dog")}
    graph["again"] = detector(tiny_detector)
    graph["other"] = node("MAM_PromptText", detector=("again", 0), image=("image", 0), text="cat")
    graph["listed"] = node("MAM_PromptInfo", prompt=("other", 0), frame=0)
    graph["looked"] = node("MaskPreview", mask=("listed", 3))
    run = comfy.run(graph)
    assert run.ok, run.error
    assert run.output("detector") is run.output("again")
    assert [type(model).__name__ for model in models_in_memory(comfy)] == ["SharedTextDetector"]
    del run
    comfy.reset()
    assert models_in_memory(comfy) == []


def test_the_detector_is_moved_by_comfyuis_memory_management(find, comfy):
    import comfy.model_management as memory

    run = find("dog")
    assert run.ok, run.error
    patcher = run.output("detector").patcher
    assert any(loaded.model is patcher for loaded in memory.current_loaded_models)


def test_a_replaced_file_is_loaded_anew(find, comfy, tiny_detector):
    run = find("dog", **ALL)
    before = prompts_of(run)[0][0].score
    grounding_dino.save_tiny_grounding_dino(comfy.models_dir / "grounding-dino" / tiny_detector, seed=1)
    again = find("dog", **ALL)
    assert prompts_of(again)[0][0].score != before


def test_folders_are_offered_before_published_ones_that_are_absent(models, place_folder, tiny_text_detector_folder):
    published = ["grounding-dino-tiny", "grounding-dino-base"]
    assert models.text_detector_choices() == published
    place_folder(tiny_text_detector_folder, "zebra")
    place_folder(tiny_text_detector_folder, "owner/model")
    snapshot = place_folder(tiny_text_detector_folder, "models--owner--model/snapshots/0123")
    place_folder(tiny_text_detector_folder, "grounding-dino-base.part")
    (place_folder(tiny_text_detector_folder, ".hidden").parent / "loose.pth").write_bytes(b"x")
    names = ["models--owner--model", "owner/model", "zebra"]
    assert models.text_detector_choices() == names + published
    assert models.text_detector_folder("models--owner--model") == snapshot
    place_folder(tiny_text_detector_folder, "grounding-dino-tiny")
    assert models.text_detector_choices() == sorted([*names, published[0]]) + published[1:]
    place_folder(tiny_text_detector_folder, ".")
    assert models.text_detector_choices()[0] == "."


def test_the_folders_name_may_come_from_another_node(comfy, tensors, place_folder, tiny_text_detector_folder):
    folder = place_folder(tiny_text_detector_folder, "chosen")
    graph = {**named_by_another_node("chosen"), "detector": detector(("name", 0))}
    graph |= {"image": node(tensors(pictures(1, 60, 90))), **asked("dog")}
    run = comfy.run(graph)
    assert run.ok and run.output("detector").name == "chosen", run.error
    assert comfy.run(graph).executed == []
    (folder / "config.json").touch()
    assert "detector" in comfy.run(graph).executed


@pytest.mark.parametrize("name", ["gone", "../sams", "/absolute", ""])
def test_a_folder_that_is_not_there_is_refused_before_anything_runs(comfy, tensors, models, place_folder, name):
    graph = {"detector": detector(name), "image": node(tensors(pictures(1, 60, 90))), **asked("dog")}
    run = comfy.run(graph)
    assert not run.executed
    assert f'There is no folder "{name}" in models/grounding-dino' in run.error
    assert "https://huggingface.co/IDEA-Research/grounding-dino-tiny" in run.error
    with pytest.raises(FileNotFoundError, match=f'In models/grounding-dino is no folder "{name}"'):
        models.text_detector_folder(name)


def test_an_incomplete_folder_names_the_missing_file(find, comfy, tiny_detector):
    (comfy.models_dir / "grounding-dino" / tiny_detector / "vocab.txt").unlink()
    run = find("dog")
    assert run.failed_node == "detector"
    assert "In the folder tiny of models/grounding-dino is no vocab.txt" in run.error


def test_without_transformers_only_this_node_says_what_is_missing(
    find, comfy, tensors, tiny_sam, tiny_m2m, monkeypatch
):
    importing = builtins.__import__

    def failing(name, *args, **kwargs):
        if name == "transformers":
            raise ImportError("No module named 'transformers'")
        return importing(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    monkeypatch.setattr(builtins, "__import__", failing)
    run = find("dog")
    assert run.failed_node == "detector"
    assert "needs the library transformers, 4.50 or newer" in run.error and "\n" not in run.error
    graph = {"image": node(tensors(pictures())), "prompt": boxes("5 5 40 40"), **loaders(tiny_sam, tiny_m2m)}
    assert comfy.run({**graph, **whole()}).ok


@pytest.fixture
def published_tiny(comfy, monkeypatch, tmp_path, tiny_text_detector_folder):
    """Grounding DINO tiny as if its authors had published the random one, read from files instead of the network."""
    module = comfy.module("mam_model.published")
    model = module.TEXT_DETECTORS[0]
    offered = Path(shutil.copytree(tiny_text_detector_folder, tmp_path / "offered"))
    files = tuple(
        replace(
            file,
            url=(offered / file.name).as_uri(),
            size_bytes=(offered / file.name).stat().st_size,
            sha256=module.sha256_of(offered / file.name),
        )
        for file in model.files
    )

    class Answer(urllib.request.FileHandler):
        """Gives files a status as a web server does."""

        def open_local_file(self, request):
            response = super().open_local_file(request)
            response.code = 200
            return response

    monkeypatch.setattr(urllib.request, "build_opener", lambda: _opener(Answer()))
    monkeypatch.setattr(comfy.module("nodes.text_detectors"), "TEXT_DETECTORS", (replace(model, files=files),))
    yield offered
    shutil.rmtree(comfy.models_dir / "grounding-dino", ignore_errors=True)


def _opener(handler) -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    opener.add_handler(handler)
    return opener


def test_a_published_detector_is_downloaded_whole_and_verified(comfy, tensors, published_tiny):
    graph = {"image": node(tensors(pictures(1, 60, 90))), **asked("dog", **ALL)}
    graph["detector"] = detector("grounding-dino-tiny")
    run = comfy.run(graph)
    assert run.ok, run.error
    folder = comfy.models_dir / "grounding-dino" / "grounding-dino-tiny"
    assert (folder / "model.safetensors").read_bytes() == (published_tiny / "model.safetensors").read_bytes()
    assert not list(folder.parent.glob("*.part"))


def test_a_download_with_a_wrong_byte_leaves_no_detector(comfy, tensors, published_tiny):
    weights = bytearray((published_tiny / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (published_tiny / "model.safetensors").write_bytes(weights)
    graph = {"image": node(tensors(pictures(1, 60, 90))), **asked("dog", **ALL)}
    graph["detector"] = detector("grounding-dino-tiny")
    run = comfy.run(graph)
    assert run.failed_node == "detector"
    assert "what arrived is not the published file" in run.error
    assert not (comfy.models_dir / "grounding-dino" / "grounding-dino-tiny").exists()


SEG = namedtuple("SEG", "cropped_image cropped_mask confidence crop_region bbox label control_net_wrapper")

# What other detectors put out for a batch of two frames of which the second is empty, as far as they know frames.
OTHER_DETECTORS = {
    "RT-DETR of core": (
        [[{"x": 10.5, "y": 5.0, "width": 30.0, "height": 40.0, "label": "dog", "score": 0.75}], []],
        [[("dog", 0.75, (10.5, 5, 40.5, 45))], []],
    ),
    "SAM3 Detect of core": (
        [[{"x": 10, "y": 5, "width": 30, "height": 40, "score": 0.5}], []],
        [[("", 0.5, (10, 5, 40, 45))], []],
    ),
    "Florence-2 to coordinates": ([[(10.5, 5.0, 40.5, 45.0)], []], [[("", 1.0, (10.5, 5, 40.5, 45))], []]),
    "Florence-2 of a pack with one list": ([[10, 5, 40, 45]], [[("", 1.0, (10, 5, 40, 45))]]),
    "SEGS": (
        ((60, 90), [SEG(None, None, np.array([0.5]), (0, 0, 9, 9), np.array([10, 5, 40, 45]), "dog", None)]),
        [[("dog", 0.5, (10, 5, 40, 45))]],
    ),
}


@pytest.mark.parametrize("name", OTHER_DETECTORS)
def test_boxes_of_any_other_detector_take_the_same_way(comfy, name):
    given, expected = OTHER_DETECTORS[name]
    prompt = comfy.node("MAM_PromptBoxes").execute("", given).result[0]
    assert [[(t.label, t.score, t.box_xyxy_px) for t in targets] for targets in prompt.frames] == expected


def test_masks_of_another_detector_are_guidance(comfy):
    masks = torch.zeros(2, 60, 90)
    masks[0, 5:45, 10:40] = 1
    prompt = comfy.node("MAM_PromptMask").execute(masks).result[0]
    first, second = (targets[0] for targets in prompt.frames)
    assert first.mask_is_guidance and first.mask.sum() == 40 * 30
    assert second.is_empty
