(() => {
  const { data, one, all, palettes, clamp, readable, values, bytes, nearest, placeIn, paint, tell } = maps;
  const articles = all("[data-method]");
  const explained = [...new Set(Object.values(data.methods).flatMap(method => Object.keys(method.layers[0]).map(Number)))]
    .map(index => data.steps.findIndex(step => step.index === index)).sort((a, b) => a - b);
  const view = { place: null, shared: true, apart: false, certain: false };

  const methodOf = article => data.methods[article.dataset.method];

  // The map of one entry of a further dimension, such as a word; of the one shown large if none is named.
  function mapOf(article, entry = article.dataset.layer) {
    const map = methodOf(article).layers[entry][control.step.index];
    return map && { ...map, values: values(map.values), errors: values(map.errors) };
  }

  // Colours

  function scaleOf(values, signed) {
    const present = values.filter(value => value !== null);
    const low = Math.min(...present), high = Math.max(...present), reach = Math.max(-low, high);
    return signed ? [-reach, reach] : [low, high];
  }

  // The ends of an entry's colours: shared by steps or not, by the entries of a further dimension or not.
  function limitsOf(article, entry = article.dataset.layer) {
    const method = methodOf(article), apart = view.apart && method.layers.length > 1;
    if (view.shared && !apart) return method.limits;
    const entries = apart ? [method.layers[entry]] : method.layers, here = control.step.index;
    const carried = entries.flatMap(maps => view.shared ? Object.values(maps) : maps[here] ?? []);
    if (!carried.length) return method.limits;
    if (carried.length === 1 && carried[0].limits) return carried[0].limits;
{% if clip %}
    return scaleOf(carried.flatMap(map => map.range ?? values(map.values)), method.signed);
{% else %}
    return scaleOf(carried.flatMap(map => values(map.values)), method.signed);
{% endif %}
  }

  // One hue that the page chooses for its light or dark ground, from nothing to full strength.
  function doubt() {
    const hue = getComputedStyle(document.documentElement).getPropertyValue("--doubt").trim();
    return Array.from({ length: 256 }, (_, alpha) => bytes(hue, alpha));
  }

  // One method

  function draw(article) {
    const method = methodOf(article), map = mapOf(article), error = one(".error", article);
    const limits = limitsOf(article);
    const flat = limits[0] === limits[1];
    one(".heat", article).classList.toggle("covered", Boolean(map) && !flat && one("#shown").checked);
    one(".map", article).hidden = !map || !one("#shown").checked;
    if (map) paint(one(".map", article), certain(map, method), method.shape, limits, palettes[method.colours], true);
    if (error) drawError(article, error, map, method);
    one(".bar", article).classList.toggle("flat", flat);
    one(".low", article).textContent = (method.clipped ? "≤ " : "") + readable(limits[0], 3);
    one(".high", article).textContent = (method.clipped ? "≥ " : "") + readable(limits[1], 3);
    const alone = view.apart && method.layers.length > 1 ? ", this map only" : "";
    const scale = (view.shared ? `shared by all ${data.unit}s` : `this ${data.unit} only`) + alone;
    one(".scale", article).textContent = flat ? "flat: no colour" : scale;
    for (const button of smalls(article)) drawSmall(article, button, method);
    offerNearest(article, map);
    listNumbers(article, method.numbers[control.step.index] ?? []);
    read(article);
  }

  const smalls = article => all(".smalls button", article);

  function drawSmall(article, button, method) {
    const entry = button.dataset.at, map = mapOf(article, entry), limits = limitsOf(article, entry);
    const visible = Boolean(map) && one("#shown").checked, chosen = entry === article.dataset.layer;
    button.setAttribute("aria-pressed", chosen);
    if (chosen) one(".chosen", article).textContent = one(".label", button).textContent;
    one(".small", button).classList.toggle("covered", visible && limits[0] !== limits[1]);
    one(".map", button).hidden = !visible;
    if (map) paint(one(".map", button), certain(map, method), method.shape, limits, palettes[method.colours], true, 96);
  }

  function choose(button) {
    const article = button.closest("[data-method]");
    article.dataset.layer = button.dataset.at;
    draw(article);
  }

  function certain(map, method) {
    if (!view.certain || !method.signed || !map.errors) return map.values;
    return map.values.map((value, i) => value !== null && Math.abs(value) > 2 * map.errors[i] ? value : null);
  }

  function drawError(article, canvas, map, method) {
    const empty = new Array(method.shape[0] * method.shape[1]).fill(null);
    paint(canvas, map?.errors ?? empty, method.shape, method.errorLimits, doubt(), false);
    one(".error-low", article).textContent = readable(method.errorLimits[0], 3);
    one(".error-high", article).textContent = readable(method.errorLimits[1], 3);
  }

  function offerNearest(article, map) {
    const absent = one(".absent", article), here = control.step.index;
    absent.hidden = Boolean(map);
    if (map) return;
    const goal = nearest(methodOf(article).layers[0], here), empty = goal === undefined;
    one("p", absent).textContent = empty ? `No ${data.unit} was finished` : `Not explained at ${data.unit} ${here}`;
    one("button", absent).hidden = empty;
    one("button", absent).textContent = `Go to ${data.unit} ${goal}, the nearest explained`;
    one("button", absent).onclick = () => control.showIndex(goal);
  }

  function listNumbers(article, numbers) {
    const list = one(".numbers", article);
    list.replaceChildren(...numbers.map(([name, value]) => {
      const row = document.createElement("div"), term = document.createElement("dt"), number = document.createElement("dd");
      term.textContent = name;
      number.textContent = value;
      number.classList.toggle("low", name === "reliability" && !(Number(value.replace("−", "-")) >= data.reliable));
      row.append(term, number);
      return row;
    }));
  }

  // One cell, the same place in every picture

  function cellOf(method) {
    const [rows, columns] = method.shape;
    return [clamp(Math.floor(view.place.y * rows), 0, rows - 1), clamp(Math.floor(view.place.x * columns), 0, columns - 1)];
  }

  function read(article) {
    const method = methodOf(article), map = mapOf(article), readout = one(".readout", article);
    for (const button of smalls(article)) one(".here-value", button).textContent = valueAt(article, button.dataset.at);
    if (!view.place || !map) return void (readout.textContent = "");
    const [row, column] = cellOf(method), i = row * method.shape[1] + column;
    const value = map.values[i], error = map.errors?.[i] ?? null;
    const text = value === null ? "no value" : readable(value) + (error === null ? "" : ` ± ${readable(error)}`);
    const block = method.block > 1 ? ` of ${method.block} × ${method.block} blocks` : "";
    readout.textContent = `Row ${row}, column ${column}${block}: ${text}`;
  }

  // An entry's value at the cell that is pointed at, so that entries can be compared.
  function valueAt(article, entry) {
    const map = view.place && mapOf(article, entry);
    if (!map) return "";
    const [row, column] = cellOf(methodOf(article)), value = map.values[row * methodOf(article).shape[1] + column];
    return value === null ? "" : readable(value, 3);
  }

  function point(place, method) {
    view.place = place;
    articles.forEach(read);
    for (const cell of all(".cell")) {
      const article = cell.closest("[data-method]"), grid = article ? methodOf(article) : method;
      cell.hidden = !place || !grid;
      if (cell.hidden) continue;
      const [row, column] = cellOf(grid), [rows, columns] = grid.shape;
      const edges = { top: row / rows, left: column / columns, height: 1 / rows, width: 1 / columns };
      for (const [edge, fraction] of Object.entries(edges)) cell.style[edge] = `${100 * fraction}%`;
    }
  }

  function movePoint(article, down, right) {
    const method = methodOf(article), [rows, columns] = method.shape;
    const [row, column] = view.place ? cellOf(method) : [rows >> 1, columns >> 1];
    point({ y: (clamp(row + down, 0, rows - 1) + .5) / rows, x: (clamp(column + right, 0, columns - 1) + .5) / columns }, method);
  }

  for (const frame of all(".frame:not(.none)")) {
    const article = frame.closest("[data-method]") ?? articles[0];
    if (!article) continue;
    frame.addEventListener("pointermove", event => point(placeIn(frame, event), methodOf(article)));
    frame.addEventListener("pointerleave", () => point(null, methodOf(article)));
  }

  // One step for the whole page

  function show(step) {
    const thumbs = all(".strip button"), current = thumbs.findLast(thumb => Number(thumb.dataset.at) <= control.at);
    thumbs.forEach(thumb => thumb === current ? thumb.setAttribute("aria-current", "step") : thumb.removeAttribute("aria-current"));
    one("#sample").src = step.sample;
    const clean = data.noised ? one(".result") : one("img", current);
    for (const image of all("img.clean")) image.src = clean.src;
    all("[data-label]").forEach(row => tell(row, step.likelihood?.[row.dataset.label]));
    articles.forEach(draw);
  }

  function jump(direction) {
    const ahead = explained.filter(at => direction * (at - control.at) > 0);
    if (ahead.length) control.show(direction > 0 ? ahead[0] : ahead.at(-1));
  }

  // The keys that only this page has
  function pressed({ key, target, shiftKey }) {
    const arrow = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[key];
    if (arrow && target.matches(".heat")) movePoint(target.closest("[data-method]"), ...arrow);
    else if (arrow?.[1] && shiftKey) jump(arrow[1]);
    else return false;
    return true;
  }

  const control = stepControl(show, 450, pressed);
  for (const thumb of all(".strip button")) thumb.addEventListener("click", event => {
    const span = Number(thumb.dataset.span);
    control.show(Number(thumb.dataset.at) + clamp(Math.floor(placeIn(thumb, event).x * span), 0, span - 1));
  });
  for (const button of all(".smalls button")) button.addEventListener("click", () => choose(button));
  one("#earlier")?.addEventListener("click", () => jump(-1));
  one("#later")?.addEventListener("click", () => jump(1));
  one("#shown")?.addEventListener("change", () => articles.forEach(draw));
  one("#opacity")?.addEventListener("input", event => document.documentElement.style.setProperty("--opacity", event.target.value));
  one("#shared")?.addEventListener("change", event => { view.shared = event.target.checked; articles.forEach(draw); });
  one("#apart")?.addEventListener("change", event => { view.apart = event.target.checked; articles.forEach(draw); });
  one("#certain")?.addEventListener("change", event => { view.certain = event.target.checked; articles.forEach(draw); });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => articles.forEach(draw));
  control.start();
{% if clip %}
  clip.moves(() => control.show(control.at));
{% endif %}
})();
