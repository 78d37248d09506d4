"use strict";
// Keeps a run's page up to date from its stream; the page is whole without it.
(function () {
  const live = document.getElementById("live");
  if (!live || live.dataset.alive !== "true" || !window.EventSource) {
    return;
  }
  const source = new EventSource(live.dataset.stream);
  const set = (id, text) => {
    document.getElementById(id).textContent = text;
  };
  source.addEventListener("progress", (message) => {
    const told = JSON.parse(message.data);
    const done = told.progress.steps_done || 0;
    set("status", told.run.status);
    set("reason", told.reason);
    set("steps", told.progress.steps ? `${done} of ${told.progress.steps} steps` : `${done} steps`);
    document.getElementById("progress").value = told.progress.steps ? done / told.progress.steps : 0;
  });
  source.addEventListener("log", (message) => {
    const event = JSON.parse(message.data);
    const line = document.createElement("li");
    line.textContent = `${event.at.slice(0, 19)} ${event.kind}: ${event.message}`;
    document.getElementById("events").prepend(line);
  });
  const reload = () => {
    source.close();
    window.location.reload();
  };
  source.addEventListener("rewound", reload);
  source.addEventListener("end", reload);
})();
