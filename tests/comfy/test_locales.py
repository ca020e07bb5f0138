"""The interface in other languages: locales/<language>/nodeDefs.json says all that the nodes say, and as exactly."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pytest

LOCALES = Path(__file__).resolve().parents[2] / "locales"
PROMISED = {"de", "es", "fr", "ja", "ko", "ru", "zh"}
LANGUAGES = sorted(PROMISED | {folder.name for folder in LOCALES.glob("*/")})

# Labels that may read as in English, whatever their case: names of models and measures, coordinates, and the words of
# the field that a language has taken over.
NAMES = {"sam", "m2m", "x", "y", "sad", "mse", "mad", "grad", "conn", "imq", "matting anything"}
LOANWORDS = {
    "de": "alpha alphas band composite embedding frame guidance index position prompt prompts trimap".split(),
    "es": "color embedding prompt prompts trimap".split(),
    "fr": "alpha alphas embedding image index instances position prompt prompts trimap".split(),
    "zh": ["alpha"],
}
SCRIPTS = {"ja": r"[\u3040-\u30ff]", "ko": r"[\uac00-\ud7af]", "ru": r"[\u0400-\u04ff]", "zh": r"[\u4e00-\u9fff]"}
ENGLISH_ONLY = re.compile(r"(?<![\w-])(the|of|which|where|from|with|what|its|it)(?![\w-])", re.IGNORECASE)


def read(language: str) -> dict:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def flat(definitions: dict, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """Path of keys -> string, in the order of the file."""
    strings = {}
    for key, value in definitions.items():
        strings |= flat(value, (*path, key)) if isinstance(value, dict) else {(*path, key): value}
    return strings


def texts(slot) -> dict[str, str]:
    # A growing row of sockets is explained by the socket that it repeats.
    explained = slot.template.input if hasattr(slot, "template") else slot
    return {"name": slot.display_name or slot.id, "tooltip": explained.tooltip}


def slots_by_key(inputs, path: str = "") -> dict[str, object]:
    """Key in nodeDefs.json -> input. The interface looks for "by.position" under "by_position"."""
    found = {}
    for slot in inputs:
        name = path + slot.id
        found[name.replace(".", "_")] = slot
        for option in getattr(slot, "options", None) or ():
            for key, nested in slots_by_key(getattr(option, "inputs", ()), f"{name}.").items():
                assert key not in found or texts(found[key]) == texts(nested), f"{key} would need two translations"
                found[key] = nested
    return found


def choices(slot) -> list[str]:
    return [getattr(option, "key", option) for option in getattr(slot, "options", None) or ()]


@pytest.fixture(scope="module")
def english(comfyui) -> dict:
    """What the nodes say themselves, in the form of nodeDefs.json."""
    definitions = {}
    for node_id, node_class in comfyui.our_nodes.items():
        schema = node_class.GET_SCHEMA()
        definitions[node_id] = {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {key: texts(slot) for key, slot in slots_by_key(schema.inputs).items()},
            "outputs": {str(number): texts(slot) for number, slot in enumerate(schema.outputs)},
        }
    return definitions


@pytest.fixture(scope="module")
def quoted(comfyui) -> dict[tuple[str, ...], list[str]]:
    """Path of a tooltip -> the choices of a widget that it speaks of: its own, or "<input> <choice>" of another."""
    values = {}
    for node_id, node_class in comfyui.our_nodes.items():
        slots = slots_by_key(node_class.GET_SCHEMA().inputs)
        for key, slot in slots.items():
            tooltip = texts(slot)["tooltip"]
            values[node_id, "inputs", key, "tooltip"] = [
                choice
                for other in slots.values()
                for choice in choices(other)
                if says(tooltip, choice if other is slot else f"{other.id} {choice}")
                or says(tooltip, f'{other.id} "{choice}"')
                or says(tooltip, f"{other.id} named {choice}")
            ]
    return values


@pytest.fixture(scope="module")
def phrases(comfyui) -> set[str]:
    """Choices of several words: English that a translation quotes because the widget shows it."""
    slots = [slot for node in comfyui.our_nodes.values() for slot in slots_by_key(node.GET_SCHEMA().inputs).values()]
    return {choice for slot in slots for choice in choices(slot) if " " in choice}


def says(text: str, words: str) -> bool:
    """Whether the words stand in the text as such. Chinese and Japanese put no spaces around them."""
    return re.search(rf"(?<![A-Za-z0-9_]){re.escape(words)}(?![A-Za-z0-9_])", text) is not None


def exact_terms(text: str) -> set[str]:
    """What every language writes alike: numbers, examples in JSON, file names, types, names of models and formats."""
    return {
        *re.findall(r"\d+", text),
        *re.findall(r"\[\{.*?\}\]", text),
        *re.findall(r"\bmodels/\w+|\bmam_\w+(?:\.pth)?", text),
        *re.findall(r"\b\w*[A-Z]\w*[A-Z]\w*\b", text),
    }


def test_the_tooltips_that_explain_choices_are_found(quoted):
    assert quoted["MAM_PromptMask", "inputs", "use_mask_as", "tooltip"] == ["guidance", "hint"]
    assert quoted["MAM_PromptPoints", "inputs", "image", "tooltip"] == ["0 to 1"]
    assert quoted["MAM_Composite", "inputs", "x", "tooltip"] == ["background"]
    assert quoted["MAM_PreviewMatte", "inputs", "color", "tooltip"] == ["color"]
    assert quoted["MAM_EdgeAdjust", "inputs", "alpha", "tooltip"] == []
    assert sum(map(len, quoted.values())) > 50


def test_the_promised_languages_are_there():
    assert {folder.name for folder in LOCALES.glob("*/")} >= PROMISED


@pytest.mark.parametrize("language", LANGUAGES)
class TestLanguage:
    def test_it_translates_exactly_the_strings_of_the_nodes_in_their_order(self, language, english):
        translated, wanted = flat(read(language)), flat(english)
        assert [path for path in wanted if path not in translated] == [], "not translated"
        assert [path for path in translated if path not in wanted] == [], "no such node, input or output"
        assert list(translated) == list(wanted)

    def test_no_string_is_empty(self, language):
        for path, text in flat(read(language)).items():
            assert isinstance(text, str) and text and text == text.strip(), path

    def test_no_string_is_left_in_english(self, language, english):
        alike, said = NAMES | set(LOANWORDS.get(language, ())), flat(english)
        left = [
            (path, text)
            for path, text in flat(read(language)).items()
            if path in said and text.casefold() == said[path].casefold()
            if path[-1] not in ("name", "display_name") or text.casefold() not in alike
        ]
        assert left == []

    def test_its_sentences_are_in_its_own_words(self, language, phrases):
        for path, text in flat(read(language)).items():
            if path[-1] not in ("description", "tooltip"):
                continue
            for phrase in phrases:
                text = text.replace(phrase, "")
            assert re.search(SCRIPTS.get(language, "[a-z]"), text), path
            assert not ENGLISH_ONLY.search(text), path

    def test_what_a_widget_shows_in_english_is_named_as_it_shows_it(self, language, quoted):
        translated = flat(read(language))
        lost = [
            (path, choice)
            for path, values in quoted.items()
            for choice in values
            if path in translated and not says(translated[path], choice)
        ]
        assert lost == []

    def test_numbers_examples_files_and_proper_names_are_kept(self, language, english):
        # Units differ between languages, and the interface translates the names of ComfyUI's own nodes.
        translated, translatable = flat(read(language)), {"MB", "GB", "BBoxes"}
        lost = [
            (path, term)
            for path, text in flat(english).items()
            if path[-1] in ("description", "tooltip") and path in translated
            for term in exact_terms(text) - translatable
            if term not in translated[path]
        ]
        assert lost == []

    def test_one_label_stands_for_one_thing(self, language):
        definitions = read(language)
        titles = [definition["display_name"] for definition in definitions.values()]
        assert len(set(titles)) == len(titles)
        for node_id, definition in definitions.items():
            for side in ("inputs", "outputs"):
                names = [entry["name"] for entry in definition[side].values()]
                assert len(set(names)) == len(names), (node_id, side, names)

    def test_one_sentence_has_one_translation(self, language, english):
        translated, translations = flat(read(language)), {}
        for path, text in flat(english).items():
            if path[-1] != "name" and path in translated:
                translations.setdefault(text, set()).add(translated[path])
        assert [several for several in translations.values() if len(several) > 1] == []

    def test_titles_and_labels_hold_nothing_that_the_interface_would_fill_in(self, language):
        """vue-i18n reads {..} as a placeholder, @ as a link and | as a plural, in all but tooltips."""
        for path, text in flat(read(language)).items():
            assert path[-1] == "tooltip" or not re.search(r"[{}@|]", text), path

    def test_its_file_is_written_as_all_are(self, language):
        text = (LOCALES / language / "nodeDefs.json").read_bytes().decode("utf-8")
        assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"
        assert unicodedata.is_normalized("NFC", text)

    def test_comfyui_offers_it(self, language, comfyui):
        from app.custom_node_manager import CustomNodeManager

        assert CustomNodeManager().build_translations()[language]["nodeDefs"].items() >= read(language).items()
