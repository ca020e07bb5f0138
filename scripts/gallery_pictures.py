"""Makes the pictures of the workflows that need no model files anew: `python3 scripts/gallery_pictures.py`

The workflows "Cut out without models", "One layer per subject" and "Product batch" are run in a real ComfyUI, as
workflows/api has them, on scikit-image's astronaut and on rendered products. What they save is laid out in
workflows/NAME.jpg, which the template browser and the README show. To be run when the refiner's weights, the engine
without models or one of these workflows has changed. The pictures of the other workflows were laid out by hand.

    python3 scripts/gallery_pictures.py "Product batch"     makes this one only
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import environment

WORKFLOWS = environment.REPOSITORY / "workflows"
GAP_PX = 6
CAPTION_PX = 20
SQUARES_PER_HEIGHT = 32
JPEG_QUALITY = 90


def main() -> int:
    names = _arguments().names or list(PICTURES)
    place = environment.enter(__file__)
    from comfyui_server import ComfyUIServer, PromptRefused, ServerError

    try:
        with tempfile.TemporaryDirectory(prefix="matting-anything-", ignore_cleanup_errors=True) as folder:
            base = Path(folder)
            photos = _put_photos(base / "input")
            with ComfyUIServer(place.comfyui, base, environment.REPOSITORY, cpu=True) as server:
                for name in names:
                    file = WORKFLOWS / f"{name}.jpg"
                    PICTURES[name](photos, _run(server, name)).save(file, quality=JPEG_QUALITY, optimize=True)
                    print(file, flush=True)
    except (ServerError, PromptRefused) as trouble:
        print(trouble, file=sys.stderr)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all three")
    options = parser.parse_args()
    for name in options.names:
        if name not in PICTURES:
            parser.error(f'"{name}" is none of these: {", ".join(PICTURES)}')
    return options


def _put_photos(folder: Path) -> dict[str, list]:
    """Writes the photos that the workflows load; returns them by workflow."""
    from PIL import Image
    from product_photos import product_photos
    from skimage import data

    astronaut = Image.fromarray(data.astronaut())
    (folder / "products").mkdir(parents=True)
    astronaut.save(folder / "astronaut.png")
    for name, photo in product_photos().items():
        Image.fromarray(photo).save(folder / "products" / f"{name}.png")
    # ComfyUI reads a folder in this order, which need not be that of the names.
    read = [Image.open(file) for file in map((folder / "products").joinpath, os.listdir(folder / "products"))]
    return {"astronaut": [astronaut], "products": read}


def _run(server, name: str) -> dict[str, list]:
    """Runs a workflow. Returns, by the prefix of their file names, the pictures that it saved."""
    from PIL import Image

    workflow = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    finished = server.run(workflow)
    if not finished.ok:
        sys.exit(f"{name}: {finished.error}")
    return {
        node["inputs"]["filename_prefix"]: [Image.open(io.BytesIO(file)) for file in server.images(finished, number)]
        for number, node in workflow.items()
        if node["class_type"] == "SaveImage"
    }


def _cut_out(photos: dict[str, list], saved: dict[str, list]):
    return _on_checkerboard(saved["matting/cutout"][0])


def _layers(photos: dict[str, list], saved: dict[str, list]):
    first, second = saved["matting/layer"]
    panels = {
        "photo": photos["astronaut"],
        "layer 1": [first],
        "layer 2": [second],
        "together again, in order of depth": saved["matting/depth"],
    }
    return _in_a_row(panels, height_px=235)


def _products(photos: dict[str, list], saved: dict[str, list]):
    return _in_a_row(
        {"folder of photos": photos["products"], "on white with a soft shadow": saved["products/white"]}, 176
    )


def _in_a_row(panels: dict[str, Sequence], height_px: int):
    """Pictures of one height beside each other, each panel of one or more with its caption below."""
    from PIL import Image, ImageDraw, ImageFont

    scaled = {
        caption: [_on_checkerboard(_at_height(picture, height_px)) for picture in pictures]
        for caption, pictures in panels.items()
    }
    width = sum(picture.width + GAP_PX for pictures in scaled.values() for picture in pictures) - GAP_PX
    sheet = Image.new("RGB", (width, height_px + CAPTION_PX), "white")
    draw = ImageDraw.Draw(sheet)
    x = 0
    for caption, pictures in scaled.items():
        draw.text((x + 3, height_px + 3), caption, fill="black", font=ImageFont.load_default(12))
        for picture in pictures:
            sheet.paste(picture, (x, 0))
            x += picture.width + GAP_PX
    return sheet


def _at_height(picture, height_px: int):
    from PIL import Image

    # Premultiplied, so that the colour of what is clear does not get into the edge.
    own = picture.mode
    small = picture.convert("RGBa") if own == "RGBA" else picture
    return small.resize((round(picture.width * height_px / picture.height), height_px), Image.Resampling.BOX).convert(
        own
    )


def _on_checkerboard(picture):
    import numpy as np
    from PIL import Image

    if picture.mode != "RGBA":
        return picture.convert("RGB")
    rows, columns = np.mgrid[: picture.height, : picture.width] * SQUARES_PER_HEIGHT // picture.height
    board = Image.fromarray(np.where((rows + columns) % 2, 205, 255).astype(np.uint8)).convert("RGBA")
    return Image.alpha_composite(board, picture).convert("RGB")


# Workflow -> its picture, made of the photos and of what it saved.
PICTURES: dict[str, Callable] = {
    "Cut out without models": _cut_out,
    "One layer per subject": _layers,
    "Product batch": _products,
}


if __name__ == "__main__":
    sys.exit(main())
