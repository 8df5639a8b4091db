// What both pages use.

/**
 * Makes an element.
 * @param {string} name its tag, with classes behind dots: "p.soft".
 * @param {Object<string, unknown>} properties set on it; what is null is left out.
 * @param {...(Node|string|null)} children text is text, never markup.
 */
export function element(name, properties = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const made = document.createElement(tag);
  made.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) {
    if (value === null) continue;
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** A block of code with a button that copies it. */
export function copyable(text) {
  // Lines break between words, and within one only where it is too long for a line.
  const words = text.split(/(\s+)/).map((part) => (/\S/.test(part) ? element("span.word", {}, part) : part));
  const code = element("pre", {}, ...words);
  const button = element("button.quiet", { type: "button", "aria-label": "Copy this command" }, "Copy");
  button.addEventListener("click", async () => {
    button.textContent = (await copied(code)) ? "Copied" : "Select it and copy";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  return element("div.code", {}, code, button);
}

async function copied(code) {
  getSelection().selectAllChildren(code);
  try {
    await navigator.clipboard.writeText(code.textContent);
    return true;
  } catch {
    // Pages that did not come over https, or from this machine, have no clipboard; some browsers keep the old way.
    return document.execCommand("copy");
  }
}
