"""Fonts for labels and captions, which users write in their own language.

Pillow brings a font along that knows the letters of English alone. For all others one of the system's is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

from PIL import ImageFont

# By the names of their files, which Pillow looks for in the system's folders: fonts of many alphabets first, then those
# that know Chinese, Japanese and Korean too, of Windows, of macOS and of Linux.
_FILES = (
    "segoeui.ttf",
    "arial.ttf",
    "Helvetica.ttc",
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
)
# No character at all, so that every font draws what it draws for those that it lacks.
_NO_CHARACTER = "\uffff"


def font_for(text: str, size_px: int) -> ImageFont.FreeTypeFont:
    """The first font that has all characters of a text, or the one that lacks fewest; Pillow's own for English.

    Args:
        text: everything that will be drawn with it.
        size_px: the height of its letters, in pixels.
    """
    characters = sorted(set(text))
    best, most = None, -1
    for font in _fonts(size_px):
        known = sum(map(_has(font), characters))
        if known > most:
            best, most = font, known
        if known == len(characters):
            break
    return best


def in_lines(text: str, font: ImageFont.FreeTypeFont, width_px: float) -> list[str]:
    """A text broken between words into lines of at most that width; a word that is wider has a line of its own."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width_px:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _fonts(size_px: int) -> Iterator[ImageFont.FreeTypeFont]:
    yield ImageFont.load_default(size_px)
    for file in _FILES:
        font = _opened(file, size_px)
        if font is not None:
            yield font


@lru_cache(maxsize=64)
def _opened(file: str, size_px: int) -> ImageFont.FreeTypeFont | None:
    """A font of the system; None where it has no such file. Remembered, because Pillow looks through all folders."""
    try:
        return ImageFont.truetype(file, size_px)
    except OSError:
        return None


def _has(font: ImageFont.FreeTypeFont) -> Callable[[str], bool]:
    """Whether a font has a character, as a function of the character."""
    missing = bytes(font.getmask(_NO_CHARACTER))

    def has(character: str) -> bool:
        return character.isspace() or bytes(font.getmask(character)) != missing

    return has
