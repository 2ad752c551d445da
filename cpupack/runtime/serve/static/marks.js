"use strict";
// Draws what a model found over the image that was sent: boxes, points, a class for each pixel; or the image that it made.

const SHAPES = "http://www.w3.org/2000/svg";
const NUMBERED = 20; // rows of the list, and marks with their number

// As tasks/draw.py has them.
function colourOf(index) {
  const hue = (0.02 + index * 0.618033988749895) % 1;
  const value = index % 2 ? 1 : 0.8;
  return [5, 3, 1].map((n) => {
    const k = (n + hue * 6) % 6;
    return Math.round(255 * (value - value * 0.85 * Math.max(0, Math.min(k, 4 - k, 1))));
  });
}

const css = (index) => `rgb(${colourOf(index).join(", ")})`;

function shape(name, attributes, text) {
  const element = document.createElementNS(SHAPES, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// A number in a field of the mark's colour, with its upper left corner at x, y.
function numbered(number, x, y, size, index) {
  const [r, g, b] = colourOf(index);
  const ink = 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#000" : "#fff";
  const width = size * (0.5 + 0.62 * String(number).length);
  return [
    shape("rect", { x, y, width, height: 1.2 * size, fill: css(index) }),
    shape("text", { x: x + width / 2, y: y + 0.95 * size, "font-size": size, "text-anchor": "middle", fill: ink }, number),
  ];
}

function boxes(found, size) {
  return found.slice(0, 200).flatMap((one, place) => {
    const [left, top, right, bottom] = one.box;
    const line = { stroke: css(one.index), class: "outline" };
    const [x, y] = one.corners ? one.corners.reduce((high, next) => (next[1] < high[1] ? next : high)) : [left, top];
    const group = shape("g", { "data-row": place });
    const outline = one.corners // a turned box
      ? shape("polygon", { points: one.corners.map((corner) => corner.join(",")).join(" "), ...line })
      : shape("rect", { x: left, y: top, width: right - left, height: bottom - top, ...line });
    group.append(outline, ...(place < NUMBERED ? numbered(place + 1, x, y, size, one.index) : []));
    return group;
  }).reverse(); // the best on top
}

function joined(found) {
  const places = new Map(found.map((one) => [one.index, one]));
  return skeleton.filter((pair) => pair.every((index) => places.has(index))).map(([from, to]) => {
    const [a, b] = [places.get(from), places.get(to)];
    return shape("line", { x1: a.x, y1: a.y, x2: b.x, y2: b.y, stroke: css(from), class: "outline" });
  });
}

function dots(found, size) {
  return found.map((one) => shape("circle", { cx: one.x, cy: one.y, r: size / 3, fill: css(one.index), class: "dot" }));
}

// The mask's grey values are classes: 0 and what the model never saw (255) stay clear.
async function colours(mask, text) {
  if (atob(text.slice(0, 36)).charCodeAt(24) > 8) return; // more than 254 classes: a canvas has 8 bits
  const image = new Image();
  image.src = `data:image/png;base64,${text}`;
  await image.decode();
  mask.width = image.naturalWidth;
  mask.height = image.naturalHeight;
  const pen = mask.getContext("2d", { willReadFrequently: true });
  pen.drawImage(image, 0, 0);
  const pixels = pen.getImageData(0, 0, mask.width, mask.height);
  const table = Array.from({ length: 255 }, (_, index) => colourOf(index));
  for (let at = 0; at < pixels.data.length; at += 4) {
    const index = pixels.data[at];
    const seen = index > 0 && index < 255;
    if (seen) pixels.data.set(table[index], at);
    pixels.data[at + 3] = seen ? 140 : 0;
  }
  pen.putImageData(pixels, 0, 0);
  mask.hidden = false;
}

// Masks that may overlap: each pixel has the mean of the colours of its classes. A mask is 255 where its class is.
async function overlaid(mask, result) {
  const sums = new Float32Array(3 * result.width * result.height), counts = new Uint16Array(result.width * result.height);
  mask.width = result.width;
  mask.height = result.height;
  const pen = mask.getContext("2d", { willReadFrequently: true });
  for (const one of result.masks) {
    const image = new Image();
    image.src = `data:image/png;base64,${one.mask_png}`;
    await image.decode();
    pen.drawImage(image, 0, 0);
    const { data } = pen.getImageData(0, 0, mask.width, mask.height);
    const colour = colourOf(one.index);
    for (let place = 0; place < counts.length; place += 1) {
      if (data[4 * place] < 128) continue;
      counts[place] += 1;
      for (let channel = 0; channel < 3; channel += 1) sums[3 * place + channel] += colour[channel];
    }
  }
  const pixels = pen.createImageData(mask.width, mask.height);
  for (let place = 0; place < counts.length; place += 1) {
    if (!counts[place]) continue;
    for (let channel = 0; channel < 3; channel += 1) pixels.data[4 * place + channel] = sums[3 * place + channel] / counts[place];
    pixels.data[4 * place + 3] = 140;
  }
  pen.putImageData(pixels, 0, 0);
  mask.hidden = false;
}

// As tasks/false_colours.py has them.
const FROM_LEAST = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137],
  [53, 183, 121], [110, 206, 88], [181, 222, 43], [253, 231, 37]];
const AROUND_ZERO = [[33, 102, 172], [67, 147, 195], [146, 197, 222], [209, 229, 240], [247, 247, 247],
  [253, 219, 199], [244, 165, 130], [214, 96, 77], [178, 24, 43]];

// A picture of the first map's numbers. An .npy file has the length of its header at byte 8, and then the numbers.
function numbers(result) {
  const file = Uint8Array.from(atob(result.values_npy), (letter) => letter.charCodeAt(0));
  const begin = 10 + file[8] + 256 * file[9];
  const values = new Float32Array(file.buffer.slice(begin, begin + 4 * result.width * result.height));
  const sorted = values.filter(Number.isFinite).sort();
  const numberAt = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  let [low, high] = [numberAt(0.01), numberAt(0.99)];
  const around = low < 0 && high > 0;
  if (around) [low, high] = [-Math.max(-low, high), Math.max(-low, high)];
  const colours = around ? AROUND_ZERO : FROM_LEAST;
  const table = Array.from({ length: 256 }, (_, step) => {
    const place = (step / 255) * (colours.length - 1);
    const below = Math.min(Math.floor(place), colours.length - 2);
    return colours[below].map((one, channel) => Math.round(one + (colours[below + 1][channel] - one) * (place - below)));
  });
  const canvas = document.createElement("canvas");
  canvas.width = result.width;
  canvas.height = result.height;
  const pen = canvas.getContext("2d");
  const pixels = pen.createImageData(canvas.width, canvas.height);
  for (let place = 0; place < values.length; place += 1) {
    if (Number.isNaN(values[place])) continue; // the model never saw it
    const share = high > low ? (Math.min(Math.max(values[place], low), high) - low) / (high - low) : 0.5;
    pixels.data.set(table[Math.round(255 * share)], 4 * place);
    pixels.data[4 * place + 3] = 255;
  }
  pen.putImageData(pixels, 0, 0);
  return canvas.toDataURL();
}

async function mark(result) {
  const marks = at("marks"), mask = at("mask");
  mask.hidden = true;
  marks.replaceChildren();
  at("answer").classList.toggle("drawn", Boolean(result.width));
  if (!result.width) return;
  marks.setAttribute("viewBox", `0 0 ${result.width} ${result.height}`);
  const size = Math.max(result.width, result.height) / 22;
  if (result.detections) marks.append(...boxes(result.detections, size));
  if (result.points) marks.append(...joined(result.points), ...dots(result.points, size));
  if (result.masks && !result.depth) await overlaid(mask, result);
  if (result.mask_png) await colours(mask, result.mask_png);
  if (result.values_npy) at("preview").src = numbers(result);
  if (result.png) at("preview").src = `data:image/png;base64,${result.png}`;
}

// The mark of the row under the pointer stands out.
at("classes").addEventListener("pointerover", (event) => {
  const row = event.target.closest("li")?.dataset.row;
  for (const one of at("marks").children) one.classList.toggle("faint", row !== undefined && one.dataset.row !== row);
});
at("classes").addEventListener("pointerleave", () => {
  for (const one of at("marks").children) one.classList.remove("faint");
});
