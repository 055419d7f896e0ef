// Draws the report. Texts of a policy or a judge only ever become text nodes: nothing here writes markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const COLOURS = 6;
  const tip = document.getElementById("tip");

  function el(name, attributes, ...children) {
    return filled(document.createElement(name), attributes, children);
  }
  function svg(name, attributes, ...children) {
    return filled(document.createElementNS(SVG, name), attributes, children);
  }
  function filled(node, attributes, children) {
    for (const [key, value] of Object.entries(attributes || {})) {
      if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : String(value));
    }
    for (const child of children.flat()) {
      if (child !== null && child !== undefined) node.append(typeof child === "object" ? child : String(child));
    }
    return node;
  }
  const known = (value) => typeof value === "number" && Number.isFinite(value);
  function said(value) {
    if (!known(value)) return "–";
    const size = Math.abs(value);
    if (value !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(1);
    if (Number.isInteger(value)) return value.toLocaleString("en");
    return value.toLocaleString("en", { maximumFractionDigits: size < 1 ? 3 : size < 100 ? 2 : 0 });
  }

  // -- theme ---------------------------------------------------------------------------------------------------------

  const themeButton = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  function showTheme() {
    const dark = chosen ? chosen === "dark" : system.matches;
    document.documentElement.setAttribute("data-theme", dark ? "dark" : "light");
    themeButton.textContent = dark ? "Light" : "Dark";
  }
  themeButton.addEventListener("click", () => {
    chosen = document.documentElement.getAttribute("data-theme") === "dark" ? "light" : "dark";
    showTheme();
  });
  system.addEventListener("change", showTheme);
  showTheme();

  // -- head ----------------------------------------------------------------------------------------------------------

  const about = Object.entries(data.about).map(([key, value]) => `${key} ${value}`);
  document.getElementById("about").textContent =
    [`${data.started} to ${data.ended}`, `reward “${data.name}”`, ...about].join("  ·  ");
  for (const finding of data.findings) {
    document.getElementById("findings").append(el("p", { class: `finding ${finding.level}` }, finding.text));
  }
  for (const tile of data.tiles) {
    document.getElementById("tiles").append(el("div", { class: "tile" },
      el("div", { class: "name" }, tile.name), el("div", { class: "value" }, tile.value), el("div", { class: "note" }, tile.note)));
  }

  // -- charts --------------------------------------------------------------------------------------------------------

  function ticks(low, high, count, whole) {
    const rough = (high - low) / count || 1;
    const unit = 10 ** Math.floor(Math.log10(rough));
    let step = [1, 2, 2.5, 5, 10].map((factor) => factor * unit).find((size) => size >= rough * 0.999);
    if (whole) step = Math.max(1, Math.round(step));
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
    return found;
  }
  function range(values, low, high) {
    const all = values.filter(known);
    let from = known(low) ? low : Math.min(...all);
    let to = known(high) ? high : Math.max(...all);
    if (from === to) {
      const pad = Math.abs(from) * 0.1 || 1;
      to += pad;
      if (!known(low)) from -= pad;
    } else {
      if (!known(high)) to += (to - from) * 0.06;
      if (!known(low)) from -= (to - from) * 0.06;
    }
    return [from, to];
  }
  function stacked(series) {
    const base = new Map();
    return series.map((one) => {
      const low = [], high = [];
      one.x.forEach((x, i) => {
        const under = base.get(x) || 0;
        low.push(under);
        high.push(under + (one.y[i] || 0));
        base.set(x, under + (one.y[i] || 0));
      });
      return { ...one, low, high };
    });
  }
  function path(points) {  // null breaks a line
    let d = "", pen = false;
    for (const point of points) {
      if (!point) { pen = false; continue; }
      d += `${pen ? "L" : "M"}${point[0].toFixed(1)} ${point[1].toFixed(1)}`;
      pen = true;
    }
    return d;
  }
  function areas(xs, low, high) {  // one polygon for every unbroken stretch
    const shapes = [];
    let run = [];
    const end = () => {
      if (run.length > 1) {
        const back = [...run].reverse();
        shapes.push(`${path(run.map((i) => [xs[i], high[i]]))}L${path(back.map((i) => [xs[i], low[i]])).slice(1)}Z`);
      }
      run = [];
    };
    xs.forEach((_, i) => (low[i] === null || high[i] === null ? end() : run.push(i)));
    end();
    return shapes;
  }

  function drawChart(figure, chart) {
    const holder = el("div", { class: "plot" });
    const legend = el("ul", { class: "legend" });
    const caption = el("figcaption", {}, el("h3", {}, chart.title), el("p", { class: "note" }, chart.note));
    const values = el("details", {}, el("summary", {}, "Values"));
    values.addEventListener("toggle", () => {
      if (values.open && values.children.length === 1) values.append(valueTable(chart));
    });
    figure.append(caption, legend, holder, values);
    chart.series.forEach((one, s) => {
      const last = one.y.filter(known).at(-1);
      const end = chart.kind === "scatter" ? `${one.y.filter(known).length} completions` : said(last);
      legend.append(el("li", {}, el("i", { class: `f${s % COLOURS}` }), `${one.name} `, el("b", {}, end)));
    });
    let width = 0;
    new ResizeObserver((entries) => {
      const now = Math.floor(entries[0].contentRect.width);
      if (now > 0 && now !== width) {
        width = now;
        holder.replaceChildren(plot(chart, width));
      }
    }).observe(holder);
  }

  function plot(chart, width) {
    const height = 210, left = 46, right = 10, top = 18, bottom = 36;
    const series = chart.kind === "stack" ? stacked(chart.series) : chart.series;
    const scatter = chart.kind === "scatter";
    const xs = series.flatMap((one) => one.x);
    const bounds = series.flatMap((one) => [...(chart.kind === "stack" ? [] : one.y), ...(one.low || []), ...(one.high || [])]);
    const [low, high] = range(bounds, chart.low, chart.high);
    let [from, to] = [Math.min(...xs.filter(known)), Math.max(...xs.filter(known))];
    if (from === to) { from -= 1; to += 1; }
    const X = (x) => left + ((x - from) / (to - from)) * (width - left - right);
    const Y = (y) => top + (1 - (y - low) / (high - low)) * (height - top - bottom);
    const at = (y) => (known(y) ? Y(y) : null);
    const words = series.map((one) => `${one.name}: last ${said(one.y.filter(known).at(-1))}`).join("; ");
    const root = svg("svg", {
      viewBox: `0 0 ${width} ${height}`, height, role: "img", tabindex: 0, class: scatter ? "scatter" : "lines",
      "aria-label": `${chart.title}. ${words}.`,
    });
    for (const tick of ticks(low, high, 4)) {
      root.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: Y(tick), y2: Y(tick) }),
        svg("text", { x: left - 7, y: Y(tick) + 4, "text-anchor": "end" }, said(tick)));
    }
    for (const tick of ticks(from, to, Math.max(2, Math.floor(width / 90)), !scatter)) {
      if (tick >= from && tick <= to) root.append(svg("text", { x: X(tick), y: height - bottom + 17, "text-anchor": "middle" }, said(tick)));
    }
    root.append(svg("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, chart.x_label || "step"));
    if (chart.unit) root.append(svg("text", { x: 0, y: 9 }, chart.unit));
    if (chart.zero && low < 0 && high > 0) root.append(svg("line", { class: "zero", x1: left, x2: width - right, y1: Y(0), y2: Y(0) }));
    series.forEach((one, s) => {
      const colour = s % COLOURS;
      const px = one.x.map(X);
      if (one.low) {
        for (const d of areas(px, one.low.map(at), one.high.map(at))) {
          root.append(svg("path", { class: chart.kind === "stack" ? `area f${colour}` : "band", d }));
        }
      }
      const heights = chart.kind === "stack" ? one.high : one.y;
      if (!scatter) {
        const points = px.map((x, i) => (known(heights[i]) ? [x, Y(heights[i])] : null));
        root.append(svg("path", { class: `line s${colour}`, d: path(points) }));
      }
      if (scatter || one.x.length <= 40) {
        one.x.forEach((_, i) => {
          if (known(heights[i])) root.append(svg("circle", { class: `f${colour}`, cx: px[i].toFixed(1), cy: Y(heights[i]).toFixed(1), r: scatter ? 3 : 2.5 }));
        });
      }
    });
    if (!scatter) readable(root, chart, X, [top, height - bottom], [left, width - right], [from, to]);
    return root;
  }

  function readable(root, chart, X, [top, bottom], [left, right], [from, to]) {
    const steps = [...new Set(chart.series.flatMap((one) => one.x))].filter(known).sort((a, b) => a - b);
    const cursor = svg("line", { class: "cursor", y1: top, y2: bottom, visibility: "hidden" });
    root.append(cursor);
    let index = -1;
    function show(to) {
      index = Math.max(0, Math.min(steps.length - 1, to));
      const step = steps[index];
      cursor.setAttribute("x1", X(step));
      cursor.setAttribute("x2", X(step));
      cursor.setAttribute("visibility", "visible");
      const rows = chart.series.map((one) => {
        const place = one.x.indexOf(step);
        return place < 0 ? null : `${one.name}  ${said(one.y[place])}`;
      });
      const box = root.getBoundingClientRect();
      place(`step ${said(Math.round(step))}\n${rows.filter((row) => row !== null).join("\n")}`, box.left + X(step), box.top + top);
    }
    function hide() {
      cursor.setAttribute("visibility", "hidden");
      tip.hidden = true;
      index = -1;
    }
    root.addEventListener("pointermove", (event) => {
      const x = from + ((event.clientX - root.getBoundingClientRect().left - left) / (right - left)) * (to - from);
      let best = 0;
      steps.forEach((step, i) => { if (Math.abs(step - x) < Math.abs(steps[best] - x)) best = i; });
      show(best);
    });
    root.addEventListener("pointerleave", hide);
    root.addEventListener("blur", hide);
    root.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: index + 1, ArrowLeft: index < 0 ? steps.length - 1 : index - 1, Home: 0, End: steps.length - 1 };
      if (event.key in moves) { event.preventDefault(); show(moves[event.key]); }
      if (event.key === "Escape") hide();
    });
  }
  function place(text, x, y) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(window.innerWidth - box.width - 4, x + 14))}px`;
    tip.style.top = `${Math.max(4, Math.min(window.innerHeight - box.height - 4, y))}px`;
  }
  function valueTable(chart) {
    const body = el("tbody");
    const steps = [...new Set(chart.series.flatMap((one) => one.x))].filter(known).sort((a, b) => a - b).slice(0, 1500);
    const places = chart.series.map((one) => new Map(one.x.map((x, i) => [x, one.y[i]])));
    for (const step of steps) {
      body.append(el("tr", {}, el("th", { scope: "row" }, said(step)), places.map((of) => el("td", {}, said(of.get(step))))));
    }
    const head = el("tr", {}, el("th", { scope: "col" }, chart.x_label || "step"), chart.series.map((one) => el("th", { scope: "col" }, one.name)));
    return el("div", { class: "values", tabindex: 0, role: "region", "aria-label": `Values of ${chart.title}` }, el("table", {}, el("thead", {}, head), body));
  }
  for (const chart of data.charts) {
    const figure = el("figure", { class: "card" });
    document.getElementById("charts").append(figure);
    drawChart(figure, chart);
  }

  // -- groups --------------------------------------------------------------------------------------------------------

  const list = document.getElementById("list");
  const article = document.getElementById("group");
  const shownOf = data.groups.length < data.logged ? `${data.groups.length} of the ${data.logged} logged, evenly over the run` : `${data.groups.length} logged`;
  document.getElementById("groups-note").textContent =
    data.groups.length ? `${shownOf}. Arrow keys move through the list.` : "No group was logged in this run.";

  const failedOf = (group) => group.verdicts.filter((verdict) => verdict.outcome === "failed").length;
  function marksOf(group) {
    const failed = failedOf(group);
    const marks = [];
    if (failed) marks.push(["bad", failed === group.verdicts.length ? "all failed" : `${failed} failed`]);
    const sanitized = group.candidates.filter((one) => one.marks.includes("sanitized")).length;
    if (sanitized) marks.push(["warn", `${sanitized} sanitized`]);
    const cut = group.candidates.filter((one) => one.marks.includes("cut")).length;
    if (cut) marks.push(["warn", `${cut} cut`]);
    return marks;
  }
  const buttons = data.groups.map((group, index) => {
    const button = el("button", { type: "button", "data-index": index },
      el("span", { class: "step" }, `step ${group.step}${group.mode === "train" ? "" : ` · ${group.mode}`}`,
        marksOf(group).map(([level, text]) => el("span", { class: `tag ${level}` }, text))),
      el("span", { class: "said" }, group.prompt.trim().slice(0, 160) || "(no prompt)"));
    button.addEventListener("click", () => open(index));
    list.append(el("li", {}, button));
    return button;
  });
  list.addEventListener("keydown", (event) => {
    const visible = buttons.filter((button) => !button.parentElement.hidden);
    const at = visible.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: visible.length - 1 }[event.key];
    if (to === undefined || !visible[to]) return;
    event.preventDefault();
    visible[to].focus();
  });
  const haystacks = data.groups.map((group) => [`step ${group.step}`, group.mode, group.key, group.prompt, ...marksOf(group).map((mark) => mark[1]),
    ...group.candidates.map((one) => one.text)].join("\n").toLowerCase());
  document.getElementById("filter").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    buttons.forEach((button, index) => { button.parentElement.hidden = !haystacks[index].includes(wanted); });
  });

  const called = (slot) => (slot < 0 ? `anchor ${-slot}` : `#${slot}`);
  const texts = (label, text) => [el("h4", {}, label), el("p", { class: "text", tabindex: 0 }, text)];

  function open(index) {
    const group = data.groups[index];
    buttons.forEach((button, i) => button.setAttribute("aria-current", i === index ? "true" : "false"));
    const order = group.candidates.map((_, i) => i).sort((a, b) => {
      const [x, y] = [group.candidates[a].score, group.candidates[b].score];
      return (known(y) ? y : -Infinity) - (known(x) ? x : -Infinity) || a - b;
    });
    const parts = [el("h3", {}, `Step ${group.step}, ${group.mode}`), el("p", { class: "muted" }, `group ${group.key}`),
      ...texts("Prompt", group.prompt || "(empty)")];
    if (group.reference) parts.push(...texts("Reference answer", group.reference));
    if (group.rubric) parts.push(...texts("Criteria", group.rubric));
    (group.anchors || []).forEach((one, i) => parts.push(...texts(
      `${called(-1 - i)[0].toUpperCase()}${called(-1 - i).slice(1)}, score ${said(one.score)}: scores are relative to the anchors`, one.text)));
    parts.push(...pictureOf(group, order), el("h4", {}, "Candidates, best first"));
    if (!group.candidates.length) parts.push(el("p", { class: "muted" }, "This group has no candidates."));
    parts.push(...order.map((i) => candidateOf(group.candidates[i], i)));
    if (group.size > group.candidates.length) {
      parts.push(el("p", { class: "muted" }, `${group.size - group.candidates.length} more candidates were not logged.`));
    }
    parts.push(...verdictsOf(group));
    article.replaceChildren(...parts);
  }

  function candidateOf(one, index) {
    const meanings = { sanitized: "markers sanitized", cut: "not judged whole", forfeit: "no answer: loses unseen" };
    const tags = one.marks.map((mark) => el("span", { class: `tag ${mark === "forfeit" ? "" : "warn"}` }, meanings[mark] || mark));
    if (one.chars > one.text.length) tags.push(el("span", { class: "tag" }, `shortened here: ${one.chars.toLocaleString("en")} characters`));
    if (!known(one.score)) tags.push(el("span", { class: "tag bad" }, "no score"));
    return el("section", { class: "candidate" },
      el("header", {}, el("strong", {}, `#${index}`), el("span", {}, `score ${said(one.score)}`), el("span", {}, `reward ${said(one.reward)}`),
        el("span", { class: "muted" }, `length ${said(one.length)}`), el("span", { class: "muted" }, `${said(one.games)} games`), tags),
      el("p", { class: "text", tabindex: 0 }, one.text || "(empty)"));
  }

  function byCriterion(group) {
    const rows = group.criteria.map((one) => {
      const best = Math.max(...one.scores.filter(known));
      const cells = one.scores.map((score) => el("td", known(score) && score === best ? { class: "best" } : {}, known(score) ? said(score) : "·"));
      return el("tr", {}, el("th", { scope: "row" }, one.name), el("td", {}, said(one.weight)), cells, el("td", {}, `${one.failed} of ${one.comparisons}`));
    });
    const heads = ["", "weight", ...group.candidates.map((_, i) => `#${i}`), "failed"].map((text) => el("th", { scope: "col" }, text));
    return el("div", { class: "matrix", tabindex: 0, role: "region", "aria-label": "Scores by criterion" }, el("table", {},
      el("caption", {}, "How far each candidate meets a criterion; of one with a negative weight less is better"),
      el("thead", {}, el("tr", {}, heads)), el("tbody", {}, rows)));
  }
  function pictureOf(group, order) {
    if ((group.criteria || []).length) return [el("h4", {}, "Who met which criterion"), el("div", { class: "picture" }, byCriterion(group))];
    const rated = order.filter((i) => known(group.candidates[i].strength));
    if (rated.length < 2) {
      const why = group.candidates.length < 2 && !(group.anchors || []).length ? "One candidate or none: nothing to compare."
        : group.verdicts.length && failedOf(group) === group.verdicts.length ? "Every judgement of this group failed: nothing is known about it."
          : "No games between these candidates were logged.";
      return [el("h4", {}, "Who beat whom"), el("p", { class: "muted" }, why)];
    }
    rated.sort((a, b) => group.candidates[b].strength - group.candidates[a].strength);
    return [el("h4", {}, "Who beat whom"), el("div", { class: "picture" }, strengths(group, rated), matrix(group, rated))];
  }
  function strengths(group, rated) {
    const width = 420, row = 34, left = 42, right = 16, height = rated.length * row + 44;
    const ends = rated.flatMap((i) => [group.candidates[i].strength - group.candidates[i].error, group.candidates[i].strength + group.candidates[i].error]);
    const [low, high] = range([...ends, 0]);
    const X = (value) => left + ((value - low) / (high - low)) * (width - left - right);
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", class: "strengths",
      "aria-label": `Bradley-Terry strengths: ${rated.map((i) => `#${i} ${said(group.candidates[i].strength)} ± ${said(group.candidates[i].error)}`).join(", ")}` });
    const bottom = rated.length * row;
    for (const tick of ticks(low, high, 4)) {
      root.append(svg("line", { class: tick === 0 ? "zero" : "grid", x1: X(tick), x2: X(tick), y1: 4, y2: bottom }),
        svg("text", { x: X(tick), y: bottom + 17, "text-anchor": "middle" }, said(tick)));
    }
    rated.forEach((i, at) => {
      const { strength, error } = group.candidates[i];
      const y = at * row + row / 2;
      root.append(svg("text", { class: "ink", x: 6, y: y + 4 }, `#${i}`),
        svg("line", { class: "line s0", x1: X(strength - error), x2: X(strength + error), y1: y, y2: y }),
        svg("circle", { class: "f0", cx: X(strength), cy: y, r: 5 }, svg("title", {}, `#${i}: ${said(strength)} ± ${said(error)}`)));
    });
    root.append(svg("text", { x: (left + width - right) / 2, y: bottom + 36, "text-anchor": "middle" }, "Bradley-Terry strength ± standard error (log-odds)"));
    return root;
  }
  function matrix(group, rated) {
    const rows = rated.map((i) => el("tr", {}, el("th", { scope: "row" }, `#${i}`), rated.map((j) => {
      const games = group.games[i][j], wins = group.wins[i][j];
      if (i === j || !games) return el("td", { class: "none" }, i === j ? "" : "·");
      const cell = el("td", { title: `#${i} won ${said(wins)} of ${said(games)} against #${j}` }, said(Math.round((wins / games) * 100) / 100));
      const lean = wins / games - 0.5;
      cell.style.backgroundColor = `rgba(var(${lean >= 0 ? "--win" : "--loss"}), ${(Math.abs(lean) * 0.9).toFixed(2)})`;
      return cell;
    })));
    return el("div", { class: "matrix", tabindex: 0, role: "region", "aria-label": "Who beat whom" }, el("table", {},
      el("caption", {}, "Share of its games that the row won against the column"),
      el("thead", {}, el("tr", {}, el("td", { class: "none" }), rated.map((j) => el("th", { scope: "col" }, `#${j}`)))), el("tbody", {}, rows)));
  }

  function verdictsOf(group) {
    const parts = [el("h4", {}, `Verdicts and reasoning (${group.judged})`)];
    if (!group.verdicts.length) parts.push(el("p", { class: "muted" }, "The judge was not asked about this group."));
    group.verdicts.forEach((verdict, index) => {
      const [level, outcome] = outcomeOf(verdict);
      const shown = verdict.candidates.map(called).join(" against ");
      const reasoning = verdict.rationale || verdict.detail;
      parts.push(el("details", { class: "verdict", open: index === 0 },
        el("summary", {}, `${verdict.criterion ? `${verdict.criterion}: ` : ""}${shown}  `, el("span", { class: `tag ${level}` }, outcome)),
        el("p", { class: "text", tabindex: 0 }, reasoning || "The judge wrote no reasoning: its verdict was read from label probabilities.")));
    });
    if (group.judged > group.verdicts.length) parts.push(el("p", { class: "muted" }, `${group.judged - group.verdicts.length} more verdicts were not logged.`));
    return parts;
  }
  function outcomeOf(verdict) {
    const slots = verdict.candidates;
    if (verdict.outcome === "failed") return ["bad", `failed: ${verdict.reason}`];
    if (verdict.outcome === "tie") return ["", "tie"];
    if (verdict.order) return ["good", verdict.order.map((tier) => tier.map(called).join(" = ")).join(" > ")];
    if (verdict.scores) return ["good", slots.map((i, k) => `${called(i)}: ${said(verdict.scores[k])}`).join(", ")];
    const values = verdict.probabilities || [];
    const best = values.indexOf(Math.max(...values));
    return ["good", `prefers ${called(slots[best])}${values[best] === 1 ? "" : ` (${said(values[best])})`}`];
  }

  if (data.groups.length) open(0);
  else article.append(el("p", { class: "muted" }, "No group was logged in this run."));
})();
