// The step control of every page: slider, play, address, clicked charts and arrow keys move the whole page to a step.
// `draw` shows a step, `pause` is how long play shows it (ms), `pressed` handles keys of one page and says if it did.
function stepControl(draw, pause, pressed = () => false) {
  const { data, one, all, clamp, placeIn } = maps;
  const slider = one("#step"), button = one("#play"), last = data.steps.length - 1;
  let at = 0, timer = null;

  function show(place) {
    at = clamp(place, 0, last);
    const step = data.steps[at];
    slider.value = at;
    slider.setAttribute("aria-valuetext", `${data.unit} ${step.index}, time step ${step.timestep}, log-SNR ${step.log_snr}`);
    document.documentElement.style.setProperty("--at", at);
    for (const number of all("[data-number]")) number.textContent = step[number.dataset.number];
    draw(step);
    history.replaceState(null, "", `#step=${step.index}`);
  }

  // A step by its index, which need not be its place.
  function showIndex(index) {
    const place = data.steps.findIndex(step => step.index === index);
    show(place < 0 ? last : place);
  }

  function showHash() {
    showIndex(Number(/^#step=(\d+)$/.exec(location.hash)?.[1] ?? data.start));
  }

  function play(on) {
    clearInterval(timer);
    timer = on ? setInterval(() => at < last ? show(at + 1) : play(false), pause) : null;
    button.setAttribute("aria-pressed", on);
    one("i", button).textContent = on ? "❚❚" : "▶";
    one("span", button).textContent = on ? "Pause" : "Play";
    if (on && at === last) show(0);
  }

  function moved({ key, target }) {
    const side = { ArrowLeft: -1, ArrowRight: 1 }[key];
    if (key === " " && !target.matches("button, a, input[type=checkbox]")) play(!timer);
    else if (side) show(at + side);
    else return false;
    return true;
  }

  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, #opacity, .wide")) return;
    if (pressed(event) || moved(event)) event.preventDefault();
  });
  slider.addEventListener("input", () => show(Number(slider.value)));
  for (const plot of all("[data-plot]")) {
    plot.addEventListener("click", event => show(Math.floor(placeIn(plot, event).x * data.steps.length)));
  }
  button.addEventListener("click", () => play(!timer));
  window.addEventListener("hashchange", showHash);
  return { show, showIndex, start: showHash, get at() { return at; }, get step() { return data.steps[at]; } };
}
