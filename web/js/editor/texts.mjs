/**
 * What the editor says, in the user's language.
 *
 * English is part of the code; other languages come from locales/<language>/main.json, "mattingAnything", which ComfyUI
 * serves at /i18n. ComfyUI gives extensions no translating function of their own.
 */

import { ENGLISH as EDITOR } from "./texts.en.mjs";

/** The texts of the live preview, the menu and the commands; those of the editor itself stand in texts.en.mjs. */
const PLATFORM = {
  previewOff: "The live preview is off.",
  previewReady: "{ms} ms",
  previewNothing: "Draw on the picture; the matte follows.",
  previewMask: "Finding the subject…",
  previewMatte: "Matting…",
  previewEncoding: "Encoding the picture…",
  previewNode: "{node}…",
  previewNodeProgress: "{node}: {percent} %",
  previewQueued: "ComfyUI is busy. The matte comes after the job that is running.",
  previewOldServer:
    "This server cannot matte while you draw. Update Matting Anything and start ComfyUI again. Running the workflow " +
    "works as before.",
  previewNoConnection: "The server does not answer. Check that ComfyUI is running.",
  previewForgotten: "The server forgot the picture twice. Free some memory first.",
  previewInterrupted: "The preview was interrupted.",
  previewNoAnswer: "The server ended the preview without an answer. Its log says more.",
  previewNotInPrompt: "This node is muted or bypassed. Activate it to see the matte while you draw.",
  previewNoImage: "Connect an image to see the matte while you draw.",
  previewFailed: "The server answered {code}.",
  previewMatteFailed: "The live matte failed: {reason}",
  previewTooLarge: "What is drawn takes more than {limit} bytes. Erase some strokes.",
  previewLate: "What is drawn did not reach the server within {seconds} seconds.",
  previewOutOfMemory: "There is not enough memory. Use a smaller picture, or free some memory first.",
  previewNoSam: "Connect Load SAM too, or neither model: without models the classical engine mattes.",
  previewNoM2m: "Connect Load Mask-to-Matte too, or neither model: without models the classical engine mattes.",
  previewNotInList: "{node}: “{value}” is not there. Choose another {input}.",
  previewInputMissing: "{node}: connect {input}.",
  engineSam: "Matting Anything",
  engineClassical: "Without models",
  sourceConnect: "Connect an image.",
  sourceRun: "Run once to see the picture here.",
  sourceUnreadable: "The picture {name} cannot be shown. Choose another one, or run once.",
  matteThisImage: "Matte this image",
  selectEditor: "Select a Prompt Editor first.",
  selectImage: "Select a node that gives an image first.",
};

/** @type {Readonly<Record<string, string>>} */
export const ENGLISH = Object.freeze({ ...EDITOR, ...PLATFORM });

/** @type {Readonly<Record<string, string>>} */
let translated = {};

/**
 * @param {unknown} languages what /i18n answers: language -> { mattingAnything: { key: text } }
 * @param {string} locale e.g. "de" or "zh-TW"; without texts of its own it takes those of its language
 */
export function useLocale(languages, locale) {
  const read = /** @type {Record<string, { mattingAnything?: Record<string, string> }>} */ (languages ?? {});
  const language = locale.split("-")[0] ?? locale;
  translated = { ...read[language]?.mattingAnything, ...read[locale]?.mattingAnything };
}

/**
 * @param {string} key
 * @param {Readonly<Record<string, string | number>>} [values] for the {gaps} of the text
 * @returns {string} the text; the key itself when there is none
 */
export function t(key, values = {}) {
  const text = translated[key] ?? ENGLISH[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (gap, name) => String(values[name] ?? gap));
}
