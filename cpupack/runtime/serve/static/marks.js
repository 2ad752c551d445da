"use strict";
// Draws what a model found over the image that was sent: boxes, points, a class for each pixel, or the image it made.

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
    const outline = { x: left, y: top, width: right - left, height: bottom - top, stroke: css(one.index), class: "outline" };
    const group = shape("g", { "data-row": place });
    group.append(shape("rect", outline), ...(place < NUMBERED ? numbered(place + 1, left, top, size, one.index) : []));
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
  if (result.mask_png) await colours(mask, result.mask_png);
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
