(() => {
  const { data, one, all, placeIn, drawMap } = maps;
  const chosen = one("#map");

  // One variant at this noise level: the last step that it had taken by then.
  function draw(card) {
    const variant = data.variants[card.dataset.variant], place = variant.places[control.at], step = variant.steps[place];
    for (const picture of all(".now-seen", card)) picture.src = variant.pictures[place];
    one(".where", card).textContent = `step ${step.index}, time step ${step.timestep}`;
    if (chosen) drawMap(card, variant.maps[chosen.value], step.index, "step");
  }

  function show(step) {
    document.documentElement.style.setProperty("--level", `${step.x}%`);
    all(".card").forEach(draw);
  }

  // Charts are linear in log-SNR: a click goes to the nearest level.
  function nearestLevel(x) {
    const apart = data.steps.map(step => Math.abs(step.x - x));
    return apart.indexOf(Math.min(...apart));
  }

  const control = stepControl(show, 160);
  for (const chart of all("[data-levels]")) {
    chart.addEventListener("click", event => control.show(nearestLevel(100 * placeIn(chart, event).x)));
  }
  chosen?.addEventListener("change", () => all(".card").forEach(draw));
  control.start();
})();
