/* What else the folder holds: recommendations, the analysis report, pictures. */
const Documents = (() => {
  const given = JSON.parse(document.getElementById("documents").textContent);
  const analysis = Dom.section("analysis", "Analysis report", "All metrics, by subject; a click opens one.");
  const pictures = Dom.section("pictures", "Pictures and interactive plots", null);
  const body = Dom.make("div");
  analysis.append(body);

  function picture({ name, href, data }) {
    const link = Dom.make("a", { href }, name);
    if (!data) return Dom.make("li", {}, link);
    const image = Dom.make("img", { src: `data:image/png;base64,${data}`, alt: name, loading: "lazy" });
    return Dom.make("li", { class: "picture" }, Dom.make("figure", {}, image, Dom.make("figcaption", {}, link)));
  }

  function render(keys) {
    if (!keys.has("sample")) return;
    const report = given.analyses[String(State.values.sample.index)];
    analysis.hidden = report === undefined;
    Dom.replace(body, report === undefined ? [] : JsonView.view(report));
  }

  Recommendations.show(given.recommendations);
  pictures.hidden = given.pictures.length === 0 && given.notes.length === 0;
  pictures.append(
    Dom.make("ul", { class: "pictures" }, given.pictures.map(picture)),
    ...given.notes.map((note) => Dom.make("p", { class: "hint" }, note)),
  );
  analysis.hidden = true;
  State.on([], render);
  return { nodes: [Recommendations.node, analysis, pictures] };
})();
