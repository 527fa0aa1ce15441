"use strict";
// Shows single examples with what every method answered. Texts are strangers': they are set as text, never as markup.
(() => {
  const { methods, targets } = JSON.parse(document.getElementById("examples").textContent);
  const [form, list] = ["explorer-controls", "explorer-list"].map((id) => document.getElementById(id));
  const { target, k, seed, missed, disagree, search } = form.elements;
  const [previous, next] = document.querySelectorAll(".pager button");
  const PAGE = 10;
  let start = 0;

  function make(tag, text, attributes = {}) {
    const made = document.createElement(tag);
    made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  // Give a list its options, [value, text] each, and keep what was chosen where it is still there.
  function fill(box, options) {
    const before = box.value;
    box.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
    if (options.some(([value]) => String(value) === before)) box.value = before;
    box.closest("label").hidden = options.length < 2;
  }

  const distinct = (values) => [...new Set(values)].sort((a, b) => a - b).map((value) => [value, value]);

  // The cells that stand beside each other: those of the chosen k and seed, and of methods that use no shots.
  const shown = () => targets[target.value].cells
    .filter((cell) => cell.k === 0 || (cell.k === Number(k.value) && cell.seed === Number(seed.value)))
    .sort((a, b) => a.method - b.method);

  function refill() {
    const { cells } = targets[target.value], used = cells.filter((cell) => cell.k > 0);
    fill(k, distinct((used.length ? used : cells).map((cell) => cell.k)));
    fill(seed, distinct((used.length ? used.filter((cell) => cell.k === Number(k.value)) : cells).map((cell) => cell.seed)));
    fill(missed, [["", "any or none"], ["all", "every method"], ...shown().map((cell) => [cell.method, methods[cell.method]])]);
  }

  // The examples that pass all filters, by their places.
  function chosen() {
    const { texts, golds, words } = targets[target.value], cells = shown(), wanted = search.value.toLowerCase();
    return texts.map((_, i) => i).filter((i) => {
      const asked = cells.filter((cell) => cell.given[i] !== null);
      const answers = asked.map((cell) => words[cell.given[i]]);
      const one = cells.find((cell) => String(cell.method) === missed.value);
      if (missed.value === "all" && !(asked.length && asked.every((cell) => cell.right[i] === "0"))) return false;
      if (one && one.right[i] !== "0") return false;
      if (disagree.checked && new Set(answers).size < 2) return false;
      return [texts[i], ...golds[i].map((w) => words[w]), ...answers].some((text) => text.toLowerCase().includes(wanted));
    });
  }

  function card(i) {
    const { texts, golds, words, isChoice } = targets[target.value];
    const article = make("article", "", { class: "example" });
    const text = make("p", texts[i], { class: "text", dir: "auto" });
    if (texts[i].length > 500 || texts[i].split("\n").length > 8) { // it may scroll, so the keyboard must reach it
      for (const [name, value] of [["tabindex", "0"], ["role", "region"], ["aria-label", "text of the example"]]) text.setAttribute(name, value);
    }
    const gold = make("p", "gold: ");
    gold.append(make("strong", golds[i].map((w) => words[w]).join(" · "), { dir: "auto" }));
    const table = make("table", ""), heads = isChoice ? ["method", "answer", "probability", "of gold"] : ["method", "answer"];
    const head = table.createTHead().insertRow();
    heads.forEach((name, column) => head.append(make("th", name, { scope: "col", class: column > 1 ? "n" : "" })));
    const body = table.createTBody();
    for (const cell of shown()) {
      if (cell.given[i] === null) continue;
      const row = body.insertRow(), isRight = cell.right[i] === "1";
      const name = make("th", "", { scope: "row" }); // a long name breaks after an underscore
      methods[cell.method].split(/(?<=_)/).forEach((part, n) => name.append(...(n ? [make("wbr", "")] : []), part));
      row.append(name);
      const answer = make("td", "", { class: "answer" });
      answer.append(make("span", isRight ? "✓" : "✗", { class: isRight ? "better" : "worse", role: "img", "aria-label": isRight ? "right" : "wrong" }),
                    "\u00a0", make("bdi", words[cell.given[i]] || "(nothing)"));
      row.append(answer);
      if (isChoice) for (const shares of [cell.shares, cell.gold]) row.append(make("td", `${shares[i]}%`, { class: "n" }));
    }
    article.append(text, gold, table);
    return article;
  }

  function show(from = 0) {
    const found = chosen(), { texts, of } = targets[target.value];
    start = Math.max(0, Math.min(from, PAGE * Math.floor((found.length - 1) / PAGE)));
    const part = found.slice(start, start + PAGE), all = `${texts.length} of the ${of} test examples are here`;
    document.getElementById("explorer-status").textContent = found.length
      ? `${start + 1} to ${start + part.length} of ${found.length} that match; ${all}` : `none matches; ${all}`;
    list.replaceChildren(...part.map(card));
    previous.setAttribute("aria-disabled", start === 0); // a button that is disabled would lose the keyboard's place
    next.setAttribute("aria-disabled", start + PAGE >= found.length);
  }

  fill(target, targets.map(({ name }, i) => [i, name]));
  refill();
  show();
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    refill();
    show();
  });
  previous.addEventListener("click", () => show(start - PAGE));
  next.addEventListener("click", () => show(start + PAGE));
})();
