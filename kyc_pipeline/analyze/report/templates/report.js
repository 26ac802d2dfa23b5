"use strict";
// The report's behaviour: draws the charts, applies the filters and the threshold explorer, prepares printing.
// The element `data` holds specs and texts by figure, periods by key, the explorer's bins, and thresholds.
(() => {
  const element = (id) => document.getElementById(id);
  const all = (selector) => [...document.querySelectorAll(selector)];
  // Colours are CSS variables, so that a change of theme needs no redraw.
  const data = JSON.parse(element("data").textContent.replace(/palette-(\w+)/g, "var(--$1)"));
  const soft = "var(--soft)", grid = "var(--grid)";
  const font = getComputedStyle(document.body).fontFamily.replaceAll('"', "'");
  const config = {
    aria: false, background: "transparent", font, view: { stroke: null },
    axis: {
      labelColor: soft, titleColor: soft, gridColor: grid, domainColor: grid, tickColor: grid,
      labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal",
    },
    legend: { labelColor: soft, labelFontSize: 12, symbolStrokeWidth: 2 },
    text: { color: "var(--ink)", fontSize: 12 },
  };
  const views = new Map();
  const period = element("period"), check = element("check");

  // --- Filters -----------------------------------------------------------------------------------------

  /** Shows a figure's texts for the chosen period, and hides its chart if there is nothing to draw. */
  const describe = (figure) => {
    const [note, alt, empty] = data.views[figure.id.slice("figure-".length)][period.value];
    const chart = figure.querySelector(".chart"), nothing = figure.querySelector(".nothing");
    figure.querySelector(".note").textContent = note;
    chart.setAttribute("aria-label", alt);
    nothing.textContent = empty;
    chart.hidden = empty !== "";
    nothing.hidden = empty === "";
  };

  const showPeriod = async () => {
    const key = period.value;
    for (const part of all("[data-periods]")) part.hidden = !part.dataset.periods.split(" ").includes(key);
    all("figure").forEach(describe);
    await Promise.all([...views].map(([id, view]) => {
      const follows = !data.specs[id].datasets.curve && !isEmpty(id, key);
      return follows ? view.signal("shown", data.periods[key]).runAsync() : null;
    }));
    await explore();
    fit();
  };

  /** Replaces a table that has no row in the chosen period with a sentence. */
  const showTables = () => {
    for (const table of all(".table")) {
      const some = table.querySelector("tbody tr:not([hidden])") !== null;
      table.querySelector(".scroll").hidden = !some;
      table.querySelector(".none").hidden = some;
    }
  };

  const isEmpty = (id, key) => data.views[id][key][2] !== "";

  const showCheck = () => {
    for (const figure of all("figure[data-check]")) {
      figure.hidden = check.value !== "" && figure.dataset.check !== check.value;
    }
    if (explored && [...explored.options].some((option) => option.value === check.value)) {
      explored.value = check.value;
    }
    fit();
    return explore();
  };

  /** Fits the charts to their containers; hidden containers have no width. */
  const fit = () => window.dispatchEvent(new Event("resize"));

  // --- Threshold explorer --------------------------------------------------------------------------------

  const explored = element("explorer-check"), threshold = element("explorer-threshold");
  const sum = (counts) => counts.reduce((total, count) => total + count, 0);
  const percent = (share) => (share === null ? "–" : (share * 100).toFixed(1) + "%");
  const count = (n) => n.toLocaleString("en");

  /** The 95% Wilson interval of k in n, as in the warehouse. */
  const wilson = (k, n) => {
    if (n === 0) return [null, null];
    const z = data.z, rate = k / n, centre = rate + z * z / (2 * n);
    const half = z * Math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)), scale = 1 + z * z / n;
    return [k === 0 ? 0 : (centre - half) / scale, k === n ? 1 : (centre + half) / scale];
  };

  /** What a rule `confidence >= step / 100` would do, for each step. */
  const simulate = (bins) => {
    const every = bins.pass.map((passed, bin) => passed + bins.fail[bin] + bins.other[bin]);
    const scored = sum(every);
    let above = scored, toFail = 0, toPass = sum(bins.fail);
    return every.map((checks, bin) => {
      const [low, high] = wilson(above, scored);
      const row = {
        threshold: bin / 100, scored, above, rate: scored ? above / scored : null, low, high,
        of_all: bins.checks ? above / bins.checks : null, to_fail: toFail, to_pass: toPass, recorded: bins.recorded,
      };
      above -= checks;
      toFail += bins.pass[bin];
      toPass -= bins.fail[bin];
      return row;
    });
  };

  /** The data sets of the explorer's charts, empty if the check has no confidence in the period. */
  const simulated = () => {
    const choice = data.explorer.find((one) => one.check === explored.value);
    const bins = choice.periods[period.value], curve = bins ? simulate(bins) : [];
    return { choice, bins, curve, chosen: curve[Number(threshold.value)] };
  };

  const explore = async () => {
    if (!explored) return showTables();
    const { choice, bins, curve, chosen } = simulated();
    element("explorer-figures").hidden = !bins;
    element("explorer-none").hidden = Boolean(bins);
    element("explorer-value").textContent = (Number(threshold.value) / 100).toFixed(2);
    threshold.setAttribute("aria-valuetext", element("explorer-value").textContent);
    if (chosen) {
      const say = (id, text) => { element("explorer-" + id).textContent = text; };
      say("title", `${choice.check}, threshold ${chosen.threshold.toFixed(2)}`);
      say("rate", percent(chosen.rate));
      say("of", `95%: ${percent(chosen.low)} to ${percent(chosen.high)}, of ${count(chosen.scored)} with a confidence`
        + (chosen.scored < data.low_n ? "*" : "") + `; ${percent(chosen.of_all)} of all ${count(bins.checks)}`);
      say("recorded", percent(chosen.recorded));
      say("to-fail", count(chosen.to_fail));
      say("to-pass", count(chosen.to_pass));
      const errors = choice.errors, at = errors ? errors.rates[Number(threshold.value)] : [];
      const error = (name, [rate, low, high], of, n) => {
        say(name, percent(rate ?? null));
        say(name + "-of", n ? `95%: ${percent(low)} to ${percent(high)}, of ${count(n)} ${of}` + (n < data.low_n ? "*" : "")
          : `no labelled ${of}`);
      };
      element("explorer-errors").hidden = !errors;
      if (errors) {
        error("frr", at.slice(0, 3), "genuine submissions", errors.genuine);
        error("far", at.slice(3), "frauds", errors.fraud);
      }
      say("truth", !errors ? "No labels: it is not known which of these checks are of genuine people and which of frauds,"
        + " so nobody can say which threshold makes fewer errors."
        : errors.weighted ? "FRR and FAR are estimates for all submissions, from a drawn sample with labels, over all days."
        : "FRR and FAR hold for the submissions with a label only, over all days: frauds that nobody noticed are not among them.");
      say("caution", choice.oriented ? `A passed check has the higher confidence in ${percent(choice.auc)} of all pairs of a passed and a failed one.`
        : "Caution: the data do not show that a higher confidence means a better check, so do not trust these figures.");
    }
    for (const id of ["threshold-rate", "threshold-flips"]) {
      const view = views.get(id);
      if (view) await view.data("curve", curve).data("chosen", chosen ? [chosen] : []).runAsync();
    }
    for (const row of all("#threshold-explorer tbody tr")) {
      row.hidden = row.dataset.periods !== period.value || row.cells[0].textContent !== explored.value;
    }
    return showTables();
  };

  // --- Print: every table open, charts as wide as the paper -----------------------------------------------

  const PAPER = 660;
  let opened = [];
  const beforePrint = () => {
    opened = all("details.data:not([open])");
    for (const details of opened) details.open = true;
    for (const view of views.values()) view.width(PAPER).run();
  };
  const afterPrint = () => {
    for (const details of opened) details.open = false;
    opened = [];
    fit();
  };

  // --- Start -------------------------------------------------------------------------------------------------

  const draw = async () => {
    for (const [id, spec] of Object.entries(data.specs)) {
      if (isEmpty(id, period.value)) continue; // all days: no other period has anything either
      if (spec.datasets.curve) {
        const { curve, chosen } = simulated();
        spec.datasets = { curve, chosen: [chosen] };
      }
      const options = { renderer: "svg", actions: false, ast: true, config, tooltip: { theme: "custom" } };
      views.set(id, (await vegaEmbed("#chart-" + id, spec, options)).view);
      // The chart's text alternative says more than the labels inside the SVG.
      element("chart-" + id).querySelector("svg").setAttribute("aria-hidden", "true");
    }
    await explore();
    document.documentElement.dataset.drawn = "true";
  };

  if (explored) {
    // With its value: without one, the browser takes the text and collapses its blanks.
    for (const choice of data.explorer) explored.add(new Option(choice.check, choice.check));
    explored.addEventListener("change", explore);
    threshold.addEventListener("input", explore);
  }
  period.addEventListener("change", showPeriod);
  check.addEventListener("change", showCheck);
  window.addEventListener("beforeprint", beforePrint);
  window.addEventListener("afterprint", afterPrint);
  draw();
})();
