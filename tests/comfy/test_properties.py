"""What holds for every picture, prompt and setting: a result that keeps the contract, or a refusal in words.

The contract: outputs are finite and within 0 to 1; as many come out as went in, in order; no input is changed; and a
frame's result does not depend on the frames beside it. Nodes are called directly, because the executor around them is
tested elsewhere and takes longer than they do.
"""

from __future__ import annotations

import json
import math
import traceback
from collections import namedtuple
from dataclasses import dataclass, replace
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from .graphs import disc

COMMON = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
}
quick = settings(max_examples=25, **COMMON)
many = settings(max_examples=150, **COMMON)
few = settings(max_examples=12, **COMMON)


@pytest.fixture(scope="module", autouse=True)
def as_in_the_executor(comfyui):
    """No gradients, as when ComfyUI runs a node; and no progress bar, which would ask which node is running."""
    import comfy.utils

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", None)
        yield


@pytest.fixture(scope="module")
def models(comfyui, tiny_m2m_file):
    """(SAM, Mask-to-Matte) that see pictures at 64 x 64 pixels: as quick as the classical engine."""
    library = checkpoints.library("sam")
    config = replace(checkpoints.tiny_sam_config(), image_size=64, window_size=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state_dict = library.Sam(config).state_dict()
        for key in ("image_encoder.pos_embed", *(key for key in state_dict if "rel_pos" in key)):
            state_dict[key].normal_(std=0.1)
    files = [comfyui.models_dir / "sams" / "very_tiny_sam.pth", comfyui.models_dir / "mam" / "very_tiny_m2m.pth"]
    torch.save(state_dict, files[0])
    files[1].write_bytes(Path(tiny_m2m_file).read_bytes())
    shared = comfyui.module("nodes.models")
    yield shared.shared_sam(files[0].name, "fp32"), shared.shared_m2m(files[1].name, "fp32")
    for file in files:
        file.unlink()


SIDES = st.integers(1, 40)
COUNTS = st.integers(1, 3)
DTYPES = st.sampled_from([torch.float32, torch.float16])
SEEDS = st.integers(0, 2**16)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def images(draw, count=None, height=None, width=None) -> Tensor:
    """[B, H, W, 3 or 4] of noise, of one colour, or of a disc on a ground."""
    count, height, width = count or draw(COUNTS), height or draw(SIDES), width or draw(SIDES)
    seed, kind = draw(SEEDS), draw(st.sampled_from(["noise", "noise", "flat", "disc"]))
    made = noise(seed, count, height, width, 3)
    if kind == "flat":
        made = made[:, :1, :1].round().expand(count, height, width, 3).clone()
    elif kind == "disc":
        matte = disc(height, width, width / 2, height / 2, 0.3 * max(height, width))[None, ..., None]
        made = 0.1 * made + 0.9 * (matte * made[:, :1, :1] + (1 - matte) * (1 - made[:, :1, :1]))
    if draw(st.integers(0, 4)) == 0:
        made = torch.cat((made, noise(seed + 1, count, height, width, 1)), dim=-1)
    return made.to(draw(DTYPES))


@st.composite
def mattes(draw, count=None, height=None, width=None) -> Tensor:
    """[B, H, W] in 0..1: soft noise, hard noise, a disc, all of it, or nothing; each frame of another kind."""
    count, height, width = count or draw(COUNTS), height or draw(SIDES), width or draw(SIDES)
    frames = []
    for _ in range(count):
        kind = draw(st.sampled_from(["soft", "hard", "disc", "full", "empty"]))
        if kind == "disc":
            frames.append(disc(height, width, width / 2, height / 3, 0.3 * max(height, width)))
        else:
            made = noise(draw(SEEDS), height, width)
            frames.append({"soft": made, "hard": made.round(), "full": made * 0 + 1, "empty": made * 0}[kind])
    return torch.stack(frames).to(draw(DTYPES))


@st.composite
def with_mattes(draw, *kinds):
    """An image [B, H, W, 3] and as many further batches as there are `kinds` (strategies like `mattes`).

    They mostly fit: one size, and 1 or B frames each. Sometimes one has another size or number of frames.
    """
    image = draw(images())
    count, height, width = image.shape[:3]
    others = []
    for kind in kinds:
        size = (height, width) if draw(st.integers(0, 7)) else (draw(SIDES), draw(SIDES))
        number = draw(st.sampled_from([1, count])) if draw(st.integers(0, 7)) else draw(COUNTS)
        others.append(draw(kind(number, *size)))
    return image, *others


@dataclass(frozen=True)
class Scene:
    """What a prompt is drawn for: pictures of a size, and whether the prompt may be odd, such as beside the picture."""

    count: int
    height: int
    width: int
    odd: bool

    @property
    def frame_counts(self):
        """For how many frames something in the prompt speaks."""
        return COUNTS if self.odd else st.sampled_from([1, self.count])

    def place(self, length: int):
        inside = st.floats(0, length, width=32)
        odd = st.sampled_from([0, length, -1, length + 1, 1e30, -1e300, math.nan, math.inf])
        return st.one_of(inside, inside, odd) if self.odd else inside

    def span(self, length: int):
        """Where a box begins and ends along a side of that length."""
        if self.odd:
            return st.tuples(self.place(length), self.place(length))
        shares = st.tuples(st.floats(0, 0.8), st.floats(0.1, 1.2))
        return shares.map(lambda share: (share[0] * length, (share[0] + share[1]) * length))

    @property
    def point(self):
        return st.tuples(self.place(self.width), self.place(self.height))

    @property
    def box(self):
        spans = st.tuples(self.span(self.width), self.span(self.height))
        return spans.map(lambda span: (span[0][0], span[1][0], span[0][1], span[1][1]))

    def written(self, item):
        """Frames of up to three points or boxes, as text: JSON, or lines for a single frame."""

        def text(frames: list, lines: bool) -> str:
            if lines and len(frames) == 1:
                return "\n".join(" ".join(map(str, numbers)) for numbers in frames[0])
            return json.dumps(frames if len(frames) > 1 else frames[0])

        # Seldom a frame in which nothing was found.
        frame = st.one_of(st.lists(item, min_size=1, max_size=3), st.lists(item, max_size=3))
        frames = self.frame_counts.flatmap(lambda count: st.lists(frame, min_size=count, max_size=count))
        return st.builds(text, frames, st.booleans())

    @property
    def masks(self):
        size = (self.height, self.width)
        sizes = st.one_of(st.just(size), st.just(size), st.tuples(SIDES, SIDES)) if self.odd else st.just(size)
        return st.tuples(self.frame_counts, sizes).flatmap(lambda drawn: mattes(drawn[0], *drawn[1]))


@st.composite
def scenes(draw, image: Tensor | None = None) -> Scene:
    """Mostly sound ones, for an image [B, H, W, 3] or for any picture."""
    size = (draw(COUNTS), draw(SIDES), draw(SIDES)) if image is None else image.shape[:3]
    return Scene(*size, odd=draw(st.integers(0, 3)) == 0)


@st.composite
def asked(draw, scene: Scene) -> tuple[str, dict]:
    """A prompt node's id and its inputs."""
    kind = draw(st.sampled_from(["points", "boxes", "boxes", "mask", "strokes", "trimap"]))
    label = {"label": draw(LABELS)}
    if kind == "points":
        each = draw(st.sampled_from(["part of one target", "a target of its own"]))
        inputs = {"positive": draw(scene.written(scene.point)), "negative": draw(scene.written(scene.point))}
        return "MAM_PromptPoints", {**inputs, "each_point_is": each, **label}
    if kind == "boxes":
        return "MAM_PromptBoxes", {"boxes": draw(scene.written(scene.box)), **label}
    if kind == "trimap":
        return "MAM_PromptMask", {"trimap": three_values(draw(scene.masks)), **label}
    strokes = st.sampled_from(["foreground_strokes", "background_strokes", "unknown_strokes"])
    names = draw(st.lists(strokes, unique=True, min_size=int(kind == "strokes")))
    inputs = {name: draw(scene.masks) for name in names}
    if kind == "mask":
        inputs |= {"mask": draw(scene.masks), "use_mask_as": draw(st.sampled_from(["guidance", "hint"]))}
    return "MAM_PromptMask", {**inputs, **label}


LABELS = st.sampled_from(["", "dog", "Dog", "cat", "女孩 😀", " "])


def three_values(mask: Tensor) -> Tensor:
    """A matte as a trimap of 0, 0.5 and 1."""
    return (mask * 2).round() / 2


@st.composite
def prompts(draw, run, scene: Scene):
    """A set of prompts as a prompt node makes it, or as two of them combined make it."""
    made = []
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        node_id, inputs = draw(asked(scene))
        output = run(node_id, **inputs)
        assume(output is not None)
        made.append(output[0])
    if len(made) == 1:
        return made[0]
    combine_as = draw(st.sampled_from(["the same target", "further targets"]))
    output = run("MAM_CombinePrompts", prompts=numbered(made), combine_as=combine_as)
    assume(output is not None)
    return output[0]


def numbered(parts: list) -> dict:
    return {f"prompt{number}": part for number, part in enumerate(parts)}


@pytest.fixture(scope="module")
def run(comfyui):
    """`run(node_id, **inputs)`: what the node puts out, or None when it refuses in words. Inputs stay as they were."""
    folder = Path(comfyui.pack.__file__).resolve().parent

    def call(node_id: str, **inputs):
        copies = {name: value.clone() for name, value in inputs.items() if isinstance(value, Tensor)}
        try:
            return comfyui.node(node_id).execute(**inputs).args
        except ValueError as error:
            check_refusal(error, folder)
            return None
        finally:
            for name, copy in copies.items():
                assert torch.equal(inputs[name].nan_to_num(), copy.nan_to_num()), f"{node_id} changed its {name}"

    return call


def check_refusal(error: ValueError, folder: Path) -> None:
    """A refusal is raised by us, not by a library below us, and is a sentence or two for people."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    assert raised_in.is_relative_to(folder), f"{error!r} comes from {raised_in}"
    text = str(error)
    assert text[0].isupper() or text[0] in "\"'", text
    assert text.endswith((".", ".)", '"')) and 20 < len(text) < 600 and "\n" not in text, text


def check_values(tensor: Tensor, *shape: int) -> None:
    assert tensor.shape == shape
    assert tensor.is_floating_point() and tensor.device.type == "cpu"
    assert torch.isfinite(tensor).all() and tensor.min() >= 0 and tensor.max() <= 1


def frame_count(*batches: Tensor) -> int | None:
    """How many frames these give together; None when their numbers do not fit."""
    sizes = {len(batch) for batch in batches}
    return max(sizes) if len(sizes - {1}) <= 1 else None


def one(batch: Tensor, index: int) -> Tensor:
    return batch[index : index + 1] if len(batch) > 1 else batch


def fit(image: Tensor, *others: Tensor) -> bool:
    return all(other.shape[1:3] == image.shape[1:3] for other in others) and frame_count(image, *others) is not None


def check_alone(run, node_id: str, together: tuple, batches: dict[str, Tensor], **others) -> None:
    """Each frame alone gives what it gave among the others."""
    for index in range(frame_count(*batches.values())):
        alone = run(node_id, **{name: one(batch, index) for name, batch in batches.items()}, **others)
        for output, expected in zip(alone, together):
            torch.testing.assert_close(output[0], expected[index], atol=1e-5, rtol=0)


PIECES = st.sampled_from(
    [*"[]{}(),:; -.\n\"'e01犬\ufeff"]
    + '17 2.5 nan inf true null "x" "y" "width" "height" "points" "labels" "positive" "negative" "label"'.split()
)
KEYS = st.sampled_from(["x", "y", "width", "height", "points", "labels", "positive", "negative", "label", "score", "?"])
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([10**400, np.float32(1), np.zeros(4), np.zeros((2, 4)), np.zeros((0, 4)), torch.ones(2, 2, 4)]),
)
WRITTEN = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.tuples(inner, inner),
        st.tuples(inner, inner, inner, inner),
        st.dictionaries(KEYS, inner, max_size=5),
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def dialects(comfyui):
    return comfyui.module("nodes.dialects")


@pytest.fixture(scope="module")
def read_or_refused(comfyui, dialects):
    """`read_or_refused(written)`: both readers take it, giving frames of points and boxes, or name it in a sentence."""
    error_type = comfyui.module("mam_model.prompt").PromptError
    folder = Path(comfyui.pack.__file__).resolve().parent

    def check(written) -> None:
        for read, kind, arguments in (
            (dialects.read_points, dialects.Point, {"label": 1}),
            (dialects.read_boxes, dialects.Box, {}),
        ):
            try:
                frames = read(written, **arguments)
            except error_type as error:
                check_refusal(error, folder)
                assert '"' in str(error), "what cannot be read is quoted"
                continue
            assert isinstance(frames, list) and frames
            assert all(isinstance(item, kind) for frame in frames for item in frame)
            for item in (item for frame in frames for item in frame):
                places = (item.x, item.y) if kind is dialects.Point else item.xyxy
                assert all(isinstance(place, float) for place in places)

    return check


@many
@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=25).map("".join)))
def test_any_text_is_read_or_named(read_or_refused, text):
    read_or_refused(text)


@many
@given(WRITTEN)
def test_whatever_another_node_gives_is_read_or_named(read_or_refused, written):
    read_or_refused(written)


@many
@given(WRITTEN)
def test_any_json_is_read_or_named(read_or_refused, written):
    read_or_refused(json.dumps(written, default=str))


FINITE = st.one_of(st.integers(-9999, 9999), st.floats(-1e6, 1e6, allow_nan=False))
POINT_FRAMES = st.lists(st.lists(st.tuples(FINITE, FINITE), max_size=4), min_size=1, max_size=3)
BOX_FRAMES = st.lists(st.lists(st.tuples(FINITE, FINITE, FINITE, FINITE), max_size=4), min_size=1, max_size=3)


@quick
@given(POINT_FRAMES, st.sampled_from([0, 1]))
def test_points_mean_the_same_in_every_dialect(dialects, frames, label):
    expected = [[dialects.Point(float(x), float(y), label) for x, y in frame] for frame in frames]
    named = [[{"x": x, "y": y} for x, y in frame] for frame in frames]
    side = "positive" if label else "negative"
    per_frame = [
        frames,
        named,
        [[{**point, "label": label} for point in frame] for frame in named],
        [{"points": [list(point) for point in frame], "labels": [label] * len(frame)} for frame in frames],
        [{side: frame} for frame in named],
    ]
    for written in per_frame:
        for form in (written, json.dumps(written), json.dumps(written).replace('"', "'")):
            assert dialects.read_points(form, label) == expected
    for frame, wanted in zip(frames, expected):
        for separator, end in ((" ", "\n"), (", ", ";"), ("\t", " \r\n")):
            text = end.join(f"{x}{separator}{y}" for x, y in frame)
            assert dialects.read_points(text, label) == [wanted]
        assert dialects.read_points(dialects.write_points(frame), label) == [wanted]


SEG = namedtuple("SEG", "cropped_image cropped_mask confidence crop_region bbox label control_net_wrapper")


@quick
@given(BOX_FRAMES)
def test_boxes_mean_the_same_in_every_dialect(dialects, frames):
    def xyxy(read) -> list[list[tuple]]:
        return [[box.xyxy for box in frame] for frame in read]

    expected = [[tuple(map(float, box)) for box in frame] for frame in frames]
    for form in (frames, json.dumps(frames), [np.array(frame, dtype=np.float64).reshape(-1, 4) for frame in frames]):
        assert xyxy(dialects.read_boxes(form)) == expected
    for frame, wanted in zip(frames, expected):
        segs = [SEG(None, None, np.array([0.5]), None, np.array(box, dtype=np.float64), "a", None) for box in frame]
        assert xyxy(dialects.read_boxes(((9, 9), segs))) == [wanted]
        assert xyxy(dialects.read_boxes("\n".join(" ".join(map(str, box)) for box in frame))) == [wanted]
    sized = [[(x, y, x + width, y + height) for x, y, width, height in frame] for frame in expected]
    core = [[dict(zip(("x", "y", "width", "height"), box)) for box in frame] for frame in frames]
    for form, corners in ((core, True), (json.dumps(core), True), (frames, False), (json.dumps(frames), False)):
        assert xyxy(dialects.read_boxes(form, corners=corners)) == sized


@quick
@given(st.data())
def test_prompts_come_back_in_cores_types(run, dialects, data):
    scene = data.draw(scenes())
    prompt = data.draw(prompts(run, scene))
    image = data.draw(st.one_of(st.none(), images(1, scene.height, scene.width)))
    boxed = [[target for target in targets if target.box_xyxy_px] for targets in prompt.frames]
    for frame, targets in enumerate(prompt.frames):
        info = run("MAM_PromptInfo", prompt=prompt, frame=frame, image=image)
        if info is None:
            continue
        found, positive, negative, mask = info
        size = image.shape[1:3] if image is not None else mask.shape[1:]
        check_values(mask, 1, *size)
        per_frame = found if len(prompt.frames) > 1 else [found]
        assert [len(written) for written in per_frame] == [len(targets) for targets in boxed]
        assert not any(box["width"] < 0 or box["height"] < 0 for written in per_frame for box in written)
        given_points = [point for target in targets for point in zip(target.points_px, target.labels)]
        for text, label in ((positive, 1), (negative, 0)):
            ((read),) = dialects.read_points(text, label)
            expected = [place for place, own in given_points if own == label]
            np.testing.assert_array_equal([(point.x, point.y) for point in read], expected)


@quick
@given(st.data())
def test_combined_prompts_lose_no_target_and_no_frame(run, data):
    parts = data.draw(st.lists(prompts(run, data.draw(scenes())), min_size=2, max_size=3))
    joined = run("MAM_CombinePrompts", prompts=numbered(parts), combine_as="further targets")
    merged = run("MAM_CombinePrompts", prompts=numbered(parts), combine_as="the same target")
    sizes = {len(part.frames) for part in parts}
    if len(sizes - {1}) > 1:
        assert joined is None and merged is None
        return
    for combined, together in ((joined, sum), (merged, max)):
        # Masks of two sizes cannot be merged, but stand side by side.
        if combined is None:
            assert combined is merged
            continue
        frames = combined[0].frames
        assert len(frames) == max(sizes)
        for index, targets in enumerate(frames):
            counts = [len(part.frames[index if len(part.frames) > 1 else 0]) for part in parts]
            assert len(targets) == together(counts)


def check_mattes(output: tuple, count: int, height: int, width: int) -> None:
    """The three outputs of every node that makes mattes."""
    frames, alphas, index = output
    check_values(frames, count, height, width)
    check_values(alphas, len(index), height, width)
    assert index.frame_count == count
    assert [(entry.frame, entry.index) for entry in index.entries] == sorted(
        (entry.frame, entry.index) for entry in index.entries
    )
    for number in range(count):
        own = [place for place, entry in enumerate(index.entries) if entry.frame == number]
        assert own and [index.entries[place].index for place in own] == list(range(len(own)))
        total = alphas[own].sum(dim=0)
        assert total.max() <= 1 + 1e-5
        torch.testing.assert_close(frames[number], total.clamp(0, 1), atol=1e-5, rtol=0)
    for entry, alpha in zip(index.entries, alphas):
        assert entry.found == bool(alpha.any())
        assert math.isfinite(entry.score)


def check_matting(run, node_id: str, image: Tensor, prompt, kind, **others) -> None:
    """A matting node's results together, and frame by frame. `kind` is the class of sets of prompts."""
    together = run(node_id, image=image, prompt=prompt, **others)
    count = frame_count(image, prompt.frames)
    if count is None:
        assert together is None
        return
    alone = [
        run(node_id, image=one(image, index), prompt=kind(one(prompt.frames, index)), **others)
        for index in range(count)
    ]
    if together is None:
        assert None in alone
        return
    check_mattes(together, count, *image.shape[1:3])
    torch.testing.assert_close(torch.cat([output[0] for output in alone]), together[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat([output[1] for output in alone]), together[1], atol=1e-5, rtol=0)
    entries = [replace(entry, frame=frame) for frame, output in enumerate(alone) for entry in output[2].entries]
    assert [nearly(entry) for entry in entries] == [nearly(entry) for entry in together[2].entries]


def nearly(entry):
    return replace(entry, score=round(entry.score, 4))


@quick
@given(st.data())
def test_mattes_without_models_keep_the_contract(run, comfyui, data):
    image = data.draw(images())
    prompt = data.draw(prompts(run, data.draw(scenes(image))))
    band = data.draw(st.floats(0.1, 8))
    kind = comfyui.module("mam_model.prompt").PromptSet
    check_matting(run, "MAM_MatteWithoutModels", image, prompt, kind, method="none", band=band)


@quick
@given(st.data())
def test_a_rough_mask_without_a_prompt_keeps_the_contract(run, data):
    image, mask = data.draw(with_mattes(mattes))
    output = run("MAM_MatteWithoutModels", image=image, mask=mask, method="none")
    if not mask.any():
        mask = mask.new_zeros(len(mask), *image.shape[1:3])
    assert (output is not None) == fit(image, mask)
    if output is not None:
        check_mattes(output, frame_count(image, mask), *image.shape[1:3])
        batches = {"image": image, "mask": mask}
        check_alone(run, "MAM_MatteWithoutModels", output[:1], batches, method="none")


MERGING = st.fixed_dictionaries(
    {
        "guidance_mode": st.sampled_from(["mask", "alpha"]),
        "sides": st.sampled_from(["one", "two"]),
        "width_os8": st.integers(0, 60),
        "width_os4": st.integers(0, 60),
        "width_os1": st.integers(0, 60),
    }
)


@quick
@given(st.data())
def test_mattes_of_the_networks_keep_the_contract(run, comfyui, models, data):
    sam, m2m = models
    image = data.draw(images())
    prompt = data.draw(prompts(run, data.draw(scenes(image))))
    kind = comfyui.module("mam_model.prompt").PromptSet
    check_matting(run, "MAM_MattingAnything", image, prompt, kind, sam=sam, m2m=m2m, **data.draw(MERGING))


@few
@given(st.data())
def test_the_four_steps_give_what_the_whole_gives(run, models, data):
    sam, m2m = models
    image = data.draw(images())
    prompt = data.draw(prompts(run, data.draw(scenes(image))))
    merging = data.draw(MERGING)
    whole = run("MAM_MattingAnything", sam=sam, m2m=m2m, image=image, prompt=prompt, **merging)
    (embedding,) = run("MAM_EncodeImage", sam=sam, image=image)
    found = run("MAM_Segment", sam=sam, embedding=embedding, prompt=prompt)
    assert (found is None) == (whole is None)
    if found is None:
        return
    guidance, mask = found
    check_values(mask, len(whole[0]), *image.shape[1:3])
    (alphas,) = run("MAM_MaskToMatte", m2m=m2m, embedding=embedding, guidance=guidance)
    stepwise = run("MAM_RefineMerge", alphas=alphas, **merging)
    torch.testing.assert_close(stepwise[0], whole[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(stepwise[1], whole[1], atol=1e-5, rtol=0)
    (semantic,) = run("MAM_SemanticMatte", m2m=m2m, embedding=embedding, guidance=guidance, **merging)
    check_values(semantic, *whole[0].shape)


@st.composite
def indexed(draw, library):
    """Mattes [N, H, W] of up to three subjects in each of up to three frames, and their index."""
    height, width = draw(SIDES), draw(SIDES)
    entries, alphas = [], []
    frame_total = draw(COUNTS)
    for frame in range(frame_total):
        count = draw(st.integers(0, 3))
        targets = draw(mattes(count, height, width)).float() if count else torch.zeros(0, height, width)
        prompts_of_frame = [library("prompt").Prompt(label=draw(LABELS)) for _ in range(count)]
        scores = draw(st.lists(st.floats(0, 1), min_size=count, max_size=count))
        targets = library("instances").share_pixels(targets)
        entries += library("instances").describe(frame, prompts_of_frame, scores, targets)
        alphas.append(targets if count else torch.zeros(1, height, width))
    index = library("instances").Instances(tuple(entries), frame_total)
    return torch.cat(alphas).to(draw(DTYPES)), index


CHOICES = st.one_of(
    st.fixed_dictionaries(
        {
            "by": st.just("position"),
            "position": st.sampled_from(["left", "right", "top", "bottom", "center", "largest", "smallest"]),
            "count": st.integers(1, 4),
        }
    ),
    st.fixed_dictionaries({"by": st.just("index"), "index": st.text("0123 ,;-x", max_size=6)}),
    st.fixed_dictionaries({"by": st.just("label"), "label": st.lists(LABELS, max_size=3).map(",".join)}),
    st.fixed_dictionaries({"by": st.just("score"), "lowest_score": st.floats(0, 1)}),
    st.fixed_dictionaries(
        {"by": st.just("area"), "smallest_percent": st.floats(0, 100), "largest_percent": st.floats(0, 100)}
    ),
    st.fixed_dictionaries({"by": st.just("point"), "x": st.integers(0, 45), "y": st.integers(0, 45)}),
)


def present(index) -> set[tuple[int, int]]:
    return {(entry.frame, entry.index) for entry in index.entries if entry.found}


@many
@given(st.data(), CHOICES)
def test_chosen_and_dropped_subjects_are_all_of_them_and_no_frame_is_lost(run, comfyui, data, by):
    alphas, index = data.draw(indexed(lambda name: comfyui.module(f"mam_model.{name}")))
    halves = [
        run("MAM_SelectInstances", instance_alphas=alphas, instances=index, by=by, invert=i) for i in (False, True)
    ]
    if None in halves:
        impossible = by["by"] == "area" and by["smallest_percent"] > by["largest_percent"]
        assert halves == [None, None] and (by["by"] == "index" or impossible)
        return
    for frames, mattes_kept, kept in halves:
        check_values(frames, index.frame_count, *alphas.shape[1:])
        check_values(mattes_kept, len(kept), *alphas.shape[1:])
        assert {entry.frame for entry in kept.entries} == set(range(index.frame_count))
        for entry, matte in zip(kept.entries, mattes_kept):
            assert entry.found == bool(matte.any())
            assert not entry.found or torch.equal(matte, alphas[index.entries.index(entry)])
    kept, dropped = (present(half[2]) for half in halves)
    assert kept | dropped == present(index) and not kept & dropped
    total = (halves[0][0].float() + halves[1][0].float()).clamp(0, 1)
    (whole, *_) = run("MAM_MergeInstances", instance_alphas=alphas, instances=index, merge="all of a frame")
    torch.testing.assert_close(total, whole.float(), atol=4e-3, rtol=0)


@quick
@given(st.data())
def test_merged_subjects_cover_what_they_covered_before(run, comfyui, data):
    alphas, index = data.draw(indexed(lambda name: comfyui.module(f"mam_model.{name}")))
    for merge in ("all of a frame", "same label"):
        frames, merged, kept = run("MAM_MergeInstances", instance_alphas=alphas, instances=index, merge=merge)
        check_values(frames, index.frame_count, *alphas.shape[1:])
        check_values(merged, len(kept), *alphas.shape[1:])
        for frame in range(index.frame_count):
            own = [place for place, entry in enumerate(index.entries) if entry.frame == frame]
            names = {index.entries[place].label for place in own} if merge == "same label" else {""}
            entries = [entry for entry in kept.entries if entry.frame == frame]
            assert [entry.label for entry in entries if entry.label] == [
                name for name in unique(own, index, names) if name
            ]
            assert len(entries) == len(names)
            torch.testing.assert_close(
                frames[frame].float(), alphas[own].float().sum(dim=0).clamp(0, 1), atol=4e-3, rtol=0
            )
        assert [entry.found for entry in kept.entries] == [bool(matte.any()) for matte in merged]


def unique(places: list[int], index, names: set[str]) -> list[str]:
    """The names in the order of their first subject."""
    return list(dict.fromkeys(index.entries[place].label for place in places if index.entries[place].label in names))


EDGES = st.fixed_dictionaries(
    {
        "shift_px": st.floats(-100, 100),
        "feather_px": st.one_of(st.just(0.0), st.floats(0, 200)),
        "contrast": st.floats(0, 1),
        "black_point": st.floats(0, 0.99),
        "white_point": st.floats(0.01, 1),
        "fill_holes_px": st.integers(0, 2000),
        "remove_specks_px": st.integers(0, 2000),
    }
)


@quick
@given(mattes(), EDGES)
def test_any_edge_setting_gives_a_matte(run, alpha, controls):
    output = run("MAM_EdgeAdjust", alpha=alpha, **controls)
    assert (output is None) == (controls["black_point"] >= controls["white_point"])
    if output is not None:
        check_values(output[0], *alpha.shape)
        check_alone(run, "MAM_EdgeAdjust", output, {"alpha": alpha}, **controls)


@quick
@given(
    mattes(),
    st.sampled_from(["even", "adaptive"]),
    st.floats(0, 60),
    st.floats(0, 60),
    st.sampled_from(["pixels", "per cent"]),
)
def test_any_mask_gives_a_trimap_of_three_values(run, mask, band, inner, outer, unit):
    choices = {"band": band, "inner": inner, "outer": outer, "unit": unit}
    output = run("MAM_Trimap", mask=mask, **choices)
    check_values(output[0], *mask.shape)
    assert set(output[0].unique().tolist()) <= {0.0, 0.5, 1.0}
    check_alone(run, "MAM_Trimap", output, {"mask": mask}, **choices)
    sure_before, sure = mask.float().round(), output[0]
    assert ((sure == 0.5) | (sure == sure_before) | ((mask > 0.05) & (mask < 0.95))).all(), "no side is changed over"


@few
@given(with_mattes(mattes), st.sampled_from(["closed-form", "knn"]))
def test_refining_keeps_what_the_trimap_is_sure_of(run, pair, method):
    pytest.importorskip("pymatting", reason="PyMatting is not installed")
    image, trimap = pair
    trimap = three_values(trimap)
    output = run("MAM_RefineWithTrimap", image=image, trimap=trimap, method=method)
    if not fit(image, trimap):
        assert output is None
    if output is not None:
        check_values(output[0], frame_count(image, trimap), *image.shape[1:3])
        sure = (trimap != 0.5).expand(output[0].shape)
        assert torch.equal(output[0][sure], trimap.float().expand(output[0].shape)[sure])
        check_alone(run, "MAM_RefineWithTrimap", output, {"image": image, "trimap": trimap}, method=method)


@quick
@given(with_mattes(mattes, images), st.booleans(), st.sampled_from(["estimated", "black", "neutral grey"]))
def test_foreground_colours_keep_the_contract(run, batches, knows_background, where_clear):
    image, alpha, background = batches
    given_batches = {"image": image, "alpha": alpha, **({"background": background} if knows_background else {})}
    output = run("MAM_ForegroundColor", **given_batches, where_clear=where_clear)
    assert (output is not None) == fit(*given_batches.values())
    if output is not None:
        shape = (frame_count(*given_batches.values()), *image.shape[1:3], 3)
        for colors in output:
            check_values(colors, *shape)
        check_alone(run, "MAM_ForegroundColor", output, given_batches, where_clear=where_clear)


COMPOSITING = st.fixed_dictionaries(
    {
        "color": st.sampled_from(["#00b140", "white", "#abc"]),
        "fit": st.sampled_from(["cover", "contain", "stretch", "center"]),
        "edge_color": st.sampled_from(["estimated", "as photographed"]),
        "blend": st.sampled_from(["sRGB", "linear light"]),
        "canvas": st.sampled_from(["image", "background"]),
        "x": st.floats(-2, 3),
        "y": st.floats(-2, 3),
        "scale": st.floats(0.01, 4),
        "light_wrap": st.one_of(st.just(0.0), st.floats(0, 1)),
        "light_wrap_px": st.floats(1, 200),
        "cutout_alpha": st.sampled_from(["straight", "premultiplied"]),
    }
)


@quick
@given(with_mattes(mattes), st.data(), COMPOSITING)
def test_composites_keep_the_contract(run, pair, data, choices):
    image, alpha = pair
    batches = {"image": image, "alpha": alpha}
    if data.draw(st.booleans()):
        batches["background"] = data.draw(images(data.draw(st.sampled_from([1, len(image)]))))
    output = run("MAM_Composite", **batches, **choices)
    if not fit(image, alpha) or (choices["canvas"] == "background" and "background" not in batches):
        assert output is None
        return
    count = frame_count(*batches.values())
    assert (output is None) == (count is None)
    if output is not None:
        size = batches[choices["canvas"]].shape[1:3]
        check_values(output[0], count, *size, 3)
        check_values(output[1], count, *size, 4)
        check_alone(run, "MAM_Composite", output, batches, **choices)


VIEWS = ["checker", "black", "white", "color", "alpha", "onion skin", "overlay", "side by side"]


@quick
@given(with_mattes(mattes), st.sampled_from(VIEWS), st.sampled_from(["one by one", "contact sheet"]))
def test_every_view_keeps_the_contract(run, pair, view, layout):
    image, alpha = pair
    output = run("MAM_PreviewMatte", image=image, alpha=alpha, view=view, layout=layout)
    assert (output is not None) == fit(image, alpha)
    if output is None:
        return
    (shown,) = output
    if layout == "contact sheet":
        check_values(shown, 1, *shown.shape[1:3], 3)
        return
    height, width = image.shape[1:3]
    shape = (height, 3 * width + 8) if view == "side by side" else (height, width)
    check_values(shown, frame_count(image, alpha), *shape, 3)
    check_alone(run, "MAM_PreviewMatte", output, {"image": image, "alpha": alpha}, view=view)


@quick
@given(st.data())
def test_subjects_on_a_contact_sheet_keep_the_contract(run, comfyui, data):
    alphas, index = data.draw(indexed(lambda name: comfyui.module(f"mam_model.{name}")))
    image = data.draw(images(data.draw(st.sampled_from([1, index.frame_count])), *alphas.shape[1:]))
    inputs = {"image": image, "alpha": alphas, "instances": index}
    (sheet,) = run("MAM_PreviewMatte", **inputs, layout="contact sheet")
    check_values(sheet, 1, *sheet.shape[1:3], 3)
    (each,) = run("MAM_PreviewMatte", **inputs)
    check_values(each, *alphas.shape, 3)


@quick
@given(st.data())
def test_measures_are_numbers_and_0_for_a_perfect_matte(run, data):
    image, alpha, truth, trimap = data.draw(with_mattes(mattes, mattes, mattes))
    trimap = three_values(trimap)
    for compare in ("frame by frame", "instances of one picture"):
        for further in ({}, {"trimap": trimap}):
            output = run("MAM_MatteMetrics", alpha=alpha, truth=truth, compare=compare, **further)
            if output is not None:
                check_measures(output)
        errors = run("MAM_MatteMetrics", alpha=alpha, truth=alpha, compare=compare)
        check_measures(errors)
        assert max(errors[:5]) == pytest.approx(0, abs=1e-4)
    if alpha.shape[1:] != truth.shape[1:] or frame_count(alpha, truth) is None:
        assert run("MAM_MatteMetrics", alpha=alpha, truth=truth) is None


def check_measures(output: tuple) -> None:
    *numbers_given, table = output
    assert all(isinstance(number, float) and math.isfinite(number) and number >= 0 for number in numbers_given)
    assert numbers_given[5] <= 1 and isinstance(table, str)
