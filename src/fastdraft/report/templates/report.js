"use strict";
document.documentElement.classList.add("js");
const figures = JSON.parse(document.getElementById("figures").textContent);

// Charts. Names of CSS variables become the colours of the current theme.
function withColors(value) {
  if (typeof value === "string" && value.startsWith("--"))
    return getComputedStyle(document.documentElement).getPropertyValue(value).trim();
  if (Array.isArray(value)) return value.map(withColors);
  if (value && typeof value === "object")
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, withColors(inner)]));
  return value;
}
function axis(options) {
  const defaults = { gridcolor: "--line", linecolor: "--line", zeroline: false, fixedrange: true, automargin: true,
    ticks: "", title: { standoff: 8, font: { size: 12.5 } } };
  return { ...defaults, ...options, title: { ...defaults.title, ...(options.title || {}) } };
}
function drawPlot(plot) {
  const { data, layout } = figures[plot.dataset.figure];
  const narrow = plot.clientWidth < 420;
  const rows = Math.ceil(data.filter((trace) => trace.showlegend !== false).length / (narrow ? 1 : 2));
  plot.style.height = `${(narrow ? 250 : 290) + 21 * rows}px`;
  const fullLayout = { ...layout, xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis), autosize: true,
    margin: { l: 8, r: 10, t: 12, b: 8 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: "--soft" },
    hovermode: "x unified", dragmode: false, hoverlabel: { bgcolor: "--paper", bordercolor: "--line" },
    legend: { orientation: "h", x: 0, y: -0.24, yanchor: "top", traceorder: "normal",
      entrywidthmode: "fraction", entrywidth: narrow ? 1 : 0.48 } };
  return Plotly.react(plot, withColors(data), withColors(fullLayout), { displayModeBar: false, responsive: true });
}
const plots = [...document.querySelectorAll(".plot")];
function draw() { return Promise.all(plots.map(drawPlot)).then(() => { document.documentElement.dataset.drawn = "yes"; }); }
draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
addEventListener("beforeprint", () => {
  document.documentElement.dataset.print = "";
  document.querySelectorAll("details").forEach((each) => { each.open = true; });
  draw();
});
addEventListener("afterprint", () => { delete document.documentElement.dataset.print; draw(); });

// Tabs: each button of a list shows its own panel.
document.querySelectorAll(".tabs").forEach((list) => {
  const tabs = [...list.querySelectorAll("button")];
  const show = (chosen, focus) => tabs.forEach((tab) => {
    const on = tab === chosen;
    tab.setAttribute("aria-selected", on);
    tab.tabIndex = on ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = !on;
    if (on && focus) tab.focus();
  });
  tabs.forEach((tab) => tab.addEventListener("click", () => show(tab)));
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    show(tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length], true);
  });
  show(tabs[0]);
});

// A tooltip with the draft's proposal: for the token under the pointer or finger, or chosen by arrow keys in a focused text.
const tip = document.getElementById("tip");
const MARKS = { a: "accepted", c: "corrected", b: "bonus" };
const percent = (value) => `${(100 * value).toFixed(value > 0.0995 && value < 0.9995 ? 0 : 1)} %`;
function tipText(token) {
  const { a, q, p } = token.dataset;
  const proposal = p === undefined ? `the draft proposed this token too (probability ${percent(q)})` : `the draft proposed “${p}” (probability ${percent(q)})`;
  const chance = a === undefined ? "" : `; acceptance probability ${percent(a)}`;
  return `${MARKS[token.classList[0]]}: ${proposal}${chance}`;
}
let current = null;
function showTip(token) {
  if (current) current.classList.remove("on");
  current = token;
  tip.hidden = !token;
  if (!token) return;
  token.classList.add("on");
  tip.textContent = tipText(token);
  placeTip();
}
function placeTip() {
  if (!current) return;
  const box = current.getClientRects()[0] || current.getBoundingClientRect();
  const left = Math.min(Math.max(10, box.left), document.documentElement.clientWidth - tip.offsetWidth - 10);
  const above = box.top - tip.offsetHeight - 7;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 60 ? above : box.bottom + 7}px`;
}
document.querySelectorAll(".toks").forEach((text) => {
  const tokens = [...text.querySelectorAll("i")];
  text.addEventListener("pointerover", (event) => showTip(event.target.closest("i")));
  text.addEventListener("pointerleave", () => showTip(null));
  text.addEventListener("blur", () => showTip(null));
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
    if (event.key === "Escape") return showTip(null);
    if (!step) return;
    event.preventDefault();
    const here = tokens.indexOf(current);
    const token = tokens[Math.min(tokens.length - 1, Math.max(0, here < 0 ? 0 : here + step))];
    token.scrollIntoView({ block: "nearest", behavior: "instant" });
    showTip(token);
  });
});
addEventListener("scroll", placeTip, { passive: true, capture: true });

// The check box of the recipe hides values that are defaults.
const only = document.getElementById("only-set");
if (only) only.addEventListener("change", () => {
  document.querySelectorAll("#recipe tbody tr").forEach((row) => { row.hidden = only.checked && !row.classList.contains("set"); });
  document.querySelectorAll("#recipe details").forEach((each) => { if (only.checked) each.open = true; });
});
