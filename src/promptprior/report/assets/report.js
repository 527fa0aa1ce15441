"use strict";
// Shows the figures that plots.py made. Colours are names of the style sheet, so that dark mode is defined in one place.
(() => {
  const page = document.getElementById("data").textContent;
  const coarse = window.matchMedia("(pointer: coarse)").matches; // a finger scrolls the page, not the plot
  const CONFIG = { responsive: true, displaylogo: false, displayModeBar: coarse ? false : "hover",
                   modeBarButtonsToRemove: ["toImage", "select2d", "lasso2d", "autoScale2d"] };

  // The JSON of the page anew, as plotly keeps what it is given, with the colours of now.
  function coloured() {
    const style = getComputedStyle(document.documentElement);
    return JSON.parse(page, (_, value) => typeof value === "string"
      ? value.replace(/^var\((--[\w-]+)\)$/, (_, name) => style.getPropertyValue(name).trim()) : value);
  }

  let { figures, parts, template } = coloured();

  // A value of the page with all that it shares with others in its place (share_parts of plots.py); a fresh copy.
  function whole(value) {
    if (Array.isArray(value)) return value.map(whole);
    if (value === null || typeof value !== "object") return value;
    const { $: part, ...own } = value, entries = Object.entries(own).map(([name, inner]) => [name, whole(inner)]);
    if (part === undefined) return Object.fromEntries(entries);
    const shared = whole(parts[part]);
    return entries.length ? { ...shared, ...Object.fromEntries(entries) } : shared;
  }

  function draw(figure) {
    const chosen = [...figure.querySelectorAll("select")].map((box) => box.selectedIndex).join("|");
    const { data, layout } = whole(figures[figure.dataset.plot].views[chosen]);
    const base = template.layout;
    base.font = { ...base.font, family: getComputedStyle(document.body).fontFamily, size: window.innerWidth < 640 ? 12 : 13 };
    if (coarse) [base.dragmode, base.xaxis.fixedrange, base.yaxis.fixedrange] = [false, true, true];
    return Plotly.react(figure.querySelector(".plot"), data, { ...layout, template }, CONFIG);
  }

  function addControl(figure, { label, options, start }) {
    const [box, words] = [document.createElement("select"), document.createElement("label")];
    options.forEach((text) => box.add(new Option(text)));
    box.selectedIndex = start;
    box.addEventListener("change", () => draw(figure));
    words.append(label, box);
    words.hidden = options.length < 2;
    figure.querySelector(".controls").append(words);
  }

  // A button that saves the figure as it is shown, on the page's ground instead of none.
  function addExport(figure, format) {
    const button = document.createElement("button");
    [button.type, button.textContent] = ["button", format.toUpperCase()];
    button.setAttribute("aria-label", `save ${figure.querySelector("h3").textContent} as ${format.toUpperCase()}`);
    button.addEventListener("click", () => {
      const plot = figure.querySelector(".plot"), { width, height } = plot.getBoundingClientRect();
      const layout = { ...plot.layout, paper_bgcolor: getComputedStyle(document.body).backgroundColor };
      Plotly.downloadImage({ data: plot.data, layout, config: { displaylogo: false } },
        { format, width, height, scale: format === "png" ? 2 : 1, filename: `${document.title} ${figure.dataset.plot}` });
    });
    figure.querySelector(".export").append(button);
  }

  const shown = [...document.querySelectorAll("figure[data-plot]")];
  shown.forEach((figure) => {
    whole(figures[figure.dataset.plot].controls).forEach((control) => addControl(figure, control));
    ["png", "svg"].forEach((format) => addExport(figure, format));
    draw(figure);
  });
  const redraw = () => {
    ({ figures, parts, template } = coloured());
    shown.forEach(draw);
  };
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  window.matchMedia("(max-width: 639px)").addEventListener("change", redraw);
})();
