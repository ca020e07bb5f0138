"""How long a matte takes once the picture is encoded, next to the published way.

    python benchmarks/matte.py [--size 1024 768] [--targets 1 2 4 8 16] [--runs 5] [--threads 2] [--device cpu]
                               [--dtype fp32] [--quick]

By subject: `matte_targets` with the picture's part kept, next to the folded network over the whole square and to the
network in the form in which it is trained, both with every scale merged over the whole picture. One subject is another
one in each run, as with a user's clicks: pieces of sizes that were not met before need kernels made for them. By number
of targets: several persons on one picture, and what each further one takes. By picture: a person in pictures of growing
size. By part: the picture's part alone, SAM's decoder next to segment-anything's, and mask and merging in the subject's
rectangle next to the whole picture.

Networks have the published sizes and the weights of tests/references, subjects are drawn. Mattes are apart at single
pixels, where rounding carries a value over a threshold of the merge; how many are apart by more than 1e-5 is said.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import timing  # noqa: E402 - needs the line above
from benchmarks.networks import StockPath, trained_m2m  # noqa: E402
from mam_model.frame import Frame  # noqa: E402
from mam_model.m2m import AlphaPyramid, PictureFeatures  # noqa: E402
from mam_model.matting import matte_targets, merge_targets, predict_pyramid  # noqa: E402
from mam_model.merge import merge_scales, merge_together, merges_in_arrays, reach_of_box  # noqa: E402
from mam_model.partial import PartialPyramid  # noqa: E402
from mam_model.prompt import Prompt  # noqa: E402
from mam_model.regions import Window  # noqa: E402
from mam_model.sam import Embedding, Guidance, Sam, SamConfig  # noqa: E402

SIDE = 1024
GRID = SIDE // 4
SIZE = (1024, 768)
SIZES = ((512, 384), (1024, 768), (2000, 1333), (3000, 2000), (6000, 4000))


def blob(y: float, x: float, radius_y: float, radius_x: float, waves: int = 23) -> Tensor:
    """A subject with a wavy outline; centre and radii in parts of the picture. Float [256, 256], above 0 inside."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, GRID), torch.linspace(0, 1, GRID), indexing="ij")
    down, right = (rows - y) / radius_y, (columns - x) / radius_x
    return 1 + 0.04 * torch.sin(waves * torch.atan2(down, right)) - torch.hypot(down, right)


def foliage() -> Tensor:
    """A subject whose edge is everywhere."""
    noise = torch.randn(1, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, (GRID, GRID), mode="bicubic")[0, 0]


def person() -> Tensor:
    return torch.maximum(blob(0.3, 0.52, 0.12, 0.13), blob(0.74, 0.52, 0.33, 0.25))


def another_person(number: int) -> Tensor:
    """A person of other size and outline, at another place, for each number."""
    drawn = random.Random(number)
    size, x, down = drawn.uniform(0.75, 1.05), drawn.uniform(0.42, 0.58), drawn.uniform(-0.03, 0.03)
    head = blob(0.3 + down, x, 0.12 * size, 0.13 * size, drawn.randint(15, 30))
    return torch.maximum(head, blob(0.74 + down, x, 0.33 * size, 0.25 * size, drawn.randint(15, 30)))


SUBJECTS = {
    "small": lambda: blob(0.4, 0.4, 0.11, 0.15),
    "person": person,
    "frame-filling": lambda: blob(0.5, 0.5, 0.49, 0.48),
    "foliage": foliage,
}


class Scene:
    """A picture that is encoded, in noise, and the networks of both ways to the mattes of what is drawn on it."""

    def __init__(self, size: tuple[int, int], dtype: torch.dtype, device: torch.device):
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(1, 256, SIDE // 16, SIDE // 16, generator=generator)
        self.frame, self.device = Frame(*size), device
        content = torch.randint(
            0, 256, (self.frame.content_height, self.frame.content_width, 3), generator=generator, dtype=torch.uint8
        )
        self.m2m = trained_m2m().fold().to(device, dtype)
        self.stock = StockPath(None, trained_m2m().to(device, dtype))
        self.embedding = Embedding(features.to(device), content, self.frame)
        self.picture = self.m2m.look_at(self.embedding)
        self.encoded = (self.embedding.features, self.frame.network_input(content, device), self.frame)

    def guidance(self, subject: Tensor, targets: int = 1) -> Guidance:
        """As if SAM had found the subject `targets` times, each a little further to the right."""
        frame = self.frame
        height, width = frame.content_height // 4, frame.content_width // 4
        content = F.interpolate(subject[None, None], (height, width), mode="bilinear")
        square = F.pad(content, (0, GRID - width, 0, GRID - height), value=-1)[0]
        logits = torch.stack([20 * square.roll(3 * target, dims=-1).expand(3, -1, -1) for target in range(targets)])
        prompts = (Prompt(points_px=((0, 0),), labels=(1,)),) * targets
        chosen = torch.zeros(targets, dtype=torch.int64, device=self.device)
        return Guidance(prompts, logits.to(self.device), torch.ones(targets, 3, device=self.device), chosen, frame)

    def mattes(self, guidance: Guidance) -> Tensor:
        return matte_targets(self.m2m, self.picture, guidance)


@dataclass(frozen=True)
class Measured:
    """In which precision and where everything here is measured, and whether its memory is, too."""

    dtype: torch.dtype
    device: torch.device
    memory: bool = True

    def peaks(self, build: timing.Build, ways: Sequence[int], *arguments) -> str:
        """As `timing.peaks` says it, of ways that are made from some arguments, a precision and a device."""
        return timing.peaks(build, (*arguments, self.dtype, self.device), ways, self.device) if self.memory else ""


def ways_of_subject(
    name: str, size: tuple[int, int], targets: int, dtype: torch.dtype, device: torch.device
) -> list[Callable[[], Tensor]]:
    """To the mattes of a known picture: ours, the folded network over the whole square, and the published way."""
    scene = Scene(size, dtype, device)
    return _ways(scene, scene.guidance(SUBJECTS[name](), targets))


def _ways(scene: Scene, guidance: Guidance) -> list[Callable[[], Tensor]]:
    """`ways_of_subject` of a scene that is there already."""

    def whole() -> Tensor:
        return merge_targets(predict_pyramid(scene.m2m, scene.embedding, guidance), guidance)

    def published() -> Tensor:
        logits = guidance.chosen_logits
        return torch.stack([scene.stock.matte_of(scene.encoded, logits[t : t + 1]) for t in range(len(guidance))])

    return [lambda: scene.mattes(guidance), whole, published]


def by_subject(
    measured: Measured, runs: int, subjects: Sequence[str] = tuple(SUBJECTS), size: tuple[int, int] = SIZE
) -> list[timing.Line]:
    scene, found = Scene(size, measured.dtype, measured.device), []
    for name in subjects:
        guidance = scene.guidance(SUBJECTS[name]())
        ways = _ways(scene, guidance)
        ours, published = ways[0](), ways[2]()
        apart = (ours - published).abs()
        # Half-precision trained weights round before they are normalised: those mattes are not compared.
        exact = scene.picture.upsampled.dtype == torch.float32
        distance = f"{float(apart.max()):.1e}, {int((apart > 1e-5).sum())} pixels" if exact else ""
        box = guidance.mask_windows()[0]
        soft = ((ours > 0.004) & (ours < 0.996)).float().mean()
        area = box.area / (scene.frame.height * scene.frame.width)
        stage = f"matte of a known picture: {name}, rectangle {area:.0%} and soft edge {soft:.0%} of the picture"
        times = timing.in_turn(ways, runs, scene.device)
        memory = measured.peaks(ways_of_subject, (0, 2), name, size, 1)
        found.append(timing.compared(stage, times, ["whole square", "published"], memory, distance))
    return found


def by_new_subject(measured: Measured, runs: int, size: tuple[int, int] = SIZE) -> timing.Line:
    """A person that is another one in each run, next to the published way of the same."""
    scene = Scene(size, measured.dtype, measured.device)
    met = _ways(scene, scene.guidance(person()))
    timing.in_turn((met[0], met[2]), 0, scene.device)
    rows = []
    for number in range(runs):
        ours, _, published = _ways(scene, scene.guidance(another_person(number)))
        rows += timing.in_turn((ours, published), 1, scene.device, warm_up=0).rows
    stage = "matte of a known picture: a person of an outline that was not met before"
    return timing.compared(stage, timing.Times(rows), ["published"])


def by_targets(measured: Measured, runs: int, counts: Sequence[int], size: tuple[int, int] = SIZE) -> list[timing.Line]:
    """Persons; the time of the first one, and of each further one where there are several."""
    scene = Scene(size, measured.dtype, measured.device)
    guidances = {count: scene.guidance(person(), count) for count in sorted({1, *counts})}
    ways = [lambda guidance=guidance: scene.mattes(guidance) for guidance in guidances.values()]
    times = timing.in_turn(ways, runs, scene.device)
    found = []
    for way, count in enumerate(guidances):
        here = timing.duration(times.median(way))
        if count > 1:
            here += f", {timing.duration((times.median(way) - times.median(0)) / (count - 1))} each further one"
        stage = f"mattes of {count} persons" if count > 1 else "matte of 1 person"
        found.append(timing.Line(stage, here, memory=measured.peaks(ways_of_subject, (0,), "person", size, count)))
    return found


def by_picture(measured: Measured, runs: int, sizes: Sequence[tuple[int, int]]) -> list[timing.Line]:
    found = []
    for size in sizes:
        ours, _, published = ways_of_subject("person", size, 1, measured.dtype, measured.device)
        times = timing.in_turn((ours, published), runs, measured.device)
        memory = measured.peaks(ways_of_subject, (0, 2), "person", size, 1)
        stage = f"matte of a known picture, {size[0]} x {size[1]}"
        found.append(timing.compared(stage, times, ["published"], memory))
    return found


def by_part(measured: Measured, runs: int) -> list[timing.Line]:
    kept = Scene(SIZE, measured.dtype, measured.device).picture.nbytes / 1e6
    stages = [
        (f"the picture's part of Mask-to-Matte, of which {kept:.0f} MB are kept", ways_of_looking, (), ""),
        ("SAM's decoder, 1 prompt", ways_of_decoding, (1,), "segment-anything"),
        ("SAM's decoder, 8 prompts", ways_of_decoding, (8,), "segment-anything"),
        ("mask and merging, 3000 x 2000", ways_of_merging, ((3000, 2000),), "over the whole picture"),
    ]
    found = []
    for stage, build, arguments, other in stages:
        ways = build(*arguments, measured.dtype, measured.device)
        answers = [way() for way in ways]
        apart = f"{float((answers[0] - answers[1]).abs().max()):.1e}" if other else ""
        times = timing.in_turn(ways, runs, measured.device)
        memory = measured.peaks(build, range(len(ways)), *arguments)
        found.append(timing.compared(stage, times, [other] if other else [], memory, apart))
    return found


def ways_of_looking(dtype: torch.dtype, device: torch.device) -> list[Callable[[], PictureFeatures]]:
    scene = Scene(SIZE, dtype, device)
    return [lambda: scene.m2m.look_at(scene.embedding)]


def ways_of_decoding(count: int, _: torch.dtype, device: torch.device) -> list[Callable[[], Tensor]]:
    """Ours and segment-anything's; both in float32, whatever the encoder's precision."""
    config = SamConfig(depth=1, embed_dim=64, num_heads=2, global_attention=(0,), image_size=SIDE)
    sam = Sam(config).eval().to(device)
    frame = Frame(768, 1024)
    embedding = Embedding(torch.randn(1, 256, SIDE // 16, SIDE // 16, device=device), torch.zeros(0), frame)
    positions = sam.prompt_encoder.get_dense_pe()
    prompts = [Prompt(points_px=((100.0 * n + 50, 300.0),), labels=(1,)) for n in range(count)]

    def theirs() -> Tensor:
        # One after the other, which takes it less time than all together.
        logits = []
        for prompt in prompts:
            points = frame.points_to_network(torch.tensor([prompt.points_px])).to(device)
            labels = torch.ones(1, 1, dtype=torch.int32, device=device)
            sparse, dense = sam.prompt_encoder((points, labels), None, None)
            logits.append(sam.mask_decoder(embedding.features, positions, sparse, dense, multimask_output=True)[0])
        return torch.cat(logits)

    return [lambda: sam.decode(embedding, prompts).logits, theirs]


def ways_of_merging(size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> list[Callable[[], Tensor]]:
    """SAM's mask at the picture's size, and three scales that are known already merged into it: in the subject's
    rectangle, and over the whole picture."""
    scene = Scene(size, dtype, device)
    frame, guidance = scene.frame, scene.guidance(person())
    soft = torch.sigmoid(F.interpolate(guidance.chosen_logits, (SIDE, SIDE), mode="bilinear"))
    pyramid = AlphaPyramid(soft, soft, soft)

    def in_rectangle() -> Tensor:
        alpha = torch.zeros(size)
        window = reach_of_box(guidance.mask_windows()[0], *size)
        inside, mask = window.of(alpha), guidance.post_mask(0, window)
        if merges_in_arrays(device):
            inside[:] = mask
            merge_scales(inside.numpy(), _KnownPyramid(soft, frame, window).read)
        else:
            inside[:] = merge_together(mask[None], lambda _: frame.crop_to_original(soft, window)[0])[0].cpu()
        return alpha

    def whole() -> Tensor:
        known = StockPath(None, _Known(pyramid))
        return known.matte_of((scene.embedding.features, soft, frame), guidance.chosen_logits)

    return [in_rectangle, whole]


class _KnownPyramid(PartialPyramid):
    """Three scales that are known already and the same."""

    def __init__(self, scale: Tensor, frame: Frame, window: Window):
        self.frame, self.window = frame, window
        self._os8 = self._os4 = self._os1 = lambda where: (scale, 0, 0)


class _Known:
    """Stands in for a network whose answer is known."""

    def __init__(self, pyramid: AlphaPyramid):
        self._pyramid = pyramid
        self.conv1 = trained_m2m().conv1

    def __call__(self, *_) -> AlphaPyramid:
        return self._pyramid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", type=int, nargs=2, default=list(SIZE), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--targets", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--dtype", choices=tuple(timing.DTYPES), default="fp32", help="precision (default: fp32)")
    timing.add_arguments(parser, runs=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs, targets, sizes = options.runs, options.targets, SIZES
    if options.quick:
        runs, targets, sizes = 1, targets[:2], SIZES[:2]
    measured = Measured(timing.DTYPES[options.dtype], options.device, not options.quick)
    with torch.inference_mode():
        found = by_subject(measured, runs, size=tuple(options.size))
        found.append(by_new_subject(measured, runs, tuple(options.size)))
        found += by_targets(measured, runs, targets, tuple(options.size))
        found += by_part(measured, runs) + by_picture(measured, runs, sizes)
    print(timing.table(found))


if __name__ == "__main__":
    main()
