"""A graphics card whose memory is full: fewer things at once, at last the processor, and the same matte.

There is no such card here. The networks stay on the processor and take a GPU's ways, and the functions that would
notice say "full".
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from .graphs import boxes, loaders, node, pictures, steps, whole


def full() -> Exception:
    return torch.cuda.OutOfMemoryError("full")


def driver_is_full() -> Exception:
    """ComfyUI takes this for want of memory too."""
    return torch.AcceleratorError("CUDA error: out of memory")


def mac_is_full() -> Exception:
    """A Mac has no error of its own for it."""
    return RuntimeError("MPS backend out of memory (MPS allocated: 5.56 GB, max allowed: 6.80 GB).")


THREE = "6 5 30 25\n20 2 46 30\n2 2 20 20"


@pytest.fixture
def models(comfyui):
    return comfyui.module("nodes.models")


@pytest.fixture
def like_a_gpu(comfyui, models, monkeypatch):
    """Pictures and targets go together, and mattes are merged as tensors."""
    monkeypatch.setattr(models.SharedModel, "fitting", lambda self, each_bytes, most: most)
    monkeypatch.setattr(models.SharedSam, "pictures_at_once", 4)
    for module in ("mam_model.matting", "mam_model.merge"):
        monkeypatch.setattr(comfyui.module(module), "merges_in_arrays", lambda device: False)


@pytest.fixture
def graph(tiny_sam, tiny_m2m, tensors):
    source = tensors(pictures(3, 32, 48))

    def build(kind, **settings) -> dict:
        return {"image": node(source), "prompt": boxes(THREE), **loaders(tiny_sam, tiny_m2m), **kind(**settings)}

    return build


@pytest.fixture(params=["fp16", "bf16"])
def half_precision(request) -> str:
    return request.param


def room(monkeypatch, owner, name: str, count_of, most: int, error: Callable[[], Exception]) -> list[int]:
    """Lets `owner.name` raise when it is asked for more than `most` at once; returns how many were asked for."""
    asked = []
    original = getattr(owner, name)

    def limited(*args, **kwargs):
        asked.append(count_of(*args, **kwargs))
        if asked[-1] > most:
            # A new one each time: its traceback holds what the failed attempt has made.
            raise error()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, limited)
    return asked


def at_once_of(network, picture, guidance, options, at_once: int, before_step) -> int:
    """How many targets `matte_targets` is asked for at once, by the arguments that it is given."""
    return at_once


def matte_of(comfy, graph, kind) -> torch.Tensor:
    run = comfy.run(graph(kind))
    assert run.ok, run.error
    return run.output("mattes" if kind is whole else "merged", 1).clone()


@pytest.mark.parametrize("kind", [whole, steps])
def test_together_as_on_a_gpu_the_mattes_are_those_of_one_after_the_other(comfy, graph, kind, request):
    usual = matte_of(comfy, graph, kind)
    comfy.reset()
    request.getfixturevalue("like_a_gpu")
    torch.testing.assert_close(matte_of(comfy, graph, kind), usual, atol=2e-3, rtol=0)


def test_pictures_that_do_not_fit_together_are_encoded_in_smaller_steps(comfy, graph, like_a_gpu, said, monkeypatch):
    sam = comfy.module("mam_model.sam").Sam
    usual = matte_of(comfy, graph, steps)
    comfy.reset()
    together = room(monkeypatch, sam, "encode_together", lambda _, contents, *rest: len(contents), 1, full)
    alone = room(monkeypatch, sam, "encode_content", lambda *_: 1, 1, full)
    torch.testing.assert_close(matte_of(comfy, graph, steps), usual, atol=2e-3, rtol=0)
    assert (together, alone) == ([3], [1, 1, 1])
    assert len(said()) == 1 and "tiny_sam" in said()[0] and "1 at a time" in said()[0]


@pytest.mark.parametrize(
    "error", [full, driver_is_full, mac_is_full], ids=["PyTorch's error", "a driver's error", "a Mac's error"]
)
def test_targets_that_do_not_fit_together_go_in_smaller_steps(
    comfy, graph, models, like_a_gpu, said, monkeypatch, error
):
    usual = matte_of(comfy, graph, whole)
    comfy.reset()
    asked = room(monkeypatch, comfy.module("mam_model.matting"), "matte_targets", at_once_of, 2, error)
    torch.testing.assert_close(matte_of(comfy, graph, whole), usual, atol=2e-3, rtol=0)
    assert asked == 3 * [8, 4, 2]
    assert len(said()) == 6 and all("tiny_m2m" in line for line in said())


@pytest.mark.parametrize("kind", [whole, steps])
def test_a_network_that_does_not_fit_at_all_goes_on_on_the_processor(
    comfy, graph, models, like_a_gpu, said, monkeypatch, kind
):
    usual = matte_of(comfy, graph, kind)
    comfy.reset()
    unloaded = []
    unload = models.comfy.model_management.unload_model_and_clones

    def note(patcher):
        unloaded.append(patcher.model)
        unload(patcher)

    monkeypatch.setattr(models.comfy.model_management, "unload_model_and_clones", note)
    sam, m2m = comfy.module("mam_model.sam").Sam, comfy.module("mam_model.m2m").FoldedMaskToMatte
    working = [(sam, "encode_content"), (sam, "encode_together"), (sam, "decode"), (m2m, "look_at"), (m2m, "forward")]
    for owner, name in working:
        # What each of them is given first is the network.
        monkeypatch.setattr(owner, name, _in_vain_unless(unloaded, getattr(owner, name)))
    torch.testing.assert_close(matte_of(comfy, graph, kind), usual, atol=2e-3, rtol=0)
    assert [type(network) for network in unloaded] == [sam, m2m]
    # 3 pictures, 1 picture; 8, 4, 2, 1 targets.
    assert ["on the processor" in line for line in said()] == [False, True, False, False, False, True]


def _in_vain_in_half(work):
    def in_vain(network, *args, **kwargs):
        if any(weight.itemsize < 4 for weight in network.parameters()):
            raise full()
        return work(network, *args, **kwargs)

    return in_vain


@pytest.mark.parametrize("kind", [whole, steps])
def test_a_network_in_half_precision_goes_on_in_float32(
    comfy, graph, like_a_gpu, said, monkeypatch, kind, half_precision
):
    sam, m2m = comfy.module("mam_model.sam").Sam, comfy.module("mam_model.m2m").FoldedMaskToMatte
    for owner, name in ((sam, "encode_content"), (sam, "encode_together"), (m2m, "look_at"), (m2m, "forward")):
        monkeypatch.setattr(owner, name, _in_vain_in_half(getattr(owner, name)))
    workflow = graph(kind)
    for loader in ("sam", "m2m"):
        workflow[loader]["inputs"]["precision"] = half_precision
    run = comfy.run(workflow)
    assert run.ok, run.error
    assert sum("on the processor" in line for line in said()) == 2
    monkeypatch.undo()
    matting, share_pixels = comfy.module("mam_model.matting"), comfy.module("mam_model.instances").share_pixels
    # Segment has brought SAM back.
    sam, m2m = (copy.deepcopy(run.output(name).network).float() for name in ("sam", "m2m"))
    networks = matting.MattingAnything(sam, m2m)
    mattes = [networks.matte(picture, run.output("prompt").frames[0]) for picture in pictures(3, 32, 48)]
    expected = torch.cat([share_pixels(matte) for matte in mattes])
    torch.testing.assert_close(run.output("mattes" if kind is whole else "merged", 1), expected, atol=2e-3, rtol=0)


def weights_of(shared) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in shared.network.state_dict().items()}


def test_loaded_again_a_network_has_the_very_weights_it_had(models, tiny_sam, tiny_m2m, half_precision):
    for shared in (models.shared_sam(tiny_sam, half_precision), models.shared_m2m(tiny_m2m, half_precision)):
        shared.load(0)
        before = weights_of(shared)
        for _ in range(2):
            shared.leave_device()
            assert {weight.dtype for weight in weights_of(shared).values()} == {torch.float32}
            shared.load(0)
            after = weights_of(shared)
            assert all(after[name].dtype == weight.dtype for name, weight in before.items())
            assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_after_the_processor_a_network_asks_for_no_more_than_before(models, tiny_sam, tiny_m2m, half_precision):
    sam, m2m = models.shared_sam(tiny_sam, half_precision), models.shared_m2m(tiny_m2m, half_precision)

    def asked() -> tuple[int, ...]:
        return sam.encoding_bytes, sam.decoding_bytes, m2m.predicting_bytes, m2m.matting_bytes(600, 800)

    before = asked()
    for shared in (sam, m2m):
        shared.leave_device()
    assert asked() == before


def test_every_node_asks_for_the_memory_of_its_hungriest_step(comfy, graph, models, tiny_sam, tiny_m2m, monkeypatch):
    from comfy_execution.utils import get_executing_context

    asked = {}
    load_models = models.comfy.model_management.load_models_gpu

    def load(*args, memory_required=0, **kwargs):
        name = get_executing_context().node_id
        asked[name] = max(asked.get(name, 0), memory_required)
        return load_models(*args, memory_required=memory_required, **kwargs)

    monkeypatch.setattr(models.comfy.model_management, "load_models_gpu", load)
    seen = ("merged", "mattes", "semantic", "everything", "refined", "without")
    drawing = json.dumps({"targets": [{"prompts": {"all": {"points": [{"x": 20, "y": 15}]}}}]})
    links = {name: (name, 0) for name in ("sam", "m2m", "image")}
    run = comfy.run(
        graph(steps)
        | whole()
        | {
            "semantic": node("MAM_SemanticMatte", m2m=("m2m", 0), embedding=("embedding", 0), guidance=("guidance", 0)),
            "editor": node("MAM_PromptEditor", **links, prompts=drawing),
            "live": node("MAM_LivePicture", **links, prompts=drawing, target=0),
            "everything": node("MAM_MatteEverything", **links, points_per_side=1),
            "refined": node("MAM_RefineMask", image=("image", 0), mask=("mattes", 0)),
            "without": node("MAM_MatteWithoutModels", image=("image", 0), prompt=("prompt", 0)),
            **{f"see {name}": node("PreviewAny", source=(name, 0)) for name in seen},
        }
    )
    assert run.ok, run.error
    sam, m2m = models.shared_sam(tiny_sam, "auto"), models.shared_m2m(tiny_m2m, "auto")
    matting = m2m.matting_bytes(32, 48)
    of_whole = max(sam.encoding_bytes, matting)
    # Who comes first encodes the pictures for all.
    asked.pop("embedding", None)
    assert asked == {
        "guidance": sam.decoding_bytes,
        "pyramid": m2m.predicting_bytes,
        "semantic": matting,
        "mattes": of_whole,
        "editor": of_whole,
        "live": max(sam.encoding_bytes, sam.decoding_bytes, matting),
        "everything": max(of_whole, 16 * 36 * 1024**2),
        "refined": models.SharedRefiner.refining_bytes,
        "without": models.SharedRefiner.refining_bytes,
    }


def test_another_view_of_a_network_brings_it_back_too(models, tiny_sam):
    sam = models.shared_sam(tiny_sam, "bf16")
    compiled = sam.compiling()
    compiled.leave_device()
    sam.load(0)
    assert {weight.dtype for weight in sam.network.image_encoder.parameters()} == {torch.bfloat16}
    compiled.load(0)
    assert not compiled.on_processor


def _in_vain_unless(unloaded: list, work):
    def in_vain(network, *args, **kwargs):
        if network not in unloaded:
            raise full()
        return work(network, *args, **kwargs)

    return in_vain


def test_an_error_that_has_nothing_to_do_with_memory_is_shown_at_once(
    comfy, graph, models, like_a_gpu, said, monkeypatch
):
    asked = room(
        monkeypatch,
        comfy.module("mam_model.matting"),
        "matte_targets",
        at_once_of,
        0,
        lambda: RuntimeError("the cable is loose"),
    )
    run = comfy.run(graph(whole))
    assert run.failed_node == "mattes" and "the cable is loose" in run.error
    assert asked == [8] and said() == []


def test_cancelling_is_not_taken_for_full_memory(comfy, graph, models, like_a_gpu, said, monkeypatch):
    cancelled = models.comfy.model_management.InterruptProcessingException
    asked = room(monkeypatch, comfy.module("mam_model.matting"), "matte_targets", at_once_of, 0, cancelled)
    assert comfy.run(graph(whole)).interrupted
    assert asked == [8] and said() == []


def test_as_many_are_taken_at_once_as_fit_into_free_memory(models, warm_models, monkeypatch):
    sam, _ = warm_models
    management = models.comfy.model_management
    assert sam.fitting(1, 8) == 1, "a processor takes one after the other"
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(management, "extra_reserved_memory", lambda: 2000)
    for free, expected in ((2000, 1), (0, 1), (2000 + 1250, 1), (2000 + 2500, 2), (2000 + 6250, 5), (10**6, 8)):
        monkeypatch.setattr(management, "get_free_memory", lambda device, free=free: free)
        assert sam.fitting(1000, 8) == expected, free


@pytest.fixture
def card(models, monkeypatch):
    """`card(spare_mib)` gives ComfyUI a graphics card with so much memory beside what it always keeps free.

    What lies on it has no values. ComfyUI is without dynamic memory management here, as on AMD's cards and in WSL.
    """
    management = models.comfy.model_management
    device, move = torch.device("meta"), torch.nn.Module.to
    processor = ("cpu", torch.device("cpu"))

    def moved(network, *to, **form):
        return network.to_empty(device="cpu") if to and to[0] in processor else move(network, *to, **form)

    def plug_in(spare_mib: float) -> None:
        def free(_=None, torch_free_too: bool = False):
            used = sum(loaded.model_loaded_memory() for loaded in management.current_loaded_models)
            left = management.minimum_inference_memory() + spare_mib * 1024**2 - used
            return (left, left) if torch_free_too else left

        monkeypatch.setattr(management, "get_torch_device", lambda: device)
        monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
        monkeypatch.setattr(management, "get_free_memory", free)
        monkeypatch.setattr(torch.nn.Module, "to", moved)

    yield plug_in
    management.current_loaded_models.clear()


def devices_of(shared) -> set[str]:
    return {tensor.device.type for tensor in (*shared.network.parameters(), *shared.network.buffers())}


# SAM's weights are 18 MiB here, Mask-to-Matte's 10.
@pytest.mark.parametrize("spare_mib", [1000, 20, 11, 2, 0])
def test_a_network_is_on_the_card_as_a_whole_however_little_is_free(models, tiny_sam, card, spare_mib):
    card(spare_mib)
    sam = models.shared_sam(tiny_sam, "fp32")
    for _ in range(2):
        sam.load(0)
        assert devices_of(sam) == {"meta"} and not sam.on_processor


def test_weights_that_do_not_fit_leave_the_network_on_the_processor(models, tiny_sam, card, said, monkeypatch):
    card(1000)
    sam = models.shared_sam(tiny_sam, "fp32")
    last = sam.network.mask_decoder.iou_prediction_head.layers[2]
    usual = torch.nn.Module.to

    def to(network, device, *rest):
        if network is last and str(device) == "meta":
            raise full()
        return usual(network, device, *rest)

    monkeypatch.setattr(torch.nn.Module, "to", to)
    sam.load(0)
    assert devices_of(sam) == {"cpu"} and sam.on_processor
    assert len(said()) == 1 and "on the processor" in said()[0]


def test_back_on_the_card_a_network_takes_the_room_of_half_precision_again(models, tiny_m2m, card):
    card(1000)
    m2m = models.shared_m2m(tiny_m2m, "fp16")
    taken = []
    for _ in range(2):
        m2m.load(0)
        assert devices_of(m2m) == {"meta"}
        assert {weight.dtype for weight in m2m.network.parameters()} == {torch.float16}
        taken.append(m2m.patcher.loaded_size())
        m2m.leave_device()
        assert devices_of(m2m) == {"cpu"} and m2m.fitting(1, 8) == 1
    assert taken[0] == taken[1] == models.comfy.model_management.module_size(m2m.network) // 2


def test_work_without_a_network_makes_room_for_itself_where_too_little_is_free(models, tiny_sam, card):
    card(20)
    sam = models.shared_sam(tiny_sam, "fp32")
    sam.load(0)
    free = models.comfy.model_management.get_free_memory() - models.comfy.model_management.extra_reserved_memory()

    def on_card(device: torch.device) -> set[str]:
        assert device.type == "meta"
        return devices_of(sam)

    assert models.on_device_or_processor(on_card, int(free), "it") == {"meta"}
    # ComfyUI takes as much away as is asked for, and puts it back when SAM is loaded again.
    assert models.on_device_or_processor(on_card, int(free) + 2**20, "it") == {"cpu", "meta"}
    assert models.on_device_or_processor(on_card, int(free) + 2**30, "it") == {"cpu"}


def test_a_batch_that_is_encoded_does_not_drive_mask_to_matte_from_a_card_that_is_nearly_full(
    comfyui, models, tiny_sam, tiny_m2m, card, monkeypatch
):
    embeddings, embedding = comfyui.module("nodes.embeddings"), comfyui.module("mam_model.sam").Embedding
    card(27)
    sam, m2m = models.shared_sam(tiny_sam, "fp32"), models.shared_m2m(tiny_m2m, "fp32")

    def encode(contents, frame):
        return [embedding(torch.zeros(1, 256, 16, 16), content, frame) for content in contents]

    monkeypatch.setattr(sam, "encode", encode)
    models.load_together([sam, m2m], 0)
    for _ in embeddings.embeddings_of(pictures(9, 32, 48), sam, [m2m]):
        assert devices_of(sam) == devices_of(m2m) == {"meta"}


@pytest.mark.parametrize(("is_too_large", "loads"), [(False, 3), (True, 1)])
def test_sam_is_brought_to_its_device_for_every_picture_of_a_batch_until_it_is_too_large_for_one(
    comfyui, models, tiny_sam, monkeypatch, is_too_large, loads
):
    embeddings, embedding = comfyui.module("nodes.embeddings"), comfyui.module("mam_model.sam").Embedding
    sam, loaded = models.shared_sam(tiny_sam, "fp32"), []
    beside, left_out = SimpleNamespace(on_processor=False), SimpleNamespace(on_processor=True)
    # From an earlier batch, which says nothing of this one.
    sam.on_processor = True

    def load_together(shared, memory_bytes):
        loaded.append(shared)
        sam.on_processor = is_too_large

    def encode(contents, frame):
        return [embedding(torch.zeros(1, 256, 16, 16), content, frame) for content in contents]

    monkeypatch.setattr(sam, "encode", encode)
    monkeypatch.setattr(embeddings, "load_together", load_together)
    assert len(list(embeddings.embeddings_of(pictures(3, 32, 48), sam, [beside, left_out]))) == 3
    assert loaded == [[sam, beside]] * loads


@pytest.mark.parametrize("spare_mib", [1000, 20, 2, 1, 0])
def test_the_decoder_of_in_context_matting_is_on_the_card_as_a_whole_when_it_is_used(
    comfyui, models, place, tiny_in_context_file, tiny_sam, tiny_m2m, card, spare_mib, monkeypatch
):
    decoder_name = place(tiny_in_context_file, comfyui.models_dir / models.IN_CONTEXT_FOLDER).name
    card(spare_mib)
    decoder = models.shared_in_context_decoder(decoder_name)
    # In place of UNet and autoencoder, which ComfyUI may leave on the processor in part: they are of its own kind.
    unet, autoencoder = models.shared_sam(tiny_sam, "fp32"), models.shared_m2m(tiny_m2m, "fp32")
    vae = SimpleNamespace(patcher=autoencoder.patcher)
    backbone = SimpleNamespace(model=unet.patcher, vae=vae, running_bytes=lambda *_: 0, encode=None, run=None)
    icm = comfyui.module("nodes.in_context").InContextModel(backbone, decoder)
    monkeypatch.setattr(decoder.network, "matte", lambda *_: devices_of(decoder))
    for taken_away in (0, 2**40):
        icm.load(1, 1)
        # As the UNet may need it, which runs in between.
        models.comfy.model_management.free_memory(taken_away, torch.device("meta"))
        assert icm.networks.decode(None, torch.zeros(1), ()) == {"meta"} and not decoder.on_processor
