"""A trimap, strokes and soft masks as prompts: what they call certain stays, only what they leave open is matted."""

from __future__ import annotations

import pytest
import torch

from .graphs import disc, disc_picture, loaders, node, pictures, steps, without_models

HEIGHT, WIDTH = 64, 96
SUBJECT = disc(HEIGHT, WIDTH, 40, 32, 18)
MERGES = {"merged": {}, "from alpha": {"guidance_mode": "alpha"}, "two sides": {"sides": "two"}}
ENGINES = ["models", "none"]


@pytest.fixture
def matted(comfy, tensors, warm_models):
    """`matted(engine, image, trimap=..., ...)`: the finished run.

    The masks are those of MAM_PromptMask, [H, W] or [B, H, W]. The engine is a method of Matte without Models (node
    "mattes"), or "models": SAM and Mask-to-Matte, merged in three ways (the nodes of MERGES).
    """

    def run(engine: str, image: torch.Tensor, use_mask_as: str = "guidance", **masks: torch.Tensor):
        graph = {name: node(tensors(mask if mask.ndim == 3 else mask[None])) for name, mask in masks.items()}
        links = {name: (name, 0) for name in masks}
        graph |= {"image": node(tensors(image)), "prompt": node("MAM_PromptMask", use_mask_as=use_mask_as, **links)}
        if engine != "models":
            return comfy.run({**graph, **without_models(engine, prompt=("prompt", 0))})
        graph |= {**loaders(*(model.name for model in warm_models)), **steps()}
        for name, settings in MERGES.items():
            graph[name] = node("MAM_RefineMerge", alphas=("pyramid", 0), **settings)
            graph[f"shown {name}"] = node("MaskPreview", mask=(name, 0))
        return comfy.run(graph)

    return run


@pytest.fixture
def mattes_of(matted):
    """The same, but a list of the mattes [B, H, W] alone, one entry for each way of merging."""

    def run(engine: str, image: torch.Tensor, **prompt) -> list[torch.Tensor]:
        done = matted(engine, image, **prompt)
        assert done.ok, done.error
        return [done.output(name).clone() for name in (MERGES if engine == "models" else ["mattes"])]

    return run


@pytest.fixture
def matte_of(mattes_of):
    """The first frame's matte [H, W], merged in the published way."""

    def run(engine: str, image: torch.Tensor, **prompt) -> torch.Tensor:
        return mattes_of(engine, image, **prompt)[0][0]

    return run


def trimap_of_the_disc() -> torch.Tensor:
    """Sure inside and outside, a band of 8 pixels, and an open patch far off the subject, as for a flying lock."""
    trimap = torch.zeros(HEIGHT, WIDTH)
    trimap[disc(HEIGHT, WIDTH, 40, 32, 22) > 0] = 0.5
    trimap[disc(HEIGHT, WIDTH, 40, 32, 14) == 1] = 1
    trimap[6:14, 78:92] = 0.5
    return trimap


@pytest.mark.parametrize("engine", ENGINES)
def test_outside_the_unknown_band_the_matte_is_the_trimap(mattes_of, engine):
    trimap = trimap_of_the_disc()
    for (alpha,) in mattes_of(engine, disc_picture(SUBJECT), trimap=trimap):
        assert (alpha[trimap == 1] == 1).all()
        assert (alpha[trimap == 0] == 0).all()
        band = alpha[trimap == 0.5]
        assert ((band > 0) & (band < 1)).any(), "the band was not matted"


@pytest.mark.parametrize("method", ["closed-form", "knn", "none"])
def test_within_the_band_the_picture_decides(matte_of, method):
    if method != "none":
        pytest.importorskip("pymatting", reason="PyMatting is not installed")
    trimap = trimap_of_the_disc()
    alpha = matte_of(method, disc_picture(SUBJECT), trimap=trimap)
    near = disc(HEIGHT, WIDTH, 40, 32, 23) > 0
    assert (alpha - SUBJECT)[near].abs().mean() < 0.05 < (trimap - SUBJECT)[near].abs().mean()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_frame_has_its_own_trimap_and_one_without_a_band_is_the_matte(mattes_of, engine):
    band = trimap_of_the_disc()
    trimaps = torch.stack((band, torch.zeros_like(band), band.flip(1), torch.ones_like(band)))
    for alphas in mattes_of(engine, disc_picture(SUBJECT), trimap=trimaps):
        assert alphas.shape == trimaps.shape
        assert torch.equal(alphas[trimaps != 0.5], trimaps[trimaps != 0.5])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_trimap_without_sure_subject_does_not_stop_the_run(mattes_of, engine):
    trimaps = torch.stack((torch.zeros(HEIGHT, WIDTH), torch.full((HEIGHT, WIDTH), 0.5)))
    trimaps[0, 20:40, 30:60] = 0.5
    for alphas in mattes_of(engine, disc_picture(SUBJECT), trimap=trimaps):
        assert torch.isfinite(alphas).all() and alphas.min() >= 0 and alphas.max() <= 1
        assert (alphas[trimaps == 0] == 0).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_strokes_overrule_the_trimap_beneath_them(mattes_of, engine):
    trimap = trimap_of_the_disc()
    on, off = torch.zeros(HEIGHT, WIDTH), torch.zeros(HEIGHT, WIDTH)
    on[6:14, 78:92] = 1
    off[28:36, 36:44] = 1
    strokes = {"foreground_strokes": on, "background_strokes": off}
    for (alpha,) in mattes_of(engine, disc_picture(SUBJECT), trimap=trimap, **strokes):
        assert (alpha[on == 1] == 1).all()
        assert (alpha[off == 1] == 0).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stroke_is_certain_however_near_the_edge_it_lies(mattes_of, engine):
    """The bands of the merge reach over the mask's edge, but not over what the user said."""
    mask = (SUBJECT > 0.5).float()
    on, off = torch.zeros(HEIGHT, WIDTH), torch.zeros(HEIGHT, WIDTH)
    off[10:54, 60:64] = 1
    on[30:34, 18:30] = 1
    strokes = {"foreground_strokes": on, "background_strokes": off}
    for (alpha,) in mattes_of(engine, disc_picture(SUBJECT), mask=mask, **strokes):
        assert (alpha[on == 1] == 1).all()
        assert (alpha[off == 1] == 0).all()


def armed() -> tuple[torch.Tensor, torch.Tensor]:
    """A picture whose subject has a thin arm to the right, and a mask that knows only its body."""
    mask = (SUBJECT > 0.5).float()
    truth = mask.clone()
    truth[30:34, 50:92] = 1
    return disc_picture(truth), mask


ARM = (slice(31, 33), slice(82, 90))


def test_unknown_strokes_find_a_part_far_from_the_mask(matte_of):
    pytest.importorskip("pymatting", reason="PyMatting is not installed")
    image, mask = armed()
    unknown = torch.zeros(HEIGHT, WIDTH)
    unknown[27:37, 56:95] = 1
    assert matte_of("closed-form", image, mask=mask)[ARM].max() == 0
    assert matte_of("closed-form", image, mask=mask, unknown_strokes=unknown)[ARM].min() > 0.8


def test_unknown_strokes_open_again_what_the_mask_had_settled(matte_of):
    mask = (SUBJECT > 0.5).float()
    inside, outside = (slice(28, 36), slice(36, 44)), (slice(6, 14), slice(78, 92))
    unknown = torch.zeros(HEIGHT, WIDTH)
    unknown[inside] = unknown[outside] = 1
    settled = matte_of("models", pictures(1, HEIGHT, WIDTH), mask=mask)
    opened = matte_of("models", pictures(1, HEIGHT, WIDTH), mask=mask, unknown_strokes=unknown)
    assert (settled[inside] == 1).all() and (settled[outside] == 0).all()
    assert (opened[inside] < 1).any() and (opened[outside] > 0).any()


def soft_steps() -> torch.Tensor:
    """From 1 on the left in eight broad steps to 0 on the right."""
    return torch.linspace(1, 0, 8).repeat_interleave(WIDTH // 8).expand(HEIGHT, WIDTH).clone()


def test_a_soft_mask_reaches_the_merge_as_it_is(matted):
    soft = soft_steps()
    run = matted("models", pictures(1, HEIGHT, WIDTH), mask=soft)
    assert run.ok, run.error
    (guidance,) = run.output("guidance")
    assert torch.equal(guidance.post_mask(0), soft)
    assert torch.equal(run.output("guidance", 1)[0], soft)


def test_soft_values_are_matted_where_a_hard_mask_would_have_decided(matte_of):
    soft = soft_steps()
    from_soft = matte_of("models", pictures(1, HEIGHT, WIDTH), mask=soft)
    from_hard = matte_of("models", pictures(1, HEIGHT, WIDTH), mask=(soft > 0.5).float())
    mostly_subject, mostly_not = slice(WIDTH // 8, 2 * WIDTH // 8), slice(6 * WIDTH // 8, 7 * WIDTH // 8)
    assert (from_hard[:, mostly_subject] == 1).all() and (from_soft[:, mostly_subject] < 1).any()
    assert (from_hard[:, mostly_not] == 0).all() and (from_soft[:, mostly_not] > 0).any()
    assert (from_soft[:, : WIDTH // 8] == 1).all(), "what the mask is sure of stays"


def test_soft_values_count_as_edge_without_models_too(matte_of):
    pytest.importorskip("pymatting", reason="PyMatting is not installed")
    image, mask = armed()
    soft = mask.clone()
    soft[27:37, 56:95] = 0.3
    assert matte_of("closed-form", image, mask=soft)[ARM].min() > 0.8


def test_a_mask_that_is_nowhere_sure_is_cut_at_its_middle(matte_of):
    """Some detectors give no value near 1; what they favour is then the subject."""
    alpha = matte_of("none", disc_picture(SUBJECT), mask=0.8 * SUBJECT)
    assert (alpha - SUBJECT).abs().mean() < 0.02


def test_a_mask_and_a_trimap_together_are_refused(matted):
    run = matted("none", disc_picture(SUBJECT), mask=SUBJECT, trimap=trimap_of_the_disc())
    assert run.failed_node == "prompt"
    assert "a mask or a trimap, not both" in run.error


@pytest.mark.parametrize("engine", ENGINES)
def test_a_trimap_of_another_size_is_refused_with_both_sizes(matted, engine):
    run = matted(engine, disc_picture(SUBJECT), trimap=trimap_of_the_disc()[:40, :50].clone())
    assert not run.ok
    assert "50 x 40" in run.error and f"{WIDTH} x {HEIGHT}" in run.error


def test_a_trimap_and_strokes_of_different_sizes_are_refused_with_both_sizes(matted):
    run = matted("none", disc_picture(SUBJECT), trimap=trimap_of_the_disc(), unknown_strokes=torch.ones(30, 40))
    assert run.failed_node == "prompt"
    assert f"{WIDTH} x {HEIGHT}" in run.error and "40 x 30" in run.error
