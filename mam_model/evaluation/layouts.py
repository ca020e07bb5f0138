"""The folders in which test sets are published, and the pictures, true mattes and trimaps found in them.

Sources are named at each layout. Suffixes do not matter anywhere: a picture, its true matte and its trimap are matched
by their names without suffix, because pictures are JPEG and mattes PNG in most sets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..photo import PHOTO_SUFFIXES

_LARGEST_JSON_BYTES = 1 << 26


class EvaluationError(ValueError):
    """A test set, a record or a setting that cannot be used, said in words for the person who chose it."""


@dataclass(frozen=True)
class Sample:
    """One picture and what is to be found in it.

    Attributes:
        name: of the picture or target, without suffix; unique in its test set.
        picture: its file.
        truths: a file of a true matte for each target; one, except in sets of instances.
        trimap: file of the trimap that comes with the set, or None.
        mask: file of a rough mask that comes with the set, or None.
        text: what describes the target, or None.
    """

    name: str
    picture: Path
    truths: tuple[Path, ...]
    trimap: Path | None = None
    mask: Path | None = None
    text: str | None = None


@dataclass(frozen=True)
class TestSet:
    """What was found in a folder.

    Attributes:
        layout: how the folder is laid out.
        samples: by name.
        left_out: names of pictures without a true matte and of true mattes without a picture.
    """

    layout: Layout
    samples: tuple[Sample, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """One way in which a test set lies on disk, and how the paper evaluates it.

    Attributes:
        name: what is given to --benchmark.
        title: what people call the set.
        tree: the folders that are expected, a line each.
        guidance: from what the merge starts there, "mask" or "alpha" (see `MergeOptions`).
        instances: whether it is judged by instance matting quality.
        levels: how alphas become the 8 bits of a file, see `protocol.LEVELS`.
        pictures: how many the published set has, or None where that is not known or not fixed.
        find: from the folder to what is in it; None if the folders are not there.
        is_told_apart: whether the folder is this set and no other with folders of the same names; asked only where
            the set is to be recognised.
    """

    name: str
    title: str
    tree: tuple[str, ...]
    find: Callable[[Path], Found | None] = field(repr=False)
    guidance: str = "alpha"
    instances: bool = False
    levels: str = "down"
    pictures: int | None = None
    is_told_apart: Callable[[Path], bool] = field(default=lambda folder: True, repr=False)


Found = tuple[list[Sample], list[str]]


def open_test_set(folder: Path, benchmark: str = "auto") -> TestSet:
    """The test set in a folder.

    Args:
        folder: the test set's folder, or one of those in it that hold the test pictures.
        benchmark: a layout's name, or "auto" to recognise it by its folders.
    Raises:
        EvaluationError: no such folder, another layout than expected, or one with nothing in it; says what is
            expected.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EvaluationError(f"There is no folder {folder}.")
    layouts = LAYOUTS if benchmark == "auto" else [layout_named(benchmark)]
    for layout in layouts:
        found = layout.find(folder) if benchmark != "auto" or layout.is_told_apart(folder) else None
        if found is None:
            continue
        samples, left_out = found
        if not samples:
            raise EvaluationError(
                f"{folder} has the folders of {layout.title}, but no picture in them has a true matte of its name. "
                f"Expected is:\n{_tree(layout)}"
            )
        return TestSet(layout, tuple(sorted(samples, key=lambda sample: sample.name)), tuple(sorted(left_out)))
    if benchmark != "auto":
        raise EvaluationError(f"{folder} is not laid out as {layouts[0].title}. Expected is:\n{_tree(layouts[0])}")
    if (folder / "alphas" / "natural").is_dir() and (folder / "alphas" / "comp").is_dir():
        raise EvaluationError(
            f"{folder} is HIM2K, which is two test sets. Say --benchmark him2k-natural or --benchmark him2k-synthetic."
        )
    known = "\n".join(f"  {layout.name} ({layout.title}):\n{_tree(layout)}" for layout in LAYOUTS)
    raise EvaluationError(f"No known test set was recognised in {folder}. Expected is one of these:\n{known}")


def layout_named(name: str) -> Layout:
    """The layout of that name.

    Raises:
        EvaluationError: there is none; says which there are.
    """
    for layout in LAYOUTS:
        if layout.name == name:
            return layout
    raise EvaluationError(f"'{name}' is no known benchmark. Known are: {', '.join(known.name for known in LAYOUTS)}.")


def pictures_in(folder: Path) -> dict[str, Path]:
    """The pictures directly in a folder, by their names without suffix; none if there is no such folder.

    Raises:
        EvaluationError: two files for one picture.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() not in PHOTO_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            raise EvaluationError(
                f"{found[path.stem]} and {path.name} are two files for one picture. Keep one of them."
            )
        found[path.stem] = path
    return found


def _ppm_100(folder: Path) -> Found | None:
    """PPM-100 (Ke et al., "MODNet", AAAI 2022; github.com/ZHKKKe/PPM): 100 portraits, the mattes as JPEG.

    The folders are named as in the configuration of the released Matting Anything (utils/config.py).
    """
    return _pairs(folder / "image", folder / "matte")


def _am_2k(folder: Path) -> Found | None:
    """AM-2k (Li et al., "Bridging Composite and Real", IJCV 2022; github.com/JizhiziLi/GFM): 200 test pictures.

    The folders are named as in the evaluation of the released Matting Anything (evaluation/evaluation_am2k.py) and in
    that of SDMatte; `mask` holds alpha mattes, `trimap` trimaps of 0, 128 and 255.
    """
    inside = folder / "validation" if (folder / "validation").is_dir() else folder
    return _pairs(inside / "original", inside / "mask", inside / "trimap")


def _pm_10k(folder: Path) -> Found | None:
    """PM-10k as the paper evaluates it, which is P3M-500-NP of P3M-10k (Li et al., "Privacy-Preserving Portrait
    Matting", ACM MM 2021; github.com/JizhiziLi/P3M): 500 portraits whose faces are not blurred.

    The folders are those of the data set's readme, and of evaluation/evaluation_pm10k.py of the released Matting
    Anything.
    """
    for inside in (folder / "validation" / "P3M-500-NP", folder / "P3M-500-NP", folder):
        if (inside / "original_image").is_dir():
            return _pairs(inside / "original_image", inside / "mask", inside / "trimap")
    return None


def _rwp_636(folder: Path) -> Found | None:
    """RWP-636 (Yu et al., "Mask Guided Matting", CVPR 2021; github.com/yucornetto/MGMatting), unpacked as
    RealWorldPortrait-636: 636 portraits.

    The folders are named as in the configuration of the released Matting Anything and in the readme of SEMat.
    """
    return _pairs(folder / "image", folder / "alpha", masks=folder / "mask")


def _him2k(folder: Path, part: str) -> Found | None:
    """HIM2K (Sun, Tang, Tai, "Human Instance Matting", CVPR 2022; github.com/nowsyn/InstMatt, whose readme shows the
    folders): several people in a picture, a matte for each. Its parts are "natural" and "comp".
    """
    alphas = folder / "alphas" / part
    pictures = pictures_in(folder / "images" / part)
    if not alphas.is_dir() or not (folder / "images" / part).is_dir():
        return None
    instances = {path.name: tuple(pictures_in(path).values()) for path in sorted(alphas.iterdir()) if path.is_dir()}
    names = [name for name in pictures if instances.get(name)]
    left_out = set(pictures) ^ set(instances) | {name for name in instances if not instances[name]}
    return [Sample(name, pictures[name], instances[name]) for name in names], sorted(left_out)


def _refmatte_rw100(folder: Path) -> Found | None:
    """RefMatte-RW100 (Li, Zhang, Tao, "Referring Image Matting", CVPR 2023; github.com/JizhiziLi/RIM): 100 pictures
    with one or more described targets, each with a matte of its own.

    mask/NAME_K.png is the matte of target K of image/NAME.jpg, and refmatte_rw100_label.json says {"NAME_K":
    {"image_name": "NAME", "expressions": [...]}} (as read by SDMatte and SEMat). The released Matting Anything expects
    a copy image_all with a picture for each target, and eval_index_expression.json, which says for each picture the
    number of the expression to use; both are used where they are there. Without the latter the first expression is.
    """
    masks = folder / "mask"
    images = next((folder / name for name in ("image", "image_all") if (folder / name).is_dir()), None)
    if images is None or not masks.is_dir():
        return None
    labels = _json(folder / "refmatte_rw100_label.json")
    chosen = _json(folder / "eval_index_expression.json")
    pictures, samples, left_out = pictures_in(images), [], []
    for name, matte in pictures_in(masks).items():
        label = labels.get(name) if isinstance(labels.get(name), dict) else {}
        of = str(label.get("image_name", re.sub(r"_\d+$", "", name)))
        picture = pictures.get(name) or pictures.get(of)
        if picture is None:
            left_out.append(name)
            continue
        samples.append(Sample(name, picture, (matte,), text=_expression(label, chosen.get(of, chosen.get(name, 0)))))
    shown = {sample.picture for sample in samples}
    return samples, left_out + [name for name, picture in pictures.items() if picture not in shown]


def _alphamatting(folder: Path) -> Found | None:
    """The training set of alphamatting.com (Rhemann et al., CVPR 2009): 27 pictures in low or high resolution.

    The folders are those in which its archives unpack. Of the two trimaps the smaller, Trimap1, is used.
    """
    for size in ("lowres", "highres"):
        pictures, truths = folder / f"input_training_{size}", folder / f"gt_training_{size}"
        if found := _pairs(pictures, truths, folder / f"trimap_training_{size}" / "Trimap1"):
            return found
    return None


def _pictures(folder: Path) -> Found | None:
    """Anybody's pictures with true mattes. Of masks and trimaps, those are used that are there."""
    if found := _pairs(folder / "image", folder / "alpha", folder / "trimap", folder / "mask"):
        return _described(found[0], folder), found[1]
    inside = {path.name: pictures_in(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    samples = [
        Sample(name, files["image"], (files["alpha"],), files.get("trimap"), files.get("mask"))
        for name, files in inside.items()
        if {"image", "alpha"} <= files.keys()
    ]
    if samples:
        left_out = [name for name, files in inside.items() if len({"image", "alpha"} & files.keys()) == 1]
        return _described(samples, folder), left_out
    files = pictures_in(folder)
    samples = [
        Sample(name, files[name], (files[f"{name}_alpha"],), files.get(f"{name}_trimap"), files.get(f"{name}_mask"))
        for name in files
        if f"{name}_alpha" in files
    ]
    beside = {f"{sample.name}{end}" for sample in samples for end in ("", "_alpha", "_trimap", "_mask")}
    return (_described(samples, folder), [name for name in files if name not in beside]) if samples else None


def _pairs(pictures: Path, alphas: Path, trimaps: Path | None = None, masks: Path | None = None) -> Found | None:
    """Pictures and mattes of the same names in two folders; None unless both folders are there."""
    if not pictures.is_dir() or not alphas.is_dir():
        return None
    shown, truths = pictures_in(pictures), pictures_in(alphas)
    bands = pictures_in(trimaps) if trimaps else {}
    rough = pictures_in(masks) if masks else {}
    both = sorted(shown.keys() & truths.keys())
    samples = [Sample(name, shown[name], (truths[name],), bands.get(name), rough.get(name)) for name in both]
    return samples, sorted(shown.keys() ^ truths.keys())


def _described(samples: Iterable[Sample], folder: Path) -> list[Sample]:
    """The samples with their texts from text.json, {"NAME": "the dog on the left"}."""
    texts = _json(folder / "text.json")
    told = {name: text for name, text in texts.items() if isinstance(text, str)}
    return [Sample(s.name, s.picture, s.truths, s.trimap, s.mask, told.get(s.name)) for s in samples]


def _expression(label: dict, number: object) -> str | None:
    expressions = label.get("expressions")
    if not isinstance(expressions, list) or not isinstance(number, int) or not 0 <= number < len(expressions):
        return None
    return expressions[number] if isinstance(expressions[number], str) else None


def _json(path: Path) -> dict:
    """The dictionary in a file, empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _LARGEST_JSON_BYTES:
            raise EvaluationError(f"{path} is too large for a list of descriptions.")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise EvaluationError(f"{path} cannot be read as JSON ({error}). Unpack the test set again.") from error
    if not isinstance(content, dict):
        raise EvaluationError(f'{path} is no dictionary of names. Expected is {{"NAME": ...}}.')
    return content


def _tree(layout: Layout) -> str:
    return "\n".join(f"    {line}" for line in layout.tree)


# The folders of one may be part of another's: whoever asks for more comes first, and anybody's pictures last.
LAYOUTS: Sequence[Layout] = (
    Layout("ppm-100", "PPM-100", ("FOLDER/image/NAME.jpg", "FOLDER/matte/NAME.jpg"), _ppm_100, pictures=100),
    Layout(
        "am-2k",
        "AM-2k",
        ("FOLDER/validation/original/NAME.jpg", "FOLDER/validation/mask/NAME.png", "FOLDER/validation/trimap/NAME.png"),
        _am_2k,
        pictures=200,
        # AIM-500 has the same folders, but not in one that is called validation.
        is_told_apart=lambda folder: "validation" in (folder.resolve().name, *(p.name for p in folder.iterdir())),
    ),
    Layout(
        "pm-10k",
        "PM-10k (P3M-500-NP)",
        tuple(f"FOLDER/validation/P3M-500-NP/{part}" for part in ("original_image/NAME.jpg", "mask/NAME.png"))
        + ("FOLDER/validation/P3M-500-NP/trimap/NAME.png",),
        _pm_10k,
        pictures=500,
    ),
    Layout(
        "refmatte-rw100",
        "RefMatte-RW100",
        ("FOLDER/image/NAME.jpg", "FOLDER/mask/NAME_0.png", "FOLDER/refmatte_rw100_label.json"),
        _refmatte_rw100,
        guidance="mask",
        is_told_apart=lambda folder: (folder / "refmatte_rw100_label.json").is_file(),
    ),
    Layout(
        "him2k-natural",
        "HIM2K, natural",
        ("FOLDER/images/natural/NAME.jpg", "FOLDER/alphas/natural/NAME/00.png"),
        lambda folder: _him2k(folder, "natural"),
        guidance="mask",
        instances=True,
        is_told_apart=lambda folder: not (folder / "alphas" / "comp").is_dir(),
    ),
    Layout(
        "him2k-synthetic",
        "HIM2K, synthetic",
        ("FOLDER/images/comp/NAME.jpg", "FOLDER/alphas/comp/NAME/00.png"),
        lambda folder: _him2k(folder, "comp"),
        guidance="mask",
        instances=True,
        is_told_apart=lambda folder: not (folder / "alphas" / "natural").is_dir(),
    ),
    Layout(
        "rwp-636",
        "RWP-636",
        ("FOLDER/image/NAME.jpg", "FOLDER/alpha/NAME.png"),
        _rwp_636,
        instances=True,
        pictures=636,
        is_told_apart=lambda folder: re.search("real.?world.?portrait|rwp", folder.resolve().name, re.I) is not None,
    ),
    Layout(
        "alphamatting",
        "alphamatting.com, training set",
        (
            "FOLDER/input_training_lowres/GT01.png",
            "FOLDER/gt_training_lowres/GT01.png",
            "FOLDER/trimap_training_lowres/Trimap1/GT01.png",
        ),
        _alphamatting,
        levels="nearest",
        pictures=27,
    ),
    Layout(
        "pictures",
        "pictures with true mattes",
        (
            "FOLDER/image/NAME.jpg and FOLDER/alpha/NAME.png (also trimap/, mask/, text.json), or",
            "FOLDER/NAME/image.png and FOLDER/NAME/alpha.png (also trimap.png, mask.png), or",
            "FOLDER/NAME.jpg and FOLDER/NAME_alpha.png (also NAME_trimap.png, NAME_mask.png)",
        ),
        _pictures,
        guidance="mask",
        levels="nearest",
    ),
)
