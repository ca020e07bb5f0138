/**
 * Matting Anything in ComfyUI's front end: the prompt editor's widget, settings, commands and the node menu.
 *
 * ComfyUI imports every .js file of a pack by itself, so this is the only one; all else are modules that it imports.
 */

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { imageOutput, matteThisImage } from "./editor/chain.mjs";
import { t, useLocale } from "./editor/texts.mjs";
import { Editors, LEAST_SIZE, WIDGET_TYPE } from "./editor/widget.mjs";

/** @typedef {import("./editor/widget.mjs").Settings} Settings */

const SECTION = "Matting Anything";
const OURS = /^(MAM|ICM)_/;

/** @param {string} name */
const settingId = (name) => `MattingAnything.${name}`;

/** @template T @param {string} name @param {T} fallback @returns {T} */
function chosen(name, fallback) {
  return app.extensionManager?.setting?.get(settingId(name)) ?? fallback;
}

/** @param {unknown} color the colour picker leaves out the # */
function asColor(color) {
  const digits = /^#?([0-9a-f]{6})$/i.exec(String(color))?.[1];
  return digits ? `#${digits.toLowerCase()}` : "#e69f00";
}

/** @returns {Settings} */
function settings() {
  return {
    overlayColor: asColor(chosen("OverlayColor", "e69f00")),
    overlayOpacity: chosen("OverlayOpacity", 0.5),
    pointSize: chosen("PointSize", 14),
    brushSize: chosen("BrushSize", 24),
    live: chosen("Live", true),
    way: chosen("LiveEngine", "automatic"),
  };
}

const editors = new Editors({ app, api, settings, isClassic: () => !LiteGraph.vueNodesMode });

/**
 * @param {string} name
 * @param {string} label
 * @param {string} tooltip
 * @param {Record<string, unknown>} rest
 * @param {(value: any) => Partial<Settings>} apply
 */
function setting(name, label, tooltip, rest, apply) {
  return {
    id: settingId(name),
    category: [SECTION, "Prompt Editor", label],
    name: label,
    tooltip,
    ...rest,
    onChange: (/** @type {unknown} */ value) => editors.setSettings(apply(value)),
  };
}

/** @param {string} text */
function inform(text) {
  app.extensionManager.toast.add({ severity: "info", summary: SECTION, detail: text, life: 4000 });
}

/** @param {string} name of an editor's command */
function commandChosen(name) {
  // What a command takes away has to be before the user's eyes.
  const host = editors.chosen({ isNamed: name === "clear" });
  if (host) {
    host.editor.command(name);
  } else {
    inform(t("selectEditor"));
  }
}

/** @param {string} folder @returns {Promise<string[]>} the model files there; none when the folder is not known */
async function modelFiles(folder) {
  const response = await api.fetchApi(`/models/${folder}`);
  return response.ok ? response.json() : [];
}

/** @param {any} node */
async function matteBehind(node) {
  const editor = await matteThisImage({ createNode: (type) => LiteGraph.createNode(type), modelFiles }, node);
  app.canvas.selectNode(editor);
  if (!app.canvas.isNodeVisible(editor)) {
    app.canvas.centerOnNode(editor);
  }
  app.extensionManager.workflow?.activeWorkflow?.changeTracker?.captureCanvasState?.();
}

async function matteSelected() {
  const node = Object.values(app.canvas.selected_nodes ?? {}).find((candidate) => imageOutput(candidate) >= 0);
  if (node) {
    await matteBehind(node);
  } else {
    inform(t("selectImage"));
  }
}

/**
 * Makes a new node wide enough for its title, which the classic renderer cuts two title heights short of the node's
 * width while it leaves room for less. A node from a file gets its saved width afterwards.
 * @param {any} node
 */
function showWholeTitle(node) {
  const brush = app.canvas?.ctx;
  if (!brush) return;
  brush.save();
  brush.font = node.titleFontStyle;
  const width = Math.ceil(brush.measureText(node.getTitle()).width) + 2 * LiteGraph.NODE_TITLE_HEIGHT;
  brush.restore();
  if (node.size[0] < width) node.setSize([width, node.size[1]]);
}

/**
 * Brings inputs that grow, or depend on a choice, back in the order that they had and under the names that a user gave
 * to them when a node comes from a file or is copied: ComfyUI makes them anew while it reads the node, puts those that
 * a new node does not have behind all others, and copies links by the number of the input.
 * @param {any} nodeType
 */
function keepInputs(nodeType) {
  const configure = nodeType.prototype.configure;
  nodeType.prototype.configure = function (/** @type {any} */ saved) {
    // ComfyUI changes the list while it reads the node.
    const before = [...(saved.inputs ?? [])];
    const given = new Map(before.map(({ name, label }) => [name, label]));
    configure.call(this, saved);
    if (this.inputs?.some(comesAndGoes)) {
      sortInputs(this, before);
    }
    for (const input of (this.inputs ?? []).filter((/** @type {any} */ { name }) => given.get(name))) {
      input.label = given.get(input.name);
      const widget = this.widgets?.find((/** @type {any} */ { name }) => name === input.widget?.name);
      if (widget) widget.label = input.label;
    }
  };
}

/** @param {{ name: string }} input @returns {boolean} as `prompts.prompt3` does */
function comesAndGoes({ name }) {
  return name.includes(".");
}

/**
 * @param {any} node
 * @param {readonly { name: string }[]} before the order; an input that is not among these stays behind the one before it
 */
function sortInputs(node, before) {
  const places = new Map(before.map(({ name }, place) => [name, place]));
  let place = -1;
  const placed = node.inputs.map((/** @type {any} */ input) => {
    place = places.get(input.name) ?? place;
    return { input, place };
  });
  placed.sort((/** @type {any} */ one, /** @type {any} */ other) => one.place - other.place);
  node.inputs.splice(0, placed.length, ...placed.map((/** @type {any} */ { input }) => input));
  node.inputs.forEach((/** @type {any} */ input, /** @type {number} */ slot) => {
    const link = node.graph?.getLink(input.link);
    if (link) link.target_slot = slot;
  });
}

async function loadTexts() {
  const response = await api.fetchApi("/i18n").catch(() => null);
  useLocale(response?.ok ? await response.json() : {}, app.extensionManager?.setting?.get("Comfy.Locale") ?? "en");
}

app.registerExtension({
  name: "MattingAnything.Editor",

  settings: [
    setting(
      "OverlayColor",
      "Overlay color",
      "The colour that lies over the subject in the prompt editor, until a target is given one of its own.",
      { type: "color", defaultValue: "e69f00" },
      (value) => ({ overlayColor: asColor(value) }),
    ),
    setting(
      "OverlayOpacity",
      "Overlay opacity",
      "How much of the picture that colour covers.",
      { type: "slider", attrs: { min: 0.1, max: 1, step: 0.05 }, defaultValue: 0.5 },
      (value) => ({ overlayOpacity: value }),
    ),
    setting(
      "PointSize",
      "Point size",
      "The width of the points you set, in pixels of the screen.",
      { type: "slider", attrs: { min: 6, max: 32, step: 1 }, defaultValue: 14 },
      (value) => ({ pointSize: value }),
    ),
    setting(
      "BrushSize",
      "Brush size",
      "The width of the brush in a new editor, in pixels of a picture of up to 1024 pixels; on a larger one it grows " +
        "with it.",
      { type: "slider", attrs: { min: 1, max: 200, step: 1 }, defaultValue: 24 },
      (value) => ({ brushSize: value }),
    ),
    setting(
      "Live",
      "Live matte",
      "Mattes while you draw. The first stroke on a new picture runs the nodes before the editor.",
      { type: "boolean", defaultValue: true },
      (value) => ({ live: value }),
    ),
    setting(
      "LiveEngine",
      "Live engine",
      "Where live mattes are computed. worker: on the processor, beside a running job. queue: on ComfyUI's own " +
        "device, between its jobs. automatic: whichever was measured to be quicker.",
      { type: "combo", options: ["automatic", "worker", "queue"], defaultValue: "automatic" },
      (value) => ({ way: value }),
    ),
    // The dialog puts the highest first, and else the last.
  ].map((shown, index) => ({ ...shown, sortOrder: -index })),

  commands: [
    {
      id: "MattingAnything.ClearPrompts",
      label: "Clear the prompts of the target",
      function: () => commandChosen("clear"),
    },
    {
      id: "MattingAnything.CycleMatteView",
      label: "Next view of the matte",
      function: () => commandChosen("cycleBackdrop"),
    },
    {
      id: "MattingAnything.ToggleLive",
      label: "Turn the live matte on or off",
      function: () => commandChosen("toggleLive"),
    },
    { id: "MattingAnything.MatteThisImage", label: "Matte this image", function: () => matteSelected() },
  ],

  // With Shift alone: no browser, keyboard layout or text field has another use for these.
  keybindings: [
    { commandId: "MattingAnything.ClearPrompts", combo: { key: "c", shift: true } },
    { commandId: "MattingAnything.CycleMatteView", combo: { key: "m", shift: true } },
    { commandId: "MattingAnything.ToggleLive", combo: { key: "l", shift: true } },
    { commandId: "MattingAnything.MatteThisImage", combo: { key: "x", shift: true } },
  ],

  async init() {
    await loadTexts();
    app.ui?.settings?.addEventListener("Comfy.Locale.change", async () => {
      await loadTexts();
      editors.renew();
    });
  },

  beforeRegisterNodeDef(/** @type {any} */ nodeType, /** @type {any} */ nodeData) {
    if (OURS.test(nodeData.name)) keepInputs(nodeType);
  },

  nodeCreated(/** @type {any} */ node) {
    if (OURS.test(node.comfyClass)) showWholeTitle(node);
  },

  getCustomWidgets: () => ({
    [WIDGET_TYPE]: (/** @type {any} */ node, /** @type {string} */ name) => ({
      widget: editors.createWidget(node, name),
      minWidth: LEAST_SIZE.width,
      minHeight: LEAST_SIZE.height,
    }),
  }),

  getNodeMenuItems: (/** @type {any} */ node) =>
    imageOutput(node) < 0 ? [] : [{ content: t("matteThisImage"), callback: () => matteBehind(node) }],
});
