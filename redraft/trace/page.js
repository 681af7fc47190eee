"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("data").textContent);
  const texts = new Map(data.texts);
  const marks = { G: "given", M: "mask", W: "written", R: "rewritten", T: "taken", K: "kept" };
  const said = { given: "given", mask: "mask", written: "written in this step", kept: "kept",
    rewritten: "written over another token in this step", taken: "taken back in this step" };
  const [player, play, at, pick, by] = ["player", "play", "at", "row", "by"].map(find);
  let timer = null;

  // what stands at each position, since which frame, and p of it when something was last said of it
  function standing(row) {
    let wrote = [], sure = [];
    if (row.before) { wrote = row.before.map(() => -1); sure = row.before.map(() => null); }
    return row.frames.map((frame, number) => {
      const heard = new Map(frame.asked.map((i, k) => [i, [frame.confidence[k], frame.entropy[k]]]));
      const now = frame.ids.map((id, i) => {
        const mark = marks[frame.marks[i]];
        const origin = frame.origin ? frame.origin[i] : (number || row.before ? i : null);
        const same = origin !== null && (mark === "kept" || mark === "given");
        const [p, entropy] = heard.get(i) || [null, null];
        const fresh = mark === "given" || mark === "mask" || mark === "taken" ? -1 : number;
        return { id, mark, entropy, p: p === null && same ? sure[origin] : p, wrote: same ? wrote[origin] : fresh };
      });
      wrote = now.map((one) => one.wrote);
      sure = now.map((one) => one.p);
      return now;
    });
  }

  const known = data.rows.map(() => null);
  const row = () => data.rows[pick.value];
  const shown = () => (known[pick.value] ??= standing(row()));

  function describe(i, one) {
    const parts = [`“${texts.get(one.id)}”`, `position ${i}`, said[one.mark]];
    if (one.p !== null) parts.push(`p ${one.p}`);
    if (one.entropy !== null) parts.push(`entropy ${one.entropy} nats`);
    if (one.wrote >= 0) parts.push(`stands since ${row().frames[one.wrote].label}`);
    return parts.join(" · ");
  }

  function draw() {
    const number = Number(at.value), frame = row().frames[number], frames = row().frames.length;
    const draft = find("draft"), tokens = document.createDocumentFragment();
    shown()[number].forEach((one, i) => {
      const span = document.createElement("span");
      const share = by.value === "sure" ? one.p : one.wrote < 0 ? null : one.wrote / Math.max(1, frames - 1);
      span.className = `token ${one.mark}${share !== null && by.value !== "mark" ? " known" : ""}`;
      if (share !== null) span.style.setProperty("--share", share);
      span.textContent = texts.get(one.id);
      span.title = describe(i, one);
      if (i && data.joint) tokens.append(data.joint);
      tokens.append(span);
    });
    draft.className = `draft by-${by.value}`;
    draft.replaceChildren(tokens);
    const counts = ["written", "rewritten", "taken"].map((mark) => {
      const count = shown()[number].filter((one) => one.mark === mark).length;
      return count ? ` · ${count} ${mark === "taken" ? "taken back" : mark}` : "";
    });
    const line = `${frame.label} · t = ${frame.s.toFixed(2)} · ${frame.nfe} calls${counts.join("")}`;
    find("head").textContent = line;
    at.setAttribute("aria-valuetext", line);
  }

  function legend() {
    const kinds = by.value === "mark" ? ["given", "written", "rewritten", "taken"].map((mark) =>
      [mark, mark === "taken" ? "taken back" : mark]) : [["known", by.value === "sure" ? "p = 0" : "first step", 0],
      ["known", "half", 0.5], ["known", by.value === "sure" ? "p = 1" : "last step", 1]];
    const box = find("legend");
    box.className = `quiet by-${by.value}`;
    box.replaceChildren(...kinds.map(([kind, name, share]) => {
      const swatch = document.createElement("span");
      swatch.className = `swatch ${kind}`;
      swatch.textContent = name;
      if (share !== undefined) swatch.style.setProperty("--share", share);
      return swatch;
    }));
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  }

  function start() {
    if (at.value === at.max) at.value = 0;
    draw();
    play.textContent = "Pause";
    timer = setInterval(() => {
      if (at.value === at.max) return stop();
      at.value = Number(at.value) + 1;
      draw();
    }, Math.max(60, Math.min(400, 12000 / row().frames.length)));
  }

  function choose() {
    stop();
    at.max = row().frames.length - 1;
    at.value = at.max;
    find("cost").textContent = row().summary;
    draw();
  }

  data.rows.forEach((one, i) => pick.append(new Option(`${one.number + 1}`, i)));
  find("rows").hidden = data.rows.length < 2;
  play.addEventListener("click", () => (timer ? stop() : start()));
  at.addEventListener("input", () => { stop(); draw(); });
  pick.addEventListener("change", choose);
  by.addEventListener("change", () => { legend(); draw(); });
  for (const kind of ["pointerover", "click"]) {
    find("draft").addEventListener(kind, (event) => {
      if (event.target.title) find("told").textContent = event.target.title;
    });
  }
  player.hidden = false;
  legend();
  choose();
})();
