"use strict";
// Each chart: the pointer, or the arrow keys once it has the focus, moves a line to the nearest step and lists the values there.
for (const figure of document.querySelectorAll("figure.chart")) {
  const curves = JSON.parse(figure.dataset.curves);
  const svg = figure.querySelector("svg"), cursor = figure.querySelector(".cursor"), tip = figure.querySelector(".tip");
  const rule = cursor.querySelector("line"), width = svg.viewBox.baseVal.width;
  const places = [...new Set(curves.flatMap((curve) => curve.points.map((p) => p[0])))].sort((a, b) => a - b);
  const nearest = (list, x, at) => list.reduce((best, p) => (Math.abs(at(p) - x) < Math.abs(at(best) - x) ? p : best));
  let index = places.length - 1;

  function hide() {
    tip.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  }

  function show() {
    const x = places[index];
    rule.setAttribute("x1", x);
    rule.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    tip.replaceChildren();
    const head = tip.appendChild(document.createElement("p"));
    const here = curves.map((curve) => nearest(curve.points, x, (p) => p[0]));
    head.textContent = "step " + here.find((p) => p[0] === x)[2];
    curves.forEach((curve, i) => {
      const row = tip.appendChild(document.createElement("p"));
      row.appendChild(document.createElement("i")).style.setProperty("--color", curve.color);
      row.append(curve.label + " ");
      row.appendChild(document.createElement("b")).textContent = here[i][3];
      if (here[i][0] !== x) row.append(" at step " + here[i][2]);
    });
    tip.hidden = false;
    const box = svg.getBoundingClientRect(), around = figure.getBoundingClientRect();
    const left = box.left - around.left + (x * box.width) / width, room = figure.clientWidth - tip.offsetWidth - 8;
    tip.style.top = box.top - around.top + 8 + "px";
    tip.style.left = Math.max(8, left + 12 > room ? Math.min(room, left - tip.offsetWidth - 12) : left + 12) + "px";
  }

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width;
    index = places.indexOf(nearest(places, x, (p) => p));
    show();
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("focus", () => svg.matches(":focus-visible") && show());
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -places.length, End: places.length }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    index = Math.max(0, Math.min(places.length - 1, index + step));
    show();
  });
}

// A picture is shown as large as the window by a click, or by Enter once it has the focus; another click, or Escape, closes it.
const large = document.querySelector("dialog");
for (const image of document.querySelectorAll(".pictures img, .sounds img")) {
  image.dataset.enlarge = "";
  image.tabIndex = 0;
  image.setAttribute("role", "button");
  const enlarge = () => {
    const shown = document.createElement("img"), below = document.createElement("p");
    shown.src = image.src;
    shown.alt = below.textContent = image.alt;
    shown.style.setProperty("--shape", image.naturalWidth / image.naturalHeight);
    large.replaceChildren(shown, below);
    large.showModal();
  };
  image.addEventListener("click", enlarge);
  image.addEventListener("keydown", (event) => event.key === "Enter" && enlarge());
}
large.addEventListener("click", () => large.close());
