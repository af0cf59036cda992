// The split as it is now: image, slots, the devices that hold them, the fusion.
const SVG = "http://www.w3.org/2000/svg";
const ROW = 46, BOX = 36, MOST = 24; // pixels; slots that are drawn

function shape(kind, attributes, text) {
  const made = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function box(x, y, width, title, note, kind) {
  const group = shape("g", {});
  group.append(
    shape("rect", { x, y: y - BOX / 2, width, height: BOX, rx: 6, class: kind }),
    shape("text", { x: x + 10, y: y - 2 }, title),
    shape("text", { x: x + 10, y: y + 12, class: "soft" }, note),
  );
  return group;
}

function line(x1, y1, x2, y2, kind) {
  const middle = (x1 + x2) / 2;
  return shape("path", { d: `M${x1},${y1}C${middle},${y1} ${middle},${y2} ${x2},${y2}`, class: kind });
}

const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

export function picture(place, state, busy) {
  const slots = state.slots.slice(0, MOST);
  const names = new Set(slots.flatMap((slot) => [...slot.holders, ...slot.planned]));
  const devices = [...names].sort();
  const here = new Map(state.workers.map((worker) => [worker.device, worker]));
  const height = Math.max(slots.length, devices.length) * ROW + 10;
  const at = (index, count) => (height * (index + 0.5)) / count;
  const middle = height / 2;
  const lines = [], boxes = [];
  const live = busy ? "live " : "";
  boxes.push(box(10, middle, 110, "image", `${state.pending} under way`, ""));
  slots.forEach((slot, index) => {
    const y = at(index, slots.length);
    const kind = slot.holders.length ? "good" : "bad";
    lines.push(line(120, middle, 180, y, kind === "good" ? `${live}good` : "bad"));
    boxes.push(box(180, y, 260, `slot ${slot.slot}: ${cut(slot.classes.join(", "), 34)}`,
      slot.holders.length ? `median ${slot.latency.p50_ms.toFixed(1)} ms` : "nobody holds it", kind));
    for (const name of new Set([...slot.holders, ...slot.planned])) {
      const holds = slot.holders.includes(name);
      lines.push(line(440, y, 560, at(devices.indexOf(name), devices.length),
        holds ? `${live}good` : "bad"));
    }
  });
  devices.forEach((name, index) => {
    const worker = here.get(name);
    const y = at(index, devices.length);
    const note = worker ? `queue ${worker.queue}, ${worker.in_flight} in flight` : "away";
    boxes.push(box(560, y, 200, cut(name, 26), note, !worker ? "bad" : worker.misses ? "warn" : "good"));
    lines.push(line(760, y, 840, middle, worker ? `${live}good` : ""));
  });
  const lost = state.slots.filter((slot) => !slot.holders.length).length;
  const all = state.slots.length;
  boxes.push(box(840, middle, 150, "answer", lost ? `without ${lost} of ${all} slots` : "all slots",
    lost ? (lost === all ? "bad" : "warn") : "good"));
  if (all > MOST) boxes.push(shape("text", { x: 180, y: height - 2, class: "soft" },
    `and ${all - MOST} more slots`));
  place.setAttribute("viewBox", `0 0 1000 ${height}`);
  place.replaceChildren(...lines, ...boxes);
}
