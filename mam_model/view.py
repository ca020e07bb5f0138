"""Ways to look at a matte, and at what led to it: pictures for people, never inputs of a computation."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from .averaging import averaged
from .composite import over
from .frame import Frame
from .lettering import font_for, in_lines
from .prompt import Scribble

if TYPE_CHECKING:
    from .detections import Detection, Phrase
    from .m2m import AlphaPyramid
    from .sam import Embedding, Guidance

# Told apart by people who see colours differently (Okabe and Ito, "Color Universal Design", 2008).
TARGET_COLORS = (
    (0.00, 0.62, 0.45),
    (0.90, 0.62, 0.00),
    (0.34, 0.71, 0.91),
    (0.80, 0.47, 0.65),
    (0.84, 0.37, 0.00),
    (0.00, 0.45, 0.70),
    (0.94, 0.89, 0.26),
)


def checkerboard(height: int, width: int, square_px: int | None = None) -> Tensor:
    """The pattern that stands for "transparent". Returns float [height, width, 3]."""
    square_px = square_px or max(4, round(max(height, width) / 48))
    rows = torch.arange(height)[:, None] // square_px
    columns = torch.arange(width)[None, :] // square_px
    shade = torch.where((rows + columns) % 2 == 0, 0.80, 0.60)
    return shade[..., None].expand(height, width, 3).clone()


def over_checker(foreground: Tensor, alpha: Tensor) -> Tensor:
    """The subject over the checkerboard. foreground [..., H, W, 3], alpha [..., H, W] -> [..., H, W, 3]."""
    return over(foreground, alpha, checkerboard(*alpha.shape[-2:]).to(foreground))


def onion_skin(image: Tensor, alpha: Tensor, opacity: float = 0.75) -> Tensor:
    """The subject as it is, everything else faded towards the checkerboard by `opacity`. [..., H, W, 3]"""
    return over_checker(image, 1 - opacity * (1 - alpha))


def tinted(image: Tensor, alpha: Tensor, color: tuple[float, float, float] = TARGET_COLORS[0]) -> Tensor:
    """The picture with the subject under a half transparent colour. [..., H, W, 3]"""
    return over(image.new_tensor(color).expand_as(image), alpha * 0.5, image)


def grey(alpha: Tensor) -> Tensor:
    """Alpha as a grey picture. [..., H, W] -> [..., H, W, 3]"""
    return alpha[..., None].expand(*alpha.shape, 3)


def reduced(picture: Tensor, longest_side_px: int) -> Tensor:
    """The picture [H, W, 3], made smaller if its longer side is longer than that."""
    height, width = picture.shape[:2]
    scale = longest_side_px / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    # On a processor PyTorch cannot average in half precision.
    planes = picture.permute(2, 0, 1)[None].float()
    return averaged(planes, size)[0].permute(1, 2, 0).to(picture.dtype)


def side_by_side(pictures: list[Tensor], gap_px: int = 4) -> Tensor:
    """Pictures of one size [H, W, 3] in a row, parted by white."""
    gap = torch.ones(pictures[0].shape[0], gap_px, 3)
    row = [piece for picture in pictures for piece in (picture.float().cpu(), gap)][:-1]
    return torch.cat(row, dim=1)


def features_as_colors(embedding: Embedding) -> Tensor:
    """What SAM sees, as a picture: the three strongest components of the features as red, green and blue.

    Returns:
        float [content_height, content_width, 3] in 0..1.
    """
    frame = embedding.frame
    grid = embedding.features.shape[-1]
    rows = max(1, round(grid * frame.content_height / frame.side))
    columns = max(1, round(grid * frame.content_width / frame.side))
    features = embedding.features[0, :, :rows, :columns].float().cpu().flatten(1).t()
    features = features - features.mean(dim=0)
    # Through the 256 x 256 covariance, because it is small whatever the picture.
    _, axes = torch.linalg.eigh(features.t() @ features)
    components = features @ axes[:, -3:].flip(1)
    low, high = components.quantile(0.02, dim=0), components.quantile(0.98, dim=0)
    colors = ((components - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    picture = colors.t().reshape(1, 3, rows, columns)
    size = (frame.content_height, frame.content_width)
    return F.interpolate(picture, size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)


def prompts_and_masks(embedding: Embedding, guidance: Guidance) -> Tensor:
    """The targets of one picture: each hard mask tinted in its colour, with its points, box, strokes and number.

    Returns:
        float [content_height, content_width, 3].
    """
    picture = embedding.content.float() / 255
    prompts, masks = guidance.prompts, guidance.content_masks()
    scale = embedding.frame.content_width / embedding.frame.width
    for number, mask in enumerate(masks):
        picture = tinted(picture, mask.cpu(), TARGET_COLORS[number % len(TARGET_COLORS)])
    drawn = Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    pen = ImageDraw.Draw(drawn)
    radius = max(3, max(drawn.size) // 150)
    names = [f"{number + 1} {prompt.label}".strip() for number, prompt in enumerate(prompts)]
    font = font_for("".join(names), max(11, max(drawn.size) // 45))
    for number, prompt in enumerate(prompts):
        color = tuple(round(255 * part) for part in TARGET_COLORS[number % len(TARGET_COLORS)])
        if prompt.box_xyxy_px:
            box = [value * scale for value in prompt.box_xyxy_px]
            pen.rectangle(box, outline=color, width=max(2, radius // 2))
            pen.text((box[0] + radius, box[1] + radius), names[number], fill=color, font=font)
        for (x, y), label in zip(prompt.points_px, prompt.labels):
            x, y = x * scale, y * scale
            fill = color if label == 1 else (200, 30, 30)
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline="white")
            if label == 0:
                pen.line((x - radius / 2, y, x + radius / 2, y), fill="white", width=max(1, radius // 3))
        # A trimap marks every pixel; painted over, nothing of the picture would be left.
        if prompt.scribbles is not None and (prompt.scribbles == Scribble.NONE).any():
            _draw_strokes(drawn, prompt.scribbles, color)
    return torch.from_numpy(np.array(drawn)).float() / 255


def numbered_instances(embedding: Embedding, guidance: Guidance) -> Tensor:
    """The targets of one picture: each hard mask tinted in a colour of its own, with its number, from 0, well inside.

    Returns:
        float [content_height, content_width, 3].
    """
    import cv2

    picture, frame = embedding.content.float() / 255, guidance.frame
    marks = []
    for number, logits in enumerate(guidance.chosen_logits):
        square = F.interpolate(logits[None], (frame.side, frame.side), mode="bilinear")[0, 0].cpu()
        mask = square[: frame.content_height, : frame.content_width] > 0
        color = instance_color(number)
        picture = tinted(picture, mask.float(), color)
        # Padded, so that the picture's border counts as the mask's too and no number is cut off there.
        depth = cv2.distanceTransform(F.pad(mask, (1, 1, 1, 1)).to(torch.uint8).numpy(), cv2.DIST_L2, 5)[1:-1, 1:-1]
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        marks.append((int(column), int(row), str(number), tuple(round(255 * part) for part in color)))
    drawn = Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    pen = ImageDraw.Draw(drawn)
    text_px = max(11, max(drawn.size) // 36)
    font = font_for("0123456789", text_px)
    for x, y, text, color in marks:
        radius = 0.5 * font.getlength(text) + 0.4 * text_px
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill="white", outline=color, width=3)
        pen.text((x, y), text, fill=(20, 20, 20), font=font, anchor="mm")
    return torch.from_numpy(np.array(drawn)).float() / 255


def numbered_boxes(
    picture: Tensor, detections: Sequence[Detection], choice: Sequence[tuple[int, Phrase]], subjects: Sequence[str]
) -> Tensor:
    """A picture to choose from: every box with its number, subject and score; the chosen ones in colour.

    Args:
        picture: float [H, W, 3] in 0..1.
        choice: see `detections.chosen`.
        subjects: see `detections.subjects_of`.
    Returns:
        float [H, W, 3] on the CPU.
    """
    levels = (picture.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    drawn = Image.fromarray(levels)
    pen = ImageDraw.Draw(drawn)
    longest = max(drawn.size)
    line = max(1, longest // 300)
    font = font_for("".join(subjects) + "0123456789.", max(11, longest // 45))
    colors = {place: TARGET_COLORS[rank % len(TARGET_COLORS)] for rank, (place, _) in enumerate(choice)}
    # The chosen ones last, so that no other box covers them.
    for place in sorted(range(len(detections)), key=lambda place: place in colors):
        color = tuple(round(255 * part) for part in colors.get(place, (0.6, 0.6, 0.6)))
        x0, y0, x1, y1 = detections[place].box_xyxy_px
        pen.rectangle((x0, y0, x1, y1), outline=color, width=2 * line if place in colors else line)
        text = f"{place + 1} {subjects[detections[place].subject]} {detections[place].score:.2f}"
        left, top, right, bottom = pen.textbbox((x0 + line, y0 + line), text, font=font)
        pen.rectangle((left - line, top - line, right + line, bottom + line), fill=color)
        pen.text((x0 + line, y0 + line), text, fill="black", font=font)
    return torch.from_numpy(np.array(drawn)).float() / 255


def instance_color(number: int) -> tuple[float, float, float]:
    """A colour for each instance: the colours of targets first, then hues far from those before them."""
    if number < len(TARGET_COLORS):
        return TARGET_COLORS[number]
    # Steps of the golden ratio never come back to where they were.
    return colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.6 + 0.3 * (number % 2), 0.95 - 0.25 * (number % 3 == 0))


def _draw_strokes(drawn: Image.Image, scribbles: Tensor, color: tuple[int, int, int]) -> None:
    strokes = Image.fromarray(scribbles.cpu().numpy().astype(np.uint8)).resize(drawn.size, Image.Resampling.NEAREST)
    paints = {Scribble.FOREGROUND: color, Scribble.BACKGROUND: (200, 30, 30), Scribble.UNKNOWN: (160, 160, 160)}
    for value, paint in paints.items():
        drawn.paste(paint, mask=Image.fromarray(np.asarray(strokes) == value))


def contact_sheet(pictures: Iterable[Tensor], captions: Sequence[str], cell_px: int = 384) -> Tensor:
    """Pictures of one size [H, W, 3] in a grid, each no larger than `cell_px`, with a caption under it.

    Args:
        pictures: at least one, with a caption each. They are asked for one by one and not kept.
    Returns:
        float [h, w, 3], nearly square.
    """
    small = (reduced(picture.float().cpu(), cell_px) for picture in pictures)
    first = next(small)
    height, width = first.shape[:2]
    gap, text_px = 8, max(11, min(18, width // 14))
    font = font_for("".join(captions), text_px)
    texts = [in_lines(caption, font, width) for caption in captions]
    # Beside a narrow picture there is room for the longest word, so that no caption runs into the next.
    column = max([width, *(math.ceil(font.getlength(line)) for line in chain.from_iterable(texts))])
    columns = max(1, round(math.sqrt(len(captions) * height / column)))
    rows = math.ceil(len(captions) / columns)
    line_px = 1.3 * text_px
    cell = (column + gap, height + gap + round(line_px * max(1, *map(len, texts)) + 0.3 * text_px))
    sheet = Image.new("RGB", (columns * cell[0] + gap, rows * cell[1] + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (picture, lines) in enumerate(zip(chain([first], small), texts)):
        left, top = gap + number % columns * cell[0], gap + number // columns * cell[1]
        levels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        sheet.paste(Image.fromarray(levels), (left, top))
        for line, text in enumerate(lines):
            pen.text((left, top + height + 2 + round(line * line_px)), text, fill=(20, 20, 20), font=font)
    return torch.from_numpy(np.array(sheet)).float().div_(255)


def text_table(rows: Sequence[Sequence[str]], text_height_px: int = 20) -> Tensor:
    """A table as a picture: dark text on white, the first column to the left, the others to the right.

    Returns:
        float [h, w, 3], as large as the table needs.
    """
    font = font_for("".join(chain.from_iterable(rows)), text_height_px)
    gap = text_height_px
    widths = [0.0] * max(len(row) for row in rows)
    for row in rows:
        for column, text in enumerate(row):
            widths[column] = max(widths[column], font.getlength(text))
    size = (round(sum(widths) + gap * (len(widths) + 1)), round(text_height_px * 1.6 * len(rows) + gap))
    drawn = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(drawn)
    for number, row in enumerate(rows):
        right = 0.0
        for column, text in enumerate(row):
            right += gap + widths[column]
            left = gap if column == 0 else right - font.getlength(text)
            pen.text((left, gap / 2 + number * text_height_px * 1.6), text, fill=(20, 20, 20), font=font)
    return torch.from_numpy(np.array(drawn)).float() / 255


def three_scales(pyramid: AlphaPyramid, frame: Frame) -> Tensor:
    """os8, os4 and os1 in a row without the padding, all targets of the frame in one.

    Returns:
        float [content_height, 3 content_width + gaps, 3].
    """
    scales = (pyramid.os8, pyramid.os4, pyramid.os1)
    united = (scale[:, 0, : frame.content_height, : frame.content_width].amax(dim=0).float().cpu() for scale in scales)
    return side_by_side([grey(scale) for scale in united])
