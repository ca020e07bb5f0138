"""SAM: its sizes read from a checkpoint, its answers to prompts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from segment_anything import sam_model_registry

from mam_model.frame import Frame
from mam_model.prompt import Prompt, PromptError, Scribble
from mam_model.regions import Window
from mam_model.sam import SAM_VIT_B, SAM_VIT_H, SAM_VIT_L, Embedding, Sam, SamConfig
from tests.references import chain
from tests.references.live_memory import LiveMemory

HEIGHT, WIDTH = 90, 140


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with chain.single_thread(), torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def sam() -> Sam:
    return chain.reference_sam()


@pytest.fixture(scope="module")
def embedding(sam):
    return sam.encode(picture())


def picture() -> torch.Tensor:
    return torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return (((columns - x) / radius_x) ** 2 + ((rows - y) / radius_y) ** 2 < 1).float()


PUBLISHED = {"vit_b": (SAM_VIT_B, "SAM ViT-B"), "vit_l": (SAM_VIT_L, "SAM ViT-L"), "vit_h": (SAM_VIT_H, "SAM ViT-H")}


@pytest.mark.parametrize("size", PUBLISHED)
def test_every_size_is_recognised_by_the_shapes_of_its_published_weights(size):
    config, name = PUBLISHED[size]
    with torch.device("meta"):
        published = sam_model_registry[size]().state_dict()
        ours = Sam(config).state_dict()
    assert SamConfig.from_state_dict(published) == config
    assert config.name == name
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in published.items()}


def test_a_size_that_was_never_published_is_recognised_too(sam):
    assert SamConfig.from_state_dict(sam.state_dict()) == chain.CONFIG
    assert chain.CONFIG.name == "SAM with 2 blocks of 64 channels"


def test_something_else_is_not_taken_for_a_sam(sam):
    state_dict = dict(sam.state_dict())
    del state_dict["prompt_encoder.no_mask_embed.weight"]
    with pytest.raises(KeyError):
        SamConfig.from_state_dict(state_dict)


def test_an_embedding_keeps_what_the_other_networks_need(embedding):
    assert embedding.features.shape == (1, 256, 16, 16)
    assert embedding.features.dtype == torch.float32
    assert embedding.content.shape == (165, 256, 3)
    assert embedding.content.dtype == torch.uint8
    assert (embedding.frame.height, embedding.frame.width, embedding.frame.side) == (HEIGHT, WIDTH, 256)


def test_a_half_precision_encoder_gives_nearly_the_same_float32_embedding(sam, embedding):
    """bfloat16 has 8 bits of precision; the features have a standard deviation of 1."""
    half = chain.reference_sam()
    half.image_encoder.to(torch.bfloat16)
    features = half.encode(picture()).features
    assert features.dtype == torch.float32
    assert (features - embedding.features).square().mean().sqrt() < 0.05


BOX = Prompt(box_xyxy_px=(20, 10, 90, 80))
POINT = Prompt(points_px=((60, 40),), labels=(1,))
POINTS = Prompt(points_px=((60, 40), (100, 20)), labels=(1, 0))
HINT = Prompt(points_px=((60, 40),), labels=(1,), mask=ellipse(60, 40, 30, 25))
STROKES = ellipse(40, 40, 4, 9) * Scribble.FOREGROUND + ellipse(110, 20, 3, 3) * Scribble.BACKGROUND
NEIGHBOURS = [
    BOX,
    POINT,
    POINTS,
    HINT,
    Prompt(),
    Prompt(box_xyxy_px=(70, 5, 130, 60)),
    Prompt(points_px=((60, 40),), labels=(1,), box_xyxy_px=(20, 10, 90, 80)),
    Prompt(mask=ellipse(90, 50, 20, 30)),
    Prompt(mask=ellipse(90, 50, 20, 30), mask_is_guidance=True),
    Prompt(points_px=((10, 70), (30, 75)), labels=(0, 1)),
    Prompt(scribbles=STROKES.byte()),
    Prompt(mask=ellipse(30, 60, 20, 20), points_px=((35, 65),), labels=(1,)),
]


def test_a_targets_masks_do_not_depend_on_its_neighbours(sam, embedding):
    together = sam.decode(embedding, NEIGHBOURS)
    assert len(together) == len(NEIGHBOURS)
    for index, prompt in enumerate(NEIGHBOURS):
        alone = sam.decode(embedding, [prompt])
        assert torch.allclose(together.logits[index], alone.logits[0], atol=1e-4, rtol=0), index
        assert torch.allclose(together.predicted_iou[index], alone.predicted_iou[0], atol=1e-5, rtol=0), index
        assert together.chosen[index] == alone.chosen[0]
        assert (together.post_mask(index) != alone.post_mask(0)).float().mean() < 1e-3


@pytest.mark.parametrize("targets_per_step", [2, 3, 100])
def test_how_many_targets_are_decoded_together_does_not_matter(sam, embedding, targets_per_step):
    """A GPU decodes several at once, a processor one after the other."""
    prompts = NEIGHBOURS + [replace(POINT, points_px=((10.0 + 9 * n, 40.0),)) for n in range(5)]
    in_turn, together = sam.decode(embedding, prompts, 1), sam.decode(embedding, prompts, targets_per_step)
    assert torch.allclose(together.logits, in_turn.logits, atol=1e-4, rtol=0)
    assert torch.allclose(together.predicted_iou, in_turn.predicted_iou, atol=1e-5, rtol=0)


def test_decoding_takes_no_more_memory_than_is_declared(monkeypatch):
    """The decoder and the square have their published sizes, and all places are worked on at once, as on a GPU."""
    monkeypatch.setattr("mam_model.mask_decoder._CPU_PLACES", 64 * 64)
    config = SamConfig(depth=1, embed_dim=32, num_heads=2, global_attention=(0,))
    sam = Sam(config).eval()
    picture = Embedding(torch.randn(1, 256, 64, 64), torch.zeros(768, 1024, 3, dtype=torch.uint8), Frame(768, 1024))
    prompts = [Prompt(points_px=((10.0 * n, 40.0),), labels=(1,)) for n in range(10)]
    with torch.inference_mode(), LiveMemory() as memory:
        sam.decode(picture, prompts, 8)
    assert 0.7 * sam.decoding_bytes < memory.peak_bytes < sam.decoding_bytes


def test_pictures_that_are_encoded_together_are_what_each_is_alone(sam):
    pictures = [torch.rand(60, 90, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    alone = [sam.encode(picture) for picture in pictures]
    together = sam.encode_together([embedding.content for embedding in alone], alone[0].frame)
    assert len(together) == 3
    for one, other in zip(alone, together):
        assert one.frame == other.frame and torch.equal(one.content, other.content)
        assert (one.features - other.features).abs().max() < 1e-5
    assert (together[0].features - together[1].features).abs().max() > 0.01


def stock_answer(sam, embedding, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
    """What segment-anything's own decoder says of a prompt without strokes."""
    frame = embedding.frame
    points = boxes = masks = None
    if prompt.points_px:
        points = frame.points_to_network(torch.tensor([prompt.points_px])), torch.tensor([prompt.labels])
    if prompt.box_xyxy_px:
        boxes = frame.boxes_to_network(torch.tensor([prompt.box_xyxy_px]))
    if prompt.mask is not None:
        masks = 10 * (2 * frame.mask_to_network(prompt.mask) - 1)
    sparse, dense = sam.prompt_encoder(points, boxes, masks)
    positions = sam.prompt_encoder.get_dense_pe()
    return sam.mask_decoder(embedding.features, positions, sparse, dense, multimask_output=True)


@pytest.mark.parametrize(
    "prompt",
    [
        BOX,
        POINT,
        POINTS,
        HINT,
        Prompt(mask=HINT.mask),
        replace(HINT, box_xyxy_px=BOX.box_xyxy_px),
        Prompt(points_px=tuple((3.0 * i, 2.0 * i) for i in range(40)), labels=(1, 0) * 20),
    ],
    ids=["box", "point", "two points", "hint and point", "hint", "all three", "forty points"],
)
def test_the_decoder_is_segment_anythings_function(sam, embedding, prompt):
    """Measured 3e-6 at the worst logit; the logits themselves go from -3 to 3."""
    logits, predicted_iou = stock_answer(sam, embedding, prompt)
    ours = sam.decode(embedding, [prompt])
    assert (ours.logits - logits).abs().max() < 2e-5
    assert (ours.predicted_iou - predicted_iou).abs().max() < 2e-6
    assert logits.std() > 0.1


def test_targets_come_back_in_the_order_in_which_they_were_given(sam, embedding):
    forwards = sam.decode(embedding, NEIGHBOURS)
    backwards = sam.decode(embedding, NEIGHBOURS[::-1])
    assert torch.allclose(forwards.logits.flip(0), backwards.logits, atol=1e-4, rtol=0)
    assert [prompt.box_xyxy_px for prompt in backwards.prompts] == [prompt.box_xyxy_px for prompt in NEIGHBOURS[::-1]]
    # The order can only be seen because no two answers are alike.
    for index in range(1, len(NEIGHBOURS)):
        assert (forwards.logits[index] - forwards.logits[index - 1]).abs().max() > 1e-2


def test_three_candidates_are_kept_and_the_best_by_predicted_iou_is_used(sam, embedding):
    guidance = sam.decode(embedding, [BOX, POINTS, HINT])
    assert guidance.logits.shape == (3, 3, 64, 64)
    assert guidance.predicted_iou.shape == (3, 3)
    for target in range(3):
        best = int(guidance.predicted_iou[target].argmax())
        assert guidance.chosen[target] == best
        assert torch.equal(guidance.chosen_logits[target, 0], guidance.logits[target, best])
        assert guidance.scores[target] == pytest.approx(float(guidance.predicted_iou[target].max()))
    assert len({float(candidate.std()) for candidate in guidance.logits.flatten(0, 1)}) == 9


@pytest.mark.parametrize("candidate", [0, 1, 2])
def test_the_users_choice_of_candidate_comes_before_the_predicted_iou(sam, embedding, candidate):
    free = sam.decode(embedding, [BOX])
    guidance = sam.decode(embedding, [replace(BOX, candidate=candidate), BOX])
    assert guidance.chosen.tolist() == [candidate, int(free.chosen[0])]
    expected = (free.logits[:, candidate : candidate + 1] > 0).float()
    assert torch.equal(guidance.network_mask[:1], expected)
    assert guidance.scores[0] == pytest.approx(float(free.predicted_iou[0, candidate]), abs=1e-5)
    assert (guidance.content_masks()[0] == 1).float().mean() == pytest.approx(
        float(guidance.post_mask(0).mean()), abs=0.02
    )


def test_the_detectors_score_weighs_the_predicted_iou(sam, embedding):
    full, half = sam.decode(embedding, [BOX, replace(BOX, score=0.5)]).scores
    assert half == pytest.approx(full / 2)


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(),
        Prompt(mask=torch.zeros(HEIGHT, WIDTH)),
        Prompt(mask=torch.zeros(HEIGHT, WIDTH), mask_is_guidance=True),
        Prompt(scribbles=torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)),
    ],
    ids=["nothing", "blank mask", "blank guidance", "no stroke"],
)
def test_an_empty_prompt_gives_an_empty_mask_with_a_score_of_0(sam, embedding, prompt):
    guidance = sam.decode(embedding, [prompt, BOX])
    assert torch.all(guidance.post_mask(0) == 0)
    assert torch.all(guidance.network_mask[0] == 0)
    assert guidance.scores[0] == 0
    assert guidance.post_mask(1).any()


def test_strokes_of_unknown_alone_are_no_question_that_sam_would_answer(sam, embedding):
    unknown = Prompt(scribbles=torch.full((HEIGHT, WIDTH), Scribble.UNKNOWN.value, dtype=torch.uint8))
    guidance = sam.decode(embedding, [unknown, BOX, unknown])
    assert torch.all(guidance.network_mask[[0, 2]] == 0)
    assert (guidance.scores[0], guidance.scores[2]) == (0, 0)
    assert guidance.network_mask[1].any()


def test_no_target_at_all_gives_an_empty_guidance(sam, embedding):
    guidance = sam.decode(embedding, [])
    assert len(guidance) == 0
    assert guidance.logits.shape == (0, 3, 64, 64)
    assert guidance.network_mask.shape == (0, 1, 64, 64)
    assert guidance.scores == ()


def test_a_mask_given_as_guidance_comes_back_unchanged_soft_edges_included(sam, embedding):
    soft = torch.nn.functional.avg_pool2d(ellipse(60, 40, 30, 25)[None, None], 5, stride=1, padding=2)[0, 0]
    assert ((soft > 0) & (soft < 1)).any()
    guidance = sam.decode(embedding, [Prompt(mask=soft, mask_is_guidance=True)])
    assert torch.equal(guidance.post_mask(0), soft)
    assert guidance.scores == (1,)
    shown = guidance.frame.logits_to_original(guidance.network_mask - 0.5)[0, 0] > 0
    assert (shown != (soft > 0.5)).float().mean() < 0.03


def logits_of(sam, embedding, *prompts: Prompt) -> torch.Tensor:
    return sam.decode(embedding, prompts).logits


def test_a_mask_hint_changes_the_answer(sam, embedding):
    without, with_hint, other = logits_of(sam, embedding, POINT, HINT, replace(HINT, mask=ellipse(100, 30, 20, 20)))
    assert (with_hint - without).abs().max() > 0.1
    assert (with_hint - other).abs().max() > 0.1


def test_a_negative_point_changes_the_answer_and_is_not_a_positive_one(sam, embedding):
    both = replace(POINTS, labels=(1, 1))
    one, negative, positive = logits_of(sam, embedding, POINT, POINTS, both)
    assert (negative - one).abs().max() > 0.1
    assert (negative - positive).abs().max() > 0.1


def test_a_point_in_a_box_is_heard_beside_the_box(sam, embedding):
    box, both = logits_of(sam, embedding, BOX, replace(BOX, points_px=((60, 40),), labels=(1,)))
    assert (both - box).abs().max() > 0.1


def test_a_stroke_says_what_a_point_in_its_middle_says(sam, embedding):
    strokes = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    strokes[39:42, 50:71] = Scribble.FOREGROUND
    strokes[20, 95:106] = Scribble.BACKGROUND
    stroke, points = logits_of(sam, embedding, Prompt(scribbles=strokes), POINTS)
    assert torch.allclose(stroke, points, atol=1e-4, rtol=0)


def test_decoding_changes_neither_the_embedding_nor_the_prompts(sam, embedding):
    features, content = embedding.features.clone(), embedding.content.clone()
    mask, strokes = HINT.mask.clone(), Prompt(scribbles=STROKES.byte())
    sam.decode(embedding, [*NEIGHBOURS, strokes])
    assert torch.equal(embedding.features, features)
    assert torch.equal(embedding.content, content)
    assert torch.equal(HINT.mask, mask)
    assert torch.equal(strokes.scribbles, STROKES.byte())


def test_a_box_drawn_the_wrong_way_finds_what_the_right_one_finds(sam, embedding):
    right, turned = logits_of(sam, embedding, BOX, Prompt(box_xyxy_px=(90, 80, 20, 10)))
    assert torch.allclose(right, turned, atol=1e-5, rtol=0)


def test_a_prompt_outside_the_picture_is_refused(sam, embedding):
    with pytest.raises(PromptError, match="140 x 90"):
        sam.decode(embedding, [BOX, Prompt(points_px=((141, 5),), labels=(1,))])


def strokes_of(*areas: tuple[Scribble, tuple[slice, slice]]) -> torch.Tensor:
    strokes = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    for kind, area in areas:
        strokes[area] = kind
    return strokes


def test_united_targets_are_one_foreground(sam, embedding):
    guidance = sam.decode(embedding, [BOX, POINT, replace(BOX, box_xyxy_px=(70, 5, 130, 60))])
    united = guidance.united()
    assert len(united) == 1 and united.frame == guidance.frame
    assert torch.equal(united.network_mask[0], guidance.network_mask.amax(dim=0))
    assert united.scores == (max(guidance.scores),)
    each = torch.stack([guidance.post_mask(target) for target in range(3)])
    # The larger logit counts before it is enlarged, which can only close gaps between masks that meet.
    assert (united.post_mask(0) >= each.amax(dim=0)).all() and each.any() and not united.post_mask(0).all()


def test_one_target_or_none_is_already_united(sam, embedding):
    for prompts in ([], [BOX]):
        guidance = sam.decode(embedding, prompts)
        assert guidance.united() is guidance


def test_uniting_keeps_the_soft_edges_of_masks_that_were_given(sam, embedding):
    left, right = ellipse(40, 40, 25, 25) * 0.8, ellipse(70, 40, 25, 25)
    guidance = sam.decode(embedding, [Prompt(mask=mask, mask_is_guidance=True) for mask in (left, right)])
    assert torch.equal(guidance.united().post_mask(0), torch.maximum(left, right))
    mixed = sam.decode(embedding, [Prompt(mask=left, mask_is_guidance=True), BOX])
    assert torch.equal(mixed.united().post_mask(0), torch.maximum(left, mixed.post_mask(1)))


def test_uniting_keeps_what_strokes_say_of_each_target(sam, embedding):
    hair, ear, gap = (slice(2, 6), slice(100, 130)), (slice(40, 50), slice(60, 70)), (slice(70, 80), slice(2, 20))
    on, off, unknown = Scribble.FOREGROUND, Scribble.BACKGROUND, Scribble.UNKNOWN
    one = replace(BOX, scribbles=strokes_of((off, ear), (unknown, hair), (off, gap)))
    other = replace(POINT, scribbles=strokes_of((on, ear), (off, hair), (off, gap)))
    mask = sam.decode(embedding, [one, other]).united().post_mask(0)
    assert (mask[hair] == 0.5).all(), "open for one of them"
    assert (mask[ear] == 1).all(), "one's background is the other's ear"
    assert (mask[gap] == 0).all(), "neither is there"


def test_uniting_changes_nothing_in_what_was_united(sam, embedding):
    guidance = sam.decode(embedding, [BOX, Prompt(mask=ellipse(60, 40, 30, 25), mask_is_guidance=True)])
    logits, masks = guidance.logits.clone(), [guidance.post_mask(target) for target in range(2)]
    guidance.united()
    assert torch.equal(guidance.logits, logits) and len(guidance) == 2
    assert all(torch.equal(guidance.post_mask(target), masks[target]) for target in range(2))


def test_a_part_of_a_mask_is_what_the_whole_mask_shows_there(sam, embedding):
    soft = torch.nn.functional.avg_pool2d(ellipse(60, 40, 30, 25)[None, None], 5, stride=1, padding=2)[0, 0]
    prompts = [BOX, HINT, Prompt(mask=soft, mask_is_guidance=True), replace(POINT, scribbles=STROKES.byte())]
    guidance = sam.decode(embedding, prompts)
    for target in range(len(prompts)):
        whole = guidance.post_mask(target)
        for window in (Window(0, 0, HEIGHT, WIDTH), Window(30, 20, 31, 90), Window(80, 130, HEIGHT, WIDTH)):
            part = guidance.post_mask(target, window)
            assert part.shape == (window.height, window.width)
            assert (part != window.of(whole)).float().mean() <= 1e-3


def test_outside_its_window_a_mask_is_empty(sam, embedding):
    prompts = [BOX, POINT, HINT, Prompt(mask=ellipse(60, 40, 30, 25), mask_is_guidance=True), Prompt()]
    guidance = sam.decode(embedding, prompts)
    small = ellipse(64, 64, 5, 5)[:64, :64]
    guidance.logits[0] = (small + ellipse(30, 30, 3, 6)[:64, :64]) * 20 - 10
    for target in range(4):
        mask, window = guidance.post_mask(target), guidance.mask_window(target)
        inside = window.of(mask).sum()
        assert inside == mask.sum() > 0
    assert guidance.mask_window(0).area < 0.9 * HEIGHT * WIDTH
    assert guidance.mask_window(4) is None
