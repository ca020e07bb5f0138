"""A real server over HTTP, as a browser speaks to it: from the workflow that is sent to the picture that comes back."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error

import comfyui_server
import numpy as np
import pytest

OUR_NODES = {
    "MAM_LoadSAM",
    "MAM_LoadM2M",
    "MAM_CompileSAM",
    "MAM_PromptPoints",
    "MAM_PromptBoxes",
    "MAM_PromptMask",
    "MAM_CombinePrompts",
    "MAM_EncodeImage",
    "MAM_Segment",
    "MAM_MaskToMatte",
    "MAM_RefineMerge",
    "MAM_MattingAnything",
    "MAM_MatteWithoutModels",
    "MAM_Composite",
    "MAM_PreviewMatte",
}


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def blots(height: int = 64, width: int = 96) -> np.ndarray:
    """A picture uint8 [height, width, 3]: an orange disc on blue, with some texture."""
    rows, columns = np.mgrid[:height, :width]
    inside = ((rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (height / 3) ** 2)[..., None]
    picture = np.where(inside, (240, 140, 20), (20, 60, 150)) + 8 * np.sin(columns / 3)[..., None]
    return picture.clip(0, 255).astype(np.uint8)


@pytest.fixture
def matting(server, tiny_sam, tiny_m2m) -> dict:
    """The whole way: file -> SAM -> Mask-to-Matte -> cut-out and composite as files, with both kinds of nodes."""
    return {
        "image": node("LoadImage", image=server.save_picture("blots.png", blots())),
        "sam": node("MAM_LoadSAM", sam_name=tiny_sam),
        "m2m": node("MAM_LoadM2M", m2m_name=tiny_m2m),
        "prompt": node("MAM_PromptBoxes", boxes="24 8 72 56"),
        "mattes": node("MAM_MattingAnything", sam=["sam", 0], m2m=["m2m", 0], image=["image", 0], prompt=["prompt", 0]),
        "embedding": node("MAM_EncodeImage", sam=["sam", 0], image=["image", 0]),
        "guidance": node("MAM_Segment", sam=["sam", 0], embedding=["embedding", 0], prompt=["prompt", 0]),
        "pyramid": node("MAM_MaskToMatte", m2m=["m2m", 0], embedding=["embedding", 0], guidance=["guidance", 0]),
        "merged": node("MAM_RefineMerge", alphas=["pyramid", 0]),
        "composite": node("MAM_Composite", image=["image", 0], alpha=["mattes", 0], edge_color="as photographed"),
        "cutout": node("SaveImage", images=["composite", 1], filename_prefix="cutout"),
        "saved": node("SaveImage", images=["composite", 0], filename_prefix="composite"),
        "matte": node("MaskPreview", mask=["mattes", 0]),
        "matte of the steps": node("MaskPreview", mask=["merged", 0]),
    }


def without_models(server) -> dict:
    return {
        "image": node("LoadImage", image=server.save_picture("blots.png", blots())),
        "prompt": node("MAM_PromptPoints", positive="48 32", negative="4 4"),
        "mattes": node("MAM_MatteWithoutModels", image=["image", 0], prompt=["prompt", 0], method="none"),
        "preview": node("MAM_PreviewMatte", image=["image", 0], alpha=["mattes", 0], view="alpha"),
    }


LOAD_THE_PACK = """
import asyncio, importlib, json, sys
comfyui, base, pack = sys.argv[1:]
sys.path.insert(0, comfyui)
sys.argv = ["main.py", "--cpu", "--base-directory", base]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.cli_args, nodes, server
loop = asyncio.new_event_loop()
server.PromptServer(loop)
loop.run_until_complete(nodes.init_public_apis())
before = set(sys.modules)
assert loop.run_until_complete(nodes.load_custom_node(pack)), "the pack did not load"
for node_id, node_class in nodes.NODE_CLASS_MAPPINGS.items():
    if node_id.startswith("MAM_"):
        node_class.GET_NODE_INFO_V1()
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_loading_the_pack_loads_none_of_the_heavy_modules(server, tmp_path):
    """In a ComfyUI of its own, where no workflow has run yet."""
    for folder in ("input", "output", "models"):
        (tmp_path / folder).mkdir()
    pack = server.base / "custom_nodes" / comfyui_server.PACK_FOLDER
    command = [sys.executable, "-c", LOAD_THE_PACK, str(server.comfyui), str(tmp_path), str(pack)]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert told.returncode == 0, told.stderr
    loaded = set(json.loads(told.stdout.splitlines()[-1]))
    assert any(name.endswith("matting-anything.nodes.loaders") for name in loaded)
    heavy = {"cv2", "pymatting", "numba", "segment_anything", "transformers", "skimage", "scipy"}
    assert not heavy & {name.partition(".")[0] for name in loaded}


def test_every_node_is_offered_with_its_texts(server):
    info = server.get("/object_info")
    ours = {name: facts for name, facts in info.items() if facts["python_module"] == "custom_nodes.matting-anything"}
    assert OUR_NODES <= set(ours)
    for name, facts in ours.items():
        assert facts["category"] == "image/matting", name
        assert facts["description"] and facts["search_aliases"], name
        assert len(facts["output_tooltips"]) == len(facts["output"]) and all(facts["output_tooltips"]), name
        for group in ("required", "optional"):
            for widget, (_, options) in facts["input"].get(group, {}).items():
                assert "tooltip" in json.dumps(options), f"{name}.{widget}"


def test_files_and_published_names_are_offered_by_the_loaders(server, tiny_sam, tiny_m2m):
    for node_id, widget, name, published in (
        ("MAM_LoadSAM", "sam_name", tiny_sam, "sam_vit_h_4b8939.pth"),
        ("MAM_LoadM2M", "m2m_name", tiny_m2m, "mam_sam_vitb.pth"),
    ):
        options = server.get(f"/object_info/{node_id}")[node_id]["input"]["required"][widget][1]["options"]
        assert options[0] == name and published in options[1:]


def test_a_workflow_gives_a_cut_out_with_its_matte_as_alpha(server, matting):
    finished = server.run(matting)
    assert finished.ok, finished.error
    (cutout,), (composite,) = server.pictures(finished, "cutout"), server.pictures(finished, "saved")
    (matte,), (steps,) = server.pictures(finished, "matte"), server.pictures(finished, "matte of the steps")
    photo = blots().astype(int)
    assert cutout.shape == (64, 96, 4) and composite.shape == (64, 96, 3)
    alpha = cutout[..., 3].astype(int)
    assert alpha.max() > 100 and len(np.unique(alpha)) > 20
    assert np.array_equal(alpha, matte[..., 0])
    assert np.array_equal(steps, matte)
    assert np.abs(cutout[..., :3].astype(int) - photo).max() <= 1
    green = np.array((0x00, 0xB1, 0x40))
    expected = (alpha[..., None] * photo + (255 - alpha[..., None]) * green) / 255
    assert np.abs(composite - expected).max() <= 2


def test_every_step_sends_a_picture_of_its_work(server, matting):
    finished = server.run(matting)
    for name in ("mattes", "embedding", "guidance", "pyramid", "merged"):
        (picture,) = server.pictures(finished, name)
        assert picture.std() > 3, name


def test_the_engine_without_models_finds_the_disc(server):
    finished = server.run(without_models(server))
    assert finished.ok, finished.error
    (matte,) = server.pictures(finished, "preview")
    rows, columns = np.mgrid[:64, :96]
    inside = (rows - 32) ** 2 + (columns - 48) ** 2 < (64 / 3) ** 2
    assert np.abs(matte[..., 0] / 255 - inside).mean() < 0.03


def only(graph: dict, name: str) -> dict:
    """The nodes that lead to one node. With further outputs the server would run those that it can."""
    kept = {name: graph[name]}
    for value in graph[name]["inputs"].values():
        if isinstance(value, list):
            kept |= only(graph, value[0])
    return kept


def refusal_of(server, prompt: dict) -> tuple[int, dict]:
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.post("/prompt", {"prompt": prompt})
    return refused.value.code, json.load(refused.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("composite", "color", "greenish"), "'greenish' is not a colour"),
        (("sam", "sam_name", "absent.pth"), 'There is no "absent.pth" in models/sams'),
        (("m2m", "m2m_name", "absent.pth"), 'There is no "absent.pth" in models/mam'),
        (("mattes", "guidance_mode", "both"), "guidance_mode"),
        (("mattes", "width_os8", -1), "width_os8"),
    ],
)
def test_bad_input_is_refused_with_400_and_a_sentence(server, matting, change, says):
    changed, widget, value = change
    matting[changed]["inputs"][widget] = value
    status, answer = refusal_of(server, only(matting, "cutout"))
    assert status == 400
    sentences = [f"{e['message']} {e['details']}" for e in answer["node_errors"][changed]["errors"]]
    assert any(says in sentence for sentence in sentences), sentences


def test_a_missing_link_is_refused_with_400(server, matting):
    del matting["mattes"]["inputs"]["prompt"]
    status, answer = refusal_of(server, only(matting, "cutout"))
    assert status == 400 and answer["node_errors"]["mattes"]["errors"][0]["type"] == "required_input_missing"


def test_what_only_running_can_tell_names_the_node_and_the_remedy(server, matting):
    matting["prompt"]["inputs"]["boxes"] = "500 500 600 600"
    finished = server.run(matting)
    assert not finished.ok
    assert finished.failed_node in ("mattes", "guidance")
    assert "The box (500, 500, 600, 600) lies outside the picture, which is 96 x 64 pixels" in finished.error
    matting["prompt"]["inputs"]["boxes"] = "24 8 72 56"
    assert server.run(matting).ok


def test_a_changed_prompt_runs_only_what_depends_on_it(server, matting):
    assert server.run(matting).ok
    matting["prompt"]["inputs"]["boxes"] = "10 8 60 56"
    finished = server.run(matting)
    assert finished.ok, finished.error
    assert {"image", "sam", "m2m", "embedding"} <= set(finished.cached)
    assert {"prompt", "mattes", "guidance", "pyramid", "merged"} <= set(finished.executed)


def test_after_free_everything_runs_again_with_the_same_result(server, matting):
    first = server.run(matting)
    (before,) = server.pictures(first, "cutout")
    server.free()
    second = server.run(matting)
    assert second.ok, second.error
    assert {"sam", "m2m", "embedding", "mattes"} <= set(second.executed)
    assert np.array_equal(server.pictures(second, "cutout")[0], before)


def test_a_cancelled_workflow_ends_and_the_next_one_works(server, matting):
    many = only(matting, "matte")
    many["many"] = node("RepeatImageBatch", image=["image", 0], amount=200)
    many["mattes"] = node("MAM_MattingAnything", **{**matting["mattes"]["inputs"], "image": ["many", 0]})

    def cancel(kind, data):
        if kind == "progress_state" and data["nodes"].get("mattes", {}).get("value", 0) >= 1:
            server.interrupt()

    finished = server.run(many, on_event=cancel)
    assert not finished.ok and finished.failed_node == "mattes"
    assert [value for name, value, _ in finished.progress if name == "mattes"][-1] < 150
    assert server.run(matting).ok


def test_a_wrong_file_is_named_over_http_too(server, matting, place, tiny_m2m_file):
    wrong = place(tiny_m2m_file, server.models_dir / "sams", "really_m2m.pth")
    matting["sam"]["inputs"]["sam_name"] = wrong.name
    finished = server.run(matting)
    assert finished.failed_node == "sam"
    assert "really_m2m.pth is Mask-to-Matte" in finished.error and "Expected is SAM" in finished.error


def test_the_log_holds_no_complaint_about_the_pack(server, matting):
    assert server.run(matting).ok
    log = server.log_text()
    assert "IMPORT FAILED" not in log
    assert "memory leak" not in log.lower()


def test_a_refusal_is_told_in_sentences_by_the_client_of_the_quickstart(server, matting):
    matting["composite"]["inputs"]["color"] = "greenish"
    with pytest.raises(comfyui_server.PromptRefused, match="'greenish' is not a colour"):
        server.run(only(matting, "cutout"))
