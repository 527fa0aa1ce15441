"use strict";
// Draws the plots from the JSON beside it. Colours come from the style sheet, so that dark mode is one place.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SYMBOLS = ["circle", "diamond", "square", "triangle-up", "cross", "star", "pentagon", "hexagon"];
  const COLOURS = 8;
  const narrow = () => window.innerWidth < 640;
  const coarse = window.matchMedia("(pointer: coarse)").matches; // a finger scrolls the page, not the plot
  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const clipped = (name) => (name.length > 40 ? `${name.slice(0, 38)}…` : name);
  const faded = (colour, share) => colour + Math.round(share * 255).toString(16).padStart(2, "0");
  const places = (value) => (value === null ? "–" : value.toFixed(3).replace("-", "−"));
  const others = data.methods.filter((m) => !m.baseline).map((m) => m.name);
  const largestK = data.ks[data.ks.length - 1];

  function look(index) {
    const method = data.methods[index];
    const place = others.indexOf(method.name);
    const colour = method.baseline ? ink("m-base") : ink(`m${place % COLOURS}`);
    return { colour, symbol: method.baseline ? "circle-open" : SYMBOLS[place % SYMBOLS.length] };
  }

  function base(height) {
    const axis = {
      gridcolor: ink("line"), linecolor: ink("line"), zeroline: false, automargin: true, fixedrange: coarse,
    };
    return {
      height, autosize: true, dragmode: coarse ? false : "zoom", hovermode: "closest",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink("ink"), size: narrow() ? 12 : 13, family: getComputedStyle(document.body).fontFamily },
      margin: { l: 8, r: 20, t: 12, b: 40 },
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", itemwidth: 30 },
      hoverlabel: { bgcolor: ink("raised"), bordercolor: ink("line"), font: { color: ink("ink") } },
      xaxis: { ...axis }, yaxis: { ...axis },
    };
  }

  const spread = (cells, side) =>
    cells.map((c) => (c.low === null ? 0 : side === "up" ? c.high - c.mean : c.mean - c.low));
  const bars = (cells, colour) =>
    ({ type: "data", symmetric: false, array: spread(cells, "up"), arrayminus: spread(cells, "down"), color: colour,
       thickness: 1.5, width: 0 });
  const told = (c) =>
    `${plain(data.methods[c.method].name)}<br>${places(c.mean)}` +
    (c.low === null ? " (one run)" : ` [${places(c.low)}, ${places(c.high)}], ${c.n} runs`);

  // The range of all runs, and of intervals as far as they do not dwarf it: those of two seeds can be many times wider.
  function reach(cells) {
    const runs = cells.flatMap((c) => c.runs.map((r) => r.score));
    const [low, high] = [Math.min(...runs), Math.max(...runs)];
    const room = 0.3 * Math.max(high - low, 0.1);
    const ends = (side) => cells.map((c) => c[side] ?? c.mean);
    return [Math.max(low - room, Math.min(low, ...ends("low"))) - room / 6,
            Math.min(high + room, Math.max(high, ...ends("high"))) + room / 6];
  }

  // Score by method and target: one band per target, methods dodged inside it, its name written on top.
  function scores({ k }) {
    const count = data.methods.length;
    const shift = (m) => (count > 1 ? 0.56 * (m / (count - 1)) - 0.2 : 0);
    const traces = data.methods.flatMap((method, m) => {
      const cells = data.cells.filter((c) => c.method === m && c.k === k);
      const { colour, symbol } = look(m);
      const runs = cells.flatMap((c) => c.runs.map((r) => ({ ...r, target: c.target })));
      const common = { type: "scatter", mode: "markers", name: plain(clipped(method.name)), legendgroup: method.name };
      return [
        { ...common, showlegend: false, hoverinfo: "text", x: runs.map((r) => r.score),
          y: runs.map((r) => r.target + shift(m)),
          marker: { size: 6, symbol: "line-ns", line: { width: 1.5, color: faded(colour, 0.75) } },
          text: runs.map((r) => `${plain(method.name)}<br>seed ${r.seed}: ${places(r.score)}`) },
        { ...common, x: cells.map((c) => c.mean), y: cells.map((c) => c.target + shift(m)), hoverinfo: "text",
          text: cells.map((c) => `${plain(data.targets[c.target].name)}<br>${told(c)}`),
          marker: { size: 10, color: colour, symbol, line: { width: 1.5, color: colour } }, error_x: bars(cells, colour) },
      ];
    });
    const layout = base(110 + data.targets.length * (30 + 17 * count));
    layout.yaxis = { ...layout.yaxis, showticklabels: false, showgrid: false, fixedrange: true,
                     range: [data.targets.length - 0.5, -0.62] };
    layout.xaxis.title = { text: "score on test" };
    layout.xaxis.range = reach(data.cells.filter((c) => c.k === k));
    layout.annotations = data.targets.map((t, i) => ({
      xref: "paper", x: 0, xanchor: "left", y: i - 0.4, showarrow: false, align: "left",
      text: `<b>${plain(clipped(t.name))}</b>  ${plain(t.metric)}`, font: { color: ink("muted"), size: 12 },
    }));
    layout.shapes = data.targets.slice(1).map((_, i) => ({
      type: "line", xref: "paper", x0: 0, x1: 1, y0: i + 0.5 + 0.02, y1: i + 0.5 + 0.02,
      line: { color: ink("line"), width: 1 },
    }));
    return { traces, layout };
  }

  // Few-shot curves: score against k on one target, or the mean over all; what trains nothing is a level line.
  function shots({ target }) {
    const found = target === "mean" ? data.means : data.cells.filter((c) => c.target === target);
    const untrained = (m) => !data.cells.some((c) => c.method === m && c.trained);
    const traces = data.methods.flatMap((method, m) => {
      const cells = found.filter((c) => c.method === m);
      const { colour, symbol } = look(m);
      return cells.length ? [{
        type: "scatter", mode: untrained(m) ? "lines" : "lines+markers", name: plain(clipped(method.name)),
        x: cells.map((c) => c.k), y: cells.map((c) => c.mean), hoverinfo: "text",
        text: cells.map((c) => `k = ${c.k}<br>${told(c)}`),
        line: { color: colour, width: 2, dash: untrained(m) ? "dash" : "solid" },
        marker: { color: colour, symbol, size: 9 }, error_y: untrained(m) ? undefined : bars(cells, colour),
      }] : [];
    });
    const layout = base(narrow() ? 380 : 440);
    layout.xaxis = { ...layout.xaxis, type: "log", tickvals: data.ks, ticktext: data.ks.map(String),
                     title: { text: "shots k" } };
    layout.yaxis.title = { text: "score on test" };
    return { traces, layout };
  }

  const CURVES = { dev_score: [2, "dev score"], dev_nll: [3, "dev NLL"], train_loss: [1, "training loss"] };
  const pointsOf = (run, column) => run.curve.filter((p) => p[column] !== null);

  // Learning curves of every method on one target: seeds thin, their mean thick.
  function curves({ target, k, what }) {
    const [column, label] = CURVES[what];
    const traces = data.cells.filter((c) => c.target === target && c.k === k).flatMap((cell) => {
      const runs = cell.runs.map((r) => ({ ...r, points: pointsOf(r, column) })).filter((r) => r.points.length);
      const { colour } = look(cell.method);
      const name = plain(clipped(data.methods[cell.method].name));
      const line = (points, extra) => ({
        type: "scatter", mode: "lines", name, legendgroup: cell.method, x: points.map((p) => p[0]),
        y: points.map((p) => p[column]), ...extra,
      });
      if (!runs.length) return [];
      return [
        ...runs.map((r) => line(r.points, { showlegend: false, line: { color: faded(colour, 0.35), width: 1 },
          hovertemplate: `${name}, seed ${r.seed}<br>step %{x}: %{y:.3f}<extra></extra>` })),
        line(meanCurve(runs, column), { line: { color: colour, width: 2.5 },
          hovertemplate: `${name}, mean<br>step %{x}: %{y:.3f}<extra></extra>` }),
      ];
    });
    const layout = base(narrow() ? 380 : 440);
    layout.xaxis.title = { text: "step" };
    layout.yaxis.title = { text: label };
    if (!traces.length) nothing(layout, "no learning curve is recorded here");
    return { traces, layout };
  }

  function meanCurve(runs, column) {
    const at = runs.map((r) => new Map(r.points.map((p) => [p[0], p[column]])));
    const steps = [...at[0].keys()].filter((step) => at.every((m) => m.has(step)));
    return steps.map((step) => {
      const point = [step, null, null, null];
      point[column] = at.reduce((sum, m) => sum + m.get(step), 0) / at.length;
      return point;
    });
  }

  const UNITS = { seconds: "seconds", tokens: "tokens read", rows: "rows read" };
  const SHARES = { share: "target and its share of the prior", target: "the target alone", whole: "target and whole prior" };
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

  // Cost against score: where a method stands, with and without what its sources cost, and the Pareto front.
  function cost({ k, unit, share }) {
    const borne = (run) => ({ share: 1 / run.shared, target: 0, whole: 1 })[share];
    const paid = (run) => run[unit][0] + run[unit][1] * borne(run);
    const best = data.means.filter((c) => c.k === k && c.offers[unit][share].front)
      .sort((a, b) => a.offers[unit][share].price - b.offers[unit][share].price);
    const front = { type: "scatter", mode: "lines", name: "Pareto front", hoverinfo: "skip",
      x: best.map((c) => c.offers[unit][share].price), y: best.map((c) => c.mean),
      line: { color: ink("muted"), width: 1.5, dash: "dot", shape: "hv" } };
    const traces = data.methods.flatMap((method, m) => {
      const cells = data.cells.filter((c) => c.method === m && c.k === k);
      const overall = data.means.find((c) => c.method === m && c.k === k);
      const { colour, symbol } = look(m);
      if (!cells.length) return [];
      const price = overall && overall.offers[unit][share].price;
      const common = { type: "scatter", mode: "markers", name: plain(clipped(method.name)), legendgroup: method.name,
                       hoverinfo: "text" };
      return [
        { ...common, showlegend: !overall, x: cells.map((c) => mean(c.runs.map(paid))), y: cells.map((c) => c.mean),
          text: cells.map((c) => `${plain(data.targets[c.target].name)}<br>${told(c)}`),
          cliponaxis: false, marker: { color: faded(colour, 0.4), symbol, size: 7, line: { width: 0 } } },
        ...(overall ? [{ ...common, x: [price], y: [overall.mean], error_y: bars([overall], colour),
          text: [`${told(overall)}<br>over ${overall.targets} targets, ${price.toPrecision(3)} ${UNITS[unit]}`],
          cliponaxis: false, marker: { color: colour, symbol, size: 14, line: { width: 2, color: colour } } }] : []),
      ];
    });
    const layout = base(narrow() ? 400 : 460);
    layout.xaxis.title = { text: `${UNITS[unit]} for ${SHARES[share]}` };
    layout.xaxis.rangemode = "tozero";
    layout.yaxis.title = { text: "score on test" };
    return { traces: best.length > 1 ? [front, ...traces] : traces, layout };
  }

  // Learning curves of adaptation: steps on a scale that shows 0, 1, 2, 5 as well as hundreds.
  function adaptation({ k }) {
    const found = data.tracks.filter((t) => t.k === k);
    const at = (step) => Math.log2(1 + step);
    const traces = found.map((track) => {
      const { colour, symbol } = look(track.method);
      const name = plain(clipped(data.methods[track.method].name));
      return {
        type: "scatter", mode: "lines+markers", name, x: track.points.map((p) => at(p.step)),
        y: track.points.map((p) => p.mean), hoverinfo: "text",
        text: track.points.map((p) => `step ${p.step}<br>${told({ ...p, method: track.method })}`),
        line: { color: colour, width: 2 }, marker: { color: colour, symbol, size: 8 }, error_y: bars(track.points, colour),
      };
    });
    const steps = [...new Set(found.flatMap((t) => t.points.map((p) => p.step)))].sort((a, b) => a - b);
    const shown = steps.filter((s, i) => i === 0 || i === steps.length - 1 || /^[125]0*$/.test(s) || steps.length < 10);
    const layout = base(narrow() ? 380 : 440);
    layout.xaxis = { ...layout.xaxis, tickvals: shown.map(at), ticktext: shown.map(String), title: { text: "steps" } };
    layout.yaxis.title = { text: "dev score, mean over targets" };
    if (!traces.length) nothing(layout, "no dev scores are recorded here");
    return { traces, layout };
  }

  // Mean ranks, the best on top; a shaded box holds methods that Nemenyi's test does not tell apart.
  function ranks({ k }) {
    const found = data.ranks.find((r) => r.k === k);
    const layout = base(120 + 30 * (found ? found.methods.length : 4));
    if (!found) {
      nothing(layout, "ranks need three methods and two targets that all have finished");
      return { traces: [{ type: "scatter", x: [], y: [] }], layout };
    }
    const names = found.methods.map((m) => plain(clipped(data.methods[m].name)));
    const traces = found.methods.map((m, place) => {
      const { colour, symbol } = look(m);
      return { type: "scatter", mode: "markers", showlegend: false, x: [found.ranks[place]], y: [place], hoverinfo: "text",
               text: [`${names[place]}<br>mean rank ${found.ranks[place].toFixed(2)}`], cliponaxis: false,
               marker: { color: colour, symbol, size: 12, line: { width: 2, color: colour } } };
    });
    layout.shapes = found.cliques.map(([first, last]) => ({
      type: "rect", layer: "below", x0: found.ranks[first] - 0.03, x1: found.ranks[last] + 0.03,
      y0: first - 0.3, y1: last + 0.3, fillcolor: faded(ink("muted"), 0.18), line: { width: 0 },
    }));
    layout.xaxis = { ...layout.xaxis, range: [0.8, found.methods.length + 0.2], dtick: 1, fixedrange: true,
      title: { text: `mean rank over ${found.targets} targets; critical difference ${found.critical.toFixed(2)}, ` +
                     `Friedman p ${found.p < 0.001 ? "< 0.001" : `= ${found.p.toFixed(3)}`}` } };
    layout.yaxis = { ...layout.yaxis, tickvals: names.map((_, i) => i), ticktext: names, fixedrange: true,
                     range: [names.length - 0.4, -0.6] };
    return { traces, layout };
  }

  const heat = (low, high) => (low < 0 ? [[0, ink("worse")], [-low / (high - low), ink("paper")], [1, ink("m0")]]
    : [[0, ink("paper")], [1, ink("m0")]]);

  function heatmap({ x, y, z, zmin, zmax, text, height }) {
    const layout = base(height);
    layout.xaxis = { ...layout.xaxis, showgrid: false, type: "category", fixedrange: true };
    layout.yaxis = { ...layout.yaxis, showgrid: false, type: "category", autorange: "reversed", fixedrange: true };
    const trace = { type: "heatmap", x: x.map((n) => plain(clipped(n))), y: y.map((n) => plain(clipped(n))), z, zmin, zmax,
      colorscale: heat(zmin, zmax), xgap: 1, ygap: 1, hoverinfo: "text", text,
      colorbar: { thickness: 12, outlinewidth: 0, len: 1, tickfont: { color: ink("ink") } } };
    return { traces: [trace], layout };
  }

  // Similarity of sources and targets by one measure.
  function similarity({ measure }) {
    const { sources, targets, measures } = data.similarity;
    const z = measures[measure];
    const most = Math.max(0.01, ...z.flat().map((v) => Math.abs(v ?? 0)));
    const least = z.flat().some((v) => v < 0) ? -most : 0;
    const text = z.map((row, s) => row.map((v, t) => `${plain(sources[s])} → ${plain(targets[t])}<br>${places(v)}`));
    const { traces, layout } = heatmap({ x: targets, y: sources, z, zmin: least, zmax: most, text,
      height: 150 + 28 * sources.length });
    layout.xaxis.tickangle = -35;
    return { traces, layout };
  }

  // Similarity against gain: one mark for each set of sources and target.
  function foretold({ measure }) {
    const found = data.similarity.points.filter((p) => p.measure === measure);
    const traces = found.map((one) => {
      const { colour, symbol } = look(one.method);
      const name = plain(clipped(data.methods[one.method].name));
      const rho = one.rho ? ` (ρ ${one.rho.mean.toFixed(2).replace("-", "−")})` : "";
      return { type: "scatter", mode: "markers", name: name + rho, x: one.x, y: one.y, hoverinfo: "text",
        text: one.targets.map((t, i) => `${name} on ${plain(t)}<br>similarity ${places(one.x[i])}, gain ${places(one.y[i])}`),
        marker: { color: colour, symbol, size: 10, line: { width: 1.5, color: colour } } };
    });
    const layout = base(narrow() ? 380 : 440);
    layout.xaxis.title = { text: `${measure} similarity` };
    layout.yaxis.title = { text: "gain over the baseline" };
    layout.yaxis.zeroline = true;
    layout.yaxis.zerolinecolor = ink("muted");
    layout.showlegend = true;
    return { traces, layout };
  }

  // Which tokens of a bank the texts of each task retrieve.
  function map({ which }) {
    const one = data.maps[which];
    const text = one.map.map((row, t) => row.map((v, i) => `${plain(one.tasks[t])}, token ${one.tokens[i]}<br>${places(v)}`));
    const { traces, layout } = heatmap({ x: one.tokens.map(String), y: one.tasks, z: one.map, zmin: 0, zmax: 1, text,
      height: 130 + 26 * one.tasks.length });
    layout.xaxis = { ...layout.xaxis, showticklabels: one.tokens.length <= 30,
      title: { text: `tokens, most used first: ${one.tokens.length} of ${one.used} used, of ${one.size}` } };
    traces[0].xgap = one.tokens.length > 60 ? 0 : 1;
    return { traces, layout };
  }

  function nothing(layout, text) {
    layout.annotations = [{ text, xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false,
                            font: { color: ink("muted") } }];
  }

  const allK = { key: "k", label: "k", options: data.ks.map((k) => [k, String(k)]), start: largestK };
  const allTargets = data.targets.map((t, i) => [i, t.name]);
  const firstTrained = Math.max(0, data.targets.findIndex((_, i) =>
    data.cells.some((c) => c.target === i && c.runs.some((r) => r.curve.length))));
  const measures = { key: "measure", label: "measure", start: "gradient",
    options: Object.keys(data.similarity ? data.similarity.measures : { gradient: 0 }).map((m) => [m, m]) };
  const PLOTS = {
    scores: { draw: scores, controls: [allK] },
    shots: { draw: shots, controls: [{ key: "target", label: "target",
      options: [...(data.means.length ? [["mean", "mean over targets"]] : []), ...allTargets] }] },
    curves: { draw: curves, controls: [{ key: "target", label: "target", options: allTargets, start: firstTrained },
      allK, { key: "what", label: "curve", options: Object.entries(CURVES).map(([key, [, label]]) => [key, label]) }] },
    cost: { draw: cost, controls: [allK, { key: "unit", label: "cost", options: Object.entries(UNITS) },
      { key: "share", label: "of", options: Object.entries(SHARES) }] },
    adaptation: { draw: adaptation, controls: [allK] },
    ranks: { draw: ranks, controls: [allK] },
    similarity: { draw: similarity, controls: [measures] },
    foretold: { draw: foretold, controls: [measures] },
    map: { draw: map, controls: [{ key: "which", label: "bank",
      options: data.maps.map((m, i) => [i, `${data.methods[m.method].name}, k = ${m.k}, seed ${m.seed}`]) }] },
  };

  const hasCurves = data.cells.some((c) => c.runs.some((r) => r.curve.length));
  const wanted = { scores: true, shots: data.ks.length > 1, curves: hasCurves, cost: true,
                   adaptation: data.tracks.some((t) => t.points.length > 1), ranks: data.ranks.length > 0,
                   similarity: data.similarity !== null, map: data.maps.length > 0,
                   foretold: data.similarity !== null && data.similarity.points.length > 0 };

  function select({ key, label, options, start }, state, redraw) {
    state[key] = start ?? options[0][0];
    if (options.length < 2) return null;
    const box = document.createElement("select");
    options.forEach(([, text], i) => box.add(new Option(text, i)));
    box.selectedIndex = options.findIndex(([value]) => value === state[key]);
    box.addEventListener("change", () => { state[key] = options[box.selectedIndex][0]; redraw(); });
    const wrapped = document.createElement("label");
    wrapped.append(label, box);
    return wrapped;
  }

  const CONFIG = { responsive: true, displaylogo: false, displayModeBar: coarse ? false : "hover",
                   modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

  function show(figure) {
    const { draw, controls } = PLOTS[figure.dataset.plot];
    const place = figure.querySelector(".plot");
    const state = {};
    const redraw = () => {
      const { traces, layout } = draw(state);
      return Plotly.react(place, traces, layout, CONFIG);
    };
    figure.querySelector(".controls").append(...controls.map((c) => select(c, state, redraw)).filter(Boolean));
    redraw();
    return redraw;
  }

  const figures = [...document.querySelectorAll("figure[data-plot]")];
  figures.filter((f) => !wanted[f.dataset.plot]).forEach((f) => f.remove());
  const redraws = figures.filter((f) => wanted[f.dataset.plot]).map(show);
  const again = () => redraws.forEach((redraw) => redraw());
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  window.matchMedia("(max-width: 639px)").addEventListener("change", again);
})();
