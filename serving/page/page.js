// The page at /: pictures go to the server one request each, and what comes back is shown.

import { copyable, element } from "./common.js";

const AT_ONCE = 4; // Requests in flight: enough to keep the server busy, too few to push others out of its queue.
const ATTEMPTS = 6; // Of a request that is answered 429 or 503.
const LONGEST_WAIT = 30; // Seconds, whatever Retry-After says.
const GIVE_UP = 120_000; // Milliseconds after which a request that stays unanswered is given up.
const LOOK_AGAIN = 2000; // Milliseconds between looks for a model while there is none.
const NAMED_CLASSES = 12; // Classes of a model that are named above the pictures.
const TOKEN = "graft-token"; // In sessionStorage: gone with the tab.

const HEADLINES = {
  400: "The server cannot use this picture.",
  404: "The server does not have that model or version any more.",
  408: "Sending took too long.",
  413: "This is too large for the server.",
  415: "This is not a picture that the server takes.",
  429: "The server is busy.",
  500: "Something went wrong in the server.",
  503: "The server cannot answer at the moment.",
  504: "The answer took too long.",
};
// Sent again, the same picture meets the same answer.
const FINAL = new Set([400, 413, 415]);
const BUSY = new Set([429, 503]);

/** A picture that is shown: `state` is waiting, sending, done, failed or removed. */
class Picture {
  constructor(file) {
    this.file = file;
    this.name = file.name || "picture";
    this.state = "waiting";
    this.controller = null;
    this.url = URL.createObjectURL(file);
    this.found = element("div.found");
    this.remove = element("button.quiet", { type: "button", "aria-label": `Remove ${this.name}` }, "Remove");
    this.item = element(
      "li.picture",
      {},
      this.thumbnail(),
      element("div.title", {}, element("h3", {}, this.name), this.remove),
      this.found,
    );
  }

  thumbnail() {
    const image = element("img.thumbnail", { src: this.url, alt: "", decoding: "async" });
    image.addEventListener("error", () => {
      // A picture of a kind this browser cannot show, or none at all. The server has its own say.
      image.replaceWith(element("span.thumbnail", {}, "no preview"));
    });
    return image;
  }

  show(...children) {
    this.found.replaceChildren(...children);
  }

  /** Gives up the request if there is one. */
  abort() {
    this.controller?.abort();
    this.controller = null;
  }
}

class Refused extends Error {
  constructor(status, message, id) {
    super(message);
    this.status = status;
    this.id = id;
  }
}

const $ = (id) => document.getElementById(id);

let pictures = []; // In the order in which they are shown and sent.
let server = null; // What /models says.
let timer = 0;
let locked = false; // The server wants a token that is not there yet.
let token = stored();

// The server: its models, versions and limits

async function look() {
  clearTimeout(timer);
  let answer;
  try {
    const response = await fetch("models", { headers: authorization(), cache: "no-store" });
    if (response.status === 401) {
      lock();
      return;
    }
    answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
  } catch {
    notice("The server does not answer. Looking again…");
    timer = setTimeout(look, LOOK_AGAIN);
    return;
  }
  server = answer;
  unlock();
  showChoices();
  showLimits();
  if (choice().model === null) {
    notice(`${unloaded()} Looking again… Pictures added now are sent as soon as there is one.`);
    timer = setTimeout(look, LOOK_AGAIN);
  } else {
    notice("");
    sendNext();
  }
}

const available = (model) => model.versions.filter((version) => version.state === "AVAILABLE");

function unloaded() {
  const reasons = server.models.flatMap((model) =>
    model.versions.map(
      ({ version, state, error }) =>
        error
          ? ` Version ${version} of ${model.name}: ${error}`
          : ` Version ${version} of ${model.name} is ${state.toLowerCase()}.`,
    ),
  );
  return `No model is loaded yet.${reasons.join("")}`;
}

function showChoices() {
  const chosen = $("model").value;
  const models = server.models.map((model) => {
    const none = available(model).length === 0;
    return element("option", { value: model.name, disabled: none }, none ? `${model.name} (not loaded)` : model.name);
  });
  $("model").replaceChildren(...models);
  const kept = models.find((option) => option.value === chosen && !option.disabled);
  const first = kept ?? models.find((option) => !option.disabled);
  if (first) first.selected = true;
  $("choices").hidden = first === undefined;
  $("model-field").hidden = models.length < 2;
  showVersions();
}

/** What depends on the model: its versions, labels and classes. */
function showVersions() {
  const { model } = choice();
  $("from-code").hidden = model === null;
  if (model === null) {
    $("classes").textContent = "";
    return;
  }
  const { classes, versions } = server.models.find(({ name }) => name === model);
  const labels = versions.flatMap(({ version, labels }) => labels.map((label) => ({ label, version })));
  const newest = versions.find(({ state }) => state === "AVAILABLE").version;
  const options = [
    element("option", { value: "" }, `latest (version ${newest})`),
    ...labels.map(({ label, version }) => element("option", { value: `labels/${label}` }, `${label} (version ${version})`)),
    ...versions.map(({ version, state }) => {
      const note = { AVAILABLE: "", END: " (could not be loaded)" }[state] ?? ` (${state.toLowerCase()})`;
      return element("option", { value: `versions/${version}`, disabled: state !== "AVAILABLE" }, `version ${version}${note}`);
    }),
  ];
  const chosen = $("version").value;
  $("version").replaceChildren(...options);
  const kept = options.find((option) => option.value === chosen && !option.disabled) ?? options[0];
  kept.selected = true;
  $("version-field").hidden = versions.length < 2 && labels.length === 0;
  $("top-k").max = String(classes.length);
  if (Number($("top-k").value) > classes.length) $("top-k").value = String(classes.length);
  const more = classes.length - NAMED_CLASSES;
  $("classes").textContent =
    `${model} knows ${count(classes.length, "class", "classes")}: ` +
    (more > 1 ? `${classes.slice(0, NAMED_CLASSES).join(", ")} and ${more} more.` : `${classes.join(", ")}.`);
  showCommand();
}

function showLimits() {
  const { max_body_bytes: bytes, max_megapixels: megapixels } = server.limits;
  $("limits").textContent = `JPEG, PNG or WebP, up to ${size(bytes)}, ${megapixels} megapixels`;
  $("foot").textContent = `Computed by ${server.engine}. Pictures are not kept.`;
}

/** What is asked for: model (null while there is none), part of the path, number of classes. */
function choice() {
  const selected = $("model").selectedOptions[0];
  const model = selected === undefined || selected.disabled ? null : selected.value;
  const [kind, ...rest] = $("version").value.split("/");
  const part = kind === "" ? "" : `/${kind}/${escaped(rest.join("/"))}`;
  const most = Number($("top-k").max);
  const wanted = Math.round(Number($("top-k").value)) || 1;
  return { model, part, top: Math.min(Math.max(wanted, 1), most) };
}

function address() {
  const { model, part, top } = choice();
  return `v1/models/${escaped(model)}${part}:classify-image?top_k=${top}`;
}

function showCommand() {
  const header = token === "" ? "" : ' -H "Authorization: Bearer $GRAFT_TOKEN"';
  const url = new URL(address(), document.baseURI).href;
  $("curl").replaceChildren(copyable(`curl --data-binary "@picture.jpg"${header} "${url}"`));
}

/** Every picture again: what is shown is always of the model, version and number of classes that are chosen. */
function sendAllAgain() {
  showCommand();
  for (const picture of pictures) {
    picture.abort();
    wait(picture);
  }
  sendNext();
}

// Pictures: added, sent, removed

/** Adds files above those that are there, in their own order. */
function add(files, otherwise) {
  $("refused").textContent = files.length === 0 ? otherwise : "";
  const added = files.map((file) => new Picture(file));
  for (const picture of added) {
    picture.remove.addEventListener("click", () => removeOne(picture));
    wait(picture);
  }
  pictures = [...added, ...pictures];
  $("pictures").prepend(...added.map((picture) => picture.item));
  sendNext();
}

function wait(picture) {
  picture.state = "waiting";
  picture.show(element("p.pulse", {}, "Waiting…"));
}

function sendNext() {
  showSummary();
  if (locked || server === null || choice().model === null) return;
  for (const picture of pictures) {
    if (pictures.filter(({ state }) => state === "sending").length >= AT_ONCE) break;
    if (picture.state === "waiting") classify(picture);
  }
  showSummary();
}

async function classify(picture) {
  const problem = unsendable(picture.file);
  if (problem !== null) {
    fail(picture, problem, false);
    return;
  }
  const controller = new AbortController();
  picture.controller = controller;
  picture.state = "sending";
  try {
    const answer = await ask(picture, controller.signal);
    if (picture.controller !== controller) return; // Removed, or sent again to another model, meanwhile.
    picture.state = "done";
    showAnswer(picture, answer);
  } catch (error) {
    if (picture.controller !== controller) return;
    if (error.status === 401) {
      wait(picture);
      lock();
    } else {
      const words = await explained(error, picture.file);
      if (picture.controller !== controller) return;
      fail(picture, words, !FINAL.has(error.status));
      if (error.status === 404) look();
    }
  }
  picture.controller = null;
  sendNext();
}

function unsendable(file) {
  const most = server.limits.max_body_bytes;
  if (file.size === 0) return { headline: "This file is empty." };
  if (file.size > most) {
    const todo = `It has ${size(file.size)}, and ${size(most)} is the most. Make the picture smaller.`;
    return { headline: HEADLINES[413], todo };
  }
  return null;
}

/** Sends a picture until there is an answer: the server's words, and how long it took in milliseconds. */
async function ask(picture, signal) {
  for (let attempt = 1; ; attempt++) {
    picture.show(element("p.pulse", {}, "Sending…"));
    const started = performance.now();
    const response = await fetch(address(), {
      method: "POST",
      body: picture.file,
      headers: { "Content-Type": "application/octet-stream", ...authorization() },
      signal: AbortSignal.any([signal, AbortSignal.timeout(GIVE_UP)]),
    });
    const answer = await response.json().catch((error) => {
      if (error.name === "SyntaxError") throw new Refused(response.status, "What it sent is not JSON.");
      throw error;
    });
    if (response.ok) {
      return { ...answer, milliseconds: performance.now() - started, timing: response.headers.get("Server-Timing") };
    }
    if (!BUSY.has(response.status) || attempt === ATTEMPTS) {
      throw new Refused(response.status, answer.error, response.headers.get("X-Request-Id"));
    }
    const seconds = Math.min(Number(response.headers.get("Retry-After")) || 1, LONGEST_WAIT);
    picture.show(
      element("p.pulse", {}, `${HEADLINES[response.status]} Trying again in ${seconds} s (${attempt} of ${ATTEMPTS - 1})…`),
    );
    await pause(seconds + Math.random() / 2, signal); // Not all at the same moment.
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const waiting = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(waiting);
      reject(signal.reason);
    });
  });
}

/** An error in words: what happened, what to do, and what the server said. */
async function explained(error, file) {
  if (error instanceof Refused) {
    const said = error.id && error.status === 500 ? `${error.message} (request ${error.id})` : error.message;
    const headline = HEADLINES[error.status] ?? `The server answered with ${error.status}.`;
    return { headline, said, todo: error.status === 415 ? await advice(file) : "" };
  }
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    return { headline: "This file cannot be read.", todo: "It was moved or changed, or it is a folder. Choose it again." };
  }
  if (error.name === "TimeoutError") return { headline: "The server did not answer in time." };
  return { headline: "The server cannot be reached.", todo: "Is it running, and are you online?" };
}

/** What to do with a file of another kind, told by its first bytes. */
async function advice(file) {
  const bytes = new Uint8Array(await file.slice(0, 12).arrayBuffer());
  const start = String.fromCharCode(...bytes);
  if (start.startsWith("GIF8")) return "It is a GIF, which may be animated. Save it as PNG and add that.";
  if (/^.{4}ftyp(hei|hev|mif|msf)/s.test(start)) {
    return (
      "It is a HEIC photo. Share or export it as JPEG and add that. An iPhone takes JPEG photos with Settings, " +
      "Camera, Formats, Most Compatible."
    );
  }
  if (/^.{4}ftypavi/s.test(start)) return "It is an AVIF picture. Save it as JPEG or PNG and add that.";
  if (start.startsWith("%PDF")) return "It is a PDF document. Save the page as JPEG or PNG and add that.";
  if (/^(BM|II\*\0|MM\0\*)/.test(start)) return "It is a BMP or TIFF picture. Save it as JPEG or PNG and add that.";
  if (/^(RIFF.{4}WEBP|\xff\xd8\xff|\x89PNG)/s.test(start)) return "Animated pictures are not taken. Save one frame of it.";
  return "Its content counts, not its name. Save it as JPEG, PNG or WebP and add that.";
}

function showAnswer(picture, { model, version, predictions, milliseconds, timing }) {
  const { classes } = predictions[0];
  const rows = classes.map(({ label, probability }) => {
    const filled = element("i");
    filled.style.width = `${probability * 100}%`;
    return element(
      "li",
      {},
      element("span.label", {}, label),
      element("span", {}, percent(probability)),
      element("div.bar", { "aria-hidden": "true" }, filled), // The number beside it says the same.
    );
  });
  const inside = timings(timing);
  const facts = [`${model}, version ${version}`, `${milliseconds.toFixed(0)} ms in all`];
  if (inside !== "") facts.push(`in the server: ${inside}`);
  picture.show(element("ol.scores", {}, ...rows), element("p.facts", {}, facts.join(" · ")));
  say(`${picture.name}: ${classes[0].label}, ${percent(classes[0].probability)}`);
  const known = server.models.find(({ name }) => name === model)?.versions ?? [];
  if (!known.some((each) => each.version === version && each.state === "AVAILABLE")) look();
}

/** "decode;dur=2.1, queue;dur=0.3" as "decode 2.1, queue 0.3 ms". */
function timings(header) {
  const found = [...(header ?? "").matchAll(/([\w-]+);dur=([\d.]+)/g)];
  return found.length === 0 ? "" : `${found.map(([, name, ms]) => `${name} ${Number(ms).toFixed(1)}`).join(", ")} ms`;
}

function fail(picture, { headline, todo, said }, again) {
  picture.state = "failed";
  picture.show(
    element("p.problem", {}, headline),
    todo ? element("p", {}, todo) : "",
    said ? element("p.soft", {}, `The server said: ${said}`) : "",
  );
  if (again) {
    const button = element("button", { type: "button", "aria-label": `Send ${picture.name} again` }, "Try again");
    button.addEventListener("click", () => {
      wait(picture);
      picture.remove.focus(); // The button that had the focus is gone.
      sendNext();
    });
    picture.found.append(button);
  }
  say(`${picture.name}: ${[headline, todo, said].filter((each) => each).join(" ")}`);
}

function removeOne(picture) {
  const next = pictures[pictures.indexOf(picture) + 1] ?? pictures[pictures.indexOf(picture) - 1];
  forget(picture);
  pictures = pictures.filter((each) => each !== picture);
  (next?.remove ?? $("choose")).focus();
  say(`${picture.name} removed`);
  sendNext();
}

function removeAll() {
  pictures.forEach(forget);
  pictures = [];
  $("choose").focus();
  say("All pictures removed");
  sendNext();
}

function forget(picture) {
  picture.abort();
  picture.state = "removed";
  picture.item.remove();
  URL.revokeObjectURL(picture.url);
}

function showSummary() {
  const of = (...states) => pictures.filter(({ state }) => states.includes(state)).length;
  const parts = [count(pictures.length, "picture", "pictures")];
  if (of("waiting", "sending") > 0) parts.push(`${of("waiting", "sending")} in progress`);
  if (of("failed") > 0) parts.push(`${of("failed")} failed`);
  $("summary").textContent = parts.join(", ");
  $("results").hidden = pictures.length === 0;
}

// The token

function stored() {
  try {
    return sessionStorage.getItem(TOKEN) ?? "";
  } catch {
    return ""; // Storage is switched off: the token lives as long as the page.
  }
}

const authorization = () => (token === "" ? {} : { Authorization: `Bearer ${token}` });

function lock() {
  if (locked) return;
  locked = true;
  notice("");
  $("token-problem").textContent = token === "" ? "" : "The server does not accept this token.";
  $("token-form").hidden = false;
  $("token").focus();
}

function unlock() {
  locked = false;
  $("token-form").hidden = true;
  $("token").value = "";
  $("token-problem").textContent = "";
}

function giveToken(event) {
  event.preventDefault();
  const given = $("token").value.trim();
  if (!/^[!-~]+$/.test(given)) {
    $("token-problem").textContent = "A token has letters, digits and signs, and no spaces in between.";
    return;
  }
  token = given;
  try {
    sessionStorage.setItem(TOKEN, token);
  } catch {
    // As above.
  }
  locked = false;
  look();
}

// Words

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = text === "";
}

/** For those who hear the page: the newest lines are read out. */
function say(text) {
  $("log").append(element("p", {}, text));
  while ($("log").children.length > 20) $("log").firstChild.remove();
}

const count = (number, one, many) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

function percent(probability) {
  if (probability > 0.999 && probability < 1) return "> 99.9%";
  if (probability < 0.001 && probability > 0) return "< 0.1%";
  return `${(probability * 100).toFixed(1)}%`;
}

function size(bytes) {
  const [divisor, unit] = bytes < 1e6 ? [1e3, "kB"] : [1e6, "MB"];
  return `${(bytes / divisor).toLocaleString("en", { maximumFractionDigits: 1 })} ${unit}`;
}

/** For a path, and safe between a shell's double quotes. */
function escaped(text) {
  return encodeURIComponent(text).replace(/[!'()*]/g, (sign) => `%${sign.charCodeAt(0).toString(16).toUpperCase()}`);
}

// What people do

function choosing(button, input) {
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = ""; // The same file can be chosen again.
    if (files.length > 0) add(files, "");
  });
}

choosing($("choose"), $("files"));
choosing($("photograph"), $("camera"));
$("drop").addEventListener("click", (event) => {
  if (event.target.closest("button, input") === null) $("files").click();
});
$("clear").addEventListener("click", removeAll);
$("token-form").addEventListener("submit", giveToken);
$("choices").addEventListener("submit", (event) => event.preventDefault());
$("model").addEventListener("change", () => {
  $("version").value = "";
  showVersions();
  sendAllAgain();
});
$("version").addEventListener("change", sendAllAgain);
$("top-k").addEventListener("change", () => {
  $("top-k").value = String(choice().top);
  sendAllAgain();
});

const NO_FILE = "There is no picture in that. Save the picture as a file first, then add the file.";

addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length === 0 && event.target.closest?.("input")) return; // Text for a field.
  event.preventDefault();
  add(files, NO_FILE);
});

// Anywhere on the page, or a picture that misses the field would replace the page.
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) $("drop").classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  add([...event.dataTransfer.files], NO_FILE);
});
// Versions may have changed while nobody looked.
addEventListener("visibilitychange", () => document.visibilityState === "visible" && !locked && look());

$("app").hidden = false;
look();
