import assert from "node:assert/strict";
import { test } from "node:test";

import { addPoint, addTarget, emptyDrawing, identityOf, serialise } from "../../web/js/editor/drawing.mjs";
import { History } from "../../web/js/editor/history.mjs";

/** @param {number} count of points */
function withPoints(count) {
  let drawing = addTarget(emptyDrawing(100, 100));
  for (let i = 0; i < count; i += 1) {
    drawing = addPoint(drawing, 0, "all", { x: i, y: i, label: 1 });
  }
  return drawing;
}

/** @param {number} length */
function historyOf(length) {
  const history = new History(withPoints(0));
  for (let i = 1; i < length; i += 1) {
    history.push(withPoints(i));
  }
  return history;
}

const textOf = (/** @type {number} */ count) => serialise(withPoints(count));

test("undo goes back one drawing at a time, redo comes forward again, and both stop at the ends", () => {
  const history = historyOf(3);
  assert.equal(serialise(history.undo()), textOf(1));
  assert.deepEqual([history.canUndo, history.canRedo], [true, true]);
  assert.equal(serialise(history.undo()), textOf(0));
  assert.equal(history.canUndo, false);
  assert.equal(serialise(history.undo()), textOf(0));
  assert.equal(serialise(history.redo()), textOf(1));
  assert.equal(serialise(history.redo()), textOf(2));
  assert.equal(history.canRedo, false);
  assert.equal(serialise(history.redo()), textOf(2));
});

test("a new edit after undo takes the place of what was undone", () => {
  const history = historyOf(3);
  history.undo();
  history.undo();
  history.push(withPoints(5));
  assert.equal(history.canRedo, false);
  assert.equal(serialise(history.undo()), textOf(0));
});

test("an edit that changes nothing is no entry", () => {
  const history = historyOf(1);
  history.push(history.current);
  assert.equal(history.canUndo, false);
});

test("a value given to an editor that holds a drawing can be undone", () => {
  const history = new History(withPoints(2));
  assert.equal(history.adopt(textOf(5)), "pushed");
  assert.equal(serialise(history.undo()), textOf(2));
});

test("the graph's undo gives back the drawing before: the cursor moves there and redo is kept", () => {
  const history = historyOf(3);
  assert.equal(history.adopt(textOf(1)), "moved");
  assert.equal(serialise(history.current), textOf(1));
  assert.equal(history.canRedo, true);
  assert.equal(history.adopt(textOf(2)), "moved");
  assert.equal(serialise(history.current), textOf(2));
});

test("the value the editor has already is no new entry, however it is written", () => {
  const history = historyOf(2);
  const spaced = JSON.stringify(JSON.parse(textOf(1)), null, 2);
  assert.equal(history.adopt(spaced), "same");
  assert.equal(serialise(history.undo()), textOf(0));
});

test("a value from elsewhere is a new entry that can be undone", () => {
  const history = historyOf(2);
  assert.equal(history.adopt(textOf(9)), "pushed");
  assert.equal(serialise(history.undo()), textOf(1));
});

test("the first value of an untouched editor is its start: nothing lies before it", () => {
  const history = new History(emptyDrawing());
  history.adopt(textOf(4));
  assert.equal(history.canUndo, false);
  assert.equal(serialise(history.current), textOf(4));
});

test("a value that is no drawing leaves the history as it was", () => {
  const history = historyOf(2);
  assert.throws(() => history.adopt("{"));
  assert.equal(serialise(history.current), textOf(1));
});

test("targets of an adopted value keep their identities, so that their mattes stay with them", () => {
  const history = historyOf(2);
  const before = history.current.targets[0];
  history.adopt(textOf(9));
  const after = history.current.targets[0];
  assert.ok(before !== undefined && after !== undefined && before !== after);
  assert.equal(identityOf(after), identityOf(before));
});

test("a long session forgets its oldest drawings, not its newest", () => {
  const history = historyOf(1);
  for (let i = 1; i <= 500; i += 1) {
    history.push(withPoints(i % 7));
  }
  let steps = 0;
  while (history.canUndo) {
    history.undo();
    steps += 1;
  }
  assert.ok(steps >= 100 && steps < 500);
  for (; steps > 0; steps -= 1) {
    history.redo();
  }
  assert.equal(serialise(history.current), textOf(500 % 7));
});
