import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";

import { ENGLISH, t, useLocale } from "../../web/js/editor/texts.mjs";

const ROOT = new URL("../../", import.meta.url);
const read = (path) => readFileSync(new URL(path, ROOT), "utf8");

test("what is not translated is said in English", () => {
  useLocale({ de: { mattingAnything: { stretch: "Strecken" } } }, "de");
  assert.equal(t("stretch"), "Strecken");
  assert.equal(t("matteThisImage"), "Matte this image");
  useLocale(undefined, "en");
  assert.equal(t("stretch"), ENGLISH.stretch);
});

test("a variety of a language takes what it lacks from the language", () => {
  const zh = { mattingAnything: { stretch: "拉伸", clearAll: "全部清除" } };
  useLocale({ zh, "zh-TW": { mattingAnything: { stretch: "延展" } } }, "zh-TW");
  assert.equal(t("stretch"), "延展");
  assert.equal(t("clearAll"), "全部清除");
  useLocale({}, "en");
});

test("gaps are filled, and one without a value stays visible", () => {
  assert.equal(t("previewNodeProgress", { node: "Load SAM", percent: 7 }), "Load SAM: 7 %");
  assert.equal(t("previewNodeProgress", { node: "Load SAM" }), "Load SAM: {percent} %");
  assert.equal(t("thereIsNoSuchText"), "thereIsNoSuchText");
});

test("the English file for translators says what the code says", () => {
  assert.deepEqual(JSON.parse(read("locales/en/main.json")).mattingAnything, ENGLISH);
});

test("every text that the code asks for is there", () => {
  const folder = "web/js/editor/";
  const sources = [...readdirSync(new URL(folder, ROOT)).map((name) => folder + name), "web/js/matting.js"].map(read);
  const asked = sources.flatMap((source) => [...source.matchAll(/\bt\(\s*"(\w+)"/g)].map((found) => found[1]));
  assert.ok(asked.length > 50);
  assert.deepEqual([...new Set(asked)].filter((key) => !(key in ENGLISH)), []);
});

test("every refusal of the server that has a code is said by the page", () => {
  const codes = [...read("nodes/routes.py").matchAll(/\bcode="(\w+)"/g)].map(([, code]) => code);
  const [, said] = /const REFUSALS = Object\.freeze\(\{([^}]*)\}/.exec(read("web/js/editor/live.mjs"));
  const texts = Object.fromEntries([...said.matchAll(/(\w+): "(\w+)"/g)].map(([, code, key]) => [code, key]));
  assert.deepEqual(Object.keys(texts).sort(), codes.sort());
  assert.ok(codes.length > 2);
  assert.deepEqual(Object.values(texts).filter((key) => !(key in ENGLISH)), []);
});

test("settings and commands are named in English as the code names them", () => {
  const code = read("web/js/matting.js");
  const settings = JSON.parse(read("locales/en/settings.json"));
  const commands = JSON.parse(read("locales/en/commands.json"));
  for (const { name } of Object.values(settings)) {
    assert.ok(code.includes(`"${name}"`), name);
  }
  for (const { label } of Object.values(commands)) {
    assert.ok(code.includes(`label: "${label}"`), label);
  }
  const ids = [...code.matchAll(/id: "(MattingAnything\.\w+)"/g)].map((found) => found[1].replace(".", "_"));
  assert.deepEqual(Object.keys(commands), ids);
  const named = [...code.matchAll(/\bsetting\(\s*"(\w+)",/g)].map((found) => `MattingAnything_${found[1]}`);
  assert.deepEqual(Object.keys(settings), named);
});
