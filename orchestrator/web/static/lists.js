// Lists without a page load: a filter acts as it is changed.  Without this file its button does.
import { morph } from "./morph.js";

const PAUSE = 250; // milliseconds after the last key

export function filters() {
  for (const form of document.querySelectorAll("form[data-filter]")) {
    let timer;
    const soon = () => {
      clearTimeout(timer);
      timer = setTimeout(() => apply(form), PAUSE);
    };
    form.addEventListener("input", soon);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      clearTimeout(timer);
      apply(form);
    });
  }
}

let newest = 0;

async function apply(form) {
  const asked = ++newest;
  const given = [...new FormData(form)].filter(([, value]) => value !== "");
  const address = new URL(form.action);
  address.search = new URLSearchParams(given).toString();
  const answer = await fetch(address, { headers: { Accept: "text/html" } }).catch(() => null);
  if (asked !== newest) return; // a newer question is under way
  if (!answer?.ok) {
    location.assign(address); // the server's own page says what is wrong
    return;
  }
  const next = new DOMParser().parseFromString(await answer.text(), "text/html");
  const list = document.getElementById(form.dataset.filter);
  morph(list, next.getElementById(list.id));
  history.replaceState(null, "", address);
  picks();
}

// How many runs are picked for a comparison, and whether that is enough.
export function picks() {
  const button = document.getElementById("compare");
  if (!button) return;
  const count = document.querySelectorAll("input[name=run]:checked").length;
  button.textContent = count ? `Compare ${count}` : "Compare";
  button.disabled = count < 2;
  document.getElementById("picked").textContent =
    count < 2 ? "Pick two runs or more." : `${count} runs picked.`;
}

export function picking() {
  document.addEventListener("change", (event) => {
    if (event.target.name === "run") picks();
  });
  addEventListener("pageshow", picks);
  picks();
}
