/**
 * "Matte this image": a ready chain of nodes behind any picture, from the models to the cut-out.
 *
 * Without a model file on the server the chain has no loaders, so that it gives a matte at once by the classical
 * engine instead of downloading.
 */

/** @typedef {import("./source.mjs").GraphNode} GraphNode */
/**
 * @typedef {object} Part
 * @property {string} key
 * @property {string} type
 * @property {number} column
 * @property {Record<string, unknown>} [values] by widget
 * @property {Record<string, [string, string | number]>} [from] input -> key of a part and name or index of its output
 */

const GAP_PX = 60;
const TITLE_PX = 40;

/**
 * The SAM and the Mask-to-Matte file that go together.
 *
 * @param {readonly string[]} sams files in models/sams
 * @param {readonly string[]} m2ms files in models/mam
 * @returns {{ sam: string, m2m: string } | null} the first pair of one size, of SAMs under their published names if
 *   there is one; else the first of each; null without both
 */
export function modelPair(sams, m2ms) {
  const size = (/** @type {string} */ name) => /vit_?([blh])/i.exec(name)?.[1]?.toLowerCase();
  const asPublished = (/** @type {string} */ name) => /(?:^|[\\/])sam_vit_[blh]/i.test(name);
  // Other packs keep SAM-HQ and others in models/sams, whose names hold the same sizes and come first in the alphabet.
  for (const sam of [...sams.filter(asPublished), ...sams]) {
    const m2m = m2ms.find((candidate) => size(candidate) !== undefined && size(candidate) === size(sam));
    if (m2m !== undefined) {
      return { sam, m2m };
    }
  }
  const [sam, m2m] = [sams[0], m2ms[0]];
  return sam !== undefined && m2m !== undefined ? { sam, m2m } : null;
}

/**
 * @param {{ sam: string, m2m: string } | null} models
 * @param {number} imageSlot output of the node that the chain hangs on; that node's key is "source"
 * @returns {Part[]}
 */
export function chainParts(models, imageSlot) {
  /** @type {Part[]} */
  const loaders = models
    ? [
        { key: "sam", type: "MAM_LoadSAM", column: 0, values: { sam_name: models.sam } },
        { key: "m2m", type: "MAM_LoadM2M", column: 0, values: { m2m_name: models.m2m } },
      ]
    : [];
  const first = loaders.length > 0 ? 1 : 0;
  /** @type {Part["from"]} */
  const engine = models ? { sam: ["sam", 0], m2m: ["m2m", 0] } : {};
  return [
    ...loaders,
    {
      key: "editor",
      type: "MAM_PromptEditor",
      column: first,
      from: { image: ["source", imageSlot], ...engine },
    },
    {
      key: "composite",
      type: "MAM_Composite",
      column: first + 1,
      from: { image: ["editor", "image"], alpha: ["editor", "alpha"] },
    },
    { key: "preview", type: "PreviewImage", column: first + 2, from: { images: ["composite", "cutout"] } },
  ];
}

/**
 * @param {GraphNode} node
 * @returns {number} the first output that is a picture, -1 without one
 */
export function imageOutput(node) {
  return node.outputs?.findIndex(({ type }) => type === "IMAGE") ?? -1;
}

/**
 * Puts the chain behind a node and links it, as one step of the graph's undo.
 *
 * @param {object} platform
 * @param {(type: string) => any} platform.createNode
 * @param {(folder: string) => Promise<string[]>} platform.modelFiles
 * @param {any} source a node with an image output
 * @returns {Promise<any>} the new editor node
 */
export async function matteThisImage({ createNode, modelFiles }, source) {
  const models = modelPair(await modelFiles("sams"), await modelFiles("mam"));
  const { graph } = source;
  const parts = chainParts(models, imageOutput(source));
  graph.beforeChange();
  try {
    /** @type {Map<string, any>} */
    const nodes = new Map(parts.map(({ key, type }) => [key, createNode(type)]));
    nodes.set("source", source);
    for (const { key, values = {} } of parts) {
      for (const widget of nodes.get(key).widgets ?? []) {
        if (widget.name in values) {
          widget.value = values[widget.name];
        }
      }
    }
    place(parts, nodes, source);
    for (const { key } of parts) {
      graph.add(nodes.get(key));
    }
    for (const { key, from = {} } of parts) {
      for (const [input, [origin, output]] of Object.entries(from)) {
        const before = nodes.get(origin);
        const slot = typeof output === "number" ? output : before.findOutputSlot(output);
        before.connect(slot, nodes.get(key), nodes.get(key).findInputSlot(input));
      }
    }
    return nodes.get("editor");
  } finally {
    graph.afterChange();
  }
}

/**
 * Columns to the right of the source, below whatever is there already.
 *
 * @param {readonly Part[]} parts
 * @param {Map<string, any>} nodes
 * @param {any} source
 */
function place(parts, nodes, source) {
  let x = source.pos[0] + source.size[0] + GAP_PX;
  const left = x;
  const columns = Math.max(...parts.map(({ column }) => column)) + 1;
  /** @type {{ node: any, x: number, y: number }[]} */
  const places = [];
  let height = 0;
  for (let column = 0; column < columns; column += 1) {
    const stack = parts.filter((part) => part.column === column).map(({ key }) => nodes.get(key));
    let y = 0;
    for (const node of stack) {
      places.push({ node, x, y });
      y += node.size[1] + TITLE_PX + GAP_PX;
    }
    height = Math.max(height, y);
    x += Math.max(...stack.map((node) => node.size[0])) + GAP_PX;
  }
  const top = clearTop(source.graph.nodes, { left, right: x, height }, source.pos[1]);
  for (const { node, x: across, y } of places) {
    node.pos = [across, top + y];
  }
}

/**
 * @param {readonly any[]} others
 * @param {{ left: number, right: number, height: number }} block
 * @param {number} top where it is wanted
 * @returns {number} the first place from there downwards where the block covers no node
 */
export function clearTop(others, block, top) {
  let free = top;
  for (;;) {
    const covered = others.filter(
      ({ pos, size }) =>
        pos[0] < block.right &&
        pos[0] + size[0] > block.left &&
        pos[1] - TITLE_PX < free + block.height &&
        pos[1] + size[1] > free - TITLE_PX,
    );
    if (covered.length === 0) {
      return free;
    }
    free = Math.max(...covered.map(({ pos, size }) => pos[1] + size[1])) + TITLE_PX + GAP_PX;
  }
}
