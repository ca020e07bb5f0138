import assert from "node:assert/strict";
import { test } from "node:test";

import {
  addPoint,
  addStroke,
  addTarget,
  changedTargets,
  clearFrame,
  clearPrompt,
  deleteBox,
  deletePoint,
  deleteTarget,
  DrawingError,
  EMPTY_PROMPT,
  emptyDrawing,
  fits,
  hasOwnPrompt,
  hideTarget,
  identityOf,
  isEmpty,
  LIMITS,
  movePoint,
  parse,
  promptOf,
  recolour,
  renameTarget,
  scaleTo,
  serialise,
  setBox,
  TARGET_COLORS,
} from "../../web/js/editor/drawing.mjs";

const CAT = {
  version: 1,
  width: 512,
  height: 384,
  targets: [
    {
      name: "Cat",
      color: "#ff8800",
      hidden: false,
      prompts: {
        all: {
          points: [{ x: 12.5, y: 30, label: 1 }],
          box: { x: 5, y: 6, width: 100, height: 80 },
          strokes: [{ kind: "foreground", width: 24, path: [1, 2, 3.25, 4] }],
        },
        3: { points: [{ x: 1, y: 2, label: 0 }], box: null, strokes: [] },
      },
    },
  ],
};

/** @param {string} key */
const refusal = (key) => (/** @type {unknown} */ error) => error instanceof DrawingError && error.key === key;

/** @param {object} change of the one target of CAT */
const catWith = (change) => JSON.stringify({ ...CAT, targets: [{ ...CAT.targets[0], ...change }] });

const oneTarget = () => addTarget(emptyDrawing(100, 80));

test("an empty text is a drawing with nothing on it, and is written as an empty text", () => {
  assert.deepEqual(parse(""), { version: 1, width: 0, height: 0, targets: [] });
  assert.equal(serialise(parse("")), "");
  assert.equal(serialise(parse('{"version":1,"targets":[]}')), "");
});

test("a drawing that is read and written stays the same text", () => {
  const text = JSON.stringify(CAT);
  assert.equal(serialise(parse(text)), serialise(parse(serialise(parse(text)))));
  assert.deepEqual(JSON.parse(serialise(parse(text))), CAT);
});

test("coordinates keep two decimals, and minus zero is zero", () => {
  const drawing = addPoint(oneTarget(), 0, "all", { x: 1.23456, y: -0.001, label: 1 });
  assert.deepEqual(promptOf(drawing.targets[0], 0).points, [{ x: 1.23, y: 0, label: 1 }]);
});

test("what this version does not know survives at every level", () => {
  const text = JSON.stringify({
    ...CAT,
    note: "kept",
    targets: [
      {
        ...CAT.targets[0],
        opacity: 0.5,
        prompts: { all: { points: [{ x: 1, y: 2, label: 1, by: "pen" }], hint: [1] } },
      },
    ],
  });
  const written = JSON.parse(serialise(addPoint(parse(text), 0, "all", { x: 5, y: 5, label: 0 })));
  assert.equal(written.note, "kept");
  assert.equal(written.targets[0].opacity, 0.5);
  assert.equal(written.targets[0].prompts.all.points[0].by, "pen");
  assert.deepEqual(written.targets[0].prompts.all.hint, [1]);
});

test("a key called __proto__ is data and changes no object", () => {
  const drawing = parse('{"version":1,"__proto__":{"polluted":true},"targets":[]}');
  assert.equal(/** @type {any} */ ({}).polluted, undefined);
  assert.equal(/** @type {any} */ (drawing).polluted, undefined);
});

test("a drawing is frozen down to its points", () => {
  const drawing = parse(JSON.stringify(CAT));
  const prompt = promptOf(drawing.targets[0], 0);
  for (const part of [
    drawing,
    drawing.targets,
    drawing.targets[0],
    prompt,
    prompt.points,
    prompt.points[0],
    prompt.box,
  ]) {
    assert.ok(Object.isFrozen(part));
  }
  assert.ok(Object.isFrozen(prompt.strokes[0]?.path));
});

test("a drawing of a newer version is refused by its number", () => {
  assert.throws(() => parse('{"version":2,"targets":[]}'), refusal("valueFromNewerVersion"));
});

for (const [what, text] of /** @type {[string, string][]} */ ([
  ["text that is no JSON", "{"],
  ["a list", "[]"],
  ["a number", "3"],
  ["targets that are no list", '{"targets":{}}'],
  ["a target that is no object", '{"targets":[1]}'],
  ["a name that is no text", catWith({ name: 5 })],
  ["a label other than 0 and 1", catWith({ prompts: { all: { points: [{ x: 1, y: 1, label: 2 }] } } })],
  ["a frame that is no number", catWith({ prompts: { first: {} } })],
  ["a negative frame", catWith({ prompts: { "-1": {} } })],
  ["a box with a negative side", catWith({ prompts: { all: { box: { x: 1, y: 1, width: -1, height: 1 } } } })],
  [
    "an unknown kind of stroke",
    catWith({ prompts: { all: { strokes: [{ kind: "spray", width: 5, path: [1, 2] }] } } }),
  ],
  [
    "a path with half a corner",
    catWith({ prompts: { all: { strokes: [{ kind: "eraser", width: 5, path: [1, 2, 3] }] } } }),
  ],
  ["a path without a corner", catWith({ prompts: { all: { strokes: [{ kind: "eraser", width: 5, path: [] }] } } })],
  ["nesting without end", `{"targets":[],"deep":${"[".repeat(100_000)}`],
])) {
  test(`${what} is refused as not readable`, () => {
    assert.throws(() => parse(text), refusal("valueNotReadable"));
  });
}

test("brackets inside a text are no nesting", () => {
  const name = '[[[[[[[[[[{{{\\"';
  assert.equal(parse(catWith({ name })).targets[0]?.name, name);
});

for (const x of [1e7, -1e7, null, "5", undefined]) {
  test(`a coordinate of ${x} is refused`, () => {
    assert.throws(
      () => parse(catWith({ prompts: { all: { points: [{ x, y: 1 }] } } })),
      refusal("coordinateOutOfBounds"),
    );
  });
}

test("a coordinate that is no number is refused by every edit that takes one", () => {
  const drawing = addPoint(oneTarget(), 0, "all", { x: 1, y: 1, label: 1 });
  const refused = refusal("coordinateOutOfBounds");
  assert.throws(() => addPoint(drawing, 0, "all", { x: NaN, y: 1, label: 1 }), refused);
  assert.throws(() => movePoint(drawing, 0, "all", 0, Infinity, 1), refused);
  assert.throws(() => setBox(drawing, 0, "all", { x: 0, y: 0, width: 2e6, height: 1 }), refused);
  assert.throws(() => addStroke(drawing, 0, "all", { kind: "foreground", width: 5, path: [0, NaN] }), refused);
});

test("points are added, moved and taken away, and the drawing before stays as it was", () => {
  const start = oneTarget();
  const added = addPoint(addPoint(start, 0, "all", { x: 1, y: 2, label: 1 }), 0, "all", { x: 3, y: 4, label: 0 });
  const moved = movePoint(added, 0, "all", 0, 10, 20);
  const deleted = deletePoint(moved, 0, "all", 0);
  assert.ok(isEmpty(promptOf(start.targets[0], 0)));
  assert.deepEqual(promptOf(added.targets[0], 0).points, [
    { x: 1, y: 2, label: 1 },
    { x: 3, y: 4, label: 0 },
  ]);
  assert.deepEqual(promptOf(moved.targets[0], 0).points[0], { x: 10, y: 20, label: 1 });
  assert.deepEqual(promptOf(deleted.targets[0], 0).points, [{ x: 3, y: 4, label: 0 }]);
});

test("a target has one box: another takes its place", () => {
  const boxed = setBox(oneTarget(), 0, "all", { x: 1, y: 2, width: 3, height: 4 });
  const other = setBox(boxed, 0, "all", { x: 5, y: 6, width: 7, height: 8 });
  assert.deepEqual(promptOf(other.targets[0], 0).box, { x: 5, y: 6, width: 7, height: 8 });
  assert.equal(promptOf(deleteBox(other, 0, "all").targets[0], 0).box, null);
});

test("strokes keep the order they were painted in", () => {
  const painted = addStroke(oneTarget(), 0, "all", { kind: "foreground", width: 9, path: [1, 1, 5, 5] });
  const erased = addStroke(painted, 0, "all", { kind: "eraser", width: 3, path: [2, 2] });
  assert.deepEqual(
    promptOf(erased.targets[0], 0).strokes.map(({ kind }) => kind),
    ["foreground", "eraser"],
  );
});

test("a frame without a prompt of its own has the one for all frames", () => {
  const target = parse(JSON.stringify(CAT)).targets[0];
  assert.equal(promptOf(target, 0), promptOf(target, "all"));
  assert.notEqual(promptOf(target, 3), promptOf(target, "all"));
  assert.equal(hasOwnPrompt(target, 3), true);
  assert.equal(hasOwnPrompt(target, 2), false);
  assert.equal(promptOf(undefined, 0), EMPTY_PROMPT);
});

test("the first edit of one frame starts from what is drawn for all, and leaves that alone", () => {
  const all = addPoint(oneTarget(), 0, "all", { x: 1, y: 1, label: 1 });
  const alone = addPoint(all, 0, "7", { x: 9, y: 9, label: 0 });
  assert.equal(promptOf(alone.targets[0], 7).points.length, 2);
  assert.equal(promptOf(alone.targets[0], 6).points.length, 1);
  assert.equal(promptOf(clearFrame(alone, 0, 7).targets[0], 7).points.length, 1);
});

test("clearing one frame leaves it empty, clearing all frames leaves frames of their own", () => {
  const all = addPoint(oneTarget(), 0, "all", { x: 1, y: 1, label: 1 });
  const cleared = clearPrompt(all, 0, "2");
  assert.ok(isEmpty(promptOf(cleared.targets[0], 2)));
  assert.equal(promptOf(cleared.targets[0], 1).points.length, 1);
  const own = addPoint(all, 0, "2", { x: 2, y: 2, label: 1 });
  assert.ok(isEmpty(promptOf(clearPrompt(own, 0, "all").targets[0], 1)));
  assert.equal(promptOf(clearPrompt(own, 0, "all").targets[0], 2).points.length, 2);
});

test("new targets get colours that no other target has", () => {
  let drawing = emptyDrawing();
  for (let i = 0; i < TARGET_COLORS.length; i += 1) {
    drawing = addTarget(drawing);
  }
  assert.equal(new Set(drawing.targets.map(({ color }) => color)).size, TARGET_COLORS.length);
  assert.equal(addTarget(deleteTarget(drawing, 2)).targets.at(-1)?.color, TARGET_COLORS[2]);
});

test("targets are renamed, recoloured, hidden and taken away", () => {
  const two = addTarget(oneTarget(), { name: "Dog" });
  assert.equal(renameTarget(two, 1, "Fox").targets[1]?.name, "Fox");
  assert.equal(recolour(two, 0, "#ABCDEF").targets[0]?.color, "#abcdef");
  assert.equal(hideTarget(two, 0, true).targets[0]?.hidden, true);
  assert.deepEqual(
    deleteTarget(two, 0).targets.map(({ name }) => name),
    ["Dog"],
  );
  assert.throws(() => recolour(two, 0, "red"), refusal("colorNotReadable"));
  assert.throws(() => renameTarget(two, 0, "x".repeat(LIMITS.nameLength + 1)), refusal("nameTooLong"));
});

test("a target keeps its identity through every edit, and others do not get it", () => {
  const two = addTarget(oneTarget());
  const identity = identityOf(/** @type {any} */ (two.targets[1]));
  const edited = renameTarget(addPoint(two, 1, "all", { x: 1, y: 1, label: 1 }), 1, "Fox");
  const alone = scaleTo(deleteTarget(edited, 0), 200, 160);
  assert.equal(identityOf(/** @type {any} */ (alone.targets[0])), identity);
  assert.notEqual(identityOf(/** @type {any} */ (addTarget(alone).targets[1])), identity);
});

test("changed targets are those whose prompt or visibility is another, not those renamed", () => {
  const two = addPoint(addTarget(oneTarget()), 1, "all", { x: 1, y: 1, label: 1 });
  assert.deepEqual(changedTargets(two, renameTarget(two, 1, "Fox")), []);
  assert.deepEqual(changedTargets(two, addPoint(two, 0, "all", { x: 2, y: 2, label: 1 })), [0]);
  assert.deepEqual(changedTargets(two, hideTarget(two, 1, true)), [1]);
  assert.deepEqual(changedTargets(two, deleteTarget(two, 0)), []);
  assert.deepEqual(changedTargets(emptyDrawing(), two), [1]);
});

test("more of anything than the bound is refused, and the bound itself is not", () => {
  let targets = emptyDrawing();
  for (let i = 0; i < LIMITS.targets; i += 1) {
    targets = addTarget(targets);
  }
  assert.throws(() => addTarget(targets), refusal("tooManyTargets"));

  const points = Array.from({ length: LIMITS.points }, (_, i) => ({ x: i, y: 0, label: 1 }));
  const full = parse(catWith({ prompts: { all: { points } } }));
  assert.throws(() => addPoint(full, 0, "all", { x: 0, y: 0, label: 1 }), refusal("tooManyPoints"));
  assert.equal(promptOf(movePoint(full, 0, "all", 0, 7, 7).targets[0], 0).points.length, LIMITS.points);

  const strokes = Array.from({ length: LIMITS.strokes }, () => ({ kind: "foreground", width: 2, path: [0, 0] }));
  const painted = parse(catWith({ prompts: { all: { strokes } } }));
  const dot = /** @type {const} */ ({ kind: "eraser", width: 2, path: [0, 0] });
  assert.throws(() => addStroke(painted, 0, "all", dot), refusal("tooManyStrokes"));

  const path = Array.from({ length: LIMITS.pathNumbers }, () => 1);
  const long = addStroke(oneTarget(), 0, "all", { kind: "foreground", width: 2, path });
  assert.throws(
    () => addStroke(long, 0, "all", { kind: "foreground", width: 2, path: [...path, 1, 1] }),
    refusal("strokeTooLong"),
  );
  let most = oneTarget();
  for (let i = 0; i < LIMITS.allPathNumbers / LIMITS.pathNumbers; i += 1) {
    most = addStroke(most, 0, "all", { kind: "foreground", width: 2, path });
  }
  assert.throws(() => addStroke(most, 0, "all", dot), refusal("tooManyStrokes"));

  const frames = Object.fromEntries(Array.from({ length: LIMITS.frameKeys }, (_, i) => [String(i), {}]));
  const many = parse(catWith({ prompts: frames }));
  assert.throws(() => addPoint(many, 0, "9999", { x: 1, y: 1, label: 1 }), refusal("tooManyFrames"));
});

test("a brush narrower than a pixel or wider than the bound is refused", () => {
  for (const width of [0.5, LIMITS.strokeWidthMost + 1]) {
    assert.throws(
      () => addStroke(oneTarget(), 0, "all", { kind: "foreground", width, path: [1, 1] }),
      refusal("brushOutOfBounds"),
    );
  }
});

test("a text longer than the bound is refused both ways", () => {
  assert.throws(() => parse(" ".repeat(LIMITS.textLength) + "{}"), refusal("tooMuchDrawn"));
  const path = Array.from({ length: LIMITS.pathNumbers }, (_, i) => 123456.25 + i);
  let drawing = oneTarget();
  for (let i = 0; i < 9; i += 1) {
    drawing = addStroke(drawing, 0, "all", { kind: "foreground", width: 2, path });
  }
  assert.throws(() => serialise(drawing), refusal("tooMuchDrawn"));
});

test("a picture of the same shape takes the drawing scaled, another shape does not fit", () => {
  const drawing = parse(JSON.stringify(CAT));
  assert.equal(fits(drawing, 1024, 768), true);
  assert.equal(fits(drawing, 1024, 760), true);
  assert.equal(fits(drawing, 1024, 740), false);
  assert.equal(fits(emptyDrawing(), 10, 1000), true);
  const twice = scaleTo(drawing, 1024, 768);
  const prompt = promptOf(twice.targets[0], 0);
  assert.deepEqual(prompt.points, [{ x: 25, y: 60, label: 1 }]);
  assert.deepEqual(prompt.box, { x: 10, y: 12, width: 200, height: 160 });
  assert.deepEqual(prompt.strokes, [{ kind: "foreground", width: 48, path: [2, 4, 6.5, 8] }]);
  assert.deepEqual([twice.width, twice.height], [1024, 768]);
  const wider = promptOf(scaleTo(drawing, 2048, 384).targets[0], 0);
  assert.deepEqual(wider.points, [{ x: 50, y: 30, label: 1 }]);
  assert.deepEqual(wider.box, { x: 20, y: 6, width: 400, height: 80 });
  assert.deepEqual(wider.strokes, [{ kind: "foreground", width: 48, path: [4, 2, 13, 4] }]);
});

test("a picture of the same size or of none leaves a drawing as it is, and an unknown size fits any", () => {
  const drawing = parse(JSON.stringify(CAT));
  for (const [width, height] of /** @type {[number, number][]} */ ([
    [512, 384],
    [0, 100],
    [100, 0],
  ])) {
    assert.equal(scaleTo(drawing, width, height), drawing);
    assert.equal(fits(drawing, width, height), true);
  }
  for (const [width, height] of /** @type {[number, number][]} */ ([
    [384, 384],
    [512, 512],
    [1, 1],
  ])) {
    const scaled = scaleTo(drawing, width, height);
    assert.deepEqual([scaled.width, scaled.height, fits(drawing, width, height)], [width, height, false]);
  }
  for (const half of [{ width: 0 }, { height: 0 }]) {
    const unknown = { ...drawing, ...half };
    assert.equal(fits(unknown, 100, 10), true);
    assert.equal(scaleTo(unknown, 100, 10).targets, drawing.targets);
  }
});

test("a drawing that does not know its picture takes the size of the one it is shown on", () => {
  const drawing = addPoint(addTarget(emptyDrawing()), 0, "all", { x: 3, y: 4, label: 1 });
  const known = scaleTo(drawing, 640, 480);
  assert.deepEqual([known.width, known.height], [640, 480]);
  assert.deepEqual(promptOf(known.targets[0], 0).points, [{ x: 3, y: 4, label: 1 }]);
});
