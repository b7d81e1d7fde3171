"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const calm = (text) => { byId("announce").textContent = text; };

  /** An element with attributes and children. Texts stay texts: nothing is parsed as HTML. */
  function make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  // ---- light and dark ----
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const themeButton = byId("theme");
  let chosen = null;
  try { chosen = localStorage.getItem("tokenprune-theme"); } catch { /* a file may have no storage */ }
  function showTheme() {
    const theme = chosen || (dark.matches ? "dark" : "light");
    root.dataset.theme = theme;
    themeButton.textContent = theme === "dark" ? "Light" : "Dark";
    themeButton.setAttribute("aria-label", `Switch to ${theme === "dark" ? "light" : "dark"} colours`);
  }
  themeButton.hidden = false;
  themeButton.addEventListener("click", () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("tokenprune-theme", chosen); } catch { /* it holds until the page is closed */ }
    showTheme();
  });
  dark.addEventListener("change", showTheme);
  showTheme();

  // ---- tables: sort and filter ----
  function sortTable(table, heading) {
    const headings = [...table.tHead.rows[0].cells];
    const column = headings.indexOf(heading);
    const words = heading.dataset.kind === "text";
    const before = heading.getAttribute("aria-sort");
    const first = words ? "ascending" : "descending"; // the largest number is what one looks for
    const order = before === "none" ? first : before === "ascending" ? "descending" : "ascending";
    const sign = order === "ascending" ? 1 : -1;
    const key = (row) => {
      const value = row.cells[column].dataset.sort;
      if (words) return value;
      return value === "" || Number.isNaN(Number(value)) ? null : Number(value);
    };
    const compare = (one, other) => {
      const [a, b] = [key(one), key(other)];
      if (a === null || b === null) return (a === null) - (b === null); // what is unknown comes last, both ways
      return sign * (words ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    headings.forEach((other) => other.setAttribute("aria-sort", other === heading ? order : "none"));
    calm(`sorted by ${heading.textContent.trim()}, ${order}`);
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const heading of table.tHead.rows[0].cells) {
      heading.querySelector("button").addEventListener("click", () => sortTable(table, heading));
    }
  }
  const filter = byId("filter"), budget = byId("budget");
  function showRows() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = [...byId("results").tBodies[0].rows];
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const wanted = budget && budget.value;
      row.hidden = !(words.every((word) => text.includes(word)) && (!wanted || !row.dataset.budget || row.dataset.budget === wanted));
      shown += !row.hidden;
    }
    byId("rows-status").textContent = `${shown} of ${rows.length} rows`;
  }
  filter.addEventListener("input", showRows);
  if (budget) budget.addEventListener("change", showRows);
  document.querySelectorAll("form").forEach((form) => form.addEventListener("submit", (event) => event.preventDefault()));
  showRows();

  // ---- charts ----
  const form = byId("methods");
  const boxes = form ? [...form.querySelectorAll("input[type=checkbox]")] : [];
  const switchedOn = () => new Set(boxes.filter((box) => box.checked).map((box) => box.value));
  const charts = [];

  /** Each chart draws itself for the methods that are switched on, and for the width of its place. */
  async function draw(spec, place) {
    const { view } = await vegaEmbed(place, spec, {
      renderer: "svg", actions: { export: true, source: false, compiled: false, editor: false },
      downloadFileName: `tokenprune ${spec.description}`,
    });
    place.querySelector("svg.marks").setAttribute("aria-hidden", "true"); // the table below is for those who do not see it
    place.querySelector("summary").setAttribute("aria-label", `Save the chart: ${spec.description}`);
    // Vega asks for the width of its place when the window changes; a scroll bar changes it, too
    new ResizeObserver(() => dispatchEvent(new Event("resize"))).observe(place);
    return (name, value) => view.signal(name, value).runAsync();
  }
  function showMethods() {
    const on = switchedOn();
    byId("methods-status").textContent = `${on.size} of ${boxes.length} methods shown`;
    charts.forEach((set) => set("on", [...on]));
    document.querySelectorAll(".values tbody tr").forEach((row) => { row.hidden = !on.has(row.dataset.method); });
    showExamples();
  }
  async function drawAll() {
    for (const [number, spec] of data.charts.entries()) {
      const set = await draw(spec, byId(`chart-${number}`));
      charts.push(set);
      await set("on", [...switchedOn()]);
    }
    document.body.dataset.drawn = "yes";
  }
  if (form) {
    form.addEventListener("change", showMethods);
    form.addEventListener("click", (event) => {
      if (event.target.dataset.all === undefined) return;
      boxes.forEach((box) => { box.checked = Boolean(event.target.dataset.all); });
      showMethods();
    });
    for (const box of boxes) {
      const label = box.closest("label");
      const focus = (method) => charts.forEach((set) => set("focus", method));
      label.addEventListener("pointerenter", () => box.checked && focus(box.value));
      label.addEventListener("pointerleave", () => focus(""));
      box.addEventListener("focus", () => box.matches(":focus-visible") && box.checked && focus(box.value));
      box.addEventListener("blur", () => focus(""));
    }
  }

  // ---- examples ----
  const exampleBudget = byId("example-budget");
  const opened = new Map();

  /** The numbers of a mask, one per cell. */
  function unpack({ bits, data: text }, count) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const perByte = 8 / bits, largest = (1 << bits) - 1;
    return Uint8Array.from({ length: count }, (_, at) =>
      (bytes[Math.floor(at / perByte)] >> (8 - bits * ((at % perByte) + 1))) & largest);
  }
  /** A pixel per patch; the browser stretches it over the view's part of the picture. */
  function overlay(view, cells, stages) {
    const canvas = make("canvas", { width: view.columns, height: view.rows });
    const [left, top, right, bottom] = view.box.map((share) => 100 * share);
    Object.assign(canvas.style, { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` });
    const context = canvas.getContext("2d");
    const image = context.createImageData(view.columns, view.rows);
    cells.forEach((gone, at) => {
      image.data.set([118, 122, 128], 4 * at);
      image.data[4 * at + 3] = gone ? 255 * (0.62 + 0.26 * (stages > 1 ? (gone - 1) / (stages - 1) : 1)) : 0;
    });
    context.putImageData(image, 0, 0);
    return canvas;
  }
  /** One picture per frame, or per kind of view: an overview and tiles lie on the same picture. */
  function views(example, panel, label) {
    const layout = example.layouts[panel.layout];
    const counts = layout.map((view) => view.rows * view.columns);
    const cells = unpack(example.masks[panel.mask], counts.reduce((sum, count) => sum + count, 0));
    const groups = new Map();
    let start = 0;
    layout.forEach((view, number) => {
      const key = `${view.picture} ${view.title}`;
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push([view, cells.subarray(start, start + counts[number])]);
      start += counts[number];
    });
    const box = make("div", { class: `views${groups.size === 1 ? " one" : ""}`, role: "img", "aria-label": label });
    for (const parts of groups.values()) {
      const [view] = parts[0];
      const source = example.pictures[view.picture];
      const picture = make("div", { class: "picture" });
      if (source) picture.append(make("img", { src: source, alt: "" }));
      else picture.style.aspectRatio = `${view.columns} / ${view.rows}`;
      picture.append(...parts.map(([part, values]) => overlay(part, values, panel.kept.length)));
      const figure = make("div", { class: "view" }, picture);
      if (view.title) figure.append(make("figcaption", {}, view.title));
      box.append(figure);
    }
    return [box, groups.size];
  }
  function swatch(method) {
    const box = boxes.find((item) => item.value === method);
    return box ? [box.parentNode.querySelector(".swatch").cloneNode(true)] : [];
  }
  /** What is worth saying about an answer: that it differs from a right one is clear when it is wrong, and is no fault by itself. */
  function badges(panel, reference) {
    const found = [];
    if (panel.right !== null) {
      found.push(make("span", { class: `badge ${panel.right ? "good" : "bad"}` }, panel.right ? "\u2713 right" : "\u2717 wrong"));
    }
    const implied = reference && reference.right && panel.right !== null && panel.right === panel.agrees;
    if (panel.agrees !== null && panel.budget && !implied) {
      found.push(make("span", { class: "badge" }, panel.agrees ? "= unpruned" : "\u2260 unpruned"));
    }
    return found;
  }
  function keptWords(panel) {
    if (!panel.kept.length) return `all ${panel.tokens} visual tokens`;
    const last = panel.kept.at(-1);
    const layers = panel.layers.join(", ");
    if (panel.kept.length === 1) return `kept ${last} of ${panel.tokens} visual tokens, before layer ${layers}`;
    return `kept ${last} of ${panel.tokens} visual tokens: ${panel.kept.join(", ")} before layers ${layers}`;
  }
  function panelElement(example, panel) {
    const words = keptWords(panel);
    const reference = example.panels.find((other) => !other.budget);
    const [picture, count] = views(example, panel, `${panel.method}: ${words}${panel.where}`);
    const element = make("article", { class: "panel" },
      make("h3", {}, ...swatch(panel.method), make("span", {}, panel.method)), picture,
      make("p", {}, make("span", { class: "said" }, panel.answer || "(no answer)"), ...badges(panel, reference)),
      make("p", { class: "kept" }, words));
    if (panel.reason) element.append(make("p", { class: "kept" }, panel.reason));
    return [element, count];
  }
  /** Whether the unpruned model itself is wrong: what pruning changed says less about such an example. */
  const unclear = (example) => example.panels.some((panel) => !panel.budget && panel.right === false);
  const badness = (panel) => !panel.budget ? -1 : panel.right === false ? 0 : panel.agrees === false ? 1 : 2;
  function showExamples() {
    const place = byId("examples");
    if (!place) return;
    const wanted = exampleBudget ? exampleBudget.value : null;
    const on = switchedOn();
    const shown = data.examples.map((example) => {
      const panels = example.panels.filter((panel) =>
        on.has(panel.method) && (!panel.budget || wanted === null || panel.budget === wanted));
      panels.sort((a, b) => badness(a) - badness(b));
      const pruned = panels.filter((panel) => panel.budget);
      return { example, panels, pruned, differ: pruned.filter((panel) => badness(panel) < 2).length };
    });
    shown.sort((a, b) => !a.differ - !b.differ || unclear(a.example) - unclear(b.example) || b.differ - a.differ);
    place.replaceChildren(...shown.map(({ example, panels, pruned, differ }, position) => {
      const element = make("details", { class: "fold example" });
      const start = place.dataset.open === "all" || position < 2;
      element.open = opened.has(example) ? opened.get(example) : start;
      const expected = example.expected === null ? "" : ` Expected: ${example.expected}.`;
      const count = pruned.length ? ` ${differ} of ${pruned.length} methods are wrong or differ.` : "";
      element.append(make("summary", {}, `${example.title}: ${example.question} `,
        make("span", { class: "answer-note" }, `${expected}${count}`)));
      const fill = () => {
        if (element.querySelector(".body")) return;
        const made = panels.map((panel) => panelElement(example, panel));
        const wide = made.some(([, pictures]) => pictures > 1);
        element.append(make("div", { class: "body" },
          make("div", { class: `panels${wide ? " wide" : ""}` }, ...made.map(([item]) => item))));
      };
      if (element.open) fill();
      element.addEventListener("toggle", () => { opened.set(example, element.open); if (element.open) fill(); });
      element.fill = fill;
      return element;
    }));
    const budgetWords = wanted ? `, ${exampleBudget.selectedOptions[0].textContent}` : "";
    byId("examples-status").textContent = `${shown.length} examples${budgetWords}`;
  }
  if (exampleBudget) exampleBudget.addEventListener("change", showExamples);
  /** Charts as wide as the paper has room for them, or as the window has. */
  function fit(paper) {
    root.classList.toggle("paper", paper);
    dispatchEvent(new Event("resize"));
  }
  // on paper nothing can be opened
  addEventListener("beforeprint", () => {
    document.querySelectorAll(".fold").forEach((item) => {
      if (item.fill) item.fill();
      item.open = true;
    });
    fit(true);
  });
  addEventListener("afterprint", () => fit(false));
  if (form) showMethods();
  drawAll();
})();
