// Draws /openapi.json as a reference.

import { copyable, element } from "./common.js";

const METHODS = ["get", "post"];
// Commands are shown for this server.
const EXAMPLE = "http://localhost:8501";
const HERE = new URL(".", location.href).href.replace(/\/$/, "");
const EVERYWHERE = "X-Request-Id"; // Said once, at the top.

/** The few marks that the document's descriptions use: paragraphs, lists, ``` blocks, `code`. */
function described(text) {
  return (text ?? "").split(/^(```[\s\S]*?^```)$/m).flatMap((block) => {
    if (block.startsWith("```")) return [copyable(block.replace(/^```\w*\n|\n?```$/g, "").replaceAll(EXAMPLE, HERE))];
    return block
      .split(/\n{2,}/)
      .filter((part) => part.trim() !== "")
      .map((part) =>
        part.trim().startsWith("- ")
          ? element("ul", {}, ...part.trim().split(/^- /m).slice(1).map((item) => element("li", {}, ...inline(item))))
          : element("p", {}, ...inline(part.trim())),
      );
  });
}

function inline(text) {
  return text.split(/(`[^`]+`)/).map((part) => (part.startsWith("`") ? element("code", {}, part.slice(1, -1)) : part));
}

/** A path that may be broken before a slash or colon. */
const breakable = (path) => path.split(/(?=[/:])/).flatMap((part) => [element("wbr"), part]);

function resolved(root, value) {
  if (value?.$ref === undefined) return value;
  return value.$ref.slice(2).split("/").reduce((found, key) => found[key], root);
}

/** A schema's type in a few words. */
function kind(root, given) {
  const schema = resolved(root, given);
  if (schema.oneOf) return schema.oneOf.map((each) => kind(root, each)).join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.join(", ");
  if (schema.type === "array" && schema.items) return `list of ${kind(root, schema.items)}`;
  const range = [
    schema.minimum === undefined ? "" : `from ${schema.minimum.toLocaleString("en")}`,
    schema.maximum === undefined ? "" : `to ${schema.maximum.toLocaleString("en")}`,
  ].join(" ").trim();
  return [schema.format ?? schema.type ?? "any", range].filter((each) => each !== "").join(" ");
}

/** Every property of a schema, nested ones with their path. */
function properties(root, given, path = "") {
  const schema = resolved(root, given);
  if (schema.oneOf) return schema.oneOf.flatMap((each) => properties(root, each, path));
  if (schema.type === "array" && schema.items) return properties(root, schema.items, `${path}[]`);
  return Object.entries(schema.properties ?? {}).flatMap(([name, value]) => {
    const full = path === "" ? name : `${path}.${name}`;
    return [
      row(full, kind(root, value), resolved(root, value).description),
      ...properties(root, value, full),
    ];
  });
}

function row(key, type, description) {
  return element(
    "tr",
    {},
    element("th.key", { scope: "row" }, element("code", {}, key)),
    element("td.soft", {}, type),
    element("td", {}, ...described(description)),
  );
}

function table(heads, rows) {
  return element(
    "div.scroll",
    {},
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
      element("tbody", {}, ...rows),
    ),
  );
}

function content(root, contents) {
  return Object.entries(contents ?? {}).flatMap(([type, { schema, example }]) => {
    const rows = schema === undefined ? [] : properties(root, schema);
    return [
      element("p.soft", {}, element("code", {}, type)),
      rows.length === 0 ? null : table(["Field", "Type", "Meaning"], rows),
      example === undefined
        ? null
        : element(
            "pre.json",
            { tabIndex: 0 },
            typeof example === "string" ? example : JSON.stringify(example, null, 2),
          ),
    ].filter((each) => each !== null);
  });
}

/** One route; `variants` differ in how they say which version, and are drawn together. */
function operation(root, variants, open) {
  const { method, found } = variants[0];
  const named = new Map(
    variants
      .flatMap((variant) => variant.found.parameters ?? [])
      .map((given) => resolved(root, given))
      .map((parameter) => [parameter.name, parameter]),
  );
  const parameters = [...named.values()].map(({ name, in: where, required, schema, description }) => {
    const type = [where, kind(root, schema), required ? "required" : ""].filter((each) => each !== "").join(", ");
    return row(name, type, description);
  });
  const answers = Object.entries(found.responses).map(([status, given]) => {
    const response = resolved(root, given);
    const headers = Object.keys(response.headers ?? {}).filter((name) => name !== EVERYWHERE);
    return row(status, headers.join(", "), response.description);
  });
  const [success] = Object.entries(found.responses)
    .filter(([status]) => status.startsWith("2"))
    .map(([, given]) => resolved(root, given));
  const body = resolved(root, found.requestBody);
  const examples = content(root, success?.content);
  return element(
    "details.operation",
    { open, id: found.operationId },
    element(
      "summary",
      {},
      element("span.method", {}, method.toUpperCase()),
      ...variants.map(({ path }) => element("span.path", {}, ...breakable(path))),
      element("span.soft", {}, found.summary),
    ),
    element(
      "div.inside",
      {},
      ...described(found.description),
      ...(found.security?.length === 0 ? [element("p.soft", {}, "No token is needed.")] : []),
      ...(parameters.length === 0 ? [] : [element("h3", {}, "Parameters"), table(["Name", "Type", "Meaning"], parameters)]),
      ...(body === undefined ? [] : [element("h3", {}, "Body"), ...described(body.description), ...content(root, body.content)]),
      ...(examples.length === 0 ? [] : [element("h3", {}, "Answer"), ...examples]),
      element("h3", {}, "Status codes"),
      table(["Status", "Headers", "Meaning"], answers),
    ),
  );
}

async function draw() {
  const response = await fetch("openapi.json");
  if (!response.ok) throw new Error(String(response.status));
  const root = await response.json();
  const every = Object.entries(root.paths).flatMap(([path, methods]) =>
    METHODS.filter((method) => method in methods).map((method) => ({ path, method, found: methods[method] })),
  );
  const grouped = new Map();
  for (const each of every) {
    const key = `${each.method} ${each.path.replace(/\/(versions|labels)\/\{\w+\}/, "")}`;
    grouped.set(key, [...(grouped.get(key) ?? []), each]);
  }
  const routes = [...grouped.values()];
  const sections = root.tags.map((tag) =>
    element(
      "section",
      {},
      element("h2", {}, tag.name),
      ...described(tag.description),
      ...routes
        .filter(([first]) => first.found.tags.includes(tag.name))
        .map((variants) => operation(root, variants, variants === routes[0])),
    ),
  );
  document.getElementById("reference").replaceChildren(
    ...described(root.info.description),
    ...sections,
  );
  // A link to one route, /docs#predict, opens it.
  const wanted = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (wanted instanceof HTMLDetailsElement) {
    wanted.open = true;
    wanted.scrollIntoView();
  }
}

draw().catch((error) => {
  console.error(error);
  document.getElementById("reference").replaceChildren(
    element("p.notice", { role: "alert" }, "The document /openapi.json could not be read. Reload this page to try again."),
  );
});
