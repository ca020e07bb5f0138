import assert from "node:assert/strict";
import { test } from "node:test";

import { beyondMemory, decodedBytes } from "../../web/js/editor/memory.mjs";

const MEGAPIXELS = 1e6;
const editor = (name, seenAt, megapixels) => ({ name, seenAt, pixelBytes: 4 * megapixels * MEGAPIXELS });
const names = (editors) => editors.map(({ name }) => name);

test("a decoded picture takes four bytes a pixel", () => {
  assert.equal(decodedBytes([{ width: 4000, height: 3000 }, { width: 10, height: 1 }]), 48_000_040);
  assert.equal(decodedBytes([]), 0);
});

test("many small pictures stay, and of large ones those seen last", () => {
  const small = Array.from({ length: 30 }, (_, index) => editor(`small ${index}`, index, 1));
  assert.deepEqual(beyondMemory(small), []);
  const large = Array.from({ length: 12 }, (_, index) => editor(`large ${index}`, index, 24));
  const given = beyondMemory(large);
  assert.deepEqual(new Set(names(given)), new Set(names(large.slice(0, 10))));
  const kept = large.filter((one) => !given.includes(one)).reduce((bytes, one) => bytes + one.pixelBytes, 0);
  assert.ok(kept <= 256 * 2 ** 20);
});

test("a picture that is too large alone takes no others with it", () => {
  const editors = [editor("old", 1, 3), editor("huge", 3, 100), editor("new", 2, 3)];
  assert.deepEqual(names(beyondMemory(editors)), ["huge"]);
});

test("an editor that holds no pixels is never asked for them", () => {
  const editors = [editor("full", 2, 60), editor("empty", 1, 0)];
  assert.deepEqual(names(beyondMemory(editors)), []);
});
