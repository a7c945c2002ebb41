// Buttons that copy the text beside them: <span data-copyable><code>text</code><button data-copy>…</button></span>.
// Browsers give no clipboard to pages without HTTPS or permission: the text is then selected, and copied the old way
// where that works.
"use strict";

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const source = button.closest("[data-copyable]").querySelector("code");
  const said = (await copied(source)) ? "Copied" : "Press Ctrl+C";
  const label = button.querySelector("[data-said]");
  label.textContent = said;
  button.addEventListener("blur", () => { label.textContent = "Copy"; }, { once: true });
});

async function copied(source) {
  try {
    await navigator.clipboard.writeText(source.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(source);
    return document.execCommand("copy");
  }
}
