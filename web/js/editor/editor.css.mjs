/** The editor's style. It is put into the page once, however many editors there are. */

const STYLE_ID = "mam-editor-style";

const CSS = `
.mam-editor {
  --mam-surface: var(--comfy-menu-bg, #353535);
  --mam-field: var(--comfy-input-bg, #222);
  --mam-text: var(--input-text, #ddd);
  --mam-quiet: var(--descrip-text, #999);
  --mam-line: var(--border-color, #4e4e4e);
  --mam-accent: var(--p-primary-color, #4f9cf9);
  --mam-error: var(--error-text, #ff6b6b);
  position: relative;
  display: flex;
  flex-direction: column;
  width: 100%;
  height: 100%;
  min-width: 0;
  min-height: 0;
  box-sizing: border-box;
  overflow: hidden;
  border: 1px solid var(--mam-line);
  border-radius: 6px;
  background: var(--mam-surface);
  color: var(--mam-text);
  font: 12px/1.35 system-ui, sans-serif;
  text-align: start;
  outline: none;
  user-select: none;
  -webkit-user-select: none;
}
/* In ComfyUI's App Mode no node gives the editor its height. */
[data-testid="app-mode-widget-item"] .mam-editor { min-height: 480px; }
.mam-editor *, .mam-editor *::before, .mam-editor *::after { box-sizing: border-box; }
.mam-editor:focus-visible, .mam-editor.mam-focused {
  border-color: var(--mam-accent); box-shadow: 0 0 0 1px var(--mam-accent);
}
.mam-editor button, .mam-editor input, .mam-editor select { margin: 0; font: inherit; color: inherit; }
.mam-editor button {
  display: inline-flex; align-items: center; justify-content: center; gap: 4px;
  padding: 0; border: 0; border-radius: 4px; background: none; cursor: pointer; white-space: nowrap;
}
.mam-editor :is(button, input, select):focus-visible,
.mam-editor .mam-menu:focus-within { outline: 2px solid var(--mam-accent); outline-offset: -1px; }
.mam-editor button:hover:not(:disabled), .mam-editor .mam-menu:hover {
  background: color-mix(in srgb, var(--mam-text) 14%, transparent);
}
.mam-editor button:disabled { opacity: 0.35; cursor: default; }
.mam-editor svg { display: block; width: 16px; height: 16px; flex: none; pointer-events: none; }
.mam-editor [hidden] { display: none !important; }

.mam-toolbar {
  display: flex; flex: none; align-items: center; gap: 1px; padding: 2px 3px;
  border-bottom: 1px solid var(--mam-line);
}
.mam-toolbar > button, .mam-menu { flex: 0 1 28px; min-width: 22px; height: 26px; }
.mam-toolbar .mam-gap { flex: 0 1 9px; min-width: 3px; align-self: stretch; }
.mam-toolbar .mam-gap::after {
  content: ""; display: block; width: 1px; height: 60%; margin: 20% auto 0; background: var(--mam-line);
}
.mam-toolbar .mam-push { flex: 1 1 0; }
.mam-editor button[aria-pressed="true"].mam-tool,
.mam-editor button[aria-pressed="true"].mam-live,
.mam-editor button[aria-checked="true"] { background: var(--mam-accent); color: #10131a; }
.mam-menu {
  position: relative; display: inline-flex; align-items: center; justify-content: center; border-radius: 4px;
}
.mam-menu select { position: absolute; inset: 0; width: 100%; opacity: 0; cursor: pointer; }
.mam-menu select option { color: #111; background: #fff; }

.mam-body { display: flex; flex: 1 1 0; flex-direction: column; min-height: 0; }
.mam-stage {
  position: relative; flex: 1 1 0; min-width: 0; min-height: 60px; overflow: hidden; touch-action: none;
  background: color-mix(in srgb, var(--mam-field) 80%, #000);
}
.mam-stage canvas { position: absolute; inset: 0; width: 100%; height: 100%; display: block; touch-action: none; }
.mam-options {
  display: flex; flex: none; align-items: center; gap: 6px; height: 28px; padding: 0 3px; overflow: hidden;
  border-bottom: 1px solid var(--mam-line);
}
.mam-options .mam-hint {
  flex: 1 1 0; min-width: 0; padding-inline-start: 4px; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; color: var(--mam-quiet);
}
.mam-choice { display: inline-flex; flex: none; gap: 1px; max-width: calc(100% - 96px); }
.mam-choice button {
  display: block; min-width: 0; height: 22px; padding: 0 6px; overflow: hidden; text-overflow: ellipsis;
}
.mam-options label {
  display: inline-flex; flex: 0 1 170px; align-items: center; gap: 4px; min-width: 84px; padding-inline-end: 4px;
}
.mam-options input[type="range"] { flex: 1 1 0; min-width: 0; }
.mam-options output { min-width: 2.2em; text-align: end; font-variant-numeric: tabular-nums; }
.mam-editor input[type="range"] { accent-color: var(--mam-accent); height: 18px; cursor: pointer; }
.mam-note {
  position: absolute; inset-inline: 0; display: flex; flex-direction: column;
  align-items: center; justify-content: center; gap: 4px; padding: 12px 20px; text-align: center; pointer-events: none;
}
.mam-empty { inset-block: 0; color: var(--mam-quiet); }
.mam-empty strong { color: var(--mam-text); font-size: 14px; font-weight: 600; }
.mam-start { inset-block-end: 8px; padding-block: 0; }
.mam-start span { padding: 3px 9px; border-radius: 10px; background: rgb(0 0 0 / 0.66); color: #fff; }
.mam-other { inset-block: 0; background: rgb(0 0 0 / 0.6); color: #fff; pointer-events: auto; cursor: default; }
.mam-other div { display: flex; gap: 8px; margin-top: 6px; }
.mam-other button { padding: 4px 10px; background: #fff; color: #16181d; }
.mam-other button:hover:not(:disabled) { background: #d8dce6; }

.mam-targets {
  display: flex; flex: none; flex-direction: column; min-height: 0; max-height: 40%;
  border-top: 1px solid var(--mam-line);
}
.mam-targets > button {
  justify-content: flex-start; height: 24px; padding: 0 6px; border-radius: 0; text-align: start;
}
.mam-targets > button svg { width: 12px; height: 12px; transition: transform 0.12s; }
.mam-targets > button[aria-expanded="true"] svg { transform: rotate(90deg); }
.mam-dots { display: inline-flex; flex: 0 1 auto; gap: 3px; min-width: 0; margin-inline-start: auto; overflow: hidden; }
.mam-dots i { width: 8px; height: 8px; border-radius: 50%; flex: none; }
.mam-targets ul { margin: 0; padding: 0 3px 3px; overflow-y: auto; list-style: none; max-height: 112px; }
.mam-targets li {
  display: flex; align-items: center; gap: 2px; height: 26px; padding-inline: 3px; border-radius: 4px;
  border-inline-start: 3px solid transparent;
}
.mam-targets li[aria-current="true"] {
  background: color-mix(in srgb, var(--mam-accent) 22%, transparent);
  border-inline-start-color: var(--mam-accent);
}
.mam-targets li.mam-hidden input[type="text"] { opacity: 0.5; }
.mam-targets li button { flex: none; width: 24px; height: 22px; }
.mam-targets li input[type="text"] {
  flex: 1 1 0; min-width: 0; height: 22px; padding: 0 4px; border: 1px solid transparent; border-radius: 3px;
  background: none; text-overflow: ellipsis; user-select: text; -webkit-user-select: text;
}
.mam-targets li input[type="text"]:hover { border-color: var(--mam-line); }
.mam-targets li input[type="text"]:focus { border-color: var(--mam-accent); background: var(--mam-field); }
.mam-targets li input[type="text"]::placeholder { color: inherit; opacity: 0.75; }
.mam-targets input[type="color"] {
  flex: none; width: 20px; height: 18px; padding: 0; border: 1px solid var(--mam-line); border-radius: 4px;
  background: none; cursor: pointer;
}
.mam-targets input[type="color"]::-webkit-color-swatch-wrapper { padding: 1px; }
.mam-targets input[type="color"]::-webkit-color-swatch { border: 0; border-radius: 2px; }
.mam-wide .mam-body { flex-direction: row; }
.mam-wide .mam-targets {
  flex: 0 0 190px; min-width: 0; max-height: none; border-top: 0; border-inline-start: 1px solid var(--mam-line);
}
.mam-wide .mam-targets ul { max-height: none; }

.mam-frames {
  display: flex; flex: none; flex-wrap: wrap; align-items: center; gap: 2px 6px; padding: 2px 6px;
  border-top: 1px solid var(--mam-line);
}
.mam-frames > button { width: 22px; height: 22px; }
.mam-frames input[type="range"] { flex: 1 1 60px; min-width: 40px; }
.mam-frames input[type="number"] {
  width: 4.6em; height: 20px; padding: 0 3px; border: 1px solid var(--mam-line); border-radius: 3px;
  background: var(--mam-field); user-select: text; -webkit-user-select: text;
}
.mam-frames .mam-choice { max-width: 100%; border: 1px solid var(--mam-line); border-radius: 5px; }
.mam-frames .mam-choice button { height: 20px; }

.mam-status {
  display: flex; flex: none; align-items: center; gap: 6px; min-height: 24px; padding: 2px 6px;
  border-top: 1px solid var(--mam-line);
}
.mam-status .mam-dot { flex: none; width: 8px; height: 8px; border-radius: 50%; background: var(--mam-quiet); }
.mam-status[data-state="waiting"] .mam-dot { background: #e6b450; }
.mam-status[data-state="working"] .mam-dot {
  background: var(--mam-accent); animation: mam-pulse 1s ease-in-out infinite;
}
.mam-status[data-state="ready"] .mam-dot { background: #3fb27f; }
.mam-status[data-state="error"] .mam-dot { background: var(--mam-error); border-radius: 1px; }
.mam-status .mam-said { flex: 1 1 0; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.mam-status.mam-long { align-items: flex-start; }
.mam-status.mam-long .mam-dot { margin-top: 6px; }
.mam-status.mam-long .mam-said {
  display: -webkit-box; white-space: normal; overflow-wrap: anywhere; -webkit-box-orient: vertical;
  -webkit-line-clamp: 4;
}
.mam-status.mam-long :is(.mam-readout, .mam-fit) { display: none; }
.mam-status .mam-engine { color: var(--mam-quiet); }
.mam-status .mam-readout { flex: none; color: var(--mam-quiet); font-variant-numeric: tabular-nums; }
.mam-status button { flex: none; height: 20px; padding: 0 5px; font-variant-numeric: tabular-nums; }
.mam-status button.mam-retry { background: var(--mam-accent); color: #10131a; }
.mam-status button.mam-retry:hover { background: color-mix(in srgb, var(--mam-accent) 80%, #fff); }
@keyframes mam-pulse { 50% { opacity: 0.35; } }
@media (prefers-reduced-motion: reduce) {
  .mam-editor *, .mam-editor *::before { animation: none !important; transition: none !important; }
}
`;

/** @param {Document} page */
export function putStyle(page) {
  if (page.getElementById(STYLE_ID) !== null) {
    return;
  }
  const style = page.createElement("style");
  style.id = STYLE_ID;
  style.textContent = CSS;
  page.head.append(style);
}
