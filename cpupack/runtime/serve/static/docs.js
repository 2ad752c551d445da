"use strict";
// The page at /docs: draws /openapi.json.

const at = (id) => document.getElementById(id);

function element(name, text) {
  const found = document.createElement(name);
  if (text) found.textContent = text;
  return found;
}

function table(rows) {
  const found = element("table");
  for (const cells of rows) {
    const row = found.insertRow();
    cells.forEach((cell) => { row.insertCell().textContent = cell; });
  }
  return found;
}

function operation(path, method, about) {
  const article = element("article");
  const title = element("h2");
  title.append(element("code", `${method.toUpperCase()} ${path}`));
  article.append(title, element("p", about.summary));
  const parameters = (about.parameters || []).map((one) => [one.name, one.in, one.description || ""]);
  if (parameters.length) article.append(element("h3", "Parameters"), table(parameters));
  const bodies = Object.keys((about.requestBody || {}).content || {});
  if (bodies.length) article.append(element("h3", "Body"), element("p", bodies.join(", ")));
  article.append(element("h3", "Answers"), table(Object.entries(about.responses).map(([code, one]) => [code, one.description])));
  return article;
}

async function main() {
  const answer = await fetch("/openapi.json");
  if (!answer.ok) {
    at("lead").textContent = (await answer.json()).error;
    return;
  }
  const found = await answer.json();
  document.title = `${found.info.title}: addresses`;
  at("name").textContent = `${found.info.title} ${found.info.version}`;
  at("lead").textContent = found.info.description;
  for (const [path, methods] of Object.entries(found.paths)) {
    for (const [method, about] of Object.entries(methods)) at("paths").append(operation(path, method, about));
  }
}

main();
