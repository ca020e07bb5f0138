"""The interface in other languages: locales/<language> says all that nodes, editor, settings and commands say."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCALES = ROOT / "locales"
PAGE = ROOT / "web" / "js"
PROMISED = {"de", "es", "fr", "ja", "ko", "ru", "zh"}
# English is in the code; its folder repeats the texts for ComfyUI's own dialogs.
LANGUAGES = sorted(PROMISED | {folder.name for folder in LOCALES.glob("*/")} - {"en"})

# Labels that may read as in English, whatever their case: names of models and measures, coordinates, and the words of
# the field that a language has taken over.
NAMES = {
    *("sam", "m2m", "vae", "clip", "x", "y", "sad", "mse", "mad", "grad", "conn", "imq"),
    *("matting anything", "in-context matting"),
}
LOANWORDS = {
    "de": (
        "alpha alphas band composite embedding ensemble frame guidance index position prompt prompts seed text trimap"
    ).split(),
    "es": "color detector embedding prompt prompts trimap".split(),
    "fr": "alpha alphas embedding ensemble image index instances mode position prompt prompts trimap".split(),
    "zh": ["alpha"],
}
UNITS = {"ms"}
SCRIPTS = {"ja": r"[\u3040-\u30ff]", "ko": r"[\uac00-\ud7af]", "ru": r"[\u0400-\u04ff]", "zh": r"[\u4e00-\u9fff]"}
# A Japanese label may do without kana, a Japanese sentence not.
LABEL_SCRIPTS = SCRIPTS | {"ja": r"[\u3040-\u30ff\u4e00-\u9fff]"}
ENGLISH_ONLY = re.compile(r"(?<![\w-])(the|of|which|where|from|with|what|its|it)(?![\w-])", re.IGNORECASE)
# A JavaScript string, or several joined by +.
LITERAL = r'"(?:[^"\\]|\\.)*"(?:\s*\+\s*"(?:[^"\\]|\\.)*")*'


def read(language: str, name: str = "nodeDefs") -> dict:
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def unquoted(literal: str) -> str:
    """The text of a LITERAL."""
    return "".join(json.loads(part) for part in re.findall(r'"(?:[^"\\]|\\.)*"', literal))


def editor_texts() -> dict[str, str]:
    """Key -> English text, of the objects of texts in the editor's modules."""
    found = {}
    for module in sorted((PAGE / "editor").glob("texts*.mjs")):
        script = module.read_text(encoding="utf-8")
        for body in re.findall(r"const \w+ = (?:Object\.freeze\()?\{\n(.*?)\n\}\)?;", script, re.DOTALL):
            entries = re.findall(rf"^  (\w+):\s*({LITERAL}),$", body, re.MULTILINE)
            assert [key for key, _ in entries] == re.findall(r"^  (\w+):", body, re.MULTILINE), module.name
            assert found.keys().isdisjoint(key for key, _ in entries), module.name
            found |= {key: unquoted(literal) for key, literal in entries}
    return found


def page_settings() -> dict:
    """What the settings say, in the form of settings.json: the interface looks for "A.b" under "A_b"."""
    script = (PAGE / "matting.js").read_text(encoding="utf-8")
    calls = re.findall(
        rf"^ +setting\(\s*({LITERAL}),\s*({LITERAL}),\s*({LITERAL}),\s*\{{(.*?)\}},\s*\(value\)",
        script,
        re.DOTALL | re.MULTILINE,
    )
    assert len(calls) == len(re.findall(r"^ +setting\(", script, re.MULTILINE))
    settings = {}
    for name, label, tooltip, rest in calls:
        entry = {"name": unquoted(label), "tooltip": unquoted(tooltip)}
        options = re.search(r"options: \[(.*?)\]", rest)
        if options is not None:
            values = [unquoted(literal) for literal in re.findall(LITERAL, options[1])]
            entry["options"] = {value.replace(".", "_"): value for value in values}
        settings[f"MattingAnything_{unquoted(name)}"] = entry
    return settings


def page_commands() -> dict:
    """What the commands say, in the form of commands.json."""
    script = (PAGE / "matting.js").read_text(encoding="utf-8")
    commands = re.findall(rf"\{{\s*id: ({LITERAL}),\s*label: ({LITERAL}),", script)
    assert len(commands) == len(re.findall(r"\blabel: \"", script))
    return {unquoted(name).replace(".", "_"): {"label": unquoted(label)} for name, label in commands}


def page_categories() -> dict[str, str]:
    """The headings in ComfyUI's settings, in the form of main.json. The first level is the name of the pack."""
    script = (PAGE / "matting.js").read_text(encoding="utf-8")
    headings = re.findall(rf"category: \[SECTION, ({LITERAL}),", script)
    assert len(headings) == len(re.findall(r"\bcategory:", script))
    return {unquoted(heading).replace(".", "_"): unquoted(heading) for heading in headings}


def page_texts() -> dict[str, dict]:
    """File of a language -> all that the editor's page says in English, in the form of that file."""
    return {
        "main": {"settingsCategories": page_categories(), "mattingAnything": editor_texts()},
        "settings": page_settings(),
        "commands": page_commands(),
    }


def page_strings() -> dict[tuple[str, ...], str]:
    return {(name, *path): text for name, texts in page_texts().items() for path, text in flat(texts).items()}


def translated_page(language: str) -> dict[tuple[str, ...], str]:
    strings = {(name, *path): text for name in page_texts() for path, text in flat(read(language, name)).items()}
    return {path: text for path, text in strings.items() if path[1] != "nodeCategories"}


def spoken(text: str) -> str:
    """A text without what is filled in and the punctuation around it; "" when no word is left."""
    return re.sub(r"^\W+|\W+$", "", re.sub(r"\{\w+\}", "", text))


def gaps(text: str) -> list[str]:
    return sorted(re.findall(r"\{\w+\}", text))


def keys_of_the_keyboard(text: str) -> set[str]:
    """What a text tells to press, such as V, Ctrl+Z, Shift or [. A and I are words, L’ begins one."""
    return {*re.findall(r"Ctrl\+(?:Shift\+)?[A-Z]|Shift|(?<!\+)\b[B-HJ-Z]\b(?!’)|[\[\]]", text)}


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


def examples(text: str) -> list[str]:
    """Quoted words: what an input reads, which is the same in every language."""
    return re.findall(r'"([a-zA-Z][^"\[\]{}]*)"(?!:)', text)


def exact_terms(text: str) -> set[str]:
    """What every language writes alike: numbers, examples in JSON, file names, types, names of models and formats."""
    return {
        *re.findall(r"\d+", text),
        *re.findall(r"\[\{.*?\}\]", text),
        *examples(text),
        *re.findall(r"\bmodels/[\w-]+|\bmam_\w+(?:\.pth)?|[\w.-]+\.safetensors", text),
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

    def test_its_sentences_are_in_its_own_words(self, language, phrases, english):
        said = flat(english)
        for path, text in flat(read(language)).items():
            if path[-1] not in ("description", "tooltip"):
                continue
            for phrase in (*phrases, *examples(said.get(path, ""))):
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

    @pytest.mark.parametrize("name", ["nodeDefs", "main", "settings", "commands"])
    def test_its_files_are_written_as_all_are(self, language, name):
        text = (LOCALES / language / f"{name}.json").read_bytes().decode("utf-8")
        assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"
        assert unicodedata.is_normalized("NFC", text)

    def test_comfyui_offers_it(self, language, comfyui):
        from app.custom_node_manager import CustomNodeManager

        offered = CustomNodeManager().build_translations()[language]
        for name in ("nodeDefs", "settings", "commands"):
            assert offered[name].items() >= read(language, name).items()
        for section, texts in read(language, "main").items():
            assert offered[section].items() >= texts.items()


def test_the_english_texts_of_the_page_are_found():
    assert editor_texts()["undo"] == "Undo (Ctrl+Z)"
    assert editor_texts()["engineClassical"] == "Without models"
    assert editor_texts()["previewOldServer"].endswith("start ComfyUI again. Running the workflow works as before.")
    assert page_categories() == {"Prompt Editor": "Prompt Editor"}
    assert page_settings()["MattingAnything_PointSize"]["name"] == "Point size"
    assert page_settings()["MattingAnything_LiveEngine"]["options"] == {
        way: way for way in ("automatic", "worker", "queue")
    }
    assert page_commands()["MattingAnything_MatteThisImage"] == {"label": "Matte this image"}
    assert keys_of_the_keyboard("A tool (H, or hold Space), Redo (Ctrl+Shift+Z)") == {"H", "Ctrl+Shift+Z"}


def test_the_english_files_say_what_the_page_says():
    assert read("en", "main")["mattingAnything"] == editor_texts()
    assert read("en", "settings") == page_settings()
    assert read("en", "commands") == page_commands()


@pytest.mark.parametrize("language", LANGUAGES)
class TestLanguageOfTheEditor:
    def test_every_text_setting_and_command_is_translated_and_nothing_else(self, language):
        translated, wanted = translated_page(language), page_strings()
        assert [path for path in wanted if path not in translated] == [], "shown in English"
        assert [path for path in translated if path not in wanted] == [], "never shown"

    def test_no_text_is_empty(self, language):
        for path, text in translated_page(language).items():
            assert isinstance(text, str) and text and text == text.strip(), path

    def test_no_text_is_left_in_english(self, language):
        alike, said = NAMES | UNITS | set(LOANWORDS.get(language, ())), page_strings()
        left = [
            (path, text)
            for path, text in translated_page(language).items()
            if path in said and text.casefold() == said[path].casefold()
            if spoken(text) and spoken(text).casefold() not in alike
        ]
        assert left == []

    def test_its_texts_are_in_its_own_words(self, language):
        alike = NAMES | UNITS | set(LOANWORDS.get(language, ()))
        for path, text in translated_page(language).items():
            if spoken(text) and spoken(text).casefold() not in alike:
                assert re.search(LABEL_SCRIPTS.get(language, "[a-z]"), text), path
                assert not ENGLISH_ONLY.search(text), path

    def test_what_is_filled_in_has_its_place(self, language):
        translated = translated_page(language)
        lost = [(path, text) for path, text in page_strings().items() if gaps(translated.get(path, text)) != gaps(text)]
        assert lost == []

    def test_the_keys_to_press_are_those_of_the_editor(self, language):
        translated = translated_page(language)
        lost = [
            (path, text)
            for path, text in page_strings().items()
            if path in translated and keys_of_the_keyboard(translated[path]) != keys_of_the_keyboard(text)
        ]
        assert lost == []

    def test_one_text_has_one_translation(self, language):
        translated, translations = translated_page(language), {}
        for path, text in page_strings().items():
            if path in translated:
                translations.setdefault(text.casefold(), set()).add(translated[path].casefold())
        assert [several for several in translations.values() if len(several) > 1] == []

    def test_the_options_of_a_setting_are_explained_under_the_names_it_shows(self, language):
        settings = read(language, "settings")
        for setting_id, said in page_settings().items():
            for key, option in said.get("options", {}).items():
                shown, tooltip = settings[setting_id]["options"][key], settings[setting_id]["tooltip"]
                assert not says(said["tooltip"], option) or shown.casefold() in tooltip.casefold(), setting_id

    def test_settings_and_commands_hold_nothing_that_the_interface_would_fill_in(self, language):
        for name in ("settings", "commands"):
            for path, text in flat(read(language, name)).items():
                assert not re.search(r"[{}@|]", text), path
