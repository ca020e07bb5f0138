/**
 * Paints the editor: below, the picture with the mattes over it; above, what was drawn. Two canvases, because the upper
 * one changes with every move of the pointer and the lower one only with the view, the picture and the mattes.
 */

import { toCanvas, toPicture } from "./geometry.mjs";

/** @typedef {import("./drawing.mjs").Prompt} Prompt */
/** @typedef {import("./drawing.mjs").Stroke} Stroke */
/** @typedef {import("./geometry.mjs").Position} Position */
/** @typedef {import("./geometry.mjs").Size} Size */
/** @typedef {import("./geometry.mjs").View} View */
/** @typedef {import("./tools.mjs").Selection} Selection */
/** @typedef {import("./hit.mjs").Hit} Hit */
/** @typedef {"overlay" | "checker" | "black" | "white" | "alpha" | "none"} Backdrop */
/** @typedef {{ canvas: HTMLCanvasElement, density: number }} Layer density: device pixels for one CSS pixel */
/**
 * @typedef {object} Matte
 * @property {HTMLCanvasElement} alpha white, with the matte as its alpha
 * @property {readonly [number, number, number, number]} region x, y, width, height in pixels of the matte
 * @property {readonly [number, number]} of size of the whole matte
 * @property {string} stage
 * @property {number} score
 */

export const BACKDROPS = Object.freeze(
  /** @type {const} */ (["overlay", "checker", "black", "white", "alpha", "none"]),
);
const CHECKER_PX = 8;
const STROKE_OPACITY = 0.55;
const OTHERS_OPACITY = 0.35;

/**
 * @param {number} width
 * @param {number} height
 * @returns {HTMLCanvasElement}
 */
function blankCanvas(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width));
  canvas.height = Math.max(1, Math.round(height));
  return canvas;
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {CanvasRenderingContext2DSettings} [settings]
 */
function contextOf(canvas, settings) {
  const context = canvas.getContext("2d", settings);
  if (context === null) {
    throw new Error("This browser gives no 2D canvas.");
  }
  return context;
}

/**
 * @param {CanvasImageSource} image
 * @returns {Size} in its own pixels
 */
export function sizeOf(image) {
  if (image instanceof HTMLImageElement) {
    return { width: image.naturalWidth, height: image.naturalHeight };
  }
  if (typeof HTMLVideoElement !== "undefined" && image instanceof HTMLVideoElement) {
    return { width: image.videoWidth, height: image.videoHeight };
  }
  const { width, height } = /** @type {HTMLCanvasElement} */ (image);
  return { width: Number(width), height: Number(height) };
}

/**
 * @param {CanvasImageSource} image a matte as grey values
 * @param {Pick<Matte, "region" | "of" | "stage" | "score">} about
 * @returns {Matte}
 */
export function matteFromGrey(image, about) {
  const { width, height } = sizeOf(image);
  const alpha = blankCanvas(width, height);
  // Read on one canvas and kept on another: one that is read stays out of the graphics card's memory.
  const reading = contextOf(blankCanvas(width, height), { willReadFrequently: true });
  reading.drawImage(image, 0, 0);
  const pixels = reading.getImageData(0, 0, alpha.width, alpha.height);
  const { data } = pixels;
  for (let i = 0; i < data.length; i += 4) {
    data[i + 3] = data[i] ?? 0;
    data[i] = 255;
    data[i + 1] = 255;
    data[i + 2] = 255;
  }
  contextOf(alpha).putImageData(pixels, 0, 0);
  return { alpha, ...about };
}

/**
 * The picture at full size and at halves of it. A large picture that is shown small is drawn from the half that comes
 * next: smoother than one large step, and no slower for 12 million pixels than for one.
 */
export class Picture {
  /** @type {{ image: CanvasImageSource, width: number, height: number }[]} */
  #halves;
  /** @type {Size} */
  size;

  /**
   * @param {CanvasImageSource} image
   * @param {Size} size of the original, which the coordinates count in
   */
  constructor(image, size) {
    this.image = image;
    this.size = size;
    this.#halves = [{ image, ...sizeOf(image) }];
  }

  /** @returns {readonly Size[]} of all images that it holds */
  get images() {
    return this.#halves;
  }

  /**
   * @param {CanvasRenderingContext2D} context with device pixels as its unit
   * @param {View} view in device pixels
   * @param {Size} room device pixels
   */
  draw(context, view, room) {
    let level = this.#halves[0];
    if (level === undefined || level.width < 1 || level.height < 1) {
      return;
    }
    const shownWidth = this.size.width * view.scale;
    for (let i = 1; shownWidth * 2 <= level.width && level.width > 512; i += 1) {
      level = this.#halves[i] ?? this.#half(level);
    }
    const from = toPicture(view, { x: 0, y: 0 });
    const to = toPicture(view, { x: room.width, y: room.height });
    const x = Math.max(0, Math.floor(from.x));
    const y = Math.max(0, Math.floor(from.y));
    const width = Math.min(this.size.width, Math.ceil(to.x)) - x;
    const height = Math.min(this.size.height, Math.ceil(to.y)) - y;
    if (width <= 0 || height <= 0) {
      return;
    }
    const along = level.width / this.size.width;
    const down = level.height / this.size.height;
    const at = toCanvas(view, { x, y });
    // Pixels that are larger than a few device pixels are what the user zoomed in to see.
    context.imageSmoothingEnabled = view.scale / along < 4;
    context.imageSmoothingQuality = "medium";
    context.drawImage(
      level.image,
      x * along,
      y * down,
      width * along,
      height * down,
      at.x,
      at.y,
      width * view.scale,
      height * view.scale,
    );
  }

  /** @param {{ image: CanvasImageSource, width: number, height: number }} level */
  #half(level) {
    const image = blankCanvas(level.width / 2, level.height / 2);
    const context = contextOf(image);
    context.imageSmoothingQuality = "high";
    context.drawImage(level.image, 0, 0, image.width, image.height);
    const half = { image, width: image.width, height: image.height };
    this.#halves.push(half);
    return half;
  }
}

/**
 * @param {Layer} layer
 * @param {View} view
 * @returns {View} in device pixels
 */
function inDevicePixels(layer, view) {
  return { scale: view.scale * layer.density, x: view.x * layer.density, y: view.y * layer.density };
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {CanvasImageSource} image
 * @param {Matte} matte
 * @param {Size} picture
 * @param {View} view in device pixels
 */
function drawOnRegion(context, image, matte, picture, view) {
  const along = picture.width / matte.of[0];
  const down = picture.height / matte.of[1];
  const [x, y, width, height] = matte.region;
  const at = toCanvas(view, { x: x * along, y: y * down });
  context.imageSmoothingEnabled = true;
  context.drawImage(image, at.x, at.y, width * along * view.scale, height * down * view.scale);
}

/** Paints the lower canvas. */
export class ScenePainter {
  /** @type {HTMLCanvasElement | null} */
  #subject = null;
  /** @type {WeakMap<Matte, { color: string, tinted: HTMLCanvasElement }>} */
  #tints = new WeakMap();
  /** @type {{ pattern: CanvasPattern | null, px: number } | null} */
  #checker = null;

  /**
   * @param {Layer} layer
   * @param {object} scene
   * @param {Picture | null} scene.picture
   * @param {View} scene.view
   * @param {readonly { matte: Matte, color: string }[]} scene.mattes in the order of their targets
   * @param {Backdrop} scene.backdrop
   * @param {number} scene.opacity of the overlay, 0 to 1
   * @param {boolean} scene.stale whether the picture is not yet the frame that was chosen
   */
  paint(layer, { picture, view, mattes, backdrop, opacity, stale }) {
    const context = contextOf(layer.canvas);
    const room = { width: layer.canvas.width, height: layer.canvas.height };
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.globalAlpha = 1;
    context.clearRect(0, 0, room.width, room.height);
    if (picture === null) {
      return;
    }
    const device = inDevicePixels(layer, view);
    context.globalAlpha = stale ? 0.45 : 1;
    const cutOut = backdrop === "checker" || backdrop === "black" || backdrop === "white" || backdrop === "alpha";
    if (!cutOut || mattes.length === 0) {
      picture.draw(context, device, room);
      if (backdrop === "overlay") {
        context.globalAlpha *= opacity;
        for (const { matte, color } of mattes) {
          drawOnRegion(context, this.#tinted(matte, color), matte, picture.size, device);
        }
      }
      context.globalAlpha = 1;
      return;
    }
    this.#fillBackdrop(context, layer, picture, device, backdrop);
    const subject = this.#subjectCanvas(room);
    const cut = contextOf(subject);
    cut.globalCompositeOperation = "source-over";
    cut.clearRect(0, 0, room.width, room.height);
    for (const { matte } of mattes) {
      drawOnRegion(cut, matte.alpha, matte, picture.size, device);
    }
    if (backdrop !== "alpha") {
      cut.globalCompositeOperation = "source-in";
      picture.draw(cut, device, room);
    }
    context.drawImage(subject, 0, 0);
    context.globalAlpha = 1;
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {Layer} layer
   * @param {Picture} picture
   * @param {View} device
   * @param {Backdrop} backdrop
   */
  #fillBackdrop(context, layer, picture, device, backdrop) {
    /** @type {string | CanvasPattern} */
    let fill = backdrop === "white" ? "#fff" : "#000";
    if (backdrop === "checker") {
      fill = this.#checkerPattern(context, Math.max(1, Math.round(CHECKER_PX * layer.density))) ?? "#999";
    }
    context.fillStyle = fill;
    context.fillRect(device.x, device.y, picture.size.width * device.scale, picture.size.height * device.scale);
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {number} px
   */
  #checkerPattern(context, px) {
    if (this.#checker?.px !== px) {
      const tile = blankCanvas(2 * px, 2 * px);
      const painted = contextOf(tile);
      painted.fillStyle = "#c8c8c8";
      painted.fillRect(0, 0, 2 * px, 2 * px);
      painted.fillStyle = "#8c8c8c";
      painted.fillRect(0, 0, px, px);
      painted.fillRect(px, px, px, px);
      this.#checker = { pattern: context.createPattern(tile, "repeat"), px };
    }
    return this.#checker?.pattern ?? null;
  }

  /** @param {Size} room */
  #subjectCanvas(room) {
    if (this.#subject?.width !== room.width || this.#subject.height !== room.height) {
      this.#subject = blankCanvas(room.width, room.height);
    }
    return this.#subject;
  }

  /**
   * @param {Matte} matte
   * @param {string} color
   */
  #tinted(matte, color) {
    const known = this.#tints.get(matte);
    if (known?.color === color) {
      return known.tinted;
    }
    const tinted = blankCanvas(matte.alpha.width, matte.alpha.height);
    const context = contextOf(tinted);
    context.fillStyle = color;
    context.fillRect(0, 0, tinted.width, tinted.height);
    context.globalCompositeOperation = "destination-in";
    context.drawImage(matte.alpha, 0, 0);
    this.#tints.set(matte, { color, tinted });
    return tinted;
  }
}

/** @type {Map<string, HTMLCanvasElement>} */
const hatchTiles = new Map();

/**
 * Strokes that are not the subject are hatched, so that they are told apart without their colour.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {string} ground
 * @param {string} line
 * @param {boolean} rising
 * @returns {CanvasPattern | string}
 */
function hatching(context, ground, line, rising) {
  const key = `${ground} ${line} ${rising}`;
  let tile = hatchTiles.get(key);
  if (tile === undefined) {
    const px = 10;
    tile = blankCanvas(px, px);
    const painted = contextOf(tile);
    painted.fillStyle = ground;
    painted.fillRect(0, 0, px, px);
    painted.strokeStyle = line;
    painted.lineWidth = 2.5;
    // Twice beyond the tile, so that its corners meet those of the next.
    for (const shift of [-px, 0, px]) {
      painted.beginPath();
      painted.moveTo(shift, rising ? px : 0);
      painted.lineTo(shift + px, rising ? 0 : px);
      painted.stroke();
    }
    hatchTiles.set(key, tile);
  }
  return context.createPattern(tile, "repeat") ?? ground;
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Stroke["kind"]} kind
 * @param {string} color of the target
 * @returns {string | CanvasPattern}
 */
function strokePaint(context, kind, color) {
  if (kind === "background") {
    return hatching(context, "#0c0c10", "#6a6a76", false);
  }
  return kind === "unknown" ? hatching(context, "#f4f4f8", "#70707c", true) : color;
}

/**
 * @param {CanvasRenderingContext2D} context with device pixels as its unit
 * @param {Stroke} stroke
 * @param {string} color
 * @param {View} view in device pixels
 */
function drawStroke(context, stroke, color, view) {
  const { path } = stroke;
  context.globalCompositeOperation = stroke.kind === "eraser" ? "destination-out" : "source-over";
  context.lineWidth = stroke.width * view.scale;
  context.lineCap = "round";
  context.lineJoin = "round";
  context.strokeStyle = strokePaint(context, stroke.kind, color);
  context.beginPath();
  for (let i = 0; i + 1 < path.length; i += 2) {
    const at = toCanvas(view, { x: path[i] ?? 0, y: path[i + 1] ?? 0 });
    if (i === 0) {
      // A path of one corner is a dab: without a line of no length nothing would be painted.
      context.moveTo(at.x, at.y);
    }
    context.lineTo(at.x, at.y);
  }
  context.stroke();
}

/**
 * @param {View} one
 * @param {View} other
 */
function isSameView(one, other) {
  return one.scale === other.scale && one.x === other.x && one.y === other.y;
}

/** Paints the upper canvas. */
export class PromptPainter {
  /**
   * The strokes painted so far of the target that is edited: while one more is drawn, the others are not painted anew.
   *
   * @type {{ canvas: HTMLCanvasElement, strokes: readonly Stroke[], color: string, view: View } | null}
   */
  #painted = null;
  /** @type {{ canvas: HTMLCanvasElement, view: View, of: { strokes: readonly Stroke[], color: string }[] } | null} */
  #others = null;
  /** @type {HTMLCanvasElement | null} */
  #passing = null;

  /**
   * @param {Layer} layer
   * @param {object} scene
   * @param {View} scene.view
   * @param {readonly { prompt: Prompt, color: string, active: boolean }[]} scene.prompts
   * @param {Selection} scene.selection
   * @param {Hit | null} scene.hovered
   * @param {number} scene.pointSize diameter in CSS pixels
   * @param {boolean} scene.handles whether the box of the active target shows its handles
   * @param {{ at: Position, width: number, eraser: boolean } | null} scene.brush diameter in pixels of the picture
   * @param {Position | null} scene.crosshair where a key would set a point
   */
  paint(layer, { view, prompts, selection, hovered, pointSize, handles, brush, crosshair }) {
    const context = contextOf(layer.canvas);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, layer.canvas.width, layer.canvas.height);
    const device = inDevicePixels(layer, view);
    const painted = prompts.filter(({ prompt }) => prompt.strokes.length > 0);
    const others = painted.filter(({ active }) => !active);
    if (others.length > 0) {
      context.drawImage(this.#othersStrokes(layer, others, device), 0, 0);
    }
    for (const { prompt, color } of painted.filter(({ active }) => active)) {
      context.globalAlpha = STROKE_OPACITY;
      context.drawImage(this.#activeStrokes(layer, prompt.strokes, color, device), 0, 0);
    }
    context.setTransform(layer.density, 0, 0, layer.density, 0, 0);
    // The active target lies above the others, whatever its place in the list.
    for (const { prompt, color, active } of [...prompts].sort((a, b) => Number(a.active) - Number(b.active))) {
      context.globalAlpha = active ? 1 : OTHERS_OPACITY;
      if (prompt.box !== null) {
        const chosen = active && (selection?.kind === "box" || hovered?.kind === "box");
        drawBox(context, prompt.box, color, view, active && (handles || chosen), chosen);
      }
      prompt.points.forEach((point, index) => {
        const chosen = active && selection?.kind === "point" && selection.index === index;
        const near = active && hovered?.kind === "point" && hovered.index === index;
        drawPoint(context, toCanvas(view, point), point.label === 1, color, pointSize, chosen, near);
      });
    }
    context.globalAlpha = 1;
    if (brush !== null) {
      drawBrush(context, brush.at, (brush.width / 2) * view.scale, brush.eraser);
    }
    if (crosshair !== null) {
      drawCrosshair(context, crosshair);
    }
  }

  /**
   * @param {Layer} layer
   * @param {readonly { prompt: Prompt, color: string }[]} others
   * @param {View} view in device pixels
   * @returns {HTMLCanvasElement} dimmed; painted anew only when one of them or the view is another
   */
  #othersStrokes(layer, others, view) {
    const { width, height } = layer.canvas;
    const known = this.#others;
    const same =
      known !== null &&
      known.canvas.width === width &&
      known.canvas.height === height &&
      isSameView(known.view, view) &&
      known.of.length === others.length &&
      known.of.every(({ strokes, color }, i) => strokes === others[i]?.prompt.strokes && color === others[i]?.color);
    if (same) {
      return known.canvas;
    }
    const canvas = blankCanvas(width, height);
    const context = contextOf(canvas);
    context.globalAlpha = STROKE_OPACITY * OTHERS_OPACITY;
    const passing = this.#cleared(width, height);
    for (const { prompt, color } of others) {
      const painted = contextOf(passing);
      painted.globalCompositeOperation = "source-over";
      painted.clearRect(0, 0, width, height);
      for (const stroke of prompt.strokes) {
        drawStroke(painted, stroke, color, view);
      }
      context.drawImage(passing, 0, 0);
    }
    this.#others = { canvas, view, of: others.map(({ prompt, color }) => ({ strokes: prompt.strokes, color })) };
    return canvas;
  }

  /**
   * @param {Layer} layer
   * @param {readonly Stroke[]} strokes
   * @param {string} color
   * @param {View} view in device pixels
   * @returns {HTMLCanvasElement} opaque
   */
  #activeStrokes(layer, strokes, color, view) {
    const { width, height } = layer.canvas;
    const passing = this.#cleared(width, height);
    const context = contextOf(passing);
    context.drawImage(this.#settled(strokes.slice(0, -1), color, view, width, height), 0, 0);
    const last = strokes.at(-1);
    if (last !== undefined) {
      drawStroke(context, last, color, view);
    }
    return passing;
  }

  /**
   * @param {number} width
   * @param {number} height
   * @returns {HTMLCanvasElement}
   */
  #cleared(width, height) {
    if (this.#passing?.width !== width || this.#passing.height !== height) {
      this.#passing = blankCanvas(width, height);
      this.#painted = null;
    }
    const context = contextOf(this.#passing);
    context.globalCompositeOperation = "source-over";
    context.clearRect(0, 0, width, height);
    return this.#passing;
  }

  /**
   * @param {readonly Stroke[]} strokes
   * @param {string} color
   * @param {View} view
   * @param {number} width
   * @param {number} height
   */
  #settled(strokes, color, view, width, height) {
    const known = this.#painted;
    const grown =
      known !== null &&
      known.color === color &&
      isSameView(known.view, view) &&
      known.strokes.length <= strokes.length &&
      known.strokes.every((stroke, i) => stroke === strokes[i]);
    const canvas = known?.canvas ?? blankCanvas(width, height);
    const context = contextOf(canvas);
    if (!grown) {
      context.globalCompositeOperation = "source-over";
      context.clearRect(0, 0, width, height);
    }
    for (const stroke of strokes.slice(grown ? known.strokes.length : 0)) {
      drawStroke(context, stroke, color, view);
    }
    this.#painted = { canvas, strokes, color, view };
    return canvas;
  }
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {import("./drawing.mjs").Box} box
 * @param {string} color
 * @param {View} view
 * @param {boolean} handles
 * @param {boolean} chosen
 */
function drawBox(context, box, color, view, handles, chosen) {
  const from = toCanvas(view, box);
  const width = box.width * view.scale;
  const height = box.height * view.scale;
  context.lineJoin = "miter";
  context.strokeStyle = "rgba(0, 0, 0, 0.65)";
  context.lineWidth = chosen ? 4.5 : 3.5;
  context.strokeRect(from.x, from.y, width, height);
  context.strokeStyle = color;
  context.lineWidth = chosen ? 2.5 : 1.5;
  context.strokeRect(from.x, from.y, width, height);
  if (!handles) {
    return;
  }
  const size = 7;
  for (const x of [from.x, from.x + width / 2, from.x + width]) {
    for (const y of [from.y, from.y + height / 2, from.y + height]) {
      const middle = x === from.x + width / 2 && y === from.y + height / 2;
      const corner = x !== from.x + width / 2 && y !== from.y + height / 2;
      const room = corner || (x === from.x + width / 2 ? width : height) >= 4 * size;
      if (!middle && room) {
        context.fillStyle = "#fff";
        context.fillRect(x - size / 2, y - size / 2, size, size);
        context.strokeStyle = "rgba(0, 0, 0, 0.8)";
        context.lineWidth = 1;
        context.strokeRect(x - size / 2, y - size / 2, size, size);
      }
    }
  }
}

/**
 * A plus or a minus says which kind it is; the colour says whose it is.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {Position} at
 * @param {boolean} positive
 * @param {string} color
 * @param {number} size
 * @param {boolean} chosen
 * @param {boolean} near
 */
function drawPoint(context, at, positive, color, size, chosen, near) {
  const radius = (size / 2) * (near || chosen ? 1.2 : 1);
  context.beginPath();
  context.arc(at.x, at.y, radius + 1.5, 0, 2 * Math.PI);
  context.fillStyle = "rgba(0, 0, 0, 0.7)";
  context.fill();
  context.beginPath();
  context.arc(at.x, at.y, radius, 0, 2 * Math.PI);
  context.fillStyle = positive ? color : "#fff";
  context.fill();
  context.lineWidth = 1.5;
  context.strokeStyle = positive ? "#fff" : color;
  context.stroke();
  const arm = radius * 0.55;
  context.beginPath();
  context.moveTo(at.x - arm, at.y);
  context.lineTo(at.x + arm, at.y);
  if (positive) {
    context.moveTo(at.x, at.y - arm);
    context.lineTo(at.x, at.y + arm);
  }
  context.lineWidth = Math.max(1.5, size / 7);
  context.lineCap = "round";
  context.strokeStyle = "#111";
  context.stroke();
  if (chosen) {
    context.beginPath();
    context.arc(at.x, at.y, radius + 4, 0, 2 * Math.PI);
    context.lineWidth = 3.5;
    context.strokeStyle = "rgba(0, 0, 0, 0.65)";
    context.stroke();
    context.lineWidth = 1.5;
    context.strokeStyle = "#fff";
    context.stroke();
  }
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Position} at
 * @param {number} radius CSS pixels
 * @param {boolean} eraser
 */
function drawBrush(context, at, radius, eraser) {
  context.beginPath();
  context.arc(at.x, at.y, Math.max(1.5, radius), 0, 2 * Math.PI);
  context.lineWidth = 3;
  context.strokeStyle = "rgba(0, 0, 0, 0.6)";
  context.stroke();
  context.lineWidth = 1.25;
  context.strokeStyle = "#fff";
  context.setLineDash(eraser ? [4, 3] : []);
  context.stroke();
  context.setLineDash([]);
  // The middle stays visible where the circle is larger than what is looked at.
  context.fillStyle = "#fff";
  context.fillRect(at.x - 0.75, at.y - 0.75, 1.5, 1.5);
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Position} at
 */
function drawCrosshair(context, at) {
  for (const [width, color] of /** @type {const} */ ([
    [3, "rgba(0, 0, 0, 0.65)"],
    [1.25, "#fff"],
  ])) {
    context.beginPath();
    for (const [dx, dy] of /** @type {const} */ ([
      [1, 0],
      [-1, 0],
      [0, 1],
      [0, -1],
    ])) {
      context.moveTo(at.x + 3 * dx, at.y + 3 * dy);
      context.lineTo(at.x + 11 * dx, at.y + 11 * dy);
    }
    context.lineWidth = width;
    context.strokeStyle = color;
    context.stroke();
  }
}
