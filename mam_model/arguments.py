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
  {PROGRAM} evaluate --help   the benchmarks of the paper, and your own pictures with true mattes
  {PROGRAM} train --help      train the matting network on your own pictures, or on drawn ones
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
  classical  GrabCut and the small network that comes with this package: nothing to download. Good for a subject whose
             colours differ from what is around it. --method closed-form and knn need PyMatting (pip install pymatting).
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


_ABOUT_EVALUATE = f"""Measures mattes of a test set: SAD, MSE, MAD, Grad and Conn over the whole picture and over the
unknown band, and instance matting quality (IMQ) where there are instances; beside the figures of the paper.

test sets, recognised by their published folders (--benchmark auto):
  ppm-100          FOLDER/image, matte
  am-2k            FOLDER/validation/original, mask, trimap
  pm-10k           FOLDER/validation/P3M-500-NP/original_image, mask, trimap (of P3M-10k)
  rwp-636          FOLDER/image, alpha; FOLDER is called RealWorldPortrait-636
  him2k-natural    FOLDER/images/natural, alphas/natural/NAME; him2k-synthetic: .../comp. With both, name one
  refmatte-rw100   FOLDER/image, mask, refmatte_rw100_label.json
  alphamatting     FOLDER/input_training_lowres, gt_training_lowres, trimap_training_lowres/Trimap1
  pictures         your own: FOLDER/image and alpha (also trimap, mask), or FOLDER/NAME/image.png and alpha.png, or
                   FOLDER/NAME.jpg and NAME_alpha.png

engines:
  mam              SAM and Mask-to-Matte (default); weights are found as for `{PROGRAM} matte`
  sam-mask         SAM's mask alone, the paper's baseline
  classical        GrabCut and what --method says, closed-form matting by default: nothing to download
  closed-form      closed-form matting in the trimap's band: no weights, no prompt, knows where the edge is
  refiner          the shipped refiner on a hard mask; see --mask
  Or --predictions judges mattes that are there, NAME.png (NAME/00.png and so on for instances).

Into the output folder go scores.csv, mattes, summary.md and worst.png, the worst cases to look at. A run that was
stopped goes on when the same command is given again; scores.csv keeps the settings, and others are refused."""


_ABOUT_RENDER = """Draws pictures whose alpha is known exactly: fur, hair, feathers, plants, nets, glass and more over
drawn backgrounds or parts of your photos, with a camera's noise and JPEG. The same seed draws the same picture.

  FOLDER/image/NAME.png       what a camera would hand over
  FOLDER/alpha/NAME.png       the true matte, 16 bits
  FOLDER/foreground/NAME.png  the subject's own colours

kinds:
  fur, plush toy, hair, tuft, feather, leaves, grass, twigs, net, lace, smoke, glass, plastic, motion blur, defocus,
  solid

Networks are trained on such pictures, and `evaluate` takes the folder as a test set."""


_ABOUT_TRAIN_REFINER = """Trains the refiner on rendered pictures; writes its weights every five minutes and at the end.

It runs on the processor alone. Ctrl-C ends it after the step that is being made, with its state saved; a second one
ends it at once. Stopped at any time, it goes on from the folder --work when the same command is given again; with more
--minutes or --steps it goes on for longer, and other pictures, another seed or rate need another folder and another
FILE: one that is there is replaced by the run that wrote it, and by no other. Without --photos all backgrounds are
drawn; photos make the weights better. Photos and cut-outs that cannot be used are skipped, named and counted.
docs/refiner-model-card.md says what the weights of this pack were trained on."""


_ABOUT_TRAIN = f"""Trains Mask-to-Matte, the matting network of Matting Anything, for a SAM.

the least config:
  folder = "run"                  for checkpoints, the loss curve and pictures; relative to the config
  sam = "sam_vit_b_01ec64.pth"    a path, or a published name (`{PROGRAM} models`)
  [rendered]                      train on pictures that the computer draws

Folders of pictures are named in [[foregrounds]] with [[backgrounds]], or in [[composed]]. docs/training.md tells of
every key. Numbers that are not given are the paper's, for 8 GPUs; schedule.batch and schedule.steps are the first to
change on a smaller machine.

A run that was stopped, by Ctrl-C or by a power cut, goes on from its last checkpoint when the same command is given
again. On several GPUs:
  torchrun --nproc-per-node 8 -m mam_model train CONFIG.toml"""


def parser() -> argparse.ArgumentParser:
    """Parses into a namespace with `command` ("matte", "convert", "list", "download", "groups", "evaluate",
    "render", "train-refiner" or "train"), what was given to it, and `refuse`, which says what is wrong with the usage
    and leaves with exit code 2.
    """
    whole = _taught(argparse.ArgumentParser, prog=PROGRAM, description=_ABOUT, epilog=_EXIT_CODES)
    commands = whole.add_subparsers(metavar="COMMAND", required=True)
    _add_matte(commands)
    _add_convert(commands)
    _add_models(commands)
    _add_groups(commands)
    _add_evaluate(commands)
    _add_render(commands)
    _add_train_refiner(commands)
    _add_train(commands)
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
        choices=("refiner", "closed-form", "knn", "none"),
        default="refiner",
        help="classical: how the edge is solved (default: refiner, the small network of this package)",
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


def _add_evaluate(commands) -> None:
    about = "measure a benchmark, or your own pictures with true mattes"
    evaluate = _taught(
        commands.add_parser,
        "evaluate",
        help=about,
        usage=f"{PROGRAM} evaluate --data FOLDER -o FOLDER [--engine ENGINE | --predictions FOLDER] [options]",
        description=_ABOUT_EVALUATE,
        epilog=_EXIT_CODES,
    )
    evaluate.set_defaults(command="evaluate", refuse=evaluate.error)
    evaluate.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="the test set")
    evaluate.add_argument("--benchmark", default="auto", metavar="NAME", help="which one it is (default: auto)")
    evaluate.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="for the results")
    judged = evaluate.add_mutually_exclusive_group()
    engines = ("mam", "sam-mask", "classical", "closed-form", "refiner")
    judged.add_argument("--engine", choices=engines, default="mam", help="what makes the mattes (default: mam)")
    judged.add_argument("--predictions", type=Path, metavar="FOLDER", help="judge these mattes instead")

    protocol = evaluate.add_argument_group("protocol")
    protocol.add_argument(
        "--prompt",
        choices=("box", "point", "text"),
        default="box",
        help="the true matte's tight box (default), the centre of it, or the box that a detector finds for the text",
    )
    protocol.add_argument("--guidance", choices=("mask", "alpha"), help="mam: default as published for the set")
    protocol.add_argument("--sides", choices=("one", "two"), default="one", help="mam: default one")
    protocol.add_argument(
        "--widths", nargs=3, type=int, default=(10, 20, 10), metavar=("OS8", "OS4", "OS1"), help="mam: default 10 20 10"
    )
    protocol.add_argument(
        "--mask",
        choices=("truth", "sam", "file"),
        default="truth",
        help="refiner: start from the true alpha above 0.5 (default), SAM's mask, or the mask beside the picture",
    )
    protocol.add_argument(
        "--band",
        type=float,
        default=10,
        metavar="PX",
        help="where the set has no trimap: pixels by which the true matte's soft part is widened (default: 10)",
    )
    protocol.add_argument(
        "--levels",
        choices=("down", "nearest", "16-bit"),
        help="how mattes are rounded: down to 8 bits as in the paper's evaluation (default for its sets), to the "
        "nearest of 8 (default for others) or of 16 bits",
    )
    protocol.add_argument("--quick", action="store_true", help="leave out Grad and Conn, which take most of the time")

    running = evaluate.add_argument_group("running")
    running.add_argument("--workers", type=int, default=0, metavar="N", help="processes that measure (default: auto)")
    running.add_argument("--limit", type=int, metavar="N", help="only the first N pictures")
    running.add_argument(
        "--worst", type=int, default=12, metavar="N", help="cases on the sheet of the worst (default: 12)"
    )
    running.add_argument("--overwrite", action="store_true", help="measure anew what the output folder has already")
    running.add_argument("--quiet", action="store_true", help="say only the results and what went wrong")

    engine = evaluate.add_argument_group("engines")
    engine.add_argument(
        "--method",
        choices=("refiner", "closed-form", "knn", "none"),
        default="closed-form",
        help="classical: how the edge is solved (default: closed-form; `matte` and the nodes take refiner)",
    )
    engine.add_argument("--sam", metavar="FILE", help="weights of SAM, a path or a published name")
    engine.add_argument("--m2m", metavar="FILE", help="weights of Mask-to-Matte, a path or a published name")
    engine.add_argument("--models", type=Path, metavar="FOLDER", help="folder with the weights, or sams/ and mam/")
    engine.add_argument("--detector", type=Path, metavar="FOLDER", help="Grounding DINO, for --prompt text")
    engine.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default auto")
    engine.add_argument(
        "--precision",
        choices=("auto", "fp32", "fp16", "bf16"),
        default="auto",
        help="auto (default) is fp16 on CUDA, else fp32",
    )


def _add_render(commands) -> None:
    about = "draw training pictures with exactly known alpha"
    render = _taught(commands.add_parser, "render", help=about, description=_ABOUT_RENDER, epilog=_EXIT_CODES)
    render.set_defaults(command="render", refuse=render.error)
    render.add_argument("folder", type=Path, metavar="FOLDER", help="where the pictures go")
    render.add_argument("--count", type=int, default=16, metavar="N", help="how many (default: 16)")
    render.add_argument("--seed", type=int, default=0, metavar="S", help="of the first; they count up (default: 0)")
    render.add_argument("--size", type=int, default=512, metavar="PX", help="width and height (default: 512)")
    render.add_argument("--kind", metavar="KIND", help="one kind, such as fur; 'each' takes all of them in turn")
    render.add_argument("--backgrounds", type=Path, metavar="FOLDER", help="photos to cut backgrounds and colours from")
    render.add_argument("--sheet", action="store_true", help="write FOLDER/sheet.jpg too, a view of the first 64")
    render.add_argument("--overwrite", action="store_true", help="replace files that exist")
    render.add_argument("--quiet", action="store_true", help="say only what went wrong")


def _add_train_refiner(commands) -> None:
    about = "train the small network that turns any mask into a matte"
    train = _taught(
        commands.add_parser, "train-refiner", help=about, description=_ABOUT_TRAIN_REFINER, epilog=_EXIT_CODES
    )
    train.set_defaults(command="train-refiner", refuse=train.error)
    train.add_argument("output", type=Path, metavar="FILE", help="the weights to write, a .safetensors file")
    train.add_argument(
        "--work", type=Path, required=True, metavar="FOLDER", help="rendered pictures and the state to go on from"
    )
    length = train.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=62.6, help="how long to train, default 62.6")
    length.add_argument("--steps", type=int, default=0, help="how many steps to make instead")
    train.add_argument("--photos", type=Path, metavar="FOLDER", help="photos used as backgrounds and textures")
    train.add_argument("--true", type=Path, metavar="FOLDER", help="cut-outs whose transparency is exactly right")
    train.add_argument(
        "--from", dest="start", type=Path, metavar="FILE", help="weights of an earlier run to begin with"
    )
    train.add_argument("--learning-rate", type=float, default=2e-3, help="at its highest, default 0.002")
    train.add_argument("--seed", type=int, default=1, help="of everything that is drawn, default 1")
    train.add_argument("--gallery", type=int, default=4000, help="how many pictures to render, default 4000")
    train.add_argument("--renderers", type=int, default=1, help="processes that render meanwhile, default 1")
    train.add_argument("--threads", type=int, default=0, help="of the training itself; 0, the default: all cores")
    train.add_argument("--quiet", action="store_true", help="say only what went wrong")


def _add_train(commands) -> None:
    about = "train Mask-to-Matte"
    train = _taught(commands.add_parser, "train", help=about, description=_ABOUT_TRAIN, epilog=_EXIT_CODES)
    train.set_defaults(command="train", refuse=train.error)
    train.add_argument("config", type=Path, metavar="CONFIG.toml", help="what to train on, and how")
    train.add_argument("--quiet", action="store_true", help="say only the result and what went wrong")


def _length(text: str) -> Length:
    from .cutout import Length

    try:
        return Length(float(text.removesuffix("%")), text.endswith("%"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is neither pixels nor a percentage") from None
