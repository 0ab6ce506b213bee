(() => {
  const { data, one, all, palettes, values, nearest, paint, tell } = maps;

  // One photograph at this frame; one with fewer frames stays at its last

  function draw(card) {
    const photograph = data.photographs[card.dataset.photograph];
    one(".now-seen", card).src = photograph.frames[Math.min(control.at, photograph.frames.length - 1)];
    tell(one("[data-label]", card), photograph.likelihood[control.step.index]);
    drawMap(card, photograph, control.step.index);
  }

  function drawMap(card, { title, maps: carried, shape, limits, colours }, here) {
    const explained = nearest(carried, here), flat = explained === undefined || limits[0] === limits[1];
    one(".map", card).hidden = flat;
    one(".map", card).parentElement.classList.toggle("covered", !flat);
    one(".caption", card).textContent = captionOf(title, explained, here, flat);
    if (!flat) paint(one(".map", card), values(carried[explained]), shape, limits, palettes[colours], true);
  }

  function captionOf(title, explained, here, flat) {
    if (explained === undefined) return `No ${data.unit} was explained`;
    const where = explained === here ? `at this ${data.unit}` : `at ${data.unit} ${explained}, the nearest explained`;
    return `${title} ${where}${flat ? "; flat: no colour" : ""}`;
  }

  const control = stepControl(() => all(".card").forEach(draw), 200);
  control.start();
})();
