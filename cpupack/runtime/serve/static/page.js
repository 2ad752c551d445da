"use strict";
// The page at /: sends an image to /predict, and draws the differences of the counters in /status.json. text.js sends texts, fields.js arrays, marks.js draws over images.

const at = (id) => document.getElementById(id);
const POINTS = 120;
const rows = { rate: [], p50: [], p99: [], refused: [] };
let before = null;
let skeleton = []; // pairs of points that lines join

function headers() {
  const token = at("token").value;
  return token ? { Authorization: `Bearer ${token}` } : {};
}

function show(element, text) {
  element.textContent = text;
  element.hidden = false;
}

function card(status) {
  const { model, setting } = status;
  document.title = `${model.name} ${model.version}`;
  at("name").textContent = `${model.name} ${model.version}`;
  at("lead").textContent = model.description;
  at("random").hidden = !model.random_weights;
  skeleton = model.skeleton;
  const byFields = !model.takes_images && !model.takes_text;
  at("try").hidden = false;
  at("try-title").textContent = model.takes_text ? "Try a text" : byFields ? "Try it" : "Try an image";
  at("values").hidden = !byFields;
  if (byFields) drawFields(model);
  at("drop").hidden = !model.takes_images;
  at("texts").hidden = !model.takes_text;
  if (model.takes_text && model.kind === "embedding") at("pair-label").textContent = "Second text, to compare with it";
  const ends = (title, tensors) =>
    tensors.map((one) => [
      tensors.length > 1 ? `${title} ${one.name}` : title,
      `${one.datatype} [${["n", ...sizesOf(one)].join(", ")}]`,
    ]);
  const promise = setting.promise_ms === null ? "none" : `p99 at most ${setting.promise_ms} ms`;
  const facts = [
    ["State", status.state],
    ["Promise", promise],
    ["Setting", `${setting.instances} × ${setting.threads} threads, batch up to ${setting.batch_size}`],
    ...ends("Input", model.inputs),
    ...ends("Output", model.outputs),
    ["Sizes", model.sizes],
    ["Engine", [model.engine, model.isa].filter(Boolean).join(", ")],
    ["Size", model.int8_bytes ? `${sizeOf(model.int8_bytes)} INT8` : null],
    ["Accuracy", accuracy(model.accuracy)],
  ];
  const body = document.createElement("tbody");
  for (const [name, value] of facts) {
    if (!value) continue;
    const row = body.insertRow();
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = name;
    row.append(head);
    row.insertCell().textContent = value;
  }
  at("card").replaceChildren(body);
}

function sizeOf(bytes) {
  return bytes < 1e5 ? `${(bytes / 1e3).toFixed(1)} KB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function accuracy(found) {
  const parts = [];
  if (found.top1_int8 !== null) parts.push(`top-1 ${(100 * found.top1_int8).toFixed(1)} %`);
  if (found.sqnr_db !== null) parts.push(`SQNR ${found.sqnr_db.toFixed(1)} dB against FP32`);
  return parts.join(", ");
}

function quantile(bounds, counts, share) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (!total) return null;
  let below = 0;
  for (let number = 0; number < counts.length; number++) {
    if (below + counts[number] >= share * total) {
      const low = number ? bounds[number - 1] : 0;
      const high = number < bounds.length ? bounds[number] : low;
      return 1000 * (low + (high - low) * ((share * total - below) / counts[number]));
    }
    below += counts[number];
  }
  return null;
}

function line(values, top) {
  let path = "";
  values.forEach((value, number) => {
    if (value === null) return;
    const open = number && values[number - 1] !== null && path;
    path += `${open ? "L" : "M"}${(POINTS - values.length + number).toFixed(1)} ${(99 - (98 * value) / top).toFixed(1)}${open ? "" : "h0"}`; // h0: a dot
  });
  return path;
}

// The least of 1, 2, 5, 10, 20 ... that is not below a value.
function round(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

function draw(id, series, unit, promise) {
  const svg = at(id);
  const values = series.flat().filter((value) => value !== null);
  const top = round(Math.max(1, promise || 0, ...values));
  at(`${id}-top`).textContent = `${top}${unit}`;
  svg.setAttribute("viewBox", `0 0 ${POINTS} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  const paths = series.map((one, number) => {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", line(one, top));
    if (number) path.setAttribute("class", "second");
    return path;
  });
  if (promise) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", `M0 ${99 - (98 * promise) / top}H${POINTS}`);
    path.setAttribute("class", "promise");
    paths.push(path);
  }
  svg.replaceChildren(...paths);
}

// A text behind a dot of its colour.
function key(colour, text) {
  const element = document.createElement("span");
  element.className = `key ${colour}`;
  element.textContent = text;
  return element;
}

function push(name, value) {
  rows[name].push(value);
  if (rows[name].length > POINTS) rows[name].shift();
}

function charts(status, now) {
  if (before) {
    const seconds = (now - before.now) / 1000;
    const difference = (name) => Math.max(0, status.counters[name] - before.status.counters[name]);
    const counts = status.latency.counts.map((count, number) => Math.max(0, count - before.status.latency.counts[number]));
    push("rate", difference("answered") / seconds);
    push("refused", difference("refused") / seconds);
    push("p50", quantile(status.latency.bounds_s, counts, 0.5));
    push("p99", quantile(status.latency.bounds_s, counts, 0.99));
    const last = (name) => rows[name][rows[name].length - 1];
    at("rate-now").textContent = `${last("rate").toFixed(1)}/s`;
    at("refused-now").textContent = `${last("refused").toFixed(1)}/s`;
    const known = last("p50") !== null;
    at("latency-now").replaceChildren(
      key("compute", known ? `p50 ${last("p50").toFixed(1)}` : "p50"), key("queue", known ? `p99 ${last("p99").toFixed(1)} ms` : "p99"));
    draw("rate", [rows.rate], "/s");
    draw("refused", [rows.refused], "/s");
    draw("latency", [rows.p50, rows.p99], " ms", status.setting.promise_ms);
  }
  before = { status, now };
}

async function poll() {
  try {
    const answer = await fetch("/status.json", { headers: headers() });
    at("token-row").hidden = answer.status !== 401 && !at("token").value;
    if (answer.ok) {
      const status = await answer.json();
      card(status);
      charts(status, performance.now());
    } else {
      at("lead").textContent = answer.status === 401 ? "This server needs a token." : (await answer.json()).error;
    }
  } catch {
    at("lead").textContent = "The server does not answer.";
  }
  setTimeout(poll, 1000);
}

// The answer of any kind of task as rows: a label, and a share of 1 or a text.
function rowsOf(result) {
  const row = (label, share, text, more) => ({ label, share, text, ...more });
  const placed = (one, detail, share) => row(one.label, share, undefined, { detail, index: one.index });
  if (result.top) return result.top.map((one) => row(one.label, one.probability));
  if (result.labels) return result.labels.map((one) => row(one.label, one.probability));
  if (result.classes) return result.classes.map((one) => row(one.label, one.share, undefined, { index: one.index || undefined }));
  if (result.masks) return result.masks.map((one) => row(one.label, one.share, undefined, { index: one.index }));
  if (result.detections) return result.detections.map((one, place) => placed({ ...one, label: `${place + 1}. ${one.label}` }, `(${one.box.map(Math.round).join(", ")})`, one.score));
  if (result.points) return result.points.map((one) => row(one.label, 0, `score ${Number(one.score.toPrecision(4))}`, { detail: `(${Math.round(one.x)}, ${Math.round(one.y)})`, index: one.index })); // of a heat map: no share of 1
  if (result.values) return result.values.map((one) => row(one.name, 0, `${one.value.toPrecision(5)} ${one.unit}`));
  if (result.maps) return result.maps.map((one) => row(one.name, 0, `${one.min.toPrecision(4)} to ${one.max.toPrecision(4)} ${one.unit}`));
  if (result.embedding) return [row("embedding", 0, `${result.embedding.length} dimensions`)];
  if (result.entities) return result.entities.map((one) => row(one.label, one.score, undefined, { detail: `${one.text} (${one.start}-${one.end})` }));
  if (result.gaps) return result.gaps.flatMap((gap, place) => gap.map((one) => row(one.token, one.score, undefined, { detail: result.gaps.length > 1 ? `gap ${place + 1}` : "" })));
  if (result.answer !== undefined) return [row(result.answer, result.score, undefined, { detail: `(${result.start}-${result.end})` })];
  return result.png ? [row("image", 0, `${result.width} x ${result.height}`)] : [];
}

let sending = 0;

async function classify(file) {
  const own = ++sending;
  at("problem").hidden = true;
  const begin = performance.now();
  let answer, found;
  try {
    answer = await fetch("/predict", { method: "POST", body: file, headers: { ...headers(), "Content-Type": file.type || "application/octet-stream" } });
    found = await answer.json();
  } catch {
    return fail("The server does not answer.");
  }
  const whole = performance.now() - begin;
  if (own !== sending) return; // a later image is on its way
  if (!answer.ok) return fail(found.error);
  URL.revokeObjectURL(at("preview").src);
  at("preview").src = URL.createObjectURL(file);
  const result = found.predictions ? found.predictions[0] : {};
  present(found.predictions ? rowsOf(result) : rowsOfRaw(found), found.timing_ms, whole);
  await mark(result);
}

// The outputs of a model without a task have names and data.
function rowsOfRaw(found) {
  const row = (name, one) => ({ label: name, text: shownValues(one), detail: `[${one.shape.join(", ")}]` });
  return (found.outputs || []).slice(0, 1).flatMap((one) =>
    one.shape && "data" in one ? [row("output", one)] : Object.entries(one).map(([name, each]) => row(name, each)));
}

// An error takes the place of the answer before it.
function fail(text) {
  at("answer").hidden = true;
  show(at("problem"), text);
}

// Shows rows of an answer, and where its time went.
function present(rows, timing, whole) {
  if (!rows.length) rows = [{ label: "nothing was found", text: "" }];
  at("more").hidden = rows.length <= NUMBERED;
  at("more").textContent = `and ${rows.length - NUMBERED} more`;
  at("classes").replaceChildren(...rows.slice(0, NUMBERED).map((one, place) => {
    const item = document.createElement("li");
    item.dataset.row = place;
    item.style.setProperty("--share", `${100 * Math.min(1, Math.max(0, one.share ?? 0))}%`);
    const label = document.createElement("span");
    const share = document.createElement("b");
    label.textContent = one.label;
    share.textContent = one.text ?? `${(100 * one.share).toFixed(1)} %`;
    if (one.index !== undefined) {
      const swatch = document.createElement("i");
      swatch.style.background = css(one.index);
      label.prepend(swatch);
    }
    if (one.detail) {
      const detail = document.createElement("small");
      detail.textContent = ` ${one.detail}`;
      label.append(detail);
    }
    item.append(label, share);
    return item;
  }));
  const { queue, prepare, compute } = timing;
  const parts = { queue, prepare, compute, other: Math.max(0, whole - queue - prepare - compute) };
  at("bar").replaceChildren(...Object.entries(parts).map(([name, ms]) => {
    const part = document.createElement("span");
    part.className = name;
    part.style.setProperty("--part", Math.max(ms, 1e-3));
    return part;
  }));
  const names = { queue: "waiting", prepare: "preparing", compute: "model", other: "way there and back" };
  at("times").replaceChildren(
    `${whole.toFixed(1)} ms in the browser: `, ...Object.entries(parts).map(([name, ms]) => key(name, `${names[name]} ${ms.toFixed(1)}`)));
  at("answer").hidden = false;
}

const drop = at("drop");
at("file").addEventListener("change", (event) => event.target.files[0] && classify(event.target.files[0]));
for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
for (const name of ["dragleave", "drop"]) drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.remove("over"); });
drop.addEventListener("drop", (event) => event.dataTransfer.files[0] && classify(event.dataTransfer.files[0]));
at("form").addEventListener("submit", (event) => event.preventDefault());
poll();
