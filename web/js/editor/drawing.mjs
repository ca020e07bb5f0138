/**
 * The editor's value: which targets there are and what was drawn for each, in pixels of the original picture.
 *
 * A drawing is frozen plain data. Every edit returns a new drawing and leaves the old one as it was, so a history is a
 * list of drawings. An edit that would pass a bound throws a DrawingError, which names the sentence to show.
 *
 * Coordinates: x to the right, y down, the middle of the first pixel at 0.5; at most two decimals.
 */

/** @typedef {0 | 1} PointLabel 1 on the subject, 0 beside it */
/** @typedef {{ readonly x: number, readonly y: number, readonly label: PointLabel }} PointPrompt */
/** @typedef {{ readonly x: number, readonly y: number, readonly width: number, readonly height: number }} Box */
/** @typedef {"foreground" | "background" | "unknown" | "eraser"} StrokeKind */
/**
 * @typedef {object} Stroke
 * @property {StrokeKind} kind
 * @property {number} width brush diameter in pixels of the picture
 * @property {readonly number[]} path x0, y0, x1, y1, ...
 */
/**
 * @typedef {object} Prompt
 * @property {readonly PointPrompt[]} points
 * @property {Box | null} box
 * @property {readonly Stroke[]} strokes in the order they were painted
 */
/**
 * @typedef {object} Target
 * @property {string} name
 * @property {string} color `#rrggbb`
 * @property {boolean} hidden
 * @property {Readonly<Record<string, Prompt>>} prompts by "all" or by the decimal index of a frame
 */
/**
 * @typedef {object} Drawing
 * @property {number} version
 * @property {number} width of the picture it was drawn on; 0 = not known
 * @property {number} height
 * @property {readonly Target[]} targets
 */
/** @typedef {string} Scope "all", or the decimal index of the frame that is edited alone */

export const VERSION = 1;
export const ALL_FRAMES = "all";

export const LIMITS = Object.freeze({
  textLength: 1_000_000,
  targets: 64,
  frameKeys: 512,
  points: 1_000,
  strokes: 2_000,
  pathNumbers: 20_000,
  allPathNumbers: 200_000,
  number: 1e6,
  strokeWidthLeast: 1,
  strokeWidthMost: 2_000,
  depth: 8,
  nameLength: 100,
});

/**
 * Colours that stay apart for people with any common form of colour blindness (Okabe and Ito 2008, then Tol's muted
 * scheme). The first stands for "not chosen": the overlay colour of the settings is shown in its place.
 */
export const TARGET_COLORS = Object.freeze([
  "#e69f00",
  "#56b4e9",
  "#009e73",
  "#f0e442",
  "#0072b2",
  "#d55e00",
  "#cc79a7",
  "#88ccee",
  "#882255",
  "#44aa99",
  "#999933",
  "#aa4499",
]);

/** @type {Prompt} */
export const EMPTY_PROMPT = Object.freeze({ points: Object.freeze([]), box: null, strokes: Object.freeze([]) });

const STROKE_KINDS = new Set(["foreground", "background", "unknown", "eraser"]);
const FRAME_KEY = /^(?:0|[1-9][0-9]{0,8})$/;
const COLOR = /^#[0-9a-f]{6}$/i;

/** Why a drawing or an edit is refused: `key` names a text of the editor, `values` fill its gaps. */
export class DrawingError extends Error {
  /**
   * @param {string} key
   * @param {Readonly<Record<string, string | number>>} [values]
   */
  constructor(key, values = {}) {
    super(`${key} ${JSON.stringify(values)}`);
    this.name = "DrawingError";
    this.key = key;
    this.values = values;
  }
}

let lastIdentity = 0;
/** @type {WeakMap<Target, number>} */
const identities = new WeakMap();

/**
 * A number that stays with a target through every edit of it, so that its matte can follow it when others are deleted.
 * It is not part of the value.
 *
 * @param {Target} target
 * @returns {number}
 */
export function identityOf(target) {
  let identity = identities.get(target);
  if (identity === undefined) {
    lastIdentity += 1;
    identity = lastIdentity;
    identities.set(target, identity);
  }
  return identity;
}

/**
 * Carries the identities of `before` over to a drawing that was read from text: the target with the same content,
 * else the one at the same place.
 *
 * @param {Drawing} drawing
 * @param {Drawing} before
 */
export function inheritIdentities(drawing, before) {
  const left = new Set(before.targets);
  /** @type {Target[]} */
  const unmatched = [];
  const texts = new Map(before.targets.map((target) => [target, JSON.stringify(target)]));
  for (const target of drawing.targets) {
    const text = JSON.stringify(target);
    const same = [...left].find((candidate) => texts.get(candidate) === text);
    if (same) {
      left.delete(same);
      identities.set(target, identityOf(same));
    } else {
      unmatched.push(target);
    }
  }
  for (const target of unmatched) {
    const inPlace = before.targets[drawing.targets.indexOf(target)];
    if (inPlace && left.delete(inPlace)) {
      identities.set(target, identityOf(inPlace));
    }
  }
}

/**
 * @param {number} [width]
 * @param {number} [height]
 * @returns {Drawing}
 */
export function emptyDrawing(width = 0, height = 0) {
  return Object.freeze({ version: VERSION, width, height, targets: Object.freeze([]) });
}

// ------------------------------------------------------------------------------------------------ reading and writing

/**
 * @param {string} text "" or JSON of version 1
 * @returns {Drawing}
 * @throws {DrawingError} for text that is no drawing, is from a newer version, or passes a bound
 */
export function parse(text) {
  if (typeof text !== "string") {
    throw new DrawingError("valueNotReadable");
  }
  if (text.trim() === "") {
    return emptyDrawing();
  }
  if (text.length > LIMITS.textLength) {
    throw new DrawingError("tooMuchDrawn", { limit: LIMITS.textLength });
  }
  checkDepth(text);
  /** @type {unknown} */
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new DrawingError("valueNotReadable");
  }
  const read = record(value);
  const version = read.version ?? VERSION;
  if (typeof version !== "number" || !Number.isInteger(version) || version < 1) {
    throw new DrawingError("valueNotReadable");
  }
  if (version > VERSION) {
    throw new DrawingError("valueFromNewerVersion", { version });
  }
  const targets = list(read.targets ?? []).map(readTarget);
  return checked(
    keepingUnknown(read, {
      version: VERSION,
      width: readSize(read.width),
      height: readSize(read.height),
      targets: Object.freeze(targets),
    }),
  );
}

/**
 * @param {Drawing} drawing
 * @returns {string} JSON of version 1; "" when there is nothing to keep
 * @throws {DrawingError} when the text would be longer than every reader takes
 */
export function serialise(drawing) {
  const plain = Object.keys(drawing).every((key) => ["version", "width", "height", "targets"].includes(key));
  if (drawing.targets.length === 0 && plain) {
    return "";
  }
  const text = JSON.stringify(drawing);
  if (text.length > LIMITS.textLength) {
    throw new DrawingError("tooMuchDrawn", { limit: LIMITS.textLength });
  }
  return text;
}

/**
 * Refuses nesting before JSON.parse builds it.
 *
 * @param {string} text
 */
function checkDepth(text) {
  let depth = 0;
  let quoted = false;
  for (let i = 0; i < text.length; i += 1) {
    const character = text[i];
    if (quoted) {
      if (character === "\\") {
        i += 1;
      } else if (character === '"') {
        quoted = false;
      }
    } else if (character === '"') {
      quoted = true;
    } else if (character === "{" || character === "[") {
      depth += 1;
      if (depth > LIMITS.depth) {
        throw new DrawingError("valueNotReadable");
      }
    } else if (character === "}" || character === "]") {
      depth -= 1;
    }
  }
}

/**
 * @param {unknown} value
 * @returns {Record<string, unknown>}
 */
function record(value) {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new DrawingError("valueNotReadable");
  }
  return /** @type {Record<string, unknown>} */ (value);
}

/**
 * @param {unknown} value
 * @returns {unknown[]}
 */
function list(value) {
  if (!Array.isArray(value)) {
    throw new DrawingError("valueNotReadable");
  }
  return value;
}

/**
 * @param {unknown} value
 * @returns {number} with at most two decimals
 */
function coordinate(value) {
  if (typeof value !== "number" || !Number.isFinite(value) || Math.abs(value) > LIMITS.number) {
    throw new DrawingError("coordinateOutOfBounds", { limit: LIMITS.number });
  }
  // + 0 turns -0 into 0, which JSON would write as "0" and read back as another number.
  return Math.round(value * 100) / 100 + 0;
}

/** @param {unknown} value */
function readSize(value) {
  const size = coordinate(value ?? 0);
  if (size < 0) {
    throw new DrawingError("valueNotReadable");
  }
  return size;
}

/**
 * The known fields in their order, then what a reader of this version does not know, as it was.
 *
 * @template {object} T
 * @param {Record<string, unknown>} read
 * @param {T} known
 * @returns {Readonly<T>}
 */
function keepingUnknown(read, known) {
  const unknown = Object.entries(read).filter(([key]) => !Object.hasOwn(known, key));
  return Object.freeze(/** @type {T} */ (Object.fromEntries([...Object.entries(known), ...unknown])));
}

/**
 * @param {unknown} value
 * @returns {Target}
 */
function readTarget(value) {
  const read = record(value);
  const name = read.name ?? "";
  const color = read.color ?? TARGET_COLORS[0];
  const hidden = read.hidden ?? false;
  if (typeof name !== "string" || typeof color !== "string" || typeof hidden !== "boolean") {
    throw new DrawingError("valueNotReadable");
  }
  const prompts = Object.entries(record(read.prompts ?? {})).map(([key, prompt]) => {
    if (key !== ALL_FRAMES && !FRAME_KEY.test(key)) {
      throw new DrawingError("valueNotReadable");
    }
    return [key, readPrompt(prompt)];
  });
  return keepingUnknown(read, {
    name: nameWithinBounds(name),
    color: colorWithinBounds(color),
    hidden,
    prompts: Object.freeze(/** @type {Record<string, Prompt>} */ (Object.fromEntries(prompts))),
  });
}

/**
 * @param {unknown} value
 * @returns {Prompt}
 */
function readPrompt(value) {
  const read = record(value);
  return keepingUnknown(read, {
    points: Object.freeze(list(read.points ?? []).map(readPoint)),
    box: read.box === undefined || read.box === null ? null : readBox(read.box),
    strokes: Object.freeze(list(read.strokes ?? []).map(readStroke)),
  });
}

/**
 * @param {unknown} value
 * @returns {PointPrompt}
 */
function readPoint(value) {
  const read = record(value);
  const label = read.label ?? 1;
  if (label !== 0 && label !== 1) {
    throw new DrawingError("valueNotReadable");
  }
  return keepingUnknown(read, {
    x: coordinate(read.x),
    y: coordinate(read.y),
    label: /** @type {PointLabel} */ (label),
  });
}

/**
 * @param {unknown} value
 * @returns {Box}
 */
function readBox(value) {
  const read = record(value);
  const box = {
    x: coordinate(read.x),
    y: coordinate(read.y),
    width: coordinate(read.width),
    height: coordinate(read.height),
  };
  if (box.width < 0 || box.height < 0) {
    throw new DrawingError("valueNotReadable");
  }
  return keepingUnknown(read, box);
}

/**
 * @param {unknown} value
 * @returns {Stroke}
 */
function readStroke(value) {
  const read = record(value);
  const kind = read.kind;
  if (typeof kind !== "string" || !STROKE_KINDS.has(kind)) {
    throw new DrawingError("valueNotReadable");
  }
  const path = list(read.path).map(coordinate);
  if (path.length < 2 || path.length % 2 !== 0) {
    throw new DrawingError("valueNotReadable");
  }
  return keepingUnknown(read, {
    kind: /** @type {StrokeKind} */ (kind),
    width: strokeWidthWithinBounds(read.width),
    path: Object.freeze(path),
  });
}

/** @param {string} name */
function nameWithinBounds(name) {
  if (name.length > LIMITS.nameLength) {
    throw new DrawingError("nameTooLong", { limit: LIMITS.nameLength });
  }
  return name;
}

/** @param {string} color */
function colorWithinBounds(color) {
  if (!COLOR.test(color)) {
    throw new DrawingError("colorNotReadable");
  }
  return color.toLowerCase();
}

/** @param {unknown} width */
function strokeWidthWithinBounds(width) {
  const px = coordinate(width);
  if (px < LIMITS.strokeWidthLeast || px > LIMITS.strokeWidthMost) {
    throw new DrawingError("brushOutOfBounds", { least: LIMITS.strokeWidthLeast, most: LIMITS.strokeWidthMost });
  }
  return px;
}

/**
 * @param {Drawing} drawing
 * @returns {Drawing} the same, when it keeps every bound on how much there may be
 */
function checked(drawing) {
  if (drawing.targets.length > LIMITS.targets) {
    throw new DrawingError("tooManyTargets", { limit: LIMITS.targets });
  }
  let frameKeys = 0;
  let pathNumbers = 0;
  for (const target of drawing.targets) {
    for (const [key, prompt] of Object.entries(target.prompts)) {
      frameKeys += key === ALL_FRAMES ? 0 : 1;
      if (prompt.points.length > LIMITS.points) {
        throw new DrawingError("tooManyPoints", { limit: LIMITS.points });
      }
      if (prompt.strokes.length > LIMITS.strokes) {
        throw new DrawingError("tooManyStrokes", { limit: LIMITS.strokes });
      }
      for (const stroke of prompt.strokes) {
        if (stroke.path.length > LIMITS.pathNumbers) {
          throw new DrawingError("strokeTooLong", { limit: LIMITS.pathNumbers / 2 });
        }
        pathNumbers += stroke.path.length;
      }
    }
  }
  if (frameKeys > LIMITS.frameKeys) {
    throw new DrawingError("tooManyFrames", { limit: LIMITS.frameKeys });
  }
  if (pathNumbers > LIMITS.allPathNumbers) {
    throw new DrawingError("tooManyStrokes", { limit: LIMITS.strokes });
  }
  return drawing;
}

// ------------------------------------------------------------------------------------------------------------- asking

/** @param {Prompt} prompt */
export function isEmpty(prompt) {
  return prompt.points.length === 0 && prompt.box === null && prompt.strokes.length === 0;
}

/** @param {Drawing} drawing @returns {boolean} whether nothing is drawn for any target on any frame */
export function isBlank(drawing) {
  return drawing.targets.every(({ prompts }) => Object.values(prompts).every(isEmpty));
}

/**
 * What is drawn for a target on a frame: the frame's own prompt, else the one for all frames.
 *
 * @param {Target | undefined} target
 * @param {number | Scope} frame
 * @returns {Prompt}
 */
export function promptOf(target, frame) {
  return target?.prompts[String(frame)] ?? target?.prompts[ALL_FRAMES] ?? EMPTY_PROMPT;
}

/**
 * @param {Target | undefined} target
 * @param {number} frame
 * @returns {boolean} whether the frame has a prompt of its own
 */
export function hasOwnPrompt(target, frame) {
  return target !== undefined && Object.hasOwn(target.prompts, String(frame));
}

/**
 * Which targets, counted as in `after`, have another prompt than before. Asked for every frame of a gesture: an edit
 * makes a new prompt, so nothing is compared but which one it is.
 *
 * @param {Drawing} before
 * @param {Drawing} after
 * @returns {number[]}
 */
export function changedTargets(before, after) {
  const former = new Map(before.targets.map((target) => [identityOf(target), target]));
  const sameSize = before.width === after.width && before.height === after.height;
  return after.targets.flatMap((target, index) => {
    const earlier = former.get(identityOf(target));
    if (earlier === undefined) {
      return Object.keys(target.prompts).length > 0 ? [index] : [];
    }
    const same = sameSize && earlier.prompts === target.prompts && earlier.hidden === target.hidden;
    return same ? [] : [index];
  });
}

/**
 * @param {Drawing} drawing
 * @param {number} width
 * @param {number} height
 * @returns {boolean} whether a drawing may be scaled to a picture of this size: the same aspect ratio within 2 %
 */
export function fits(drawing, width, height) {
  if (!(drawing.width > 0 && drawing.height > 0 && width > 0 && height > 0)) {
    return true;
  }
  const ratio = width / drawing.width / (height / drawing.height);
  return Math.max(ratio, 1 / ratio) <= 1.02;
}

// -------------------------------------------------------------------------------------------------------------- edits

/**
 * @param {Drawing} drawing
 * @param {number} index
 * @returns {Target}
 */
function targetAt(drawing, index) {
  const target = drawing.targets[index];
  if (target === undefined) {
    throw new RangeError(`There is no target ${index}.`);
  }
  return target;
}

/**
 * @param {Drawing} drawing
 * @param {number} index
 * @param {Partial<Target>} change
 * @returns {Drawing}
 */
function withTarget(drawing, index, change) {
  const former = targetAt(drawing, index);
  /** @type {Target} */
  const target = Object.freeze({ ...former, ...change });
  identities.set(target, identityOf(former));
  return checked(Object.freeze({ ...drawing, targets: Object.freeze(drawing.targets.with(index, target)) }));
}

/**
 * @param {Drawing} drawing
 * @param {number} index
 * @param {Scope} scope a frame that has no prompt of its own yet starts from the one for all frames
 * @param {(prompt: Prompt) => Partial<Prompt>} edit
 * @returns {Drawing}
 */
function withPrompt(drawing, index, scope, edit) {
  if (scope !== ALL_FRAMES && !FRAME_KEY.test(scope)) {
    throw new RangeError(`"${scope}" is neither "all" nor the index of a frame.`);
  }
  const target = targetAt(drawing, index);
  const former = promptOf(target, scope);
  const prompt = Object.freeze({ ...former, ...edit(former) });
  const prompts = Object.freeze({ ...target.prompts, [scope]: prompt });
  return withTarget(drawing, index, { prompts });
}

/**
 * @param {Drawing} drawing
 * @param {{ name?: string, color?: string }} [about] without a colour: the first of the list that no target has
 * @returns {Drawing} with the new target last
 */
export function addTarget(drawing, about = {}) {
  const taken = new Set(drawing.targets.map((target) => target.color));
  const free = TARGET_COLORS.find((color) => !taken.has(color));
  const color = about.color ?? free ?? TARGET_COLORS[drawing.targets.length % TARGET_COLORS.length] ?? "#e69f00";
  /** @type {Target} */
  const target = Object.freeze({
    name: nameWithinBounds(about.name ?? ""),
    color: colorWithinBounds(color),
    hidden: false,
    prompts: Object.freeze({}),
  });
  return checked(Object.freeze({ ...drawing, targets: Object.freeze([...drawing.targets, target]) }));
}

/**
 * @param {Drawing} drawing
 * @param {number} index
 * @returns {Drawing}
 */
export function deleteTarget(drawing, index) {
  targetAt(drawing, index);
  return Object.freeze({ ...drawing, targets: Object.freeze(drawing.targets.toSpliced(index, 1)) });
}

/**
 * @param {Drawing} drawing
 * @param {number} index
 * @param {string} name
 */
export function renameTarget(drawing, index, name) {
  return withTarget(drawing, index, { name: nameWithinBounds(name) });
}

/**
 * @param {Drawing} drawing
 * @param {number} index
 * @param {string} color `#rrggbb`
 */
export function recolour(drawing, index, color) {
  return withTarget(drawing, index, { color: colorWithinBounds(color) });
}

/**
 * @param {Drawing} drawing
 * @param {number} index
 * @param {boolean} hidden
 */
export function hideTarget(drawing, index, hidden) {
  return withTarget(drawing, index, { hidden });
}

/**
 * @param {Drawing} drawing
 * @param {number} index
 * @param {Scope} scope
 * @param {PointPrompt} point
 */
export function addPoint(drawing, index, scope, point) {
  const placed = Object.freeze({ x: coordinate(point.x), y: coordinate(point.y), label: point.label });
  return withPrompt(drawing, index, scope, ({ points }) => ({ points: Object.freeze([...points, placed]) }));
}

/**
 * @param {Drawing} drawing
 * @param {number} index
 * @param {Scope} scope
 * @param {number} pointIndex
 * @param {number} x
 * @param {number} y
 */
export function movePoint(drawing, index, scope, pointIndex, x, y) {
  return withPrompt(drawing, index, scope, ({ points }) => {
    const point = points[pointIndex];
    if (point === undefined) {
      throw new RangeError(`There is no point ${pointIndex}.`);
    }
    const moved = Object.freeze({ ...point, x: coordinate(x), y: coordinate(y) });
    return { points: Object.freeze(points.with(pointIndex, moved)) };
  });
}

/**
 * @param {Drawing} drawing
 * @param {number} index
 * @param {Scope} scope
 * @param {number} pointIndex
 */
export function deletePoint(drawing, index, scope, pointIndex) {
  return withPrompt(drawing, index, scope, ({ points }) => ({
    points: Object.freeze(points.toSpliced(pointIndex, 1)),
  }));
}

/**
 * @param {Drawing} drawing
 * @param {number} index
 * @param {Scope} scope
 * @param {Box} box
 */
export function setBox(drawing, index, scope, box) {
  return withPrompt(drawing, index, scope, () => ({ box: readBox(box) }));
}

/**
 * @param {Drawing} drawing
 * @param {number} index
 * @param {Scope} scope
 */
export function deleteBox(drawing, index, scope) {
  return withPrompt(drawing, index, scope, () => ({ box: null }));
}

/**
 * @param {Drawing} drawing
 * @param {number} index
 * @param {Scope} scope
 * @param {Stroke} stroke
 */
export function addStroke(drawing, index, scope, stroke) {
  const painted = readStroke(stroke);
  return withPrompt(drawing, index, scope, ({ strokes }) => ({ strokes: Object.freeze([...strokes, painted]) }));
}

/**
 * Takes away what is drawn for one target: for all frames, or on one frame, which then has a prompt of its own that is
 * empty.
 *
 * @param {Drawing} drawing
 * @param {number} index
 * @param {Scope} scope
 */
export function clearPrompt(drawing, index, scope) {
  if (scope === ALL_FRAMES) {
    const { [ALL_FRAMES]: _cleared, ...own } = targetAt(drawing, index).prompts;
    return withTarget(drawing, index, { prompts: Object.freeze(own) });
  }
  return withPrompt(drawing, index, scope, () => EMPTY_PROMPT);
}

/**
 * Gives a frame back to the prompt for all frames.
 *
 * @param {Drawing} drawing
 * @param {number} index
 * @param {number} frame
 */
export function clearFrame(drawing, index, frame) {
  const prompts = Object.entries(targetAt(drawing, index).prompts).filter(([key]) => key !== String(frame));
  return withTarget(drawing, index, { prompts: Object.freeze(Object.fromEntries(prompts)) });
}

/**
 * The same drawing on a picture of another size. The two axes are scaled on their own; whether that is meant is asked
 * of `fits` before. A drawing that does not know its size takes this one as it is.
 *
 * @param {Drawing} drawing
 * @param {number} width
 * @param {number} height
 * @returns {Drawing}
 */
export function scaleTo(drawing, width, height) {
  if (!(width > 0 && height > 0) || (drawing.width === width && drawing.height === height)) {
    return drawing;
  }
  if (!(drawing.width > 0 && drawing.height > 0)) {
    return Object.freeze({ ...drawing, width, height });
  }
  const along = width / drawing.width;
  const down = height / drawing.height;
  /** @param {number} value @param {number} factor */
  const scaled = (value, factor) => coordinate(Math.max(-LIMITS.number, Math.min(LIMITS.number, value * factor)));
  /** @param {Prompt} prompt @returns {Prompt} */
  const scalePrompt = (prompt) =>
    Object.freeze({
      ...prompt,
      points: Object.freeze(
        prompt.points.map((point) => Object.freeze({ ...point, x: scaled(point.x, along), y: scaled(point.y, down) })),
      ),
      box:
        prompt.box &&
        Object.freeze({
          ...prompt.box,
          x: scaled(prompt.box.x, along),
          y: scaled(prompt.box.y, down),
          width: scaled(prompt.box.width, along),
          height: scaled(prompt.box.height, down),
        }),
      strokes: Object.freeze(
        prompt.strokes.map((stroke) => {
          const px = coordinate(stroke.width * Math.sqrt(along * down));
          return Object.freeze({
            ...stroke,
            width: Math.max(LIMITS.strokeWidthLeast, Math.min(LIMITS.strokeWidthMost, px)),
            path: Object.freeze(stroke.path.map((value, i) => scaled(value, i % 2 === 0 ? along : down))),
          });
        }),
      ),
    });
  const targets = drawing.targets.map((target) => {
    const prompts = Object.entries(target.prompts).map(([key, prompt]) => [key, scalePrompt(prompt)]);
    /** @type {Target} */
    const moved = Object.freeze({ ...target, prompts: Object.freeze(Object.fromEntries(prompts)) });
    identities.set(moved, identityOf(target));
    return moved;
  });
  return Object.freeze({ ...drawing, width, height, targets: Object.freeze(targets) });
}
