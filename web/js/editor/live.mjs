/**
 * The live preview of one editor: what is asked of the server when, and which way.
 *
 * A change of the drawing asks for the mask at once and, when the gesture is over, for the matte. One question is under
 * way at a time, and the newest drawing is the next. The worker of the server answers both from the encoded picture; a
 * matte may also come through ComfyUI's queue, on its device, where that is measured to be quicker. Where the server
 * has no encoded picture, or another one, a live job encodes it first. The drawing waits for none of this.
 *
 * Mattes are remembered by what they were drawn from, so that undo shows them at once.
 */

import { isEmpty, promptOf } from "./drawing.mjs";
import { decodedBytes } from "./memory.mjs";
import { t } from "./texts.mjs";

/** @typedef {import("./drawing.mjs").Drawing} Drawing */
/** @typedef {import("./drawing.mjs").Prompt} Prompt */
/** @typedef {"mask" | "matte"} Stage */
/** @typedef {"sam" | "classical"} Engine */
/** @typedef {"automatic" | "worker" | "queue"} Way */
/**
 * @typedef {object} Matte
 * @property {CanvasImageSource} image the alpha of the region, in its grey
 * @property {[number, number, number, number]} region x, y, width, height in pixels of the matte
 * @property {[number, number]} of width and height of the matte
 * @property {Stage} stage
 * @property {number} score
 */
/**
 * @typedef {object} Answer what the live node and the editor node tell the page
 * @property {string} session
 * @property {number} width of the original picture
 * @property {number} height
 * @property {number} frame
 * @property {number} frames
 * @property {Engine} engine
 * @property {string} device
 * @property {number | null} queue_ms
 * @property {number | null} worker_ms
 * @property {null | { x: number, y: number, width: number, height: number, of_width: number, of_height: number,
 *   png: string, score: number, target: number }} matte
 */
/**
 * @typedef {object} Progress
 * @property {boolean} started false while the job waits in the queue
 * @property {string} node title of a node of the graph that runs first, or ""
 * @property {number | null} share done of that node, 0 to 1
 */
/**
 * @typedef {object} Question
 * @property {string} session
 * @property {Stage} stage
 * @property {Prompt} prompt
 * @property {number} width of the picture the prompt was drawn on
 * @property {number} height
 * @property {boolean} ahead whether the matte of this prompt is asked for next, so that the worker may begin with it
 */
/**
 * @typedef {object} Transport
 * @property {(question: Question, signal: AbortSignal) => Promise<Matte>} ask the server's worker
 * @property {(job: { frame: number, target: number, text: string },
 *   watching: { signal: AbortSignal, onProgress: (progress: Progress) => void }) =>
 *   Promise<{ answer: Answer, signature: string, matte: Matte | null }>} run a live job
 * @property {() => Promise<string>} signature of what the picture comes from now
 * @property {() => boolean} isBusy whether ComfyUI's queue holds jobs that are not live ones
 * @property {() => number} now in ms
 * @property {(callback: () => void, ms: number) => void} later
 */
/**
 * @typedef {object} Drawn
 * @property {Drawing} drawing
 * @property {string} text
 * @property {Record<string, number> | null} otherPicture when it was drawn on a picture of another shape: the sizes of
 *   both, for the sentence
 */
/**
 * @typedef {object} Listener
 * @property {() => Drawn} drawn
 * @property {(target: number, matte: Matte | null, frame: number) => void} onMatte
 * @property {(answer: Answer, replaced: boolean) => void} onPicture `replaced`: whether its pixels are others than
 *   before, though it comes from the same nodes and files
 * @property {(status: { state: "idle" | "waiting" | "working" | "ready" | "error", text: string,
 *   engine: Engine | null }) => void} onStatus
 */
/** @typedef {{ key: string, target: number, stage: Stage, prompt: Prompt }} Wish */

const REMEMBERED_MATTES = 24;
const REMEMBERED_SESSIONS = 8;
/** Dragging asks the classical engine, which shares the processor with everything else, at most half of the time. */
const CLASSICAL_PAUSE_MS = 120;
/** Editors of one picture share its session. When three ask at a time, two would push each other out without end. */
const SUPERSEDED_PAUSE_MS = 250;
/** @type {Readonly<Record<string, string>>} codes of the server's refusals -> texts that say them in the user's language */
const REFUSALS = Object.freeze({
  failed: "previewMatteFailed",
  late: "previewLate",
  out_of_memory: "previewOutOfMemory",
  too_large: "previewTooLarge",
});
/** Until one was measured: what a job spends beside its own work. */
const ROUND_TRIP_MS = 30;

/**
 * Why there is no matte. "gone": the server no longer has the picture; "superseded": a newer question took its place;
 * "unsupported": the server has no live preview; "bad" and "failed" come with a sentence to show.
 */
export class LiveError extends Error {
  /**
   * @param {"gone" | "superseded" | "bad" | "failed" | "unsupported"} state
   * @param {string} sentence
   */
  constructor(state, sentence) {
    super(sentence);
    this.name = "LiveError";
    this.state = state;
  }
}

export class LiveClient {
  /**
   * @param {Transport} transport
   * @param {Listener} listener
   * @param {{ on?: boolean, way?: Way }} [settings]
   */
  constructor(transport, listener, { on = true, way = "automatic" } = {}) {
    this.transport = transport;
    this.listener = listener;
    this.on = on;
    /** @type {Way} */
    this.way = way;
    this.frame = 0;
    this.gesture = false;
    this.wantsPicture = false;
    /** Whether anything was done that asks for a preview. Opening a workflow runs nothing. */
    this.touched = false;
    /** What the remembered mattes and sessions were made from. */
    this.signature = "";
    /** Whether the graph may have changed since the session's signature was compared with it. */
    this.unchecked = true;
    /** @type {readonly number[]} the targets that were edited last */
    this.edited = [];
    /** @type {Map<number, Answer>} by frame */
    this.sessions = new Map();
    /** @type {Map<number, string>} by frame: the last session of this signature, which the server may have forgotten */
    this.contents = new Map();
    /** @type {Map<string, Matte>} by picture, frame and prompt */
    this.mattes = new Map();
    /** @type {string[]} by target: the matte that the editor shows */
    this.shown = [];
    /** @type {{ abort: AbortController, wish: Wish | null, isJob: boolean } | null} */
    this.underWay = null;
    /** @type {LiveError | null} */
    this.error = null;
    this.forgotten = 0;
    this.lastMs = 0;
    this.lastEnd = -Infinity;
    /** Whether somebody else's question took the place of the last one. */
    this.superseded = false;
    /** @type {number | null} */
    this.workerMs = null;
    this.roundTripMs = ROUND_TRIP_MS;
    this.asleep = false;
    this.disposed = false;
  }

  /** @returns {Answer | undefined} what the server holds of the frame */
  get session() {
    return this.sessions.get(this.frame);
  }

  /**
   * The drawing has changed.
   *
   * @param {readonly number[]} targets the ones whose prompt is new
   * @param {boolean} gesture whether a drag is still under way
   */
  edit(targets, gesture) {
    this.edited = targets;
    this.gesture = gesture;
    this.touched = true;
    this.unchecked ||= !gesture;
    this.error = null;
    this.forgotten = 0;
    this.show();
    this.dropStale();
    this.proceed();
  }

  endGesture() {
    this.gesture = false;
    this.unchecked = true;
    this.proceed();
  }

  /**
   * @param {boolean} on
   * @param {{ byUser?: boolean }} [options] whether it was turned on for this editor, which then may run a job
   */
  setOn(on, { byUser = false } = {}) {
    this.on = on;
    this.error = null;
    if (!on) {
      this.stop();
    }
    this.touched ||= byUser;
    this.wantsPicture ||= on && byUser && !this.session;
    this.proceed();
  }

  /** @param {Way} way */
  setWay(way) {
    this.way = way;
    this.proceed();
  }

  /** @param {number} frame the one to show and matte from now on */
  setFrame(frame) {
    if (frame === this.frame) {
      return;
    }
    this.stop();
    this.frame = frame;
    this.unchecked = true;
    this.error = null;
    const { session } = this;
    if (session) {
      this.listener.onPicture(session, false);
    }
    this.wantsPicture = !session;
    this.touched = true;
    this.show({ keepOutdated: false });
    this.proceed();
  }

  /**
   * A run of the workflow has brought a session.
   *
   * @param {Answer} answer
   * @param {string} signature
   */
  adopt(answer, signature) {
    this.stop();
    if (this.frame >= answer.frames) {
      this.frame = answer.frame;
    }
    this.remember(answer, signature);
    this.error = null;
    this.unchecked = true;
    this.wantsPicture = !this.session;
    this.show();
    this.proceed();
  }

  /** The picture is known to be another one: what is shown does not belong to it. */
  reset() {
    this.stop();
    this.sessions.clear();
    this.signature = "";
    this.touched = false;
    this.error = null;
    this.show();
    this.proceed();
  }

  /** The editor has given up what it showed, for a picture of another size. */
  showAnew() {
    this.shown = [];
    this.show();
  }

  /** What its decoded mattes take in memory. */
  get pixelBytes() {
    return decodedBytes([...this.mattes.values()].map(({ region: [, , width, height] }) => ({ width, height })));
  }

  /** Gives up the mattes; those that are wanted again are asked for again. */
  dropPixels() {
    this.mattes.clear();
    this.shown = [];
  }

  /** The server turned out not to have the picture any more. */
  forgetSession() {
    this.sessions.delete(this.frame);
    this.wantsPicture = true;
    this.proceed();
  }

  retry() {
    this.error = null;
    this.forgotten = 0;
    this.wantsPicture ||= !this.session;
    this.unchecked = true;
    this.touched = true;
    this.proceed();
  }

  /** While the node is not in a graph nothing is asked. @param {boolean} asleep */
  setAsleep(asleep) {
    this.asleep = asleep;
    if (asleep) {
      this.stop();
    } else {
      this.unchecked = true;
      // The editor may be another one, which shows nothing yet.
      this.showAnew();
      this.proceed();
    }
  }

  dispose() {
    this.disposed = true;
    this.stop();
    this.mattes.clear();
    this.sessions.clear();
  }

  stop() {
    this.underWay?.abort.abort();
    this.underWay = null;
  }

  // --------------------------------------------------------------------------------------------------- what is wanted

  /** @returns {Wish[]} one for each target that has something drawn and is not hidden, the last edited ones first */
  wishes() {
    const { drawing } = this.listener.drawn();
    const wishes = drawing.targets.flatMap((target, index) => {
      const prompt = promptOf(target, this.frame);
      if (target.hidden || isEmpty(prompt)) {
        return [];
      }
      const { points, box, strokes } = prompt;
      const about = [this.frame, drawing.width, drawing.height, points, box, strokes];
      const key = `${this.signature}\n${JSON.stringify(about)}`;
      return [{ key, target: index, stage: /** @type {Stage} */ ("matte"), prompt }];
    });
    return wishes.sort((a, b) => Number(this.edited.includes(b.target)) - Number(this.edited.includes(a.target)));
  }

  /** @returns {Wish | undefined} what to ask next: every mask before any matte, and no matte during a drag */
  next() {
    const missing = this.wishes().filter(({ key }) => this.mattes.get(key)?.stage !== "matte");
    const unseen = missing.find(({ key }) => !this.mattes.has(key));
    if (unseen) {
      return { ...unseen, stage: "mask" };
    }
    return this.gesture ? undefined : missing[0];
  }

  /**
   * Gives the editor what is known of the drawing as it is now.
   *
   * @param {{ keepOutdated?: boolean }} [options] whether what is not known yet stays as it is shown
   */
  show({ keepOutdated = true } = {}) {
    const wishes = new Map(this.wishes().map((wish) => [wish.target, wish]));
    const count = this.listener.drawn().drawing.targets.length;
    for (let target = 0; target < count; target += 1) {
      const wish = wishes.get(target);
      const matte = wish && this.mattes.get(wish.key);
      const name = wish && matte ? `${matte.stage}\n${wish.key}` : "";
      if (!matte && wish && keepOutdated && this.signature) {
        this.shown[target] = "outdated";
      } else if (this.shown[target] !== name) {
        this.shown[target] = name;
        this.listener.onMatte(target, matte ?? null, this.frame);
      }
    }
    this.shown.length = count;
  }

  /** Gives up waiting for a matte of something that is no longer drawn so. */
  dropStale() {
    const wish = this.underWay?.wish;
    if (wish && !this.underWay?.isJob && wish.stage === "matte") {
      if (!this.wishes().some(({ key }) => key === wish.key)) {
        this.stop();
      }
    }
  }

  // ----------------------------------------------------------------------------------------------------- what is done

  /** Starts what is next, unless something is under way. */
  proceed() {
    if (this.disposed || this.asleep || this.underWay) {
      return;
    }
    if (!this.on) {
      this.say("idle", t("previewOff"));
      return;
    }
    if (this.error) {
      this.say("error", this.error.message);
      return;
    }
    const { otherPicture } = this.listener.drawn();
    const wish = otherPicture ? undefined : this.next();
    const { session } = this;
    if (!wish || (!session && !this.touched)) {
      if (this.wantsPicture && this.touched && !session) {
        void this.runJob(null);
      } else if (otherPicture) {
        this.say("idle", t("otherPicture", otherPicture));
      } else if (session && this.wishes().length > 0) {
        this.sayReady();
      } else {
        this.say("idle", t("previewNothing"));
      }
      return;
    }
    if (!session) {
      if (!this.gesture) {
        void this.runJob(wish);
      }
    } else if (wish.stage === "matte" && this.unchecked) {
      void this.check();
    } else if (this.pauseMs(session) > 0) {
      this.transport.later(() => this.proceed(), this.pauseMs(session));
    } else if (wish.stage === "matte" && this.goesByQueue(session)) {
      void this.runJob(wish);
    } else {
      void this.ask(session, wish);
    }
  }

  /** @param {Answer} session @returns {number} how long the next question has to wait; none when not above 0 */
  pauseMs({ engine }) {
    const since = this.transport.now() - this.lastEnd;
    if (this.superseded) {
      return SUPERSEDED_PAUSE_MS - since;
    }
    return this.gesture && engine === "classical" ? Math.max(this.lastMs, CLASSICAL_PAUSE_MS) - since : 0;
  }

  /** @param {Answer} answer */
  goesByQueue(answer) {
    if (this.way !== "automatic") {
      return this.way === "queue";
    }
    if (answer.device === "cpu" || answer.queue_ms === null || this.transport.isBusy()) {
      return false;
    }
    return answer.queue_ms + this.roundTripMs < (this.workerMs ?? answer.worker_ms ?? Infinity);
  }

  /** @param {Answer} session @param {Wish} wish @returns {boolean} whether its matte is the worker's next question */
  leadsToMatte(session, wish) {
    const unseen = this.wishes().filter(({ key }) => !this.mattes.has(key));
    return wish.stage === "mask" && !this.gesture && unseen.length === 1 && !this.goesByQueue(session);
  }

  /** Compares what the session was made from with the graph as it is. */
  async check() {
    const abort = new AbortController();
    this.underWay = { abort, wish: null, isJob: false };
    const signature = await this.transport.signature().catch(() => "");
    if (abort.signal.aborted) {
      return;
    }
    this.underWay = null;
    this.unchecked = false;
    if (signature !== this.signature) {
      this.sessions.clear();
      this.signature = "";
      this.show();
    }
    this.proceed();
  }

  /** @param {Answer} session @param {Wish} wish */
  async ask(session, wish) {
    const { drawing } = this.listener.drawn();
    const abort = new AbortController();
    this.underWay = { abort, wish, isJob: false };
    this.say("working", t(wish.stage === "mask" ? "previewMask" : "previewMatte"));
    const { width, height } = drawing;
    const { stage, prompt } = wish;
    const ahead = this.leadsToMatte(session, wish);
    const question = { session: session.session, stage, prompt, width, height, ahead };
    const began = this.transport.now();
    try {
      const matte = await this.transport.ask(question, abort.signal);
      if (abort.signal.aborted) {
        return;
      }
      this.took(this.transport.now() - began, wish.stage);
      this.forgotten = 0;
      this.keep(wish.key, matte);
    } catch (error) {
      if (abort.signal.aborted) {
        return;
      }
      this.took(this.transport.now() - began, null);
      this.fail(error);
    }
    this.underWay = null;
    this.show();
    this.proceed();
  }

  /** @param {Wish | null} wish null: only the picture */
  async runJob(wish) {
    const { text } = this.listener.drawn();
    const abort = new AbortController();
    const { session, frame } = this;
    this.underWay = { abort, wish, isJob: true };
    const waits = this.transport.isBusy();
    this.say(waits ? "waiting" : "working", t(waits ? "previewQueued" : session ? "previewMatte" : "previewEncoding"));
    const began = this.transport.now();
    try {
      const done = await this.transport.run(
        { frame, target: wish?.target ?? -1, text },
        { signal: abort.signal, onProgress: (progress) => !abort.signal.aborted && this.sayProgress(progress) },
      );
      if (abort.signal.aborted) {
        return;
      }
      const ms = this.transport.now() - began;
      this.lastMs = ms;
      if (session && done.answer.queue_ms !== null) {
        this.roundTripMs = Math.max(0, ms - done.answer.queue_ms);
      }
      this.wantsPicture = false;
      // The server counts the frames: there may be fewer than before.
      this.frame = done.answer.frame;
      // The job read the graph itself, so there is nothing to compare until the next edit.
      this.unchecked = false;
      this.remember(done.answer, done.signature);
      const asked = wish && this.wishes().find((candidate) => sameDrawn(candidate.key, wish.key));
      if (asked && done.matte && done.answer.matte?.target === wish.target) {
        this.keep(asked.key, done.matte);
      } else if (asked && session) {
        // The same job would end the same way.
        this.fail(new LiveError("failed", t("previewNoAnswer")));
      }
    } catch (error) {
      if (abort.signal.aborted) {
        return;
      }
      this.wantsPicture = false;
      this.fail(error);
    }
    this.underWay = null;
    this.show();
    this.proceed();
  }

  // ------------------------------------------------------------------------------------------------ what is remembered

  /** @param {Answer} answer @param {string} signature */
  remember(answer, signature) {
    const former = this.contents.get(answer.frame);
    // A session is named after the pixels: a file was replaced, or a node makes another picture at every run.
    const replaced = signature === this.signature && former !== undefined && former !== answer.session;
    if (signature !== this.signature || replaced) {
      this.sessions.clear();
      this.contents.clear();
      this.signature = signature;
    }
    this.sessions.delete(answer.frame);
    this.sessions.set(answer.frame, answer);
    trim(this.sessions, REMEMBERED_SESSIONS);
    this.contents.set(answer.frame, answer.session);
    if (replaced) {
      this.mattes.clear();
      this.show({ keepOutdated: false });
    }
    if (answer.frame === this.frame) {
      this.listener.onPicture(answer, replaced);
    }
  }

  /** @param {string} key @param {Matte} matte */
  keep(key, matte) {
    this.mattes.delete(key);
    this.mattes.set(key, matte);
    // One of what is drawn now would be asked for again as soon as it was given up.
    trim(this.mattes, REMEMBERED_MATTES, new Set(this.wishes().map((wish) => wish.key)));
  }

  /** @param {number} ms @param {Stage | null} stage */
  took(ms, stage) {
    this.superseded = false;
    this.lastMs = ms;
    this.lastEnd = this.transport.now();
    if (stage === "matte") {
      this.workerMs = this.workerMs === null ? ms : (this.workerMs + ms) / 2;
    }
  }

  /** @param {unknown} thrown */
  fail(thrown) {
    const error =
      thrown instanceof LiveError
        ? thrown
        : new LiveError("failed", thrown instanceof Error ? thrown.message : String(thrown));
    if (error.state === "superseded") {
      this.superseded = true;
      return;
    }
    if (error.state === "gone") {
      this.sessions.delete(this.frame);
      this.forgotten += 1;
      if (this.forgotten < 2) {
        return;
      }
      this.error = new LiveError("failed", t("previewForgotten"));
      return;
    }
    this.error = error;
  }

  // ---------------------------------------------------------------------------------------------------- what is said

  /** @param {"idle" | "waiting" | "working" | "ready" | "error"} state @param {string} text */
  say(state, text) {
    this.listener.onStatus({ state, text, engine: this.session?.engine ?? null });
  }

  sayReady() {
    this.say("ready", t("previewReady", { ms: Math.round(this.lastMs) }));
  }

  /** @param {Progress} progress */
  sayProgress({ started, node, share }) {
    if (!started) {
      this.say("waiting", t("previewQueued"));
    } else if (share !== null && node) {
      this.say("working", t("previewNodeProgress", { node, percent: Math.round(share * 100) }));
    } else {
      this.say("working", node ? t("previewNode", { node }) : t(this.session ? "previewMatte" : "previewEncoding"));
    }
  }
}

/**
 * @param {string} a key of a wish
 * @param {string} b
 * @returns {boolean} whether they differ in the picture at most
 */
function sameDrawn(a, b) {
  return a.slice(a.lastIndexOf("\n")) === b.slice(b.lastIndexOf("\n"));
}

/** @param {Map<unknown, unknown>} map @param {number} most @param {ReadonlySet<unknown>} [kept] keys that stay */
function trim(map, most, kept = new Set()) {
  for (const key of map.keys()) {
    if (map.size <= most) {
      return;
    }
    if (!kept.has(key)) {
      map.delete(key);
    }
  }
}

/**
 * Asks the server's worker for the mask or matte of one prompt.
 *
 * @param {(path: string, options: RequestInit) => Promise<Response>} fetchApi
 * @param {(png: Blob) => Promise<CanvasImageSource>} decode
 * @param {Question} question
 * @param {AbortSignal} signal
 * @returns {Promise<Matte>}
 * @throws {LiveError}
 */
export async function askWorker(fetchApi, decode, question, signal) {
  const headers = { "Content-Type": "application/json" };
  const options = { method: "POST", headers, body: JSON.stringify(question), signal };
  const response = await fetchApi("/mam/live", options).catch((error) => {
    throw signal.aborted ? error : new LiveError("failed", t("previewNoConnection"));
  });
  if (!response.ok) {
    const said = await response.json().catch(() => null);
    if (typeof said?.state !== "string") {
      if (response.status === 404 || response.status === 405) {
        throw new LiveError("unsupported", t("previewOldServer"));
      }
      throw new LiveError("failed", t("previewFailed", { code: response.status }));
    }
    const text = REFUSALS[said.code];
    throw new LiveError(said.state, text ? t(text, said.values) : said.error);
  }
  const region = (response.headers.get("X-Mam-Region") ?? "").trim().split(/\s+/).map(Number);
  const [x = 0, y = 0, width = 0, height = 0, of_width = 0, of_height = 0] = region;
  return {
    image: await decode(await response.blob()),
    region: [x, y, width, height],
    of: [of_width, of_height],
    stage: question.stage,
    score: Number(response.headers.get("X-Mam-Score") ?? 0),
  };
}
