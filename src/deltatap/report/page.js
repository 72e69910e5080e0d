// The charts use the page's colors for light or dark mode.
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const narrow = window.matchMedia("(max-width: 640px)");

function themed() {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: color("--line"), zerolinecolor: color("--line"), linecolor: color("--line"), automargin: true };
  return { paper: color("--paper"), ink: color("--ink"), axis };
}

// One chart per task, so that the page can be used while the rest are drawn.
let drawing = 0;
async function draw() {
  const theme = themed(), ours = ++drawing;
  for (const [name, figure] of Object.entries(FIGURES)) {
    if (ours !== drawing) return;
    const layout = { ...figure.layout, paper_bgcolor: theme.paper, plot_bgcolor: theme.paper,
      font: { color: theme.ink, family: "system-ui, sans-serif", size: narrow.matches ? 11 : 13 } };
    delete layout.template;
    for (const axis of ["xaxis", "yaxis", "yaxis2"])
      if (axis === "yaxis2" ? layout.yaxis2 : true) layout[axis] = { ...theme.axis, ...(figure.layout[axis] || {}) };
    if (layout.yaxis2) Object.assign(layout.yaxis2, { showgrid: false, tickmode: "auto" });
    Plotly.react("plot-" + name, figure.data, layout, { responsive: true, displaylogo: false,
      displayModeBar: narrow.matches ? false : "hover" });
    await new Promise((next) => setTimeout(next));
  }
}
draw();
dark.addEventListener("change", draw);
narrow.addEventListener("change", draw);

// The replay shows what had arrived at a given moment: on the left the stream, on the right the complete answer.
if (STREAMS.length) {
  const by = (id) => document.getElementById("replay-" + id);
  const FRAME_MS = 16;
  let stream = STREAMS[0], at = 0, playing = false, last = 0;
  const span = () => Math.max(stream.end, stream.wholeMs, 1);

  function text(pane, pieces) {
    pane.replaceChildren(...pieces.map(([piece, kind]) => {
      const part = document.createElement("span");
      part.className = kind;
      part.textContent = piece;
      return part;
    }));
    if (playing) pane.scrollTop = pane.scrollHeight;
  }

  function show() {
    const arrived = stream.chunks.filter(([ms]) => ms <= at);
    const joined = [];
    for (const [, piece, kind] of arrived)
      if (joined.length && joined[joined.length - 1][1] === kind) joined[joined.length - 1][0] += piece;
      else joined.push([piece, kind]);
    text(by("streamed"), joined);
    const idle = at === 0 && !playing;
    for (const pane of ["streamed", "whole"]) by(pane).dataset.empty = idle ? "Press Play" : "";
    const broken = stream.status !== "completed" && at >= stream.end;
    by("streamed-state").textContent = broken ? "stream broke: " + (stream.error || stream.status)
      : arrived.length ? arrived.length + " of " + stream.chunks.length + " chunks" : idle ? "" : "waiting for the first token";
    const whole = at >= stream.wholeMs;
    text(by("whole"), whole ? [[stream.whole, "content"]] : []);
    by("whole-state").textContent = (whole ? "arrived at " : "arrives at ") + Math.round(stream.wholeMs).toLocaleString("en") +
      " ms" + (stream.paired ? ", captured in mode complete" : ", the end of the stream");
    by("at").value = Math.round(1000 * at / span());
    by("clock").textContent = Math.round(at).toLocaleString("en") + " ms";
    by("play").textContent = playing ? "Pause" : at >= span() ? "Replay" : "Play";
  }

  // A timer, not an animation frame: frames stop while the page is hidden.
  function step() {
    if (!playing) return;
    const now = performance.now();
    at = Math.min(span(), at + (now - last) * Number(by("speed").value));
    last = now;
    if (at >= span()) playing = false;
    show();
    if (playing) setTimeout(step, FRAME_MS);
  }

  function play() {
    playing = !playing;
    if (playing) {
      if (at >= span()) at = 0;
      last = performance.now();
      setTimeout(step, FRAME_MS);
    }
    show();
  }

  function choose() {
    stream = STREAMS[Number(by("stream").value)];
    at = 0;
    playing = false;
    show();
  }

  by("play").addEventListener("click", play);
  by("stream").addEventListener("change", choose);
  by("at").addEventListener("input", () => { at = span() * Number(by("at").value) / 1000; show(); });
  choose();
  // A link can start a replay: #play, #play=3
  const link = /^#play(?:=(\d+))?$/.exec(location.hash);
  if (link && Number(link[1] || 0) < STREAMS.length) {
    by("stream").value = link[1] || 0;
    choose();
    document.getElementById("replay").scrollIntoView();
    play();
  }
}
