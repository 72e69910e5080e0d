// The charts use the page's colors for light or dark mode. On paper, they are light and as wide as the paper.
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const narrow = window.matchMedia("(max-width: 640px)");
const PAPER_PX = 680;

function themed() {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: color("--line"), zerolinecolor: color("--line"), linecolor: color("--line"), automargin: true,
    exponentformat: "none", separatethousands: true };
  return { paper: color("--paper"), ink: color("--ink"), axis };
}

function drawOne(name, figure, theme, size) {
  const layout = { ...figure.layout, ...size, autosize: !size.width, paper_bgcolor: theme.paper, plot_bgcolor: theme.paper,
    font: { color: theme.ink, family: "system-ui, sans-serif", size: narrow.matches || size.width ? 11 : 13 } };
  delete layout.template;
  for (const axis of ["xaxis", "yaxis", "yaxis2"])
    if (axis === "yaxis2" ? layout.yaxis2 : true) layout[axis] = { ...theme.axis, ...(figure.layout[axis] || {}) };
  if (layout.yaxis2) Object.assign(layout.yaxis2, { showgrid: false, tickmode: "auto" });
  Plotly.react("plot-" + name, figure.data, layout, { responsive: true, displaylogo: false,
    modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "resetScale2d"]], displayModeBar: !narrow.matches });
}

// One chart per task, so that the page can be used while the rest are drawn.
let drawing = 0;
async function draw() {
  const theme = themed(), ours = ++drawing;
  for (const [name, figure] of Object.entries(FIGURES)) {
    if (ours !== drawing) return;
    drawOne(name, figure, theme, {});
    await new Promise((next) => setTimeout(next));
  }
}

// The browser takes the page as it is when this returns, so all charts are drawn at once.
function drawForPaper() {
  drawing++;
  document.documentElement.classList.add("paper");
  const theme = themed();
  for (const [name, figure] of Object.entries(FIGURES)) drawOne(name, figure, theme, { width: PAPER_PX, height: 330 });
}

function drawForScreen() {
  document.documentElement.classList.remove("paper");
  draw();
}

draw();
dark.addEventListener("change", draw);
narrow.addEventListener("change", draw);
window.addEventListener("beforeprint", drawForPaper);
window.addEventListener("afterprint", drawForScreen);
