"""The workflows that are shared with users, as the server runs and offers them; tiny models stand in for the real."""

from __future__ import annotations

import json
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
def finished(server, models_of):
    """`finished(name)` -> what became of that shared workflow on the photo it is made for; each is run once."""
    server.save_picture("astronaut.png", data.astronaut())
    done = {}

    def run(name: str) -> comfyui_server.Finished:
        if name not in done:
            models_of(workflow(name))
            done[name] = server.run(workflow(name))
        return done[name]

    return run


def picture(server, finished, name: str, kind: str) -> np.ndarray:
    """What the workflow's SaveImage node for matting/<kind> wrote."""
    nodes = workflow(name).items()
    saved = next(node_id for node_id, node in nodes if node["inputs"].get("filename_prefix") == f"matting/{kind}")
    (pixels,) = server.pictures(finished(name), saved)
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


def test_the_shared_workflows_are_offered_as_templates(server):
    offered = server.get("/api/workflow_templates")[comfyui_server.PACK_FOLDER]
    assert sorted(offered) == sorted(path.stem for path in WORKFLOWS.glob("*.json"))
