"use strict";
// Sends the text of the page at / to /predict: alone, as a pair, or for embeddings two texts to compare.

function cosine(one, other) {
  let product = 0, first = 0, second = 0;
  one.forEach((value, place) => {
    product += value * other[place];
    first += value * value;
    second += other[place] * other[place];
  });
  return product / (Math.sqrt(first * second) || 1);
}

function rowsOfText(found, compared) {
  const results = found.predictions;
  if (!results) return rowsOfRaw(found);
  if (!compared) return rowsOf(results[0]);
  const likeness = cosine(results[0].embedding, results[1].embedding);
  return [{ label: "cosine of the two texts", share: Math.max(0, likeness), text: likeness.toFixed(4) }, ...rowsOf(results[0])];
}

function tokensOf(found) {
  const told = (found.predictions || []).filter((one) => one.tokens !== undefined);
  const cut = told.some((one) => one.truncated) ? "; the rest of the text is cut off" : "";
  return told.length ? `${told.map((one) => one.tokens).join(" and ")} tokens${cut}` : "";
}

async function sendText() {
  const text = at("text").value, pair = at("text-pair").value, own = ++sending;
  const compared = Boolean(pair) && before?.status.model.kind === "embedding";
  const body = compared ? { texts: [text, pair] } : pair ? { text, text_pair: pair } : { text };
  at("problem").hidden = true;
  const begin = performance.now();
  let answer, found;
  try {
    answer = await fetch("/predict", { method: "POST", body: JSON.stringify(body), headers: { ...headers(), "Content-Type": "application/json" } });
    found = await answer.json();
  } catch {
    return fail("The server does not answer.");
  }
  if (own !== sending) return; // a later text is on its way
  if (!answer.ok) return fail(found.error);
  at("answer").classList.add("text");
  const tokens = tokensOf(found);
  at("tokens").textContent = tokens;
  at("tokens").hidden = !tokens;
  present(rowsOfText(found, compared), found.timing_ms, performance.now() - begin);
}

at("form").addEventListener("submit", () => before?.status.model.takes_text && sendText());
at("texts").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) sendText();
});
