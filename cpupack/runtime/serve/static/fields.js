"use strict";
// A field for each input of a model that takes neither one image nor text, and sends them to /predict.

const MOST_TYPED = 20000; // values of a field; more come as a file, or are made here
const SHOWN = 6; // values of an output

let drawn = ""; // the model that the fields are for
let inputs = [];

function nested(shape, value) {
  return shape.length ? Array.from({ length: shape[0] }, () => nested(shape.slice(1), value)) : value();
}

// One value for each element of a sample: the default, or at random such as the input takes.
function valueOf(one, random, column) {
  if (!random || one.state) return one.datatype === "BOOL" ? Boolean(one.default) : one.default ?? one.least ?? 0;
  if (one.datatype === "BOOL") return Math.random() < 0.5;
  if (one.datatype === "FP32") return Number((Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random())).toFixed(3));
  const below = (one.vocabularies.length ? one.vocabularies[column] : one.vocabulary) || 10;
  const least = one.least || 0; // a length begins at 1
  return least + Math.floor(Math.random() * (below - least));
}

function sample(one, random) {
  const width = one.sample.length ? one.sample[one.sample.length - 1] : 1;
  let place = 0;
  return nested(one.sample, () => valueOf(one, random, place++ % width));
}

const countOf = (one) => one.sample.reduce((product, size) => product * size, 1);

// An .npy file of one sample.
function npy(one, values) {
  const [kind, make] = { FP32: ["<f4", Float32Array], UINT8: ["|u1", Uint8Array], BOOL: ["|b1", Uint8Array], INT64: ["<i8", BigInt64Array] }[one.datatype];
  const shape = one.sample;
  let head = `{'descr': '${kind}', 'fortran_order': False, 'shape': (${shape.join(", ")}${shape.length === 1 ? "," : ""}), }`;
  head = `${head.padEnd(Math.ceil((head.length + 11) / 64) * 64 - 11)}\n`;
  const start = new Uint8Array([0x93, ...[..."NUMPY"].map((letter) => letter.charCodeAt(0)), 1, 0, head.length % 256, head.length >> 8]);
  const flat = [values].flat(Infinity).map((value) => (make === BigInt64Array ? BigInt(value) : Number(value)));
  return new Blob([start, head, make.from(flat)]);
}

function made(name, properties, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

// The shape of one sample. What has a name in the recipe may have any of the sizes that the model card lists.
const sizesOf = (one) => one.shape.slice(1).map((size) => (size < 0 ? "any" : size));

function hintOf(one) {
  const words = [one.image ? "an image" : `${one.datatype} [${sizesOf(one).join(", ")}]`];
  if (one.ids) words.push(`whole numbers ${one.ids}`);
  if (one.state) words.push("a state: an answer puts the next one here");
  else if (one.default !== null) words.push("may stay empty");
  return words.join("; ");
}

function field(one, place) {
  const id = `input-${place}`, typed = !one.image && countOf(one) <= MOST_TYPED;
  const hint = made("small", { id: `${id}-hint`, textContent: hintOf(one) });
  const row = made("div", { className: "field" }, made("label", { htmlFor: id, textContent: one.name }), hint);
  const file = made("input", { type: "file", accept: one.image ? "image/*" : ".npy" });
  const found = { ...one, file, text: null, blob: null };
  if (typed) {
    found.text = made("textarea", { id, rows: countOf(one) > 12 ? 4 : 1, spellcheck: false });
    if (one.default === null || one.state) found.text.value = JSON.stringify(sample(one, false));
    file.setAttribute("aria-label", `${one.name} as an .npy file`);
    file.addEventListener("change", () => { found.text.disabled = Boolean(file.files.length); });
    row.append(found.text, made("small", { textContent: "or an .npy file" }), file);
  } else {
    file.id = id;
    file.addEventListener("change", () => { found.blob = null; hint.textContent = hintOf(one); });
    row.append(file);
    if (!one.image) hint.textContent += "; an .npy file";
  }
  (found.text || file).setAttribute("aria-describedby", hint.id);
  return [found, row];
}

function drawFields(model) {
  const key = `${model.name} ${model.version}`;
  if (key === drawn) return;
  drawn = key;
  const pairs = model.inputs.map(field);
  inputs = pairs.map(([found]) => found);
  at("fields").replaceChildren(...pairs.map(([, row]) => row));
  at("fill").hidden = inputs.every((one) => one.image);
}

function fillFields() {
  for (const one of inputs) {
    if (one.image) continue;
    one.file.value = "";
    if (one.text) {
      one.text.disabled = false;
      one.text.value = JSON.stringify(sample(one, true));
    } else {
      one.blob = npy(one, sample(one, true));
      document.getElementById(one.file.getAttribute("aria-describedby")).textContent = `${hintOf(one)}; random values`;
    }
  }
}

// What a request sends: a form with a field for each input, or the only array by itself.
function bodyOf(model) {
  const values = inputs.map((one) => [one.name, one.file.files[0] || one.blob || one.text?.value.trim() || null]);
  const missing = inputs.find((one, place) => one.default === null && values[place][1] === null);
  if (missing) throw new Error(`${missing.name}: ${missing.text ? "give values or choose an .npy file" : "choose a file"}`);
  if (!model.named) {
    const [[name, value]] = values;
    if (typeof value !== "string") return [value, { "Content-Type": "application/octet-stream" }];
    try {
      return [JSON.stringify({ input: JSON.parse(value) }), { "Content-Type": "application/json" }];
    } catch {
      throw new Error(`${name}: this is no list of numbers in JSON`);
    }
  }
  const form = new FormData();
  for (const [name, value] of values) if (value !== null) form.append(name, value);
  return [form, {}];
}

// The states of an answer are those that the next request needs.
function keepStates(outputs) {
  for (const one of inputs) {
    const next = one.state && outputs && outputs[one.state];
    if (!next) continue;
    const value = folded(next.shape, [next.data].flat(Infinity));
    one.file.value = ""; // else the file of the first state would count
    if (one.text) {
      one.text.disabled = false;
      one.text.value = JSON.stringify(value);
    } else {
      one.blob = npy(one, value);
      document.getElementById(one.file.getAttribute("aria-describedby")).textContent = `${hintOf(one)}; that of the last answer`;
    }
  }
}

function folded(shape, flat) {
  let place = 0;
  return nested(shape, () => flat[place++]);
}

function shownValues(one) {
  const flat = [one.data].flat(Infinity);
  const shown = flat.slice(0, SHOWN).map((value) => (typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(4)) : value));
  return `${shown.join(", ")}${flat.length > SHOWN ? ", …" : ""}`;
}

async function sendFields() {
  const own = ++sending;
  at("problem").hidden = true;
  const begin = performance.now();
  let answer, found;
  try {
    const [body, kind] = bodyOf(before.status.model);
    try {
      answer = await fetch("/predict", { method: "POST", body, headers: { ...headers(), ...kind } });
      found = await answer.json();
    } catch {
      throw new Error("The server does not answer.");
    }
  } catch (error) {
    return fail(error.message);
  }
  const whole = performance.now() - begin;
  if (own !== sending) return; // a later one is on its way
  if (!answer.ok) return fail(found.error);
  const image = inputs.find((one) => one.image && one.file.files.length);
  at("answer").classList.toggle("text", !image);
  URL.revokeObjectURL(at("preview").src);
  if (image) at("preview").src = URL.createObjectURL(image.file.files[0]);
  const result = found.predictions ? found.predictions[0] : {};
  present(found.predictions ? rowsOf(result) : rowsOfRaw(found), found.timing_ms, whole);
  keepStates(found.outputs?.[0]);
  await mark(result);
}

at("fill").addEventListener("click", fillFields);
at("form").addEventListener("submit", () => at("values").hidden || sendFields());
at("fields").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) sendFields();
});
