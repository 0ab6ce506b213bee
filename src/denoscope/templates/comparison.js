(() => {
  const data = JSON.parse(document.getElementById("payload").textContent);
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const { clamp, bytes, values, paint, tell } = maps;
  const slider = one("#step"), last = data.steps.length - 1;
  const palettes = Object.fromEntries(Object.entries(data.colours).map(([name, all]) => [name, all.map(hex => bytes(hex))]));
  const view = { at: 0, timer: null };

  // One photograph at this frame; one with fewer frames stays at its last

  function draw(card) {
    const photograph = data.photographs[card.dataset.photograph];
    one(".now-seen", card).src = photograph.frames[Math.min(view.at, photograph.frames.length - 1)];
    tell(one("[data-label]", card), photograph.likelihood[data.steps[view.at].index]);
    drawMap(card, photograph, data.steps[view.at].index);
  }

  function drawMap(card, { title, maps: carried, shape, limits, colours }, here) {
    const steps = Object.keys(carried).map(Number).sort((a, b) => Math.abs(a - here) - Math.abs(b - here));
    const flat = !steps.length || limits[0] === limits[1];
    one(".map", card).hidden = flat;
    one(".map", card).parentElement.classList.toggle("covered", !flat);
    one(".caption", card).textContent = captionOf(title, steps[0], here, flat && steps.length);
    if (!flat) paint(one(".map", card), values(carried[steps[0]]), shape, limits, palettes[colours], true);
  }

  function captionOf(title, nearest, here, flat) {
    if (nearest === undefined) return `No ${data.unit} was explained`;
    const where = nearest === here ? `at this ${data.unit}` : `at ${data.unit} ${nearest}, the nearest explained`;
    return `${title} ${where}${flat ? "; flat: no colour" : ""}`;
  }

  // One frame for the whole page

  function show(at) {
    view.at = clamp(at, 0, last);
    const step = data.steps[view.at];
    slider.value = view.at;
    slider.setAttribute("aria-valuetext", `${data.unit} ${step.index}, time step ${step.timestep}, log-SNR ${step.log_snr}`);
    document.documentElement.style.setProperty("--at", view.at);
    for (const number of all("[data-number]")) number.textContent = step[number.dataset.number];
    all(".card").forEach(draw);
    history.replaceState(null, "", `#step=${step.index}`);
  }

  function showHash() {
    const asked = Number(/^#step=(\d+)$/.exec(location.hash)?.[1] ?? data.start);
    const at = data.steps.findIndex(step => step.index === asked);
    show(at < 0 ? last : at);
  }

  function play(on) {
    clearInterval(view.timer);
    view.timer = on ? setInterval(() => view.at < last ? show(view.at + 1) : play(false), 200) : null;
    one("#play").setAttribute("aria-pressed", on);
    one("#play i").textContent = on ? "❚❚" : "▶";
    one("#play span").textContent = on ? "Pause" : "Play";
    if (on && view.at === last) show(0);
  }

  const arrows = { ArrowLeft: -1, ArrowRight: 1 };
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches(".wide")) return;
    if (event.key === " " && !event.target.matches("button, a")) play(!view.timer);
    else if (arrows[event.key]) show(view.at + arrows[event.key]);
    else return;
    event.preventDefault();
  });

  slider.addEventListener("input", () => show(Number(slider.value)));
  for (const plot of all("[data-plot]")) plot.addEventListener("click", event => {
    const box = plot.getBoundingClientRect();
    show(Math.floor((event.clientX - box.left) / box.width * data.steps.length));
  });
  one("#play").addEventListener("click", () => play(!view.timer));
  window.addEventListener("hashchange", showHash);
  showHash();
})();
