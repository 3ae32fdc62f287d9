"use strict";
// Draws the page's charts from the options in #chart-data, in the colors of the theme; on pages of searches, what is
// selected in one chart or in the table is selected in all. Nothing is fetched.
(() => {
  const PAPER_PX = 660; // between the margins of the narrower of A4 and Letter, at 96 a inch
  const root = document.documentElement;
  const charts = JSON.parse(document.getElementById("chart-data").textContent);
  const trials = JSON.parse(document.getElementById("trial-data").textContent);
  const drawn = new Map(); // id -> ECharts instance
  let selected = null; // numbers of trials, or null for all
  let printing = false, before = "light";

  const number = (x) => {
    if (x === null || x === undefined || x === "-" || Number.isNaN(x)) return "–";
    if (typeof x !== "number") return String(x);
    if (Number.isInteger(x)) return x.toLocaleString("en-US");
    return Math.abs(x) >= 1e5 || Math.abs(x) < 1e-4 ? x.toExponential(2) : String(Number(x.toPrecision(4)));
  };
  const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
  const described = (n) => {
    const trial = trials.rows.find((row) => row.number === n);
    if (!trial) return `trial ${n}`;
    const lines = [`<b>trial ${n}</b> ${escaped(trial.status)}: ${number(trial.value)}`];
    for (const [key, value] of Object.entries(trial.settings)) lines.push(`${escaped(key)} <b>${escaped(number(value))}</b>`);
    return lines.join("<br>");
  };
  const functions = {
    number,
    count: (p) => String(p.value[3]),
    cell: (p) => `${p.value[3]} rows, ${(100 * p.value[2]).toFixed(1)} % of their row`,
    level: (p) => `${escaped(p.seriesName)} <b>${number(p.value[3])}</b><br>${escaped(p.value[1])}, epoch ${p.value[0]}`,
    point: (p) => (p.data && p.data.trial !== undefined ? described(p.data.trial)
      : `${escaped(p.seriesName)}<br>${escaped(number(p.value[0]))}, ${escaped(number(p.value[1]))}`),
    trial: (p) => described(p.data.trial),
    gap: (params, api) => {
      const [a, b, c, d] = [[0, 1], [3, 4], [3, 5], [0, 2]].map(([x, y]) => api.coord([api.value(x), api.value(y)]));
      return { type: "polygon", shape: { points: [a, b, c, d] }, style: { fill: color("--band") } };
    },
    interval: (params, api) => {
      const y = api.coord([api.value(1), api.value(0)])[1];
      const [a, b] = [api.coord([api.value(1), api.value(0)])[0], api.coord([api.value(2), api.value(0)])[0]];
      const style = { stroke: color("--text"), lineWidth: 1.5, fill: null };
      const line = (x1, y1, x2, y2) => ({ type: "line", shape: { x1, y1, x2, y2 }, style });
      return { type: "group", children: [line(a, y, b, y), line(a, y - 4, a, y + 4), line(b, y - 4, b, y + 4)] };
    },
  };
  const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const resolved = (x) => {
    if (typeof x === "string") {
      if (x.startsWith("var(")) return color(x.slice(4, -1));
      return x.startsWith("fn:") ? functions[x.slice(3)] : x;
    }
    if (Array.isArray(x)) return typeof x[0] === "number" ? x : x.map(resolved);
    if (x && typeof x === "object") return Object.fromEntries(Object.entries(x).map(([k, v]) => [k, resolved(v)]));
    return x;
  };
  const styledAxis = (axis) => ({
    ...axis,
    nameTextStyle: { color: color("--soft"), fontSize: 12 },
    axisLabel: { color: color("--soft"), fontSize: 11, hideOverlap: true, ...(axis.type === "category" ? {} : { formatter: number }), ...axis.axisLabel },
    axisLine: { lineStyle: { color: color("--line") } },
    axisTick: { show: false },
    minorTick: { show: false },
    splitLine: { show: axis.type !== "category", lineStyle: { color: color("--line"), opacity: 0.6 } },
    nameGap: axis.nameGap ?? 24,
  });
  const each = (value, f) => (value === undefined ? undefined : Array.isArray(value) ? value.map(f) : f(value));

  // The chart's series with what is not selected faded.
  const shown = (series) => series.map((s) => {
    if (!Array.isArray(s.data) || !s.data.length || s.data[0]?.trial === undefined) return s;
    const lines = s.type === "lines" || s.type === "parallel";
    const data = s.data.map((item) => {
      const on = selected === null || selected.has(item.trial);
      const strong = selected !== null && on && selected.size < 20;
      return lines
        ? { ...item, lineStyle: { ...item.lineStyle, opacity: on ? (strong ? 1 : 0.5) : 0.04, width: strong ? 2.5 : 1.2 } }
        : { ...item, itemStyle: { opacity: on ? 0.85 : 0.07 }, symbolSize: strong ? 11 : undefined };
    });
    return { ...s, data };
  });

  function option(chart) {
    const o = resolved(chart.option);
    const text = { color: color("--text") };
    return {
      animation: false,
      textStyle: { fontFamily: "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif" },
      aria: { enabled: true, label: { description: chart.label } },
      ...o,
      legend: { type: "scroll", textStyle: text, icon: "roundRect", itemWidth: 16, itemHeight: 8, inactiveColor: color("--line"), pageTextStyle: text, ...o.legend, show: o.legend ? o.legend.show ?? true : false },
      tooltip: { confine: true, backgroundColor: color("--card"), borderColor: color("--line"), textStyle: { ...text, fontSize: 12 }, ...o.tooltip },
      xAxis: each(o.xAxis, styledAxis),
      yAxis: each(o.yAxis, styledAxis),
      parallelAxis: each(o.parallelAxis, (axis) => ({ ...styledAxis(axis), nameLocation: "end", nameGap: 12, nameTextStyle: { color: color("--text"), fontSize: 11, ...axis.nameTextStyle }, splitLine: { show: false }, axisLabel: { color: color("--text"), fontSize: 11, textBorderColor: color("--card"), textBorderWidth: 3, ...(axis.type === "category" ? {} : { formatter: number }) }, axisLine: { lineStyle: { color: color("--soft") } } })),
      series: shown(o.series),
    };
  }

  function draw(id) {
    const element = document.getElementById(id);
    if (drawn.has(id)) return;
    const instance = echarts.init(element, null, { renderer: "svg" });
    drawn.set(id, instance);
    instance.setOption(option(charts[id]));
    if (charts[id].trials) {
      instance.on("click", (p) => { if (p.data && p.data.trial !== undefined) toggle(p.data.trial); });
      instance.on("axisareaselected", () => {
        const series = instance.getModel().getSeriesByIndex(0);
        const axes = instance.getModel().queryComponents({ mainType: "parallelAxis" });
        const brushed = axes.some((axis) => axis.activeIntervals.length);
        select(brushed ? series.getRawIndicesByActiveState("active").map((i) => charts[id].option.series[0].data[i].trial) : null, id);
      });
      instance.on("brushSelected", (event) => {
        if (!event.batch[0]?.areas.length) return;
        const numbers = event.batch[0].selected.flatMap((s) => s.dataIndex.map((i) => charts[id].option.series[s.seriesIndex].data[i])).filter((item) => item && item.trial !== undefined).map((item) => item.trial);
        select(numbers, id);
      });
      if (charts[id].option.brush) instance.dispatchAction({ type: "takeGlobalCursor", key: "brush", brushOption: { brushType: "rect", brushMode: "single" } });
    }
  }

  // ---- selection of trials -------------------------------------------------------------------------------------
  let waiting = 0, from = null;
  function select(numbers, origin = null) {
    selected = numbers === null ? null : new Set(numbers);
    from = origin;
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(showSelection);
  }
  function toggle(n) {
    const only = selected !== null && selected.size === 1 && selected.has(n);
    select(only ? null : [n]);
  }
  function showSelection() {
    for (const [id, instance] of drawn) {
      if (!charts[id].trials || (id === from && charts[id].option.parallelAxis)) continue;
      instance.setOption({ series: shown(resolved(charts[id].option.series)) });
    }
    const body = document.querySelector("#trial-table tbody");
    if (!body) return;
    let count = 0;
    for (const row of body.rows) {
      const on = selected === null || selected.has(Number(row.dataset.trial));
      row.hidden = !on && !(selected.size === 1);
      row.setAttribute("aria-selected", String(selected !== null && on));
      count += on ? 1 : 0;
    }
    document.getElementById("selection").textContent = selected === null ? `all ${trials.rows.length} trials`
      : selected.size === 1 ? `trial ${[...selected][0]} of ${trials.rows.length}` : `${count} of ${trials.rows.length} trials selected`;
    document.getElementById("clear").disabled = selected === null;
  }
  const table = document.getElementById("trial-table");
  if (table) {
    table.tBodies[0].addEventListener("click", (event) => { const row = event.target.closest("tr"); if (row && !event.target.closest("a")) toggle(Number(row.dataset.trial)); });
    table.tBodies[0].addEventListener("keydown", (event) => {
      const row = event.target.closest("tr");
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(Number(row.dataset.trial)); }
      let other = null;
      if (event.key === "ArrowDown") other = row.nextElementSibling;
      if (event.key === "ArrowUp") other = row.previousElementSibling;
      if (other) { event.preventDefault(); other.focus(); }
    });
    table.tHead.addEventListener("click", (event) => {
      const head = event.target.closest("th");
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const th of table.tHead.rows[0].cells) th.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => { const text = row.cells[head.cellIndex].dataset.v ?? ""; const x = Number(text); return text === "" ? null : Number.isNaN(x) ? text : x; };
      const sign = down ? -1 : 1;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
      });
      table.tBodies[0].append(...rows);
    });
    document.getElementById("clear").addEventListener("click", () => {
      for (const [id, instance] of drawn) {
        if (charts[id].option.brush) instance.dispatchAction({ type: "brush", areas: [] });
        if (charts[id].option.parallelAxis) instance.setOption(option(charts[id]), true);
      }
      select(null);
    });
    document.getElementById("fate").addEventListener("change", (event) => {
      const fate = event.target.value;
      select(fate ? trials.rows.filter((row) => row.status === fate).map((row) => row.number) : null);
    });
    showSelection();
  }

  // ---- theme, size, paper, keyboard ----------------------------------------------------------------------------
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("raynn-theme"); } catch { /* a file opened without storage */ }
  const button = document.getElementById("theme");
  function theme(dark = chosen ? chosen === "dark" : system.matches) {
    root.dataset.theme = dark ? "dark" : "light";
    button.textContent = dark ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(dark));
    for (const [id, instance] of drawn) instance.setOption(option(charts[id]), true);
  }
  button.addEventListener("click", () => {
    const dark = root.dataset.theme !== "dark";
    chosen = dark === system.matches ? null : dark ? "dark" : "light"; // back to the system's: follow it again
    try {
      if (chosen) localStorage.setItem("raynn-theme", chosen);
      else localStorage.removeItem("raynn-theme");
    } catch { /* as above */ }
    theme();
  });
  system.addEventListener("change", () => { if (!printing) theme(); });
  const sizes = new ResizeObserver((entries) => { if (!printing) for (const entry of entries) drawn.get(entry.target.id)?.resize(); });
  addEventListener("beforeprint", () => {
    printing = true;
    before = root.dataset.theme;
    for (const id of Object.keys(charts)) draw(id);
    theme(false); // paper is white
    for (const [id, instance] of drawn) {
      const wide = document.getElementById(id).closest(".wide") !== null;
      instance.resize({ width: wide ? PAPER_PX - 30 : PAPER_PX / 2 - 34 });
      instance.getZr().flush(); // what waits for the next frame would not be on paper
    }
  });
  addEventListener("afterprint", () => { printing = false; theme(before === "dark"); for (const instance of drawn.values()) instance.resize({ width: "auto" }); });
  document.getElementById("print").addEventListener("click", () => print());

  for (const element of document.querySelectorAll(".chart")) {
    sizes.observe(element);
    let place = -1;
    element.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
      event.preventDefault();
      const series = charts[element.id].option.series;
      const index = series.findIndex((s) => !s.silent && s.data.length);
      if (index < 0) return;
      place = (place + (event.key === "ArrowRight" ? 1 : -1) + series[index].data.length) % series[index].data.length;
      drawn.get(element.id).dispatchAction({ type: "showTip", seriesIndex: index, dataIndex: place });
    });
    element.addEventListener("blur", () => drawn.get(element.id)?.dispatchAction({ type: "hideTip" }));
  }
  theme();
  // What is near is drawn at once, the rest when it comes near.
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { draw(entry.target.id); near.unobserve(entry.target); }
  }, { rootMargin: "600px" });
  for (const element of document.querySelectorAll(".chart")) near.observe(element);
  window.raynn = { charts, drawn, draw, get selected() { return selected; } };
  requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("raynn-drawn")));
})();
