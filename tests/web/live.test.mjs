import assert from "node:assert/strict";
import { test } from "node:test";

import {
  addPoint,
  addTarget,
  deletePoint,
  emptyDrawing,
  hideTarget,
  LIMITS,
  serialise,
} from "../../web/js/editor/drawing.mjs";
import { LiveClient, LiveError, askWorker } from "../../web/js/editor/live.mjs";
import { useLocale } from "../../web/js/editor/texts.mjs";

const SIZE = { width: 640, height: 480 };

/** A drawing with one positive point for each target. */
function drawn(...points) {
  return points.reduce(
    (drawing, [x, y], target) => addPoint(addTarget(drawing), target, "all", { x, y, label: 1 }),
    emptyDrawing(SIZE.width, SIZE.height),
  );
}

function answerOf(changes = {}) {
  return {
    session: "5e55",
    ...SIZE,
    ...{ frame: 0, frames: 1, engine: "sam", device: "cpu", queue_ms: null, worker_ms: null, matte: null },
    ...changes,
  };
}

/** A server that answers when it is told to, and an editor that remembers what it was given. */
class Scene {
  constructor(drawing = drawn([10, 20])) {
    this.drawing = drawing;
    this.signatureNow = "graph 1";
    this.answer = answerOf();
    this.busy = false;
    this.otherPicture = null;
    this.clock = 0;
    this.asked = [];
    this.mattes = [];
    this.pictures = [];
    this.replaced = [];
    this.statuses = [];
    this.timers = [];
    this.live = new LiveClient(
      {
        ask: (question, signal) => this.await("ask", question, signal),
        run: (job, { signal, onProgress }) => this.await("run", job, signal, onProgress),
        signature: async () => this.signatureNow,
        isBusy: () => this.busy,
        now: () => this.clock,
        later: (callback, ms) => this.timers.push({ callback, ms }),
      },
      {
        drawn: () => {
          const { drawing, otherPicture } = this;
          return { drawing, text: serialise(drawing), otherPicture };
        },
        onMatte: (target, matte, frame) => {
          this.mattes[target] = matte;
          this.frameOfMatte = frame;
        },
        onPicture: (answer, replaced) => {
          this.pictures.push(answer);
          this.replaced.push(replaced);
        },
        onStatus: (status) => this.statuses.push(status),
      },
    );
  }

  await(kind, what, signal, onProgress) {
    return new Promise((resolve, reject) => {
      const request = { kind, ...what, signal, onProgress, resolve, reject };
      signal.addEventListener("abort", () => reject(signal.reason));
      this.asked.push(request);
    });
  }

  get last() {
    return this.asked.at(-1);
  }

  get status() {
    return this.statuses.at(-1);
  }

  /** What is under way, as "run 0", "mask 10" (x of the first point) and so on. */
  get log() {
    return this.asked.map((request) =>
      request.kind === "run" ? `run ${request.target}` : `${request.stage} ${request.prompt.points[0]?.x}`,
    );
  }

  async answers(changes) {
    const { last } = this;
    this.clock += 50;
    if (last.kind === "run") {
      const matte = this.answer.matte && { image: "png", stage: "matte", region: [0, 0, 1, 1], of: [1, 1], score: 1 };
      last.resolve({ answer: this.answer, signature: this.signatureNow, matte, ...changes });
    } else {
      const { stage } = last;
      const image = `${stage} ${last.prompt.points[0]?.x}`;
      last.resolve({ image, stage, region: [0, 0, 1, 1], of: [1, 1], score: 1 });
    }
    await settled();
  }

  async fails(error) {
    this.last.reject(error);
    await settled();
  }

  draw(drawing, gesture = false, targets = [0]) {
    this.drawing = drawing;
    this.live.edit(targets, gesture);
    return settled();
  }

  /** Encoded, and everything that is drawn matted. */
  static async ready(drawing, answer = {}) {
    const scene = new Scene(drawing);
    scene.answer = answerOf(answer);
    await scene.draw(scene.drawing);
    for (let count = 0; count !== scene.asked.length; ) {
      count = scene.asked.length;
      await scene.answers();
    }
    scene.asked.length = 0;
    return scene;
  }
}

const settled = () => new Promise((resolve) => setImmediate(resolve));

test("opening a workflow asks for nothing", async () => {
  const scene = new Scene();
  scene.live.setAsleep(false);
  await settled();
  assert.deepEqual(scene.asked, []);
});

test("the first edit encodes, with the target that was drawn", async () => {
  const scene = new Scene();
  await scene.draw(scene.drawing);
  assert.deepEqual(scene.log, ["run 0"]);
  assert.equal(scene.last.text, serialise(scene.drawing));
  assert.equal(scene.status.state, "working");
});

test("the job's own matte is shown without asking again", async () => {
  const scene = new Scene();
  scene.answer = answerOf({ matte: { target: 0 }, queue_ms: 80 });
  await scene.draw(scene.drawing);
  await scene.answers();
  assert.equal(scene.mattes[0].image, "png");
  assert.deepEqual(scene.log, ["run 0"]);
  assert.equal(scene.status.state, "ready");
  assert.equal(scene.pictures.length, 1);
});

test("an edit is answered by the mask first, then by the matte", async () => {
  const scene = await Scene.ready();
  await scene.draw(drawn([11, 20]));
  assert.deepEqual(scene.log, ["mask 11"]);
  await scene.answers();
  assert.equal(scene.mattes[0].stage, "mask");
  assert.deepEqual(scene.log, ["mask 11", "matte 11"]);
  await scene.answers();
  assert.equal(scene.mattes[0].stage, "matte");
  assert.equal(scene.status.state, "ready");
});

test("a drag asks for masks only, one at a time, and the newest place is the next", async () => {
  const scene = await Scene.ready();
  await scene.draw(drawn([11, 20]), true);
  await scene.draw(drawn([12, 20]), true);
  await scene.draw(drawn([13, 20]), true);
  assert.deepEqual(scene.log, ["mask 11"]);
  await scene.answers();
  assert.deepEqual(scene.log, ["mask 11", "mask 13"]);
  await scene.answers();
  assert.deepEqual(scene.log, ["mask 11", "mask 13"]);
  scene.live.endGesture();
  await settled();
  assert.deepEqual(scene.log, ["mask 11", "mask 13", "matte 13"]);
});

test("the worker may begin with the matte that is its next question, which no matte of a drag is", async () => {
  const scene = await Scene.ready();
  await scene.draw(drawn([11, 20]), true);
  assert.equal(scene.last.ahead, false);
  await scene.answers();
  await scene.draw(drawn([12, 20]));
  assert.deepEqual([scene.last.stage, scene.last.ahead], ["mask", true]);
  await scene.answers();
  assert.deepEqual([scene.last.stage, scene.last.ahead], ["matte", false]);
  await scene.answers();
  await scene.draw(drawn([13, 20], [50, 60]), false, [0, 1]);
  assert.deepEqual([scene.last.stage, scene.last.ahead], ["mask", false]);
});

test("a matte of what is no longer drawn so is not waited for", async () => {
  const scene = await Scene.ready();
  await scene.draw(drawn([11, 20]));
  await scene.answers();
  assert.equal(scene.last.stage, "matte");
  const outdated = scene.last;
  await scene.draw(drawn([12, 20]), true);
  assert.equal(outdated.signal.aborted, true);
  assert.deepEqual(scene.log, ["mask 11", "matte 11", "mask 12"]);
});

test("the classical engine rests between the questions of a drag as long as it worked", async () => {
  const scene = await Scene.ready(undefined, { engine: "classical" });
  scene.clock += 1000;
  await scene.draw(drawn([11, 20]), true);
  scene.clock += 400;
  await scene.answers();
  await scene.draw(drawn([12, 20]), true);
  assert.deepEqual(scene.log, ["mask 11"]);
  assert.equal(scene.timers.at(-1).ms, 450);
  scene.clock += 450;
  scene.timers.at(-1).callback();
  assert.deepEqual(scene.log, ["mask 11", "mask 12"]);
});

test("a changed graph is encoded anew before the next matte", async () => {
  const scene = await Scene.ready();
  scene.signatureNow = "graph 2";
  await scene.draw(drawn([11, 20]));
  await scene.answers();
  assert.deepEqual(scene.log, ["mask 11", "run 0"]);
});

test("mattes of another picture are taken away", async () => {
  const scene = await Scene.ready();
  assert.equal(scene.mattes[0].stage, "matte");
  scene.live.reset();
  assert.equal(scene.mattes[0], null);
  await settled();
  assert.deepEqual(scene.asked, []);
});

test("a picture that the server has forgotten is encoded again", async () => {
  const scene = await Scene.ready();
  await scene.draw(drawn([11, 20]));
  await scene.fails(new LiveError("gone", "Run a live job again."));
  assert.deepEqual(scene.log, ["mask 11", "run 0"]);
  assert.equal(scene.mattes[0].stage, "matte");
  await scene.answers();
  assert.deepEqual(scene.log, ["mask 11", "run 0", "mask 11"]);
});

test("a picture that is forgotten again and again is an error, not a loop", async () => {
  const scene = await Scene.ready();
  await scene.draw(drawn([11, 20]));
  await scene.fails(new LiveError("gone", ""));
  await scene.answers();
  await scene.fails(new LiveError("gone", ""));
  assert.equal(scene.status.state, "error");
  assert.deepEqual(scene.log, ["mask 11", "run 0", "mask 11"]);
});

test("a question that a newer one replaced is asked again, after a while, if it is still open", async () => {
  const scene = await Scene.ready();
  await scene.draw(drawn([11, 20]));
  await scene.fails(new LiveError("superseded", ""));
  // At once it would take the place of the newer one, which comes from another editor of the same picture.
  assert.deepEqual(scene.log, ["mask 11"]);
  assert.notEqual(scene.status.state, "error");
  const { callback, ms } = scene.timers.at(-1);
  scene.clock += ms;
  callback();
  assert.deepEqual(scene.log, ["mask 11", "mask 11"]);
  await scene.answers();
  assert.deepEqual(scene.log, ["mask 11", "mask 11", "matte 11"]);
});

test("an error shows its sentence and waits for the user", async () => {
  const scene = await Scene.ready();
  await scene.draw(drawn([11, 20]));
  await scene.fails(new LiveError("failed", "Out of memory. Use a smaller picture."));
  assert.deepEqual(scene.status, { state: "error", text: "Out of memory. Use a smaller picture.", engine: "sam" });
  assert.deepEqual(scene.log, ["mask 11"]);
  scene.live.retry();
  assert.deepEqual(scene.log, ["mask 11", "mask 11"]);
});

test("undo shows the matte that was there without asking", async () => {
  const before = drawn([10, 20]);
  const scene = await Scene.ready(before);
  await scene.draw(drawn([11, 20]));
  await scene.answers();
  await scene.answers();
  scene.asked.length = 0;
  await scene.draw(before);
  assert.equal(scene.mattes[0].image, "matte 10");
  assert.deepEqual(scene.asked, []);
});

test("several targets: every mask comes before any matte, the edited one first", async () => {
  const scene = await Scene.ready(drawn([10, 20]));
  await scene.draw(drawn([10, 20], [30, 40], [50, 60]), false, [2]);
  await scene.answers();
  await scene.answers();
  await scene.answers();
  assert.deepEqual(scene.log, ["mask 50", "mask 30", "matte 50", "matte 30"]);
});

test("as many targets as there can be are matted once each, and an edit asks for that one alone", async () => {
  const places = Array.from({ length: LIMITS.targets }, (_, target) => [10 + target, 20]);
  const scene = new Scene(drawn(...places));
  await scene.draw(scene.drawing);
  for (let count = 0; count <= 2 * LIMITS.targets && scene.status.state !== "ready"; count += 1) {
    await scene.answers();
  }
  assert.equal(scene.status.state, "ready");
  assert.equal(scene.asked.length, 1 + 2 * LIMITS.targets);
  scene.asked.length = 0;
  await scene.draw(drawn(...places.slice(0, -1), [500, 20]), false, [LIMITS.targets - 1]);
  await scene.answers();
  await scene.answers();
  assert.deepEqual(scene.log, ["mask 500", "matte 500"]);
});

test("an answer goes to its target, wherever that has moved meanwhile", async () => {
  const two = drawn([10, 20], [30, 40]);
  const scene = await Scene.ready(drawn([10, 20]));
  await scene.draw(two, false, [1]);
  scene.drawing = { ...two, targets: [two.targets[1]] };
  scene.live.edit([], false);
  await scene.answers();
  assert.equal(scene.mattes[0].image, "mask 30");
});

test("hidden and empty targets are not asked for", async () => {
  const scene = await Scene.ready();
  await scene.draw(hideTarget(drawn([11, 20]), 0, true));
  await scene.draw(deletePoint(drawn([11, 20]), 0, "all", 0));
  assert.deepEqual(scene.asked, []);
  assert.equal(scene.mattes[0], null);
});

test("turned off, nothing is asked; turned on in the editor, the picture comes", async () => {
  const scene = new Scene(emptyDrawing(SIZE.width, SIZE.height));
  scene.live.setOn(false);
  await scene.draw(drawn([11, 20]));
  assert.deepEqual(scene.asked, []);
  assert.equal(scene.status.state, "idle");
  scene.drawing = emptyDrawing();
  scene.live.setOn(true, { byUser: true });
  assert.deepEqual(scene.log, ["run -1"]);
});

test("turning it off withdraws the job", async () => {
  const scene = new Scene();
  await scene.draw(scene.drawing);
  scene.live.setOn(false);
  assert.equal(scene.last.signal.aborted, true);
});

test("another frame is encoded on its own, and a known one is not encoded again", async () => {
  const scene = await Scene.ready(undefined, { frames: 3 });
  scene.live.setFrame(2);
  assert.deepEqual(scene.log, ["run 0"]);
  assert.equal(scene.last.frame, 2);
  assert.equal(scene.mattes[0], null);
  scene.answer = answerOf({ frame: 2, frames: 3, session: "other" });
  await scene.answers();
  await scene.answers();
  await scene.answers();
  scene.asked.length = 0;
  scene.live.setFrame(0);
  assert.deepEqual(scene.asked, []);
  assert.equal(scene.mattes[0].stage, "matte");
  assert.equal(scene.pictures.at(-1).frame, 0);
});

test("a frame that is no longer there gives way to the one that the server answers for", async () => {
  const scene = await Scene.ready(undefined, { frames: 3 });
  scene.live.setFrame(2);
  scene.answer = answerOf({ frame: 0, frames: 1 });
  await scene.answers();
  assert.equal(scene.live.frame, 0);
  assert.equal(scene.asked.filter(({ kind }) => kind === "run").length, 1);
});

test("a run of the workflow brings the session, and no job is needed", async () => {
  const scene = new Scene();
  scene.live.adopt(answerOf({ session: "ran" }), "graph 1");
  await settled();
  assert.deepEqual(scene.log, ["mask 10"]);
  assert.equal(scene.last.session, "ran");
});

test("a run that made other pixels of the same nodes and files leaves no matte of the former picture", async () => {
  const scene = await Scene.ready();
  scene.live.adopt(answerOf(), "graph 1");
  assert.deepEqual([scene.mattes[0].stage, scene.replaced.at(-1)], ["matte", false]);
  scene.live.adopt(answerOf({ session: "other pixels" }), "graph 1");
  assert.deepEqual([scene.mattes[0], scene.replaced.at(-1)], [null, true]);
  await settled();
  assert.deepEqual([scene.log, scene.last.session], [["mask 10"], "other pixels"]);
});

test("each matte is told with the frame that it is of, whose picture may come later", async () => {
  const scene = await Scene.ready(undefined, { frames: 3 });
  assert.equal(scene.frameOfMatte, 0);
  scene.live.setFrame(2);
  scene.answer = answerOf({ frame: 2, frames: 3, session: "other" });
  await scene.answers();
  await scene.answers();
  assert.deepEqual([scene.mattes[0].stage, scene.frameOfMatte], ["mask", 2]);
});

test("where the device is measured to be quicker, mattes come through the queue", async () => {
  const gpu = { device: "cuda:0", queue_ms: 60, worker_ms: 900 };
  const scene = await Scene.ready(undefined, { ...gpu, matte: { target: 0 } });
  await scene.draw(drawn([11, 20]));
  await scene.answers();
  assert.deepEqual(scene.log, ["mask 11", "run 0"]);
});

for (const [why, answer, busy] of [
  ["on the processor", { device: "cpu", queue_ms: 60, worker_ms: 900 }, false],
  ["while the queue holds other jobs", { device: "cuda:0", queue_ms: 60, worker_ms: 900 }, true],
  ["where the worker is quicker", { device: "cuda:0", queue_ms: 600, worker_ms: 90 }, false],
]) {
  test(`${why} the worker is asked`, async () => {
    const scene = await Scene.ready(undefined, { ...answer, matte: { target: 0 } });
    scene.busy = busy;
    await scene.draw(drawn([11, 20]));
    await scene.answers();
    assert.deepEqual(scene.log, ["mask 11", "matte 11"]);
  });
}

test("what an answer takes on its way counts for the queue, and the worker is measured anew", async () => {
  const gpu = { device: "cuda:0", queue_ms: 60, worker_ms: 300 };
  const scene = await Scene.ready(undefined, { ...gpu, matte: { target: 0 } });
  /** @param {number} x @param {number} ms until the matte is there */
  const edited = async (x, ms) => {
    const before = scene.log.length;
    await scene.draw(drawn([x, 20]));
    await scene.answers();
    scene.clock += ms - 50;
    await scene.answers();
    return scene.log.slice(before);
  };
  assert.deepEqual(await edited(11, 500), ["mask 11", "run 0"]);
  // 500 with the way are more than the worker's 300.
  assert.deepEqual(await edited(12, 900), ["mask 12", "matte 12"]);
  // The worker's 900 were more than these 500.
  assert.deepEqual(await edited(13, 600), ["mask 13", "run 0"]);
  assert.deepEqual(await edited(14, 600), ["mask 14", "run 0"]);
});

test("the setting decides over what was measured", async () => {
  const scene = await Scene.ready(undefined, { device: "cpu" });
  scene.live.setWay("queue");
  await scene.draw(drawn([11, 20]));
  await scene.answers();
  assert.equal(scene.last.kind, "run");
});

test("a job without the matte that was asked for is an error, not a loop", async () => {
  const scene = await Scene.ready(undefined, { device: "cpu" });
  scene.live.setWay("queue");
  await scene.draw(drawn([11, 20]));
  await scene.answers();
  await scene.answers();
  assert.equal(scene.status.state, "error");
  assert.deepEqual(scene.log, ["mask 11", "run 0"]);
});

test("a busy queue is said, and a node that runs first is named", async () => {
  const scene = new Scene();
  scene.busy = true;
  await scene.draw(scene.drawing);
  assert.equal(scene.status.state, "waiting");
  scene.last.onProgress({ started: true, node: "Load SAM", share: 0.25 });
  assert.equal(scene.status.text, "Load SAM: 25 %");
});

test("while the node is not in the graph nothing is asked", async () => {
  const scene = await Scene.ready();
  scene.live.setAsleep(true);
  await scene.draw(drawn([11, 20]));
  assert.deepEqual(scene.asked, []);
  scene.live.setAsleep(false);
  assert.deepEqual(scene.log, ["mask 11"]);
});

test("the worker's answer is read from its headers", async () => {
  const headers = { "X-Mam-Region": "3 4 5 6 640 480", "X-Mam-Score": "0.875" };
  const seen = [];
  const fetchApi = async (path, options) => {
    seen.push([path, options.method, JSON.parse(options.body)]);
    return new Response("png", { headers });
  };
  const question = { session: "5e55", stage: "mask", prompt: { points: [], box: null, strokes: [] }, ...SIZE };
  const matte = await askWorker(fetchApi, async (png) => png.text(), question, new AbortController().signal);
  assert.deepEqual(matte, { image: "png", region: [3, 4, 5, 6], of: [640, 480], stage: "mask", score: 0.875 });
  assert.deepEqual(seen, [["/mam/live", "POST", question]]);
});

for (const [why, response, state, says] of [
  ["the picture is gone", json({ error: "Run again.", state: "gone" }, 404), "gone", /Run again/],
  ["a server of an older version", new Response("404: Not Found", { status: 404 }), "unsupported", /Update/],
  ["a route for other methods", new Response("405", { status: 405 }), "unsupported", /Update/],
  ["a proxy's error page", new Response("<html>", { status: 502 }), "failed", /502/],
  ["a refusal", json({ error: "Too large.", state: "bad" }, 413), "bad", /Too large/],
]) {
  test(`${why}: the error says so`, async () => {
    const asking = askWorker(async () => response, async () => null, {}, new AbortController().signal);
    await assert.rejects(asking, (error) => error.state === state && says.test(error.message));
  });
}

test("a refusal with a code is said in the user's language, one without or of a newer server in its own words", async () => {
  useLocale({ de: { mattingAnything: { previewMatteFailed: "Fehlgeschlagen: {reason}" } } }, "de");
  const refusal = { error: "The live matte failed: no room", state: "failed", values: { reason: "no room" } };
  for (const [code, says] of [
    ["failed", "Fehlgeschlagen: no room"],
    ["out_of_memory", "There is not enough memory. Use a smaller picture, or free some memory first."],
    ["unheard_of", "The live matte failed: no room"],
    ["", "The live matte failed: no room"],
  ]) {
    const response = json({ ...refusal, code }, 500);
    const asking = askWorker(async () => response, async () => null, {}, new AbortController().signal);
    await assert.rejects(asking, { state: "failed", message: says });
  }
  useLocale({}, "en");
});

test("nothing is asked for a drawing of another picture, which is said, until it is stretched", async () => {
  const scene = await Scene.ready();
  scene.otherPicture = { width: 640, height: 480, newWidth: 480, newHeight: 640 };
  await scene.draw(drawn([11, 20]));
  assert.deepEqual(scene.log, []);
  assert.equal(scene.status.state, "idle");
  assert.match(scene.status.text, /640 x 480.*480 x 640/);
  scene.otherPicture = null;
  await scene.draw(drawn([12, 20]));
  assert.deepEqual(scene.log, ["mask 12"]);
});

test("a server that does not answer is an error with a sentence", async () => {
  const fetchApi = async () => {
    throw new TypeError("fetch failed");
  };
  const asking = askWorker(fetchApi, async () => null, {}, new AbortController().signal);
  await assert.rejects(asking, (error) => error.state === "failed" && /does not answer/.test(error.message));
});

function json(content, status) {
  return new Response(JSON.stringify(content), { status });
}

test("mattes that were given up out of sight are asked for again when the editor is shown", async () => {
  const scene = await Scene.ready();
  assert.ok(scene.live.pixelBytes > 0);
  const before = scene.asked.length;
  scene.live.setAsleep(true);
  scene.live.dropPixels();
  assert.equal(scene.live.pixelBytes, 0);
  scene.live.setAsleep(false);
  await scene.answers();
  await scene.answers();
  assert.deepEqual(scene.log.slice(before), ["mask 10", "matte 10"]);
  assert.equal(scene.mattes[0].stage, "matte");
});

test("a picture that the server has forgotten in the meantime is brought by a job", async () => {
  const scene = await Scene.ready();
  scene.live.forgetSession();
  assert.equal(scene.last.kind, "run");
  await scene.answers();
  assert.equal(scene.pictures.length, 2);
});
