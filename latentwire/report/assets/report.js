"use strict";
/* Draws the charts of a report: curves over steps with zoom and hover, by mouse, touch and keys. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3]];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const all = []; // every chart, for repainting and for tests

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const ink = (index) => css(`--c${index % 8}`);

  function make(tag, options = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(options)) {
      if (name === "text") node.textContent = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }

  function number(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e5)) return String(Number(value.toPrecision(3)).toExponential());
    return String(Number(value.toPrecision(4)));
  }

  /* "B 120" for a place on the common axis of a run's stages. */
  function place(x, run) {
    const stages = Object.entries(data.runs[run].starts);
    let found = stages[0] || ["", 0];
    for (const stage of stages) if (x > stage[1]) found = stage;
    return `${found[0]} ${x - found[1]}`;
  }

  /* Curves with steps of their own on one axis: undefined is drawn over, null is a gap. */
  function joined(series) {
    const usable = series.map((one) => (one.x.length ? [one.x, one.y] : [[0], [null]]));
    return uPlot.join(usable, usable.map(() => [1]));
  }

  /* Points without a neighbour, which no line would show. */
  function lonely(plot, index) {
    const [xs, ys] = [plot.data[0], plot.data[index]];
    const found = [];
    let before = null; // the last point or gap, what is undefined left out
    let candidate = -1;
    for (let i = 0; i < xs.length; i++) {
      if (ys[i] === undefined) continue;
      if (ys[i] === null) {
        if (candidate >= 0) found.push(candidate);
        candidate = -1;
        before = null;
      } else {
        candidate = before === null ? i : -1;
        before = i;
      }
    }
    if (candidate >= 0) found.push(candidate);
    return found;
  }

  function drawExtras(chart) {
    return (plot) => {
      const context = plot.ctx;
      const { left, top, width, height } = plot.bbox;
      const ratio = devicePixelRatio || 1;
      context.save();
      context.beginPath();
      context.rect(left, top, width, height);
      context.clip();
      context.lineWidth = ratio;
      if (chart.kind === "points") drawPoints(chart, plot, context, ratio);
      else drawStages(chart, plot, context, ratio);
      context.restore();
    };
  }

  function drawStages(chart, plot, context, ratio) {
    const { top, height } = plot.bbox;
    const runs = [...new Set(chart.series.map((one) => one.run))];
    context.strokeStyle = css("--faint");
    context.fillStyle = css("--quiet");
    context.textAlign = "left";
    context.textBaseline = "alphabetic";
    context.font = `${11 * ratio}px system-ui, sans-serif`;
    const seen = new Set();
    for (const run of runs) {
      for (const [stage, start] of Object.entries(data.runs[run].starts)) {
        const key = `${stage} ${start}`;
        if (seen.has(key)) continue;
        seen.add(key);
        const x = Math.round(plot.valToPos(start, "x", true));
        context.setLineDash([3 * ratio, 3 * ratio]);
        context.beginPath();
        context.moveTo(x, top);
        context.lineTo(x, top + height);
        context.stroke();
        context.fillText(stage, x + 4 * ratio, top + 12 * ratio);
      }
    }
    context.setLineDash([]);
    context.lineWidth = 2 * ratio;
    chart.series.forEach((one, index) => {
      if (!plot.series[index + 1].show) return;
      context.strokeStyle = ink(one.colour);
      const y = top + height - (6 + 3 * (index % 4)) * ratio;
      for (const step of one.bad) {
        const x = plot.valToPos(step, "x", true);
        const size = 4 * ratio;
        context.beginPath();
        context.moveTo(x - size, y - size);
        context.lineTo(x + size, y + size);
        context.moveTo(x - size, y + size);
        context.lineTo(x + size, y - size);
        context.stroke();
      }
    });
  }

  function drawPoints(chart, plot, context, ratio) {
    const { left, width } = plot.bbox;
    chart.points.forEach((one, index) => {
      if (!plot.series[index + 1].show) return;
      context.strokeStyle = ink(one.colour);
      one.x.forEach((value, i) => {
        const x = plot.valToPos(value, "x", true);
        context.beginPath();
        context.moveTo(x, plot.valToPos(one.low[i], "y", true));
        context.lineTo(x, plot.valToPos(one.high[i], "y", true));
        context.stroke();
      });
      if (typeof one.reference === "number") {
        const y = plot.valToPos(one.reference, "y", true);
        context.setLineDash([6 * ratio, 4 * ratio]);
        context.beginPath();
        context.moveTo(left, y);
        context.lineTo(left + width, y);
        context.stroke();
        context.setLineDash([]);
      }
    });
  }

  class Chart {
    constructor(node, spec) {
      this.node = node;
      Object.assign(this, spec);
      if (this.kind === "points") this.series = this.points.map((p) => ({ ...p, run: 0, bad: [] }));
      const positive = this.series.some((one) => one.y.some((y) => y > 0));
      this.isLog = this.log && positive;
      this.shown = this.series.map(() => true);
      this.data = joined(this.series);
      this.build(positive);
      this.draw();
      all.push(this);
    }

    build(positive) {
      const button = (text, label, action) =>
        make("button", { type: "button", text, "aria-label": label, title: label, onclick: action });
      this.where = make("span", { class: "where", text: "" });
      const caption = this.node.closest("figure").querySelector("figcaption");
      for (const old of caption.querySelectorAll(".tools")) old.remove();
      const tools = make("span", { class: "tools" }, this.where);
      caption.append(tools);
      tools.append(
        button("−", `Zoom out: ${this.title}`, () => this.zoom(2)),
        button("+", `Zoom in: ${this.title}`, () => this.zoom(0.5)),
        button("↺", `Whole range: ${this.title}`, () => this.reset()),
      );
      if (positive && this.kind !== "points") {
        this.scaleButton = button(this.isLog ? "log" : "linear", `Scale: ${this.title}`, () => {
          this.isLog = !this.isLog;
          this.scaleButton.textContent = this.isLog ? "log" : "linear";
          this.draw();
        });
        tools.append(this.scaleButton);
      }
      this.canvas = make("div", {
        class: "canvas",
        tabindex: 0,
        role: "img",
        "aria-label":
          `Chart: ${this.title}; ${this.series.length} curves. ` +
          "Left and right move through the values, plus and minus zoom, 0 shows all.",
      });
      this.canvas.addEventListener("keydown", (event) => this.key(event));
      this.legend = make("ul", { class: "legend", "aria-live": "off" });
      this.values = this.series.map((one, index) => {
        const value = make("span", { class: "value", text: "" });
        const swatch = make("span", { class: `swatch d${one.dash % 4}` });
        swatch.style.setProperty("--own", `var(--c${one.colour % 8})`);
        const toggle = make(
          "button",
          { type: "button", "aria-pressed": "true", title: "show or hide" },
          swatch,
          make("span", { text: one.name }),
          value,
        );
        toggle.addEventListener("click", () => {
          this.shown[index] = !this.shown[index];
          toggle.setAttribute("aria-pressed", String(this.shown[index]));
          this.plot.setSeries(index + 1, { show: this.shown[index] });
        });
        this.legend.append(make("li", {}, toggle));
        return value;
      });
      this.node.replaceChildren(this.canvas, this.legend);
      new ResizeObserver(() => {
        const width = this.canvas.clientWidth;
        if (width && this.plot && width !== this.plot.width) this.plot.setSize(this.size());
      }).observe(this.canvas);
    }

    size() {
      const width = Math.max(200, this.canvas.clientWidth);
      return { width, height: width < 420 ? 220 : 260 };
    }

    draw() {
      const kept = this.plot && this.zoomed ? this.plot.scales.x : null;
      const range = kept ? [kept.min, kept.max] : null;
      if (this.plot) this.plot.destroy();
      const axis = {
        stroke: css("--quiet"),
        font: "11px system-ui, sans-serif",
        grid: { stroke: css("--grid"), width: 1 },
        ticks: { stroke: css("--grid"), width: 1 },
      };
      const isPoints = this.kind === "points";
      const lines = this.series.map((one, index) => ({
        label: one.name,
        show: this.shown[index],
        stroke: ink(one.colour),
        width: isPoints ? 1 : 1.5,
        dash: isPoints ? undefined : DASHES[one.dash % DASHES.length],
        spanGaps: false,
        paths: isPoints ? () => null : undefined,
        points: isPoints
          ? { show: true, size: 8, fill: ink(one.colour) }
          : {
              size: 5,
              fill: ink(one.colour),
              show: true,
              filter: (plot, own) => {
                const few = one.x.length * 12 < plot.bbox.width / (devicePixelRatio || 1);
                return few ? null : lonely(plot, own);
              },
            },
      }));
      const y = isPoints
        ? { range: [0, 1] }
        : this.isLog
          ? { distr: 3, log: 10 }
          : { range: (plot, low, high) => this.linear(low, high) };
      this.plot = new uPlot(
        {
          ...this.size(),
          legend: { show: false },
          padding: [8, 12, 0, 0],
          cursor: { drag: { x: true, y: false, uni: 10 }, points: { size: 7 } },
          scales: { x: { time: false, range: (plot, low, high) => this.across(low, high) }, y },
          series: [{}, ...lines],
          axes: [
            {
              ...axis,
              size: 28,
              label: isPoints ? "compression in tokens" : "step, stages one after the other",
              labelFont: "11px system-ui, sans-serif",
              labelSize: 16,
              labelGap: 0,
            },
            { ...axis, size: 58, values: (plot, ticks) => ticks.map((t) => (t === null ? "" : number(t))) },
          ],
          hooks: {
            setSelect: [(plot) => (this.zoomed = this.zoomed || plot.select.width > 0)],
            draw: [drawExtras(this)],
            setCursor: [() => this.say()],
          },
        },
        this.data,
        this.canvas,
      );
      if (range) this.plot.setScale("x", { min: range[0], max: range[1] });
      const follow = (event) => {
        const box = this.plot.over.getBoundingClientRect();
        const touch = event.touches[0];
        this.plot.setCursor({ left: touch.clientX - box.left, top: touch.clientY - box.top });
      };
      this.plot.over.addEventListener("touchstart", follow, { passive: true });
      this.plot.over.addEventListener("touchmove", follow, { passive: true });
    }

    linear(low, high) {
      if (low === null || high === null) return [0, 1];
      const pad = (high - low || Math.abs(high) || 1) * 0.08;
      return [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
    }

    across(low, high) {
      if (low === null || high === null) return [0, 1];
      return this.zoomed ? [low, high] : this.ends();
    }

    /* The whole axis, the same for all charts of steps: what was not measured shows as empty. */
    ends() {
      const xs = this.data[0];
      if (this.kind === "points") return [0, xs[xs.length - 1] * 1.08];
      const end = Math.max(...this.series.map((one) => data.runs[one.run].end));
      return [0, Math.max(1, end)];
    }

    zoom(factor) {
      const { min, max } = this.plot.scales.x;
      const [first, last] = this.ends();
      const index = this.plot.cursor.idx;
      const at = index === null || index === undefined ? (min + max) / 2 : this.data[0][index];
      const low = Math.max(first, at - (at - min) * factor);
      const high = Math.min(last, at + (max - at) * factor);
      this.zoomed = true;
      if (high > low) this.plot.setScale("x", { min: low, max: high });
    }

    reset() {
      const [min, max] = this.ends();
      this.zoomed = false;
      this.plot.setScale("x", { min, max });
    }

    key(event) {
      const moves = { ArrowLeft: -1, ArrowRight: 1 };
      if (event.key in moves) this.move(moves[event.key]);
      else if (event.key === "+" || event.key === "=") this.zoom(0.5);
      else if (event.key === "-") this.zoom(2);
      else if (event.key === "0" || event.key === "Escape") this.reset();
      else return;
      event.preventDefault();
    }

    move(by) {
      const xs = this.data[0];
      const { min, max } = this.plot.scales.x;
      const first = xs.findIndex((x) => x >= min);
      let last = xs.length - 1;
      while (last > first && xs[last] > max) last--;
      const now = this.plot.cursor.idx;
      const start = now === null || now === undefined ? (by > 0 ? first - 1 : last + 1) : now;
      const index = Math.min(last, Math.max(first, start + by));
      this.legend.setAttribute("aria-live", "polite");
      this.plot.setCursor({ left: this.plot.valToPos(xs[index], "x"), top: 10 });
    }

    /* The nearest value of each curve at or before the pointer: curves have steps of their own. */
    say() {
      const index = this.plot.cursor.idx;
      if (index === null || index === undefined) {
        this.where.textContent = "";
        for (const value of this.values) value.textContent = "";
        return;
      }
      const x = this.data[0][index];
      this.where.textContent = this.kind === "points" ? `${number(x)}×` : place(x, this.series[0].run);
      this.series.forEach((one, i) => {
        this.values[i].textContent = this.valueAt(one, i, x, index);
      });
    }

    valueAt(one, i, x, index) {
      if (this.kind === "points") {
        const at = one.x.indexOf(x);
        if (at < 0) return "";
        return `${one.label[at]}: ${number(one.y[at])} [${number(one.low[at])}, ${number(one.high[at])}]`;
      }
      if (one.bad.includes(x)) return "not finite";
      const ys = this.data[i + 1];
      if (ys[index] === null) return "no row";
      if (ys[index] !== undefined) return number(ys[index]);
      let near = index;
      while (near >= 0 && ys[near] === undefined) near--;
      if (near < 0 || ys[near] === null) return "";
      return `${number(ys[near])} (at ${place(this.data[0][near], one.run)})`;
    }
  }

  const specs = Object.fromEntries(data.charts.map((spec) => [spec.id, spec]));
  for (const node of document.querySelectorAll("[data-chart]")) new Chart(node, specs[node.dataset.chart]);

  const select = document.getElementById("key");
  if (select) {
    const node = document.getElementById("explorer");
    const show = () => {
      const known = all.findIndex((chart) => chart.node === node);
      if (known >= 0) all.splice(known, 1);
      const series = data.explorer[select.value];
      new Chart(node, { id: "explorer", title: `${select.value}, by rank`, log: false, kind: "steps", series, points: [] });
    };
    select.addEventListener("change", show);
    show();
  }

  for (const filter of document.querySelectorAll(".card-filter")) {
    const list = filter.closest("label").nextElementSibling;
    filter.addEventListener("change", () => list.classList.toggle("only-lost", filter.value === "lost"));
  }

  dark.addEventListener("change", () => all.forEach((chart) => chart.draw()));
  window.latentwireCharts = all;
  window.latentwireReady = performance.now(); // milliseconds since the page was asked for
  document.documentElement.dataset.ready = "true";
})();
