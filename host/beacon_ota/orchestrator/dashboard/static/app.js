// Keeps a page up to date, asks before it does anything, and takes keys. Pages work without it,
// except for that. Nothing here writes markup: what the server rendered is parsed by the browser
// as a document without scripts, and taken over node by node.

const main = document.getElementById("main");
const html = document.documentElement;
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const csrf = $("meta[name=csrf]").content;
const root = html.dataset.root; // the path below which a proxy shows the pages, mostly none

// ---- times: in the reader's zone, by the orchestrator's clock ----

let clock = { at: Number(html.dataset.now), since: performance.now() };
const now = () => clock.at + ((performance.now() - clock.since) / 1000) * Number(html.dataset.scale);
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });
const day = new Intl.DateTimeFormat(undefined, { year: "numeric", month: "short", day: "numeric" });
const hour = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

function ago(seconds) {
  const far = Math.abs(seconds);
  if (far < 5) return "now";
  const [size, unit] = UNITS.find(([size]) => far >= size);
  let text = `${Math.floor(far / size)} ${unit}`;
  if (unit === "h" && far < 6 * 3600) {
    const minutes = Math.floor((far % 3600) / 60);
    if (minutes) text += ` ${minutes} min`;
  }
  return seconds > 0 ? `${text} ago` : `in ${text}`;
}

function times(root = document) {
  const today = day.format(now() * 1000);
  for (const node of $$("time", root)) {
    const at = Date.parse(node.dateTime);
    const date = day.format(at);
    const text = "ago" in node.dataset ? ago(now() - at / 1000)
      : date === today ? hour.format(at) : `${date}, ${hour.format(at)}`;
    if (node.textContent !== text) node.textContent = text;
    const title = full.format(at);
    if (node.title !== title) node.title = title;
  }
}

// ---- taking over what the server renders now ----

// What the browser's user has changed stays: dialogs, what was typed, what was unfolded.
function morph(have, want, changed) {
  if (have.nodeType !== Node.ELEMENT_NODE) {
    if (have.nodeValue !== want.nodeValue) {
      have.nodeValue = want.nodeValue;
      if (have.parentElement?.matches(".n")) changed.push(have.parentElement);
    }
    return;
  }
  const closed = have.nodeName === "DIALOG" && !have.open; // what it asks follows what there is
  if (("keep" in have.dataset && !closed) || have.isEqualNode(want)) return;
  const keepsOpen = "keepOpen" in have.dataset;
  for (const { name, value } of want.attributes) {
    if (have.getAttribute(name) === value || (name === "title" && have.nodeName === "TIME")) continue;
    if (name === "class" && have.classList.contains("c")) changed.push(have);
    have.setAttribute(name, value);
  }
  for (const { name } of [...have.attributes])
    if (!want.hasAttribute(name) && !(keepsOpen && name === "open") && name !== "title")
      have.removeAttribute(name);
  children(have, want, changed);
}

function children(have, want, changed) {
  const keyed = new Map([...have.children].filter((node) => node.id).map((node) => [node.id, node]));
  let at = have.firstChild;
  for (const next of want.childNodes) {
    let match = next.id ? keyed.get(next.id) : null;
    if (!match && at && !at.id && !next.id && at.nodeName === next.nodeName) match = at;
    if (!match) {
      have.insertBefore(document.importNode(next, true), at);
      continue;
    }
    // What is moved in a document is closed, and a press of its button is lost.
    if (asks(match)) at = removeUpTo(match, at);
    if (match === at) at = at.nextSibling;
    else have.insertBefore(match, at);
    morph(match, next, changed);
  }
  removeUpTo(null, at);
}

// Whether a question is open in it.
function asks(node) {
  return node.nodeType === Node.ELEMENT_NODE && (node.matches("dialog[open]") || $("dialog[open]", node));
}

function removeUpTo(end, at) {
  if (end && (!at || end.compareDocumentPosition(at) & Node.DOCUMENT_POSITION_FOLLOWING)) return at;
  while (at !== end) {
    const next = at.nextSibling;
    if (!asks(at)) at.remove();
    at = next;
  }
  return at;
}

function takeOver(page) {
  const changed = [];
  morph(main, page.getElementById("main"), changed);
  morph($("footer"), $("footer", page), changed);
  clock = { at: Number(page.documentElement.dataset.now), since: performance.now() };
  times();
  dim();
  for (const node of changed) {
    node.classList.add("changed");
    setTimeout(() => node.classList.remove("changed"), 1500);
  }
}

// ---- live ----

const pulse = $(".pulse");
const REST_MS = 1000; // between two looks; longer when one takes long
let stale = false, looking = false, timer = 0, looked = -Infinity, cost = 0;
let stream = null, last = main.dataset.event;

function touch() {
  stale = true;
  if (looking || timer || document.hidden) return;
  const wait = looked + Math.max(REST_MS, 5 * cost) - performance.now();
  timer = setTimeout(look, Math.max(wait, 0));
}

function look() {
  timer = 0;
  looking = true;
  stale = false;
  const began = performance.now();
  const request = new XMLHttpRequest();
  request.open("GET", location.href);
  request.responseType = "document";
  request.timeout = 20000;
  request.setRequestHeader("X-Refresh", "1");
  request.onload = () => {
    if (request.status === 401) location.reload();
    else if (request.response?.getElementById("main")) takeOver(request.response);
  };
  request.onloadend = () => {
    looking = false;
    looked = performance.now();
    cost = looked - began;
    if (stale) touch();
  };
  request.send();
}

function mine(about) {
  const wanted = (main.dataset.live || "").split(" ");
  return about.some((topic) => topic === "*" || wanted.includes("*") || wanted.includes(topic));
}

function show(state, text) {
  pulse.dataset.state = state;
  if (pulse.textContent !== text) pulse.textContent = text;
}

function follow() {
  if (stream || document.hidden) return;
  stream = new EventSource(`${root}/live?after=${last}`);
  stream.onopen = () => show("on", "live");
  stream.onmessage = (event) => {
    if (event.lastEventId) last = event.lastEventId;
    const { about, say, more } = JSON.parse(event.data);
    for (const one of say) speak(one);
    if (more) speak({ level: "plain", text: `and ${more} more`, href: "/activity" });
    if (mine(about)) touch();
  };
  stream.addEventListener("pulse", () => main.dataset.live && touch());
  stream.onerror = () => {
    show("off", "not live");
    if (stream.readyState === EventSource.CLOSED) {
      stream = null;
      setTimeout(() => { follow(); touch(); }, 5000 + 5000 * Math.random());
    } else stale = true; // what was missed comes with the next message, or the next pulse
  };
}

// A browser has few connections per host: pages that nobody looks at give theirs back.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) {
    follow();
    touch();
  } else if (stream) {
    stream.close();
    stream = null;
    show("off", "not live");
  }
});

function speak({ level, text, href }) {
  const said = document.createElement("p");
  said.className = `l-${level}`;
  const link = document.createElement("a");
  link.href = root + (href || "/activity");
  link.textContent = text;
  said.append(link);
  const box = $("#says");
  box.append(said);
  while (box.childElementCount > 5) box.firstElementChild.remove();
  setTimeout(() => said.remove(), 12000);
}

// ---- levers ----

document.addEventListener("click", (event) => {
  const target = event.target instanceof Element ? event.target : null;
  const opens = target?.closest("[data-open]");
  if (opens) return document.getElementById(opens.dataset.open).showModal();
  if (target?.closest("[data-close]")) return target.closest("dialog").close();
  const does = target?.closest("[data-do]")?.dataset.do;
  if (does === "theme") return turnTheme();
  if (does === "help") return $("#help").showModal();
  const row = target?.closest("tr[data-href]");
  if (row && !target.closest("a, button, dialog, input") && !getSelection().toString())
    location.href = row.dataset.href;
});

// While a question was open it stayed as it was; "close" does not bubble.
document.addEventListener("close", () => main.dataset.live && touch(), true);

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (form.matches(".filters, .search"))
    for (const field of form.elements) if (field.name && !field.value) field.disabled = true;
  if (!form.dataset.api) return;
  event.preventDefault();
  const button = $("[data-confirm]", form);
  const refused = $(".refused", form);
  button.disabled = true;
  refused.hidden = true;
  const given = {};
  for (const field of form.elements)
    if (field.name) given[field.name] = "number" in field.dataset ? Number(field.value) : field.value;
  const headers = { "X-CSRF-Token": csrf };
  let url = form.dataset.api;
  let body;
  if ("query" in form.dataset) url += `?${new URLSearchParams(given)}`;
  else if (Object.keys(given).length) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(given);
  }
  try {
    const answer = await fetch(url, { method: form.dataset.method, headers, body });
    if (answer.status === 401) return location.reload();
    if (answer.status === 202) {
      const told = await answer.json();
      const restart = told.survives_restart ? "A restart knows it, too." : "A restart would forget it.";
      say(refused, `It is ${told.status}, in memory: the database has not taken it yet. ${restart}`);
      looked = -Infinity;
      touch();
    } else if (answer.ok) {
      form.closest("dialog").close();
      form.reset();
      looked = -Infinity;
      touch();
    } else {
      const problem = await answer.json().catch(() => ({ detail: `refused: ${answer.status}` }));
      say(refused, problem.detail);
    }
  } catch {
    say(refused, "the orchestrator cannot be reached");
  } finally {
    button.disabled = false;
  }
});

function say(node, text) {
  node.textContent = text;
  node.hidden = false;
}

document.addEventListener("change", (event) => {
  const form = event.target.closest?.("form.filters");
  if (form && event.target.matches("select")) form.requestSubmit();
  if (event.target.dataset?.do === "keys") localStorage.setItem("keys", event.target.checked ? "on" : "off");
});

// ---- light and dark ----

function turnTheme() {
  const dark = html.dataset.theme ? html.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  html.dataset.theme = dark ? "light" : "dark";
  document.cookie = `theme=${html.dataset.theme}; path=/; max-age=31536000; samesite=strict`;
}

// ---- the map ----

const search = $(".search input");

function dim() {
  const map = $(".map");
  if (!map || !search) return;
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const cell of $$(".cells .c", map)) {
    const text = cell.title.toLowerCase();
    const hit = words.every((word) => text.includes(word));
    cell.classList.toggle("dim", !hit);
    found += hit;
  }
  $(".nothing", map).hidden = !words.length || found > 0;
}

search?.addEventListener("input", () => requestAnimationFrame(dim));

// One stop of the Tab key per floor; the arrows go from beacon to beacon.
document.addEventListener("focusin", (event) => {
  const cell = event.target.closest?.(".cells .c");
  if (!cell) return;
  for (const other of $$(".c[tabindex='0']", cell.parentElement)) other.tabIndex = -1;
  for (const other of cell.parentElement.children) if (other !== cell) other.tabIndex = -1;
  cell.tabIndex = 0;
});

function neighbour(cell, key) {
  if (key === "ArrowLeft") return cell.previousElementSibling;
  if (key === "ArrowRight") return cell.nextElementSibling;
  if (key === "Home") return cell.parentElement.firstElementChild;
  if (key === "End") return cell.parentElement.lastElementChild;
  const from = cell.getBoundingClientRect();
  const sign = key === "ArrowDown" ? 1 : -1;
  let best = null, least = Infinity;
  for (const other of $$(".map .cells .c")) {
    const to = other.getBoundingClientRect();
    const down = sign * (to.top - from.top);
    if (down < from.height / 2) continue;
    const far = down * 4 + Math.abs(to.left - from.left);
    if (far < least) [best, least] = [other, far];
  }
  return best;
}

// ---- keys ----

let going = 0;
const keysOn = () => localStorage.getItem("keys") !== "off";
const box = $("[data-do=keys]");
if (box) box.checked = keysOn();

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("dialog[open]")) return;
  const at = event.target;
  if (at === search && event.key === "Escape") {
    search.value = "";
    dim();
    return search.blur();
  }
  if (at.matches("input, select, textarea")) return;
  if (at.matches(".cells .c") && /^(Arrow|Home|End)/.test(event.key)) {
    const to = neighbour(at, event.key);
    if (to) to.focus();
    return event.preventDefault();
  }
  if (!keysOn()) return;
  if (going && performance.now() - going < 1500) {
    going = 0;
    const link = $(`nav a[data-go="${CSS.escape(event.key)}"]`);
    if (link) link.click();
    return;
  }
  if (event.key === "/") search?.focus();
  else if (event.key === "?") $("#help")?.showModal();
  else if (event.key === "t") turnTheme();
  else if (event.key === "g") going = performance.now();
  else if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
  else return;
  event.preventDefault();
});

function step(by) {
  const rows = $$("table.rows tbody tr");
  if (!rows.length) return;
  const here = rows.indexOf(document.activeElement.closest("tr"));
  const next = rows[Math.min(Math.max(here + by, 0), rows.length - 1)];
  $("a", next)?.focus();
}

// ---- begin ----

times();
setInterval(times, 10000);
if (pulse) follow();
