(() => {
  const { data, one, all, tell, drawMap } = maps;

  // One photograph at this frame; one with fewer frames stays at its last

  function draw(card) {
    const photograph = data.photographs[card.dataset.photograph];
    one(".now-seen", card).src = photograph.frames[Math.min(control.at, photograph.frames.length - 1)];
    tell(one("[data-label]", card), photograph.likelihood[control.step.index]);
    drawMap(card, photograph, control.step.index, data.unit);
  }

  const control = stepControl(() => all(".card").forEach(draw), 200);
  control.start();
})();
