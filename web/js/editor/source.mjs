/**
 * Where an editor's picture comes from: the file of a Load Image node before it, which can be shown before anything has
 * run, or the picture of a live session.
 *
 * The links are followed as ComfyUI follows them when it makes the API prompt: through reroutes, over the borders of
 * subgraphs, past bypassed nodes.
 */

/**
 * @typedef {object} Link
 * @property {string | number} origin_id
 * @property {number} origin_slot
 * @property {string | number} target_id
 * @property {number} target_slot
 * @property {boolean} [originIsIoNode] whether it enters through the border of its subgraph
 */
/**
 * @typedef {object} Graph
 * @property {string} id
 * @property {GraphNode[]} nodes
 * @property {(id: any) => Link | undefined} getLink
 * @property {(id: any) => GraphNode | null | undefined} getNodeById
 */
/**
 * @typedef {object} GraphNode
 * @property {string | number} id
 * @property {string} [comfyClass]
 * @property {number} [mode]
 * @property {Graph | null} [graph]
 * @property {{ name: string, type: any, link?: any, widget?: { name: string } }[]} [inputs]
 * @property {{ name: string, type: any }[]} [outputs]
 * @property {Widget[]} [widgets]
 * @property {boolean} [isVirtualNode]
 * @property {Graph} [subgraph]
 * @property {() => boolean} [isSubgraphNode]
 * @property {() => { widgets_values?: unknown, properties?: unknown }} [serialize]
 * @property {(slot: number) => { link: Link, outputNode?: GraphNode } | undefined} [resolveSubgraphOutputLink]
 * @property {(slot: number) => { node: GraphNode, slot: number } | undefined} [resolveVirtualOutput]
 * @property {(slot: number) => Link | null | undefined} [getInputLink]
 */
/**
 * @typedef {object} Widget
 * @property {string} name
 * @property {any} [value]
 * @property {any} [options]
 * @property {Widget[]} [linkedWidgets]
 * @property {boolean} [dynamicPrompts] whether a run gets one of the {several|choices} in its text, by chance
 */
/** @typedef {{ node: GraphNode, slot: number }} Origin */
/** @typedef {{ filename: string, subfolder: string, type: string }} PictureFile */

const MUTED = 2;
const BYPASSED = 4;
const SUBGRAPH_INPUT = -10;
/** The nodes whose first output is the picture that their widget names, and where they look for it. */
const LOADERS = new Map([
  ["LoadImage", "input"],
  ["LoadImageOutput", "output"],
]);

/** @param {GraphNode} node */
function innerGraph(node) {
  return node.isSubgraphNode?.() ? node.subgraph : undefined;
}

/**
 * @param {Graph} root
 * @param {Graph | null | undefined} graph
 * @returns {GraphNode[][]} for each place where the graph stands in the workflow the subgraph nodes around it, the
 *   outermost first; one empty list for the workflow's own graph
 */
function placesOf(root, graph) {
  /** @type {GraphNode[][]} */
  const places = [];
  /** @param {Graph} within @param {GraphNode[]} around */
  const search = (within, around) => {
    if (within === graph) {
      places.push(around);
    }
    for (const node of within.nodes) {
      const inner = innerGraph(node);
      if (inner && !around.includes(node)) {
        search(inner, [...around, node]);
      }
    }
  };
  search(root, []);
  return places;
}

/**
 * @param {Graph} root the workflow's own graph
 * @param {GraphNode} node
 * @returns {string[]} the ids under which a node is executed: one for each place of its graph, e.g. "3:2"
 */
export function executionIds(root, node) {
  return placesOf(root, node.graph).map((around) => [...around, node].map(({ id }) => id).join(":"));
}

/**
 * @param {Graph} root the workflow's own graph
 * @param {string} executionId of a node, e.g. "3:2"
 * @param {string} inputName
 * @returns {unknown} what the widget holds of an input that each run gets anew: a seed under "control after generate",
 *   or a text with choices. undefined for any other input
 */
export function fleetingValue(root, executionId, inputName) {
  const path = pathTo(root, executionId);
  const slot = path.at(-1)?.inputs?.findIndex(({ name }) => name === inputName) ?? -1;
  const own = path.at(-1)?.widgets?.find(({ name }) => name === inputName);
  const holding = slot < 0 ? own : holdingWidget(path, slot);
  return [own, holding].some((widget) => widget && isFleeting(widget)) ? holding?.value : undefined;
}

/**
 * @param {Graph} root the workflow's own graph
 * @param {string} executionId of a node
 * @returns {string} what a workflow keeps of the node's widgets and settings
 */
export function nodeState(root, executionId) {
  const { widgets_values, properties } = pathTo(root, executionId).at(-1)?.serialize?.() ?? {};
  return JSON.stringify([widgets_values, properties]);
}

/**
 * @param {Graph} root
 * @param {string} executionId
 * @returns {GraphNode[]} the subgraph nodes around a node, the outermost first, and the node itself; none when there is
 *   no such node
 */
function pathTo(root, executionId) {
  /** @type {GraphNode[]} */
  const path = [];
  /** @type {Graph | undefined} */
  let graph = root;
  for (const id of executionId.split(":")) {
    const node = graph?.nodes.find((candidate) => String(candidate.id) === id);
    if (!node) {
      return [];
    }
    path.push(node);
    graph = innerGraph(node);
  }
  return path;
}

/** @param {Widget} widget */
function isFleeting({ linkedWidgets, dynamicPrompts }) {
  return dynamicPrompts || linkedWidgets?.some(({ options }) => options?.values?.includes?.("randomize"));
}

/**
 * @param {GraphNode[]} path to a node
 * @param {number} slot of an input that has a widget
 * @returns {Widget | undefined} the widget whose value the input gets: its own, that of a primitive node, or the one
 *   that stands for it at the border of its subgraph. undefined when another node computes it
 */
function holdingWidget(path, slot) {
  const node = path.at(-1);
  const input = node?.inputs?.[slot];
  const link = input && node?.graph?.getLink(input.link);
  if (!link) {
    return node?.widgets?.find(({ name }) => name === (input?.widget?.name ?? input?.name));
  }
  if (isFromBorder(link)) {
    return holdingWidget(path.slice(0, -1), link.origin_slot);
  }
  const origin = node?.graph?.getNodeById(link.origin_id);
  return origin?.isVirtualNode ? origin.widgets?.[0] : undefined;
}

/** @param {Link} link */
function isFromBorder(link) {
  return link.originIsIoNode ?? link.origin_id === SUBGRAPH_INPUT;
}

/**
 * @param {Graph} root the workflow's own graph
 * @param {GraphNode} node
 * @param {string} inputName
 * @returns {Origin | null} the output that the input really gets; null when nothing is connected
 */
export function originOf(root, node, inputName) {
  const slot = node.inputs?.findIndex((input) => input.name === inputName) ?? -1;
  const around = placesOf(root, node.graph)[0];
  return slot < 0 || !around ? null : resolveInput({ around, seen: new Set() }, node, slot);
}

/** @typedef {{ around: GraphNode[], seen: Set<GraphNode> }} Walk */

/**
 * @param {Walk} walk
 * @param {GraphNode} node
 * @param {number} slot
 * @param {any} [type] what is wanted, where the input itself takes anything
 * @returns {Origin | null}
 */
function resolveInput(walk, node, slot, type) {
  const input = node.inputs?.[slot];
  const link = input?.link === null || input?.link === undefined ? undefined : node.graph?.getLink(input.link);
  if (!input || !link) {
    return null;
  }
  if (isFromBorder(link)) {
    const border = walk.around.at(-1);
    const outside = { ...walk, around: walk.around.slice(0, -1) };
    return border ? resolveInput(outside, border, link.origin_slot, type) : null;
  }
  const origin = node.graph?.getNodeById(link.origin_id);
  return origin ? resolveOutput(walk, origin, link.origin_slot, type ?? input.type) : null;
}

/**
 * @param {Walk} walk
 * @param {GraphNode} node
 * @param {number} slot
 * @param {any} type
 * @returns {Origin | null}
 */
function resolveOutput(walk, node, slot, type) {
  const inner = innerGraph(node);
  if (walk.seen.has(node) || node.mode === MUTED) {
    return null;
  }
  const further = { ...walk, seen: new Set([...walk.seen, node]) };
  if (node.mode === BYPASSED) {
    const inputs = node.inputs ?? [];
    const passing = inputs[slot]?.type === type ? slot : inputs.findIndex((input) => input.type === type);
    return passing < 0 ? null : resolveInput(further, node, passing);
  }
  if (inner) {
    const found = node.resolveSubgraphOutputLink?.(slot);
    const within = { ...further, around: [...walk.around, node] };
    return found?.outputNode ? resolveOutput(within, found.outputNode, found.link.origin_slot, type) : null;
  }
  if (node.isVirtualNode) {
    const set = node.resolveVirtualOutput?.(slot);
    if (set) {
      return resolveOutput(further, set.node, set.slot, type);
    }
    const link = node.getInputLink?.(slot);
    const setter = link && node.graph?.getNodeById(link.target_id);
    return link && setter ? resolveInput(further, setter, link.target_slot, type) : null;
  }
  return { node, slot };
}

/**
 * @param {Origin | null} origin
 * @returns {PictureFile | null} the file that a Load Image node gives there
 */
export function pictureFile(origin) {
  const folder = LOADERS.get(origin?.node.comfyClass ?? "");
  const widget = origin?.node.widgets?.find(({ name }) => name === "image");
  const input = origin?.node.inputs?.find(({ name }) => name === "image");
  const isLinked = input?.link !== null && input?.link !== undefined;
  if (!origin || folder === undefined || origin.slot !== 0 || isLinked || typeof widget?.value !== "string") {
    return null;
  }
  const [, path = "", type = folder] = /^(.*?)(?: \[(input|output|temp)\])?$/.exec(widget.value) ?? [];
  const slash = path.replaceAll("\\", "/").lastIndexOf("/");
  const filename = path.slice(slash + 1);
  return filename ? { filename, subfolder: slash < 0 ? "" : path.slice(0, slash), type } : null;
}

/**
 * @param {PictureFile} file
 * @returns {string} the route that answers with the whole file
 */
export function viewRoute(file) {
  return `/view?${new URLSearchParams({ ...file })}`;
}

/**
 * Fetches a picture file as a node reads it: the colours as they are under any transparency, turned upright.
 *
 * @param {(path: string, options?: RequestInit) => Promise<Response>} fetchApi
 * @param {PictureFile} file
 * @returns {Promise<ImageBitmap>} of the file's own size in pixels
 */
export async function loadPicture(fetchApi, file) {
  const bitmap = await loadBitmap(fetchApi, viewRoute(file));
  if (!hasTransparency(bitmap)) {
    return bitmap;
  }
  bitmap.close();
  return loadBitmap(fetchApi, `${viewRoute(file)}&channel=rgb`);
}

/**
 * @param {(path: string, options?: RequestInit) => Promise<Response>} fetchApi
 * @param {string} route
 * @returns {Promise<ImageBitmap>}
 */
export async function loadBitmap(fetchApi, route) {
  // A file may have been replaced by one of the same name.
  const response = await fetchApi(route, { cache: "no-cache" });
  if (!response.ok) {
    throw new Error(`${response.status} ${response.statusText}`);
  }
  return createImageBitmap(await response.blob());
}

/** @param {ImageBitmap} bitmap */
function hasTransparency(bitmap) {
  const side = 64;
  const context = new OffscreenCanvas(side, side).getContext("2d", { willReadFrequently: true });
  if (!context) {
    return false;
  }
  context.drawImage(bitmap, 0, 0, side, side);
  return context.getImageData(0, 0, side, side).data.some((value, index) => index % 4 === 3 && value < 255);
}
