// A line over a chart, moved by the pointer or the keys of arrows, and the values under it said in words.
for (const figure of document.querySelectorAll("figure.chart")) {
  const plot = figure.querySelector(".plot"), cursor = figure.querySelector(".cursor");
  const said = figure.querySelector("output"), places = JSON.parse(figure.querySelector("script").textContent);
  let at = -1;
  const show = (i) => {
    if (!places.length) return;
    at = Math.max(0, Math.min(places.length - 1, i));
    cursor.removeAttribute("hidden");
    cursor.setAttribute("x1", places[at][0]);
    cursor.setAttribute("x2", places[at][0]);
    said.textContent = places[at][1];
  };
  const hide = () => { at = -1; cursor.setAttribute("hidden", ""); said.textContent = ""; };
  const steps = { ArrowLeft: () => at - 1, ArrowRight: () => at + 1, Home: () => 0, End: () => places.length - 1 };
  plot.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    if (!(event.key in steps)) return;
    event.preventDefault();
    show(at < 0 && event.key === "ArrowLeft" ? places.length - 1 : steps[event.key]());
  });
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect(), x = (event.clientX - box.left) * plot.viewBox.baseVal.width / box.width;
    let nearest = 0;
    places.forEach((place, i) => { if (Math.abs(place[0] - x) < Math.abs(places[nearest][0] - x)) nearest = i; });
    show(nearest);
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
}
