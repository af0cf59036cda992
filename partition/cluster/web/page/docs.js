// Draws openapi.json: a section per path, what it takes, what comes back.
const make = (kind, text, css) => {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (css) made.className = css;
  return made;
};

function table(rows) {
  const made = make("table");
  for (const cells of rows) {
    const line = make("tr");
    line.append(...cells.map((cell) => make("td", cell)));
    made.append(line);
  }
  return made;
}

function command(path, method, operation, open) {
  const words = ["curl"];
  if (!open) words.push('-H "Authorization: Bearer $TOKEN"');
  const kind = Object.keys(operation.requestBody?.content ?? {})[0];
  if (kind === "image/*") words.push("--data-binary @photo.jpg");
  else if (kind) words.push("-N -T lines.ndjson -X POST");
  return [...words, `${location.origin}${path}`].join(" ");
}

const answer = await fetch("openapi.json");
const api = await answer.json();
document.getElementById("title").textContent = api.info.title;
document.getElementById("version").textContent = `${api.info.version} · ${api.info.description}`;
const sections = Object.entries(api.paths).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, operation]) => {
    const section = make("section");
    const head = make("h2");
    head.append(make("span", method.toUpperCase(), "method"), ` ${path}`);
    section.append(head, make("p", operation.summary));
    section.append(make("pre", command(path, method, operation, operation.security?.length === 0)));
    const options = (operation.parameters ?? []).map((p) => [p.name, p.description]);
    if (options.length) section.append(table(options));
    section.append(table(Object.entries(operation.responses).map(([code, r]) =>
      [code, r.description])));
    return section;
  }));
const schemas = make("section");
schemas.append(make("h2", "Schemas"));
for (const [name, schema] of Object.entries(api.components.schemas)) {
  schemas.append(make("h3", name), make("pre", JSON.stringify(schema, null, 2)));
}
document.getElementById("paths").replaceChildren(...sections, schemas);
