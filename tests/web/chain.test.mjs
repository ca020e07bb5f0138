import assert from "node:assert/strict";
import { test } from "node:test";

import { chainParts, clearTop, imageOutput, matteThisImage, modelPair } from "../../web/js/editor/chain.mjs";

test("the models of a chain belong together", () => {
  const sams = ["sam_vit_h_4b8939.pth", "sam_vit_b_01ec64.pth"];
  assert.deepEqual(modelPair(sams, ["mam_sam_vitb.pth"]), { sam: "sam_vit_b_01ec64.pth", m2m: "mam_sam_vitb.pth" });
  assert.deepEqual(modelPair(["mine.safetensors"], ["my_m2m.safetensors"]), {
    sam: "mine.safetensors",
    m2m: "my_m2m.safetensors",
  });
});

test("SAM as it was published goes before what other packs keep beside it under a name that comes first", () => {
  const sams = ["sam_hq_vit_b.pth", "sam_vit_b_01ec64.pth"];
  assert.equal(modelPair(sams, ["mam_sam_vitb.pth"])?.sam, "sam_vit_b_01ec64.pth");
  assert.equal(modelPair(sams.slice(0, 1), ["mam_sam_vitb.pth"])?.sam, "sam_hq_vit_b.pth");
});

test("without a file of each kind there are no models", () => {
  assert.equal(modelPair([], []), null);
  assert.equal(modelPair(["sam_vit_b_01ec64.pth"], []), null);
  assert.equal(modelPair([], ["mam_sam_vitb.pth"]), null);
});

test("a chain without models has no loaders, and the editor no links to any", () => {
  const parts = chainParts(null, 2);
  assert.deepEqual(parts.map(({ type }) => type), ["MAM_PromptEditor", "MAM_Composite", "PreviewImage"]);
  assert.deepEqual(parts[0].from, { image: ["source", 2] });
  assert.deepEqual(parts.map(({ column }) => column), [0, 1, 2]);
});

test("only nodes with a picture among their outputs can be matted", () => {
  assert.equal(imageOutput({ outputs: [{ type: "MASK" }, { type: "IMAGE" }] }), 1);
  assert.equal(imageOutput({ outputs: [{ type: "MASK" }] }), -1);
  assert.equal(imageOutput({}), -1);
});

test("the chain covers no node that is there", () => {
  const others = [
    { pos: [0, 0], size: [200, 300] },
    { pos: [900, 100], size: [200, 500] },
    { pos: [300, 700], size: [100, 100] },
  ];
  const top = clearTop(others, { left: 260, right: 1200, height: 400 }, 0);
  for (const { pos, size } of others.slice(1)) {
    assert.ok(top >= pos[1] + size[1] || top + 400 <= pos[1]);
  }
  assert.equal(clearTop(others, { left: 2000, right: 2500, height: 400 }, 0), 0);
});

test("the chain goes only as far down as titles of 40 pixels and a gap of 60 ask for", () => {
  const other = [{ pos: [0, 500], size: [100, 100] }];
  const [above, below] = [500 - 40, 600 + 40];
  assert.equal(clearTop(other, { left: 0, right: 50, height: above }, 0), 0);
  assert.equal(clearTop(other, { left: 0, right: 50, height: above + 1 }, 0), below + 60);
  assert.equal(clearTop(other, { left: 0, right: 50, height: 10 }, below), below);
  assert.equal(clearTop(other, { left: 0, right: 50, height: 10 }, below - 1), below + 60);
  assert.equal(clearTop(other, { left: 100, right: 200, height: 10 }, 550), 550);
  assert.equal(clearTop(other, { left: -50, right: 0, height: 10 }, 550), 550);
});

test("the nodes are placed and linked as the chain says, in one step of undo", async () => {
  const steps = [];
  const links = [];
  const OUTPUTS = { MAM_PromptEditor: ["prompt", "image", "alpha"], MAM_Composite: ["composite", "cutout"] };
  const SIZES = {
    VAEDecode: [200, 100],
    MAM_LoadSAM: [300, 60],
    MAM_LoadM2M: [250, 80],
    MAM_PromptEditor: [400, 500],
    MAM_Composite: [200, 300],
    PreviewImage: [220, 260],
  };
  const createNode = (type) => ({
    type,
    size: SIZES[type],
    widgets: [{ name: "sam_name", value: "" }],
    findOutputSlot: (name) => OUTPUTS[type].indexOf(name),
    findInputSlot: (name) => name,
    connect(slot, target, input) {
      links.push([type, slot, target.type, input]);
    },
  });
  const graph = {
    nodes: [{ pos: [700, 100], size: [100, 100] }],
    beforeChange: () => steps.push("before"),
    afterChange: () => steps.push("after"),
    add: (node) => steps.push(node),
  };
  const source = { ...createNode("VAEDecode"), graph, pos: [100, 50], outputs: [{ type: "IMAGE" }] };
  const modelFiles = async (folder) => ({ sams: ["sam_vit_b.pth"], mam: ["mam_vitb.pth"] })[folder];
  const editor = await matteThisImage({ createNode, modelFiles }, source);
  assert.equal(editor.type, "MAM_PromptEditor");
  assert.deepEqual([steps[0], steps.at(-1), steps.length], ["before", "after", 7]);
  assert.deepEqual(links, [
    ["VAEDecode", 0, "MAM_PromptEditor", "image"],
    ["MAM_LoadSAM", 0, "MAM_PromptEditor", "sam"],
    ["MAM_LoadM2M", 0, "MAM_PromptEditor", "m2m"],
    ["MAM_PromptEditor", 1, "MAM_Composite", "image"],
    ["MAM_PromptEditor", 2, "MAM_Composite", "alpha"],
    ["MAM_Composite", 1, "PreviewImage", "images"],
  ]);
  assert.equal(steps.find(({ type }) => type === "MAM_LoadSAM").widgets[0].value, "sam_vit_b.pth");
  // Loaders, editor, composite and preview in columns, below the node that is there already.
  assert.deepEqual(steps.slice(1, -1).map(({ pos }) => pos), [
    [360, 300],
    [360, 460],
    [720, 300],
    [1180, 300],
    [1440, 300],
  ]);
});
