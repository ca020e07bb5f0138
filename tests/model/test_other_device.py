"""The way of a GPU on a device that is not the processor: nothing is mixed, nothing stays, and little is waited for."""

from __future__ import annotations

import copy
from pathlib import Path

import checkpoints
import pytest
import torch
from torch import Tensor, nn

from mam_model.checkpoint import load_sam
from mam_model.composite import fit_picture
from mam_model.everything import EverythingOptions, find_everything, one_by_one, parts_cut_out
from mam_model.matting import MattingAnything, predict_pyramid
from mam_model.merge import MergeOptions
from mam_model.prompt import Prompt, Scribble
from mam_model.sam import Embedding
from mam_model.scribble import prompt_from_trimap
from tests.references import chain
from tests.references.other_device import DEVICE, other_device

HEIGHT, WIDTH = 90, 140
# The mask decoder and Mask-to-Matte add up in another order when several targets go together.
ROUNDING = 5e-5
MODES = [MergeOptions(), MergeOptions("alpha"), MergeOptions("alpha", "two", clear_outside_box=False)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with chain.single_thread(), torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> MattingAnything:
    sam = load_sam(checkpoints.save_tiny_sam(Path(tmp_path_factory.mktemp("other"), "sam.pth")))
    return MattingAnything(sam, chain.reference_m2m())


@pytest.fixture
def device():
    with other_device() as device:
        yield device


@pytest.fixture
def there(here, device) -> MattingAnything:
    return MattingAnything(*(device.take(copy.deepcopy(network)) for network in (here.sam, here.m2m)))


@pytest.fixture(scope="module")
def embedding(here) -> Embedding:
    return here.embed(torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0)))


def prompts() -> list[Prompt]:
    mask = torch.zeros(HEIGHT, WIDTH)
    mask[20:60, 30:90] = 0.8
    mask[30:50, 40:80] = 1
    strokes = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    strokes[10:14, 10:40], strokes[70:74, 10:40] = Scribble.FOREGROUND, Scribble.BACKGROUND
    return [
        Prompt(points_px=((20, 30),), labels=(1,)),
        Prompt(points_px=((70, 30),), labels=(1,), candidate=1),
        Prompt(box_xyxy_px=(10, 10, 90, 70)),
        Prompt(mask=mask),
        Prompt(mask=mask, mask_is_guidance=True),
        Prompt(mask=mask, mask_is_guidance=True, scribbles=strokes),
        Prompt(scribbles=strokes),
        Prompt(),
    ]


def left_on(device: torch.device, network: nn.Module) -> list[Tensor]:
    """Tensors beside its weights that a network keeps there: ComfyUI does not know of them."""
    managed = ("_parameters", "_buffers")
    kept = [value for module in network.modules() for name, value in vars(module).items() if name not in managed]
    return [x for x in torch.utils._pytree.tree_leaves(kept) if isinstance(x, Tensor) and x.device == device]


def test_a_picture_is_encoded_on_the_device(here, there, embedding, device):
    image = torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
    one = there.embed(image)
    two = there.sam.encode_together([one.content, one.content], one.frame)
    for made in (one, *two):
        assert made.features.device == DEVICE
        torch.testing.assert_close(made.features.cpu(), embedding.features, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", MODES, ids=["mask", "alpha", "alpha-two-open"])
def test_targets_of_all_kinds_are_matted_on_the_device_as_on_the_processor(here, there, embedding, options):
    usual = here.matte_targets(embedding, here.segment(embedding, prompts()), options)
    guidance = there.segment(embedding, prompts())
    assert guidance.logits.device == DEVICE
    alphas = there.matte_targets(embedding, guidance, options)
    assert alphas.device.type == "cpu"
    differ = (alphas - usual).abs() > ROUNDING
    assert int(differ.sum()) <= 1e-5 * differ.numel()
    there.matte_targets(embedding, guidance.at_content_size(), options)
    there.matte_targets(embedding, guidance.united(), options)


def test_the_whole_pyramid_is_predicted_on_the_device(here, there, embedding):
    guidance = there.segment(embedding, prompts())
    pyramid = there.predict(embedding, guidance, 3)
    assert pyramid.os1.device == DEVICE
    usual = here.merge(here.predict(embedding, guidance.cpu()), guidance.cpu())
    for merged in (there.merge(pyramid, guidance), there.merge(pyramid.cpu(), guidance.cpu())):
        assert int(((merged - usual).abs() > ROUNDING).sum()) <= 1e-5 * usual.numel()


def test_a_pyramid_that_is_kept_is_put_together_beside_the_device(there, embedding):
    guidance = there.segment(embedding, prompts())
    kept, usual = (predict_pyramid(there.m2m, embedding, guidance, 3, device) for device in ("cpu", None))
    assert {scale.device.type for scale in (kept.os8, kept.os4, kept.os1)} == {"cpu"}
    assert torch.equal(kept.os1, usual.os1.cpu())


def test_everything_is_found_on_the_device(there, embedding):
    options = EverythingOptions(3, 0, 0, 0, 1, leave_out_background=False, nested="both")
    found = parts_cut_out(find_everything(there.sam, embedding, options))
    assert len(found)
    for target in one_by_one(found):
        assert there.matte_targets(there.m2m.look_at(embedding), target).shape == (1, HEIGHT, WIDTH)


def test_segmenting_waits_for_nothing_and_matting_once_to_learn_where_the_masks_lie(there, embedding, device):
    points = [Prompt(points_px=((20 + 10 * n, 30),), labels=(1,)) for n in range(3)]
    there.segment(embedding, points)
    device.waits = 0
    guidance = there.segment(embedding, points)
    assert device.waits == 0 and not device.done["aten.equal.default"]
    there.matte_targets(embedding, guidance)
    # And for the mattes.
    assert device.waits == 2


def test_no_network_keeps_anything_on_the_device_but_its_weights(there, embedding, device):
    there.matte_targets(embedding, there.segment(embedding, prompts()))
    assert not left_on(DEVICE, there.sam) and not left_on(DEVICE, there.m2m)


def test_guidance_that_is_kept_can_leave_the_device(there, embedding):
    guidance = there.segment(embedding, prompts()).cpu()
    assert {x.device.type for x in (guidance.logits, guidance.predicted_iou, guidance.chosen)} == {"cpu"}
    assert guidance.scores == pytest.approx(there.segment(embedding, prompts()).scores)


def test_a_network_that_is_on_the_device_already_is_folded_as_on_the_processor(here, device):
    trained = chain.reference_m2m()
    usual = MattingAnything(here.sam, trained).m2m.state_dict()
    folded = MattingAnything(here.sam, device.take(trained)).m2m.state_dict()
    assert {weight.device for weight in folded.values()} == {DEVICE}
    for name, weight in usual.items():
        assert torch.equal(folded[name].cpu(), weight), name


def test_what_a_mac_cannot_average_before_pytorch_2_7_is_averaged_on_the_processor(here, there, embedding, device):
    device.lacks = {"aten._upsample_bilinear2d_aa.default"}
    with_masks = [prompt for prompt in prompts() if prompt.has_mask]
    guidance = there.segment(embedding, with_masks)
    assert guidance.logits.device == DEVICE
    torch.testing.assert_close(guidance.logits.cpu(), here.segment(embedding, with_masks).logits, atol=1e-4, rtol=1e-5)
    background = torch.rand(30, 200, 3, generator=torch.Generator().manual_seed(1))
    fitted = fit_picture(background.to(DEVICE), HEIGHT, WIDTH)
    assert fitted.device == DEVICE and torch.equal(fitted.cpu(), fit_picture(background, HEIGHT, WIDTH))


def test_a_trimap_on_the_device_makes_the_prompt_that_it_makes_on_the_processor(device):
    trimap, strokes = torch.full((HEIGHT, WIDTH), 0.5), torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    trimap[:30], trimap[70:], strokes[40:44, 10:40] = 0, 1, Scribble.FOREGROUND
    made, usual = prompt_from_trimap(trimap.to(DEVICE), strokes), prompt_from_trimap(trimap, strokes)
    assert torch.equal(made.mask.cpu(), usual.mask) and torch.equal(made.scribbles.cpu(), usual.scribbles)
