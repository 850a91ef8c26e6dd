// While the pointer is over a chart, the legend shows each curve's latest value at or before the step under the pointer.
for (const figure of document.querySelectorAll(".chart")) {
  const svg = figure.querySelector("svg");
  const cursor = svg.querySelector(".cursor");
  const at = figure.querySelector(".at");
  const cells = [...figure.querySelectorAll("b")];
  const before = [at, ...cells].map(cell => cell.textContent);

  const [left, right, last, epoch] = ["left", "right", "last", "epoch"].map(name => Number(svg.dataset[name]));
  const curves = cells.map((_, i) => {
    const data = svg.querySelector(`[data-curve="${i}"]`).dataset;
    return {steps: data.steps.split(" ").map(Number), values: data.values.split(" ")};
  });
  const finest = curves.reduce((a, b) => b.steps.length > a.steps.length ? b : a);

  const stepUnder = event => {
    const box = svg.getBoundingClientRect();
    const place = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const aim = (place - left) / (right - left) * last;
    return finest.steps.reduce((a, b) => Math.abs(b - aim) < Math.abs(a - aim) ? b : a);
  };

  const show = event => {
    const step = stepUnder(event);
    cursor.setAttribute("transform", `translate(${left + step / last * (right - left)} 0)`);
    cursor.style.visibility = "visible";
    at.textContent = `step ${step.toLocaleString("en")}` + (epoch ? `, epoch ${+(step / epoch).toPrecision(4)}` : "");
    curves.forEach((curve, i) => {
      cells[i].textContent = curve.values[curve.steps.findLastIndex(other => other <= step)] ?? "-";
    });
  };

  const hide = () => {
    cursor.style.visibility = "hidden";
    [at, ...cells].forEach((cell, i) => { cell.textContent = before[i]; });
  };

  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerleave", hide);
}
