/**
 * The live job: one node beside the graph's own, asked for alone through ComfyUI's queue.
 *
 * It encodes one frame and, if a target is named, mattes it on ComfyUI's own device. Nothing else of the graph runs,
 * and no result of it is dropped, because the whole API prompt goes along.
 *
 * The jobs have a websocket of their own: through the page's, a failed preview would open ComfyUI's error dialog, and
 * every preview would light up nodes.
 */

import { LiveError } from "./live.mjs";
import { t } from "./texts.mjs";

/** @typedef {import("./live.mjs").Answer} Answer */
/** @typedef {import("./live.mjs").Progress} Progress */
/** @typedef {{ class_type: string, inputs: Record<string, unknown>, _meta?: { title?: string } }} ApiNode */
/** @typedef {Record<string, ApiNode>} ApiPrompt */
/** @typedef {(path: string, options?: RequestInit) => Promise<Response>} Fetch */
/** @typedef {{ id: string, name: string, ran: unknown, value: unknown }} Fleeting `value`: of its widget after the run */

const EDITOR_NODE = "MAM_PromptEditor";
const LIVE_NODE = "MAM_LivePicture";
const VALUE_INPUT = "prompts";
const OPENING_MS = 5_000;
const ASKING_MS = 500;

/** @param {unknown} value @param {ApiPrompt} prompt @returns {value is [string, number]} */
function isLink(value, prompt) {
  return Array.isArray(value) && value.length === 2 && typeof value[0] === "string" && value[0] in prompt;
}

/**
 * What the picture and the engine of an editor come from: every node before it and its own settings, all but the
 * drawing. Two equal signatures mean the same picture, models and merging.
 *
 * @param {ApiPrompt} prompt
 * @param {string} editorId
 * @returns {string} "" when the editor is not in the prompt
 */
export function signatureOf(prompt, editorId) {
  const editor = prompt[editorId];
  if (!editor) {
    return "";
  }
  /** @type {Map<string, string>} */
  const known = new Map();
  /** @param {string} id @param {ApiNode} node @param {(name: string) => boolean} counts */
  const describe = (id, node, counts) => {
    known.set(id, "");
    const inputs = Object.keys(node.inputs)
      .filter(counts)
      .sort()
      .map((name) => {
        const value = node.inputs[name];
        const origin = isLink(value, prompt) ? value[0] : undefined;
        const before = origin === undefined ? undefined : prompt[origin];
        if (origin !== undefined && before && !known.has(origin)) {
          describe(origin, before, () => true);
        }
        return [name, value];
      });
    known.set(id, JSON.stringify([node.class_type, inputs]));
  };
  describe(editorId, editor, (name) => name !== VALUE_INPUT);
  const own = known.get(editorId);
  known.delete(editorId);
  return JSON.stringify([own, ...[...known].sort(([a], [b]) => (a < b ? -1 : 1))]);
}

/**
 * @param {ApiPrompt} prompt
 * @param {string} editorId
 * @returns {Set<string>} the editor and every node before it
 */
export function nodesBefore(prompt, editorId) {
  /** @type {Set<string>} */
  const found = new Set();
  /** @param {string} id */
  const add = (id) => {
    if (!found.has(id)) {
      found.add(id);
      for (const value of Object.values(prompt[id]?.inputs ?? {})) {
        if (isLink(value, prompt)) {
          add(value[0]);
        }
      }
    }
  };
  add(editorId);
  return found;
}

/**
 * The inputs before an editor of which every reading of the graph makes another value, as those of a camera, which
 * takes a picture for it.
 *
 * @param {ApiPrompt} once the graph
 * @param {ApiPrompt} again the same graph, read a moment later
 * @param {string} editorId
 * @returns {{ id: string, name: string }[]}
 */
export function restlessInputs(once, again, editorId) {
  return [...nodesBefore(once, editorId)].flatMap((id) =>
    Object.entries(once[id]?.inputs ?? {})
      .filter(([name, value]) => {
        const later = again[id]?.inputs[name];
        return later !== undefined && JSON.stringify(later) !== JSON.stringify(value);
      })
      .filter(([name]) => id !== editorId || name !== VALUE_INPUT)
      .map(([name]) => ({ id, name })),
  );
}

/**
 * @param {ApiPrompt} prompt that runs or ran
 * @param {(id: string, name: string) => unknown} valueOf the widget's value of an input that each run gets anew, now
 * @returns {Fleeting[]}
 */
export function fleetingInputs(prompt, valueOf) {
  return Object.entries(prompt).flatMap(([id, { inputs }]) =>
    Object.entries(inputs)
      .map(([name, ran]) => ({ id, name, ran, value: valueOf(id, name) }))
      .filter(({ value }) => value !== undefined),
  );
}

/**
 * The prompt of the graph as it is, but for the picture that was seen: another seed would make another picture.
 *
 * @param {ApiPrompt} prompt
 * @param {readonly Fleeting[]} inputs
 * @param {(id: string, name: string) => unknown} valueOf
 * @returns {ApiPrompt} with these inputs as they ran, but for those that the user has changed since
 */
export function asItRan(prompt, inputs, valueOf) {
  const former = { ...prompt };
  for (const { id, name, ran, value } of inputs) {
    const node = former[id];
    if (node && name in node.inputs && valueOf(id, name) === value) {
      former[id] = { ...node, inputs: { ...node.inputs, [name]: ran } };
    }
  }
  return former;
}

/**
 * @param {ApiPrompt} prompt
 * @param {string} editorId
 * @param {{ frame: number, target: number, text: string }} wanted target -1: only encode
 * @returns {{ prompt: ApiPrompt, liveId: string }} the prompt with the live node in it, and that node's id
 */
export function withLiveNode(prompt, editorId, { frame, target, text }) {
  const editor = prompt[editorId];
  if (!editor) {
    throw new LiveError("failed", t("previewNotInPrompt"));
  }
  const models = ["sam", "m2m"].map((name) => isLink(editor.inputs[name], prompt));
  if (models[0] !== models[1]) {
    throw new LiveError("failed", t(models[0] ? "previewNoM2m" : "previewNoSam"));
  }
  let liveId = `${editorId}-live`;
  while (liveId in prompt) {
    liveId += "-live";
  }
  const inputs = { ...editor.inputs, frame, target, [VALUE_INPUT]: text };
  return { prompt: { ...prompt, [liveId]: { class_type: LIVE_NODE, inputs } }, liveId };
}

/**
 * @param {ApiPrompt} prompt
 * @param {readonly string[]} candidates ids under which a node may stand in it: a subgraph is there once per instance
 * @returns {string | undefined}
 */
export function editorIn(prompt, candidates) {
  return candidates.find((id) => prompt[id]?.class_type === EDITOR_NODE);
}

/**
 * Posts live jobs and follows them.
 */
export class LiveJobs {
  /**
   * @param {object} server
   * @param {Fetch} server.fetchApi
   * @param {(clientId: string) => string} server.socketUrl
   * @param {typeof WebSocket} [server.Socket]
   * @param {() => string} [server.uuid]
   */
  constructor({ fetchApi, socketUrl, Socket = globalThis.WebSocket, uuid = randomUuid }) {
    this.fetchApi = fetchApi;
    this.socketUrl = socketUrl;
    this.Socket = Socket;
    this.uuid = uuid;
    this.clientId = uuid().replaceAll("-", "");
    /** @type {Map<string, (type: string, data: any) => void>} */
    this.following = new Map();
    /** @type {Promise<boolean> | null} */
    this.opened = null;
  }

  /** How many live jobs are in ComfyUI's queue. */
  get count() {
    return this.following.size;
  }

  /**
   * Runs the live node of a prompt.
   *
   * @param {{ prompt: ApiPrompt, liveId: string, workflow?: unknown }} job
   * @param {{ signal: AbortSignal, onProgress: (progress: Progress) => void }} watching
   * @returns {Promise<Answer>}
   * @throws {LiveError} with ComfyUI's own sentence when the job is refused or fails
   */
  async run({ prompt, liveId, workflow }, { signal, onProgress }) {
    signal.throwIfAborted();
    const connected = await this.connect();
    signal.throwIfAborted();
    const promptId = this.uuid();
    const over = this.follow(promptId, prompt, liveId, onProgress, signal);
    // The promise is awaited below; were the post to fail first, nobody would be listening.
    over.answer.catch(() => {});
    try {
      await this.post(promptId, prompt, liveId, workflow);
      if (!connected) {
        void this.poll(promptId);
      }
      return await over.answer;
    } catch (error) {
      if (signal.aborted) {
        void this.withdraw(promptId);
      }
      throw error;
    } finally {
      // The history entry is written after the answer has come; the last message says when.
      void over.end.then(() => this.forget(promptId));
    }
  }

  /** @param {string} promptId @param {ApiPrompt} prompt @param {string} liveId @param {unknown} workflow */
  async post(promptId, prompt, liveId, workflow) {
    const response = await this.fetchApi("/prompt", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({
        client_id: this.clientId,
        prompt_id: promptId,
        prompt,
        front: true,
        partial_execution_targets: [liveId],
        extra_data: workflow === undefined ? {} : { extra_pnginfo: { workflow } },
      }),
    }).catch(() => null);
    if (!response?.ok) {
      this.following.get(promptId)?.("executing", { node: null });
      throw response ? await refusal(response, prompt) : new LiveError("failed", t("previewNoConnection"));
    }
  }

  /**
   * @param {string} promptId
   * @param {ApiPrompt} prompt
   * @param {string} liveId
   * @param {(progress: Progress) => void} onProgress
   * @param {AbortSignal} signal
   */
  follow(promptId, prompt, liveId, onProgress, signal) {
    /** @type {(answer: Answer) => void} */
    let answered = () => {};
    /** @type {(error: unknown) => void} */
    let failed = () => {};
    /** @type {() => void} */
    let ended = () => {};
    /** @type {Promise<Answer>} */
    const answer = new Promise((resolve, reject) => {
      answered = resolve;
      failed = reject;
    });
    /** @type {Promise<void>} */
    const end = new Promise((resolve) => {
      ended = () => {
        this.following.delete(promptId);
        resolve();
        failed(new LiveError("failed", t("previewNoAnswer")));
      };
    });
    signal.addEventListener("abort", () => failed(signal.reason), { once: true });
    const title = (/** @type {string} */ id) => prompt[id]?._meta?.title ?? prompt[id]?.class_type ?? "";
    this.following.set(promptId, (type, data) => {
      if (type === "execution_start") {
        onProgress({ started: true, node: "", share: null });
      } else if (type === "executing" && data.node) {
        onProgress({ started: true, node: data.node === liveId ? "" : title(data.node), share: null });
      } else if (type === "progress" && data.node && data.max > 1) {
        onProgress({ started: true, node: title(data.node), share: data.value / data.max });
      } else if (type === "executed" && data.node === liveId && data.output?.mam_live?.[0]) {
        answered(data.output.mam_live[0]);
      } else if (type === "execution_error") {
        failed(new LiveError("failed", failureOf(data)));
      } else if (type === "execution_interrupted") {
        failed(new LiveError("failed", t("previewInterrupted")));
      } else if (type === "executing" && data.node === null) {
        ended();
      }
    });
    return { answer, end };
  }

  /**
   * Opens the websocket, or finds it open.
   *
   * @returns {Promise<boolean>} false when it cannot be had; the history is asked instead then
   */
  connect() {
    this.opened ??= new Promise((resolve) => {
      const socket = new this.Socket(this.socketUrl(this.clientId));
      const late = setTimeout(() => socket.close(), OPENING_MS);
      socket.addEventListener("open", () => {
        clearTimeout(late);
        resolve(true);
      });
      socket.addEventListener("close", () => {
        clearTimeout(late);
        this.opened = null;
        resolve(false);
        for (const promptId of this.following.keys()) {
          void this.poll(promptId);
        }
      });
      socket.addEventListener("message", ({ data }) => {
        // Binary messages are the previews of other nodes.
        if (typeof data === "string") {
          const message = JSON.parse(data);
          this.following.get(message.data?.prompt_id)?.(message.type, message.data);
        }
      });
    });
    return this.opened;
  }

  /**
   * Follows a job by asking, where there is no websocket.
   *
   * @param {string} promptId
   */
  async poll(promptId) {
    for (let follow; (follow = this.following.get(promptId)); ) {
      await new Promise((resolve) => setTimeout(resolve, ASKING_MS));
      const entry = await this.historyOf(promptId).catch(() => null);
      if (entry === undefined && (await this.isOver(promptId))) {
        follow("executing", { node: null });
      }
      if (!entry) {
        continue;
      }
      for (const [node, output] of Object.entries(entry.outputs ?? {})) {
        follow("executed", { node, output });
      }
      for (const [type, data] of entry.status?.messages ?? []) {
        follow(type, data);
      }
      follow("executing", { node: null });
    }
  }

  /** @param {string} promptId @returns {Promise<any>} undefined when the history has no such job */
  async historyOf(promptId) {
    return (await (await this.fetchApi(`/history/${promptId}`)).json())[promptId];
  }

  /** @param {string} promptId @returns {Promise<boolean>} whether the queue does not hold a job */
  async isOver(promptId) {
    const queue = await this.queue().catch(() => null);
    return queue !== null && ![...queue.running, ...queue.pending].some((entry) => entry[1] === promptId);
  }

  /** @returns {Promise<{ running: any[][], pending: any[][] }>} */
  async queue() {
    const queue = await (await this.fetchApi("/queue")).json();
    return { running: queue.queue_running ?? [], pending: queue.queue_pending ?? [] };
  }

  /**
   * What a job was started with.
   *
   * @param {string} promptId of a job that is running or over
   * @returns {Promise<{ prompt: ApiPrompt, workflowId: string | undefined } | undefined>}
   */
  async startOf(promptId) {
    const { running } = await this.queue();
    /** @type {any[] | undefined} */
    const entry = running.find((job) => job[1] === promptId) ?? (await this.historyOf(promptId))?.prompt;
    return entry && { prompt: entry[2], workflowId: entry[3]?.extra_pnginfo?.workflow?.id };
  }

  /**
   * Takes a job out of the queue, or stops it if it runs.
   *
   * @param {string} promptId
   */
  async withdraw(promptId) {
    await this.send("/queue", { delete: [promptId] });
    await this.send("/interrupt", { prompt_id: promptId });
    // A job that never ran sends no last message.
    if (await this.isOver(promptId)) {
      this.following.get(promptId)?.("executing", { node: null });
    }
  }

  /** @param {string} promptId */
  async forget(promptId) {
    await this.send("/history", { delete: [promptId] });
  }

  /** @param {string} path @param {unknown} content */
  async send(path, content) {
    const headers = { "Content-Type": "application/json" };
    // Tidying up: without a server there is nothing to tidy.
    await this.fetchApi(path, { method: "POST", headers, body: JSON.stringify(content) }).catch(() => {});
  }
}

/**
 * @param {{ exception_type?: string, exception_message?: string }} failure of a node
 * @returns {string} what the user is told: its own words, where it is none that is known
 */
function failureOf({ exception_type, exception_message }) {
  const message = String(exception_message ?? "").trim();
  // PyTorch and OpenCV have no error of their own for it on the processor.
  if (/OutOfMemory|MemoryError/.test(exception_type ?? "") || /DefaultCPUAllocator|Insufficient memory/.test(message)) {
    return t("previewOutOfMemory");
  }
  return message || t("previewNoAnswer");
}

/**
 * @typedef {object} Reason why ComfyUI does not run a node
 * @property {string} message
 * @property {string} [type]
 * @property {string} [details]
 * @property {{ input_name?: string, received_value?: unknown }} [extra_info]
 */

/**
 * @param {ApiNode | undefined} node
 * @param {Reason} reason
 * @returns {string}
 */
function sentenceOf(node, { type, message, details, extra_info }) {
  const { input_name: input = "", received_value: value = "" } = extra_info ?? {};
  const values = { node: node?._meta?.title ?? node?.class_type ?? "", input, value: String(value) };
  if (input === "image" && (node?.class_type === EDITOR_NODE || node?.class_type === LIVE_NODE)) {
    return t("previewNoImage");
  }
  if (type === "value_not_in_list") {
    return t("previewNotInList", values);
  }
  if (type === "required_input_missing") {
    return t("previewInputMissing", values);
  }
  return [message, details].filter(Boolean).join(": ");
}

/**
 * What ComfyUI's validation said, as one sentence.
 *
 * @param {Response} response
 * @param {ApiPrompt} prompt
 * @returns {Promise<LiveError>}
 */
async function refusal(response, prompt) {
  const said = await response.json().catch(() => ({}));
  if (said.error?.type === "missing_node_type" && JSON.stringify(said.error).includes(LIVE_NODE)) {
    return new LiveError("unsupported", t("previewOldServer"));
  }
  /** @type {[string, { errors?: Reason[] }][]} */
  const nodes = Object.entries(said.node_errors ?? {});
  const [first] = nodes.flatMap(([id, { errors }]) => (errors ?? []).map((reason) => sentenceOf(prompt[id], reason)));
  const sentence = first ?? said.error?.message;
  return new LiveError("failed", sentence || t("previewFailed", { code: response.status }));
}

/** crypto.randomUUID is missing on pages that are not served from this machine or over https. */
function randomUuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (/** @type {number} */ (bytes[6]) & 0x0f) | 0x40;
  bytes[8] = (/** @type {number} */ (bytes[8]) & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
