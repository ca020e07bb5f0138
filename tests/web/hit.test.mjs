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

for (const [part, x, y] of /** @type {[string, number, number][]} */ ([
  ["nw", 20, 30],
  ["n", 70, 30],
  ["ne", 120, 30],
  ["e", 120, 60],
  ["se", 120, 90],
  ["s", 70, 90],
  ["sw", 20, 90],
  ["w", 20, 60],
  ["inside", 80, 70],
])) {
  test(`the box is taken hold of at ${part}`, () => {
    assert.equal(boxPartAt(PROMPT, onCanvas(x, y), VIEW, 6), part);
  });
}

test("beyond the reach of its border the box is not hit", () => {
  assert.equal(boxPartAt(PROMPT, { x: onCanvas(20, 60).x - 7, y: 100 }, VIEW, 6), null);
  assert.equal(boxPartAt(PROMPT, { x: onCanvas(20, 60).x - 5, y: 100 }, VIEW, 6), "w");
});

test("of a tiny box every corner can still be taken hold of", () => {
  const tiny = { ...PROMPT, box: { x: 50, y: 50, width: 4, height: 4 } };
  assert.equal(boxPartAt(tiny, onCanvas(50, 50), VIEW, 6), "nw");
  assert.equal(boxPartAt(tiny, onCanvas(54, 50), VIEW, 6), "ne");
  assert.equal(boxPartAt(tiny, onCanvas(54, 54), VIEW, 6), "se");
  assert.equal(boxPartAt(tiny, onCanvas(50, 54), VIEW, 6), "sw");
});

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
