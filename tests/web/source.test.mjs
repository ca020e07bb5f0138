import assert from "node:assert/strict";
import { test } from "node:test";

import { executionIds, fleetingValue, nodeState, originOf, pictureFile, viewRoute } from "../../web/js/editor/source.mjs";

const BYPASSED = 4;
const MUTED = 2;

/** A graph of nodes as litegraph has them: `link(a, slot, b, input)` and so on. */
class TestGraph {
  constructor(id = "root") {
    this.id = id;
    this.nodes = [];
    this.links = new Map();
  }

  getLink(id) {
    return this.links.get(id);
  }

  getNodeById(id) {
    return this.nodes.find((node) => node.id === id) ?? null;
  }

  add(comfyClass, { inputs = [], outputs = [["IMAGE", "IMAGE"]], ...rest } = {}) {
    const node = {
      id: this.nodes.length + 1,
      comfyClass,
      mode: 0,
      graph: this,
      inputs: inputs.map(([name, type]) => ({ name, type, link: null })),
      outputs: outputs.map(([name, type]) => ({ name, type })),
      widgets: [],
      ...rest,
    };
    node.getInputLink = (slot) => this.getLink(node.inputs[slot]?.link);
    this.nodes.push(node);
    return node;
  }

  link(origin, slot, target, inputName) {
    const id = this.links.size + 1;
    const target_slot = target.inputs.findIndex(({ name }) => name === inputName);
    this.links.set(id, { id, origin_id: origin.id, origin_slot: slot, target_id: target.id, target_slot });
    target.inputs[target_slot].link = id;
    return this.links.get(id);
  }

  loader(value, comfyClass = "LoadImage") {
    const outputs = [
      ["IMAGE", "IMAGE"],
      ["MASK", "MASK"],
    ];
    return this.add(comfyClass, { outputs, widgets: [{ name: "image", value }] });
  }

  editor() {
    return this.add("MAM_PromptEditor", { inputs: [["image", "IMAGE"]] });
  }

  /** A node that holds `inner`; its first input and output lead in and out. */
  subgraph(inner, { inputs = [], widgets = [], innerOutput } = {}) {
    const node = this.add("sub", { inputs, widgets, isSubgraphNode: () => true, subgraph: inner });
    node.resolveSubgraphOutputLink = () =>
      innerOutput && { link: { origin_slot: innerOutput.slot }, outputNode: innerOutput.node };
    return node;
  }
}

test("a loader that is connected gives its file", () => {
  const graph = new TestGraph();
  const [load, editor] = [graph.loader("cat.png"), graph.editor()];
  graph.link(load, 0, editor, "image");
  const origin = originOf(graph, editor, "image");
  assert.equal(origin.node, load);
  assert.deepEqual(pictureFile(origin), { filename: "cat.png", subfolder: "", type: "input" });
});

test("nothing connected has no origin and no file", () => {
  const graph = new TestGraph();
  assert.equal(originOf(graph, graph.editor(), "image"), null);
  assert.equal(pictureFile(null), null);
});

for (const [value, comfyClass, file] of [
  ["a/b/cat.png", "LoadImage", { filename: "cat.png", subfolder: "a/b", type: "input" }],
  ["cat.png [output]", "LoadImage", { filename: "cat.png", subfolder: "", type: "output" }],
  ["masked/cat 1 [x].png [input]", "LoadImage", { filename: "cat 1 [x].png", subfolder: "masked", type: "input" }],
  ["a\\cat.png", "LoadImage", { filename: "cat.png", subfolder: "a", type: "input" }],
  ["cat.png", "LoadImageOutput", { filename: "cat.png", subfolder: "", type: "output" }],
  ["", "LoadImage", null],
  [undefined, "LoadImage", null],
  ["cat.png", "LoadLatent", null],
]) {
  test(`the file of ${comfyClass} with ${JSON.stringify(value)}`, () => {
    const graph = new TestGraph();
    assert.deepEqual(pictureFile({ node: graph.loader(value, comfyClass), slot: 0 }), file);
  });
}

test("the mask of a loader is not its picture, and a name that is linked is not known", () => {
  const graph = new TestGraph();
  const load = graph.loader("cat.png");
  assert.equal(pictureFile({ node: load, slot: 1 }), null);
  load.inputs.push({ name: "image", type: "COMBO", link: 7 });
  assert.equal(pictureFile({ node: load, slot: 0 }), null);
});

test("a file's route names it whole and escapes what it must", () => {
  const route = viewRoute({ filename: "a&b #1.png", subfolder: "x y", type: "input" });
  assert.equal(route, "/view?filename=a%26b+%231.png&subfolder=x+y&type=input");
});

test("bypassed nodes are passed by, muted ones give nothing", () => {
  const graph = new TestGraph();
  const load = graph.loader("cat.png");
  const between = graph.add("ImageBlend", {
    inputs: [
      ["mask", "MASK"],
      ["image", "IMAGE"],
    ],
    mode: BYPASSED,
  });
  const editor = graph.editor();
  graph.link(load, 0, between, "image");
  graph.link(between, 0, editor, "image");
  assert.equal(originOf(graph, editor, "image").node, load);
  between.mode = MUTED;
  assert.equal(originOf(graph, editor, "image"), null);
});

test("reroutes are followed, in front of bypassed nodes too", () => {
  const graph = new TestGraph();
  const load = graph.loader("cat.png");
  const between = graph.add("ImageInvert", { inputs: [["image", "IMAGE"]], mode: BYPASSED });
  const reroute = graph.add("Reroute", { inputs: [["", "*"]], isVirtualNode: true });
  const editor = graph.editor();
  graph.link(load, 0, between, "image");
  graph.link(between, 0, reroute, "");
  graph.link(reroute, 0, editor, "image");
  assert.equal(originOf(graph, editor, "image").node, load);
});

test("a getter leads to its setter's input", () => {
  const graph = new TestGraph();
  const load = graph.loader("cat.png");
  const setter = graph.add("SetNode", { inputs: [["IMAGE", "IMAGE"]], isVirtualNode: true });
  const link = graph.link(load, 0, setter, "IMAGE");
  const getter = graph.add("GetNode", { isVirtualNode: true });
  getter.getInputLink = () => link;
  const editor = graph.editor();
  graph.link(getter, 0, editor, "image");
  assert.equal(originOf(graph, editor, "image").node, load);
});

test("nodes that lead back to themselves have no origin", () => {
  const graph = new TestGraph();
  const a = graph.add("Reroute", { inputs: [["", "*"]], isVirtualNode: true });
  const b = graph.add("Reroute", { inputs: [["", "*"]], isVirtualNode: true });
  const editor = graph.editor();
  graph.link(a, 0, b, "");
  graph.link(b, 0, a, "");
  graph.link(b, 0, editor, "image");
  assert.equal(originOf(graph, editor, "image"), null);
});

test("a picture comes in over the border of a subgraph, and out of another one", () => {
  const root = new TestGraph();
  const outer = new TestGraph("outer");
  const inner = new TestGraph("inner");
  const load = inner.loader("cat.png");
  const source = root.subgraph(inner, { innerOutput: { node: load, slot: 0 } });
  const around = root.subgraph(outer, { inputs: [["image", "IMAGE"]] });
  root.link(source, 0, around, "image");
  const editor = outer.editor();
  outer.links.set(1, { id: 1, origin_id: -10, origin_slot: 0, target_id: editor.id, target_slot: 0 });
  editor.inputs[0].link = 1;
  assert.equal(originOf(root, editor, "image").node, load);
  assert.deepEqual(executionIds(root, editor), ["2:1"]);
});

test("a node of a subgraph that stands twice in the workflow is executed under two ids", () => {
  const root = new TestGraph();
  const inner = new TestGraph("inner");
  const editor = inner.editor();
  root.subgraph(inner);
  root.subgraph(inner);
  assert.deepEqual(executionIds(root, editor), ["1:1", "2:1"]);
  assert.deepEqual(executionIds(root, root.editor()), ["3"]);
});

test("a seed at the border of its subgraph is found there, and its control inside", () => {
  const root = new TestGraph();
  const inner = new TestGraph("inner");
  const control = { name: "control_after_generate", options: { values: ["fixed", "randomize"] } };
  const widgets = [{ name: "seed", value: 0, linkedWidgets: [control] }, { name: "steps", value: 20 }];
  const sampler = inner.add("KSampler", { inputs: [["seed", "INT"], ["steps", "INT"]], widgets });
  const inputs = [["seed_1", "INT"], ["steps", "INT"]];
  const around = root.subgraph(inner, { inputs, widgets: [{ name: "steps", value: 30 }, { name: "seed_1", value: 7 }] });
  sampler.inputs.forEach((input, slot) => {
    inner.links.set(slot + 1, { id: slot + 1, origin_id: -10, origin_slot: slot, target_id: 1, target_slot: slot });
    input.link = slot + 1;
    around.inputs[slot].widget = { name: inputs[slot][0] };
  });
  const place = `${around.id}:${sampler.id}`;
  assert.equal(fleetingValue(root, place, "seed"), 7);
  assert.equal(fleetingValue(root, place, "steps"), undefined);
  const primitive = { isVirtualNode: true, widgets: [{ name: "value", value: 9 }] };
  root.link(root.add("PrimitiveNode", primitive), 0, around, "seed_1");
  assert.equal(fleetingValue(root, place, "seed"), 9);
  root.link(root.add("ComputeSeed"), 0, around, "seed_1");
  assert.equal(fleetingValue(root, place, "seed"), undefined);
});

test("the state of a node is what a workflow keeps of it, in a subgraph too", () => {
  const root = new TestGraph();
  const inner = new TestGraph("inner");
  const view = { widgets_values: [1, "temp/1.png"], properties: { camera: [0, 1] } };
  inner.add("Load3D", { serialize: () => ({ id: 1, pos: [0, 0], ...view }) });
  const place = `${root.subgraph(inner).id}:1`;
  const before = nodeState(root, place);
  view.properties = { camera: [0, 2] };
  assert.notEqual(nodeState(root, place), before);
  view.properties = { camera: [0, 1] };
  assert.equal(nodeState(root, place), before);
});

test("what each run gets anew is found in a subgraph and on a primitive node, and nothing else is taken for it", () => {
  const seed = (value) => {
    const control = { name: "control_after_generate", value: "randomize", options: { values: ["fixed", "randomize"] } };
    return [{ name: "seed", value, linkedWidgets: [control] }, control, { name: "steps", value: 20 }];
  };
  const graph = new TestGraph();
  const inner = new TestGraph("inner");
  inner.add("KSampler", { widgets: seed(7) });
  const around = graph.subgraph(inner);
  assert.equal(fleetingValue(graph, `${around.id}:1`, "seed"), 7);
  assert.equal(fleetingValue(graph, `${around.id}:1`, "steps"), undefined);
  assert.equal(fleetingValue(graph, `${around.id}:2`, "seed"), undefined);
  const sampler = graph.add("KSampler", { inputs: [["seed", "INT"]], widgets: [{ name: "seed", value: 1 }] });
  assert.equal(fleetingValue(graph, String(sampler.id), "seed"), undefined);
  graph.link(graph.add("PrimitiveNode", { isVirtualNode: true, widgets: seed(8) }), 0, sampler, "seed");
  assert.equal(fleetingValue(graph, String(sampler.id), "seed"), 8);
  const text = graph.add("CLIPTextEncode", { widgets: [{ name: "text", value: "a {b|c}", dynamicPrompts: true }] });
  assert.equal(fleetingValue(graph, String(text.id), "text"), "a {b|c}");
});
