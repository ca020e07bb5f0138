/**
 * The prompt editor: joins the drawing and its history, the gestures, the painting and the panel into one element. It
 * knows neither the graph nor the server; pictures and mattes are handed in, edits are told to the callbacks.
 */

import {
  addTarget,
  ALL_FRAMES,
  changedTargets,
  clearFrame,
  clearPrompt,
  deleteBox,
  deletePoint,
  deleteTarget,
  DrawingError,
  emptyDrawing,
  fits,
  hasOwnPrompt,
  hideTarget,
  identityOf,
  isBlank,
  isEmpty,
  LIMITS,
  movePoint,
  promptOf,
  recolour,
  renameTarget,
  scaleTo,
  serialise,
  setBox,
  TARGET_COLORS,
} from "./drawing.mjs";
import { putStyle } from "./editor.css.mjs";
import { fit, keepInSight, ontoPicture, pan, recentre, toCanvas, toPicture, zoom } from "./geometry.mjs";
import { History } from "./history.mjs";
import { decodedBytes } from "./memory.mjs";
import { BACKDROPS, matteFromGrey, Picture, PromptPainter, ScenePainter, sizeOf } from "./paint.mjs";
import { element, Panel, shownColor } from "./panel.mjs";
import { t } from "./texts.mjs";
import { Tools } from "./tools.mjs";

/** @typedef {import("./drawing.mjs").Drawing} Drawing */
/** @typedef {import("./drawing.mjs").Scope} Scope */
/** @typedef {import("./geometry.mjs").View} View */
/** @typedef {import("./geometry.mjs").Size} Size */
/** @typedef {import("./hit.mjs").Hit} Hit */
/** @typedef {import("./paint.mjs").Backdrop} Backdrop */
/** @typedef {import("./paint.mjs").Matte} Matte */
/** @typedef {import("./panel.mjs").StatusState} StatusState */
/** @typedef {import("./tools.mjs").Pointer} Pointer */
/** @typedef {import("./tools.mjs").Selection} Selection */
/** @typedef {import("./tools.mjs").Surface} Surface */
/** @typedef {import("./tools.mjs").ToolName} ToolName */

/**
 * @typedef {object} Settings
 * @property {string} overlayColor `#rrggbb`, of the first target unless it was given a colour
 * @property {number} overlayOpacity 0 to 1
 * @property {number} pointSize diameter in CSS pixels
 * @property {number} brushSize diameter in pixels of a picture of up to 1024; on a larger one it grows with it
 * @property {boolean} live
 * @property {Backdrop} backdrop
 */
/**
 * @typedef {object} Edit
 * @property {string} text the new value
 * @property {number[]} targets whose prompt changed
 * @property {Scope} scope
 * @property {boolean} gesture true while the pointer is still down
 */
/**
 * @typedef {object} Callbacks
 * @property {(edit: Edit) => void} [onEdit]
 * @property {(phase: "start" | "end") => void} [onGesture]
 * @property {(frame: number) => void} [onFrame]
 * @property {(live: boolean) => void} [onLive]
 * @property {() => void} [onRetry]
 */
/**
 * @typedef {object} ShownPicture
 * @property {CanvasImageSource | null} image
 * @property {number} width of the original; 0 = not known
 * @property {number} height
 * @property {number} frame
 * @property {number} frames
 */
/**
 * @typedef {object} EditorState
 * @property {History} history
 * @property {WeakMap<Drawing, { text: string, why: string }>} unreadable
 * @property {Map<string, Matte>} mattes
 * @property {ShownPicture} picture
 * @property {View | null} view null: fitted
 * @property {ToolName} tool
 * @property {number} active
 * @property {number} frame
 * @property {boolean} frameAlone
 * @property {boolean} listOpen
 * @property {Backdrop} backdrop
 * @property {0 | 1} pointLabel
 * @property {Surface["brushKind"]} brushKind
 * @property {number | null} brushWidth
 * @property {{ state: StatusState, text: string, engine: string }} status
 */

/** @type {Settings} */
const DEFAULTS = Object.freeze({
  overlayColor: TARGET_COLORS[0] ?? "#e69f00",
  overlayOpacity: 0.5,
  pointSize: 14,
  brushSize: 24,
  live: true,
  backdrop: "overlay",
});

const FIT_MARGIN_PX = 6;
const WIDE_PX = 560;
const NOTICE_MS = 6000;
/** Of every target on one frame, at least. */
const MOST_MATTES = LIMITS.targets;
const MOST_CANVAS_PX = 4096;
/** How long the graph must have stood still, in milliseconds, before the canvases follow its zoom. */
const SETTLE_MS = 160;
/** What an arrow key moves the crosshair by, in CSS pixels; more than the slop of a drag. */
const ARROW_PX = 4;
/** The id of the crosshair among the pointers; those of the browser are not negative. */
const KEYS_ID = -1;

/** @type {Readonly<Record<string, string>>} */
const KEY_COMMANDS = Object.freeze({
  v: "tool:points",
  b: "tool:box",
  p: "tool:brush",
  e: "tool:eraser",
  h: "tool:pan",
  n: "newTarget",
  m: "cycleBackdrop",
  l: "toggleLive",
  f: "fit",
  0: "fit",
});

/** @type {Readonly<Record<string, string>>} */
const KEYS_OF_CODES = Object.freeze({ BracketLeft: "[", BracketRight: "]", Equal: "+", Minus: "-" });

/**
 * The key by its letter; on a keyboard without Latin letters by its place.
 *
 * @param {KeyboardEvent} event
 */
function keyOf(event) {
  if (event.key.length > 1 || /^[\x20-\x7e]$/.test(event.key)) {
    return event.key.length > 1 ? event.key : event.key.toLowerCase();
  }
  const letter = /^(?:Key|Digit)([A-Z0-9])$/.exec(event.code)?.[1];
  return letter?.toLowerCase() ?? KEYS_OF_CODES[event.code] ?? event.key;
}

/**
 * @param {string} [className]
 * @returns {HTMLCanvasElement}
 */
function layerCanvas(className) {
  const canvas = element("canvas", className ? { class: className } : {});
  canvas.setAttribute("aria-hidden", "true");
  return canvas;
}

export class PromptEditor {
  /** @type {Settings} */
  #settings = DEFAULTS;
  /** @type {Callbacks} */
  #callbacks;
  #history = new History(emptyDrawing());
  /** @type {Drawing | null} what the gesture under way makes of the drawing */
  #draft = null;
  /** @type {Drawing} the drawing the callbacks were told last */
  #told = this.#history.current;
  /** @type {{ drawing: Drawing, text: string }} */
  #written = { drawing: this.#history.current, text: "" };
  /** @type {{ from: Drawing, width: number, height: number, drawing: Drawing } | null} */
  #scaled = null;
  /** @type {WeakMap<Drawing, { text: string, why: string }>} values that cannot be read: given back as they came */
  #unreadable = new WeakMap();
  #tools = new Tools();
  #gestureTold = false;
  /** @type {Set<number>} the targets whose prompt the gesture under way has changed */
  #changing = new Set();

  /** @type {ShownPicture} */
  #shown = { image: null, width: 0, height: 0, frame: 0, frames: 1 };
  /** @type {Picture | null} */
  #picture = null;
  /** @type {Map<string, Matte>} by identity of the target and frame, the oldest first */
  #mattes = new Map();
  /** @type {View} */
  #view = { scale: 1, x: 0, y: 0 };
  #fitted = true;
  /** @type {Size} */
  #room = { width: 0, height: 0 };
  #density = 1;

  /** @type {ToolName} */
  #tool = "points";
  #active = 0;
  #frame = 0;
  #frameAlone = false;
  #listOpen = false;
  /** @type {0 | 1} */
  #pointLabel = 1;
  /** @type {Surface["brushKind"]} */
  #brushKind = "foreground";
  /** @type {number | null} null: as the settings say */
  #brushWidth = null;
  /** @type {Selection} */
  #selection = null;
  /** @type {Hit | null} */
  #hovered = null;
  /** @type {{ x: number, y: number } | null} on the canvas */
  #pointerAt = null;
  /** Whether the arrows moved that place, which then has to be painted: no cursor stands there. */
  #byKeys = false;
  #panning = false;
  /** @type {{ state: StatusState, text: string, engine: string }} */
  #status = { state: "idle", text: "", engine: "" };
  /** @type {{ state: StatusState, text: string } | null} */
  #notice = null;
  #noticeTimer = 0;
  #settleTimer = 0;

  #scenePainter = new ScenePainter();
  #promptPainter = new PromptPainter();
  #frameRequest = 0;
  #sceneChanged = true;
  #panelChanged = true;
  #gestureMoved = false;
  #disposal = new AbortController();

  /** @param {{ settings?: Partial<Settings> } & Callbacks} [options] */
  constructor({ settings = {}, ...callbacks } = {}) {
    putStyle(document);
    this.#callbacks = callbacks;
    this.panel = new Panel({
      command: (name) => this.command(name),
      chooseBackdrop: (backdrop) => this.setSettings({ backdrop }),
      choosePointLabel: (label) => this.#change(() => (this.#pointLabel = label)),
      chooseBrushKind: (kind) => this.#change(() => (this.#brushKind = kind)),
      chooseBrushWidth: (width) => this.#setBrushWidth(width),
      chooseTarget: (index) => this.#chooseTarget(index),
      renameTarget: (index, name) => this.#editTarget(index, (drawing) => renameTarget(drawing, index, name)),
      recolourTarget: (index, color) => this.#editTarget(index, (drawing) => recolour(drawing, index, color)),
      hideTarget: (index, hidden) => this.#editTarget(index, (drawing) => hideTarget(drawing, index, hidden)),
      deleteTarget: (index) => this.#deleteTarget(index),
      openList: (open) => this.#change(() => (this.#listOpen = open)),
      chooseFrame: (frame) => this.#chooseFrame(frame),
      chooseScope: (alone) => this.#chooseScope(alone),
      stretch: () => this.#stretch(),
      clearAll: () => this.#clearAll(),
      retry: () => this.#callbacks.onRetry?.(),
      leaveField: () => this.element.focus({ preventScroll: true }),
    });
    this.sceneCanvas = layerCanvas();
    this.promptCanvas = layerCanvas();
    this.stage = element(
      "div",
      { class: "mam-stage" },
      this.sceneCanvas,
      this.promptCanvas,
      ...this.panel.notes.elements,
    );
    this.element = element(
      "div",
      { class: "mam-editor", role: "application" },
      this.panel.toolbar.element,
      this.panel.options.element,
      element("div", { class: "mam-body" }, this.stage, this.panel.targets.element),
      this.panel.frames.element,
      this.panel.status.element,
    );
    this.element.setAttribute("aria-label", t("editor"));
    this.element.tabIndex = 0;
    this.#listen();
    this.setSettings(settings);
  }

  // ------------------------------------------------------------------------------------------ value, picture, mattes

  /** @returns {Drawing} with the gesture under way */
  get drawing() {
    return this.#draft ?? this.#history.current;
  }

  /** @returns {string} the value, as the node keeps it */
  get text() {
    const { drawing } = this;
    if (this.#written.drawing !== drawing) {
      this.#written = { drawing, text: this.#unreadable.get(drawing)?.text ?? serialise(drawing) };
    }
    return this.#written.text;
  }

  /**
   * Takes a value from outside: a loaded workflow, the graph's undo, a paste. Calls no callback.
   *
   * @param {unknown} text anything that is no drawing is kept as it is, and said in the status line
   */
  setText(text) {
    const value = typeof text === "string" ? text : text === null || text === undefined ? "" : String(text);
    if (this.#draft === null && value === this.text) {
      return;
    }
    this.#abandonGesture();
    try {
      const adopted = this.#history.adopt(value);
      if (adopted === "same" && this.#unreadable.has(this.#history.current)) {
        this.#history.push(emptyDrawing());
      }
    } catch (error) {
      if (!(error instanceof DrawingError)) {
        throw error;
      }
      const nothing = emptyDrawing();
      this.#unreadable.set(nothing, { text: value, why: t(error.key, error.values) });
      this.#history.push(nothing);
    }
    this.#told = this.#history.current;
    this.#selection = null;
    this.#keepActiveInRange();
    this.#listOpen ||= this.drawing.targets.length > 1;
    this.redraw();
  }

  /** @param {ShownPicture} picture width and height of the original, 0 = not known: then nothing can be drawn yet */
  setPicture({ image, width, height, frame, frames }) {
    const before = this.#pictureSize;
    const usable = image !== null && sizeOf(image).width > 0 ? image : null;
    // The frame that is shown may be handed in once more while the user waits for the one just chosen.
    const awaited = frame === this.#shown.frame && this.#frame !== frame ? this.#frame : frame;
    if (awaited !== this.#frame) {
      this.#abandonGesture();
    }
    this.#shown = { image: usable, width, height, frame, frames: Math.max(1, Math.round(frames) || 1) };
    this.#frame = Math.min(Math.max(0, awaited), this.#shown.frames - 1);
    const size = this.#pictureSize;
    this.#picture = usable === null ? null : new Picture(usable, size);
    if (before.width !== size.width || before.height !== size.height) {
      this.#abandonGesture();
      this.#mattes.clear();
      this.#selection = null;
      this.#fitted = true;
    }
    this.redraw();
  }

  /**
   * @param {number} index of the target in the drawing
   * @param {{ image: CanvasImageSource, region: readonly [number, number, number, number],
   *     of: readonly [number, number], stage: string, score: number } | null} matte
   *     alpha in the grey of `image`, which covers `region` (x, y, width, height) of a matte of the size `of`;
   *     null: there is none
   * @param {number} frame that it is of; its picture may still be on its way
   */
  setMatte(index, matte, frame) {
    const target = this.drawing.targets[index];
    if (target === undefined) {
      return;
    }
    const key = `${identityOf(target)}:${frame}`;
    this.#mattes.delete(key);
    if (matte !== null) {
      const { image, ...about } = matte;
      this.#mattes.set(key, matteFromGrey(image, about));
      const oldest = this.#mattes.keys().next().value;
      if (this.#mattes.size > MOST_MATTES && oldest !== undefined) {
        this.#mattes.delete(oldest);
      }
    }
    this.#requestFrame({ scene: true });
  }

  /** @param {{ state: StatusState, text?: string, engine?: string | null }} status */
  setStatus({ state, text = "", engine }) {
    this.#status = { state, text, engine: engine ?? "" };
    this.#requestFrame({ panel: true });
  }

  /** @param {Partial<Settings>} settings */
  setSettings(settings) {
    const given = Object.entries(settings).filter(([, value]) => value !== undefined);
    this.#settings = { ...this.#settings, ...Object.fromEntries(given) };
    this.redraw();
  }

  /** What survives when the graph is loaded anew: history, picture, mattes, view, tool. @returns {EditorState} */
  get state() {
    return {
      history: this.#history,
      unreadable: this.#unreadable,
      mattes: this.#mattes,
      picture: this.#shown,
      view: this.#fitted ? null : this.#view,
      tool: this.#tool,
      active: this.#active,
      frame: this.#frame,
      frameAlone: this.#frameAlone,
      listOpen: this.#listOpen,
      backdrop: this.#settings.backdrop,
      pointLabel: this.#pointLabel,
      brushKind: this.#brushKind,
      brushWidth: this.#brushWidth,
      status: this.#status,
    };
  }

  /** @param {EditorState} state of an editor that is no longer used */
  adoptState(state) {
    this.#abandonGesture();
    this.#history = state.history;
    this.#unreadable = state.unreadable;
    this.#told = this.#history.current;
    this.setPicture(state.picture);
    this.#mattes = state.mattes;
    this.#tool = state.tool;
    this.#active = state.active;
    this.#frame = state.frame;
    this.#frameAlone = state.frameAlone;
    this.#listOpen = state.listOpen;
    this.#settings = { ...this.#settings, backdrop: state.backdrop };
    this.#pointLabel = state.pointLabel;
    this.#brushKind = state.brushKind;
    this.#brushWidth = state.brushWidth;
    this.#status = state.status;
    this.#selection = null;
    if (state.view !== null) {
      this.#view = state.view;
      this.#fitted = false;
    }
    this.redraw();
  }

  redraw() {
    this.#requestFrame({ scene: true, panel: true });
  }

  /** What its decoded pictures and canvases take in memory. */
  get pixelBytes() {
    // Each matte has a copy in its target's colour.
    const mattes = [...this.#mattes.values()].flatMap(({ alpha }) => [alpha, alpha]);
    return decodedBytes([...(this.#picture?.images ?? []), ...mattes, this.sceneCanvas, this.promptCanvas]);
  }

  /** Gives up the picture, the mattes and what is painted, until a picture is set again. The view stays as it is. */
  dropPixels() {
    this.#abandonGesture();
    this.#shown = { ...this.#shown, image: null };
    this.#picture = null;
    this.#mattes.clear();
    this.#scenePainter = new ScenePainter();
    for (const canvas of [this.sceneCanvas, this.promptCanvas]) {
      canvas.width = canvas.height = 0;
    }
  }

  dispose() {
    this.#disposal.abort();
    cancelAnimationFrame(this.#frameRequest);
    clearTimeout(this.#noticeTimer);
    clearTimeout(this.#settleTimer);
    this.element.remove();
  }

  // -------------------------------------------------------------------------------------------------- what is shown

  /** @returns {Size} of the original; of the picture itself while that is not known */
  get #pictureSize() {
    const { image, width, height } = this.#shown;
    if (width > 0 && height > 0) {
      return { width, height };
    }
    return image === null ? { width: 0, height: 0 } : sizeOf(image);
  }

  get #sizeKnown() {
    return this.#shown.width > 0 && this.#shown.height > 0;
  }

  /**
   * When the drawing belongs to a picture of another shape: its size and that of the picture shown.
   *
   * @returns {{ width: number, height: number, newWidth: number, newHeight: number } | null}
   */
  get otherPicture() {
    const { drawing } = this;
    const { width: newWidth, height: newHeight } = this.#shown;
    const isOther = !isBlank(drawing) && this.#sizeKnown && !fits(drawing, newWidth, newHeight);
    return isOther ? { width: drawing.width, height: drawing.height, newWidth, newHeight } : null;
  }

  /** @returns {Drawing} in pixels of the picture shown */
  get #drawingShown() {
    const { drawing } = this;
    if (!this.#sizeKnown) {
      return drawing;
    }
    const { width, height } = this.#shown;
    if (this.#scaled?.from !== drawing || this.#scaled.width !== width || this.#scaled.height !== height) {
      this.#scaled = { from: drawing, width, height, drawing: scaleTo(drawing, width, height) };
    }
    return this.#scaled.drawing;
  }

  /** @returns {Scope} */
  get #scope() {
    const target = this.drawing.targets[this.#active];
    const alone = (this.#frameAlone && this.#shown.frames > 1) || hasOwnPrompt(target, this.#frame);
    return alone ? String(this.#frame) : ALL_FRAMES;
  }

  get #brushWidthNow() {
    const { width, height } = this.#pictureSize;
    const usual = this.#settings.brushSize * Math.max(1, Math.max(width, height) / 1024);
    return Math.min(this.#brushMost, Math.max(LIMITS.strokeWidthLeast, this.#brushWidth ?? usual));
  }

  get #brushMost() {
    const { width, height } = this.#pictureSize;
    return Math.min(LIMITS.strokeWidthMost, Math.max(100, Math.max(width, height) / 2));
  }

  /** @returns {Surface} */
  #surface() {
    return {
      drawing: this.#drawingShown,
      target: this.#drawingShown.targets.length === 0 ? -1 : this.#active,
      scope: this.#scope,
      view: this.#view,
      picture: this.#pictureSize,
      canvas: this.#room,
      tool: this.#tool,
      pointLabel: this.#pointLabel,
      brushKind: this.#brushKind,
      brushWidth: this.#brushWidthNow,
      pointSize: this.#settings.pointSize,
      panning: this.#panning,
      mayPan: this.#hasFocus && !this.#fitted,
    };
  }

  get #hasFocus() {
    return this.element.contains(document.activeElement);
  }

  // ------------------------------------------------------------------------------------------------------- painting

  /** @param {{ scene?: boolean, panel?: boolean }} [changed] what has to be shown anew besides the upper canvas */
  #requestFrame({ scene = false, panel = false } = {}) {
    this.#sceneChanged ||= scene;
    this.#panelChanged ||= panel;
    if (this.#frameRequest === 0 && !this.#disposal.signal.aborted) {
      this.#frameRequest = requestAnimationFrame(() => {
        this.#frameRequest = 0;
        this.#paint();
      });
    }
  }

  #paint() {
    if (this.#gestureMoved) {
      this.#gestureMoved = false;
      this.#takeDraft(this.#tools.draft());
    }
    this.#measure();
    this.#paintScene();
    this.#paintPrompts();
    this.#showPanel();
    this.#showPointer();
  }

  /** Follows the size of the element and the zoom of the graph, which is a CSS transform. */
  #measure() {
    const { clientWidth: width, clientHeight: height } = this.stage;
    if (width === 0 || height === 0) {
      return;
    }
    const zoomed = this.stage.getBoundingClientRect().width / width || 1;
    const most = MOST_CANVAS_PX / Math.max(width, height);
    const density = Math.min(most, Math.max(0.5, window.devicePixelRatio * zoomed));
    const resized = width !== this.#room.width || height !== this.#room.height;
    const deviceWidth = Math.round(width * density);
    const deviceHeight = Math.round(height * density);
    if (this.sceneCanvas.width !== deviceWidth || this.sceneCanvas.height !== deviceHeight) {
      for (const canvas of [this.sceneCanvas, this.promptCanvas]) {
        canvas.width = deviceWidth;
        canvas.height = deviceHeight;
      }
      this.#density = deviceWidth / width;
      this.#sceneChanged = true;
    }
    const room = { width, height };
    if (this.#fitted) {
      const view = fit(this.#pictureSize, room, FIT_MARGIN_PX);
      const moved = view.scale !== this.#view.scale || view.x !== this.#view.x || view.y !== this.#view.y;
      this.#sceneChanged ||= moved;
      this.#panelChanged ||= moved;
      this.#takeView(view);
    } else if (resized) {
      this.#takeView(keepInSight(recentre(this.#view, this.#room, room), this.#pictureSize, room));
      this.#sceneChanged = true;
    }
    this.#room = room;
  }

  #paintScene() {
    if (!this.#sceneChanged) {
      return;
    }
    this.#sceneChanged = false;
    const drawing = this.#drawingShown;
    const mattes = drawing.targets.flatMap((target, index) => {
      const matte = this.#mattes.get(`${identityOf(target)}:${this.#shown.frame}`);
      const shown = matte !== undefined && !target.hidden && !isEmpty(promptOf(target, this.#shown.frame));
      return shown ? [{ matte, color: shownColor(target, index, this.#settings.overlayColor) }] : [];
    });
    this.#scenePainter.paint(
      { canvas: this.sceneCanvas, density: this.#density },
      {
        picture: this.#picture,
        view: this.#view,
        mattes: this.otherPicture ? [] : mattes,
        backdrop: this.#settings.backdrop,
        opacity: this.#settings.overlayOpacity,
        stale: this.#frame !== this.#shown.frame,
      },
    );
  }

  #paintPrompts() {
    const drawing = this.#drawingShown;
    const drawable = this.#picture !== null && this.#sizeKnown && !this.otherPicture;
    const prompts = drawing.targets.flatMap((target, index) => {
      const prompt = promptOf(target, index === this.#active ? this.#scope : this.#frame);
      const color = shownColor(target, index, this.#settings.overlayColor);
      return target.hidden || isEmpty(prompt) ? [] : [{ prompt, color, active: index === this.#active }];
    });
    const brushing = (this.#tool === "brush" || this.#tool === "eraser") && !this.#panning && this.#pointerAt !== null;
    this.#promptPainter.paint(
      { canvas: this.promptCanvas, density: this.#density },
      {
        view: this.#view,
        prompts: drawable ? prompts : [],
        selection: this.#selection,
        hovered: this.#hovered,
        pointSize: this.#settings.pointSize,
        handles: this.#tool === "box",
        brush:
          brushing && drawable
            ? { at: this.#pointerAt ?? { x: 0, y: 0 }, width: this.#brushWidthNow, eraser: this.#tool === "eraser" }
            : null,
        crosshair: this.#byKeys && drawable ? this.#pointerAt : null,
      },
    );
  }

  #showPanel() {
    if (!this.#panelChanged) {
      return;
    }
    this.#panelChanged = false;
    const focused = this.#hasFocus ? document.activeElement : null;
    const { drawing } = this;
    const active = drawing.targets[this.#active];
    const alone = this.#scope !== ALL_FRAMES;
    const error = this.#status.state === "error";
    const unreadable = this.#unreadable.get(drawing)?.why;
    const notice = this.#notice ?? (unreadable === undefined ? null : { state: "error", text: unreadable });
    const status =
      notice === null
        ? { ...this.#status, retry: error, notice: false }
        : { ...notice, engine: "", retry: false, notice: true };
    this.element.classList.toggle("mam-wide", this.#listOpen && this.element.clientWidth >= WIDE_PX);
    this.panel.show({
      tool: this.#tool,
      canUndo: this.#history.canUndo,
      canRedo: this.#history.canRedo,
      canClear: active !== undefined && !isEmpty(promptOf(active, this.#scope)),
      backdrop: this.#settings.backdrop,
      live: this.#settings.live,
      pointLabel: this.#pointLabel,
      brushKind: this.#brushKind,
      brushWidth: this.#brushWidthNow,
      brushMost: this.#brushMost,
      targets: drawing.targets.map((target, index) => ({
        name: target.name,
        color: shownColor(target, index, this.#settings.overlayColor),
        hidden: target.hidden,
      })),
      active: this.#active,
      listOpen: this.#listOpen,
      frame: this.#frame,
      frames: this.#shown.frames,
      frameAlone: alone,
      hasPicture: this.#picture !== null,
      sizeKnown: this.#sizeKnown,
      untouched: isBlank(drawing),
      otherPicture: this.otherPicture,
      status,
      zoomPercent: Math.round(this.#view.scale * 100),
    });
    // A button that has just become useless loses the focus, and the next shortcut would go to the graph.
    if (focused?.matches(":disabled, [hidden] *, [hidden]") || (focused !== null && !this.element.contains(focused))) {
      this.element.focus({ preventScroll: true });
    }
  }

  #showPointer() {
    if (this.#pointerAt === null || this.#picture === null || !this.#sizeKnown) {
      this.panel.showPosition(null);
      this.stage.style.cursor = "default";
      return;
    }
    const at = toPicture(this.#view, this.#pointerAt);
    const { width, height } = this.#pictureSize;
    this.panel.showPosition(at.x >= 0 && at.y >= 0 && at.x < width && at.y < height ? at : null);
    this.stage.style.cursor = this.#tools.hover(this.#surface(), this.#pointerAt).cursor;
  }

  /** @param {() => void} change of what is shown, not of the drawing */
  #change(change) {
    change();
    this.redraw();
  }

  /**
   * @param {string} text a sentence for the status line, for a while
   * @param {StatusState} [state]
   */
  #say(text, state = "waiting") {
    this.#notice = { state, text };
    clearTimeout(this.#noticeTimer);
    this.#noticeTimer = window.setTimeout(() => {
      this.#notice = null;
      this.#requestFrame({ panel: true });
    }, NOTICE_MS);
    this.#requestFrame({ panel: true });
  }

  /** @param {DrawingError} error */
  #refuse(error) {
    this.#say(t(error.key, error.values), "error");
  }

  // ---------------------------------------------------------------------------------------------------------- edits

  /**
   * Makes one edit that is done at once.
   *
   * @param {(drawing: Drawing) => Drawing} edit of the drawing in pixels of the picture shown
   * @returns {boolean} whether it was made
   */
  #edit(edit) {
    this.#abandonGesture();
    // On a picture of another shape the drawing is not scaled before the user says so.
    const before = this.otherPicture ? this.drawing : this.#drawingShown;
    try {
      const after = edit(before);
      if (after === before) {
        return false;
      }
      serialise(after);
      this.#tellGesture("start");
      this.#history.push(after);
      this.#tellEdit(false);
      this.#tellGesture("end");
      return true;
    } catch (error) {
      if (!(error instanceof DrawingError)) {
        throw error;
      }
      this.#refuse(error);
      return false;
    } finally {
      this.#keepActiveInRange();
      this.redraw();
    }
  }

  /**
   * @param {number} index of a target that may be there only until the gesture under way is given up
   * @param {(drawing: Drawing) => Drawing} edit
   * @returns {boolean} whether it was made
   */
  #editTarget(index, edit) {
    this.#abandonGesture();
    return this.drawing.targets[index] !== undefined && this.#edit(edit);
  }

  /** @param {boolean} gesture whether it goes on: the last of a gesture names every target it changed on its way */
  #tellEdit(gesture) {
    const { drawing } = this;
    for (const index of changedTargets(this.#told, drawing)) {
      this.#changing.add(index);
    }
    this.#told = drawing;
    const targets = [...this.#changing].filter((index) => drawing.targets[index] !== undefined);
    if (!gesture) {
      this.#changing.clear();
    }
    this.#callbacks.onEdit?.({ text: this.text, targets, scope: this.#scope, gesture });
  }

  /** @param {"start" | "end"} phase */
  #tellGesture(phase) {
    const started = phase === "start";
    if (this.#gestureTold !== started) {
      this.#gestureTold = started;
      this.#callbacks.onGesture?.(phase);
    }
  }

  /** @param {import("./tools.mjs").Step} step of the gesture under way */
  #takeDraft(step) {
    if (step.view !== undefined) {
      this.#setView(step.view);
    }
    if (step.selection !== undefined) {
      this.#selection = step.selection;
    }
    if (step.refused !== undefined) {
      this.#refuse(step.refused);
    }
    if (step.drawing !== undefined && step.drawing !== this.#draft) {
      const before = this.text;
      try {
        serialise(step.drawing);
      } catch (error) {
        if (!(error instanceof DrawingError)) {
          throw error;
        }
        this.#refuse(error);
        return;
      }
      this.#draft = step.drawing;
      this.#keepActiveInRange();
      if (this.text !== before) {
        this.#tellEdit(true);
      }
    }
    this.#requestFrame({ panel: true });
  }

  /** @param {import("./tools.mjs").Step} step that a gesture leaves behind */
  #settle(step) {
    const drafted = this.#draft !== null;
    this.#gestureMoved = false;
    this.#takeDraft(step);
    const last = step.drawing === undefined || step.refused !== undefined ? null : this.#draft;
    this.#draft = null;
    if (last !== null && serialise(last) !== serialise(this.#history.current)) {
      this.#history.push(last);
    }
    if (drafted || last !== null) {
      this.#tellEdit(false);
    }
    this.#tellGesture("end");
    this.#keepActiveInRange();
    this.redraw();
  }

  /** Ends a gesture that must not go on, and leaves the drawing as it was before it. */
  #abandonGesture() {
    if (!this.#tools.busy && this.#draft === null) {
      return;
    }
    if (this.#drawsByKeys) {
      this.#notice = null;
    }
    this.#tools.cancel();
    this.#settle({});
  }

  #keepActiveInRange() {
    this.#active = Math.max(0, Math.min(this.drawing.targets.length - 1, this.#active));
    const prompt = promptOf(this.drawing.targets[this.#active], this.#scope);
    const point = this.#selection?.kind === "point" ? prompt.points[this.#selection.index] : null;
    if (point === undefined || (this.#selection?.kind === "box" && prompt.box === null)) {
      this.#selection = null;
    }
  }

  /** @returns {boolean} whether something may be drawn now; otherwise says why not */
  #mayDraw() {
    if (this.#picture === null) {
      this.#say(t("noPicture"));
      return false;
    }
    if (!this.#sizeKnown) {
      this.#say(t("sizeUnknown"));
      return false;
    }
    if (this.otherPicture) {
      return false;
    }
    if (this.drawing.targets[this.#active]?.hidden) {
      this.#say(t("targetHidden"));
      return false;
    }
    return true;
  }

  /** @returns {boolean} whether there is something to erase; otherwise says so */
  #mayErase() {
    const { strokes } = promptOf(this.drawing.targets[this.#active], this.#scope);
    if (strokes.length === 0) {
      this.#say(t("nothingToErase"));
    }
    return strokes.length > 0;
  }

  /** @param {string} name */
  command(name) {
    const tool = /^tool:(points|box|brush|eraser|pan)$/.exec(name)?.[1];
    if (tool !== undefined) {
      this.#abandonKeys();
      this.#change(() => {
        this.#tool = /** @type {ToolName} */ (tool);
        this.#hovered = null;
      });
      return;
    }
    switch (name) {
      case "undo":
        return this.#travel(() => this.#history.undo());
      case "redo":
        return this.#travel(() => this.#history.redo());
      case "clear":
        return this.#clear();
      case "newTarget":
        return this.#newTarget();
      case "deleteTarget":
        return this.#deleteTarget(this.#active);
      case "cycleBackdrop": {
        const next = (BACKDROPS.indexOf(this.#settings.backdrop) + 1) % BACKDROPS.length;
        return this.setSettings({ backdrop: BACKDROPS[next] ?? "overlay" });
      }
      case "fit":
        return this.#change(() => (this.#fitted = true));
      case "toggleLive":
        this.setSettings({ live: !this.#settings.live });
        return this.#callbacks.onLive?.(this.#settings.live);
      default:
        throw new RangeError(`The editor knows no command "${name}".`);
    }
  }

  /** @param {() => Drawing} move through the history */
  #travel(move) {
    this.#abandonGesture();
    if (this.#history.current === move()) {
      return;
    }
    this.#notice = null;
    this.#tellGesture("start");
    const changed = changedTargets(this.#told, this.drawing);
    if (changed.length === 1 && changed[0] !== undefined) {
      this.#active = changed[0];
    }
    this.#selection = null;
    this.#keepActiveInRange();
    this.#tellEdit(false);
    this.#tellGesture("end");
    this.redraw();
  }

  #clear() {
    this.#abandonGesture();
    if (this.otherPicture) {
      this.#clearAll();
      return;
    }
    const active = this.drawing.targets[this.#active];
    if (active !== undefined && !isEmpty(promptOf(active, this.#scope))) {
      this.#edit((drawing) => clearPrompt(drawing, this.#active, this.#scope));
    }
  }

  #clearAll() {
    const { width, height } = this.#shown;
    this.#edit(() => emptyDrawing(width, height));
  }

  #stretch() {
    // A drawing of another picture is not scaled before an edit, as all others are.
    const { width, height } = this.#shown;
    this.#edit((drawing) => scaleTo(drawing, width, height));
  }

  #newTarget() {
    if (this.otherPicture) {
      return;
    }
    const added = this.#edit((drawing) => addTarget(drawing));
    if (added) {
      this.#active = this.drawing.targets.length - 1;
      this.#selection = null;
      this.#listOpen = true;
      this.redraw();
    }
  }

  /** @param {number} index */
  #deleteTarget(index) {
    const active = this.#active > index ? this.#active - 1 : this.#active;
    if (this.#editTarget(index, (drawing) => deleteTarget(drawing, index))) {
      this.#active = active;
    }
    this.#selection = null;
    this.#keepActiveInRange();
    this.redraw();
  }

  /** @param {number} index */
  #chooseTarget(index) {
    if (index === this.#active || this.drawing.targets[index] === undefined) {
      return;
    }
    this.#abandonKeys();
    this.#change(() => {
      this.#active = index;
      this.#selection = null;
      this.#hovered = null;
    });
  }

  /** @param {number} frame */
  #chooseFrame(frame) {
    const chosen = Math.min(this.#shown.frames - 1, Math.max(0, Number.isFinite(frame) ? frame : 0));
    this.#abandonGesture();
    this.redraw();
    if (chosen !== this.#frame) {
      this.#frame = chosen;
      this.#selection = null;
      this.#callbacks.onFrame?.(chosen);
    }
  }

  /** @param {boolean} alone whether what is drawn counts for this frame alone */
  #chooseScope(alone) {
    this.#abandonGesture();
    this.#change(() => (this.#frameAlone = alone));
    if (!alone && hasOwnPrompt(this.drawing.targets[this.#active], this.#frame)) {
      this.#edit((drawing) => clearFrame(drawing, this.#active, this.#frame));
      this.#say(t("frameGivenBack"));
    }
  }

  /** @param {number} width pixels of the picture */
  #setBrushWidth(width) {
    const px = Math.min(this.#brushMost, Math.max(LIMITS.strokeWidthLeast, width));
    this.#change(() => (this.#brushWidth = px < 10 ? Math.round(px * 2) / 2 : Math.round(px)));
  }

  #deleteSelected() {
    if (this.#tools.busy) {
      // What is selected meanwhile is only being drawn.
      this.#abandonGesture();
      return;
    }
    // What lay under the pointer when it moved last may be gone, and its number another's.
    const hit = this.#selection ?? (this.#pointerAt && this.#tools.hover(this.#surface(), this.#pointerAt).hit);
    if (hit === null) {
      this.#say(t("nothingSelected"));
      return;
    }
    this.#edit((drawing) =>
      hit.kind === "point"
        ? deletePoint(drawing, this.#active, this.#scope, hit.index)
        : deleteBox(drawing, this.#active, this.#scope),
    );
    this.#selection = null;
    this.#hovered = null;
  }

  /**
   * @param {number} dx pixels of the picture
   * @param {number} dy
   */
  #nudge(dx, dy) {
    const selection = this.#selection;
    const target = this.#drawingShown.targets[this.#active];
    if (selection === null || target === undefined) {
      return;
    }
    const prompt = promptOf(target, this.#scope);
    const size = this.#pictureSize;
    this.#edit((drawing) => {
      const point = selection.kind === "point" ? prompt.points[selection.index] : undefined;
      if (selection.kind === "point" && point !== undefined) {
        const to = ontoPicture({ x: point.x + dx, y: point.y + dy }, size);
        return movePoint(drawing, this.#active, this.#scope, selection.index, to.x, to.y);
      }
      const { box } = prompt;
      if (box === null) {
        return drawing;
      }
      const x = Math.max(0, Math.min(size.width - box.width, box.x + dx));
      const y = Math.max(0, Math.min(size.height - box.height, box.y + dy));
      return setBox(drawing, this.#active, this.#scope, { ...box, x, y });
    });
    this.#selection = selection;
  }

  // ----------------------------------------------------------------------------------------------------------- view

  /** @param {View} view */
  #setView(view) {
    this.#takeView(view);
    this.#fitted = false;
    this.redraw();
  }

  /** @param {View} view under which the crosshair of the keys stays where it is on the picture */
  #takeView(view) {
    if (this.#byKeys && this.#pointerAt !== null) {
      this.#pointerAt = toCanvas(view, toPicture(this.#view, this.#pointerAt));
    }
    this.#view = view;
  }

  /**
   * @param {number} factor
   * @param {{ x: number, y: number }} [about]
   */
  #zoom(factor, about = { x: this.#room.width / 2, y: this.#room.height / 2 }) {
    if (this.#picture === null) {
      return;
    }
    const zoomed = zoom(this.#view, factor, about, this.#pictureSize, this.#room);
    this.#setView(keepInSight(zoomed, this.#pictureSize, this.#room));
  }

  // --------------------------------------------------------------------------------------------------------- events

  #listen() {
    const { signal } = this.#disposal;
    const { stage, element: root } = this;
    const on = { signal };
    stage.addEventListener("pointerdown", (event) => this.#onPointerDown(event), on);
    stage.addEventListener("pointermove", (event) => this.#onPointerMove(event), on);
    stage.addEventListener("pointerup", (event) => this.#onPointerUp(event), on);
    stage.addEventListener("pointercancel", (event) => this.#onPointerCancel(event), on);
    stage.addEventListener("pointerleave", () => this.#onPointerLeave(), on);
    stage.addEventListener("wheel", (event) => this.#onWheel(event), { signal, passive: false });
    root.addEventListener("contextmenu", (event) => this.#onContextMenu(event), on);
    root.addEventListener("dblclick", (event) => event.stopPropagation(), on);
    root.addEventListener("pointerdown", (event) => this.#keepFromGraph(event), on);
    root.addEventListener("mousedown", (event) => this.#keepFromGraph(event), on);
    root.addEventListener("keydown", (event) => this.#onKeyDown(event), on);
    root.addEventListener("keyup", (event) => this.#onKeyUp(event), on);
    root.addEventListener("focusin", () => root.classList.toggle("mam-focused", true), on);
    root.addEventListener("focusout", () => this.#onFocusOut(), on);
    // Zooming the graph scales the element without resizing it, and no event of the element tells.
    window.addEventListener("wheel", () => this.#followGraph(), { signal, passive: true, capture: true });
    // ComfyUI zooms the graph by two fingers wherever they are, and hears of them before the element does.
    window.addEventListener("touchmove", (event) => this.#keepPinch(event), { signal, passive: true, capture: true });
    // A space bar that is let go in another window tells nobody.
    window.addEventListener("blur", () => (this.#panning = false), on);
    const resizes = new ResizeObserver(() => this.redraw());
    resizes.observe(root);
    resizes.observe(stage);
    signal.addEventListener("abort", () => resizes.disconnect());
  }

  #followGraph() {
    clearTimeout(this.#settleTimer);
    this.#settleTimer = window.setTimeout(() => this.#requestFrame(), SETTLE_MS);
  }

  /** @param {TouchEvent} event */
  #keepPinch(event) {
    const isOurs = [...event.touches].every(({ target }) => target instanceof Node && this.stage.contains(target));
    if (isOurs && this.#picture !== null) {
      event.stopPropagation();
    }
  }

  /** @param {MouseEvent} event the middle button moves the graph, unless the picture took it */
  #keepFromGraph(event) {
    if (event.button !== 1) {
      event.stopPropagation();
    }
  }

  /** @param {MouseEvent} event */
  #onContextMenu(event) {
    if (event.target instanceof HTMLInputElement && event.target.type !== "range") {
      event.stopPropagation();
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  #onFocusOut() {
    // The next element has the focus only after this event.
    queueMicrotask(() => {
      if (!this.#hasFocus) {
        this.element.classList.remove("mam-focused");
        this.#panning = false;
        this.#abandonKeys();
        this.#requestFrame();
      }
    });
  }

  /** @param {PointerEvent} event whether it is on the picture, not on what lies over it */
  #onStage(event) {
    return event.target === this.promptCanvas || event.target === this.sceneCanvas || event.target === this.stage;
  }

  /**
   * @param {PointerEvent} event
   * @returns {Pointer}
   */
  #pointer(event) {
    return {
      ...this.#position(event),
      id: event.pointerId,
      button: event.button,
      shift: event.shiftKey,
      alt: event.altKey,
      ctrl: event.ctrlKey,
      type: event.pointerType === "touch" || event.pointerType === "pen" ? event.pointerType : "mouse",
      time: event.timeStamp,
    };
  }

  /**
   * @param {MouseEvent} event
   * @returns {{ x: number, y: number }} on the canvas; by ratios, because the graph's zoom is a CSS transform
   */
  #position(event) {
    const rect = this.stage.getBoundingClientRect();
    return {
      x: ((event.clientX - rect.left) / (rect.width || 1)) * this.stage.clientWidth,
      y: ((event.clientY - rect.top) / (rect.height || 1)) * this.stage.clientHeight,
    };
  }

  /** @param {PointerEvent} event */
  #onPointerDown(event) {
    if (!this.#onStage(event)) {
      return;
    }
    // When the graph takes the element away under a pointer, nothing tells that it was lifted.
    const isLost = event.isPrimary && this.#tools.pointer?.type === event.pointerType;
    // The palm comes down before the pen that its hand holds.
    const isPalm = event.pointerType === "pen" && this.#tools.touched;
    if (isLost || isPalm) {
      this.#abandonGesture();
    }
    this.#abandonKeys();
    const surface = this.#surface();
    const pans = event.button === 1 || surface.panning || surface.tool === "pan";
    const second = this.#tools.busy && event.pointerType === "touch";
    if (event.button !== 1) {
      this.element.focus({ preventScroll: true });
    }
    if (this.#picture === null && pans) {
      return;
    }
    if (!pans && !second && !this.#mayDraw()) {
      return;
    }
    const erasing = surface.tool === "eraser" || event.button === 5;
    if (!pans && !second && erasing && !this.#mayErase()) {
      return;
    }
    const step = this.#tools.press(surface, this.#pointer(event));
    if (step === null) {
      return;
    }
    event.stopPropagation();
    this.stage.setPointerCapture(event.pointerId);
    if (this.#notice !== null) {
      this.#notice = null;
      this.#requestFrame({ panel: true });
    }
    if (step.cancelled) {
      this.#settle({});
      return;
    }
    if (this.#tools.drawing) {
      this.#tellGesture("start");
      this.#takeDraft(step);
    } else if (this.#tools.busy) {
      this.#takeDraft(step);
    } else {
      this.#tellGesture("start");
      this.#settle(step);
    }
  }

  /** @param {PointerEvent} event */
  #onPointerMove(event) {
    if (this.#drawsByKeys) {
      return;
    }
    this.#byKeys = false;
    if (this.#tools.busy) {
      event.stopPropagation();
      // A stroke follows every place the pen was at, not only those the browser painted at.
      const moves = this.#tool === "brush" || this.#tool === "eraser" ? (event.getCoalescedEvents?.() ?? []) : [];
      for (const move of moves.length > 0 ? moves : [event]) {
        const step = this.#tools.move(this.#surface(), this.#pointer(move));
        if (step !== null) {
          this.#takeDraft(step);
        }
      }
      this.#gestureMoved = true;
    }
    if (this.#tools.pointer !== null && this.#tools.pointer.id !== event.pointerId) {
      return;
    }
    this.#pointerAt = this.#onStage(event) || this.#tools.busy ? this.#position(event) : null;
    const hit =
      this.#pointerAt === null || this.#tools.busy || event.pointerType === "touch"
        ? null
        : this.#tools.hover(this.#surface(), this.#pointerAt).hit;
    this.#hovered = hit;
    this.#requestFrame();
  }

  /** @param {PointerEvent} event */
  #onPointerUp(event) {
    const step = this.#tools.release(this.#pointer(event));
    if (step !== null) {
      if (event.button === 1) {
        event.stopPropagation();
      }
      this.#settle(step);
    }
    if (event.pointerType === "touch") {
      this.#pointerAt = null;
    }
    this.#requestFrame();
  }

  /** @param {PointerEvent} event of a pointer that the system takes for itself, or for a palm beside the pen */
  #onPointerCancel({ pointerId }) {
    if (this.#tools.uses(pointerId)) {
      this.#abandonGesture();
      // A finger whose press was over at once has no gesture, and is gone all the same.
      this.#tools.cancel();
    }
  }

  #onPointerLeave() {
    if (!this.#tools.busy) {
      this.#pointerAt = null;
      this.#hovered = null;
      this.#requestFrame();
    }
  }

  /** @param {WheelEvent} event */
  #onWheel(event) {
    if (this.#picture === null || !(event.ctrlKey || this.#hasFocus)) {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    const unit = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : event.deltaMode === 0 ? 1 : this.#room.height;
    // A pinch on a touchpad arrives as small steps with Ctrl.
    const pace = event.ctrlKey && Math.abs(event.deltaY) < 50 ? 0.01 : 0.002;
    this.#zoom(Math.exp(-event.deltaY * unit * pace), this.#position(event));
  }

  /** @param {KeyboardEvent} event */
  #onKeyDown(event) {
    const field = event.target instanceof HTMLInputElement && event.target.type !== "range";
    if (event.key === "Tab") {
      return;
    }
    if (field || event.target instanceof HTMLSelectElement) {
      // What is typed into a name is no shortcut, neither ours nor the graph's.
      event.stopPropagation();
      return;
    }
    const onButton = event.target instanceof HTMLButtonElement;
    if (onButton && (event.key === " " || event.key === "Enter")) {
      event.stopPropagation();
      return;
    }
    if (event.target instanceof HTMLInputElement && /^(?:Arrow|Home|End|Page)/.test(event.key)) {
      event.stopPropagation();
      return;
    }
    if (this.#onShortcut(event)) {
      event.preventDefault();
      event.stopPropagation();
    }
  }

  /**
   * @param {KeyboardEvent} event
   * @returns {boolean} whether the key was ours
   */
  #onShortcut(event) {
    const key = keyOf(event);
    const command = (event.ctrlKey || event.metaKey) && !event.getModifierState("AltGraph");
    if (command) {
      if (key === "z" || key === "y") {
        this.command(key === "y" || event.shiftKey ? "redo" : "undo");
        return true;
      }
      return false;
    }
    if (event.altKey && !event.getModifierState("AltGraph")) {
      return false;
    }
    const named = KEY_COMMANDS[key];
    if (named !== undefined) {
      if (!event.repeat) {
        this.command(named);
      }
      return true;
    }
    if (/^[1-9]$/.test(key)) {
      this.#chooseTarget(Number(key) - 1);
      return true;
    }
    if (key === "Enter") {
      // Held down it is one press.
      return event.repeat ? this.#byKeys : this.#pressByKey();
    }
    return this.#onEditingKey(key, event.shiftKey);
  }

  /**
   * @param {string} key
   * @param {boolean} shift
   * @returns {boolean}
   */
  #onEditingKey(key, shift) {
    const far = shift ? 10 : 1;
    switch (key) {
      case " ":
        this.#panning = true;
        this.#requestFrame();
        return true;
      case "Escape":
        if (this.#tools.busy) {
          this.#abandonGesture();
          return true;
        }
        if (this.#selection !== null) {
          this.#change(() => (this.#selection = null));
          return true;
        }
        return false;
      case "Delete":
      case "Backspace":
        this.#deleteSelected();
        return true;
      case "u":
        this.#change(() => {
          this.#brushKind = this.#brushKind === "unknown" && this.#tool === "brush" ? "foreground" : "unknown";
          this.#tool = "brush";
        });
        return true;
      case "[":
      case "]":
        this.#setBrushWidth(this.#stepBrush(key === "]" ? 1 : -1));
        return true;
      case "+":
      case "=":
        this.#zoom(1.25);
        return true;
      case "-":
      case "_":
        this.#zoom(0.8);
        return true;
      case "ArrowLeft":
        return this.#onArrow(-far, 0);
      case "ArrowRight":
        return this.#onArrow(far, 0);
      case "ArrowUp":
        return this.#onArrow(0, -far);
      case "ArrowDown":
        return this.#onArrow(0, far);
      default:
        return false;
    }
  }

  /** @param {1 | -1} direction */
  #stepBrush(direction) {
    const width = this.#brushWidthNow;
    return direction > 0 ? Math.max(width + 1, width * 1.15) : Math.min(width - 1, width / 1.15);
  }

  /** Whether a box or a stroke is being drawn by the keys. */
  get #drawsByKeys() {
    return this.#tools.pointer?.id === KEYS_ID;
  }

  /** Ends such a gesture and leaves the drawing as it was before it. */
  #abandonKeys() {
    if (this.#drawsByKeys) {
      this.#abandonGesture();
    }
  }

  /**
   * The arrows move what is selected; else the crosshair, at which Enter draws; with the hand the picture.
   *
   * @param {number} dx
   * @param {number} dy
   */
  #onArrow(dx, dy) {
    if (this.#tools.busy && !this.#drawsByKeys) {
      return true;
    }
    if (this.#selection !== null && !this.#drawsByKeys) {
      this.#nudge(dx, dy);
    } else if (this.#tool !== "pan") {
      this.#moveCrosshair(ARROW_PX * dx, ARROW_PX * dy);
    } else if (!this.#fitted) {
      this.#setView(keepInSight(pan(this.#view, -24 * dx, -24 * dy), this.#pictureSize, this.#room));
    }
    return true;
  }

  /**
   * @param {number} dx CSS pixels
   * @param {number} dy
   */
  #moveCrosshair(dx, dy) {
    const { width, height } = this.#room;
    const from = this.#pointerAt ?? { x: width / 2, y: height / 2 };
    const to = { x: from.x + dx, y: from.y + dy };
    const within = { x: Math.min(width, Math.max(0, to.x)), y: Math.min(height, Math.max(0, to.y)) };
    if (!this.#fitted && (within.x !== to.x || within.y !== to.y)) {
      // What lies beyond the border comes into sight.
      const panned = pan(this.#view, within.x - to.x, within.y - to.y);
      this.#setView(keepInSight(panned, this.#pictureSize, this.#room));
    }
    this.#pointerAt = within;
    this.#byKeys = true;
    if (this.#drawsByKeys) {
      this.#tools.move(this.#surface(), this.#crosshair(within));
      this.#gestureMoved = true;
    } else {
      this.#hovered = this.#tools.hover(this.#surface(), within).hit;
    }
    this.#requestFrame();
  }

  /** @param {{ x: number, y: number }} at @returns {Pointer} */
  #crosshair({ x, y }) {
    const none = { shift: false, alt: false, ctrl: false };
    return { id: KEYS_ID, x, y, button: 0, ...none, type: "mouse", time: performance.now() };
  }

  /**
   * At the place where the arrows went Enter sets a point or selects the one that is there; of a box or a stroke it
   * sets the beginning, and pressed once more the end.
   *
   * @returns {boolean} whether there is such a place
   */
  #pressByKey() {
    if (!this.#byKeys || this.#pointerAt === null || this.#tool === "pan" || this.#panning) {
      return false;
    }
    const pointer = this.#crosshair(this.#pointerAt);
    if (this.#drawsByKeys) {
      this.#notice = null;
      this.#settle(this.#tools.release(pointer) ?? {});
      return true;
    }
    if (this.#tools.busy || !this.#mayDraw() || (this.#tool === "eraser" && !this.#mayErase())) {
      return true;
    }
    this.#tellGesture("start");
    const step = this.#tools.press(this.#surface(), pointer) ?? {};
    if (this.#tool !== "points") {
      this.#takeDraft(step);
      this.#say(t("keysDraw"));
    } else {
      this.#settle(this.#tools.release(pointer) ?? {});
    }
    return true;
  }

  /** @param {KeyboardEvent} event */
  #onKeyUp(event) {
    if (event.key === " " && this.#panning) {
      this.#panning = false;
      this.#requestFrame();
    }
  }
}
