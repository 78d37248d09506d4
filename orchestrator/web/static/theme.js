// Runs before the page is drawn, so that a remembered theme does not flash.
// "light" or "dark" was chosen here; nothing follows the system.
const root = document.documentElement;

function remembered() {
  try {
    const theme = localStorage.getItem("theme");
    return theme === "light" || theme === "dark" ? theme : null;
  } catch {
    return null; // storage is switched off
  }
}

function shownTheme() {
  if (root.dataset.theme) return root.dataset.theme;
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

function label(button) {
  const dark = shownTheme() === "dark";
  button.setAttribute("aria-pressed", String(dark));
  button.querySelector("[data-icon]").textContent = dark ? "☾" : "☀";
}

const theme = remembered();
if (theme) root.dataset.theme = theme;

document.addEventListener("DOMContentLoaded", () => {
  const button = document.getElementById("theme");
  button.hidden = false;
  label(button);
  button.addEventListener("click", () => {
    root.dataset.theme = shownTheme() === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("theme", root.dataset.theme);
    } catch {
      // It holds for this page only.
    }
    label(button);
  });
});
