// The replay shows what had arrived at a given moment: on the left the stream, on the right the complete answer. At first
// it shows the last state. It starts automatically once, when a reader scrolls to it.
if (STREAMS.length) {
  const by = (id) => document.getElementById("replay-" + id);
  const still = window.matchMedia("(prefers-reduced-motion: reduce)");
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
    const broken = stream.status !== "completed" && at >= stream.end;
    by("streamed-state").textContent = broken ? "stream broke off: " + (stream.error || stream.status)
      : arrived.length ? arrived.length + " of " + stream.chunks.length + " chunks" : "waiting for the first token";
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
    if (!playing) {
      if (at >= span()) at = 0;
      last = performance.now();
      playing = true;
      setTimeout(step, FRAME_MS);
    }
    show();
  }

  function end() {
    playing = false;
    at = span();
    show();
  }

  function choose(place) {
    by("stream").value = place;
    stream = STREAMS[place];
    end();
  }

  // An action of the reader cancels the automatic start.
  const watch = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) {
      watch.disconnect();
      if (!still.matches) play();
    }
  }, { threshold: 0.6 });

  by("play").addEventListener("click", () => {
    watch.disconnect();
    if (!playing) return play();
    playing = false;
    show();
  });
  by("stream").addEventListener("change", () => {
    watch.disconnect();
    choose(Number(by("stream").value));
    if (!still.matches) play();
  });
  by("at").addEventListener("input", () => {
    watch.disconnect();
    at = span() * Number(by("at").value) / 1000;
    show();
  });
  window.addEventListener("beforeprint", end);

  // A link can start a replay: #play, #play=3
  function follow() {
    const link = /^#play(?:=(\d+))?$/.exec(location.hash);
    if (!link || Number(link[1] || 0) >= STREAMS.length) return;
    watch.disconnect();
    choose(Number(link[1] || 0));
    document.getElementById("replay").scrollIntoView();
    if (!still.matches) play();
  }
  choose(0);
  watch.observe(document.querySelector(".panes"));
  window.addEventListener("hashchange", follow);
  follow();
}
