// The table of requests: filters, sorts, and opens the request that the page's address names.
{
  const by = (id) => document.getElementById("requests-" + id);
  const BATCH = 50;
  const body = by("table").tBodies[0];
  const heads = [...by("table").tHead.rows[0].cells];
  const keys = heads.map((head) => head.dataset.key);
  const names = Object.keys(REQUESTS.columns);
  const rows = REQUESTS.columns.request_id.map((_, at) => {
    const row = Object.fromEntries(names.map((name) => [name, REQUESTS.columns[name][at]]));
    row.words = [row.request_id, row.prompt, row.text, row.error, row.code, row.message, row.finish_reason, row.request_model]
      .filter(Boolean).join("\n").toLowerCase();
    return row;
  });
  let found = rows, most = BATCH, sorted = null, upward = true, opened = null;

  const number = (value, digits) => value === null ? "" :
    value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const usd = (value) => value === null ? "" : value.toLocaleString("en", { maximumSignificantDigits: 4 });
  const shown = (row, key) => ({
    run: () => REQUESTS.runs[row.run].name, status: () => row.error ? row.status + ": " + row.error : row.status,
    at_s: () => number(row.at_s, 1), ttft_ms: () => number(row.ttft_ms, 1), e2e_ms: () => number(row.e2e_ms, 1),
    output_tokens: () => number(row.output_tokens, 0), cost_usd: () => usd(row.cost_usd), retries: () => number(row.retries, 0),
  }[key] || (() => row[key] ?? ""))();

  function element(tag, text, of = {}) {
    const made = Object.assign(document.createElement(tag), of);
    made.textContent = text;
    return made;
  }

  const address = (row) => "#" + new URLSearchParams(
    { request: row.request_id, run: REQUESTS.runs[row.run].id, mode: row.mode });

  // If the prompts have no ids, the id of a request is a hash, which means nothing to a reader.
  const isHash = (id) => /^[0-9a-f]{64}$/.test(id);
  const shortId = (id) => isHash(id) ? id.slice(0, 12) : id;

  // Ids can have any characters: in a shell, some need quotes, and a hyphen at the start would begin an option.
  const word = (text) => /^[\w.:-]+$/.test(text) ? text : "'" + text.replaceAll("'", "'\\''") + "'";
  const command = (request, run) =>
    `deltatap show --run ${word(run)} ${request.startsWith("-") ? "-- " : ""}${word(request)}`;

  function details(row) {
    const box = element("div", "", { className: "request" });
    const fact = (name, value) => {
      const pair = element("div", "");
      pair.append(element("dt", name), element("dd", value));
      return value === null || value === "" ? [] : [pair];
    };
    const ms = (value) => value === null ? null : number(value, 1) + " ms";
    const facts = element("dl", "");
    const run = REQUESTS.runs[row.run];
    facts.append(...fact("request", row.request_id), ...fact("run", run.name === run.id ? run.id : run.name + ", " + run.id),
      ...fact("model", row.request_model), ...fact("endpoint", row.endpoint), ...fact("finish_reason", row.finish_reason),
      ...fact("queued", ms(row.queued_ms)), ...fact("headers after", ms(row.headers_ms)),
      ...fact("TTFT", ms(row.ttft_ms)), ...fact("E2E", ms(row.e2e_ms)), ...fact("event loop late by", ms(row.loop_lag_ms)));
    box.append(facts);
    if (row.error) {
      const status = row.http_status === null ? "" : "HTTP " + row.http_status;
      box.append(element("p", [row.error, row.code, status, row.message].filter(Boolean).join(", "), { className: "error" }));
    }
    if (row.prompt) box.append(element("p", row.prompt, { className: "asked" }));
    box.append(element("pre", row.text || "no text"));
    const links = element("p", "", { className: "dim" });
    const characters = [...(row.text || "")].length;
    if (row.length > characters) links.append(`The first ${number(characters, 0)} of ${number(row.length, 0)} characters. `);
    links.append("Everything: ", element("code", command(row.request_id, run.id)));
    const stream = row.mode === "stream" ? STREAMS.findIndex((one) => one.id === row.request_id && one.run === run.id) : -1;
    if (stream >= 0) links.append(" ", element("a", "Replay this stream", { href: "#play=" + stream }));
    box.append(links);
    const cell = element("td", "", { colSpan: keys.length });
    cell.append(box);
    const line = element("tr", "", { className: "opened" });
    line.append(cell);
    return line;
  }

  function line(row) {
    const made = element("tr", "");
    keys.forEach((key, at) => {
      const cell = element(at ? "td" : "th", at ? shown(row, key) : "");
      if (key === "status") cell.className = row.status === "completed" ? "" : "error";
      if (heads[at].className === "name") {
        cell.classList.add("name");
        cell.title = cell.textContent;
      }
      if (!at) {
        cell.scope = "row";
        const link = element("a", shortId(row.request_id), { href: address(row), title: row.request_id });
        link.setAttribute("aria-expanded", row === opened);
        link.addEventListener("click", (event) => {
          if (row !== opened) return;
          event.preventDefault();
          history.replaceState(null, "", location.pathname + location.search);
          opened = null;
          show();
        });
        cell.append(link);
        if (row.prompt && isHash(row.request_id)) cell.append(element("span", row.prompt, { className: "asked" }));
      }
      made.append(cell);
    });
    return made;
  }

  function show() {
    // An opened request further down comes first, so that a link does not draw all rows above it.
    const first = found.slice(0, most);
    if (opened && !first.includes(opened)) first.unshift(opened);
    body.replaceChildren(...first.flatMap((row) => row === opened ? [line(row), details(row)] : [line(row)]));
    by("more").hidden = found.length <= most;
    const part = found.length > most ? `, ${number(most, 0)} shown` : "";
    by("count").textContent = `${number(found.length, 0)} of ${number(rows.length, 0)} rows${part}`;
  }

  function compare(one, other) {
    const [a, b] = [one[sorted], other[sorted]];
    if (a === null || b === null) return (a === null) - (b === null);  // rows without a value stay last
    const order = typeof a === "number" ? a - b : a < b ? -1 : a > b ? 1 : 0;
    return upward ? order : -order;
  }

  function filter() {
    const words = by("text").value.trim().toLowerCase(), status = by("status").value, run = by("run")?.value || "";
    const slower = by("slower").value === "" ? null : Number(by("slower").value), time = by("time").value;
    found = rows.filter((row) => (!words || row.words.includes(words)) && (!status || row.status === status) &&
      (!run || row.run === Number(run)) && (slower === null || (row[time] !== null && row[time] > slower)));
    if (sorted) found.sort(compare);
    most = BATCH;
    opened = null;
    heads.forEach((head) => head.setAttribute("aria-sort",
      head.dataset.key !== sorted ? "none" : upward ? "ascending" : "descending"));
    show();
  }

  function follow() {
    const link = new URLSearchParams(location.hash.slice(1));
    if (!link.has("request")) return;
    const matches = (row) => row.request_id === link.get("request") &&
      [null, REQUESTS.runs[row.run].id].includes(link.get("run")) && [null, row.mode].includes(link.get("mode"));
    opened = rows.find(matches) || null;
    show();
    if (!opened) {
      document.getElementById("requests").scrollIntoView();
      by("count").textContent = `Request ${link.get("request")} is not in this table.`;
      return;
    }
    body.querySelector(".opened").previousSibling.scrollIntoView({ block: "start" });
  }

  heads.forEach((head) => head.firstChild.addEventListener("click", () => {
    // Times and counts start with the largest.
    const first = !["ttft_ms", "e2e_ms", "output_tokens", "cost_usd", "retries"].includes(head.dataset.key);
    upward = sorted === head.dataset.key ? !upward : first;
    sorted = head.dataset.key;
    filter();
  }));
  by("filter").addEventListener("input", filter);
  by("filter").addEventListener("submit", (event) => event.preventDefault());
  by("clear").addEventListener("click", () => {
    by("filter").reset();
    filter();
  });
  by("more").addEventListener("click", () => {
    most += BATCH;
    show();
  });
  filter();
  follow();
  window.addEventListener("hashchange", follow);
}
