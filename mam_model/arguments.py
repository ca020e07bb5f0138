"""What can be typed after `python -m mam_model`, and the help that teaches it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cutout import Length

PROGRAM = "python -m mam_model"
_EXIT_CODES = """exit codes:
  0 everything was done, 1 something failed (a sentence on stderr says what), 2 the command was not understood,
  130 stopped with Ctrl-C; no half-written file stays behind"""

_ABOUT = f"""Soft mattes and cut-outs from photos, by pointing at the subject.

  {PROGRAM} matte photo.jpg --box 10 20 300 400 -o cut.png
  {PROGRAM} matte --help      how to point, which engines there are, many photos at once
  {PROGRAM} models            the published weights and where to get them
  {PROGRAM} groups --help     how good the mattes of a test set are, group by group
"""

_ABOUT_MATTE = f"""Cuts a subject out of a photo and writes it as a picture with soft alpha.

pointing at the subject:
  Coordinates are pixels of the photo as a viewer shows it: x from the left, y from the top, 0 0 is the top left
  corner. With a percent sign they are shares of its width and height: --box 5% 5% 95% 95%.
  A box is left, top, right, bottom, and goes around all of the subject. Any mixture of one --box, points and a --mask
  tells one target; what is still wrong in the result is mended with a --point or --negative there.
  Each further --box is a further target, and the cut-out shows them all; a point then speaks of the boxes in which
  it lies, and the mask is cut along the boxes.

engines:
  sam        SAM and Mask-to-Matte, the networks of Matting Anything. They need two files of weights, found in the
             folder --models, or in the models folder of the ComfyUI that the variable COMFYUI_PATH names, or named
             with --sam and --m2m. mam_sam_vitb.pth holds both. `{PROGRAM} models` tells where to get them.
  classical  GrabCut and closed-form matting: no weights at all. Good for a subject whose colours differ from what is
             around it. Needs PyMatting (pip install pymatting), or --method none.
  auto       sam if both files are there, else classical; it says which."""

_EXAMPLES = f"""examples:
  {PROGRAM} matte photo.jpg --box 10 20 300 400 -o cut.png
  {PROGRAM} matte photo.jpg --point 210 130 --negative 40 380 -o cut.png --matte-out alpha.png
  {PROGRAM} matte photo.jpg --box 10 20 300 400 --background white -o product.jpg
  {PROGRAM} matte photo.jpg --mask rough.png --background beach.jpg -o holiday.png
  {PROGRAM} matte shots --box 5% 5% 95% 95% -o cutouts

"""

_ABOUT_GROUPS = """Measures mattes against true ones and gives the means of each group of pictures.

layout of FOLDER, the true mattes:
  FOLDER/alpha/NAME.png         as in ICM-57; FOLDER.json beside it (or in it, or --groups) says the groups as
                                {"NAME": {"class": "dog"}, ...}; without it dog_00 and dog_01 are of the group dog
  FOLDER/GROUP/alpha/NAME.png   one folder for each group; then the mattes to be judged lie in PREDICTIONS/GROUP
  The folder alpha may be called mask. Folders image and trimap are not looked at.

PREDICTIONS holds the mattes to be judged, under the same names and at the same sizes. Pictures without one, such as
the reference of each group, are left out and named.

units:
  MSE is the mean squared difference (0..1), SAD the sum of absolute differences in thousands of pixels, Grad and Conn
  are those of Rhemann et al. 2009 in thousands. All are taken over the whole picture."""


def parser() -> argparse.ArgumentParser:
    """Parses into a namespace with `command` ("matte", "convert", "list", "download" or "groups"), what was given to
    it, and `refuse`, which says what is wrong with the usage and leaves with exit code 2."""
    whole = _taught(argparse.ArgumentParser, prog=PROGRAM, description=_ABOUT, epilog=_EXIT_CODES)
    commands = whole.add_subparsers(metavar="COMMAND", required=True)
    _add_matte(commands)
    _add_convert(commands)
    _add_models(commands)
    _add_groups(commands)
    return whole


def _taught(make: Callable, *args, **words) -> argparse.ArgumentParser:
    return make(*args, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **words)


def _add_matte(commands) -> None:
    about = "cut a subject out of photos"
    matte = _taught(
        commands.add_parser,
        "matte",
        help=about,
        # Short, because argparse prints it above every complaint.
        usage=f"{PROGRAM} matte PHOTO [PHOTO ...] (--box X0 Y0 X1 Y1 | --point X Y | --mask FILE) -o FILE [options]",
        description=_ABOUT_MATTE,
        epilog=_EXAMPLES + _EXIT_CODES,
    )
    matte.set_defaults(command="matte", refuse=matte.error)
    matte.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="a photo, several, or a folder of them")

    pointing = matte.add_argument_group("what to cut out")
    pointing.add_argument(
        "--box",
        nargs=4,
        type=_length,
        action="append",
        default=[],
        metavar=("X0", "Y0", "X1", "Y1"),
        help="around the subject; may be repeated, each for a target of its own",
    )
    point = {"nargs": 2, "type": _length, "action": "append", "default": [], "metavar": ("X", "Y")}
    pointing.add_argument("--point", **point, help="a point on the subject; may be repeated")
    pointing.add_argument("--negative", **point, help="a point that is not on the subject; may be repeated")
    pointing.add_argument("--mask", type=Path, metavar="FILE", help="a rough mask: white where the subject is")
    pointing.add_argument("--trust-mask", action="store_true", help="the mask is right; only its edge is solved")

    output = matte.add_argument_group("what to write")
    output.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="png, webp or tif (jpg too with --background); for several photos a folder",
    )
    output.add_argument("--matte-out", type=Path, metavar="FILE", help="write the matte too, as a grey picture")
    output.add_argument("--matte-bits", type=int, choices=(8, 16), default=8, help="levels of the matte (default: 8)")
    output.add_argument(
        "--background",
        metavar="COLOUR_OR_FILE",
        help="lay the subject over this instead: white, #00b140, beach.jpg",
    )
    output.add_argument(
        "--fit",
        choices=("cover", "contain", "stretch", "center"),
        default="cover",
        help="how a background picture is fitted (default: cover)",
    )
    output.add_argument(
        "--keep-edge-color",
        action="store_true",
        help="leave the colours of soft edges, old background and all; by default it is taken out",
    )
    output.add_argument("--overwrite", action="store_true", help="replace files that exist")
    output.add_argument("--quiet", action="store_true", help="say only what went wrong")

    engine = matte.add_argument_group("how")
    engine.add_argument("--engine", choices=("auto", "sam", "classical"), default="auto", help="default: auto")
    engine.add_argument(
        "--method",
        choices=("closed-form", "knn", "none"),
        default="closed-form",
        help="classical: how the edge is solved (default: closed-form)",
    )
    engine.add_argument("--sam", metavar="FILE", help="sam: weights of SAM, a path or a published name")
    engine.add_argument("--m2m", metavar="FILE", help="sam: weights of Mask-to-Matte, a path or a published name")
    engine.add_argument("--models", type=Path, metavar="FOLDER", help="sam: folder with the weights, or sams/ and mam/")
    engine.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="sam: default auto")
    engine.add_argument(
        "--precision",
        choices=("auto", "fp32", "fp16", "bf16"),
        default="auto",
        help="sam: auto (default) is fp16 on CUDA, else fp32",
    )
    engine.add_argument(
        "--guidance",
        choices=("mask", "alpha"),
        default="mask",
        help="sam: start from SAM's mask (default; keeps neighbours out) or from the coarse alpha (can mend the mask)",
    )
    engine.add_argument("--sides", choices=("one", "two"), default="one", help="sam: two also reworks the solid inside")
    engine.add_argument(
        "--widths",
        nargs=3,
        type=int,
        default=(10, 20, 10),
        metavar=("OS8", "OS4", "OS1"),
        help="sam: pixels by which each scale's band is widened (default: 10 20 10); more for long hair",
    )
    engine.add_argument("--candidate", type=int, choices=(0, 1, 2), help="sam: which of its three masks to take")


def _add_convert(commands) -> None:
    about = "turn a file of weights into safetensors"
    convert = _taught(commands.add_parser, "convert", help=about, description=f"{about[0].upper()}{about[1:]}.")
    convert.set_defaults(command="convert", refuse=convert.error)
    convert.add_argument("source", type=Path, metavar="IN", help="a .pth, .pt, .ckpt or .safetensors file")
    convert.add_argument("target", type=Path, metavar="OUT.safetensors", help="the file to write")
    convert.add_argument("--overwrite", action="store_true", help="replace the file if it exists")


def _add_models(commands) -> None:
    about = "list the published weights, or download one"
    models = _taught(commands.add_parser, "models", help=about, description=f"{about[0].upper()}{about[1:]}.")
    models.set_defaults(command="list", refuse=models.error)
    actions = models.add_subparsers(metavar="ACTION")
    actions.add_parser("list", help="list them (default)")
    about = "download a file, verified; an interrupted download goes on where it was"
    download = _taught(actions.add_parser, "download", help=about, description=f"{about[0].upper()}{about[1:]}.")
    download.set_defaults(command="download", refuse=download.error)
    download.add_argument("name", metavar="NAME", help=f"as listed by `{PROGRAM} models`")
    download.add_argument(
        "--to", type=Path, metavar="FOLDER", help="default: its folder in the models of the ComfyUI at COMFYUI_PATH"
    )


def _add_groups(commands) -> None:
    about = "measure the mattes of a test set, group by group"
    groups = _taught(commands.add_parser, "groups", help=about, description=_ABOUT_GROUPS, epilog=_EXIT_CODES)
    groups.set_defaults(command="groups", refuse=groups.error)
    groups.add_argument("folder", type=Path, metavar="FOLDER", help="the true mattes")
    groups.add_argument("predictions", type=Path, metavar="PREDICTIONS", help="the mattes to be judged")
    groups.add_argument("--groups", type=Path, metavar="FILE", help="JSON that says the group of each picture")
    groups.add_argument("--quiet", action="store_true", help="say only the results and what went wrong")


def _length(text: str) -> Length:
    from .cutout import Length

    try:
        return Length(float(text.removesuffix("%")), text.endswith("%"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is neither pixels nor a percentage") from None
