import assert from "node:assert/strict";
import { test } from "node:test";

import { addPoint, addTarget, emptyDrawing, LIMITS, parse, promptOf, setBox } from "../../web/js/editor/drawing.mjs";
import { toPicture } from "../../web/js/editor/geometry.mjs";
import { Tools } from "../../web/js/editor/tools.mjs";

/** @typedef {import("../../web/js/editor/tools.mjs").Surface} Surface */
/** @typedef {import("../../web/js/editor/tools.mjs").Pointer} Pointer */

/** @param {Partial<Surface>} [change] @returns {Surface} a picture of 200 x 100 shown twice as large */
function surface(change = {}) {
  return {
    drawing: emptyDrawing(200, 100),
    target: -1,
    scope: "all",
    view: { scale: 2, x: 0, y: 0 },
    picture: { width: 200, height: 100 },
    canvas: { width: 400, height: 200 },
    tool: "points",
    pointLabel: 1,
    brushKind: "foreground",
    brushWidth: 10,
    pointSize: 12,
    panning: false,
    mayPan: true,
    ...change,
  };
}

/** @param {number} x @param {number} y @param {Partial<Pointer>} [change] @returns {Pointer} */
function pointer(x, y, change = {}) {
  return { id: 1, x, y, button: 0, shift: false, alt: false, ctrl: false, type: "mouse", time: 0, ...change };
}

/**
 * @param {Surface} on
 * @param {[number, number][]} places on the canvas
 * @param {Partial<Pointer>} [change]
 */
function drag(on, places, change = {}, tools = new Tools()) {
  const [[x, y], ...way] = /** @type {[[number, number], ...[number, number][]]} */ (places);
  const pressed = tools.press(on, pointer(x, y, change));
  let last = pointer(x, y, change);
  for (const [toX, toY] of way) {
    last = pointer(toX, toY, change);
    tools.move(on, last);
  }
  return { pressed, step: tools.release(last), tools };
}

/** @param {import("../../web/js/editor/tools.mjs").Step | null | undefined} step */
const promptIn = (step) => promptOf(step?.drawing?.targets[0], "all");

const withPoint = () => addPoint(addTarget(emptyDrawing(200, 100)), 0, "all", { x: 50, y: 50, label: 1 });
const withBox = () => setBox(addTarget(emptyDrawing(200, 100)), 0, "all", { x: 20, y: 20, width: 60, height: 40 });

test("a click marks the subject where it was made, and makes the first target", () => {
  const { step } = drag(surface(), [[100, 60]]);
  assert.deepEqual(promptIn(step).points, [{ x: 50, y: 30, label: 1 }]);
  assert.deepEqual(step?.selection, { kind: "point", index: 0 });
});

for (const [how, change] of /** @type {[string, Partial<Pointer>][]} */ ([
  ["the right button", { button: 2 }],
  ["Alt", { alt: true }],
  ["Ctrl, as on a Mac", { ctrl: true }],
])) {
  test(`${how} marks what is beside the subject`, () => {
    assert.equal(promptIn(drag(surface(), [[100, 60]], change).step).points[0]?.label, 0);
  });
}

test("where there is no right button, the choice of the toolbar says what a press means", () => {
  assert.equal(promptIn(drag(surface({ pointLabel: 0 }), [[9, 9]], { type: "touch" }).step).points[0]?.label, 0);
});

test("a press just beside the picture means its border, one farther away means nothing", () => {
  const moved = surface({ view: { scale: 2, x: 0, y: 50 } });
  assert.deepEqual(promptIn(drag(moved, [[100, 42]]).step).points, [{ x: 50, y: 0, label: 1 }]);
  const { pressed, step } = drag(moved, [[100, 10]]);
  assert.equal(pressed?.drawing, undefined);
  assert.equal(step, null);
});

test("a point that is pressed is selected and not moved; dragged, it moves by as much", () => {
  const on = surface({ drawing: withPoint(), target: 0 });
  const { step: clicked } = drag(on, [[102, 101]]);
  assert.deepEqual(clicked, { selection: { kind: "point", index: 0 } });
  const { step: dragged } = drag(on, [
    [102, 101],
    [122, 121],
  ]);
  assert.deepEqual(promptIn(dragged).points, [{ x: 60, y: 60, label: 1 }]);
});

test("a dragged point stays on the picture", () => {
  const { step } = drag(surface({ drawing: withPoint(), target: 0 }), [
    [100, 100],
    [900, -300],
  ]);
  assert.deepEqual(promptIn(step).points, [{ x: 200, y: 0, label: 1 }]);
});

test("a double click on a point takes it away", () => {
  const on = surface({ drawing: withPoint(), target: 0 });
  const { tools } = drag(on, [[100, 100]], { time: 1000 });
  const second = tools.press(on, pointer(100, 100, { time: 1200 }));
  assert.deepEqual(promptIn(second).points, []);
  assert.equal(tools.busy, false);
});

test("two slow clicks on a point, or a double click where none was, take nothing away", () => {
  const on = surface({ drawing: withPoint(), target: 0 });
  const { tools } = drag(on, [[100, 100]], { time: 1000 });
  assert.equal(tools.press(on, pointer(100, 100, { time: 1900 }))?.drawing, undefined);

  const fresh = drag(surface(), [[40, 40]], { time: 0 });
  const after = surface({ drawing: fresh.step?.drawing ?? emptyDrawing(), target: 0 });
  const again = fresh.tools.press(after, pointer(40, 40, { time: 100 }));
  assert.equal(again?.drawing, undefined);
});

test("a box is drawn from any corner and ends at the border of the picture", () => {
  const { step } = drag(surface({ tool: "box" }), [
    [300, 180],
    [200, 100],
    [-50, -50],
  ]);
  assert.deepEqual(promptIn(step).box, { x: 0, y: 0, width: 150, height: 90 });
  assert.deepEqual(step?.selection, { kind: "box" });
});

test("a click with the box tool draws no box and leaves the one there is", () => {
  assert.equal(
    drag(surface({ tool: "box" }), [
      [20, 20],
      [21, 21],
    ]).step?.drawing,
    undefined,
  );
});

test("a box without height is none", () => {
  assert.equal(
    drag(surface({ tool: "box" }), [
      [20, 20],
      [80, 20],
    ]).step?.drawing,
    undefined,
  );
});

for (const [x, y, left, top] of [
  [300, 140, 100, 50],
  [100, 140, 80, 50],
  [300, 60, 100, 30],
  [160, 10, 80, 30],
]) {
  test(`with Shift the box is a square, drawn to ${x}, ${y}, too`, () => {
    const { step } = drag(
      surface({ tool: "box" }),
      [
        [200, 100],
        [x, y],
      ],
      { shift: true },
    );
    assert.deepEqual(promptIn(step).box, { x: left, y: top, width: 20, height: 20 });
  });
}

for (const [part, from, box] of /** @type {[string, [number, number], number[]][]} */ ([
  ["nw", [40, 60], [25, 40, 55, 30]],
  ["n", [100, 60], [20, 40, 60, 30]],
  ["ne", [160, 60], [20, 40, 65, 30]],
  ["e", [160, 100], [20, 30, 65, 40]],
  ["se", [160, 140], [20, 30, 65, 50]],
  ["s", [100, 140], [20, 30, 60, 50]],
  ["sw", [40, 140], [25, 30, 55, 50]],
  ["w", [40, 100], [25, 30, 55, 40]],
  ["inside", [100, 100], [25, 40, 60, 40]],
])) {
  test(`a box is reshaped, or moved, by what is dragged of it: ${part}`, () => {
    const drawing = setBox(withBox(), 0, "all", { x: 20, y: 30, width: 60, height: 40 });
    const { step } = drag(surface({ drawing, target: 0, tool: "box" }), [from, [from[0] + 10, from[1] + 20]]);
    const [x, y, width, height] = box;
    assert.deepEqual(promptIn(step).box, { x, y, width, height });
  });
}

test("a box moved against the border keeps its size, one pulled inside out stays upright", () => {
  const on = surface({ drawing: withBox(), target: 0, tool: "box" });
  assert.deepEqual(
    promptIn(
      drag(on, [
        [100, 80],
        [900, 900],
      ]).step,
    ).box,
    { x: 140, y: 60, width: 60, height: 40 },
  );
  assert.deepEqual(
    promptIn(
      drag(on, [
        [40, 80],
        [200, 80],
      ]).step,
    ).box,
    { x: 80, y: 20, width: 20, height: 40 },
  );
});

test("with the points tool the inside of a box takes points and its border is taken hold of", () => {
  const on = surface({ drawing: withBox(), target: 0 });
  assert.equal(promptIn(drag(on, [[100, 80]]).step).points.length, 1);
  assert.deepEqual(drag(on, [[40, 80]]).step, { selection: { kind: "box" } });
});

test("a stroke follows the pointer in pixels of the picture, without corners that say nothing", () => {
  const { step } = drag(surface({ tool: "brush" }), [
    [20, 20],
    [40, 20],
    [60, 20],
    [60, 80],
  ]);
  assert.deepEqual(promptIn(step).strokes, [{ kind: "foreground", width: 10, path: [10, 10, 30, 10, 30, 40] }]);
});

test("a dab of the brush is a stroke of one corner", () => {
  assert.deepEqual(promptIn(drag(surface({ tool: "brush" }), [[20, 20]]).step).strokes[0]?.path, [10, 10]);
});

for (const [how, change, brush, kind] of /** @type {[string, Partial<Pointer>, Partial<Surface>, string][]} */ ([
  ["Shift", { shift: true }, {}, "background"],
  ["the right button", { button: 2 }, {}, "background"],
  ["the brush for the unknown", {}, { brushKind: "unknown" }, "unknown"],
  ["the eraser", {}, { tool: "eraser" }, "eraser"],
  ["the eraser end of a pen", { button: 5, type: "pen" }, {}, "eraser"],
])) {
  test(`${how} paints a stroke of the kind ${kind}`, () => {
    const { step } = drag(
      surface({ tool: "brush", ...brush }),
      [
        [20, 20],
        [80, 80],
      ],
      change,
    );
    assert.equal(promptIn(step).strokes[0]?.kind, kind);
  });
}

test("a scribble without end stays within the bound of a stroke", () => {
  const tools = new Tools();
  const on = surface({ tool: "brush", view: { scale: 40, x: 0, y: 0 } });
  tools.press(on, pointer(0, 0));
  for (let i = 0; i < LIMITS.pathNumbers; i += 1) {
    tools.move(on, pointer(i * 7, i % 2 === 0 ? 0 : 4000));
  }
  const step = tools.release(pointer(0, 0));
  assert.equal(step?.refused, undefined);
  assert.ok((promptIn(step).strokes[0]?.path.length ?? Infinity) <= LIMITS.pathNumbers);
});

test("one point too many is refused with its sentence, and nothing is drawn", () => {
  const points = Array.from({ length: LIMITS.points }, () => ({ x: 0, y: 0, label: 1 }));
  const drawing = parse(
    JSON.stringify({ version: 1, width: 200, height: 100, targets: [{ prompts: { all: { points } } }] }),
  );
  const { step } = drag(surface({ drawing, target: 0 }), [[300, 150]]);
  assert.equal(step?.drawing, undefined);
  assert.equal(step?.refused?.key, "tooManyPoints");
});

test("moving only collects: what is drawn so far is asked for once a frame", () => {
  const tools = new Tools();
  const on = surface({ tool: "box" });
  tools.press(on, pointer(20, 20));
  assert.equal(tools.move(on, pointer(60, 60)), null);
  assert.equal(tools.move(on, pointer(80, 80)), null);
  assert.deepEqual(promptIn(tools.draft()).box, { x: 10, y: 10, width: 30, height: 30 });
  assert.equal(tools.drawing, true);
});

test("two fingers zoom and move the picture, and take back what the first one began to draw", () => {
  const tools = new Tools();
  const on = surface();
  tools.press(on, pointer(100, 100, { id: 1, type: "touch" }));
  assert.deepEqual(tools.press(on, pointer(200, 100, { id: 2, type: "touch" })), { cancelled: true });
  const under = toPicture(on.view, { x: 100, y: 100 });
  const step = tools.move(on, pointer(300, 100, { id: 2, type: "touch" }));
  assert.equal(step?.view?.scale, 4);
  const stayed = toPicture(/** @type {any} */ (step?.view), { x: 100, y: 100 });
  assert.ok(Math.hypot(stayed.x - under.x, stayed.y - under.y) < 1e-9);
  assert.equal(tools.release(pointer(300, 100, { id: 2, type: "touch" })), null);
  assert.equal(tools.busy, true);
  assert.equal(tools.release(pointer(100, 100, { id: 1, type: "touch" })), null);
  assert.equal(tools.busy, false);
});

test("the finger left over after a pinch draws nothing", () => {
  const tools = new Tools();
  const on = surface({ tool: "brush" });
  tools.press(on, pointer(100, 100, { id: 1, type: "touch" }));
  tools.press(on, pointer(200, 100, { id: 2, type: "touch" }));
  tools.release(pointer(200, 100, { id: 2, type: "touch" }));
  assert.equal(tools.move(on, pointer(150, 150, { id: 1, type: "touch" })), null);
  assert.deepEqual(tools.draft(), {});
});

test("another pointer does not disturb the one that draws", () => {
  const tools = new Tools();
  const on = surface({ tool: "box" });
  tools.press(on, pointer(20, 20, { id: 1 }));
  assert.deepEqual(tools.press(on, pointer(300, 150, { id: 9, type: "pen" })), {});
  tools.move(on, pointer(90, 10, { id: 9, type: "pen" }));
  tools.move(on, pointer(60, 60, { id: 1 }));
  assert.equal(tools.release(pointer(90, 10, { id: 9, type: "pen" })), null);
  assert.deepEqual(promptIn(tools.release(pointer(60, 60, { id: 1 }))).box, { x: 10, y: 10, width: 20, height: 20 });
});

test("the palm of the hand that holds the pen neither draws nor zooms", () => {
  const tools = new Tools();
  const on = surface({ tool: "brush" });
  tools.press(on, pointer(20, 20, { id: 1, type: "pen" }));
  assert.deepEqual(tools.press(on, pointer(300, 150, { id: 8, type: "touch" })), {});
  assert.deepEqual(tools.press(on, pointer(350, 150, { id: 9, type: "touch" })), {});
  assert.equal(tools.move(on, pointer(360, 150, { id: 9, type: "touch" })), null);
  tools.move(on, pointer(60, 20, { id: 1, type: "pen" }));
  const step = tools.release(pointer(60, 20, { id: 1, type: "pen" }));
  assert.deepEqual(promptIn(step).strokes[0]?.path, [10, 10, 30, 10]);
  tools.release(pointer(300, 150, { id: 8, type: "touch" }));
  tools.release(pointer(360, 150, { id: 9, type: "touch" }));
  assert.equal(tools.busy, false);
});

test("a palm that the system takes back while the pen draws has no part in what it draws, a finger has in its own", () => {
  const tools = new Tools();
  const on = surface({ tool: "brush" });
  tools.press(on, pointer(20, 20, { id: 1, type: "pen" }));
  tools.press(on, pointer(300, 150, { id: 8, type: "touch" }));
  assert.deepEqual([tools.uses(1), tools.uses(8), tools.touched], [true, false, false]);
  tools.cancel();
  tools.press(on, pointer(300, 150, { id: 8, type: "touch" }));
  assert.deepEqual([tools.uses(8), tools.touched], [true, true]);
  tools.cancel();
  assert.deepEqual([tools.uses(8), tools.touched], [false, false]);
});

test("the hand, the space bar and the middle button move the picture and draw nothing", () => {
  for (const [on, button] of /** @type {[Surface, number][]} */ ([
    [surface({ tool: "pan" }), 0],
    [surface({ tool: "brush", panning: true }), 0],
    [surface({ tool: "brush" }), 1],
  ])) {
    const { step } = drag(
      on,
      [
        [100, 100],
        [130, 90],
      ],
      { button },
    );
    assert.deepEqual(step, { view: { scale: 2, x: 30, y: -10 } });
  }
});

test("the middle button belongs to the graph while the picture has nowhere to move", () => {
  const tools = new Tools();
  assert.equal(tools.press(surface({ mayPan: false }), pointer(10, 10, { button: 1 })), null);
  assert.equal(tools.busy, false);
});

test("a gesture that is cancelled leaves nothing behind", () => {
  const tools = new Tools();
  const on = surface({ tool: "brush" });
  tools.press(on, pointer(20, 20));
  tools.move(on, pointer(60, 60));
  tools.cancel();
  assert.equal(tools.busy, false);
  assert.deepEqual(tools.draft(), {});
  assert.equal(tools.release(pointer(60, 60)), null);
});

test("the cursor says what a press would do", () => {
  const tools = new Tools();
  const on = surface({ drawing: setBox(withPoint(), 0, "all", { x: 20, y: 20, width: 60, height: 60 }), target: 0 });
  assert.equal(tools.hover(on, { x: 100, y: 100 }).cursor, "pointer");
  assert.equal(tools.hover(on, { x: 40, y: 40 }).cursor, "nwse-resize");
  assert.equal(tools.hover(on, { x: 300, y: 50 }).cursor, "crosshair");
  assert.equal(tools.hover({ ...on, tool: "box" }, { x: 70, y: 70 }).cursor, "move");
  assert.equal(tools.hover({ ...on, tool: "brush" }, { x: 100, y: 100 }).cursor, "none");
  assert.equal(tools.hover({ ...on, panning: true }, { x: 100, y: 100 }).cursor, "grab");
});
