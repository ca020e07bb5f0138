"""The workflows that are shared with users, as the server runs and offers them; tiny models stand in for the real."""

from __future__ import annotations

import io
import json
import urllib.parse
import urllib.request
from pathlib import Path

import comfyui_server
import numpy as np
import pytest
from skimage import data

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
NAMES = sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json"))
CUT_OUTS = ["Cut out with Matting Anything", "Cut out without models"]


def workflow(name: str) -> dict:
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(server, models_of, made_quick, workflow_inputs):
    """`finished(name)` -> what became of that shared workflow on the photo it is made for; each is run once."""
    done = {}

    def run(name: str) -> comfyui_server.Finished:
        if name not in done:
            models_of(workflow(name))
            done[name] = server.run(made_quick(workflow(name)))
        return done[name]

    return run


def saved(server, finished, name: str, prefix: str) -> list[np.ndarray]:
    """What the workflow's SaveImage node for output/<prefix> wrote."""
    return server.pictures(finished(name), node_that_saves(name, prefix))


def node_that_saves(name: str, prefix: str, class_type: str = "SaveImage") -> str:
    nodes = workflow(name).items()
    return next(
        node_id
        for node_id, node in nodes
        if node["class_type"] == class_type and node["inputs"]["filename_prefix"] == prefix
    )


def picture(server, finished, name: str, kind: str) -> np.ndarray:
    """What the workflow's SaveImage node for matting/<kind> wrote."""
    (pixels,) = saved(server, finished, name, f"matting/{kind}")
    return pixels


@pytest.mark.parametrize(
    "name", [name if name in CUT_OUTS else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_every_shared_workflow_runs(finished, name):
    assert finished(name).ok, finished(name).error
    assert finished(name).outputs


@pytest.mark.parametrize("name", CUT_OUTS)
def test_the_cut_out_is_the_photo_under_its_matte(server, finished, name):
    photo = data.astronaut()
    matte = picture(server, finished, name, "matte")[..., 0]
    cutout = picture(server, finished, name, "cutout")
    assert matte.shape == photo.shape[:2]
    assert matte.min() < 128 < matte.max()
    np.testing.assert_array_equal(cutout[..., 3], matte)
    opaque = matte == 255
    assert np.abs(cutout[..., :3][opaque].astype(int) - photo[opaque]).mean() < 2


@pytest.mark.parametrize("name", CUT_OUTS)
def test_the_composite_keeps_the_subject_and_paints_the_rest_green(server, finished, name):
    photo = data.astronaut()
    matte = picture(server, finished, name, "matte")[..., 0]
    composite = picture(server, finished, name, "composite").astype(int)
    # Files round down, so a matte of 0 may stand for almost 1/255.
    assert np.abs(composite[matte == 0] - (0, 177, 64)).max() <= 2
    assert np.abs(composite[matte == 255] - photo[matte == 255]).mean() < 2


@pytest.mark.slow
def test_every_photo_of_a_folder_is_cut_out_and_put_on_white_with_a_shadow(server, finished):
    on_white = saved(server, finished, "Product batch", "products/white")
    cutouts = saved(server, finished, "Product batch", "products/cutout")
    assert len(on_white) == len(cutouts) == 2
    for page, cutout in zip(on_white, cutouts):
        assert page.shape[:2] == cutout.shape[:2] == (256, 256)
        assert (page[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
        product, beside = cutout[..., 3] == 255, cutout[..., 3] == 0
        assert product.any() and page[beside].min() < 230
        assert np.abs(page[product].astype(int) - cutout[product][:, :3]).max() <= 2


@pytest.mark.slow
def test_the_subject_stands_in_the_new_background(server, finished):
    composite = picture(server, finished, "New background from a photo", "composite").astype(int)
    background = data.coffee().astype(int)
    assert composite.shape == background.shape
    # She is 400 pixels wide in the middle of 600.
    assert np.abs(composite[:, :90] - background[:, :90]).max() <= 1
    assert np.abs(composite[:, 250:350] - background[:, 250:350]).mean() > 20


@pytest.mark.slow
def test_the_nearest_layer_hides_what_is_behind_it(server, finished):
    photo = data.astronaut().astype(int)
    layers = saved(server, finished, "One layer per subject", "matting/layer")
    depth = picture(server, finished, "One layer per subject", "depth").astype(int)
    assert len(layers) == 2 and depth.shape == photo.shape
    nearest = layers[0][..., 3] == 255
    assert nearest.any() and np.abs(depth[nearest] - photo[nearest]).mean() < 2
    assert np.abs(depth[~nearest] - photo[~nearest]).mean() > 10


@pytest.mark.slow
@pytest.mark.parametrize("class_type, prefix", [("SaveVideo", "matting/composite"), ("SaveWEBM", "matting/cutout")])
def test_a_video_comes_out_with_every_frame(server, finished, class_type, prefix):
    """The masks come from core's tracker on a small SAM 3.1 with random weights; what it follows means nothing."""
    import av

    node_id = node_that_saves("Matte a video", prefix, class_type)
    (content,) = server.images(finished("Matte a video"), node_id)
    with av.open(io.BytesIO(content)) as video:
        assert [(frame.width, frame.height) for frame in video.decode(video=0)] == 3 * [(96, 64)]


@pytest.mark.slow
def test_the_truth_itself_measures_no_error(server, workflow_inputs):
    graph = workflow("Measure a matte")
    judged = next(node_id for node_id, node in graph.items() if node["class_type"] == "MAM_PromptEditor")
    truth = next(node_id for node_id, node in graph.items() if node["class_type"] == "ImageToMask")
    measuring = [node_id for node_id, node in graph.items() if node["class_type"] == "MAM_MatteMetrics"]
    del graph[judged]
    for node in graph.values():
        node["inputs"] = {key: [truth, 0] if value == [judged, 2] else value for key, value in node["inputs"].items()}
    for node_id in measuring:
        graph[f"sad {node_id}"] = {"class_type": "PreviewAny", "inputs": {"source": [node_id, 0]}}
    finished = server.run(graph)
    assert finished.ok, finished.error
    assert [finished.outputs[f"sad {node_id}"]["text"] for node_id in measuring] == [["0.0"], ["0.0"]]
    where_wrong = next(node_id for node_id, node in graph.items() if node["class_type"] == "MaskPreview")
    assert server.pictures(finished, where_wrong)[0].max() == 0


def test_the_shared_workflows_are_offered_as_templates(server):
    offered = server.get("/api/workflow_templates")[comfyui_server.PACK_FOLDER]
    assert sorted(offered) == sorted(path.stem for path in WORKFLOWS.glob("*.json"))


@pytest.mark.parametrize("file", sorted(WORKFLOWS.glob("*.j*")), ids=lambda file: file.name)
def test_a_template_and_its_thumbnail_are_served(server, file):
    # ComfyUI serves one folder of a pack alone: beside a folder called examples, it would not find these.
    address = f"{server.address}/api/workflow_templates/{comfyui_server.PACK_FOLDER}/{urllib.parse.quote(file.name)}"
    with urllib.request.urlopen(address, timeout=60) as answer:
        assert answer.read() == file.read_bytes()
