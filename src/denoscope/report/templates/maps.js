"use strict";
// The parts of every page: its data and elements, numbers in words, carried values, colours, a canvas, a likelihood.
const maps = (() => {
  const data = JSON.parse(document.getElementById("payload").textContent);
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const minus = text => text.replace("-", "−");
  const readable = (value, digits = 4) => minus(String(Number(value.toPrecision(digits))));

  // A map is carried as a list, or as 16-bit numbers of a common unit, which are unpacked when they are first needed.
  function values(carried) {
    if (!carried || Array.isArray(carried)) return carried;
    if (!carried.list) {
      const raw = Uint8Array.from(atob(carried.words), letter => letter.charCodeAt(0));
      const whole = new DataView(raw.buffer);
      carried.list = Array.from({ length: raw.length / 2 }, (_, i) => whole.getInt16(2 * i, true))
        .map(number => number === -32768 ? null : number * carried.unit);
    }
    return carried.list;
  }

  function bytes(hex, alpha = 255) {
    return [...[1, 3, 5].map(start => parseInt(hex.slice(start, start + 2), 16)), alpha];
  }

  const palettes = Object.fromEntries(Object.entries(data.colours).map(([name, all]) => [name, all.map(hex => bytes(hex))]));

  // The step nearest to `here` among the steps of a map; undefined if there is none.
  function nearest(carried, here) {
    return Object.keys(carried).map(Number).sort((a, b) => Math.abs(a - here) - Math.abs(b - here))[0];
  }

  // Where in an element a pointer is, as fractions of its width and height.
  function placeIn(element, event) {
    const box = element.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  }

  // Bilinear among the cells that have a value; nothing where the nearest cell has none.
  function interpolated(values, rows, columns, y, x) {
    const top = Math.floor(y), left = Math.floor(x);
    const nearest = values[clamp(Math.round(y), 0, rows - 1) * columns + clamp(Math.round(x), 0, columns - 1)];
    if (nearest === null) return null;
    let sum = 0, weights = 0;
    for (const [row, column] of [[top, left], [top, left + 1], [top + 1, left], [top + 1, left + 1]]) {
      const value = values[clamp(row, 0, rows - 1) * columns + clamp(column, 0, columns - 1)];
      const weight = value === null ? 0 : (1 - Math.abs(y - row)) * (1 - Math.abs(x - column));
      sum += weight * value;
      weights += weight;
    }
    return weights > 0 ? sum / weights : nearest;
  }

  function paint(canvas, values, [rows, columns], [low, high], palette, smooth, side = 320) {
    const zoom = smooth ? Math.max(1, Math.round(side / Math.max(rows, columns))) : 1;
    canvas.width = columns * zoom;
    canvas.height = rows * zoom;
    const image = new ImageData(canvas.width, canvas.height);
    for (let i = 0; i < canvas.width * canvas.height; i++) {
      const y = (Math.floor(i / canvas.width) + .5) / zoom - .5, x = (i % canvas.width + .5) / zoom - .5;
      const value = smooth ? interpolated(values, rows, columns, y, x) : values[i];
      if (value === null || high <= low) continue;
      image.data.set(palette[Math.round(255 * clamp((value - low) / (high - low), 0, 1))], 4 * i);
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  // The map of a card: the map of the nearest explained step, and the words below it.
  function drawMap(card, { title, maps: carried, shape, limits, colours }, here, unit) {
    const explained = nearest(carried, here), flat = explained === undefined || limits[0] === limits[1];
    one(".map", card).hidden = flat;
    one(".map", card).parentElement.classList.toggle("covered", !flat);
    one(".caption", card).textContent = captionOf(title, explained, here, flat, unit);
    if (!flat) paint(one(".map", card), values(carried[explained]), shape, limits, palettes[colours], true);
  }

  function captionOf(title, explained, here, flat, unit) {
    if (explained === undefined) return `No ${unit} was explained`;
    const where = explained === here ? `at this ${unit}` : `at ${unit} ${explained}, the nearest explained`;
    return `${title} ${where}${flat ? "; flat: no colour" : ""}`;
  }

  // One label: its likelihood in words, and as a bar from 0 to 1.
  function tell(row, likelihood) {
    one(".value", row).textContent = likelihood?.text ?? "not known";
    if (one(".range", row)) one(".range", row).textContent = likelihood?.range ?? "";
    const { low = null, median = null, high = null } = likelihood ?? {};
    one(".meter", row).classList.toggle("unknown", median === null);
    Object.assign(one(".reach", row).style, { left: `${100 * low}%`, width: `${100 * (high - low)}%` });
    one(".middle", row).style.left = `${100 * median}%`;
  }

  return { data, one, all, palettes, clamp, readable, values, bytes, nearest, placeIn, paint, tell, drawMap };
})();
