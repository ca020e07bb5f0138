"""Nothing is held twice and nothing is computed twice, and all of it goes when ComfyUI is told to free its memory."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from .graphs import (
    boxes,
    count_calls,
    embeddings_in_memory,
    loaders,
    models_in_memory,
    node,
    pictures,
    steps,
    whole,
)


@pytest.fixture
def models(comfyui):
    return comfyui.module("nodes.models")


@pytest.fixture
def encoded(comfyui, monkeypatch) -> list:
    """One entry per run of SAM's image encoder."""
    return count_calls(monkeypatch, comfyui.module("mam_model.sam").Sam, "encode_content")


@pytest.fixture
def decoded(comfyui, monkeypatch) -> list:
    return count_calls(monkeypatch, comfyui.module("mam_model.sam").Sam, "decode")


@pytest.fixture
def predicted(comfyui, monkeypatch) -> list:
    """One entry per target that Mask-to-Matte was run for, on the whole square or where the merge reads it."""
    calls = count_calls(monkeypatch, comfyui.module("mam_model.m2m").FoldedMaskToMatte, "forward")
    partial = comfyui.module("mam_model.partial").PartialPyramid
    return count_calls(monkeypatch, partial, "__init__", calls)


@pytest.fixture
def graph(tiny_sam, tiny_m2m, tensors):
    """`graph(picture, box, kind)`: a whole workflow, with the all-in-one node or with the steps."""
    sources = {}

    def build(picture: torch.Tensor, box: str = "5 5 40 40", kind=whole, **settings) -> dict:
        source = sources.setdefault(id(picture), (tensors(picture), picture))[0]
        return {"image": node(source), "prompt": boxes(box), **loaders(tiny_sam, tiny_m2m), **kind(**settings)}

    return build


def test_two_loaders_of_one_file_share_one_model(comfy, tiny_sam, tiny_m2m):
    two = {**loaders(tiny_sam, tiny_m2m), "sam again": node("MAM_LoadSAM", sam_name=tiny_sam, precision="fp32")}
    two["m2m again"] = node("MAM_LoadM2M", m2m_name=tiny_m2m, precision="fp32")
    two |= {f"see {name}": node("PreviewAny", source=(name, 0)) for name in list(two)}
    run = comfy.run(two)
    assert run.ok, run.error
    assert {"sam", "sam again", "m2m", "m2m again"} <= set(run.executed)
    assert run.output("sam") is run.output("sam again")
    assert run.output("m2m") is run.output("m2m again")
    assert len(models_in_memory(comfy)) == 2


def test_a_file_and_a_link_to_it_are_one_model(comfy, tiny_m2m):
    file = comfy.models_dir / "mam" / tiny_m2m
    link = file.with_name("link.pth")
    link.symlink_to(file)
    two = {name: node("MAM_LoadM2M", m2m_name=name, precision="fp32") for name in (tiny_m2m, link.name)}
    run = comfy.run(two | {f"see {name}": node("PreviewAny", source=(name, 0)) for name in two})
    link.unlink()
    assert run.ok, run.error
    assert run.output(tiny_m2m) is run.output(link.name)


def test_two_workflows_that_name_one_file_share_one_model(comfy, models, graph, tiny_sam):
    first = comfy.run(graph(pictures()))
    assert first.ok, first.error
    network = first.output("sam").network
    loader = node("MAM_LoadSAM", sam_name=tiny_sam, precision="fp32")
    second = comfy.run({"loader": loader, "see": node("PreviewAny", source=("loader", 0))})
    assert "loader" in second.executed
    assert second.output("loader").network is network


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_another_precision_is_another_model_of_half_the_size(comfy, models, tiny_sam, tiny_m2m, precision):
    two = {
        "exact": node("MAM_LoadM2M", m2m_name=tiny_m2m, precision="fp32"),
        "half": node("MAM_LoadM2M", m2m_name=tiny_m2m, precision=precision),
        "sam": node("MAM_LoadSAM", sam_name=tiny_sam, precision=precision),
    }
    two |= {f"see {name}": node("PreviewAny", source=(name, 0)) for name in list(two)}
    run = comfy.run(two)
    assert run.ok, run.error
    exact, half, sam = (run.output(name) for name in ("exact", "half", "sam"))
    assert exact is not half
    assert {p.dtype for p in exact.network.parameters()} == {torch.float32}
    assert {p.dtype for p in half.network.parameters()} == {models._DTYPES[precision]}
    assert {p.dtype for p in sam.network.image_encoder.parameters()} == {models._DTYPES[precision]}
    assert {p.dtype for p in sam.network.mask_decoder.parameters()} == {torch.float32}
    assert len(models_in_memory(comfy)) == 3


def test_encoding_asks_for_what_the_encoder_takes(comfy, graph, models, monkeypatch):
    asked = []

    def load(networks, size):
        asked.append((list(networks), size))
        models.load_together(networks, size)

    monkeypatch.setattr(comfy.module("nodes.embeddings"), "load_together", load)
    run = comfy.run(graph(pictures(), kind=steps))
    assert run.ok, run.error
    sam = run.output("sam")
    assert asked == [([sam], sam.network.image_encoder.working_bytes(4))]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_gives_nearly_the_same_matte(comfy, graph, precision):
    workflow = graph(pictures())
    exact = comfy.run(workflow).output("mattes").clone()
    for loader in ("sam", "m2m"):
        workflow[loader]["inputs"]["precision"] = precision
    run = comfy.run(workflow)
    assert run.ok, run.error
    # The tiny networks are noise, whose masks flip where they are undecided; trained ones are steadier.
    assert (run.output("mattes") - exact).abs().mean() < 0.1


def test_a_picture_is_encoded_in_each_precision_that_is_asked_for(comfy, graph, encoded, tiny_sam):
    again = {
        "half": node("MAM_LoadSAM", sam_name=tiny_sam, precision="bf16"),
        "again": node("MAM_EncodeImage", sam=("half", 0), image=("image", 0)),
        "see again": node("PreviewAny", source=("again", 0)),
    }
    run = comfy.run(graph(pictures(), kind=steps) | again)
    assert run.ok, run.error
    assert len(encoded) == 2
    exact, half = (run.output(name)[0].embedding.features for name in ("embedding", "again"))
    assert not torch.equal(exact, half)


def test_a_picture_that_is_asked_for_again_and_again_pushes_no_other_out(comfy, models, tiny_sam, encoded):
    embedding_of, sam = comfy.module("nodes.embeddings").embedding_of, models.shared_sam(tiny_sam, "fp32")
    once, often = pictures(2)
    for picture in (once, *[often] * 8, once):
        embedding_of(picture, sam)
    assert len(encoded) == 2


def test_embeddings_do_not_stay_on_the_graphics_card(comfyui):
    kept, content = torch.zeros(1, 256, 4, 4), torch.zeros(64, 64, 3, dtype=torch.uint8)
    on_card = SimpleNamespace(features=SimpleNamespace(cpu=lambda: kept), content=content, frame=None)
    features, _ = comfyui.module("nodes.embeddings").PictureEmbedding(on_card)
    assert features is kept


def test_freeing_memory_lets_go_of_models_and_embeddings(comfy, graph):
    for kind in (whole, steps):
        run = comfy.run(graph(pictures(), kind=kind))
        assert run.ok, run.error
        assert len(models_in_memory(comfy)) == 2
        assert len(embeddings_in_memory(comfy)) == 1
        del run
        comfy.reset()
        assert models_in_memory(comfy) == []
        assert embeddings_in_memory(comfy) == []


def test_models_are_known_to_comfyuis_memory_management(comfy, graph):
    from comfy.model_management import current_loaded_models

    run = comfy.run(graph(pictures()))
    loaded = [model.model for model in current_loaded_models]
    assert run.output("sam").patcher in loaded
    assert run.output("m2m").patcher in loaded


@pytest.mark.parametrize("kind", [whole, steps])
def test_a_changed_prompt_does_not_encode_again(comfy, graph, encoded, predicted, kind):
    picture = pictures()
    first = comfy.run(graph(picture, "5 5 40 40", kind))
    assert first.ok and len(encoded) == 1
    result = "mattes" if kind is whole else "merged"
    before = first.output(result).clone()
    second = comfy.run(graph(picture, "20 5 60 45", kind))
    assert second.ok and result in second.executed
    assert len(encoded) == 1
    assert len(predicted) == 2
    assert not torch.equal(second.output(result), before)


def test_the_all_in_one_node_and_the_steps_encode_a_picture_once_between_them(comfy, graph, encoded):
    picture = pictures()
    both = {**graph(picture), **graph(picture, kind=steps)}
    both["also shown"] = node("MaskPreview", mask=("mattes", 0))
    run = comfy.run({**both, "mattes": whole()["mattes"]})
    assert run.ok, run.error
    assert {"mattes", "embedding"} <= set(run.executed)
    assert len(encoded) == 1


def test_two_workflows_with_the_same_picture_encode_it_once(comfy, graph, encoded, tensors):
    picture = pictures()
    assert comfy.run(graph(picture)).ok
    twin = picture.clone()
    second = comfy.run(graph(twin))
    assert second.ok and "mattes" in second.executed
    assert len(encoded) == 1


def test_a_picture_that_comes_twice_in_a_batch_is_encoded_once(comfy, graph, encoded):
    one, other = pictures(2, seed=3)
    run = comfy.run(graph(torch.stack((one, other, one))))
    assert run.ok and len(encoded) == 2
    assert torch.equal(run.output("mattes")[0], run.output("mattes")[2])
    assert not torch.equal(run.output("mattes")[0], run.output("mattes")[1])


@pytest.mark.parametrize("kind", [whole, steps])
def test_a_different_picture_is_encoded_once_more(comfy, graph, encoded, kind):
    assert comfy.run(graph(pictures(seed=1), kind=kind)).ok
    assert comfy.run(graph(pictures(seed=2), kind=kind)).ok
    assert len(encoded) == 2


def test_one_changed_pixel_is_another_picture(comfy, graph, encoded):
    picture = pictures()
    touched = picture.clone()
    touched[0, 10, 10] = 1 - touched[0, 10, 10].round()
    assert comfy.run(graph(picture)).ok
    assert comfy.run(graph(touched)).ok
    assert len(encoded) == 2


def test_the_same_picture_for_another_sam_is_encoded_again(comfy, graph, encoded, place, tiny_sam_file):
    picture = pictures()
    workflow = graph(picture)
    assert comfy.run(workflow).ok
    twin = place(tiny_sam_file, comfy.models_dir / "sams", "twin_sam.pth")
    assert comfy.run({**workflow, "sam": node("MAM_LoadSAM", sam_name=twin.name)}).ok
    assert len(encoded) == 2


def test_pictures_that_look_alike_to_the_encoder_but_differ_in_size_get_mattes_of_their_own_size(comfy, graph):
    for height, width in ((40, 60), (80, 120)):
        run = comfy.run(graph(torch.full((1, height, width, 3), 0.5), "5 5 30 30"))
        assert run.output("mattes").shape == (1, height, width)


def test_a_changed_merge_width_runs_neither_sam_nor_mask_to_matte(comfy, graph, encoded, decoded, predicted):
    picture = pictures()
    assert comfy.run(graph(picture, kind=steps)).ok
    counts = len(encoded), len(decoded), len(predicted)
    assert counts == (1, 1, 1)
    run = comfy.run(graph(picture, kind=steps, width_os8=3))
    assert run.ok and run.executed and set(run.executed) == {"merged", "shown"}
    assert (len(encoded), len(decoded), len(predicted)) == counts


def test_an_unchanged_workflow_runs_nothing(comfy, graph):
    picture = pictures()
    workflow = graph(picture)
    assert comfy.run(workflow).ok
    assert comfy.run(workflow).executed == []


def test_a_sam_keeps_its_last_eight_embeddings_and_no_more(comfy, graph, encoded):
    run = comfy.run(graph(pictures(10, 24, 32)))
    assert run.ok and len(encoded) == 10
    assert len(embeddings_in_memory(comfy)) == 8


def test_a_file_that_was_replaced_is_loaded_anew(comfy, models, graph, tiny_m2m):
    import checkpoints

    picture = pictures()
    workflow = graph(picture)
    first = comfy.run(workflow)
    before, network = first.output("mattes").clone(), first.output("m2m").network
    file = comfy.models_dir / "mam" / tiny_m2m
    age = file.stat().st_mtime_ns
    checkpoints.save_tiny_m2m(file, seed=1)
    os.utime(file, ns=(age + 10**9, age + 10**9))
    second = comfy.run(workflow)
    assert second.ok, second.error
    assert "m2m" in second.executed and "sam" not in second.executed
    assert second.output("m2m").network is not network
    assert not torch.equal(second.output("mattes"), before)


def test_weights_survive_that_their_file_is_cut_short_while_they_are_in_use(comfy, graph, tiny_sam):
    """Nothing of a loaded model may still be mapped from the file."""
    picture = pictures()
    first = comfy.run(graph(picture)).output("mattes").clone()
    sam = comfy.latest.output("sam")
    with open(comfy.models_dir / "sams" / tiny_sam, "r+b") as file:
        file.truncate(10)
    content = comfy.module("mam_model.frame").Frame(48, 64, 256).shrink(picture[0])
    with torch.inference_mode():
        again = sam.network.encode_content(content, comfy.module("mam_model.frame").Frame(48, 64, 256))
    assert torch.isfinite(again.features).all() and torch.isfinite(first).all()
