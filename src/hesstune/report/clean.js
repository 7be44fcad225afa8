(() => {
"use strict";
const element = id => document.getElementById(id);
const source = element("review-data");
if (!source) return;
const data = JSON.parse(source.textContent);
source.remove();
const classes = data.classes;
const rows = data.rows.map(([id, given, suggested, wrong, content, seen]) =>
  ({id, given: classes[given], suggested: classes[suggested], pair: given + ">" + suggested, wrong, content, seen}));
const byId = new Map(rows.map((row, at) => [row.id, at]));
const PREFIX = "hesstune-review:" + data.key + ":";
const words = {keep: "kept", change: "changed", remove: "removed"};

// Decisions: {id: {decision, label, given, content}}; also those on examples that this page does not show.
let decisions = new Map();
const history = [];
let view = [], current = 0;

function warn(text) {
  element("warning").textContent = text;
  element("warning").hidden = false;
}

function load() {
  decisions = new Map();
  try {
    for (let at = 0; at < localStorage.length; at++) {
      const key = localStorage.key(at);
      if (!key.startsWith(PREFIX)) continue;
      const own = JSON.parse(localStorage.getItem(key)), id = key.slice(PREFIX.length);
      const row = rows[byId.get(id)];
      if (!own || !Object.hasOwn(words, own.decision) || row && (row.given !== own.given || row.content !== own.content)) continue;
      decisions.set(id, own);
    }
  } catch {
    warn("This browser does not remember decisions from this page: download them before you close it.");
  }
}

function store(id, own) {
  if (own) decisions.set(id, own); else decisions.delete(id);
  try {
    if (own) localStorage.setItem(PREFIX + id, JSON.stringify(own)); else localStorage.removeItem(PREFIX + id);
  } catch {
    warn("This browser cannot store more decisions: download them before you close the page.");
  }
}

// The filter

function refresh() {
  const state = element("state").value, pair = element("pair").value, sought = element("words").value.toLowerCase();
  view = [];
  rows.forEach((row, at) => {
    if (state !== "all" && decisions.has(row.id) !== (state === "done")) return;
    if (pair && row.pair !== pair) return;
    if (sought && !(row.id + "\n" + (row.seen[0] === "text" ? row.seen.slice(1).join("\n") : "")).toLowerCase().includes(sought)) return;
    view.push(at);
  });
}

function show(place) {
  current = view.length ? view[Math.min(Math.max(place, 0), view.length - 1)] : -1;
  card();
  reveal();
  draw();
}

function move(step) {
  show(view.indexOf(current) + step);
}

// The example under review

function put(id, text) {
  element(id).textContent = text;
}

function keyed(id, key, text) {
  const mark = document.createElement("kbd");
  mark.textContent = key;
  element(id).replaceChildren(mark, " " + text);
}

function image(row) {
  const made = document.createElement("img");
  made.src = "data:image/jpeg;base64," + row.seen[1];
  return made;
}

function decided(row) {
  const own = decisions.get(row.id);
  if (!own) return "undecided";
  return own.decision === "change" ? "changed to " + own.label : words[own.decision];
}

function card() {
  element("example").hidden = current < 0;
  element("empty").hidden = current >= 0;
  const row = rows[current], place = view.indexOf(current);
  put("place", row ? "Example " + (place + 1) + " of " + view.length : "Example");
  if (!row) return;
  const seen = element("seen");
  seen.replaceChildren();
  seen.hidden = !row.seen.length;
  if (row.seen[0] === "image") {
    const made = image(row);
    made.alt = "example " + row.id;
    seen.append(made);
  }
  for (const text of row.seen[0] === "text" ? row.seen.slice(1) : []) {
    const made = document.createElement("p");
    made.textContent = text;
    seen.append(made);
  }
  seen.scrollTop = 0;
  put("name", row.id);
  put("given", row.given);
  put("suggested", row.suggested);
  put("wrong", Math.round(100 * row.wrong) + " %");
  put("decision", decided(row));
  keyed("keep", "K", "Keep “" + row.given + "”");
  keyed("suggest", "S", "Change to “" + row.suggested + "”");
  element("class").value = String(classes.indexOf(row.suggested));
  element("clear").disabled = !decisions.has(row.id);
  element("previous").disabled = place <= 0;
  element("next").disabled = place >= view.length - 1;
}

function counts() {
  const number = {keep: 0, change: 0, remove: 0};
  let elsewhere = 0;
  decisions.forEach((own, id) => {
    if (byId.has(id)) number[own.decision]++; else elsewhere++;
  });
  const done = number.keep + number.change + number.remove;
  put("counts", done + " of " + rows.length + " decided (" + number.keep + " kept, " + number.change + " changed, "
    + number.remove + " removed)" + (elsewhere ? "; " + elsewhere + " on examples of earlier pages" : ""));
  element("progress").max = rows.length;
  element("progress").value = done;
  element("download").disabled = !decisions.size;
  element("undo").disabled = !history.length;
}

// Decisions

function decide(decision, label) {
  const row = rows[current];
  if (!row) return;
  const place = view.indexOf(current);
  if (decision === "change" && label === row.given) decision = "keep";
  history.push([current, decisions.get(row.id)]);
  store(row.id, {decision, label: decision === "remove" ? "" : label, given: row.given, content: row.content});
  const stays = element("state").value !== "open";
  refresh();
  counts();
  const last = place + (stays ? 1 : 0) >= view.length;
  put("said", row.id + ": " + decided(row) + (last ? ". This was the last one." : "."));
  show(place + (stays ? 1 : 0));
}

function undo() {
  if (!history.length) return;
  const [at, before] = history.pop();
  store(rows[at].id, before);
  goTo(at);
  put("said", "Undone: " + rows[at].id + " is " + decided(rows[at]) + ".");
}

function clear() {
  const row = rows[current];
  if (!row || !decisions.has(row.id)) return;
  history.push([current, decisions.get(row.id)]);
  store(row.id, undefined);
  goTo(current);
  put("said", row.id + ": undecided.");
}

function goTo(at) {
  refresh();
  if (!view.includes(at)) {
    element("state").value = "all";
    element("pair").value = element("words").value = "";
    refresh();
  }
  counts();
  show(view.indexOf(at));
}

// The list: only the rows that can be seen are in the document.

let height = 0;

function reveal() {
  const list = element("list"), top = view.indexOf(current) * height, margin = 2 * height;
  if (current < 0) return;
  element("rows").style.height = view.length * height + "px";
  if (top - margin < list.scrollTop) list.scrollTop = top - margin;
  else if (top + height + margin > list.scrollTop + list.clientHeight)
    list.scrollTop = top + height + margin - list.clientHeight;
}

function draw() {
  const list = element("list"), inner = element("rows");
  inner.style.height = view.length * height + "px";
  const first = Math.max(0, Math.floor(list.scrollTop / height) - 3);
  const end = Math.min(view.length, Math.ceil((list.scrollTop + list.clientHeight) / height) + 3);
  const made = [];
  for (let place = first; place < end; place++) made.push(option(place));
  inner.replaceChildren(...made);
  if (made.some(own => own.id === "row-" + current)) list.setAttribute("aria-activedescendant", "row-" + current);
  else list.removeAttribute("aria-activedescendant");
}

function option(place) {
  const at = view[place], row = rows[at], made = document.createElement("div");
  made.className = "row";
  made.id = "row-" + at;
  made.setAttribute("role", "option");
  made.setAttribute("aria-selected", String(at === current));
  made.setAttribute("aria-setsize", view.length);
  made.setAttribute("aria-posinset", place + 1);
  made.style.top = place * height + "px";
  if (row.seen[0] === "image") {
    const small = image(row);
    small.alt = "";
    made.append(small);
  }
  const text = document.createElement("span"), name = document.createElement("b"), facts = document.createElement("span");
  name.textContent = row.seen[0] === "text" ? row.seen[1].slice(0, 200) : row.id;
  facts.textContent = row.given + " → " + row.suggested + ", " + Math.round(100 * row.wrong) + " %: " + decided(row);
  facts.className = "facts" + (decisions.has(row.id) ? " done" : "");
  text.append(name, facts);
  made.append(text);
  made.addEventListener("click", () => show(place));
  return made;
}

// The file of decisions: cells that a spreadsheet would compute are marked, as hesstune reads them.

function cell(text) {
  const start = text.replace(/^'+/, "");
  const number = /^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$/.test(text.trim()) && isFinite(Number(text));
  if (start && data.signs.includes(start[0]) && !number) text = "'" + text;
  return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
}

function table() {
  const lines = [data.columns];
  const line = (id, own) => lines.push([id, own.given, own.decision, own.label, own.content]);
  rows.forEach(row => decisions.has(row.id) && line(row.id, decisions.get(row.id)));
  decisions.forEach((own, id) => byId.has(id) || line(id, own));
  return lines.map(own => own.map(cell).join(",") + "\r\n").join("");
}

function download() {
  if (!decisions.size) return;
  const link = document.createElement("a"), address = URL.createObjectURL(new Blob([table()], {type: "text/csv"}));
  link.href = address;
  link.download = "decisions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
  put("said", decisions.size + " decisions downloaded as decisions.csv.");
}

// Keys, buttons and fields

const keys = {
  k: () => decide("keep", rows[current]?.given),
  s: () => decide("change", rows[current]?.suggested),
  r: () => decide("remove", ""),
  o: () => element("class").focus(),
  u: undo, c: clear, d: download,
  n: () => move(1), ArrowRight: () => move(1), ArrowDown: () => move(1),
  p: () => move(-1), ArrowLeft: () => move(-1), ArrowUp: () => move(-1),
  Home: () => show(0), End: () => show(view.length - 1),
};
const REPEATED = ["n", "p", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"];

function use() {
  decide("change", classes[Number(element("class").value)]);
  element("list").focus({preventScroll: true});
}

document.addEventListener("keydown", event => {
  const field = event.target.closest("input, select, textarea");
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.altKey || event.isComposing) return;
  if (event.ctrlKey || event.metaKey) {
    if (key === "z" && !event.shiftKey && (!field || field.type !== "search")) { event.preventDefault(); undo(); }
    return;
  }
  if (field && field.type !== "checkbox") {
    if (field.id === "class" && key === "Enter") { event.preventDefault(); use(); }
    else if (key === "Escape") element("list").focus({preventScroll: true});
    return;
  }
  if (!element("shortcuts").checked && event.target.id !== "list") return;
  const named = /^[1-9]$/.test(key) ? classes[key - 1] : undefined;
  if (!Object.hasOwn(keys, key) && named === undefined || event.repeat && !REPEATED.includes(key)) return;
  if (!element("shortcuts").checked && key.length === 1) return;
  event.preventDefault();
  if (named === undefined) keys[key](); else decide("change", named);
});
for (const [id, key] of [["keep", "k"], ["suggest", "s"], ["remove", "r"], ["next", "n"], ["previous", "p"],
  ["clear", "c"], ["undo", "u"], ["download", "d"]]) element(id).addEventListener("click", keys[key]);
element("use").addEventListener("click", use);
for (const id of ["state", "pair", "words"])
  element(id).addEventListener("input", () => { refresh(); element("list").scrollTop = 0; show(Math.max(0, view.indexOf(current))); });
let waiting = false;
element("list").addEventListener("scroll", () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
});
addEventListener("storage", event => {
  if (event.key === null || event.key.startsWith(PREFIX)) { load(); refresh(); counts(); show(Math.max(0, view.indexOf(current))); }
});
addEventListener("resize", () => { measure(); draw(); });

function measure() {
  const probe = document.createElement("div");
  probe.className = "row";
  element("rows").append(probe);
  height = probe.getBoundingClientRect().height;
  probe.remove();
}

// The fields

const pairs = new Map();
rows.forEach(row => pairs.set(row.pair, (pairs.get(row.pair) || 0) + 1));
for (const [pair, count] of [...pairs].sort((a, b) => b[1] - a[1])) {
  const [given, suggested] = pair.split(">");
  element("pair").add(new Option(classes[given] + " → " + classes[suggested] + " (" + count + ")", pair));
}
classes.forEach((name, at) => element("class").add(new Option((at < 9 ? at + 1 + ": " : "") + name, String(at))));
element("review").hidden = false;
measure();
load();
refresh();
counts();
const open = view.findIndex(at => !decisions.has(rows[at].id));
show(Math.max(0, open));
})();
