import assert from "node:assert/strict";
import { test } from "node:test";

import {
  distanceToSegment,
  fit,
  keepInSight,
  MOST_SCALE,
  ontoPicture,
  pan,
  recentre,
  simplify,
  toCanvas,
  toPicture,
  uprightBox,
  zoom,
} from "../../web/js/editor/geometry.mjs";

const PICTURE = { width: 4000, height: 3000 };
const CANVAS = { width: 400, height: 360 };

/** @param {{x: number, y: number}} got @param {{x: number, y: number}} wanted */
function assertNear(got, wanted, within = 1e-6) {
  assert.ok(
    Math.hypot(got.x - wanted.x, got.y - wanted.y) <= within,
    `${JSON.stringify(got)} ${JSON.stringify(wanted)}`,
  );
}

test("a fitted picture is whole and in the middle", () => {
  for (const picture of [PICTURE, { width: 30, height: 900 }, { width: 7, height: 7 }]) {
    const view = fit(picture, CANVAS, 10);
    const from = toCanvas(view, { x: 0, y: 0 });
    const to = toCanvas(view, { x: picture.width, y: picture.height });
    assert.ok(from.x >= 10 - 1e-6 && from.y >= 10 - 1e-6 && to.x <= 390 + 1e-6 && to.y <= 350 + 1e-6);
    assertNear({ x: from.x + to.x, y: from.y + to.y }, { x: CANVAS.width, y: CANVAS.height });
  }
  assert.equal(fit(PICTURE, CANVAS, 10).scale, 380 / 4000);
  assert.equal(fit({ width: 30, height: 900 }, CANVAS, 10).scale, 340 / 900);
  assert.equal(fit({ width: 1, height: 1 }, CANVAS, 10).scale, MOST_SCALE);
});

test("a canvas without room or a picture without pixels gives a view that still is numbers", () => {
  for (const view of [fit(PICTURE, { width: 0, height: 0 }, 6), fit({ width: 0, height: 0 }, CANVAS)]) {
    assert.ok([view.scale, view.x, view.y].every(Number.isFinite) && view.scale > 0);
  }
});

test("going to the canvas and back ends where it began", () => {
  const view = { scale: 0.37, x: -120.5, y: 44.25 };
  for (const position of [
    { x: 0, y: 0 },
    { x: 3999.5, y: 12.25 },
    { x: -50, y: 1e5 },
  ]) {
    assertNear(toPicture(view, toCanvas(view, position)), position);
  }
});

test("zooming leaves the place under the pointer where it is, in and out, at every limit", () => {
  let view = fit(PICTURE, CANVAS);
  const about = { x: 123, y: 77 };
  const under = toPicture(view, about);
  for (const factor of [1.2, 3, 1000, 0.5, 0.01, 7, 1e-9]) {
    view = zoom(view, factor, about, PICTURE, CANVAS);
    assertNear(toPicture(view, about), under);
  }
});

test("zooming stops where a pixel is large and where the picture is half its fitted size", () => {
  const fitted = fit(PICTURE, CANVAS);
  assert.equal(zoom(fitted, 1e9, { x: 0, y: 0 }, PICTURE, CANVAS).scale, MOST_SCALE);
  assert.equal(zoom(fitted, 1e-9, { x: 0, y: 0 }, PICTURE, CANVAS).scale, fitted.scale / 2);
});

test("however far it is panned, a part of the picture stays in sight", () => {
  const fitted = zoom(fit(PICTURE, CANVAS), 2, { x: 10, y: 10 }, PICTURE, CANVAS);
  for (const [dx, dy] of /** @type {[number, number][]} */ ([
    [1e5, 0],
    [-1e5, -1e5],
    [0, 1e5],
    [5, 5],
  ])) {
    const view = keepInSight(pan(fitted, dx, dy), PICTURE, CANVAS);
    const from = toCanvas(view, { x: 0, y: 0 });
    const to = toCanvas(view, { x: PICTURE.width, y: PICTURE.height });
    // 48 pixels of the canvas, as far as it was panned too far.
    assertNear(
      { x: dx > 10 ? from.x : dx < 0 ? to.x : 0, y: dy > 10 ? from.y : dy < 0 ? to.y : 0 },
      { x: dx > 10 ? 352 : dx < 0 ? 48 : 0, y: dy > 10 ? 312 : dy < 0 ? 48 : 0 },
    );
  }
  const near = pan(fitted, 3, -4);
  assert.deepEqual(keepInSight(near, PICTURE, CANVAS), near);
});

test("when the canvas grows, the middle of the view stays the middle", () => {
  const view = { scale: 2, x: -300, y: -100 };
  const after = { width: 800, height: 500 };
  const middle = toPicture(view, { x: 200, y: 180 });
  assertNear(toPicture(recentre(view, CANVAS, after), { x: 400, y: 250 }), middle);
});

test("a box is upright whichever corner it was drawn from", () => {
  const box = { x: 2, y: 3, width: 8, height: 4 };
  assert.deepEqual(uprightBox({ x: 2, y: 3 }, { x: 10, y: 7 }), box);
  assert.deepEqual(uprightBox({ x: 10, y: 7 }, { x: 2, y: 3 }), box);
  assert.deepEqual(uprightBox({ x: 10, y: 3 }, { x: 2, y: 7 }), box);
});

test("a place beside the picture becomes its nearest border, one on it stays", () => {
  assert.deepEqual(ontoPicture({ x: -5, y: 3100 }, PICTURE), { x: 0, y: 3000 });
  assert.deepEqual(ontoPicture({ x: 4000, y: 0 }, PICTURE), { x: 4000, y: 0 });
});

test("the distance to a segment is that to its nearest place, also beyond its ends", () => {
  const from = { x: 0, y: 0 };
  const to = { x: 10, y: 0 };
  assert.equal(distanceToSegment({ x: 5, y: 3 }, from, to), 3);
  assert.equal(distanceToSegment({ x: 13, y: 4 }, from, to), 5);
  assert.equal(distanceToSegment({ x: 3, y: 4 }, from, from), 5);
});

test("a straight stroke needs two corners, a corner that matters stays", () => {
  const straight = Array.from({ length: 100 }, (_, i) => [i, i * 0.5]).flat();
  assert.deepEqual(simplify(straight, 0.1), [0, 0, 99, 49.5]);
  assert.deepEqual(simplify([0, 0, 5, 0, 5, 5], 0.1), [0, 0, 5, 0, 5, 5]);
  assert.deepEqual(simplify([4, 4], 1), [4, 4]);
});

test("a simplified stroke is nowhere farther from the drawn one than the tolerance", () => {
  const path = Array.from({ length: 400 }, (_, i) => [i, 40 * Math.sin(i / 15) + 3 * Math.cos(i / 2)]).flat();
  const simple = simplify(path, 0.75);
  assert.ok(simple.length < path.length / 2);
  for (let i = 0; i < path.length; i += 2) {
    const at = { x: path[i] ?? 0, y: path[i + 1] ?? 0 };
    let nearest = Infinity;
    for (let j = 0; j + 3 < simple.length; j += 2) {
      const from = { x: simple[j] ?? 0, y: simple[j + 1] ?? 0 };
      const to = { x: simple[j + 2] ?? 0, y: simple[j + 3] ?? 0 };
      nearest = Math.min(nearest, distanceToSegment(at, from, to));
    }
    assert.ok(nearest <= 0.75 + 1e-9);
  }
});

test("a scribble that keeps every corner is simplified in pieces, and none of its corners is lost", () => {
  const zigzag = Array.from({ length: 10_000 }, (_, i) => [i, i % 2 === 0 ? 0 : i + 2]).flat();
  assert.deepEqual(simplify(zigzag, 0.5), zigzag);
});

test("however long a straight stroke is, few of its corners are left", () => {
  const straight = Array.from({ length: 10_000 }, (_, i) => [i, 3]).flat();
  assert.ok(simplify(straight, 0.5).length < 100);
});
