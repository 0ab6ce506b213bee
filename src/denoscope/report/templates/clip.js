// The frame control of a clip: slider, play and two keys move every picture and map of the page to a frame.
const clip = (() => {
  const { data, one, all, clamp } = maps;
  const { frames, number, pictures, maps: places } = data.clip;
  const slider = one("#frame"), button = one("#play-frames"), last = frames.length - 1;
  let at = data.clip.start, timer = null, redraw = () => {};

  // Steps and maps carry a list of frames, and answer with the frame that is shown.
  const answer = (owner, name, value) => Object.defineProperty(owner, name, { get: value });
  for (const step of data.steps) answer(step, "sample", () => step.samples[at]);
  for (const [name, method] of Object.entries(data.methods)) {
    for (const map of method.layers.flatMap(layer => Object.values(layer)).filter(map => map.frames)) {
      answer(map, "values", () => map.frames[places[name][at]].values);
      answer(map, "errors", () => map.frames[places[name][at]].errors);
    }
  }

  function show(place) {
    at = clamp(place, 0, last);
    slider.value = at;
    slider.setAttribute("aria-valuetext", `frame ${frames[at]} of 0 to ${number - 1}`);
    for (const text of all("[data-frame]")) text.textContent = frames[at];
    one(".result").src = pictures[at];
    all(".strip img").forEach((image, i) => image.src = data.steps[i].cleans[at]);
    redraw();
  }

  function play(on) {
    clearInterval(timer);
    timer = on ? setInterval(() => show(at < last ? at + 1 : 0), 160) : null;
    button.setAttribute("aria-pressed", on);
    one("i", button).textContent = on ? "❚❚" : "▶";
    one("span", button).textContent = on ? "Pause frames" : "Play frames";
  }

  slider.addEventListener("input", () => show(Number(slider.value)));
  slider.addEventListener("keydown", event => event.key.startsWith("Arrow") && event.stopPropagation());
  document.addEventListener("keydown", event => {
    const side = { ",": -1, ".": 1 }[event.key];
    if (side && !event.ctrlKey && !event.metaKey && !event.altKey) show(at + side);
  });
  button.addEventListener("click", () => play(!timer));
  show(at);
  return { moves: draw => { redraw = draw; } };
})();
