// A page that follows a run: the server says that something changed, the page asks for itself
// again and takes over the parts marked data-part.  There is one way a page is drawn: the server's.
import { morph } from "./morph.js";

const SOONEST = 1000; // milliseconds between two drawings

const LOST = "Connection lost; trying again. What is shown may be old.";

export function follow(body) {
  const address = body.dataset.live;
  if (!address) return;
  const state = document.getElementById("live-state");
  const source = new EventSource(address);
  const ask = paced(redraw);
  source.onopen = () => say(state, "live", "Live");
  source.onerror = () => say(state, "lost", LOST);
  for (const kind of ["progress", "round", "log", "rewound", "end"]) source.addEventListener(kind, ask);
  source.addEventListener("end", () => {
    source.close();
    say(state, "ended", "This run has ended");
  });
  addEventListener("pagehide", () => source.close());
}

function say(element, state, words) {
  if (!element) return;
  element.dataset.state = state;
  element.textContent = words;
}

function paced(act) {
  let waiting = false;
  let last = 0;
  return () => {
    if (waiting) return;
    waiting = true;
    setTimeout(async () => {
      waiting = false;
      last = performance.now();
      await act();
    }, Math.max(0, last + SOONEST - performance.now()));
  };
}

async function redraw() {
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } }).catch(() => null);
  if (!answer?.ok) return; // the stream tells when the server is back
  const next = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-part]")) {
    const fresh = next.getElementById(part.id);
    if (fresh) morph(part, fresh);
  }
  document.title = next.title;
}
