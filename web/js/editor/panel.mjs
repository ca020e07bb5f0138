/**
 * Everything around the picture: toolbar, options of the tool, list of targets, frame chooser, status line. It holds no
 * state of the drawing: `show` makes it say what is, and it calls `actions` when the user wants something.
 */

import { LIMITS, TARGET_COLORS } from "./drawing.mjs";
import { BACKDROPS } from "./paint.mjs";
import { t } from "./texts.mjs";

/** @typedef {import("./paint.mjs").Backdrop} Backdrop */
/** @typedef {import("./tools.mjs").ToolName} ToolName */
/** @typedef {import("./tools.mjs").Surface} Surface */
/** @typedef {"idle" | "waiting" | "working" | "ready" | "error"} StatusState */

/**
 * What the panel shows.
 *
 * @typedef {object} PanelModel
 * @property {ToolName} tool
 * @property {boolean} canUndo
 * @property {boolean} canRedo
 * @property {boolean} canClear
 * @property {Backdrop} backdrop
 * @property {boolean} live
 * @property {0 | 1} pointLabel
 * @property {Surface["brushKind"]} brushKind
 * @property {number} brushWidth
 * @property {number} brushMost
 * @property {readonly { name: string, color: string, hidden: boolean }[]} targets
 * @property {number} active
 * @property {boolean} listOpen
 * @property {number} frame
 * @property {number} frames
 * @property {boolean} frameAlone
 * @property {boolean} hasPicture
 * @property {boolean} sizeKnown
 * @property {boolean} untouched whether nothing is drawn yet
 * @property {{ width: number, height: number, newWidth: number, newHeight: number } | null} otherPicture
 * @property {{ state: StatusState, text: string, engine: string, retry: boolean, notice: boolean }} status
 * @property {number} zoomPercent
 */
/**
 * @typedef {object} PanelActions
 * @property {(name: string) => void} command
 * @property {(backdrop: Backdrop) => void} chooseBackdrop
 * @property {(label: 0 | 1) => void} choosePointLabel
 * @property {(kind: Surface["brushKind"]) => void} chooseBrushKind
 * @property {(width: number) => void} chooseBrushWidth
 * @property {(index: number) => void} chooseTarget
 * @property {(index: number, name: string) => void} renameTarget
 * @property {(index: number, color: string) => void} recolourTarget
 * @property {(index: number, hidden: boolean) => void} hideTarget
 * @property {(index: number) => void} deleteTarget
 * @property {(open: boolean) => void} openList
 * @property {(frame: number) => void} chooseFrame
 * @property {(alone: boolean) => void} chooseScope
 * @property {() => void} stretch
 * @property {() => void} clearAll
 * @property {() => void} retry
 * @property {() => void} leaveField the user is done with a text field
 */

const ICONS = Object.freeze({
  points: "M8 4.5a3.5 3.5 0 1 0 0 7a3.5 3.5 0 1 0 0-7M8 1v5M8 10v5M1 8h5M10 8h5",
  box: "M3 3h10v10H3zM1.7 1.7h2.6v2.6H1.7zM11.7 1.7h2.6v2.6h-2.6zM1.7 11.7h2.6v2.6H1.7zM11.7 11.7h2.6v2.6h-2.6z",
  brush: "M14 2L7.2 8.8M7.2 8.8c-2-.6-3.5.6-3.7 2.4c-.1 1.2-.8 1.9-1.7 2.2c2.6 1.3 6.2.7 6.6-2.2c.1-1-.4-1.9-1.2-2.4z",
  eraser: "M6.2 13.7H14M9.6 2.4l4 4l-7.2 7.2H4.3L2.1 11.3a1 1 0 0 1 0-1.4zM5.9 6.1l4 4",
  pan: "M8 1.7v12.6M1.7 8h12.6M6 3.7l2-2l2 2M6 12.3l2 2l2-2M3.7 6l-2 2l2 2M12.3 6l2 2l-2 2",
  undo: "M3 6h6.6a3.6 3.6 0 0 1 0 7.2H6M6 2.8L2.8 6L6 9.2",
  redo: "M13 6H6.4a3.6 3.6 0 0 0 0 7.2H10M10 2.8L13.2 6L10 9.2",
  clear: "M2.5 4.2h11M6 4.2V2.4h4v1.8M4 4.2l.7 9.4h6.6l.7-9.4M6.7 6.8v4.4M9.3 6.8v4.4",
  newTarget: "M8 3v10M3 8h10",
  view: "M8 2a6 6 0 1 0 0 12a6 6 0 1 0 0-12M8 2v12M8 5h4.9M8 8h6M8 11h4.9",
  live: "M9.2 1.5L3.4 9H8l-1.2 5.5L12.6 7H8z",
  eye: "M1.5 8c3-4.6 10-4.6 13 0c-3 4.6-10 4.6-13 0zM8 6.1a1.9 1.9 0 1 0 0 3.8a1.9 1.9 0 1 0 0-3.8",
  eyeOff: "M1.5 8c3-4.6 10-4.6 13 0c-3 4.6-10 4.6-13 0zM2.6 13.4L13.4 2.6",
  chevron: "M5.5 3l5 5l-5 5",
  previous: "M10.5 3l-5 5l5 5",
  next: "M5.5 3l5 5l-5 5",
});

/** @param {keyof typeof ICONS} name */
function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  path.setAttribute("fill", "none");
  path.setAttribute("stroke", "currentColor");
  path.setAttribute("stroke-width", "1.4");
  path.setAttribute("stroke-linecap", "round");
  path.setAttribute("stroke-linejoin", "round");
  svg.append(path);
  return svg;
}

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {{ class?: string, text?: string, role?: string, label?: string }} [about]
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function element(tag, about = {}, ...children) {
  const made = document.createElement(tag);
  if (about.class) made.className = about.class;
  if (about.text) made.textContent = about.text;
  if (about.role) made.setAttribute("role", about.role);
  if (about.label) describe(made, about.label);
  made.append(...children);
  return made;
}

/**
 * @param {HTMLElement} part
 * @param {string} label
 */
function describe(part, label) {
  if (part.title !== label) {
    part.title = label;
    part.setAttribute("aria-label", label);
  }
}

/**
 * @param {string} label
 * @param {keyof typeof ICONS} iconName
 * @param {() => void} onClick
 * @param {string} [className]
 */
function iconButton(label, iconName, onClick, className) {
  const button = element("button", { label, ...(className ? { class: className } : {}) }, icon(iconName));
  button.type = "button";
  button.addEventListener("click", onClick);
  return button;
}

/**
 * @param {string} text
 * @param {() => void} onClick
 */
function textButton(text, onClick) {
  const button = element("button", { text });
  button.type = "button";
  button.addEventListener("click", onClick);
  return button;
}

/**
 * @template {string | number} Value
 * @param {string} label
 * @param {readonly { value: Value, text: string, hint: string }[]} choices
 * @param {(value: Value) => void} onChoose
 * @returns {{ group: HTMLElement, show: (value: Value) => void }} one of several, as radio buttons in a row
 */
function choice(label, choices, onChoose) {
  const group = element("div", { class: "mam-choice", role: "radiogroup" });
  group.setAttribute("aria-label", label);
  const buttons = choices.map(({ value, text, hint }) => {
    const button = element("button", { text, role: "radio" });
    button.type = "button";
    button.title = hint;
    button.addEventListener("click", () => onChoose(value));
    group.append(button);
    return button;
  });
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const at = buttons.findIndex((button) => button === document.activeElement);
    if (step === undefined || at < 0) {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    const next = (at + step + buttons.length) % buttons.length;
    buttons[next]?.focus();
    buttons[next]?.click();
  });
  return {
    group,
    show(value) {
      choices.forEach((one, i) => {
        const button = buttons[i];
        if (button) {
          button.setAttribute("aria-checked", String(one.value === value));
          button.tabIndex = one.value === value ? 0 : -1;
        }
      });
    },
  };
}

/** @type {Readonly<Record<Backdrop, string>>} */
const BACKDROP_TEXTS = Object.freeze({
  overlay: "viewOverlay",
  checker: "viewChecker",
  black: "viewBlack",
  white: "viewWhite",
  alpha: "viewAlpha",
  none: "viewNone",
});

/** @type {readonly { tool: ToolName, text: string }[]} */
const TOOL_BUTTONS = Object.freeze([
  { tool: "points", text: "toolPoints" },
  { tool: "box", text: "toolBox" },
  { tool: "brush", text: "toolBrush" },
  { tool: "eraser", text: "toolEraser" },
  { tool: "pan", text: "toolPan" },
]);

/**
 * @param {string} name
 * @param {number} index
 */
function shownName(name, index) {
  return name || t("targetDefaultName", { number: index + 1 });
}

/** The brush slider runs over the logarithm of the width: from 1 to 10 pixels matters as much as from 100 to 1000. */
const BRUSH_STEPS = 200;
/** @param {number} width @param {number} most */
const brushToSlider = (width, most) => Math.round((BRUSH_STEPS * Math.log(width)) / Math.log(Math.max(2, most)));
/** @param {number} slider @param {number} most */
const sliderToBrush = (slider, most) => Math.exp((slider / BRUSH_STEPS) * Math.log(Math.max(2, most)));

/**
 * @param {PanelActions} actions
 */
function makeToolbar({ command, chooseBackdrop }) {
  const bar = element("div", { class: "mam-toolbar", role: "toolbar" });
  bar.setAttribute("aria-label", t("tools"));
  const tools = TOOL_BUTTONS.map(({ tool, text }) => ({
    tool,
    button: iconButton(t(text), tool, () => command(`tool:${tool}`), "mam-tool"),
  }));
  const undo = iconButton(t("undo"), "undo", () => command("undo"));
  const redo = iconButton(t("redo"), "redo", () => command("redo"));
  const clear = iconButton(t("clear"), "clear", () => command("clear"));
  const newTarget = iconButton(t("newTarget"), "newTarget", () => command("newTarget"));
  const live = iconButton(t("toggleLiveOn"), "live", () => command("toggleLive"), "mam-live");
  const view = element("select");
  for (const backdrop of BACKDROPS) {
    const option = element("option", { text: t(BACKDROP_TEXTS[backdrop]) });
    option.value = backdrop;
    view.append(option);
  }
  view.addEventListener("change", () => chooseBackdrop(/** @type {Backdrop} */ (view.value)));
  bar.append(
    ...tools.map(({ button }) => button),
    element("span", { class: "mam-gap" }),
    undo,
    redo,
    clear,
    element("span", { class: "mam-gap" }),
    newTarget,
    element("span", { class: "mam-push" }),
    element("span", { class: "mam-menu" }, icon("view"), view),
    live,
  );
  const keepReachable = roveFocus(bar);
  return { element: bar, tools, undo, redo, clear, newTarget, live, view, keepReachable };
}

/**
 * One stop for Tab; the arrows go from button to button.
 *
 * @param {HTMLElement} bar
 * @returns {() => void} to be called when a button was disabled, which may have been the one where Tab stops
 */
function roveFocus(bar) {
  const stops = () =>
    /** @type {(HTMLButtonElement | HTMLSelectElement)[]} */ ([...bar.querySelectorAll("button, select")]);
  /** @param {EventTarget | null} current */
  const onlyStop = (current) => {
    for (const stop of stops()) {
      stop.tabIndex = stop === current ? 0 : -1;
    }
  };
  onlyStop(stops()[0] ?? null);
  bar.addEventListener("focusin", (event) => onlyStop(event.target));
  bar.addEventListener("keydown", (event) => {
    const usable = stops().filter((stop) => !stop.disabled);
    const at = usable.findIndex((stop) => stop === document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: usable.length - 1 }[event.key];
    if (at < 0 || to === undefined) {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    usable[(to + usable.length) % usable.length]?.focus();
  });
  return () => {
    const usable = stops().filter((stop) => !stop.disabled);
    if (usable.every((stop) => stop.tabIndex < 0)) {
      onlyStop(usable[0] ?? null);
    }
  };
}

/**
 * @param {PanelActions} actions
 * @param {() => number} brushMost
 */
function makeOptions({ choosePointLabel, chooseBrushKind, chooseBrushWidth }, brushMost) {
  const points = choice(
    t("pointKind"),
    /** @type {const} */ ([
      { value: 1, text: `+ ${t("pointPositive")}`, hint: t("pointPositiveHint") },
      { value: 0, text: `\u2212 ${t("pointNegative")}`, hint: t("pointNegativeHint") },
    ]),
    choosePointLabel,
  );
  const brush = choice(
    t("brushKind"),
    /** @type {const} */ ([
      { value: "foreground", text: t("brushForeground"), hint: t("brushForegroundHint") },
      { value: "background", text: t("brushBackground"), hint: t("brushBackgroundHint") },
      { value: "unknown", text: t("brushUnknown"), hint: t("brushUnknownHint") },
    ]),
    chooseBrushKind,
  );
  const slider = element("input", { label: t("brushSize") });
  slider.type = "range";
  slider.min = "0";
  slider.max = String(BRUSH_STEPS);
  slider.addEventListener("input", () => chooseBrushWidth(sliderToBrush(Number(slider.value), brushMost())));
  const output = element("output");
  const size = element("label", {}, slider, output);
  size.title = t("brushSize");
  const hint = element("span", { class: "mam-hint" });
  const strip = element("div", { class: "mam-options" }, points.group, brush.group, size, hint);
  return { element: strip, points, brush, size, slider, output, hint };
}

/** @param {PanelActions} actions */
function makeNotes({ stretch, clearAll }) {
  const emptyHint = element("span");
  const empty = element(
    "div",
    { class: "mam-note mam-empty" },
    element("strong", { text: t("emptyTitle") }),
    emptyHint,
  );
  const startText = element("span");
  const start = element("div", { class: "mam-note mam-start" }, startText);
  const otherText = element("span");
  const stretchButton = textButton(t("stretch"), stretch);
  const clearButton = textButton(t("clearAll"), clearAll);
  const buttons = element("div", {}, stretchButton, clearButton);
  const other = element("div", { class: "mam-note mam-other", role: "alert" }, otherText, buttons);
  return { elements: [empty, start, other], empty, emptyHint, start, startText, other, otherText };
}

/** @param {PanelActions} actions */
function makeTargets({ openList }) {
  const title = element("span");
  const dots = element("span", { class: "mam-dots" });
  const toggle = element("button", {}, icon("chevron"), title, dots);
  toggle.type = "button";
  toggle.addEventListener("click", () => openList(toggle.getAttribute("aria-expanded") !== "true"));
  const list = element("ul");
  list.setAttribute("aria-label", t("targets"));
  /** @type {ReturnType<typeof makeTargetRow>[]} */
  const rows = [];
  return { element: element("div", { class: "mam-targets" }, toggle, list), title, dots, toggle, list, rows };
}

/**
 * @param {number} index
 * @param {PanelActions} actions
 */
function makeTargetRow(index, { chooseTarget, recolourTarget, renameTarget, hideTarget, deleteTarget, leaveField }) {
  const color = element("input");
  color.type = "color";
  color.addEventListener("change", () => recolourTarget(index, color.value));
  const name = element("input");
  name.type = "text";
  name.maxLength = LIMITS.nameLength;
  name.addEventListener("focus", () => chooseTarget(index));
  name.addEventListener("change", () => renameTarget(index, name.value.trim()));
  name.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === "Escape") {
      if (event.key === "Escape") {
        name.value = name.defaultValue;
      }
      event.preventDefault();
      event.stopPropagation();
      leaveField();
    }
  });
  const eye = iconButton("", "eye", () => hideTarget(index, eye.getAttribute("aria-pressed") === "true"));
  const remove = iconButton("", "clear", () => deleteTarget(index));
  const item = element("li", {}, color, name, eye, remove);
  item.addEventListener("pointerdown", () => chooseTarget(index));
  return { item, color, name, eye, remove };
}

/** @param {PanelActions} actions */
function makeFrames({ chooseFrame, chooseScope, leaveField }) {
  const slider = element("input", { label: t("frame") });
  slider.type = "range";
  slider.min = "1";
  const number = element("input");
  number.type = "number";
  number.min = "1";
  number.step = "1";
  slider.addEventListener("input", () => {
    number.value = slider.value;
  });
  // A frame may have to be encoded: only the one the slider is left on is asked for.
  slider.addEventListener("change", () => chooseFrame(Number(slider.value) - 1));
  number.addEventListener("change", () => chooseFrame(Math.round(Number(number.value)) - 1));
  number.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      leaveField();
    }
  });
  const count = element("span");
  const scope = choice(
    t("scope"),
    /** @type {const} */ ([
      { value: "all", text: t("scopeAll"), hint: t("scopeAllHint") },
      { value: "frame", text: t("scopeFrame"), hint: t("scopeFrameHint") },
    ]),
    (value) => chooseScope(value === "frame"),
  );
  const previous = iconButton(t("framePrevious"), "previous", () => chooseFrame(Number(slider.value) - 2));
  const next = iconButton(t("frameNext"), "next", () => chooseFrame(Number(slider.value)));
  const row = element("div", { class: "mam-frames" }, previous, slider, next, number, count, scope.group);
  return { element: row, previous, slider, next, number, count, scope };
}

/** @param {PanelActions} actions */
function makeStatus({ retry, command }) {
  const engine = element("span", { class: "mam-engine" });
  const text = element("span");
  const said = element("span", { class: "mam-said", role: "status" }, engine, text);
  said.setAttribute("aria-live", "polite");
  const retryButton = textButton(t("tryAgain"), retry);
  retryButton.className = "mam-retry";
  const position = element("span", { class: "mam-readout" });
  position.setAttribute("aria-hidden", "true");
  const zoom = textButton("", () => command("fit"));
  zoom.className = "mam-fit";
  describe(zoom, t("fit"));
  const dot = element("span", { class: "mam-dot" });
  const line = element("div", { class: "mam-status" }, dot, said, retryButton, position, zoom);
  return { element: line, said, engine, text, retry: retryButton, position, zoom };
}

export class Panel {
  #brushMost = 500;
  #active = -1;

  /** @param {PanelActions} actions */
  constructor(actions) {
    this.actions = actions;
    this.toolbar = makeToolbar(actions);
    this.options = makeOptions(actions, () => this.#brushMost);
    this.notes = makeNotes(actions);
    this.targets = makeTargets(actions);
    this.frames = makeFrames(actions);
    this.status = makeStatus(actions);
  }

  /** @param {PanelModel} model */
  show(model) {
    for (const { tool, button } of this.toolbar.tools) {
      button.setAttribute("aria-pressed", String(tool === model.tool));
    }
    this.toolbar.undo.disabled = !model.canUndo;
    this.toolbar.redo.disabled = !model.canRedo;
    this.toolbar.clear.disabled = !model.canClear;
    this.toolbar.newTarget.disabled = model.otherPicture !== null;
    this.toolbar.keepReachable();
    this.toolbar.view.value = model.backdrop;
    describe(this.toolbar.view, t("view", { view: t(BACKDROP_TEXTS[model.backdrop]) }));
    this.toolbar.live.setAttribute("aria-pressed", String(model.live));
    describe(this.toolbar.live, t(model.live ? "toggleLiveOn" : "toggleLiveOff"));
    this.#showOptions(model);
    this.#showNotes(model);
    this.#showTargets(model);
    this.#showFrames(model);
    this.#showStatus(model);
  }

  /** @param {PanelModel} model */
  #showOptions(model) {
    const brush = model.tool === "brush" || model.tool === "eraser";
    this.options.points.group.hidden = model.tool !== "points";
    this.options.brush.group.hidden = model.tool !== "brush";
    this.options.size.hidden = !brush;
    const hint = { points: "hintPoints", box: "hintBox", brush: "", eraser: "hintEraser", pan: "hintPan" }[model.tool];
    this.options.hint.hidden = hint === "";
    this.options.hint.textContent = this.options.hint.title = hint === "" ? "" : t(hint);
    this.options.points.show(model.pointLabel);
    this.options.brush.show(model.brushKind);
    this.#brushMost = model.brushMost;
    this.options.slider.value = String(brushToSlider(model.brushWidth, model.brushMost));
    this.options.output.textContent = String(Math.round(model.brushWidth));
  }

  /** @param {PanelModel} model */
  #showNotes(model) {
    this.notes.empty.hidden = model.hasPicture;
    this.notes.emptyHint.textContent = t(model.sizeKnown ? "runHint" : "emptyHint");
    const start = { points: "startPoints", box: "startBox", brush: "startBrush", eraser: "", pan: "" }[model.tool];
    this.notes.start.hidden = !model.hasPicture || !model.untouched || start === "" || model.otherPicture !== null;
    this.notes.startText.textContent = start === "" ? "" : t(model.sizeKnown ? start : "sizeUnknown");
    this.notes.other.hidden = model.otherPicture === null || !model.hasPicture;
    if (model.otherPicture !== null) {
      this.notes.otherText.textContent = t("otherPicture", model.otherPicture);
    }
  }

  /** @param {PanelModel} model */
  #showTargets(model) {
    const { targets, active, listOpen } = model;
    // The row is there before the first target: the picture must not jump when the first click makes one.
    this.targets.element.hidden = !model.sizeKnown;
    this.targets.list.hidden = !listOpen;
    this.targets.toggle.disabled = targets.length === 0;
    this.targets.toggle.setAttribute("aria-expanded", String(listOpen));
    describe(this.targets.toggle, t(listOpen ? "targetsHide" : "targetsShow"));
    this.targets.title.textContent =
      targets.length > 1 ? t("targetsCount", { count: targets.length }) : shownName(targets[0]?.name ?? "", 0);
    while (this.targets.rows.length < targets.length) {
      const row = makeTargetRow(this.targets.rows.length, this.actions);
      this.targets.rows.push(row);
      this.targets.list.append(row.item);
    }
    for (const row of this.targets.rows.splice(targets.length)) {
      row.item.remove();
    }
    this.targets.dots.replaceChildren(
      ...targets.map(({ color }) => {
        const dot = element("i");
        dot.style.background = color;
        return dot;
      }),
    );
    targets.forEach((target, index) => {
      const row = this.targets.rows[index];
      if (row === undefined) {
        return;
      }
      const name = shownName(target.name, index);
      row.item.setAttribute("aria-current", String(index === active));
      row.item.title = t("targetChoose", { name });
      row.item.classList.toggle("mam-hidden", target.hidden);
      row.color.value = target.color;
      describe(row.color, t("targetColor", { name }));
      row.name.placeholder = t("targetDefaultName", { number: index + 1 });
      row.name.setAttribute("aria-label", t("targetName", { number: index + 1 }));
      row.name.defaultValue = target.name;
      if (row.name !== document.activeElement) {
        row.name.value = target.name;
      }
      row.eye.setAttribute("aria-pressed", String(!target.hidden));
      if (row.eye.dataset["hides"] !== String(!target.hidden)) {
        row.eye.dataset["hides"] = String(!target.hidden);
        row.eye.replaceChildren(icon(target.hidden ? "eyeOff" : "eye"));
      }
      describe(row.eye, t(target.hidden ? "targetShow" : "targetHide", { name }));
      describe(row.remove, t("targetDelete", { name }));
    });
    if (active !== this.#active) {
      this.#active = active;
      this.#scrollTo(active);
    }
  }

  /** @param {number} index scrolls the list alone: scrollIntoView would move the graph too */
  #scrollTo(index) {
    const { list, rows } = this.targets;
    const row = rows[index]?.item;
    if (row !== undefined) {
      const above = row.offsetTop - list.offsetTop;
      const least = above + row.offsetHeight - list.clientHeight;
      list.scrollTop = Math.min(above, Math.max(least, list.scrollTop));
    }
  }

  /** @param {PanelModel} model */
  #showFrames({ frame, frames, frameAlone }) {
    this.frames.element.hidden = frames <= 1;
    this.frames.slider.max = String(frames);
    this.frames.slider.value = String(frame + 1);
    this.frames.number.max = String(frames);
    if (this.frames.number !== document.activeElement) {
      this.frames.number.value = String(frame + 1);
    }
    describe(this.frames.number, t("frameNumber", { count: frames }));
    this.frames.count.textContent = t("frameOf", { count: frames });
    this.frames.previous.disabled = frame <= 0;
    this.frames.next.disabled = frame >= frames - 1;
    this.frames.scope.show(frameAlone ? "frame" : "all");
  }

  /** @param {PanelModel} model */
  #showStatus({ status, zoomPercent, hasPicture }) {
    this.status.element.dataset["state"] = status.state;
    this.status.element.classList.toggle("mam-long", status.notice || status.state === "error");
    const engine = { sam: t("engineSam"), classical: t("engineClassical") }[status.engine] ?? status.engine;
    const named = status.text.includes(engine) ? "" : engine;
    const engineText = named && status.text ? `${named} \u00b7 ` : named;
    // A live region speaks when its text is set, even to the same text.
    if (this.status.engine.textContent !== engineText) this.status.engine.textContent = engineText;
    if (this.status.text.textContent !== status.text) this.status.text.textContent = status.text;
    this.status.said.title = `${engineText}${status.text}`;
    this.status.retry.hidden = !status.retry;
    this.status.zoom.hidden = !hasPicture;
    this.status.zoom.textContent = t("zoomPercent", { percent: zoomPercent });
  }

  /** @param {{ x: number, y: number } | null} position on the picture */
  showPosition(position) {
    this.status.position.textContent =
      position === null ? "" : t("picturePosition", { x: Math.floor(position.x), y: Math.floor(position.y) });
  }
}

/**
 * @param {{ color: string }} target
 * @param {number} index
 * @param {string} overlayColor of the settings
 * @returns {string} the colour a target is shown in: the first one that was not given a colour takes the settings'
 */
export function shownColor(target, index, overlayColor) {
  return index === 0 && target.color === TARGET_COLORS[0] ? overlayColor : target.color;
}
