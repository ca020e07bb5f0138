/** What lies under the pointer: a point, a part of the box, or nothing. Distances are CSS pixels of the canvas. */

import { toCanvas } from "./geometry.mjs";

/** @typedef {import("./drawing.mjs").Prompt} Prompt */
/** @typedef {import("./geometry.mjs").View} View */
/** @typedef {import("./geometry.mjs").Position} Position */
/** @typedef {"nw" | "n" | "ne" | "e" | "se" | "s" | "sw" | "w" | "inside"} BoxPart */
/** @typedef {{ kind: "point", index: number } | { kind: "box", part: BoxPart }} Hit */

/**
 * @param {Prompt} prompt
 * @param {Position} position on the canvas
 * @param {View} view
 * @param {number} reach how near counts as on it
 * @returns {number} the nearest point within reach, the topmost of equals; -1 for none
 */
export function pointAt(prompt, position, view, reach) {
  let nearest = -1;
  let least = reach;
  prompt.points.forEach((point, index) => {
    const at = toCanvas(view, point);
    const distance = Math.hypot(at.x - position.x, at.y - position.y);
    if (distance <= least) {
      least = distance;
      nearest = index;
    }
  });
  return nearest;
}

/**
 * @param {Prompt} prompt
 * @param {Position} position on the canvas
 * @param {View} view
 * @param {number} reach
 * @returns {BoxPart | null} corners before edges before the inside
 */
export function boxPartAt(prompt, position, view, reach) {
  if (prompt.box === null) {
    return null;
  }
  const { x, y, width, height } = prompt.box;
  const from = toCanvas(view, { x, y });
  const to = toCanvas(view, { x: x + width, y: y + height });
  const { x: px, y: py } = position;
  if (px < from.x - reach || px > to.x + reach || py < from.y - reach || py > to.y + reach) {
    return null;
  }
  // Each half of a small box answers to its own side, so that every handle can be reached.
  const left = Math.abs(px - from.x) <= Math.min(reach, Math.max(2, (to.x - from.x) / 3)) || px < from.x;
  const right = Math.abs(px - to.x) <= Math.min(reach, Math.max(2, (to.x - from.x) / 3)) || px > to.x;
  const top = Math.abs(py - from.y) <= Math.min(reach, Math.max(2, (to.y - from.y) / 3)) || py < from.y;
  const bottom = Math.abs(py - to.y) <= Math.min(reach, Math.max(2, (to.y - from.y) / 3)) || py > to.y;
  const vertical = top ? "n" : bottom ? "s" : "";
  const horizontal = left ? "w" : right ? "e" : "";
  const part = vertical + horizontal;
  return part === "" ? "inside" : /** @type {BoxPart} */ (part);
}

/**
 * @param {Prompt} prompt
 * @param {Position} position on the canvas
 * @param {View} view
 * @param {{ pointReach: number, boxReach: number, points?: boolean, boxInside?: boolean }} options
 *     `points`: whether points count; `boxInside`: whether the inside of the box counts, not only its border
 * @returns {Hit | null} points lie above the box
 */
export function hitTest(prompt, position, view, { pointReach, boxReach, points = true, boxInside = false }) {
  const index = points ? pointAt(prompt, position, view, pointReach) : -1;
  if (index >= 0) {
    return { kind: "point", index };
  }
  const part = boxPartAt(prompt, position, view, boxReach);
  if (part === null || (part === "inside" && !boxInside)) {
    return null;
  }
  return { kind: "box", part };
}
