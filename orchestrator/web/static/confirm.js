// Asks before a form marked data-confirm is sent.
export function confirming() {
  const dialog = document.getElementById("confirm");
  let asked = null;
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (!form.dataset.confirm || form === asked) return;
    event.preventDefault();
    dialog.querySelector("h2").textContent = form.dataset.title ?? "Are you sure?";
    dialog.querySelector("p").textContent = form.dataset.confirm;
    dialog.querySelector("[value=yes]").textContent = form.dataset.yes ?? "Yes";
    dialog.returnValue = "";
    dialog.onclose = () => {
      if (dialog.returnValue !== "yes") return;
      asked = form;
      form.requestSubmit(event.submitter);
    };
    dialog.showModal();
  });
}
