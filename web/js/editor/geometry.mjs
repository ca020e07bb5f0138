/**
 * Between pixels of the picture and CSS pixels of the canvas. A view says how the picture lies on the canvas:
 * canvas = picture * scale + offset.
 */

/** @typedef {{ readonly x: number, readonly y: number }} Position */
/** @typedef {{ readonly width: number, readonly height: number }} Size */
/** @typedef {{ readonly scale: number, readonly x: number, readonly y: number }} View */
/** @typedef {import("./drawing.mjs").Box} Box */

/** The largest a pixel of the picture may be on the canvas, in CSS pixels. */
export const MOST_SCALE = 40;
/** How much of the picture stays in sight however far it is panned, in CSS pixels. */
const ALWAYS_VISIBLE = 48;

/**
 * @param {Size} picture
 * @param {Size} canvas
 * @param {number} [margin] CSS pixels left free on every side
 * @returns {View} the whole picture in the middle of the canvas
 */
export function fit(picture, canvas, margin = 0) {
  const scale = Math.min(
    Math.max(1, canvas.width - 2 * margin) / Math.max(1, picture.width),
    Math.max(1, canvas.height - 2 * margin) / Math.max(1, picture.height),
    MOST_SCALE,
  );
  return {
    scale,
    x: (canvas.width - picture.width * scale) / 2,
    y: (canvas.height - picture.height * scale) / 2,
  };
}

/**
 * @param {View} view
 * @param {Position} position on the canvas
 * @returns {{ x: number, y: number }} on the picture
 */
export function toPicture(view, position) {
  return { x: (position.x - view.x) / view.scale, y: (position.y - view.y) / view.scale };
}

/**
 * @param {View} view
 * @param {Position} position on the picture
 * @returns {{ x: number, y: number }} on the canvas
 */
export function toCanvas(view, position) {
  return { x: position.x * view.scale + view.x, y: position.y * view.scale + view.y };
}

/**
 * @param {View} view
 * @param {number} factor
 * @param {Position} about the place on the canvas that stays where it is
 * @param {Size} picture
 * @param {Size} canvas
 * @returns {View} between half of the fitted size and MOST_SCALE
 */
export function zoom(view, factor, about, picture, canvas) {
  const least = Math.min(fit(picture, canvas).scale / 2, MOST_SCALE);
  const scale = Math.min(MOST_SCALE, Math.max(least, view.scale * factor));
  const ratio = scale / view.scale;
  return { scale, x: about.x - (about.x - view.x) * ratio, y: about.y - (about.y - view.y) * ratio };
}

/**
 * @param {View} view
 * @param {number} dx CSS pixels
 * @param {number} dy CSS pixels
 * @returns {View}
 */
export function pan(view, dx, dy) {
  return { scale: view.scale, x: view.x + dx, y: view.y + dy };
}

/**
 * @param {View} view
 * @param {Size} picture
 * @param {Size} canvas
 * @returns {View} the same, moved no more than needed for a part of the picture to be in sight
 */
export function keepInSight(view, picture, canvas) {
  /** @param {number} offset @param {number} length @param {number} room */
  const inSight = (offset, length, room) => {
    const visible = Math.min(ALWAYS_VISIBLE, length, room);
    return Math.min(room - visible, Math.max(visible - length, offset));
  };
  return {
    scale: view.scale,
    x: inSight(view.x, picture.width * view.scale, canvas.width),
    y: inSight(view.y, picture.height * view.scale, canvas.height),
  };
}

/**
 * The same picture part in the middle, after the canvas changed its size.
 *
 * @param {View} view
 * @param {Size} before
 * @param {Size} after
 * @returns {View}
 */
export function recentre(view, before, after) {
  return pan(view, (after.width - before.width) / 2, (after.height - before.height) / 2);
}

/**
 * @param {Position} from
 * @param {Position} to
 * @returns {Box} with width and height not negative, whichever way it was drawn
 */
export function uprightBox(from, to) {
  return {
    x: Math.min(from.x, to.x),
    y: Math.min(from.y, to.y),
    width: Math.abs(to.x - from.x),
    height: Math.abs(to.y - from.y),
  };
}

/**
 * @param {Position} position
 * @param {Size} picture
 * @returns {{ x: number, y: number }} the nearest place on the picture
 */
export function ontoPicture(position, picture) {
  return {
    x: Math.min(picture.width, Math.max(0, position.x)),
    y: Math.min(picture.height, Math.max(0, position.y)),
  };
}

/**
 * @param {Position} position
 * @param {Position} from
 * @param {Position} to
 * @returns {number} distance from the segment between `from` and `to`
 */
export function distanceToSegment(position, from, to) {
  const dx = to.x - from.x;
  const dy = to.y - from.y;
  const length = dx * dx + dy * dy;
  const share = length === 0 ? 0 : ((position.x - from.x) * dx + (position.y - from.y) * dy) / length;
  const along = Math.min(1, Math.max(0, share));
  return Math.hypot(position.x - from.x - along * dx, position.y - from.y - along * dy);
}

/** Corners simplified together: the time grows with the square of this, whatever the path looks like. */
const SPAN_CORNERS = 256;

/**
 * Leaves out the corners of a path that lie within `tolerance` of the line without them (Ramer 1972, Douglas and
 * Peucker 1973). First and last corner stay, and in a long path a corner every SPAN_CORNERS.
 *
 * @param {readonly number[]} path x0, y0, x1, y1, ...
 * @param {number} tolerance in the path's own unit
 * @returns {number[]}
 */
export function simplify(path, tolerance) {
  const count = path.length / 2;
  if (count <= 2) {
    return [...path];
  }
  /** @param {number} i */
  const corner = (i) => ({ x: path[2 * i] ?? 0, y: path[2 * i + 1] ?? 0 });
  const kept = new Uint8Array(count);
  kept[0] = 1;
  /** @type {[number, number][]} */
  const spans = [];
  for (let first = 0; first < count - 1; first += SPAN_CORNERS) {
    const last = Math.min(count - 1, first + SPAN_CORNERS);
    kept[last] = 1;
    spans.push([first, last]);
  }
  for (let span = spans.pop(); span !== undefined; span = spans.pop()) {
    const [first, last] = span;
    const from = corner(first);
    const to = corner(last);
    let farthest = -1;
    let most = tolerance;
    for (let i = first + 1; i < last; i += 1) {
      const distance = distanceToSegment(corner(i), from, to);
      if (distance > most) {
        most = distance;
        farthest = i;
      }
    }
    if (farthest > 0) {
      kept[farthest] = 1;
      spans.push([first, farthest], [farthest, last]);
    }
  }
  /** @type {number[]} */
  const simple = [];
  for (let i = 0; i < count; i += 1) {
    if (kept[i]) {
      const { x, y } = corner(i);
      simple.push(x, y);
    }
  }
  return simple;
}
