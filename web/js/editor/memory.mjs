/**
 * What editors out of sight may keep in memory: those of deleted nodes and of other workflows, for an undo or a return,
 * and those in subgraphs that are not open.
 *
 * Their decoded pixels are bounded in bytes, because one photo weighs as much as a hundred small pictures. An editor
 * that has to give up its pixels keeps its drawing, history and view, and loads the picture when it is shown again.
 */

/** Four photos of 12 million pixels, with the halves that they are painted from. */
const MOST_BYTES = 256 * 2 ** 20;
const BYTES_PER_PIXEL = 4;

/**
 * @param {Iterable<{ width: number, height: number }>} images
 * @returns {number} what they take when they are decoded
 */
export function decodedBytes(images) {
  let pixels = 0;
  for (const { width, height } of images) {
    pixels += width * height;
  }
  return pixels * BYTES_PER_PIXEL;
}

/**
 * @template {{ seenAt: number, pixelBytes: number }} T
 * @param {readonly T[]} outOfSight
 * @param {number} [mostBytes]
 * @returns {T[]} those that have to give up their pixels: the ones last seen keep theirs, as far as the bytes go
 */
export function beyondMemory(outOfSight, mostBytes = MOST_BYTES) {
  let left = mostBytes;
  return [...outOfSight]
    .sort((a, b) => b.seenAt - a.seenAt)
    .filter(({ pixelBytes }) => {
      const keeps = pixelBytes <= left;
      left -= keeps ? pixelBytes : 0;
      return !keeps;
    });
}
