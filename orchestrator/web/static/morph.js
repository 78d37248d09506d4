// Makes one piece of the page like another, changing only what differs: focus, selection,
// scrolling and opened details stay as they are.  What is marked data-keep is left to scripts.

const KEPT = { DETAILS: ["open"], INPUT: ["checked"], OPTION: ["selected"], DIALOG: ["open"] };

export function morph(now, next) {
  if (now.nodeType !== next.nodeType || now.nodeName !== next.nodeName || now.id !== next.id) {
    now.replaceWith(document.importNode(next, true));
    return;
  }
  if (now.nodeType !== Node.ELEMENT_NODE) {
    if (now.nodeValue !== next.nodeValue) now.nodeValue = next.nodeValue;
    return;
  }
  if (now.dataset?.keep !== undefined || now.isEqualNode(next)) return;
  attributes(now, next);
  children(now, next);
}

function attributes(now, next) {
  const kept = KEPT[now.tagName] ?? [];
  for (const { name } of [...now.attributes]) {
    if (!next.hasAttribute(name) && !kept.includes(name)) now.removeAttribute(name);
  }
  for (const { name, value } of next.attributes) {
    if (!kept.includes(name) && now.getAttribute(name) !== value) now.setAttribute(name, value);
  }
}

function children(now, next) {
  const before = [...now.childNodes];
  const after = [...next.childNodes];
  after.forEach((child, place) => {
    if (place < before.length) morph(before[place], child);
    else now.append(document.importNode(child, true));
  });
  before.slice(after.length).forEach((child) => child.remove());
}
