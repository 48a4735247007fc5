// What a report's page can do beyond showing itself: charts answer to the pointer and the keyboard, tables
// sort. Without this file the page shows the same. Everything from outside is set as text, never as markup.
"use strict";
(() => {
  const COLORS = 8;
  const UNITS = { k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40,
    kB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12, ms: 1e-3, min: 60, h: 3600, d: 86400 };

  const make = (parent, name, attributes = {}, text = "") => {
    const svg = parent.namespaceURI.endsWith("svg");
    const made = svg ? document.createElementNS(parent.namespaceURI, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    return parent.appendChild(made);
  };

  const shown = (value) => {
    const size = Math.abs(value);
    if (size >= 1e15 || (size > 0 && size < 1e-3)) return value.toExponential(3).replace(/\.?0*e\+?/, "e");
    for (const [unit, factor, from] of [["T", 1e12, 1e12], ["G", 1e9, 1e9], ["M", 1e6, 1e6], ["k", 1e3, 1e4]])
      if (size >= from) return `${+(value / factor).toPrecision(4)} ${unit}`;
    return `${+value.toPrecision(5)}`;
  };

  const niceTicks = (low, high, count) => {
    const raw = (high - low) / Math.max(count, 1), power = 10 ** Math.floor(Math.log10(raw));
    const step = ([1, 2, 5].find((m) => m * power >= raw) ?? 10) * power;
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
    return ticks;
  };

  const logTicks = (low, high) => {
    const decades = Math.log10(high / low);
    if (decades < 0.35) return niceTicks(low, high, 5);
    const steps = decades >= 3 ? [1] : [1, 2, 5], stride = decades >= 3 ? Math.ceil(decades / 7) : 1;
    const ticks = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e += stride)
      for (const m of steps) if (m * 10 ** e >= low && m * 10 ** e <= high) ticks.push(m * 10 ** e);
    return ticks;
  };

  // Maps data to pixels of one axis and back.
  const scale = ([low, high], from, to, log) => {
    const f = log ? Math.log10 : (v) => v, back = log ? (v) => 10 ** v : (v) => v;
    const start = f(low), width = f(high) - start;
    return { at: (v) => from + ((f(v) - start) / width) * (to - from),
      value: (pixel) => back(start + ((pixel - from) / (to - from)) * width) };
  };

  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.svg = figure.querySelector("svg");
      const data = JSON.parse(figure.querySelector("script").textContent);
      Object.assign(this, data);  // size, box, x, y, series
      this.log = { x: this.x.log, y: this.y.log };
      this.hidden = new Set();
      this.cursor = null;
      this.whole = this.series.every((one) => one.x.every((value) => value === null || Number.isInteger(value)));
      this.scatter = this.series.every((one) => one.kind === "points" || one.kind === "guide");
      this.reset();
      this.overlay = make(this.svg, "g", { class: "overlay" });
      this.build();
      this.listen();
    }

    reset() {
      this.view = { x: [...this.x.range], y: [...this.y.range] };
      this.fitted = true;
    }

    build() {
      const bar = make(this.figure, "div", { class: "tools" });
      for (const axis of ["x", "y"]) {
        const possible = this.series.some((one) => one[axis].some((v) => v > 0));
        const button = make(bar, "button", { type: "button", "aria-pressed": this.log[axis] }, `log ${axis}`);
        button.disabled = !possible;
        button.addEventListener("click", () => this.toggleLog(axis));
        this[`${axis}Button`] = button;
      }
      make(bar, "button", { type: "button" }, "reset").addEventListener("click", () => this.home());
      this.tip = make(this.figure, "div", { class: "tip", role: "status", "aria-live": "polite" });
      this.tip.hidden = true;
      this.figure.setAttribute("aria-roledescription", "chart: arrows read values, + and - zoom, 0 resets");
      this.svg.querySelectorAll("g.key").forEach((entry) => {
        const toggle = () => {
          const i = +entry.dataset.series;
          this.hidden.has(i) ? this.hidden.delete(i) : this.hidden.add(i);
          entry.classList.toggle("off", this.hidden.has(i));
          entry.setAttribute("aria-pressed", !this.hidden.has(i));
          this.draw();
        };
        for (const [key, value] of [["tabindex", 0], ["role", "button"], ["aria-pressed", true]])
          entry.setAttribute(key, value);
        entry.addEventListener("click", toggle);
        entry.addEventListener("keydown", (event) => {
          if (event.key !== "Enter" && event.key !== " ") return;
          event.preventDefault();
          event.stopPropagation();
          toggle();
        });
      });
    }

    listen() {
      const place = (event) => {
        const box = this.svg.getBoundingClientRect();
        return [((event.clientX - box.left) / box.width) * this.size[0],
          ((event.clientY - box.top) / box.height) * this.size[1]];
      };
      const inside = ([x, y]) => x >= this.box[0] - 4 && x <= this.box[1] + 4 && y >= this.box[2] && y <= this.box[3];
      let start = null;
      this.svg.addEventListener("pointerdown", (event) => {
        const at = place(event);
        if (event.button || !inside(at) || event.pointerType === "touch") return;
        start = at[0];
        this.svg.setPointerCapture(event.pointerId);
      });
      this.svg.addEventListener("pointermove", (event) => {
        const at = place(event);
        if (start !== null) this.select(start, at[0]);
        else if (inside(at)) this.point(at);
        else this.leave();
      });
      this.svg.addEventListener("pointerup", (event) => {
        if (start === null) return;
        const [from, to] = [start, place(event)[0]].sort((a, b) => a - b);
        start = null;
        this.leave();
        if (to - from > 6) this.zoom(this.scales().x.value(from), this.scales().x.value(to));
      });
      this.svg.addEventListener("pointerleave", () => start === null && this.leave());
      this.svg.addEventListener("dblclick", () => this.home());
      this.figure.addEventListener("keydown", (event) => this.key(event));
      this.figure.addEventListener("blur", () => this.leave());
    }

    key(event) {
      if (event.target !== this.figure) return;
      const [low, high] = this.view.x, { x } = this.scales();
      const middle = this.cursor ?? x.value((this.box[0] + this.box[1]) / 2);
      const around = (factor) => {
        const pixel = x.at(middle);
        return [x.value(pixel - (pixel - this.box[0]) * factor), x.value(pixel + (this.box[1] - pixel) * factor)];
      };
      if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
        const far = (event.shiftKey ? 10 : 1) * (event.key === "ArrowLeft" ? -1 : 1);
        if (this.scatter) this.nextDot(far);
        else this.nextPlace(far, low, high);
      } else if (event.key === "+" || event.key === "=") this.zoom(...around(0.5));
      else if (event.key === "-") this.zoom(...around(2));
      else if (event.key === "0") this.home();
      else if (event.key === "Escape") this.leave();
      else return;
      event.preventDefault();
    }

    // The place of the curves that is so many further.
    nextPlace(far, low, high) {
      const places = [...new Set(this.visible().flatMap((one) => one.x))]
        .filter((v) => v >= low && v <= high).sort((a, b) => a - b);
      if (!places.length) return;
      let i = this.cursor === null ? (far > 0 ? -far : places.length - 1 - far) : 0;
      if (this.cursor !== null) i = places.findIndex((v) => v >= this.cursor);
      this.read(places[Math.min(Math.max(i + far, 0), places.length - 1)]);
    }

    // Every dot that is shown, from left to right.
    dots() {
      const [low, high] = this.view.x;
      return this.visible().flatMap((one) => one.x.map((v, i) => ({ one, i, x: v, y: one.y[i] })))
        .filter(({ x, y }) => y !== null && x >= low && x <= high).sort((a, b) => a.x - b.x || a.y - b.y);
    }

    nextDot(far) {
      const dots = this.dots();
      if (!dots.length) return;
      const here = this.dot ? dots.findIndex(({ one, i }) => one === this.dot.one && i === this.dot.i) : -1;
      const start = here >= 0 ? here : far > 0 ? -far : dots.length - 1 - far;
      this.tellDot(dots[Math.min(Math.max(start + far, 0), dots.length - 1)]);
    }

    tellDot(dot) {
      this.tell(dot.x, [[dot.one, dot.i]]);
      this.dot = dot;
    }

    // What can be read: a guide is only looked at.
    visible() { return this.series.filter((one, i) => !this.hidden.has(i) && one.kind !== "guide"); }

    scales() {
      const [left, right, top, base] = this.box;
      return { x: scale(this.view.x, left, right, this.log.x), y: scale(this.view.y, base, top, this.log.y) };
    }

    home() {
      this.log = { x: this.x.log, y: this.y.log };
      this.reset();
      this.draw();
    }

    toggleLog(axis) {
      this.log[axis] = !this.log[axis];
      this.view.x = this.extent("x");
      this.fitY();
      this.draw();
    }

    zoom(from, to) {
      const [low, high] = this.extent("x");
      const range = [Math.max(from, low), Math.min(to, high)];
      if (!(range[1] > range[0])) return;
      this.view.x = range;
      this.fitY();
      this.draw();
    }

    // All values of an axis; those of y within the range that is shown.
    extent(axis) {
      const keys = axis === "x" ? ["x"] : ["y", "low", "high"], values = [];
      for (const one of this.visible())
        for (const key of keys)
          (one[key] ?? []).forEach((value, i) => {
            const there = axis === "x" || (one.x[i] >= this.view.x[0] && one.x[i] <= this.view.x[1]);
            if (value !== null && there && (!this.log[axis] || value > 0)) values.push(value);
          });
      if (!values.length) return this[axis].range;
      const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
      if (low === high) return this.log[axis] ? [low / 1.5, high * 1.5] : [low - 1, high + 1];
      if (axis === "y" || !this.scatter) return [low, high];
      const free = 0.08;  // of the range, at either side: no dot on the edge, and room for its name
      if (this.log.x) return [low / (high / low) ** free, high * (high / low) ** free];
      const pad = (high - low) * free;
      return [low >= 0 ? Math.max(low - pad, 0) : low - pad, high + pad];
    }

    fitY() {
      const [low, high] = this.extent("y");
      const pad = this.log.y ? (high / low) ** 0.05 : (high - low) * 0.05;
      this.view.y = this.log.y ? [low / pad, high * pad] : [low < 0 ? low - pad : Math.max(low - pad, 0), high + pad];
    }

    // The axes and the curves again, as the page had them but for this view.
    draw() {
      const { x, y } = this.scales(), [left, right, top, base] = this.box;
      const width = this.svg.viewBox.baseVal.width, axes = this.svg.querySelector("g.axes"), curves = this.svg.querySelector("g.curves");
      axes.replaceChildren();
      const yTicks = this.log.y ? logTicks(...this.view.y) : niceTicks(...this.view.y, (base - top) / 50);
      for (const tick of yTicks) {
        const at = y.at(tick).toFixed(1);
        make(axes, "line", { class: "grid", x1: left, x2: right, y1: at, y2: at });
        make(axes, "text", { class: "tick", x: left - 8, y: +at + 4, "text-anchor": "end" }, shown(tick));
      }
      let xTicks = this.log.x ? logTicks(...this.view.x) : niceTicks(...this.view.x, (right - left) / 80);
      if (this.whole) {  // there is no half layer and no half step
        const at = xTicks.filter((tick) => Math.abs(tick - Math.round(tick)) < 1e-9);
        if (at.length > 1) xTicks = at;
      }
      for (const tick of xTicks) {
        const at = x.at(tick).toFixed(1);
        make(axes, "line", { class: "axis", x1: at, x2: at, y1: base, y2: base + 4 });
        // At the right end of the drawing there is no room for the second half of a label (as in charts.py).
        const label = shown(tick), inside = +at + 3.4 * label.length <= width;
        const place = { x: inside ? at : width - 1, y: base + 17, "text-anchor": inside ? "middle" : "end" };
        make(axes, "text", { class: "tick", ...place }, label);
      }
      make(axes, "line", { class: "axis", x1: left, x2: right, y1: base, y2: base });
      curves.replaceChildren();
      this.series.forEach((one, i) => {
        if (!this.hidden.has(i)) this.curve(make(curves, "g", { style: this.style(one) }), one, x, y);
      });
      this.tags(curves, x, y);
      for (const axis of ["x", "y"]) this[`${axis}Button`].setAttribute("aria-pressed", this.log[axis]);
      this.leave();
    }

    style(one) {
      return `--c:var(--c${one.color % COLORS})${one.color >= COLORS && one.kind !== "points" ? ";stroke-dasharray:6 4" : ""}`;
    }

    curve(group, one, x, y) {
      const fits = (value, axis) => value !== null && (!this.log[axis] || value > 0);
      const points = one.x.map((v, i) => fits(v, "x") && fits(one.y[i], "y") ? [x.at(v), y.at(one.y[i])] : null);
      if (one.low && one.kind === "points") {
        one.x.forEach((v, i) => fits(v, "x") && fits(one.low[i], "y") && fits(one.high[i], "y") &&
          make(group, "line", { class: "spread", x1: x.at(v), x2: x.at(v), y1: y.at(one.low[i]), y2: y.at(one.high[i]) }));
      } else if (one.low) {
        const edge = (values) => one.x.map((v, i) => fits(v, "x") && fits(values[i], "y")
          ? `${x.at(v).toFixed(1)} ${y.at(values[i]).toFixed(1)}` : "").filter(Boolean);
        const outline = [...edge(one.high), ...edge(one.low).reverse()];
        if (outline.length > 2) make(group, "path", { class: "band", d: `M${outline.join("L")}Z` });
      }
      if (one.kind !== "points") {
        let pen = "M";
        const path = points.map((point) => {
          if (!point) { pen = "M"; return ""; }
          const move = `${pen}${point[0].toFixed(1)} ${point[1].toFixed(1)}`;
          pen = "L";
          return move;
        });
        make(group, "path", { class: ["faint", "guide"].includes(one.kind) ? one.kind : "line", d: path.join("") });
      }
      if (one.kind === "points" || one.kind === "both" || points.filter(Boolean).length === 1)
        for (const point of points)
          if (point) make(group, "circle", { class: one.color >= COLORS ? "dot hollow" : "dot",
            cx: point[0].toFixed(1), cy: point[1].toFixed(1), r: one.tag ? 3.5 : 3 });
    }

    // Names beside the dots, as tags.py places them.
    tags(group, x, y) {
      const [left, right, top, base] = this.box, CHARACTER = 6.4, HEIGHT = 12, AWAY = 8, DOT = 4;
      const dots = this.dots().map((dot) => ({ ...dot, px: x.at(dot.x), py: y.at(dot.y) }));
      dots.sort((a, b) => this.series.indexOf(a.one) - this.series.indexOf(b.one));
      const taken = dots.map(({ px, py }) => [px - DOT, px + DOT, py - DOT, py + DOT]);
      for (const { one: { tag }, px, py } of dots) {
        if (!tag) continue;
        const width = CHARACTER * tag.length;
        const above = py - AWAY, below = py + AWAY + HEIGHT - 3;
        const spots = [[px + AWAY, py + 4, "start", px + AWAY], [px - AWAY, py + 4, "end", px - AWAY - width],
          [px, above, "middle", px - width / 2], [px, below, "middle", px - width / 2],
          [px - DOT, above, "start", px - DOT], [px - DOT, below, "start", px - DOT],
          [px + DOT, above, "end", px + DOT - width], [px + DOT, below, "end", px + DOT - width]];
        for (const [at, baseline, anchor, start] of spots) {
          const room = [start, start + width, baseline - HEIGHT + 3, baseline + 3];
          const inside = room[0] >= left && room[1] <= right && room[2] >= top && room[3] <= base;
          const clear = !taken.some((t) => room[0] < t[1] && t[0] < room[1] && room[2] < t[3] && t[2] < room[3]);
          if (!inside || !clear) continue;
          make(group, "text", { class: "tag", x: at.toFixed(1), y: baseline.toFixed(1), "text-anchor": anchor }, tag);
          taken.push(room);
          break;
        }
      }
    }

    select(from, to) {
      this.leave();
      const [a, b] = [from, to].sort((p, q) => p - q);
      make(this.overlay, "rect", { class: "selection", x: a, y: this.box[2], width: b - a, height: this.box[3] - this.box[2] });
    }

    leave() {
      this.overlay.replaceChildren();
      this.tip.hidden = true;
      this.cursor = this.dot = null;
    }

    // The values under the pointer: of the nearest dot among dots, else of every curve there.
    point([px, py]) {
      const { x, y } = this.scales();
      if (!this.scatter) return this.read(x.value(px));
      let best = null;
      for (const dot of this.dots()) {
        const far = Math.hypot(x.at(dot.x) - px, y.at(dot.y) - py);
        if (!best || far < best.far) best = { far, ...dot };
      }
      if (best) this.tellDot(best);
    }

    read(value) {
      const found = [];
      let nearest = null;
      for (const one of this.visible()) {
        const i = this.index(one.x, value);
        if (i < 0 || one.y[i] === null) continue;
        found.push([one, i]);
        if (nearest === null || Math.abs(one.x[i] - value) < Math.abs(nearest - value)) nearest = one.x[i];
      }
      if (nearest !== null) this.tell(nearest, found);
    }

    // The place in sorted values that is nearest to one.
    index(values, value) {
      let low = 0, high = values.length - 1;
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        values[middle] < value ? (low = middle) : (high = middle);
      }
      return Math.abs(values[low] - value) <= Math.abs(values[high] - value) ? low : high;
    }

    tell(value, found) {
      this.overlay.replaceChildren();
      this.cursor = value;
      const { x, y } = this.scales(), at = x.at(value);
      make(this.overlay, "line", { class: "cursor", x1: at, x2: at, y1: this.box[2], y2: this.box[3] });
      this.tip.replaceChildren();
      make(this.tip, "b", {}, `${this.x.label.split(" (")[0]} ${shown(value)}`);
      for (const [one, i] of found) {
        if (one.y[i] >= this.view.y[0] && one.y[i] <= this.view.y[1])
          make(this.overlay, "circle", { class: "mark", style: this.style(one), cx: x.at(one.x[i]), cy: y.at(one.y[i]), r: 4 });
        const line = make(this.tip, "div");
        make(line, "i", { style: this.style(one) });
        const range = one.low && one.low[i] !== null ? ` [${shown(one.low[i])}, ${shown(one.high[i])}]` : "";
        const note = one.notes?.[i] ? ` ${one.notes[i]}` : "";
        make(line, "span", {}, `${one.name || this.y.label} ${shown(one.y[i])}${range}${note}`);
      }
      this.tip.hidden = false;
      // Beside the place, on the side that has more room; a wide drawing may be scrolled.
      const drawn = this.svg.getBoundingClientRect(), outer = this.figure.getBoundingClientRect();
      const place = drawn.left - outer.left + (at / this.size[0]) * drawn.width;
      const onRight = place < outer.width / 2;
      this.tip.style.top = `${drawn.top - outer.top + 8}px`;
      this.tip.style.left = onRight ? `${Math.max(place, 0) + 14}px` : "auto";
      this.tip.style.right = onRight ? "auto" : `${Math.max(outer.width - place, 0) + 14}px`;
    }
  }

  // A cell as what it is sorted by: a number with its unit, or its text.
  const rank = (text) => {
    const found = text.trim().replace(/,/g, "").match(/^([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)\s*([A-Za-z]*)/);
    return found ? parseFloat(found[1]) * (UNITS[found[2]] ?? 1) : null;
  };

  const sortable = (table) => {
    const headers = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    if (body.rows.length < 2) return;
    headers.forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => {
        const down = header.getAttribute("aria-sort") === "ascending";
        headers.forEach((other) => other.removeAttribute("aria-sort"));
        header.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].map((row) => {
          const text = row.cells[column]?.textContent ?? "";
          return { row, text, number: rank(text) };
        });
        rows.sort((a, b) => {
          if ((a.number === null) !== (b.number === null)) return a.number === null ? 1 : -1;  // dashes last
          const order = a.number !== null ? a.number - b.number : a.text.localeCompare(b.text);
          return down ? -order : order;
        });
        body.append(...rows.map(({ row }) => row));
      });
    });
  };

  document.querySelectorAll("figure.chart").forEach((figure) => new Chart(figure));
  document.querySelectorAll("table:not(.text)").forEach(sortable);
})();
