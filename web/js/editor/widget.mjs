/**
 * The editor as a widget of its node.
 *
 * ComfyUI makes every node anew when it undoes, switches workflows or reloads a graph. What belongs to an editor (its
 * picture, mattes, history and live session) therefore lives in an `EditorHost`, which the node of the same graph and
 * id takes over.
 */

import { PromptEditor } from "./editor.mjs";
import {
  LiveJobs,
  asItRan,
  editorIn,
  fleetingInputs,
  nodesBefore,
  restlessInputs,
  signatureOf,
  withLiveNode,
} from "./job.mjs";
import { LiveClient, LiveError, askWorker } from "./live.mjs";
import { beyondMemory } from "./memory.mjs";
import {
  executionIds,
  fleetingValue,
  loadBitmap,
  loadPicture,
  nodeState,
  originOf,
  pictureFile,
  viewRoute,
} from "./source.mjs";
import { t } from "./texts.mjs";

/** @typedef {import("./live.mjs").Answer} Answer */
/** @typedef {import("./live.mjs").Matte} Matte */
/** @typedef {import("./live.mjs").Way} Way */
/** @typedef {import("./source.mjs").PictureFile} PictureFile */
/**
 * @typedef {object} Settings what the user chose in ComfyUI's settings
 * @property {string} overlayColor `#rrggbb`
 * @property {number} overlayOpacity 0 to 1
 * @property {number} pointSize
 * @property {number} brushSize
 * @property {boolean} live
 * @property {Way} way
 */
/**
 * @typedef {object} Platform
 * @property {any} app
 * @property {any} api
 * @property {() => boolean} isClassic whether ComfyUI draws nodes on its canvas
 * @property {() => Settings} settings
 */

export const WIDGET_TYPE = "MAM_EDITOR";
export const LEAST_SIZE = Object.freeze({ width: 420, height: 640 });
const LEAST_WIDGET_HEIGHT_PX = 380;
/** Nothing tells a node that a widget before it was changed, so it looks. */
const LOOKING_MS = 400;
/** Editors of deleted nodes and of other workflows that are kept for an undo or a return; memory.mjs bounds their size. */
const KEPT_EDITORS = 48;

/** All editors of the page, and what they share. */
export class Editors {
  /** @param {Platform} platform */
  constructor(platform) {
    this.platform = platform;
    const { api } = platform;
    /** @type {Map<string, EditorHost>} by graph and node, the last used one last */
    this.hosts = new Map();
    this.queueLength = 0;
    /** @type {EditorHost | null} */
    this.lastUsed = null;
    this.jobs = new LiveJobs({
      fetchApi: (path, options) => api.fetchApi(path, options),
      socketUrl: (clientId) => {
        const scheme = location.protocol === "https:" ? "wss" : "ws";
        return `${scheme}://${api.api_host}${api.api_base}/ws?clientId=${clientId}`;
      },
    });
    api.addEventListener("status", (/** @type {CustomEvent} */ event) => {
      this.queueLength = event.detail?.exec_info?.queue_remaining ?? 0;
    });
    api.addEventListener("executed", (/** @type {CustomEvent} */ event) => void this.executed(event.detail));
    setInterval(() => this.look(), LOOKING_MS);
  }

  /** @returns {EditorHost[]} those whose nodes are in the workflow that is open */
  get present() {
    return [...this.hosts.values()].filter((host) => host.isPresent());
  }

  isBusy() {
    return this.queueLength > this.jobs.count;
  }

  /**
   * The widget of a node that is being made.
   *
   * @param {any} node
   * @param {string} name
   * @returns {any}
   */
  createWidget(node, name) {
    const { app } = this.platform;
    const root = document.createElement("div");
    // Until the node is in a graph: what it was configured with.
    let text = "";
    let isConfigured = true;
    /** @type {EditorHost | null} */
    let host = null;
    const ours = () => (host?.widget === widget ? host : null);
    const widget = node.addDOMWidget(name, WIDGET_TYPE, root, {
      getValue: () => ours()?.text ?? text,
      setValue: (/** @type {unknown} */ value) => {
        text = typeof value === "string" ? value : "";
        isConfigured = true;
        ours()?.setText(text);
      },
      getMinHeight: () => LEAST_WIDGET_HEIGHT_PX,
      hideOnZoom: false,
      serialize: true,
      socketless: true,
      hideInPanel: true,
    });
    const { onAdded, onConfigure, onRemoved, onConnectionsChange } = node;
    const editors = this;
    node.onAdded = function (/** @type {any[]} */ ...args) {
      const result = onAdded?.apply(this, args);
      const { former, fresh } = editors.take(node, root);
      const isOther = former !== undefined && former.node !== node;
      host = former ?? fresh();
      host.mount(node, widget);
      if (!former) {
        host.setText(text);
      } else if (isOther) {
        // A graph that is loaded adds its nodes first and configures them in the same breath. A node that is not
        // configured then is a new one, which chance has given the id of another.
        isConfigured = false;
        queueMicrotask(() => {
          if (!isConfigured) {
            former.dispose();
            host = fresh();
            host.mount(node, widget);
            host.setText(text);
          }
        });
      }
      return result;
    };
    node.onConfigure = function (/** @type {any[]} */ ...args) {
      // Nodes 2.0 saves a collapsed node with the size that it has then, and would open it in that size.
      if (node.flags?.collapsed) {
        const [width, height] = node.size;
        node.setSize([Math.max(width, LEAST_SIZE.width), Math.max(height, LEAST_SIZE.height)]);
      }
      return onConfigure?.apply(this, args);
    };
    node.onRemoved = function (/** @type {any[]} */ ...args) {
      text = ours()?.text ?? text;
      ours()?.park();
      editors.makeRoom();
      return onRemoved?.apply(this, args);
    };
    node.onConnectionsChange = function (/** @type {any[]} */ ...args) {
      queueMicrotask(() => ours()?.look());
      return onConnectionsChange?.apply(this, args);
    };
    // The graph's own picture previews would cover the node.
    node.hideOutputImages = true;
    app.canvas?.setDirty(true, true);
    return widget;
  }

  /**
   * Lets the graph have the wheel and the middle button where the editor does not use them. Nodes 2.0 does so itself.
   *
   * @param {EditorHost} host
   */
  handOn(host) {
    const { app, isClassic } = this.platform;
    const { root } = host;
    root.addEventListener(
      "wheel",
      (event) => {
        const inList = event.target instanceof Element && event.target.closest(".mam-targets ul") !== null;
        const scrolls = inList && root.contains(document.activeElement);
        if (isClassic() && !scrolls) {
          event.preventDefault();
          app.canvas.processMouseWheel(event);
        }
      },
      { passive: false },
    );
    root.addEventListener("pointerdown", (event) => {
      if (event.button === 1 && isClassic()) {
        app.canvas.processMouseDown(event);
      }
    });
    root.addEventListener("pointermove", (event) => {
      if (event.buttons & 4 && isClassic()) {
        app.canvas.processMouseMove(event);
      }
    });
    root.addEventListener("pointerup", (event) => {
      if (event.button === 1 && isClassic()) {
        app.canvas.processMouseUp(event);
      }
    });
    root.addEventListener("focusin", ({ target }) => {
      this.lastUsed = host;
      // ComfyUI leaves Ctrl+Z to text areas and undoes the graph everywhere else; the editor has a history of its own.
      if (target instanceof HTMLElement && !(target instanceof HTMLInputElement)) {
        Object.defineProperty(target, "type", { value: "textarea", configurable: true });
      }
      if (!isClassic() && !app.canvas.selectedItems?.has(host.node)) {
        app.canvas.selectNode?.(host.node);
      }
    });
  }

  /**
   * @param {any} node that was put into a graph
   * @param {HTMLElement} root of a new one
   * @returns {{ former: EditorHost | undefined, fresh: () => EditorHost }} the one that stood there before the graph
   *   was reloaded, and how to have a new one instead
   */
  take(node, root) {
    const key = `${node.graph?.id} ${node.id}`;
    const kept = this.hosts.get(key);
    const former = kept && (kept.node === node || !kept.isPresent()) ? kept : undefined;
    /** @param {EditorHost} host */
    const keep = (host) => {
      this.hosts.delete(key);
      this.hosts.set(key, host);
      return host;
    };
    return { former: former && keep(former), fresh: () => keep(new EditorHost(this, root)) };
  }

  /** Disposes of the editors that nobody came back for, and has those out of sight give up what takes too much room. */
  makeRoom() {
    const absent = [...this.hosts].filter(([, host]) => !host.isPresent());
    for (const [key, host] of absent.slice(0, Math.max(0, absent.length - KEPT_EDITORS))) {
      this.hosts.delete(key);
      host.dispose();
    }
    const outOfSight = [...this.hosts.values()].filter((host) => !host.isShown());
    beyondMemory(outOfSight).forEach((host) => host.dropPixels());
  }

  look() {
    if (!document.hidden) {
      this.present.forEach((host) => void host.look());
      this.makeRoom();
    }
  }

  /** @param {Partial<Settings>} change */
  setSettings(change) {
    for (const host of this.hosts.values()) {
      host.setSettings(change);
    }
  }

  /** Builds the editors anew, in a language that has just been chosen. */
  renew() {
    for (const host of this.hosts.values()) {
      host.renew();
    }
  }

  /**
   * @param {{ isNamed?: boolean }} [options] whether it has to have the focus or be selected, and not be the only one or
   *   the one used last
   * @returns {EditorHost | undefined} the one in the graph that is open that a command is meant for
   */
  chosen({ isNamed = false } = {}) {
    const shown = this.present.filter((host) => host.isShown());
    const focused = shown.find((host) => host.root.contains(document.activeElement));
    const selected = shown.filter((host) => this.platform.app.canvas?.selected_nodes?.[host.node.id] === host.node);
    const last = shown.find((host) => host === this.lastUsed);
    const named = focused ?? selected.find((host) => host === last) ?? selected[0];
    const onlyOne = shown.length === 1 ? shown[0] : undefined;
    return isNamed ? named : (named ?? onlyOne ?? last);
  }

  /** @param {{ node: string, display_node?: string, prompt_id: string, output?: any }} detail */
  async executed({ node, display_node, prompt_id, output }) {
    const answer = output?.mam_live?.[0];
    if (!answer) {
      return;
    }
    const id = String(display_node ?? node);
    const { app } = this.platform;
    const hosts = this.present.filter((host) => executionIds(app.rootGraph, host.node).includes(id));
    if (hosts.length > 0) {
      // The graph may have changed since the job was queued, or be another one that has a node of the same id.
      const start = await this.jobs.startOf(prompt_id).catch(() => undefined);
      if (start && (start.workflowId ?? app.rootGraph.id) === app.rootGraph.id) {
        for (const host of hosts) {
          Object.assign(host, host.traitsOf(start.prompt, id));
          host.live.adopt(answer, signatureOf(start.prompt, id));
        }
      }
    }
  }
}

/** One editor with all that belongs to it. */
export class EditorHost {
  /**
   * @param {Editors} editors
   * @param {HTMLElement} root what ComfyUI puts into the node
   */
  constructor(editors, root) {
    this.editors = editors;
    this.root = root;
    const { app, api, settings } = editors.platform;
    this.app = app;
    this.fetchApi = (/** @type {string} */ path, /** @type {RequestInit | undefined} */ options) =>
      /** @type {Promise<Response>} */ (api.fetchApi(path, options));
    /** @type {any} */
    this.node = null;
    /** @type {any} */
    this.widget = null;
    /** @type {string} the route of the picture that is shown or on its way */
    this.route = "";
    /** @type {string} what to do about a picture that is not there */
    this.hint = "";
    /** @type {{ image: CanvasImageSource | null, width: number, height: number }} */
    this.picture = { image: null, width: 0, height: 0 };
    this.frames = 1;
    /** Whether the picture was given up or is another one, and has to be loaded when the editor is shown. */
    this.isEmptied = false;
    this.seenAt = 0;
    /** @type {Set<string>} `id name` of inputs of which every reading of the graph makes another value */
    this.restless = new Set();
    this.fleetingValue = (/** @type {string} */ id, /** @type {string} */ name) =>
      fleetingValue(app.rootGraph, id, name) ??
      (this.restless.has(`${id} ${name}`) ? nodeState(app.rootGraph, id) : undefined);
    /** @type {readonly import("./job.mjs").Fleeting[]} of the run that made the picture */
    this.fleeting = [];
    /** @type {{ prompt: import("./job.mjs").ApiPrompt, states: Map<string, string>, signature: string }} that run */
    this.ran = { prompt: {}, states: new Map(), signature: "" };
    const { way, live } = settings();
    this.editor = this.makeEditor();
    this.live = new LiveClient(
      {
        ask: (question, signal) =>
          askWorker(this.fetchApi, (png) => createImageBitmap(png), question, signal),
        run: (job, watching) => this.run(job, watching),
        signature: () => this.signature(),
        isBusy: () => editors.isBusy(),
        now: () => performance.now(),
        later: (callback, ms) => void setTimeout(callback, ms),
      },
      {
        drawn: () => this.editor,
        onMatte: (target, matte, frame) => this.editor.setMatte(target, matte, frame),
        onPicture: (answer, replaced) => {
          // A file of the same name.
          this.isEmptied ||= replaced && this.route !== "session";
          void this.showSession(answer);
        },
        onStatus: (status) => this.say(status),
      },
      { on: live, way },
    );
    this.live.setAsleep(true);
    root.style.cssText = "position: relative; width: 100%; height: 100%; min-height: 0; overflow: hidden;";
    // ComfyUI would show the input's tooltip over the picture, and turn the wheel into a zoom of the graph.
    root.title = "";
    root.dataset["captureWheel"] = "true";
    root.replaceChildren(this.editor.element);
    editors.handOn(this);
  }

  makeEditor() {
    const { way: _way, ...look } = this.editors.platform.settings();
    return new PromptEditor({
      settings: look,
      onEdit: ({ targets, gesture }) => this.edited(targets, gesture),
      onGesture: (moment) => moment === "end" && this.gestureEnded(),
      onFrame: (frame) => this.live.setFrame(frame),
      onLive: (on) => this.live.setOn(on, { byUser: true }),
      onRetry: () => this.live.retry(),
    });
  }

  renew() {
    const former = this.editor;
    this.editor = this.makeEditor();
    this.editor.adoptState(former.state);
    this.editor.setSettings({ live: this.live.on });
    former.dispose();
    this.root.replaceChildren(this.editor.element);
    this.live.proceed();
  }

  get text() {
    return this.editor.text;
  }

  /** Whether the node is in the workflow that is open. */
  isPresent() {
    const graph = this.node?.graph;
    const root = this.app.rootGraph;
    const isOpen = graph && (graph === root || root?.subgraphs?.get(graph.id) === graph);
    return Boolean(isOpen && graph.getNodeById(this.node.id) === this.node);
  }

  /** Whether its node is in the graph that is open: the workflow itself or one of its subgraphs. */
  isShown() {
    return this.isPresent() && this.node.graph === this.app.canvas.graph;
  }

  get pixelBytes() {
    return this.editor.pixelBytes + this.live.pixelBytes;
  }

  dropPixels() {
    this.isEmptied = true;
    this.editor.dropPixels();
    this.live.dropPixels();
    this.closePicture();
    this.picture = { ...this.picture, image: null };
  }

  /** @param {any} node @param {any} widget */
  mount(node, widget) {
    this.node = node;
    this.widget = widget;
    // Nodes 2.0 goes on showing the element of the node that it showed under this id.
    widget.element = this.root;
    // A graph that is loaded has its nodes before their links.
    queueMicrotask(() => {
      if (this.node === node && this.isPresent()) {
        this.live.setAsleep(false);
        void this.look();
      }
    });
  }

  /** The node is gone, perhaps to come back. */
  park() {
    this.live.setAsleep(true);
  }

  dispose() {
    this.live.dispose();
    // ComfyUI may hold a deleted node, and with it the editor, for as long as its graph is open.
    this.dropPixels();
    this.editor.dispose();
  }

  /** @param {string} text a value that the user did not draw: loaded, pasted, undone */
  setText(text) {
    if (text !== this.editor.text) {
      this.editor.setText(text);
      this.live.show();
    }
  }

  /** @param {Partial<Settings>} change */
  setSettings({ way, ...look }) {
    this.editor.setSettings(look);
    if (way !== undefined) {
      this.live.setWay(way);
    }
    if (look.live !== undefined) {
      this.live.setOn(look.live);
    }
  }

  /** @param {readonly number[]} targets @param {boolean} gesture */
  edited(targets, gesture) {
    this.widget?.callback?.(this.text);
    this.node?.graph?.setDirtyCanvas(true, false);
    this.live.edit(targets, gesture);
  }

  gestureEnded() {
    // ComfyUI records clicks itself, but not what is done by keys.
    this.app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.captureCanvasState?.();
    this.live.endGesture();
  }

  /** @param {Parameters<import("./live.mjs").Listener["onStatus"]>[0]} status */
  say(status) {
    const text = status.state === "idle" && this.hint ? this.hint : status.text;
    this.editor.setStatus({ ...status, text });
  }

  // ----------------------------------------------------------------------------------------------------- the picture

  /** Sees to it that the picture shown is the one that the node gets now. */
  async look() {
    const origin = originOf(this.app.rootGraph, this.node, "image");
    const file = pictureFile(origin);
    const route = file ? viewRoute(file) : origin ? "session" : "";
    const before = this.route;
    const isShown = this.isShown();
    if (isShown) {
      this.seenAt = performance.now();
    }
    if (route === before && !(this.isEmptied && isShown)) {
      return;
    }
    const isSame = route === before;
    this.isEmptied = false;
    this.route = route;
    if (!isSame && before !== "") {
      this.live.reset();
    }
    if (file) {
      await this.showFile(file, route);
    } else {
      this.hint = t(origin ? "sourceRun" : "sourceConnect");
      if (!isSame) {
        this.show({ image: null, width: 0, height: 0 }, 0, 1);
      }
      const answer = origin && this.live.session;
      if (answer && !(await this.showSession(answer)) && isSame) {
        this.live.forgetSession();
      }
    }
    this.live.proceed();
  }

  /** @param {PictureFile} file @param {string} route */
  async showFile(file, route) {
    try {
      const image = await loadPicture(this.fetchApi, file);
      if (route === this.route) {
        this.hint = "";
        this.show({ image, width: image.width, height: image.height }, 0, 1);
      }
    } catch {
      if (route === this.route) {
        this.hint = t("sourceUnreadable", { name: file.filename });
        this.show({ image: null, width: 0, height: 0 }, 0, 1);
      }
    }
  }

  /** @param {Answer} answer @returns {Promise<boolean>} whether the server still had its picture */
  async showSession({ session, width, height, frame, frames }) {
    const { picture } = this;
    const isShown = this.route !== "session" && picture.image && frames === 1;
    if (isShown && picture.width === width && picture.height === height) {
      // The file itself is sharper than the picture of the session.
      return true;
    }
    try {
      const image = await loadBitmap(this.fetchApi, `/mam/live/picture?session=${session}`);
      if (this.live.session?.session === session) {
        this.hint = "";
        this.show({ image, width, height }, frame, frames);
      }
      return true;
    } catch {
      // Forgotten already; the next live job brings another one. The size is known all the same.
      this.show({ ...picture, width, height }, frame, frames);
      return false;
    }
  }

  /**
   * @param {{ image: CanvasImageSource | null, width: number, height: number }} picture
   * @param {number} frame
   * @param {number} frames
   */
  show(picture, frame, frames) {
    const { image, width, height } = this.picture;
    if (picture.image !== image) {
      this.closePicture();
    }
    this.picture = picture;
    this.frames = frames;
    this.editor.setPicture({ ...picture, frame, frames });
    if (picture.width !== width || picture.height !== height) {
      this.live.showAnew();
    }
  }

  closePicture() {
    const { image } = this.picture;
    if (image instanceof ImageBitmap) {
      image.close();
    }
  }

  // ---------------------------------------------------------------------------------------------------- the live job

  /** @returns {Promise<{ prompt: import("./job.mjs").ApiPrompt, workflow: unknown, id: string }>} */
  async readGraph() {
    const { output, workflow } = await this.app.graphToPrompt();
    const id = editorIn(output, executionIds(this.app.rootGraph, this.node));
    if (id === undefined) {
      throw new LiveError("failed", t("previewNotInPrompt"));
    }
    return { prompt: asItRan(output, this.fleeting, this.fleetingValue), workflow, id };
  }

  /** The graph as it is, but for what a run made by chance or took from a camera. */
  async graphPrompt() {
    const read = await this.readGraph();
    const { signature, prompt, states } = this.ran;
    if (signature === "" || signatureOf(read.prompt, read.id) === signature) {
      return read;
    }
    // The user has changed something, or a node makes another value at every reading.
    const again = await this.readGraph();
    for (const { id, name } of restlessInputs(read.prompt, again.prompt, read.id)) {
      this.restless.add(`${id} ${name}`);
      this.fleeting = [...this.fleeting, { id, name, ran: prompt[id]?.inputs[name], value: states.get(id) }];
    }
    return { ...again, prompt: asItRan(again.prompt, this.fleeting, this.fleetingValue) };
  }

  async signature() {
    const { prompt, id } = await this.graphPrompt();
    return signatureOf(prompt, id);
  }

  /**
   * @param {import("./job.mjs").ApiPrompt} prompt that runs or ran
   * @param {string} id of the editor's node
   * @returns {Pick<EditorHost, "ran" | "fleeting">} what the live jobs after it keep to
   */
  traitsOf(prompt, id) {
    const states = [...nodesBefore(prompt, id)].map(
      (before) => /** @type {const} */ ([before, nodeState(this.app.rootGraph, before)]),
    );
    const ran = { prompt, states: new Map(states), signature: signatureOf(prompt, id) };
    return { ran, fleeting: fleetingInputs(prompt, this.fleetingValue) };
  }

  /**
   * @param {{ frame: number, target: number, text: string }} wanted
   * @param {{ signal: AbortSignal, onProgress: (progress: import("./live.mjs").Progress) => void }} watching
   */
  async run(wanted, watching) {
    const { prompt, workflow, id } = await this.graphPrompt();
    const job = withLiveNode(prompt, id, wanted);
    const traits = this.traitsOf(prompt, id);
    const answer = await this.editors.jobs.run({ ...job, workflow }, watching);
    Object.assign(this, traits);
    return { answer, signature: signatureOf(prompt, id), matte: await matteOf(answer) };
  }
}

/** @param {Answer} answer @returns {Promise<Matte | null>} */
async function matteOf({ matte }) {
  if (!matte) {
    return null;
  }
  const bytes = Uint8Array.from(atob(matte.png), (character) => character.charCodeAt(0));
  return {
    image: await createImageBitmap(new Blob([bytes], { type: "image/png" })),
    region: [matte.x, matte.y, matte.width, matte.height],
    of: [matte.of_width, matte.of_height],
    stage: "matte",
    score: matte.score,
  };
}
