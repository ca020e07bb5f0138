// ComfyUI serves these two beside the packs' files; they are not in this repository. What is untyped here is untyped
// there too, for extensions.

declare module "*/scripts/app.js" {
  export const app: any;
}

declare module "*/scripts/api.js" {
  export const api: any;
}

declare const LiteGraph: any;
