/**
 * Pointer gestures become edits. Nothing here knows the page: pointers are plain data, positions are CSS pixels of the
 * canvas, and time is the event's own, so that a gesture can be replayed.
 *
 * A press starts a gesture, moves only collect, `draft` says what the drawing would be now (asked once for each frame
 * that is painted), release says what it is.
 */

import {
  addPoint,
  addStroke,
  addTarget,
  deletePoint,
  DrawingError,
  LIMITS,
  movePoint,
  promptOf,
  setBox,
} from "./drawing.mjs";
import { keepInSight, ontoPicture, pan, simplify, toPicture, uprightBox, zoom } from "./geometry.mjs";
import { hitTest } from "./hit.mjs";

/** @typedef {import("./drawing.mjs").Box} Box */
/** @typedef {import("./drawing.mjs").Drawing} Drawing */
/** @typedef {import("./drawing.mjs").PointLabel} PointLabel */
/** @typedef {import("./drawing.mjs").Scope} Scope */
/** @typedef {import("./drawing.mjs").StrokeKind} StrokeKind */
/** @typedef {import("./geometry.mjs").Position} Position */
/** @typedef {import("./geometry.mjs").Size} Size */
/** @typedef {import("./geometry.mjs").View} View */
/** @typedef {import("./hit.mjs").BoxPart} BoxPart */
/** @typedef {import("./hit.mjs").Hit} Hit */
/** @typedef {"points" | "box" | "brush" | "eraser" | "pan"} ToolName */
/** @typedef {{ kind: "point", index: number } | { kind: "box" } | null} Selection */

/**
 * What a gesture works on.
 *
 * @typedef {object} Surface
 * @property {Drawing} drawing in pixels of the picture shown
 * @property {number} target the target that is edited; -1 when there is none yet
 * @property {Scope} scope
 * @property {View} view
 * @property {Size} picture
 * @property {Size} canvas
 * @property {ToolName} tool
 * @property {PointLabel} pointLabel what a plain press of the points tool means
 * @property {Exclude<StrokeKind, "eraser">} brushKind
 * @property {number} brushWidth pixels of the picture
 * @property {number} pointSize diameter on the canvas
 * @property {boolean} panning whether the space bar is down
 * @property {boolean} mayPan whether the middle button moves the picture
 */
/**
 * @typedef {object} Pointer
 * @property {number} id
 * @property {number} x
 * @property {number} y
 * @property {number} button 0 left, 1 middle, 2 right, 5 the eraser end of a pen
 * @property {boolean} shift
 * @property {boolean} alt
 * @property {boolean} ctrl
 * @property {"mouse" | "pen" | "touch"} type
 * @property {number} time milliseconds
 */
/**
 * @typedef {object} Step
 * @property {Drawing} [drawing]
 * @property {Selection} [selection]
 * @property {View} [view]
 * @property {DrawingError} [refused]
 * @property {boolean} [cancelled] the gesture ends and leaves nothing behind
 */
/**
 * @typedef {object} Gesture
 * @property {(pointer: Pointer, view: View) => void} move
 * @property {(shift: boolean) => Step} draft
 * @property {(shift: boolean) => Step} end
 */

/** How far a pointer moves, in CSS pixels, before a press counts as a drag. */
const SLOP = 3;
const DOUBLE_PRESS_MS = 400;
/** A press this near beside the picture, in CSS pixels, still means its border. */
const BORDER_REACH = 12;

/** @type {Readonly<Record<BoxPart, string>>} */
const BOX_CURSORS = Object.freeze({
  nw: "nwse-resize",
  se: "nwse-resize",
  ne: "nesw-resize",
  sw: "nesw-resize",
  n: "ns-resize",
  s: "ns-resize",
  e: "ew-resize",
  w: "ew-resize",
  inside: "move",
});

/**
 * @param {Surface} surface
 * @param {Position} position
 * @param {boolean} touch
 * @returns {Hit | null}
 */
function hitOf(surface, position, touch) {
  if (surface.tool !== "points" && surface.tool !== "box") {
    return null;
  }
  return hitTest(promptOf(surface.drawing.targets[surface.target], surface.scope), position, surface.view, {
    pointReach: Math.max(surface.pointSize / 2 + 3, touch ? 18 : 8),
    boxReach: touch ? 14 : 6,
    points: surface.tool === "points",
    boxInside: surface.tool === "box",
  });
}

/**
 * @param {Surface} surface
 * @param {Position} position on the canvas
 * @returns {{ x: number, y: number } | null} on the picture; null when the press lies beside it
 */
function onPicture(surface, position) {
  const at = toPicture(surface.view, position);
  const nearest = ontoPicture(at, surface.picture);
  const beside = Math.hypot(at.x - nearest.x, at.y - nearest.y) * surface.view.scale;
  return beside <= BORDER_REACH ? nearest : null;
}

/**
 * @param {Surface} surface
 * @returns {{ drawing: Drawing, target: number }} with a target to draw for
 */
function withTargetToDraw(surface) {
  if (surface.drawing.targets[surface.target] !== undefined) {
    return { drawing: surface.drawing, target: surface.target };
  }
  return { drawing: addTarget(surface.drawing), target: surface.drawing.targets.length };
}

/**
 * @param {() => Step} step
 * @returns {Step} a refusal of the drawing instead of an exception
 */
function orRefusal(step) {
  try {
    return step();
  } catch (error) {
    if (error instanceof DrawingError) {
      return { refused: error };
    }
    throw error;
  }
}

/**
 * @param {Surface} surface
 * @param {Pointer} start
 * @returns {Gesture}
 */
function panGesture(surface, start) {
  let view = surface.view;
  let last = start;
  return {
    move(pointer) {
      view = keepInSight(pan(view, pointer.x - last.x, pointer.y - last.y), surface.picture, surface.canvas);
      last = pointer;
    },
    draft: () => ({ view }),
    end: () => ({ view }),
  };
}

/**
 * @param {Surface} surface
 * @param {{ x: number, y: number }} at
 * @param {PointLabel} label
 * @returns {Gesture}
 */
function newPointGesture(surface, at, label) {
  const { drawing, target } = withTargetToDraw(surface);
  const index = promptOf(drawing.targets[target], surface.scope).points.length;
  let to = at;
  const step = () =>
    orRefusal(() => ({
      drawing: addPoint(drawing, target, surface.scope, { ...to, label }),
      selection: { kind: "point", index },
    }));
  return {
    move(pointer, view) {
      to = ontoPicture(toPicture(view, pointer), surface.picture);
    },
    draft: step,
    end: step,
  };
}

/**
 * @param {Surface} surface
 * @param {Pointer} start
 * @param {number} index
 * @returns {Gesture}
 */
function movePointGesture(surface, start, index) {
  const { drawing, target, scope } = surface;
  const point = promptOf(drawing.targets[target], scope).points[index] ?? { x: 0, y: 0 };
  const grip = toPicture(surface.view, start);
  /** @type {{ x: number, y: number } | null} */
  let to = null;
  /** @returns {Step} */
  const step = () => {
    const selection = /** @type {Selection} */ ({ kind: "point", index });
    const place = to;
    return place === null
      ? { selection }
      : orRefusal(() => ({ drawing: movePoint(drawing, target, scope, index, place.x, place.y), selection }));
  };
  return {
    move(pointer, view) {
      if (to === null && Math.hypot(pointer.x - start.x, pointer.y - start.y) < SLOP) {
        return;
      }
      const at = toPicture(view, pointer);
      to = ontoPicture({ x: point.x + at.x - grip.x, y: point.y + at.y - grip.y }, surface.picture);
    },
    draft: step,
    end: step,
  };
}

/**
 * @param {Surface} surface
 * @param {Pointer} start
 * @returns {Gesture}
 */
function newBoxGesture(surface, start) {
  const { drawing, target } = withTargetToDraw(surface);
  const from = ontoPicture(toPicture(surface.view, start), surface.picture);
  /** @type {{ x: number, y: number } | null} */
  let to = null;
  /** @param {boolean} square @returns {Step} */
  const step = (square) => {
    if (to === null) {
      return { selection: null };
    }
    let corner = to;
    if (square) {
      const side = Math.min(Math.abs(to.x - from.x), Math.abs(to.y - from.y));
      corner = { x: from.x + Math.sign(to.x - from.x) * side, y: from.y + Math.sign(to.y - from.y) * side };
    }
    const box = uprightBox(from, corner);
    if (box.width < 0.01 || box.height < 0.01) {
      return { selection: null };
    }
    return orRefusal(() => ({ drawing: setBox(drawing, target, surface.scope, box), selection: { kind: "box" } }));
  };
  return {
    move(pointer, view) {
      if (to === null && Math.hypot(pointer.x - start.x, pointer.y - start.y) < SLOP) {
        return;
      }
      to = ontoPicture(toPicture(view, pointer), surface.picture);
    },
    draft: step,
    end: step,
  };
}

/**
 * @param {Surface} surface
 * @param {Pointer} start
 * @param {BoxPart} part
 * @returns {Gesture}
 */
function reshapeBoxGesture(surface, start, part) {
  const { drawing, target, scope, picture } = surface;
  const box = promptOf(drawing.targets[target], scope).box ?? { x: 0, y: 0, width: 0, height: 0 };
  const grip = toPicture(surface.view, start);
  /** @type {{ x: number, y: number } | null} */
  let by = null;
  /** @param {{ x: number, y: number }} shift @returns {Box} */
  const reshaped = (shift) => {
    if (part === "inside") {
      const x = Math.max(0, Math.min(picture.width - box.width, box.x + shift.x));
      const y = Math.max(0, Math.min(picture.height - box.height, box.y + shift.y));
      return { ...box, x, y };
    }
    const from = { x: box.x, y: box.y };
    const to = { x: box.x + box.width, y: box.y + box.height };
    if (part.includes("w")) from.x += shift.x;
    if (part.includes("e")) to.x += shift.x;
    if (part.includes("n")) from.y += shift.y;
    if (part.includes("s")) to.y += shift.y;
    return { ...box, ...uprightBox(ontoPicture(from, picture), ontoPicture(to, picture)) };
  };
  /** @returns {Step} */
  const step = () => {
    const shift = by;
    if (shift === null) {
      return { selection: { kind: "box" } };
    }
    const changed = reshaped(shift);
    if (changed.width < 0.01 || changed.height < 0.01) {
      return { selection: { kind: "box" } };
    }
    return orRefusal(() => ({ drawing: setBox(drawing, target, scope, changed), selection: { kind: "box" } }));
  };
  return {
    move(pointer, view) {
      if (by === null && Math.hypot(pointer.x - start.x, pointer.y - start.y) < SLOP) {
        return;
      }
      const at = toPicture(view, pointer);
      by = { x: at.x - grip.x, y: at.y - grip.y };
    },
    draft: step,
    end: step,
  };
}

/**
 * @param {Surface} surface
 * @param {Pointer} start
 * @param {StrokeKind} kind
 * @returns {Gesture}
 */
function strokeGesture(surface, start, kind) {
  const { drawing, target } = withTargetToDraw(surface);
  const first = toPicture(surface.view, start);
  const width = Math.min(LIMITS.strokeWidthMost, Math.max(LIMITS.strokeWidthLeast, surface.brushWidth));
  /** @type {number[]} */
  let path = [first.x, first.y];
  let tolerance = 0.35 / surface.view.scale;
  /** @param {number[]} painted */
  const stroke = (painted) => addStroke(drawing, target, surface.scope, { kind, width, path: painted });
  return {
    move(pointer, view) {
      const at = toPicture(view, pointer);
      const dx = at.x - (path.at(-2) ?? 0);
      const dy = at.y - (path.at(-1) ?? 0);
      if (Math.hypot(dx, dy) * view.scale < 1 || Math.abs(at.x) > LIMITS.number || Math.abs(at.y) > LIMITS.number) {
        return;
      }
      path.push(at.x, at.y);
      while (path.length > LIMITS.pathNumbers - 2) {
        path = simplify(path, tolerance);
        tolerance *= 2;
      }
    },
    draft: () => orRefusal(() => ({ drawing: stroke(path), selection: null })),
    end: () => orRefusal(() => ({ drawing: stroke(simplify(path, tolerance)), selection: null })),
  };
}

/** The gestures of one editor: one pointer draws, two fingers move and zoom the picture. */
export class Tools {
  /** @type {Map<number, Pointer>} */
  #fingers = new Map();
  /** @type {Gesture | null} */
  #gesture = null;
  #drawing = false;
  #pinching = false;
  #shift = false;
  /** @type {Pointer | null} the one that draws */
  #pointer = null;
  /** @type {{ index: number, time: number, target: number } | null} */
  #lastPointPress = null;

  /** Whether a gesture is under way. */
  get busy() {
    return this.#gesture !== null || this.#pinching;
  }

  /** The pointer whose gesture is under way; two fingers have none. */
  get pointer() {
    return this.#pointer;
  }

  /** Whether fingers, or a palm, are on the picture. */
  get touched() {
    return this.#fingers.size > 0;
  }

  /** @param {number} id of a pointer @returns {boolean} whether it has a part in the gesture under way */
  uses(id) {
    return this.#pointer?.id === id || this.#fingers.has(id);
  }

  /** Whether the gesture under way changes the drawing. */
  get drawing() {
    return this.#drawing;
  }

  /**
   * @param {Surface} surface
   * @param {Pointer} pointer
   * @returns {Step | null} null: the press is not ours
   */
  press(surface, pointer) {
    if (pointer.type === "touch" && this.#pointer !== null && this.#pointer.type !== "touch") {
      // The palm of the hand that holds the pen.
      return {};
    }
    if (pointer.type === "touch") {
      this.#fingers.set(pointer.id, pointer);
      if (this.#fingers.size === 2) {
        this.#forget();
        this.#pinching = true;
        this.#lastPointPress = null;
        return { cancelled: true };
      }
      if (this.#fingers.size > 2) {
        return {};
      }
    }
    if (this.busy) {
      return {};
    }
    this.#shift = pointer.shift;
    const begun = this.#begin(surface, pointer);
    if (begun === null) {
      this.#fingers.delete(pointer.id);
      return null;
    }
    if ("step" in begun) {
      return begun.step;
    }
    this.#gesture = begun.gesture;
    this.#drawing = begun.draws;
    this.#pointer = pointer;
    return this.#gesture.draft(this.#shift);
  }

  /**
   * @param {Surface} surface
   * @param {Pointer} pointer
   * @returns {{ gesture: Gesture, draws: boolean } | { step: Step } | null}
   */
  #begin(surface, pointer) {
    const lastPointPress = this.#lastPointPress;
    this.#lastPointPress = null;
    if (pointer.button === 1) {
      return surface.mayPan ? { gesture: panGesture(surface, pointer), draws: false } : null;
    }
    if (pointer.button !== 0 && pointer.button !== 2 && pointer.button !== 5) {
      return null;
    }
    if (surface.panning || surface.tool === "pan") {
      return { gesture: panGesture(surface, pointer), draws: false };
    }
    const opposite = pointer.button === 2 || pointer.ctrl;
    if (pointer.button === 5 || surface.tool === "eraser") {
      return { gesture: strokeGesture(surface, pointer, "eraser"), draws: true };
    }
    if (surface.tool === "brush") {
      const kind = opposite || pointer.shift ? "background" : surface.brushKind;
      return { gesture: strokeGesture(surface, pointer, kind), draws: true };
    }
    const hit = hitOf(surface, pointer, pointer.type === "touch");
    if (hit?.kind === "point") {
      const again =
        lastPointPress !== null &&
        lastPointPress.index === hit.index &&
        lastPointPress.target === surface.target &&
        pointer.time - lastPointPress.time <= DOUBLE_PRESS_MS;
      if (again) {
        const drawing = deletePoint(surface.drawing, surface.target, surface.scope, hit.index);
        return { step: { drawing, selection: null } };
      }
      this.#lastPointPress = { index: hit.index, time: pointer.time, target: surface.target };
      return { gesture: movePointGesture(surface, pointer, hit.index), draws: true };
    }
    if (hit?.kind === "box") {
      return { gesture: reshapeBoxGesture(surface, pointer, hit.part), draws: true };
    }
    if (surface.tool === "box") {
      return pointer.button === 0 ? { gesture: newBoxGesture(surface, pointer), draws: true } : { step: {} };
    }
    const at = onPicture(surface, pointer);
    if (at === null) {
      return { step: { selection: null } };
    }
    const label = opposite || pointer.alt ? 0 : surface.pointLabel;
    return { gesture: newPointGesture(surface, at, label), draws: true };
  }

  /**
   * @param {Surface} surface
   * @param {Pointer} pointer
   * @returns {Step | null} the view at once while two fingers move it; null: ask `draft` when the next frame is painted
   */
  move(surface, pointer) {
    const before = this.#fingers.get(pointer.id);
    if (before !== undefined) {
      this.#fingers.set(pointer.id, pointer);
    }
    if (this.#pinching) {
      return before === undefined ? null : this.#pinch(surface, before, pointer);
    }
    if (this.#gesture !== null && pointer.id === this.#pointer?.id) {
      this.#shift = pointer.shift;
      this.#gesture.move(pointer, surface.view);
    }
    return null;
  }

  /**
   * @param {Surface} surface
   * @param {Pointer} before
   * @param {Pointer} after
   * @returns {Step | null}
   */
  #pinch(surface, before, after) {
    const other = [...this.#fingers.values()].find((finger) => finger.id !== after.id);
    if (other === undefined || this.#fingers.size !== 2) {
      return null;
    }
    const apart = Math.hypot(before.x - other.x, before.y - other.y);
    const now = Math.hypot(after.x - other.x, after.y - other.y);
    const middle = { x: (after.x + other.x) / 2, y: (after.y + other.y) / 2 };
    const moved = pan(surface.view, (after.x - before.x) / 2, (after.y - before.y) / 2);
    const zoomed = apart < 1 ? moved : zoom(moved, now / apart, middle, surface.picture, surface.canvas);
    return { view: keepInSight(zoomed, surface.picture, surface.canvas) };
  }

  /** @returns {Step} what the gesture under way would leave behind if it ended now */
  draft() {
    return this.#gesture?.draft(this.#shift) ?? {};
  }

  /**
   * @param {Pointer} pointer
   * @returns {Step | null} what the gesture leaves behind; null when none ended
   */
  release(pointer) {
    this.#fingers.delete(pointer.id);
    if (this.#pinching) {
      this.#pinching = this.#fingers.size > 0;
      return null;
    }
    if (this.#gesture === null || pointer.id !== this.#pointer?.id) {
      return null;
    }
    const step = this.#gesture.end(this.#shift);
    this.#forget();
    return step;
  }

  /** Ends the gesture under way as if it had not been started. */
  cancel() {
    this.#forget();
    this.#fingers.clear();
    this.#pinching = false;
    this.#lastPointPress = null;
  }

  #forget() {
    this.#gesture = null;
    this.#drawing = false;
    this.#pointer = null;
  }

  /**
   * @param {Surface} surface
   * @param {Position} position
   * @returns {{ hit: Hit | null, cursor: string }} what a press there would take hold of, and the cursor that says so
   */
  hover(surface, position) {
    if (surface.panning || surface.tool === "pan") {
      return { hit: null, cursor: this.busy ? "grabbing" : "grab" };
    }
    if (surface.tool === "brush" || surface.tool === "eraser") {
      return { hit: null, cursor: "none" };
    }
    const hit = hitOf(surface, position, false);
    if (hit?.kind === "point") {
      return { hit, cursor: this.busy ? "grabbing" : "pointer" };
    }
    return { hit, cursor: hit === null ? "crosshair" : BOX_CURSORS[hit.part] };
  }
}
