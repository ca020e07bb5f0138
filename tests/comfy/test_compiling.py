"""Compile SAM: whoever is connected to it gets a compiled encoder and nobody else, and all of it is one SAM in memory.

Compiling takes long and is the subject of tests/model/test_image_encoder.py; here a stand-in notes who would compile.
"""

from __future__ import annotations

import gc
import logging
import shutil

import pytest
import torch

from .graphs import boxes, count_calls, embeddings_in_memory, loaders, models_in_memory, node, pictures, steps, whole


@pytest.fixture
def encoder(comfyui):
    return comfyui.module("mam_model.image_encoder")


@pytest.fixture
def models(comfyui):
    return comfyui.module("nodes.models")


@pytest.fixture
def compiled(encoder, monkeypatch) -> list:
    """Every block that went through torch.compile."""
    blocks = []

    def apply_to(block, x):
        blocks.append(block)
        block.apply_to(x)

    monkeypatch.setattr(encoder, "_compiled_apply_to", lambda: apply_to)
    return blocks


@pytest.fixture
def encoded(comfyui, monkeypatch) -> list:
    """One entry per run of SAM's image encoder."""
    return count_calls(monkeypatch, comfyui.module("mam_model.sam").Sam, "encode_content")


@pytest.fixture
def said(caplog):
    """What the user's log says of compiling and of full memory."""
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records if "Matting Anything: " in record.getMessage()]


@pytest.fixture
def graph(tiny_sam, tiny_m2m, tensors):
    """`graph(picture)`: a whole workflow with Compile SAM; `graph(picture, compile=False)`: without."""

    def build(picture: torch.Tensor, kind=whole, *, compile: bool = True) -> dict:
        made = {"image": node(tensors(picture)), "prompt": boxes("5 5 40 40"), **loaders(tiny_sam, tiny_m2m), **kind()}
        if compile:
            for user in made.values():
                user["inputs"].update({"sam": ("compiled", 0)} if "sam" in user["inputs"] else {})
            made["compiled"] = node("MAM_CompileSAM", sam=("sam", 0))
        return made

    return build


@pytest.mark.parametrize("kind", [whole, steps])
def test_the_encoder_is_compiled_and_the_matte_is_the_same(comfy, graph, compiled, kind):
    result = "mattes" if kind is whole else "merged"
    plain = comfy.run(graph(pictures(), kind, compile=False))
    assert plain.ok and compiled == []
    expected = plain.output(result).clone()
    del plain
    comfy.reset()
    run = comfy.run(graph(pictures(), kind))
    assert run.ok, run.error
    assert compiled == list(run.output("sam").network.image_encoder.blocks)
    assert torch.equal(run.output(result), expected)


def test_a_workflow_without_the_node_is_not_compiled_whatever_ran_before(comfy, graph, compiled):
    for seed, compile in enumerate((False, True, False, True)):
        run = comfy.run(graph(pictures(seed=seed), compile=compile))
        assert run.ok, run.error
        blocks = list(run.output("sam").network.image_encoder.blocks)
        assert compiled == (blocks if compile else [])
        del compiled[:]


def test_one_workflow_may_use_a_sam_both_ways(comfy, graph, compiled, tensors):
    both = graph(pictures(seed=1))
    both["other image"] = node(tensors(pictures(seed=2)))
    both["plain"] = node("MAM_EncodeImage", sam=("sam", 0), image=("other image", 0))
    both["seen"] = node("PreviewAny", source=("plain", 0))
    run = comfy.run(both)
    assert run.ok and {"mattes", "plain"} <= set(run.executed)
    assert len(compiled) == len(run.output("sam").network.image_encoder.blocks)


def test_compiled_or_not_it_is_one_sam_in_memory_and_a_picture_is_encoded_once(comfy, graph, compiled, encoded):
    assert comfy.run(graph(pictures(), compile=False)).ok
    run = comfy.run(graph(pictures()))
    assert run.ok and "mattes" in run.executed
    sam, view = run.output("sam"), run.output("compiled")
    assert view is not sam and not sam.compiled and view.compiled
    for shared in ("network", "patcher", "file", "dtype", "recent_embeddings"):
        assert getattr(view, shared) is getattr(sam, shared)
    assert len(encoded) == 1 and compiled == []
    assert len(models_in_memory(comfy)) == 2


def test_a_loader_finds_the_sam_that_only_a_compiled_one_holds(comfy, models, tiny_sam):
    view = models.shared_sam(tiny_sam, "fp32").compiling()
    gc.collect()
    assert models.shared_sam(tiny_sam, "fp32").network is view.network


def test_freeing_memory_lets_go_of_a_compiled_sam(comfy, graph, compiled):
    run = comfy.run(graph(pictures()))
    assert run.ok and compiled
    del run, compiled[:]
    comfy.reset()
    assert models_in_memory(comfy) == [] and embeddings_in_memory(comfy) == []


def test_where_compiling_fails_the_workflow_runs_and_the_log_says_so_once(comfy, graph, encoder, said, monkeypatch):
    from torch._dynamo.exc import TorchDynamoException

    tries = []

    def fail(block, x):
        x.zero_()
        tries.append(block)
        raise TorchDynamoException("Cannot find a working triton installation.")

    expected = comfy.run(graph(pictures(2), compile=False)).output("mattes").clone()
    comfy.reset()
    monkeypatch.setattr(encoder, "_compiled_apply_to", lambda: fail)
    run = comfy.run(graph(pictures(2)))
    assert run.ok and torch.equal(run.output("mattes"), expected)
    assert comfy.run(graph(pictures(seed=5))).ok
    assert len(tries) == 1
    assert len(said()) == 1 and "working triton" in said()[0]


def test_a_workflow_is_cancelled_between_two_compiled_blocks(comfy, graph, models, compiled, said, monkeypatch):
    asked = []

    def cancel():
        asked.append(None)
        if len(compiled) == 1:
            raise models.comfy.model_management.InterruptProcessingException

    picture = pictures()
    with monkeypatch.context() as patch:
        patch.setattr(models.comfy.model_management, "throw_exception_if_processing_interrupted", cancel)
        assert comfy.run(graph(picture)).interrupted
    assert asked and len(compiled) == 1 and said() == []
    run = comfy.run(graph(picture))
    assert run.ok and len(compiled) == 1 + len(run.output("sam").network.image_encoder.blocks)


def test_a_compiled_encoder_that_does_not_fit_goes_on_on_the_processor_without_compiling(
    comfy, graph, encoder, said, monkeypatch
):
    def full(block, x):
        raise torch.cuda.OutOfMemoryError("full")

    expected = comfy.run(graph(pictures(), compile=False)).output("mattes").clone()
    comfy.reset()
    monkeypatch.setattr(encoder, "_compiled_apply_to", lambda: full)
    run = comfy.run(graph(pictures()))
    assert run.ok and torch.equal(run.output("mattes"), expected)
    assert run.output("compiled").network.image_encoder.can_compile
    assert len(said()) == 1 and "on the processor" in said()[0]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling takes a C++ compiler")
def test_torch_compile_itself_works_in_a_workflow(comfy, graph, said):
    expected = comfy.run(graph(pictures(), steps, compile=False)).output("embedding")[0].embedding.features.clone()
    comfy.reset()
    run = comfy.run(graph(pictures(), steps))
    assert run.ok, run.error
    assert said() == []
    assert (run.output("embedding")[0].embedding.features - expected).abs().max() < 1e-5
    del run
    comfy.reset()
    assert models_in_memory(comfy) == []
    torch._dynamo.reset()
