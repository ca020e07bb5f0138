"""One picture that shows photo, matte, cut-out and composite side by side."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

PANEL_HEIGHT_PX = 420
MARGIN_PX = 16
TITLE_PX = 30
CHECKER_PX = 14
PAPER = (245, 245, 243)
INK = (40, 40, 40)
PROMPT_COLOUR = (0, 170, 255)
NEGATIVE_COLOUR = (235, 50, 60)


def contact_sheet(
    photo: Image.Image,
    pictures: dict[str, Image.Image],
    title: str,
    boxes_xyxy_px: Sequence[Sequence[float]],
    points_px: Sequence[Sequence[float]],
    negatives_px: Sequence[Sequence[float]] = (),
) -> Image.Image:
    """Lays out the photo (with the boxes and points that were its prompt) and the results, each under its name.

    Args:
        pictures: name -> picture; one with alpha is shown on a checkerboard.
        title: the line at the foot, e.g. how the matte was made.
        boxes_xyxy_px: left, top, right, bottom of each box, in pixels of the photo.
        points_px: x, y of each point on the subject, likewise.
        negatives_px: the same of those that are not on it.
    """
    panels = {"Photo and prompt": _with_prompt(photo.convert("RGB"), boxes_xyxy_px, points_px, negatives_px)}
    panels.update({name: _on_checkerboard(picture) for name, picture in pictures.items()})
    panels = {name: _at_panel_height(picture) for name, picture in panels.items()}
    width = sum(panel.width for panel in panels.values()) + MARGIN_PX * (len(panels) + 1)
    sheet = Image.new("RGB", (width, PANEL_HEIGHT_PX + 2 * TITLE_PX + 2 * MARGIN_PX), PAPER)
    draw = ImageDraw.Draw(sheet)
    x = MARGIN_PX
    for name, panel in panels.items():
        draw.text((x, MARGIN_PX), name, fill=INK, font=ImageFont.load_default(18))
        sheet.paste(panel, (x, MARGIN_PX + TITLE_PX))
        x += panel.width + MARGIN_PX
    draw.text((MARGIN_PX, sheet.height - TITLE_PX), title, fill=INK, font=ImageFont.load_default(14))
    return sheet


def _with_prompt(photo: Image.Image, boxes_xyxy_px, points_px, negatives_px) -> Image.Image:
    draw = ImageDraw.Draw(photo)
    line_px = max(2, round(photo.height / 150))
    for x0, y0, x1, y1 in boxes_xyxy_px:
        left, right = sorted(min(max(x, 0), photo.width - 1) for x in (x0, x1))
        top, bottom = sorted(min(max(y, 0), photo.height - 1) for y in (y0, y1))
        draw.rectangle((left, top, right, bottom), outline=PROMPT_COLOUR, width=line_px)
    for colour, points in ((PROMPT_COLOUR, points_px), (NEGATIVE_COLOUR, negatives_px)):
        for x, y in points:
            draw.circle((x, y), 2 * line_px, fill=colour, outline=(255, 255, 255), width=max(1, line_px // 2))
    return photo


def _on_checkerboard(picture: Image.Image) -> Image.Image:
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    board = Image.new("RGB", picture.size, (255, 255, 255))
    draw = ImageDraw.Draw(board)
    square = max(1, round(CHECKER_PX * picture.height / PANEL_HEIGHT_PX))
    for row, y in enumerate(range(0, picture.height, square)):
        for x in range(square * (row % 2), picture.width, 2 * square):
            draw.rectangle((x, y, x + square - 1, y + square - 1), fill=(205, 205, 205))
    board.paste(picture, mask=picture.getchannel("A"))
    return board


def _at_panel_height(picture: Image.Image) -> Image.Image:
    width = max(1, round(picture.width * PANEL_HEIGHT_PX / picture.height))
    return picture.resize((width, PANEL_HEIGHT_PX), Image.Resampling.LANCZOS)
