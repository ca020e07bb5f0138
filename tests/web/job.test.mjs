import assert from "node:assert/strict";
import { test } from "node:test";

import {
  LiveJobs,
  asItRan,
  editorIn,
  fleetingInputs,
  nodesBefore,
  restlessInputs,
  signatureOf,
  withLiveNode,
} from "../../web/js/editor/job.mjs";
import { useLocale } from "../../web/js/editor/texts.mjs";

const PROMPT = Object.freeze({
  1: { class_type: "LoadImage", inputs: { image: "cat.png" }, _meta: { title: "Load Image" } },
  2: { class_type: "ImageInvert", inputs: { image: ["1", 0] } },
  3: { class_type: "MAM_PromptEditor", inputs: { image: ["2", 0], width_os8: 10, prompts: "drawn" } },
  4: { class_type: "PreviewImage", inputs: { images: ["3", 1] } },
});
const ANSWER = { session: "5e55" };

function changed(id, inputs) {
  return { ...PROMPT, [id]: { ...PROMPT[id], inputs: { ...PROMPT[id].inputs, ...inputs } } };
}

test("what is drawn does not change the picture's signature", () => {
  assert.equal(signatureOf(changed(3, { prompts: "drawn anew" }), "3"), signatureOf(PROMPT, "3"));
  assert.equal(signatureOf(changed(4, { images: ["3", 0] }), "3"), signatureOf(PROMPT, "3"));
});

for (const [what, prompt] of [
  ["the picture", changed(1, { image: "dog.png" })],
  ["a link", changed(3, { image: ["1", 0] })],
  ["the output that is linked", changed(3, { image: ["2", 1] })],
  ["a setting of the editor", changed(3, { width_os8: 11 })],
  ["the kind of a node before it", { ...PROMPT, 2: { class_type: "ImageBlur", inputs: { image: ["1", 0] } } }],
]) {
  test(`another signature: ${what}`, () => {
    assert.notEqual(signatureOf(prompt, "3"), signatureOf(PROMPT, "3"));
  });
}

test("the order of inputs does not matter, and a circle has an end", () => {
  const turned = { ...PROMPT, 3: { class_type: "MAM_PromptEditor", inputs: { width_os8: 10, image: ["2", 0] } } };
  assert.equal(signatureOf(turned, "3"), signatureOf(PROMPT, "3"));
  assert.notEqual(signatureOf(changed(1, { image: ["3", 0] }), "3"), "");
  assert.equal(signatureOf(PROMPT, "9"), "");
});

test("of a camera every reading makes another file, of a drawing none does, and nodes elsewhere are no matter", () => {
  const once = changed(1, { image: "webcam/1.png", width: 640 });
  const again = { ...changed(1, { image: "webcam/2.png", width: 640 }), 4: { class_type: "X", inputs: { a: 2 } } };
  again[3] = { ...PROMPT[3], inputs: { ...PROMPT[3].inputs, prompts: "drawn on" } };
  assert.deepEqual(restlessInputs(once, again, "3"), [{ id: "1", name: "image" }]);
  assert.deepEqual(restlessInputs(once, once, "3"), []);
  assert.deepEqual([...nodesBefore(once, "3")].sort(), ["1", "2", "3"]);
});

/** A graph whose first node has a seed under control after generate, and a prompt of which a part is left to chance. */
function sampling(seed, text, steps = 20) {
  return { ...PROMPT, 1: { class_type: "KSampler", inputs: { seed, text, steps } } };
}

test("the picture that was seen keeps its seed and its prompt, though each run gets others", () => {
  const ran = sampling(5, "a red car");
  const widgets = { seed: 99, text: "a {red|blue} car" };
  const valueOf = (id, name) => (id === "1" ? widgets[name] : undefined);
  const fleeting = fleetingInputs(ran, valueOf);
  assert.deepEqual(asItRan(sampling(99, "a blue car"), fleeting, valueOf), ran);
  const more = asItRan(sampling(99, "a blue car", 30), fleeting, valueOf);
  assert.deepEqual(more, sampling(5, "a red car", 30));
  assert.notEqual(signatureOf(more, "3"), signatureOf(ran, "3"));
});

test("what the user has set since makes another picture, and what is deleted is no matter", () => {
  const widgets = { seed: 99, text: "a {red|blue} car" };
  const valueOf = (id, name) => widgets[name];
  const fleeting = fleetingInputs(sampling(5, "a red car"), valueOf);
  Object.assign(widgets, { seed: 7, text: "a dog" });
  assert.deepEqual(asItRan(sampling(7, "a dog"), fleeting, valueOf), sampling(7, "a dog"));
  const { 1: _deleted, ...others } = PROMPT;
  assert.deepEqual(asItRan(others, fleeting, valueOf), others);
});

test("the live node stands beside the graph's own nodes and changes none", () => {
  const { prompt, liveId } = withLiveNode(PROMPT, "3", { frame: 2, target: 1, text: "newest" });
  assert.equal(prompt[liveId].class_type, "MAM_LivePicture");
  const inputs = { image: ["2", 0], width_os8: 10, prompts: "newest", frame: 2, target: 1 };
  assert.deepEqual(prompt[liveId].inputs, inputs);
  const { [liveId]: _live, ...others } = prompt;
  assert.deepEqual(others, PROMPT);
  assert.notEqual(withLiveNode(prompt, "3", { frame: 0, target: 0, text: "" }).liveId, liveId);
});

test("a muted editor is told so", () => {
  assert.throws(() => withLiveNode(PROMPT, "9", { frame: 0, target: 0, text: "" }), /muted or bypassed/);
  assert.equal(editorIn(PROMPT, ["9:3", "3"]), "3");
  assert.equal(editorIn(PROMPT, ["4"]), undefined);
});

/** A server whose websocket says what it is told to, and that remembers what it was asked. */
class TestServer {
  constructor({ responses = {}, opens = true } = {}) {
    this.asked = [];
    this.sockets = [];
    const server = this;
    class Socket extends EventTarget {
      constructor(url) {
        super();
        this.url = url;
        server.sockets.push(this);
        setImmediate(() => this.dispatchEvent(new Event(opens ? "open" : "close")));
      }

      close() {
        this.dispatchEvent(new Event("close"));
      }
    }
    const fetchApi = async (path, options) => {
      const body = options?.body ? JSON.parse(options.body) : null;
      this.asked.push([path, body]);
      const response = Object.entries(responses).find(([start]) => path.startsWith(start))?.[1];
      return typeof response === "function" ? response(body) : new Response("{}", { status: 200 });
    };
    let count = 0;
    this.jobs = new LiveJobs({
      fetchApi,
      socketUrl: (clientId) => `ws://server/ws?clientId=${clientId}`,
      Socket,
      uuid: () => `00000000-0000-4000-8000-00000000000${(count += 1)}`,
    });
    this.progress = [];
  }

  run(signal = new AbortController().signal) {
    const job = withLiveNode(PROMPT, "3", { frame: 0, target: 0, text: "drawn" });
    return this.jobs.run({ ...job, workflow: {} }, { signal, onProgress: (step) => this.progress.push(step) });
  }

  say(type, data) {
    const prompt_id = this.body("/prompt").prompt_id;
    const message = new MessageEvent("message", { data: JSON.stringify({ type, data: { prompt_id, ...data } }) });
    this.sockets.at(-1).dispatchEvent(message);
  }

  body(path) {
    return this.asked.find(([asked]) => asked === path)?.[1];
  }

  async posted() {
    while (!this.body("/prompt")) {
      await new Promise((resolve) => setImmediate(resolve));
    }
  }
}

const settled = () => new Promise((resolve) => setTimeout(resolve, 5));

test("a job asks for the live node alone, before other jobs, and is taken out of the history", async () => {
  const server = new TestServer();
  const running = server.run();
  await server.posted();
  const { prompt_id, client_id, partial_execution_targets, front } = server.body("/prompt");
  assert.deepEqual([partial_execution_targets, front], [["3-live"], true]);
  assert.equal(server.sockets[0].url, `ws://server/ws?clientId=${client_id}`);
  server.say("execution_start", {});
  server.say("executing", { node: "1" });
  server.say("progress", { node: "1", value: 1, max: 4 });
  server.say("executed", { node: "3-live", output: { mam_live: [ANSWER] } });
  assert.deepEqual(await running, ANSWER);
  assert.deepEqual(server.progress, [
    { started: true, node: "", share: null },
    { started: true, node: "Load Image", share: null },
    { started: true, node: "Load Image", share: 0.25 },
  ]);
  assert.equal(server.body("/history"), undefined);
  server.say("executing", { node: null });
  await settled();
  assert.deepEqual(server.body("/history"), { delete: [prompt_id] });
  assert.equal(server.jobs.count, 0);
});

test("jobs share one websocket", async () => {
  const server = new TestServer();
  const running = server.run();
  await server.posted();
  server.say("executed", { node: "3-live", output: { mam_live: [ANSWER] } });
  await running;
  void server.run().catch(() => {});
  await settled();
  assert.equal(server.sockets.length, 1);
});

test("a node that fails is told in its own words", async () => {
  const server = new TestServer();
  const running = server.run();
  await server.posted();
  server.say("execution_error", { exception_message: "Connect Load SAM too.\n" });
  await assert.rejects(running, { state: "failed", message: "Connect Load SAM too." });
});

for (const [where, exception_type, exception_message] of [
  ["the graphics card", "torch.OutOfMemoryError", "Allocation failed"],
  ["the processor", "RuntimeError", "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"],
]) {
  test(`that the memory of ${where} does not suffice is said in the user's language`, async () => {
    const server = new TestServer();
    const running = server.run();
    await server.posted();
    useLocale({ de: { mattingAnything: { previewOutOfMemory: "Der Speicher reicht nicht." } } }, "de");
    server.say("execution_error", { exception_type, exception_message });
    await assert.rejects(running, { state: "failed", message: "Der Speicher reicht nicht." });
    useLocale({}, "en");
  });
}

test("one model without the other is said before anything is sent", () => {
  const wanted = { frame: 0, target: 0, text: "drawn" };
  assert.throws(() => withLiveNode(changed(3, { sam: ["1", 0] }), "3", wanted), /Connect Load Mask-to-Matte too/);
  assert.throws(() => withLiveNode(changed(3, { m2m: ["1", 0] }), "3", wanted), /Connect Load SAM too/);
  assert.equal(withLiveNode(changed(3, { sam: ["1", 0], m2m: ["1", 0] }), "3", wanted).liveId, "3-live");
});

test("a job that ends without an answer is an error", async () => {
  const server = new TestServer();
  const running = server.run();
  await server.posted();
  server.say("executing", { node: null });
  await assert.rejects(running, /without an answer/);
});

for (const [why, content, state, says] of [
  [
    "the live node is not known",
    { error: { type: "missing_node_type", message: "not found", extra_info: { class_type: "MAM_LivePicture" } } },
    "unsupported",
    /Update/,
  ],
  [
    "no image is connected",
    {
      error: { message: "Prompt outputs failed validation" },
      node_errors: { 3: { errors: [{ message: "Required input is missing", extra_info: { input_name: "image" } }] } },
    },
    "failed",
    /Connect an image/,
  ],
  [
    "a model file is not there",
    {
      node_errors: {
        1: {
          errors: [
            {
              type: "value_not_in_list",
              message: "Value not in list",
              details: "image: 'cat.png' not in []",
              extra_info: { input_name: "image", received_value: "cat.png" },
            },
          ],
        },
      },
    },
    "failed",
    /^Load Image: “cat.png” is not there. Choose another image.$/,
  ],
  [
    "a node before it lacks an input",
    {
      node_errors: {
        2: { errors: [{ type: "required_input_missing", message: "Missing", extra_info: { input_name: "image" } }] },
      },
    },
    "failed",
    /^ImageInvert: connect image.$/,
  ],
  [
    "a value is refused",
    { node_errors: { 3: { errors: [{ message: "Value too big", details: "width_os8" }] } } },
    "failed",
    /Value too big: width_os8/,
  ],
]) {
  test(`a job is refused because ${why}`, async () => {
    const server = new TestServer({
      responses: { "/prompt": () => new Response(JSON.stringify(content), { status: 400 }) },
    });
    await assert.rejects(server.run(), (error) => error.state === state && says.test(error.message));
    assert.equal(server.jobs.count, 0);
  });
}

test("a job that did not reach the server does not count as one that is in its queue", async () => {
  const server = new TestServer({
    responses: {
      "/prompt": () => {
        throw new TypeError("Failed to fetch");
      },
    },
  });
  await assert.rejects(server.run(), (error) => error.state === "failed" && /does not answer/.test(error.message));
  assert.equal(server.jobs.count, 0);
});

test("a job that nobody waits for is withdrawn and stopped", async () => {
  const server = new TestServer();
  const abort = new AbortController();
  const running = server.run(abort.signal);
  await server.posted();
  const { prompt_id } = server.body("/prompt");
  abort.abort();
  await assert.rejects(running, { name: "AbortError" });
  await settled();
  assert.deepEqual(server.body("/queue"), { delete: [prompt_id] });
  assert.deepEqual(server.body("/interrupt"), { prompt_id });
  assert.equal(server.jobs.count, 0);
});

test("without a websocket the history is asked", async () => {
  const outputs = { "3-live": { mam_live: [ANSWER] } };
  const server = new TestServer({
    opens: false,
    responses: {
      "/history/": () =>
        new Response(JSON.stringify({ [server.body("/prompt").prompt_id]: { outputs, status: { messages: [] } } })),
    },
  });
  assert.deepEqual(await server.run(), ANSWER);
});

test("what a job was started with is read from the queue, or from the history when it is over", async () => {
  const running = [[0, "now", PROMPT, { extra_pnginfo: { workflow: { id: "graph" } } }, []]];
  const server = new TestServer({
    responses: {
      "/queue": () => new Response(JSON.stringify({ queue_running: running, queue_pending: [] })),
      "/history/": () => new Response(JSON.stringify({ past: { prompt: [0, "past", { 7: {} }] } })),
    },
  });
  assert.deepEqual(await server.jobs.startOf("now"), { prompt: { ...PROMPT }, workflowId: "graph" });
  assert.deepEqual(await server.jobs.startOf("past"), { prompt: { 7: {} }, workflowId: undefined });
  assert.equal(await server.jobs.startOf("unknown"), undefined);
});
