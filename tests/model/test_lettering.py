"""Labels are legible in the languages that the pack speaks, where the system has a font for them."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw, ImageFont

from mam_model import lettering
from mam_model.lettering import font_for, in_lines


class Font:
    """A font that has some characters."""

    def __init__(self, characters: str):
        self.characters = characters

    def getmask(self, text: str) -> bytes:
        return text.encode() if text in self.characters else b"box"


@pytest.fixture
def system(monkeypatch):
    """`system({file: characters})`: these fonts and no others are there."""

    def have(fonts: dict[str, str]) -> dict[str, Font]:
        made = {file: Font(characters) for file, characters in fonts.items()}
        monkeypatch.setattr(lettering, "_FILES", ("absent.ttf", *made))
        monkeypatch.setattr(lettering, "_opened", lambda file, size_px: made.get(file))
        return made

    return have


def test_english_is_written_in_the_font_that_is_always_there(system):
    system({"all.ttf": "cat 1猫"})
    assert font_for("1 cat", 20).getname() == ImageFont.load_default(20).getname()
    assert font_for("", 20).getname() == ImageFont.load_default(20).getname()


def test_another_language_takes_the_first_font_that_has_all_of_it(system):
    fonts = system({"some.ttf": "cat", "chinese.ttf": "1猫", "more.ttf": "1猫狗"})
    assert font_for("1 猫", 20) is fonts["chinese.ttf"]
    assert font_for("1 猫狗", 20) is fonts["more.ttf"]


def test_where_no_font_has_all_the_one_that_lacks_fewest_is_taken(system):
    fonts = system({"one.ttf": "1猫", "two.ttf": "1猫狗"})
    assert font_for("1 猫狗鳥", 20) is fonts["two.ttf"]


def test_accents_and_cyrillic_are_drawn_and_not_boxes():
    """With this system's fonts."""
    if not any(lettering._opened(file, 24) for file in lettering._FILES):
        pytest.skip("this system has none of the fonts")
    drawn = {_drawn(letter) for letter in "éßñя"}
    assert len(drawn) == 4 and _drawn("\uffff") not in drawn


def _drawn(text: str) -> bytes:
    picture = Image.new("L", (40, 40))
    ImageDraw.Draw(picture).text((4, 4), text, fill=255, font=font_for(text, 24))
    assert picture.getbbox()
    return picture.tobytes()


def test_a_text_is_broken_between_words_and_never_within_one():
    font = font_for("abc", 12)
    text = "frame 10, no. 2 second girl from the left"
    assert in_lines(text, font, 1000) == [text]
    lines = in_lines(text, font, 80)
    assert " ".join(lines) == text and len(lines) > 2
    assert all(font.getlength(line) <= 80 for line in lines)
    assert in_lines(text, font, 1) == text.split()
    assert in_lines("", font, 80) == []
