/** Undo and redo over drawings. A drawing is frozen: an entry is a reference, and neighbours share what is the same. */

import { inheritIdentities, parse, serialise } from "./drawing.mjs";

/** @typedef {import("./drawing.mjs").Drawing} Drawing */

const MOST_ENTRIES = 200;

export class History {
  /** @type {readonly Drawing[]} */
  #entries;
  #cursor = 0;

  /** @param {Drawing} drawing */
  constructor(drawing) {
    this.#entries = [drawing];
  }

  /** @returns {Drawing} */
  get current() {
    const entry = this.#entries[this.#cursor];
    if (entry === undefined) {
      throw new RangeError("The history points beyond its entries.");
    }
    return entry;
  }

  get canUndo() {
    return this.#cursor > 0;
  }

  get canRedo() {
    return this.#cursor < this.#entries.length - 1;
  }

  /**
   * Adds what an edit made; what was undone before it is gone.
   *
   * @param {Drawing} drawing
   */
  push(drawing) {
    if (drawing === this.current) {
      return;
    }
    this.#entries = [...this.#entries.slice(0, this.#cursor + 1), drawing].slice(-MOST_ENTRIES);
    this.#cursor = this.#entries.length - 1;
  }

  /** @returns {Drawing} */
  undo() {
    this.#cursor = Math.max(0, this.#cursor - 1);
    return this.current;
  }

  /** @returns {Drawing} */
  redo() {
    this.#cursor = Math.min(this.#entries.length - 1, this.#cursor + 1);
    return this.current;
  }

  /**
   * Takes a value that comes from outside. The graph's own undo gives back a value this history already holds beside
   * the cursor: then the cursor moves there, so that both histories stay one. Any other value is a new entry; the first
   * one an untouched editor is given takes the place of its empty start.
   *
   * @param {string} text
   * @returns {"same" | "moved" | "pushed"}
   * @throws {import("./drawing.mjs").DrawingError} when the text is no drawing
   */
  adopt(text) {
    const drawing = parse(text);
    const canonical = serialise(drawing);
    if (canonical === serialise(this.current)) {
      return "same";
    }
    for (const step of [-1, 1]) {
      const neighbour = this.#entries[this.#cursor + step];
      if (neighbour !== undefined && serialise(neighbour) === canonical) {
        this.#cursor += step;
        return "moved";
      }
    }
    inheritIdentities(drawing, this.current);
    if (this.#entries.length === 1 && serialise(this.current) === "") {
      this.#entries = [drawing];
    } else {
      this.push(drawing);
    }
    return "pushed";
  }
}
