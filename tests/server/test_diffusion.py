"""The workflows that join a matte with a diffusion model, run on small models: what stays, and what is made anew.

Two steps at a small size show nothing of what the real models paint; what the matte does to it shows all the same.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows" / "api"
WIDTH, HEIGHT = 144, 96


def photo() -> np.ndarray:
    """A picture uint8 [HEIGHT, WIDTH, 3] of a bright disc before soft coloured waves."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    waves = np.stack(
        [90 + 60 * np.sin(a * rows + b * columns) for a, b in ((0.1, 0.04), (0.03, 0.12), (0.07, 0.07))], -1
    )
    waves[disc()] = (240, 210, 180)
    return waves.astype(np.uint8)


def disc() -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (rows - HEIGHT / 2) ** 2 + (columns - WIDTH / 2) ** 2 < 30**2


def soft_disc() -> np.ndarray:
    """A matte [HEIGHT, WIDTH] in 0..1 that falls from 1 to 0 over 8 pixels about the edge of the disc."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot(rows - HEIGHT / 2, columns - WIDTH / 2)
    return np.clip((34 - distance) / 8, 0, 1)


@pytest.fixture
def workflow(server, models_of, made_quick):
    """`workflow(name)`: a shared workflow with small models, on a disc; its matte is a file instead of the editor's."""

    def read(name: str) -> dict:
        graph = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
        models_of(graph)
        graph[only(graph, "LoadImage")]["inputs"]["image"] = server.save_picture("disc.png", photo())
        matte = server.save_picture("matte.png", soft_disc())
        editor = only(graph, "MAM_PromptEditor")
        del graph[editor]
        graph["matte"] = {"class_type": "LoadImageMask", "inputs": {"image": matte, "channel": "red"}}
        for node in graph.values():
            for key, value in node["inputs"].items():
                if value == [editor, 2]:
                    node["inputs"][key] = ["matte", 0]
        return made_quick(graph)

    return read


def only(graph: dict, class_type: str) -> str:
    (found,) = (node_id for node_id, node in graph.items() if node["class_type"] == class_type)
    return found


def titled(graph: dict, title: str) -> str:
    (found,) = (node_id for node_id, node in graph.items() if node.get("_meta", {}).get("title") == title)
    return found


def saved(server, graph: dict, kind: str) -> np.ndarray:
    """Runs the workflow; what it saved as matting/<kind>, as int [H, W, C] in 0..255."""
    finished = server.run(graph)
    assert finished.ok, finished.error
    (node_id,) = (key for key, node in graph.items() if node["inputs"].get("filename_prefix") == f"matting/{kind}")
    (pixels,) = server.pictures(finished, node_id)
    return pixels.astype(int)


def test_a_generated_scene_leaves_the_subject_as_it_was_photographed(server, workflow):
    graph = workflow("New background by diffusion")
    graph[titled(graph, "Subject into the scene")]["inputs"]["light_wrap"] = 0.0
    picture = saved(server, graph, "composite")
    assert picture.shape == (HEIGHT, WIDTH, 3)
    inside, outside = soft_disc() == 1, soft_disc() == 0
    assert np.abs(picture - photo())[inside].max() <= 3
    assert np.abs(picture - photo())[outside].mean() > 10


def test_inpainting_paints_all_but_the_subject(server, workflow):
    picture = saved(server, workflow("Inpaint around the subject"), "composite")
    inside, outside = soft_disc() == 1, soft_disc() == 0
    assert np.abs(picture - photo())[inside].max() <= 3
    assert np.abs(picture - photo())[outside].mean() > 10


@pytest.mark.slow
def test_a_checkpoint_not_made_for_inpainting_takes_the_other_node_as_the_note_says(server, workflow, models_of):
    graph = workflow("Inpaint around the subject")
    graph[only(graph, "CheckpointLoaderSimple")]["inputs"]["ckpt_name"] = "any.safetensors"
    models_of(graph)
    node_id = only(graph, "InpaintModelConditioning")
    inputs = graph[node_id]["inputs"]
    graph[node_id] = {
        "class_type": "VAEEncodeForInpaint",
        "inputs": {**{name: inputs[name] for name in ("pixels", "vae", "mask")}, "grow_mask_by": 6},
    }
    sampler = graph[only(graph, "KSampler")]["inputs"]
    sampler.update(positive=inputs["positive"], negative=inputs["negative"], latent_image=[node_id, 0])
    picture = saved(server, graph, "composite")
    assert np.abs(picture - photo())[soft_disc() == 1].max() <= 3
    assert np.abs(picture - photo())[soft_disc() == 0].mean() > 10


def test_a_repainted_subject_stands_before_the_photos_own_background(server, workflow):
    graph = workflow("Repaint the subject")
    # Without room around it and a feather, the mask ends where the matte does.
    graph[titled(graph, "Room around it")]["inputs"].update(shift_px=0.0, feather_px=0.0)
    picture = saved(server, graph, "composite")
    assert picture.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(picture[soft_disc() == 0], photo()[soft_disc() == 0])
    assert np.abs(picture - photo())[soft_disc() == 1].mean() > 10


@pytest.mark.slow
def test_more_denoising_changes_more_of_the_repainted_subject(server, workflow):
    graph = workflow("Repaint the subject")
    sampler = graph[only(graph, "KSampler")]["inputs"]
    pictures = []
    for sampler["denoise"] in (0.1, 0.9):
        pictures.append(saved(server, graph, "composite"))
    little, much = (np.abs(picture - photo())[soft_disc() == 1].mean() for picture in pictures)
    assert little < much


def test_a_relit_cut_out_has_the_subjects_matte_and_the_models_colours(server, workflow):
    graph = workflow("Relight on neutral grey")
    cutout = saved(server, graph, "cutout")
    assert cutout.shape == (HEIGHT, WIDTH, 4)
    assert np.abs(cutout[..., 3] - 255 * soft_disc()).max() <= 1.5
    relit = saved(server, graph, "relit")
    inside = soft_disc() == 1
    np.testing.assert_array_equal(cutout[..., :3][inside], relit[inside])
    assert np.abs(relit - photo())[inside].mean() > 10


@pytest.mark.slow
def test_relighting_sees_the_subject_on_grey_and_nothing_of_its_old_background(server, workflow):
    graph = workflow("Relight on neutral grey")
    photos = {"as it was": photo(), "other background": photo(), "other subject": photo()}
    photos["other background"][soft_disc() == 0] = (20, 120, 60)
    photos["other subject"][disc()] = (20, 40, 200)
    seen, relit = {}, {}
    for name, pixels in photos.items():
        graph[only(graph, "LoadImage")]["inputs"]["image"] = server.save_picture(f"{name}.png", pixels)
        finished = server.run(graph)
        assert finished.ok, finished.error
        (seen[name],) = server.pictures(finished, titled(graph, "What the model sees"))
        relit[name] = saved(server, graph, "relit")
    corners = seen["as it was"][[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
    assert np.abs(corners - 127).max() <= 1
    assert difference(seen, "other background") < 1 < 10 < difference(seen, "other subject")
    assert difference(relit, "other background") < difference(relit, "other subject") / 2


def difference(pictures: dict[str, np.ndarray], name: str) -> float:
    return np.abs(pictures[name].astype(int) - pictures["as it was"]).mean()
