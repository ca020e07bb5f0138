import assert from "node:assert/strict";
import { test } from "node:test";

import { boxPartAt, hitTest, pointAt } from "../../web/js/editor/hit.mjs";

const VIEW = { scale: 2, x: 10, y: 20 };
/** @type {import("../../web/js/editor/drawing.mjs").Prompt} */
const PROMPT = {
  points: [
    { x: 50, y: 50, label: 1 },
    { x: 53, y: 50, label: 0 },
  ],
  box: { x: 20, y: 30, width: 100, height: 60 },
  strokes: [],
};
/** @param {number} x @param {number} y */
const onCanvas = (x, y) => ({ x: x * 2 + 10, y: y * 2 + 20 });

test("the nearest point within reach is hit, whatever the zoom", () => {
  assert.equal(pointAt(PROMPT, onCanvas(50.5, 50), VIEW, 8), 0);
  assert.equal(pointAt(PROMPT, onCanvas(52.6, 50), VIEW, 8), 1);
  assert.equal(pointAt(PROMPT, onCanvas(50, 55), VIEW, 8), -1);
  assert.equal(pointAt(PROMPT, { x: 50, y: 54 }, { scale: 1, x: 0, y: 0 }, 8), 0);
});

test("of two points at one place the later one is hit, which is painted above", () => {
  const same = { ...PROMPT, points: [PROMPT.points[0], PROMPT.points[0]] };
  assert.equal(pointAt(/** @type {any} */ (same), onCanvas(50, 50), VIEW, 8), 1);
});

/**
 * How far from its left or upper end the near side, the middle and the far side of a box are taken hold of, first and
 * last pixel of the canvas, by the box's length there. Sides reach 8 pixels, but inwards no more than a third, and 2.
 *
 * @type {Record<number, [number, number][]>}
 */
const ZONES = {
  60: [
    [-8, 8],
    [9, 51],
    [52, 68],
  ],
  15: [
    [-8, 5],
    [6, 9],
    [10, 23],
  ],
  3: [
    [-8, 2],
    [1, 0],
    [3, 11],
  ],
};

for (const [width, height] of /** @type {[number, number][]} */ ([
  [60, 15],
  [15, 60],
  [3, 60],
  [60, 3],
])) {
  test(`a box of ${width} x ${height} pixels on the canvas is taken hold of at all its sides and corners`, () => {
    const prompt = { ...PROMPT, box: { x: 20, y: 30, width: width / 2, height: height / 2 } };
    /** @param {number} at @param {number} length @param {string[]} names */
    const zone = (at, length, names) => names[(ZONES[length] ?? []).findIndex(([a, b]) => a <= at && at <= b)];
    for (let x = -10; x <= 72; x += 1) {
      for (let y = -10; y <= 72; y += 1) {
        const [across, down] = [zone(x, width, ["w", "", "e"]), zone(y, height, ["n", "", "s"])];
        const wanted = across === undefined || down === undefined ? null : down + across || "inside";
        assert.equal(boxPartAt(prompt, { x: 50 + x, y: 80 + y }, VIEW, 8), wanted, `${x}, ${y}`);
      }
    }
  });
}

test("points lie above the box, and the inside of the box counts only when asked for", () => {
  const reach = { pointReach: 8, boxReach: 6 };
  assert.deepEqual(hitTest(PROMPT, onCanvas(50, 50), VIEW, reach), { kind: "point", index: 0 });
  assert.equal(hitTest(PROMPT, onCanvas(90, 70), VIEW, reach), null);
  assert.deepEqual(hitTest(PROMPT, onCanvas(90, 70), VIEW, { ...reach, boxInside: true }), {
    kind: "box",
    part: "inside",
  });
  assert.deepEqual(hitTest(PROMPT, onCanvas(50, 50), VIEW, { ...reach, points: false, boxInside: true }), {
    kind: "box",
    part: "inside",
  });
});

test("where nothing is drawn nothing is hit", () => {
  const empty = { points: [], box: null, strokes: [] };
  assert.equal(hitTest(empty, { x: 0, y: 0 }, VIEW, { pointReach: 8, boxReach: 6, boxInside: true }), null);
});
