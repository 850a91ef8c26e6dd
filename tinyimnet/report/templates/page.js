const form = document.querySelector(".switch");
const clocks = form ? JSON.parse(form.dataset.clocks) : [];
let axis = "step", label = "step";  // the chosen one, and what is written under it

// ---- the horizontal axis: step, epoch or time --------------------------------------------------------------------

// Where a step of a clock's run is on the chosen axis; between two steps of the clock, time is linear.
const onAxis = (step, {epoch, steps, times}) => {
  if (axis === "step") return step;
  if (axis === "epoch") return step / epoch;
  const i = steps.findIndex(other => other >= step);
  if (i < 0) return times.at(-1);
  const [before, time] = i ? [steps[i - 1], times[i - 1]] : [0, 0];
  return time + (times[i] - time) * (step - before) / (steps[i] - before || 1);
};

// Round numbers from 0 to `last`, at most eight; as ticks() in axes.py.
const ticks = last => {
  const power = 10 ** Math.floor(Math.log10(last / 6));
  const size = [1, 2, 5, 10].map(factor => factor * power).find(size => size >= last / 6 * 0.999);
  return Array.from({length: Math.floor(last / size + 1e-9) + 1}, (_, i) => +(i * size).toPrecision(6));
};

const short = value => value >= 1e6 ? `${value / 1e6}M` : value >= 1e3 ? `${value / 1e3}k` : `${value}`;

// A chart: `draw` moves it to the chosen axis. While the pointer is over it, its legend shows each curve's latest value
// at or before the pointer.
const chart = figure => {
  const svg = figure.querySelector("svg");
  const cursor = svg.querySelector(".cursor");
  const at = figure.querySelector(".at");
  const cells = [...figure.querySelectorAll("b")];
  const before = [at, ...cells].map(cell => cell.textContent);
  const names = ["left", "right", "bottom", "height", "last", "epoch"];
  const [left, right, bottom, height, last, epoch] = names.map(name => Number(svg.dataset[name]));
  const heights = shape => shape.getAttribute("points").trim().split(/ +/).map(point => point.split(",")[1]);
  const curves = cells.map((_, i) => {
    const group = svg.querySelector(`[data-curve="${i}"]`);
    const shapes = [...group.querySelectorAll("polyline, polygon")].map(shape => ({shape, heights: heights(shape)}));
    const {clock, steps, values} = group.dataset;
    return {clock: clocks[clock], steps: steps.split(" ").map(Number), values: values.split(" "), shapes,
            dots: group.querySelector(".dots")};
  });
  const finest = curves.reduce((a, b) => b.steps.length > a.steps.length ? b : a);
  let end = last;
  const x = place => +(left + place / end * (right - left)).toFixed(1);

  // The x coordinates of a shape: a curve, the band around it, or the area below it.
  const across = (shape, places) =>
    shape.matches("polyline") ? places
      : shape.matches(".band") ? [...places, ...[...places].reverse()]
      : [places[0], ...places, places.at(-1)];

  const draw = () => {
    end = Math.max(...curves.map(({clock}) => onAxis(last, clock))) || 1;
    for (const curve of curves) {
      curve.places = curve.steps.map(step => onAxis(step, curve.clock));
      for (const {shape, heights} of curve.shapes) {
        const points = across(shape, curve.places).map((place, i) => `${x(place)},${heights[i]}`);
        shape.setAttribute("points", points.join(" "));
        if (curve.dots && shape.matches("polyline")) {
          curve.dots.setAttribute("d", points.map(point => `M${point}h0`).join(""));
        }
      }
    }
    let free = -Infinity;  // as in charts.py, no number of an attempt covers another
    for (const mark of svg.querySelectorAll("[data-step]")) {
      const place = x(onAxis(Number(mark.dataset.step), clocks[mark.dataset.clock]));
      mark.setAttribute("transform", `translate(${place} 0)`);
      const number = mark.querySelector("text");
      if (number) {
        number.style.visibility = place < free ? "hidden" : "";
        free = place < free ? free : place + 14;
      }
    }
    const places = ticks(end);
    svg.querySelector(".below").innerHTML =
      `<path class="axis" d="${places.map(place => `M${x(place)} ${bottom}v4`).join("")}"/>`
      + places.map(place => `<text x="${x(place)}" y="${bottom + 16}">${short(place)}</text>`).join("")
      + `<text x="${(left + right) / 2}" y="${height - 5}">${label}</text>`;
  };

  const show = event => {
    const box = svg.getBoundingClientRect();
    const aim = ((event.clientX - box.left) / box.width * svg.viewBox.baseVal.width - left) / (right - left) * end;
    const nearest = finest.places.reduce((a, b) => Math.abs(b - aim) < Math.abs(a - aim) ? b : a);
    const step = finest.steps[finest.places.indexOf(nearest)];
    const [unit] = label.split(" ");
    cursor.setAttribute("transform", `translate(${x(nearest)} 0)`);
    cursor.style.visibility = "visible";
    at.textContent =
      axis === "time" ? `${+nearest.toPrecision(3)} ${unit}`
        : epoch ? `step ${step.toLocaleString("en")}, epoch ${+(step / epoch).toPrecision(4)}`
        : `${unit} ${+nearest.toPrecision(4)}`;
    curves.forEach((curve, i) => {
      cells[i].textContent = curve.values[curve.places.findLastIndex(place => place <= nearest)] ?? "-";
    });
  };

  const hide = () => {
    cursor.style.visibility = "hidden";
    [at, ...cells].forEach((cell, i) => { cell.textContent = before[i]; });
  };

  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerleave", hide);
  return draw;
};

const charts = [...document.querySelectorAll(".chart")].map(chart);
const draw = () => {
  if (form) ({value: axis, dataset: {label}} = form.querySelector(":checked"));
  for (const each of charts) each();
};

if (form) {
  form.hidden = false;
  form.addEventListener("change", draw);
}

for (const image of document.images) {
  image.addEventListener("click", () => image.classList.toggle("whole"));
}

// ---- reloads keep the reader's place -----------------------------------------------------------------------------

const folds = [...document.querySelectorAll("details")];
const key = `place ${location.pathname}`;
const remember = () => {
  const place = {axis, open: folds.map(fold => fold.open), top: scrollY};
  try { sessionStorage.setItem(key, JSON.stringify(place)); } catch { /* the browser blocks it */ }
};
const restore = () => {
  let place = null;
  try { place = JSON.parse(sessionStorage.getItem(key)); } catch { /* the browser blocks it */ }
  if (!place || performance.getEntriesByType("navigation")[0].type !== "reload") return;
  folds.forEach((fold, i) => { fold.open = place.open[i] ?? false; });
  const choice = form?.querySelector(`[value="${place.axis}"]`);
  if (choice) choice.checked = true;
  history.scrollRestoration = "manual";
  scrollTo(0, place.top);
};
addEventListener("pagehide", remember);
restore();
draw();

// ---- a page of a run that trains reloads, but not while nobody looks at it ------------------------------------------

const {refresh} = document.body.dataset;  // seconds
if (refresh) {
  const reload = () => { if (!document.hidden && performance.now() > refresh * 1000) location.reload(); };
  const age = document.querySelector("[data-written]");
  const tick = () => {
    age.textContent = ` (${Math.max(0, Math.round((Date.now() / 1000 - age.dataset.written) / 60))} min ago)`;
    reload();
  };
  tick();
  setInterval(tick, Math.min(refresh, 10) * 1000);
  document.addEventListener("visibilitychange", tick);
}
