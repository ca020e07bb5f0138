"""In-Context Matting: what one picture shows is cut out of all others, on ComfyUI's own MODEL, VAE and CLIP."""

from __future__ import annotations

import gc
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import diffusion_checkpoints
import pytest
import torch

from .graphs import boxes, count_calls, node, pictures, points

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "iconmatting"
FOLDER = "in_context_matting"


@pytest.fixture(scope="module")
def diffusion(comfyui, tiny_diffusion_file):
    """(MODEL, CLIP, VAE) of the small Stable Diffusion, loaded once for the module."""
    import comfy.sd

    with torch.inference_mode():
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(tiny_diffusion_file))
    return model, clip, vae


@pytest.fixture(scope="module")
def give(comfyui):
    """`give(type=value, ...)` -> a node without inputs that puts these values out: give(MODEL=model, CLIP=clip)."""
    from comfy_api.latest import io

    made = []

    def make(**values) -> dict:
        class GiveValues(io.ComfyNode):
            @classmethod
            def define_schema(cls):
                outputs = [io.Custom(kind).Output(kind.lower()) for kind in values]
                node_id = f"Test_Values_{len(made)}"
                return io.Schema(node_id=node_id, category="tests", inputs=[], outputs=outputs)

            @classmethod
            def execute(cls):
                return io.NodeOutput(*values.values())

        made.append(comfyui.add_node(GiveValues))
        return node(made[-1])

    yield make
    for node_id in made:
        comfyui.remove_node(node_id)


@pytest.fixture(scope="module")
def checkpoint(give, diffusion) -> dict:
    """A node that stands for Load Checkpoint."""
    model, clip, vae = diffusion
    return give(MODEL=model, CLIP=clip, VAE=vae)


@pytest.fixture(scope="module")
def decoder_name(comfyui, tiny_in_context_file) -> str:
    """Name of the tiny decoder in models/in_context_matting."""
    folder = comfyui.models_dir / FOLDER
    folder.mkdir(exist_ok=True)
    file = Path(shutil.copy(tiny_in_context_file, folder))
    yield file.name
    file.unlink()


@pytest.fixture(scope="module")
def warm_icm(comfyui, give, diffusion, decoder_name) -> dict:
    """A node that stands for Load In-Context Matting, whose text encoder has done its work."""
    model, clip, vae = diffusion
    decoder = comfyui.module("nodes.models").shared_in_context_decoder(decoder_name)
    with torch.inference_mode():
        backbone = comfyui.module("nodes.diffusion_backbone").DiffusionBackbone.of(
            model, vae, clip, decoder.network.config
        )
    return give(ICM_MODEL=comfyui.module("nodes.in_context").InContextModel(backbone, decoder))


@pytest.fixture
def loading(checkpoint, decoder_name):
    """`loading(**inputs)`: the nodes "checkpoint" and "icm"; a keyword replaces an input of the latter."""

    def build(**inputs) -> dict:
        links = {"model": ("checkpoint", 0), "clip": ("checkpoint", 1), "vae": ("checkpoint", 2)}
        return {
            "checkpoint": checkpoint,
            "icm": node("ICM_LoadModel", **{**links, "decoder_name": decoder_name, **inputs}),
        }

    return build


@pytest.fixture
def workflow(warm_icm, tensors):
    """`workflow(targets, reference=..., mask=..., at_once=..., **settings)`: from the model to the mattes.

    The reference is marked by a mask over its left half, unless a mask, a prompt node or None is given. Without targets
    the workflow ends with the reference.
    """

    def build(targets, *, reference=None, mask="left half", prompt=None, at_once=1, **settings) -> dict:
        reference = pictures(1, 96, 96, seed=9) if reference is None else reference
        graph = {"icm": warm_icm, "example": node(tensors(reference))}
        if isinstance(mask, str):
            mask = left_half(reference)
        if mask is not None:
            graph["mask"] = node(tensors(mask))
            settings["mask"] = ("mask", 0)
        if prompt is not None:
            graph["prompt"] = prompt
            settings["prompt"] = ("prompt", 0)
        icm = ("icm", 0)
        graph["reference"] = node("ICM_Reference", icm_model=icm, image=("example", 0), **{"ensemble": 1, **settings})
        graph["region"] = node("MaskPreview", mask=("reference", 1))
        if targets is not None:
            graph["targets"] = node(tensors(targets))
            graph["mattes"] = node(
                "ICM_Match",
                icm_model=icm,
                reference=("reference", 0),
                image=("targets", 0),
                pictures_at_once=at_once,
            )
            graph["shown"] = node("MaskPreview", mask=("mattes", 0))
        return graph

    return build


def left_half(images: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros(images.shape[:3])
    mask[..., : images.shape[2] // 2] = 1
    return mask


# From a file to mattes.


def test_a_checkpoint_file_and_one_example_matte_a_batch(comfy, tiny_diffusion_file, loading, workflow):
    folder = comfy.models_dir / "checkpoints"
    folder.mkdir(exist_ok=True)
    os.link(tiny_diffusion_file, folder / tiny_diffusion_file.name)
    graph = {**workflow(pictures(2, 48, 64)), **loading()}
    graph["checkpoint"] = node("CheckpointLoaderSimple", ckpt_name=tiny_diffusion_file.name)
    try:
        run = comfy.run(graph)
        assert run.ok, run.error
        alphas, similarity, index = (run.output("mattes", slot) for slot in range(3))
        assert alphas.shape == similarity.shape == (2, 48, 64)
        assert 0 <= alphas.min() < alphas.max() <= 1 and alphas.std() > 0.01
        assert 0 <= similarity.min() < similarity.max() <= 1
        assert not torch.equal(alphas[0], alphas[1])
        assert [(entry.frame, entry.index) for entry in index.entries] == [(0, 0), (1, 0)]
        assert len(run.ui["mattes"]["images"]) == 2 and len(run.ui["reference"]["images"]) == 1
    finally:
        comfy.reset()
        (folder / tiny_diffusion_file.name).unlink()


def test_other_targets_do_not_encode_the_reference_again(comfy, workflow, loading, tensors, diffusion, monkeypatch):
    graph = {**workflow(pictures(1)), **loading()}
    assert comfy.run(graph).ok
    encoded = count_calls(monkeypatch, diffusion[2], "encode")
    graph["targets"] = node(tensors(pictures(3, seed=4)))
    again = comfy.run(graph)
    assert again.ok and {"icm", "reference"} <= set(again.cached)
    assert again.output("mattes").shape == (3, 48, 64)
    assert len(encoded) == 3


def test_a_picture_goes_through_the_vae_once_however_large_its_ensemble(comfy, workflow, diffusion, monkeypatch):
    seen = []
    encode = diffusion[2].encode
    monkeypatch.setattr(diffusion[2], "encode", lambda pixels: (seen.append(len(pixels)), encode(pixels))[1])
    assert comfy.run(workflow(pictures(2), ensemble=3)).ok
    assert seen == [1, 1, 1]


def test_equal_pictures_have_equal_mattes_because_their_noise_is_the_same(comfy, workflow):
    targets = pictures(1).expand(2, -1, -1, -1).clone()
    run = comfy.run(workflow(targets, ensemble=2))
    alphas = run.output("mattes").clone()
    assert torch.equal(alphas[0], alphas[1])
    other = comfy.run(workflow(targets, ensemble=2, seed=1)).output("mattes")
    assert not torch.equal(alphas, other)


def test_pictures_matted_at_once_get_the_mattes_they_get_alone(comfy, workflow):
    targets = pictures(3)
    alone = comfy.run(workflow(targets, ensemble=2)).output("mattes").clone()
    together = comfy.run(workflow(targets, ensemble=2, at_once=2))
    torch.testing.assert_close(together.output("mattes"), alone, atol=1e-4, rtol=0)
    instances = together.output("mattes", 2)
    assert instances.frame_count == 3 and [entry.frame for entry in instances.entries] == [0, 1, 2]


def test_a_full_graphics_card_gets_fewer_pictures_at_once_and_decodes_on_the_processor(
    comfy, workflow, monkeypatch, said
):
    usual = comfy.run(workflow(pictures(3), ensemble=2)).output("mattes").clone()
    backbone = comfy.module("nodes.diffusion_backbone").DiffusionBackbone
    decoder = comfy.module("mam_model.in_context.decoder").InContextDecoder
    run, matte, asked = backbone.run, decoder.matte, []

    def run_if_it_fits(self, noisy, capture):
        asked.append(len(noisy) // 2)
        if asked[-1] > 1:
            raise torch.cuda.OutOfMemoryError("full")
        return run(self, noisy, capture)

    def matte_the_second_time(self, *args):
        monkeypatch.setattr(decoder, "matte", matte)
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr(backbone, "run", run_if_it_fits)
    monkeypatch.setattr(decoder, "matte", matte_the_second_time)
    mattes = comfy.run(workflow(pictures(3), ensemble=2, at_once=3)).output("mattes")
    torch.testing.assert_close(mattes, usual, atol=1e-4, rtol=0)
    # The reference comes first.
    assert asked == [1, 3, 1, 1, 1]
    assert ["on the processor" in line for line in said()] == [False, True]


def test_the_reference_decides_what_is_found(comfy, workflow):
    targets, example = pictures(1), pictures(1, 96, 96, seed=9)
    left = comfy.run(workflow(targets, reference=example)).output("mattes", 1).clone()
    right = comfy.run(workflow(targets, reference=example, mask=1 - left_half(example))).output("mattes", 1)
    assert (left - right).abs().max() > 0.05


def test_several_reference_pictures_make_one_reference(comfy, workflow):
    examples = pictures(2, 96, 96, seed=9)
    run = comfy.run(workflow(pictures(1), reference=examples))
    assert run.ok, run.error
    assert run.output("reference", 1).shape == (2, 96, 96)
    both = run.output("mattes").clone()
    assert len(run.ui["reference"]["images"]) == 2
    first = comfy.run(workflow(pictures(1), reference=examples[:1])).output("mattes")
    assert (both - first).abs().max() > 1e-4, "more than rounding"


# What the diffusion model is asked for.


def test_the_unet_is_left_as_soon_as_everything_was_seen(comfy, workflow, diffusion, monkeypatch):
    blocks = diffusion[0].model.diffusion_model.output_blocks
    ran = [count_calls(monkeypatch, block[0], "forward") for block in blocks]
    assert comfy.run(workflow(None)).ok
    # A reference marked by a mask: up to the input of block 6.
    assert [len(calls) for calls in ran] == [1] * 6 + [0] * 6
    assert comfy.run(workflow(pictures(1), prompt=points("20 20"))).ok
    # Reference and target here: up to the self-attention of block 8.
    assert [len(calls) for calls in ran] == [3] * 6 + [2] * 3 + [0] * 3


def test_patches_that_a_graph_puts_on_its_model_do_not_reach_the_features(comfy, workflow, loading):
    graph = {**workflow(pictures(1)), **loading()}
    plain = comfy.run(graph).output("mattes").clone()
    graph["free u"] = node("FreeU_V2", model=("checkpoint", 0), b1=1.4, b2=1.6, s1=0.9, s2=0.2)
    graph["tiles"] = node("HyperTile", model=("free u", 0), tile_size=64, swap_size=2, max_depth=1, scale_depth=False)
    graph["merged tokens"] = node("TomePatchModel", model=("tiles", 0), ratio=0.5)
    graph["guided"] = node("SelfAttentionGuidance", model=("merged tokens", 0), scale=0.5, blur_sigma=2.0)
    graph["icm"]["inputs"]["model"] = ("guided", 0)
    run = comfy.run(graph)
    assert run.ok, run.error
    assert torch.equal(run.output("mattes"), plain)


def test_a_lora_on_the_model_does_reach_the_features(comfy, workflow, loading, diffusion, give):
    model, clip, vae = diffusion
    graph = {**workflow(None), **loading()}
    plain = torch.cat(list(comfy.run(graph).output("reference")))
    patched = model.clone()
    patched.add_patches({"diffusion_model.input_blocks.0.0.weight": (torch.ones(320, 4, 3, 3),)}, 0.1)
    graph["checkpoint"] = give(MODEL=patched, CLIP=clip, VAE=vae)
    changed = torch.cat(list(comfy.run(graph).output("reference")))
    assert changed.shape == plain.shape and (changed - plain).abs().max() > 0.01


@pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the published system's numbers, ../shared/golden/iconmatting, are not on this machine"
)
def test_comfyuis_unet_gives_the_taps_and_the_alpha_of_the_published_system(comfyui):
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from safetensors import safe_open
    from safetensors.torch import load_file

    weights = GOLDEN / "unet_tiny_ldm.safetensors"
    with safe_open(weights, "pt") as file:
        config = json.loads(file.metadata()["unet_config"])
    unet = UNetModel(**config, operations=comfy.ops.disable_weight_init, attn_precision=torch.float32)
    unet.load_state_dict({key: tensor.float() for key, tensor in load_file(weights).items()})
    stored = {key: tensor.float() for key, tensor in load_file(GOLDEN / "tiny_io.safetensors").items()}
    taps, tapping = comfyui.module("mam_model.in_context.taps"), comfyui.module("nodes.diffusion_taps")

    def run(noisy, capture):
        step, context = torch.full((len(noisy),), 200.0), stored["ctx"].expand(len(noisy), -1, -1)
        unet(noisy, step, context=context, transformer_options=tapping.tapping_options(capture))

    with torch.inference_mode():
        target = taps.capture_taps(run, stored["x_src"], 2, taps.Wanted.TARGET)
        reference = taps.capture_taps(run, stored["x_ref"], 1, taps.Wanted.REFERENCE)
    close = torch.testing.assert_close
    # A processor without AVX-512 was 2e-5 away, in features as large as 10, and 3.2e-7 in the attention.
    close(target.coarse, stored["f24"], atol=5e-5, rtol=0)
    close(target.fine, stored["f48"], atol=5e-5, rtol=0)
    close(reference.fine, stored["ref48"], atol=5e-5, rtol=0)
    close(target.coarse_attention, stored["a24"].flatten(1, 2), atol=1e-6, rtol=0)
    close(target.fine_attention, stored["a48"].flatten(1, 2), atol=1e-6, rtol=0)

    decoder = comfyui.module("mam_model.checkpoint").load_in_context_decoder(GOLDEN / "decoder_tiny.safetensors")
    # A place of 16 x 16 pixels counts when the mask covers all of it.
    covered = -torch.nn.functional.max_pool2d(-stored["mask"], 16)[0, 0] > 0
    squares = ((stored["image"] + 1) / 2).movedim(1, -1)
    alpha, similarity = decoder.matte(target, squares, [reference.fine[0][:, covered].t()])
    close(similarity, stored["S"][:, 0], atol=1e-5, rtol=0)
    close(alpha, stored["alpha"][:, 0], atol=1e-5, rtol=0)


def test_comfyui_counts_all_three_networks_as_in_use(comfy, workflow, diffusion):
    from comfy.model_management import current_loaded_models
    from comfy.model_patcher import is_model_patcher_output

    model, _, vae = diffusion
    run = comfy.run(workflow(None))
    icm = run.output("icm")
    assert is_model_patcher_output(icm)
    assert icm.get_models() == [model, vae.patcher]
    in_memory = [loaded.model for loaded in current_loaded_models]
    assert all(any(one is patcher for one in in_memory) for patcher in (model, vae.patcher, icm.patcher))


def test_the_unet_is_given_scaled_latents_at_step_200_with_an_empty_text(comfy, diffusion, decoder_name, monkeypatch):
    model, clip, vae = diffusion
    decoder = comfy.module("nodes.models").shared_in_context_decoder(decoder_name)
    squares, given = pictures(2, 64, 64), {}

    def noting_what_is_given(noisy, steps, **settings):
        given.update(settings, steps=steps)

    monkeypatch.setattr(model.model.diffusion_model, "forward", noting_what_is_given)
    with torch.inference_mode():
        backbone = comfy.module("nodes.diffusion_backbone").DiffusionBackbone
        backbone = backbone.of(model, vae, clip, decoder.network.config)
        torch.testing.assert_close(backbone.encode(squares), vae.encode(squares) * 0.18215)
        backbone.run(torch.zeros(2, 4, 8, 8), SimpleNamespace(attention_blocks=()))
        empty = clip.encode_from_tokens(clip.tokenize("")).to(given["context"])
    assert given["steps"].tolist() == [200, 200]
    assert torch.equal(given["context"], empty.expand(2, -1, -1))


# Marking the reference, and pictures of any shape.


def test_the_region_shown_is_the_part_of_the_mask_that_counts(comfy, workflow):
    example = pictures(1, 256, 256)
    mask = torch.zeros(1, 256, 256)
    mask[:, 24:120, 40:200] = 1
    run = comfy.run(workflow(None, reference=example, mask=mask))
    expected = torch.zeros(1, 256, 256)
    expected[:, 32:112, 48:192] = 1
    assert torch.equal(run.output("reference", 1), expected)
    assert not run.output("reference", 0).reference.regions, "it would be in memory twice"


def test_mattes_carry_the_label_of_the_reference(comfy, workflow):
    labelled = node("MAM_PromptMask", mask=("mask", 0), label="cat")
    run = comfy.run(workflow(pictures(2), prompt=labelled))
    assert run.ok, run.error
    assert [(entry.frame, entry.label) for entry in run.output("mattes", 2).entries] == [(0, "cat"), (1, "cat")]


def test_the_reference_keeps_its_settings_for_the_targets_and_its_tokens_where_comfyui_counts_them(comfy, workflow):
    kept = comfy.run(workflow(None, ensemble=2, seed=7, fit="crop")).output("reference")
    assert (kept.reference.ensemble, kept.reference.seed, kept.reference.fit) == (2, 7, "crop")
    assert len(kept) == 1 and kept[0] is kept.reference.tokens[0]


@pytest.mark.parametrize("reach", [0, 5])
def test_a_point_marks_its_place_and_as_many_others_as_it_may_reach(comfy, workflow, reach):
    example = pictures(1, 256, 256)
    run = comfy.run(workflow(None, reference=example, mask=None, prompt=points("70 100"), reach=reach))
    assert run.ok, run.error
    region = run.output("reference", 1)
    assert region[0, 100, 70] == 1
    places = int(region.sum()) // 256
    assert places == 1 if reach == 0 else 5 <= places <= 6


def test_all_targets_of_a_prompt_are_one_subject(comfy, workflow, give):
    prompt = comfy.module("mam_model.prompt")
    places_px = [(70.0, 100.0), (200.0, 40.0)]
    targets = tuple(prompt.Prompt(points_px=(place,), labels=(1,)) for place in places_px)
    two = give(MAM_PROMPT=prompt.PromptSet((targets,)))
    run = comfy.run(workflow(None, reference=pictures(1, 256, 256), mask=None, prompt=two, reach=0))
    assert run.ok, run.error
    region = run.output("reference", 1)[0]
    assert all(region[int(y), int(x)] == 1 for x, y in places_px) and region.sum() == 2 * 256


def test_strokes_of_a_prompt_and_of_a_mask_mark_alike(comfy, workflow, tensors):
    example = pictures(1, 256, 256)
    stroke = torch.zeros(1, 256, 256)
    stroke[:, 60:64, 30:150] = 1
    prompt = node("MAM_PromptMask", foreground_strokes=("stroke", 0))
    graph = workflow(None, reference=example, mask=None, prompt=prompt)
    by_prompt = comfy.run({**graph, "stroke": node(tensors(stroke))}).output("reference", 1).clone()
    by_mask = comfy.run(workflow(None, reference=example, mask=stroke, mask_is="strokes")).output("reference", 1)
    assert torch.equal(by_prompt, by_mask)
    assert by_mask[0, 60:64, 30:150].min() == 1


def test_the_blank_mask_of_load_image_says_nothing_beside_a_prompt(comfy, workflow, tensors):
    example = pictures(1, 96, 96)
    graph = workflow(
        None, reference=example, mask=torch.zeros(1, 64, 64), prompt=node("MAM_PromptMask", mask=("drawn", 0))
    )
    run = comfy.run({**graph, "drawn": node(tensors(left_half(example)))})
    assert run.ok, run.error
    assert run.output("reference", 1).any()


@pytest.mark.parametrize("fit", ["pad", "stretch", "crop"])
@pytest.mark.parametrize("size", [(40, 120), (150, 60)], ids=["wide", "tall"])
def test_reference_and_targets_may_differ_in_size_and_shape(comfy, workflow, fit, size):
    run = comfy.run(workflow(pictures(2, *size), reference=pictures(1, 100, 130, seed=9), fit=fit))
    assert run.ok, run.error
    alphas = run.output("mattes")
    assert alphas.shape == (2, *size)
    assert run.output("reference", 1).shape == (1, 100, 130)
    seen = alphas.amax(0) > 0
    shorter = min(size)
    shown = seen.float().mean()
    if fit == "crop":
        assert shown <= shorter / max(size) + 1e-6 and seen[size[0] // 2, size[1] // 2]
        assert not seen[0, 0] and not seen[-1, -1]
    else:
        assert shown > 0.9


# Batches.


def test_every_picture_is_a_step_of_progress(comfy, workflow):
    run = comfy.run(workflow(pictures(3), reference=pictures(2, 96, 96)))
    for node_id, count in (("reference", 2), ("mattes", 3)):
        steps = [value for name, value, total in run.progress if name == node_id and total == count]
        assert steps[-count:] == list(range(1, count + 1))


def test_a_cancelled_batch_stops_within_one_step(comfy, workflow, diffusion, monkeypatch):
    graph = workflow(pictures(6))
    assert comfy.run({name: graph[name] for name in graph if name not in ("mattes", "shown", "targets")}).ok
    encoded = count_calls(monkeypatch, diffusion[2], "encode")
    run = comfy.run(graph, interrupt_after=3)
    assert run.interrupted and run.failed_node == "mattes"
    assert len(encoded) <= 3


def test_cancelling_stops_a_pass_through_the_unet_before_its_end(comfy, workflow, diffusion, monkeypatch):
    import nodes

    graph = workflow(pictures(1))
    assert comfy.run({name: graph[name] for name in graph if name not in ("mattes", "shown", "targets")}).ok
    blocks = diffusion[0].model.diffusion_model.input_blocks
    forward = blocks[2][0].forward
    monkeypatch.setattr(blocks[2][0], "forward", lambda *args: (nodes.interrupt_processing(), forward(*args))[1])
    later = count_calls(monkeypatch, blocks[8][0], "forward")
    run = comfy.run(graph)
    assert run.interrupted and later == []


def numbers_in_memory() -> int:
    gc.collect()
    return sum(x.numel() for x in gc.get_objects() if isinstance(x, torch.Tensor))


@pytest.mark.slow
def test_five_hundred_targets_need_no_more_memory_than_their_mattes(comfy, workflow, monkeypatch):
    """The UNet is replaced by one that is quick; every network's results are dropped before the next picture."""
    backbone = comfy.module("nodes.diffusion_backbone").DiffusionBackbone
    blocks = comfy.module("mam_model.in_context.taps")
    features = {"coarse": torch.randn(1, 320, 8, 8), "fine": torch.randn(1, 320, 16, 16)}
    scores = {"coarse": torch.randn(1, 64, 8), "fine": torch.randn(1, 256, 8)}
    held = []

    def run(self, noisy, capture):
        held.append(numbers_in_memory() if len(held) % 100 == 50 else 0)
        for block in capture.feature_blocks:
            capture.features(block, features[blocks.FEATURE_BLOCKS[block]].clone())
        for block in capture.attention_blocks:
            grid = scores[blocks.ATTENTION_BLOCKS[block]]
            capture.attention(block, grid, grid, 2)

    graph = workflow(pictures(500, 16, 16))
    assert comfy.run({name: graph[name] for name in graph if name not in ("mattes", "shown", "targets")}).ok
    monkeypatch.setattr(backbone, "run", run)
    monkeypatch.setattr(backbone, "encode", lambda self, squares: torch.zeros(len(squares), 4, 32, 32))
    done = comfy.run(graph)
    assert done.ok, done.error
    assert done.output("mattes").shape == (500, 16, 16)
    counted = [numbers for numbers in held if numbers]
    assert len(counted) == 5 and max(counted) - min(counted) < 256


# What is refused, and how it is said.


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (None, "Connect a mask or a prompt"),
        (torch.zeros(1, 96, 96), "what the subject is"),
        (torch.zeros(1, 64, 64), "what the subject is"),
        (torch.ones(1, 50, 96), "The mask is 96 x 50 pixels but the picture is 96 x 96"),
        (torch.eye(96)[None], "too small or too thin"),
        (torch.full((1, 96, 96), float("nan")), "NaN"),
    ],
    ids=["none", "empty", "blank of Load Image", "of another size", "a thin line", "not numbers"],
)
def test_a_reference_without_a_usable_mask_is_refused(comfy, workflow, mask, sentence):
    run = comfy.run(workflow(None, mask=mask))
    assert not run.ok and run.failed_node == "reference"
    assert sentence in run.error


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        (points("", "20 20"), "what the subject is"),
        (boxes("10 10 60 60"), "a box"),
        (boxes(""), "what the subject is"),
        (points("500 20"), "outside the picture"),
    ],
    ids=["only beside it", "a box alone", "nothing", "outside"],
)
def test_a_prompt_that_marks_nothing_is_refused(comfy, workflow, prompt, sentence):
    run = comfy.run(workflow(None, mask=None, prompt=prompt))
    assert not run.ok and run.failed_node == "reference"
    assert sentence in run.error


def test_a_point_outside_of_the_crop_is_refused(comfy, workflow):
    example = pictures(1, 60, 200)
    run = comfy.run(workflow(None, reference=example, mask=None, prompt=points("5 30"), fit="crop"))
    assert not run.ok and "crop" in run.error


def test_masks_for_another_number_of_pictures_are_refused(comfy, workflow):
    run = comfy.run(workflow(None, reference=pictures(3, 96, 96), mask=torch.ones(2, 96, 96)))
    assert not run.ok and "3 frames of image but 2 of mask" in run.error


def test_a_batch_without_targets_is_refused(comfy, workflow):
    run = comfy.run(workflow(torch.zeros(0, 48, 64, 3)))
    assert not run.ok and run.failed_node == "mattes"
    assert "at least one picture" in run.error


def test_a_target_that_is_no_picture_is_refused(comfy, workflow):
    targets = pictures(2)
    targets[1, 3, 3] = float("nan")
    run = comfy.run(workflow(targets))
    assert not run.ok and "NaN" in run.error


def test_a_reference_of_another_model_is_refused(comfy, workflow, loading, diffusion, give):
    _, clip, vae = diffusion
    patched = diffusion[0].clone()
    patched.add_patches({"diffusion_model.out.2.bias": (torch.ones(4),)}, 1.0)
    graph = {**workflow(pictures(1)), "other checkpoint": give(MODEL=patched, CLIP=clip, VAE=vae)}
    links = {name: ("other checkpoint", slot) for slot, name in enumerate(("model", "clip", "vae"))}
    graph["other"] = loading(**links)["icm"]
    graph["mattes"]["inputs"]["icm_model"] = ("other", 0)
    run = comfy.run(graph)
    assert not run.ok and run.failed_node == "mattes"
    assert "made with another model" in run.error


def test_a_decoder_that_is_not_there_is_refused_before_anything_runs(comfy, workflow, loading):
    run = comfy.run({**workflow(None), **loading(decoder_name="absent.ckpt")})
    assert not run.ok and run.executed == []
    assert 'no "absent.ckpt" in models/in_context_matting' in run.error


def test_a_file_that_is_no_decoder_is_named(comfy, workflow, loading, place, tiny_m2m_file):
    wrong = place(tiny_m2m_file, comfy.models_dir / FOLDER, "wrong.pth").name
    run = comfy.run({**workflow(None), **loading(decoder_name=wrong)})
    assert not run.ok and run.failed_node == "icm"
    assert "wrong.pth is Mask-to-Matte" in run.error


def test_a_decoder_for_other_features_is_refused(comfy, workflow, loading):
    weights = diffusion_checkpoints.in_context_decoder_weights(feature_channels=64)
    file = comfy.models_dir / FOLDER / "other features.ckpt"
    torch.save(weights, file)
    run = comfy.run({**workflow(None), **loading(decoder_name=file.name)})
    file.unlink()
    assert not run.ok and run.failed_node == "icm"
    assert "64 channels" in run.error and "320" in run.error


# The diffusion models that people have.


def unet_config(**changes) -> dict:
    """ComfyUI's description of Stable Diffusion 2.1's UNet, with changes."""
    return {
        "context_dim": 1024,
        "model_channels": 320,
        "in_channels": 4,
        "out_channels": 4,
        "adm_in_channels": None,
        "use_linear_in_transformer": True,
        "use_temporal_attention": False,
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "use_spatial_transformer": True,
        "legacy": False,
        "image_size": 32,
        **changes,
    }


XL = {
    "context_dim": 2048,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "channel_mult": [1, 2, 4],
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
}


@pytest.fixture
def model_of(comfyui):
    """`model_of(config)`: the MODEL that ComfyUI makes of a UNet's description, without weights."""
    import comfy.model_base
    import comfy.model_detection
    import comfy.model_patcher

    def build(config: dict, kind=None):
        found = comfy.model_detection.model_config_from_unet_config(config, {})
        found.set_inference_dtype(torch.float32, None)
        kind = kind or comfy.model_base.ModelType.V_PREDICTION
        model = comfy.model_base.BaseModel(found, kind, device="meta")
        return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))

    return build


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"context_dim": 768, "use_linear_in_transformer": False}, "Stable Diffusion 1"),
        (XL, "Stable Diffusion XL"),
        ({"in_channels": 9}, "an inpainting model"),
        ({"in_channels": 5}, "a model that is guided by a second picture, such as depth"),
        ({"adm_in_channels": 2048, "num_classes": "sequential"}, "an unCLIP model"),
    ],
    ids=["1.5", "XL", "inpainting", "depth", "unCLIP"],
)
def test_another_diffusion_model_is_refused_by_name(comfy, workflow, loading, model_of, diffusion, give, changes, said):
    model, (_, clip, vae) = model_of(unet_config(**changes)), diffusion
    graph = {**workflow(None), **loading(), "checkpoint": give(MODEL=model, CLIP=clip, VAE=vae)}
    run = comfy.run(graph)
    assert not run.ok and run.failed_node == "icm"
    assert f"The checkpoint is {said}." in run.error
    assert "Get v2-1_768-ema-pruned.safetensors" in run.error


def test_a_model_that_is_no_stable_diffusion_is_refused(comfy, workflow, loading, diffusion, give, monkeypatch):
    model, clip, vae = diffusion
    monkeypatch.setattr(model.model.model_config, "unet_config", {"image_model": "flux", "in_channels": 16})
    run = comfy.run({**workflow(None), **loading(), "checkpoint": give(MODEL=model, CLIP=clip, VAE=vae)})
    assert not run.ok and run.failed_node == "icm"
    assert "The checkpoint is no Stable Diffusion 2.1." in run.error


def test_the_real_unet_is_taken_for_what_it_is(comfyui, model_of):
    check = comfyui.module("nodes.diffusion_backbone")._check_unet
    published = comfyui.module("mam_model.in_context.decoder").DecoderConfig()
    check(model_of(unet_config()), published)


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        ({}, None),
        ({"context": 768, "linear": False}, "Stable Diffusion 1"),
        ({"in_channels": 9}, "an inpainting model"),
    ],
    ids=["2.1", "1.5", "inpainting"],
)
def test_a_diffusion_model_is_known_by_its_weights(comfyui, shapes, kind):
    """1.5 has features and attention maps of the very shapes that the decoder takes."""
    from comfy.model_detection import model_config_from_unet

    weights = diffusion_checkpoints.unet_weights((320, 640, 1280, 1280), **shapes)
    found = model_config_from_unet({name: torch.empty(w.shape, device="meta") for name, w in weights.items()}, "")
    assert comfyui.module("nodes.diffusion_backbone")._kind_of(found.unet_config) == kind


@pytest.mark.slow
def test_the_base_model_of_a_file_is_told_from_the_one_that_predicts_v(comfyui, diffusion, tmp_path):
    from comfy.model_base import ModelType
    from comfy.sd import load_checkpoint_guess_config

    base = diffusion_checkpoints.save_diffusion_checkpoint(tmp_path / "base.safetensors", v_prediction=False)
    with torch.inference_mode():
        model, *_ = load_checkpoint_guess_config(str(base), output_vae=False, output_clip=False)
    base.unlink()
    assert model.model.model_type == ModelType.EPS
    assert diffusion[0].model.model_type == ModelType.V_PREDICTION


def test_the_base_model_is_refused_by_name(comfy, workflow, loading, diffusion, monkeypatch):
    from comfy.model_base import ModelType

    monkeypatch.setattr(diffusion[0].model, "model_type", ModelType.EPS)
    run = comfy.run({**workflow(None), **loading()})
    assert not run.ok and run.failed_node == "icm"
    assert "The checkpoint is the 512-pixel base model of Stable Diffusion 2." in run.error
    assert "Get v2-1_768-ema-pruned.safetensors" in run.error


@pytest.mark.parametrize("missing", ["CLIP", "VAE"])
def test_a_checkpoint_without_text_encoder_or_vae_is_refused(comfy, workflow, loading, diffusion, give, missing):
    from comfy.sd import VAE

    model, clip, vae = diffusion
    # What Load Checkpoint puts out for what is not in the file.
    parts = {
        "MODEL": model,
        "CLIP": None if missing == "CLIP" else clip,
        "VAE": VAE(sd={}) if missing == "VAE" else vae,
    }
    run = comfy.run({**workflow(None), **loading(), "checkpoint": give(**parts)})
    assert not run.ok and run.failed_node == "icm"
    assert f"holds no {'text encoder' if missing == 'CLIP' else 'VAE'}" in run.error


def test_a_vae_of_another_kind_of_latents_is_refused(comfy, workflow, loading, diffusion, give, monkeypatch):
    monkeypatch.setattr(diffusion[2], "latent_channels", 16)
    run = comfy.run({**workflow(None), **loading()})
    assert not run.ok and run.failed_node == "icm"
    assert "latents of 16 channels" in run.error


def test_a_vae_that_makes_pictures_smaller_than_stable_diffusions_is_refused(
    comfy, workflow, loading, diffusion, monkeypatch
):
    monkeypatch.setattr(diffusion[2], "spacial_compression_encode", lambda: 16)
    run = comfy.run({**workflow(None), **loading()})
    assert not run.ok and run.failed_node == "icm"
    assert "16 times smaller than the picture" in run.error


def test_the_text_encoder_of_another_model_is_refused(comfy, workflow, loading, diffusion, give):
    model, _, vae = diffusion
    clip = SimpleNamespace(tokenize=str, encode_from_tokens=lambda _: torch.zeros(1, 77, 768))
    run = comfy.run({**workflow(None), **loading(), "checkpoint": give(MODEL=model, CLIP=clip, VAE=vae)})
    assert not run.ok and run.failed_node == "icm"
    assert "gives 768 channels where Stable Diffusion 2.1 needs 1024" in run.error
